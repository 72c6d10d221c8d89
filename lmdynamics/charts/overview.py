"""Loss and UAS over the same steps, with a line at one checkpoint: where in training are we?"""

import altair as alt
import polars as pl

from lmdynamics.charts.cursor import by_step, clickable, step_number, upright
from lmdynamics.charts.theme import BLUE, GREY, ORANGE, figure, step_axis
from lmdynamics.charts.trajectories import on_step_axis, onset_bands, steps_of
from lmdynamics.curves.intervals import loss_by_bin, need_columns
from lmdynamics.curves.onsets import Onset

WIDTH = 420


def loss_and_uas(
    loss: pl.DataFrame,
    curve: pl.DataFrame,
    onset: Onset | None = None,
    step: int | None = None,
    cursor: alt.Parameter | None = None,
) -> alt.VConcatChart:
    """Loss above, UAS below, on one step axis; a vertical line at `step`, or at the step that `cursor` holds.

    `loss`: step, loss (a training log, or a trace of `HeldOutLoss`); `curve`: frame of `uas_by_step`.
    """
    need_columns(loss, ["step", "loss"], "loss and UAS")
    need_columns(curve, ["step", "source", "uas", "low", "high"], "loss and UAS")
    loss = loss_by_bin(loss, per_decade=15) if len(loss) > 60 else loss.select("step", "loss")
    steps = steps_of(loss, curve)
    last = steps[-1] if steps else 0
    place = cursor if cursor is not None else last if step is None else step
    axes = [step_axis(steps, None), step_axis(steps)]
    falling = alt.Chart(on_step_axis(loss)).encode(axes[0]).mark_line(color=BLUE, strokeWidth=2)
    over = []
    if cursor is not None:
        losses = on_step_axis(loss).select("x", "step", "loss")
        over.append(clickable(losses, axes[0], [alt.Tooltip("loss:Q", format=".3f")], panel=0))
        named = on_step_axis(curve).filter(pl.col("source").is_in(["attention", "shuffled", "offset"]))
        shares, tips = by_step(named, "source", "uas", ".1%")
        over.append(clickable(shares, axes[1], tips, panel=1))
    upper = alt.layer(
        *onset_bands([onset] if onset else [], axes[0], labels=False),
        falling.encode(alt.Y("loss:Q", title=["loss (nats", "per token)"]).scale(zero=False).axis(tickCount=4)),
        upright(place, axes[0]),
        step_number(place, axes[0]),
        *over[:1],
    ).properties(width=WIDTH, height=110)
    rising = alt.Chart(on_step_axis(curve)).encode(axes[1])
    share = alt.Axis(format="%", tickCount=4)
    shown = {"attention": BLUE, "shuffled": ORANGE, "offset": GREY}
    layers = []
    for source, colour in shown.items():
        of_source = rising.transform_filter(alt.FieldEqualPredicate(field="source", equal=source))
        y = alt.Y("uas:Q", title=["UAS (share of", "arcs found)"], axis=share)
        if source != "offset":
            band = of_source.mark_area(color=colour, opacity=0.2)
            layers.append(band.encode(alt.Y("low:Q", title=y["title"], axis=share), alt.Y2("high:Q")))
        dash = {"attention": [1, 0], "shuffled": [2, 2], "offset": [6, 4]}[source]
        layers.append(of_source.mark_line(color=colour, strokeWidth=2, strokeDash=dash).encode(y))
    bands = onset_bands([onset] if onset else [], axes[1], labels=False)
    lower = alt.layer(*bands, *layers, upright(place, axes[1]), *over[1:]).properties(width=WIDTH, height=130)
    chart = alt.vconcat(upper, lower, spacing=12)
    if cursor is not None:
        chart = chart.add_params(cursor)
    said = "" if onset is None else f"{str(onset).capitalize()}."
    band = "" if onset is None or onset.step is None else "; band: structure onset"
    return figure(
        chart,
        "Where in training",
        f"blue: attention heads; orange: shuffled trees; grey: best offset{band}",
        f"Loss and UAS over training, with a line at one checkpoint. {said}",
    )

"""Loss and UAS over the same steps, with a line at one checkpoint: where in training are we?"""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import loss_by_bin, need_columns, with_wilson
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import head_history, told, uas_within_reach
from lmdynamics.charts.axes import (
    BEFORE_ONE,
    by_step,
    clickable,
    on_step_axis,
    onset_bands,
    spoken,
    step_axis,
    step_number,
    steps_of,
    undated,
    upright,
)
from lmdynamics.charts.lines import line_layers, placed
from lmdynamics.charts.theme import BLUE, GREY, ORANGE, VERMILION, figure
from lmdynamics.errors import shortened

WIDTH = 420


def loss_and_uas(
    loss: pl.DataFrame,
    curve: pl.DataFrame,
    onset: Onset | None = None,
    step: int | None = None,
    cursor: alt.Parameter | None = None,
    best: pl.DataFrame | None = None,
) -> alt.VConcatChart:
    """Loss above, UAS below, on one step axis; a vertical line at `step`, or at the step that `cursor` holds.

    `loss`: step, loss (a training log, or a trace of `HeldOutLoss`); `curve`: frame of `uas_by_step`. `best`: one
    relation's best heads, as `analysis.syntax.head_history` takes them, for a third panel: when that relation appeared.
    """
    need_columns(loss, ["step", "loss"], "loss and UAS")
    need_columns(curve, ["step", "source", "uas", "low", "high"], "loss and UAS")
    loss = loss_by_bin(loss, per_decade=15) if len(loss) > 60 else loss.select("step", "loss")
    steps = steps_of(loss, curve)
    last = steps[-1] if steps else 0
    place = cursor if cursor is not None else last if step is None else step
    axes = [step_axis(steps, None), step_axis(steps, None) if best is not None else step_axis(steps)]
    over = []
    if cursor is not None:
        losses = on_step_axis(loss).select("x", "step", "loss")
        over.append(clickable(losses, axes[0], [alt.Tooltip("loss:Q", format=".3f")], panel=0))
        named = on_step_axis(curve).filter(pl.col("source").is_in(["attention", "shuffled", "offset"]))
        shares, tips = by_step(named, "source", "uas", ".1%")
        over.append(clickable(shares, axes[1], tips, panel=1))
    falling = alt.Y("loss:Q", title=["loss (nats", "per token)"]).scale(zero=False).axis(tickCount=4)
    upper = alt.layer(
        *onset_bands([onset] if onset else [], axes[0], labels=False),
        *line_layers(on_step_axis(loss), axes[0], falling, BLUE, ends=None),
        upright(place, axes[0]),
        step_number(place, axes[0]),
        *over[:1],
    ).properties(width=WIDTH, height=110)
    y = alt.Y("uas:Q", title=["UAS (share of", "all arcs found)"], axis=alt.Axis(format="%", tickCount=4))
    layers = []
    for source, colour, dash in (("attention", BLUE, [1, 0]), ("shuffled", ORANGE, [2, 2]), ("offset", GREY, [6, 4])):
        of_source = on_step_axis(curve.filter(pl.col("source") == source))
        ends = None if source == "offset" else ("low", "high")
        layers += line_layers(of_source, axes[1], y, colour, dash=dash, ends=ends)
    bands = onset_bands([onset] if onset else [], axes[1], labels=False)
    lower = alt.layer(*bands, *layers, upright(place, axes[1]), *over[1:]).properties(width=WIDTH, height=130)
    panels, caption = [upper, lower], [uas_within_reach(curve)]
    if best is not None:
        panels.append(_one_relation(best, step_axis(steps), place, clicks=cursor is not None))
        caption.append(told(head_history(best), best["relation"][0]))
    chart = alt.vconcat(*panels, spacing=12)
    if cursor is not None:
        chart = chart.add_params(cursor)
    said = spoken([onset] if onset else [])
    band = "" if onset is None or onset.step is None else "; band: onset of structure beyond shuffled trees"
    shown = [*undated([onset] if onset else []), *caption]
    return figure(
        chart,
        "Where in training",
        [f"blue: attention heads; orange: shuffled trees; grey: best fixed offset{band}", *shown],
        " ".join(["Loss and UAS over training, with a line at one checkpoint.", said, *caption]),
    )


def _one_relation(best: pl.DataFrame, x: alt.X, place: alt.Parameter | int, clicks: bool) -> alt.LayerChart:
    """Accuracy of one relation's best head over its best fixed offset, and the step from which it stays above."""
    head = pl.format("{}-{}", "layer", "head")
    data = on_step_axis(with_wilson(best)).with_columns(name=head)
    share = alt.Axis(format="%", tickCount=4)
    history = head_history(best).row(0, named=True)
    layers = []
    if history["appears"] is not None:
        ends = {"from": history["not_yet"], "to": history["appears"]}
        ends = pl.DataFrame(ends).with_columns(pl.all().clip(BEFORE_ONE))
        start = x.copy()
        start["shorthand"] = "from:Q"
        between = alt.Chart(ends).mark_rect(color=VERMILION, opacity=0.25)
        layers.append(between.encode(start, alt.X2("to:Q"), y=alt.value(0), y2=alt.value("height")))
    y = alt.Y("accuracy:Q", title=[f"{shortened(best['relation'][0], 14)}:", "its best head"], axis=share)
    layers += [
        *line_layers(data, x, y, BLUE),
        *line_layers(data, x, placed(y, "offset"), GREY, dash=[6, 4], ends=None),
        upright(place, x),
    ]
    if clicks:
        tips = [alt.Tooltip("name:N", title="layer-head"), "direction:N"]
        tips += [alt.Tooltip(f"{name}:Q", format=".1%") for name in ("accuracy", "low", "high", "offset")]
        layers.append(clickable(data, x, tips, panel=2))
    return alt.layer(*layers).properties(width=WIDTH, height=110)

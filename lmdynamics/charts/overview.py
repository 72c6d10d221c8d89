"""Loss and UAS over the same steps, with a line at one checkpoint: where in training are we?"""

from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import loss_by_bin, need_columns, with_wilson
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import head_history, uas_within_reach
from lmdynamics.charts.axes import (
    BEFORE_ONE,
    Cursor,
    by_step,
    on_step_axis,
    onset_bands,
    spoken,
    step_axis,
    step_number,
    steps_of,
    strips,
    undated,
    upright,
)
from lmdynamics.charts.lines import line_layers, placed
from lmdynamics.charts.theme import BLUE, GREY, ORANGE, VERMILION, figure
from lmdynamics.errors import UserError

WIDTH, HEIGHT = 470, 50


def loss_and_uas(
    loss: pl.DataFrame,
    curve: pl.DataFrame,
    onset: Onset | None = None,
    step: int | None = None,
    cursor: Cursor | None = None,
    best: pl.DataFrame | None = None,
) -> alt.VConcatChart:
    """Loss above, UAS below, on one step axis; a vertical line at `step`, or at the cursor's.

    `loss`: step, loss (a training log, or a trace of `HeldOutLoss`); `curve`: frame of `uas_by_step`. `best`: the
    relations' best heads, as `analysis.syntax.head_history` takes them, for a third panel: when the relation that the
    signal `relation` holds appeared.
    """
    if best is not None and cursor is None:
        raise UserError("loss and UAS: best= needs a cursor, and a signal `relation` that chooses one of its relations")
    need_columns(loss, ["step", "loss"], "loss and UAS")
    need_columns(curve, ["step", "source", "uas", "low", "high"], "loss and UAS")
    loss = loss_by_bin(loss, per_decade=15) if len(loss) > 60 else loss.select("step", "loss")
    steps = steps_of(loss, curve)
    last = steps[-1] if steps else 0
    place = cursor if cursor is not None else last if step is None else step
    onsets = [onset] if onset else []
    bare = step_axis(steps, None)
    bare["axis"]["labels"] = False
    axes = [bare, bare if best is not None else step_axis(steps)]
    falling = alt.Y("loss:Q", title=["loss", "(nats)"]).scale(zero=False).axis(tickCount=4)
    losses = on_step_axis(loss)
    upper = [*line_layers(losses, axes[0], falling, BLUE, ends=None), step_number(place, axes[0])]
    tips = [alt.Tooltip("loss:Q", format=".3f")]
    panels = [_panel(upper, losses.select("x", "step", "loss"), tips, axes[0], place, onsets)]
    y = alt.Y("uas:Q", title=["UAS", "(all arcs)"], axis=alt.Axis(format="%", tickCount=4))
    lower = []
    for source, colour, dash in (("attention", BLUE, [1, 0]), ("shuffled", ORANGE, [2, 2]), ("offset", GREY, [6, 4])):
        of_source = on_step_axis(curve.filter(pl.col("source") == source))
        ends = None if source == "offset" else ("low", "high")
        lower += line_layers(of_source, axes[1], y, colour, dash=dash, ends=ends)
    named = on_step_axis(curve).filter(pl.col("source").is_in(["attention", "shuffled", "offset"]))
    panels.append(_panel(lower, *by_step(named, "source", "uas", ".1%"), axes[1], place, onsets))
    if best is not None:
        panels.append(_one_relation(best, step_axis(steps), place))
    said, reach = spoken(onsets), uas_within_reach(curve)
    band = "" if onset is None or onset.step is None else "; band: onset of structure beyond shuffled trees"
    shown = [*undated(onsets), reach]
    return figure(
        alt.vconcat(*panels, spacing=8),
        "Where in training",
        [f"share of arcs found: blue: attention heads; orange: shuffled trees; grey: best fixed offset{band}", *shown],
        " ".join(["Loss and UAS over training, with a line at one checkpoint.", said, reach]),
    )


def _panel(layers, rows: pl.DataFrame, tips, x: alt.X, place: Cursor | int, onsets: Sequence[Onset] = ()):
    """Layers over training, the line at the checkpoint, and what a pointer is told of `rows` there."""
    over = [strips(rows, x, place, tips)] if isinstance(place, Cursor) else []
    bands = onset_bands(onsets, x, labels=False)
    return alt.layer(*bands, *layers, upright(place, x), *over).properties(width=WIDTH, height=HEIGHT)


def _one_relation(best: pl.DataFrame, x: alt.X, place: Cursor | int) -> alt.LayerChart:
    """Accuracy of one relation's best head over its best fixed offset, and the step from which it stays above."""
    data = on_step_axis(with_wilson(best)).with_columns(name=pl.format("{}-{}", "layer", "head"))
    chosen = "datum.relation == relation"
    dated = head_history(best).drop_nulls("appears").select("relation", pl.col("not_yet", "appears").clip(BEFORE_ONE))
    start = x.copy()
    start["shorthand"] = "not_yet:Q"
    between = alt.Chart(dated).transform_filter(chosen).mark_rect(color=VERMILION, opacity=0.25)
    y = alt.Y("accuracy:Q", title=["best head of", "the relation"], axis=alt.Axis(format="%", tickCount=4))
    layers = [
        between.encode(start, alt.X2("appears:Q"), y=alt.value(0), y2=alt.value("height")),
        *line_layers(data, x, y, BLUE),
        *line_layers(data, x, placed(y, "offset"), GREY, dash=[6, 4], ends=None),
    ]
    layers = [layers[0], *(layer.transform_filter(chosen) for layer in layers[1:])]
    tips = [alt.Tooltip("name:N", title="layer-head"), "direction:N"]
    tips += [alt.Tooltip(f"{name}:Q", format=".1%") for name in ("accuracy", "low", "high", "offset")]
    over = [strips(data, x, place, tips).transform_filter(chosen)] if isinstance(place, Cursor) else []
    return alt.layer(*layers, upright(place, x), *over).properties(width=WIDTH, height=HEIGHT)

"""Which attention head follows which dependency relation: a map at one checkpoint, a table over training.

Figures with a `cursor` follow it; they are the views of the SAS explorer.
"""

from collections.abc import Mapping
from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import loss_by_bin, need_columns, with_wilson
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import DIRECTIONS, best_directions, head_history, uas_within_reach, within_reach
from lmdynamics.charts.axes import (
    SLIDER,
    STEP_ZERO,
    Cursor,
    by_step,
    on_step_axis,
    onset_sentences,
    same_axis,
    step_axis,
    step_line,
    steps_of,
    strips,
    undated,
)
from lmdynamics.charts.encodings import measured_step, need_rows, numbers
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.moving import by_place
from lmdynamics.charts.text import Value, quoted
from lmdynamics.charts.theme import GREY, ORANGE, PURPLE, TEXT, VERMILION, figure
from lmdynamics.charts.tiles import accuracy_colour, step_tiles, text_colour
from lmdynamics.errors import UserError

SCORES = ["step", "relation", "layer", "head", "direction", "split", "count", "accuracy"]
LOSS = Line("loss", ["loss", "(nats)"], axis={"tickCount": 4}, band=None)
UAS = Line("uas", ["UAS", "(all arcs)"], percent=True, axis={"tickCount": 4}, scale={})
SOURCES = {  # of UAS, in the small figure
    "per_relation": UAS,
    "shuffled": replace(UAS, colours=ORANGE, dashes=[2, 2]),
    "offset": replace(UAS, colours=GREY, dashes=[6, 4], band=None),
    "single_head": replace(UAS, colours=PURPLE, band=None),
    "single_offset": replace(UAS, colours=PURPLE, dashes=[6, 4], band=None),
}
BEST = replace(UAS, value="accuracy", title=["best head of", "the relation"])
SMALL = {"width": 470, "height": 50}


def layer_head_map(
    scores: pl.DataFrame, relation: str, step: int | None = None, offset: float | None = None, split: str = "all"
) -> alt.LayerChart:
    """Accuracy of every head (column) of every layer (row) on one relation, the better of its two directions.

    `scores`: a trace of `HeadScores`, of which `step` (default: the last) is drawn. The best head is outlined.
    `offset`: accuracy of the best fixed offset, the baseline.
    """
    relations = ", ".join(scores["relation"].unique().sort()) if "relation" in scores.columns else ""
    no_rows = f"no scores for the relation {relation!r}; measured: {relations or 'none'}"
    chosen = (pl.col("relation") == relation) & (pl.col("split") == split) & (pl.col("count") > 0)
    rows = need_rows(scores, SCORES, "head map", no_rows, chosen)
    step = measured_step(step, steps_of(rows), "head map")
    cells = best_directions(rows).filter(pl.col("step") == step)
    top = cells.filter("best").row(0, named=True)
    baseline, reach = "" if offset is None else f"best fixed offset: {offset:.0%}", within_reach(rows)
    return figure(
        alt.layer(*_map(alt.Chart(cells))).properties(**_size(cells)),
        f"Which heads follow {relation}",
        [
            f"step {step:,}; outlined: the best head on all sentences; {top['count']:,} arcs",
            "each in the better of its two directions",
            reach,
            baseline,
        ],
        f"Accuracy of each attention head on the relation {relation} at step {step}. Best: layer {top['layer']}, head "
        f"{top['head']} ({top['direction']}), {top['accuracy']:.0%} "
        f"(95 % interval {top['low']:.0%} to {top['high']:.0%}). "
        f"{baseline.capitalize()}." + (f" {reach.capitalize()}." if reach else ""),
    )


def moving_head_map(
    scores: pl.DataFrame, cursor: Cursor, offsets: Mapping[str, float], split: str = "all"
) -> alt.LayerChart:
    """The same for every relation and every place of a cursor; the signal `relation` chooses one.

    A dot marks the head chosen by the signals `layer` and `head`. `offsets`: each relation's baseline.
    """
    need_columns(scores, SCORES, "head map")
    rows = scores.filter(pl.col("split") == split, pl.col("count") > 0)
    cells = pl.concat(
        best_directions(part).with_columns(relation=pl.lit(name))
        for (name,), part in rows.group_by("relation", maintain_order=True)
    )
    cells = cells.with_columns(onward=pl.col("direction") == DIRECTIONS[0])  # a page stores a third of the text's bytes
    columns = ["accuracy", "low", "high", "onward", "best"]
    marks = by_place(cells, ["relation", "layer", "head", "count"], columns, cursor.steps)
    base = alt.Chart(marks).transform_filter("datum.relation == relation")
    base = base.transform_calculate(**{name: f"datum.{name}_at[{SLIDER}]" for name in columns})
    names = " : ".join(map(quoted, DIRECTIONS))
    base = base.transform_filter("isValid(datum.accuracy)").transform_calculate(direction=f"datum.onward ? {names}")
    row_height = _size(cells)["height"] // cells["layer"].n_unique()
    dot = base.transform_filter("datum.layer == layer && datum.head == head").encode(**_grid())
    on_any_tile = {"stroke": "white", "strokeWidth": 1.2}  # some tiles are as dark as the dot
    dot = dot.mark_point(filled=True, color=VERMILION, opacity=1, size=40, yOffset=7 - row_height // 2, **on_any_tile)
    chart = alt.layer(*_map(base, cursor="pointer"), dot).properties(**_size(cells))
    reach = {name: within_reach(part) for (name,), part in rows.group_by("relation", maintain_order=True)}
    values = {"head_offsets": {name: f"{share:.0%}" for name, share in offsets.items()}, "head_reach": reach}
    offset = Value("head_offsets[relation] || 'unknown'", "unknown")
    limit = Value(
        "head_reach[relation] ? '(' + head_reach[relation] + ')' : ''", max(reach.values(), key=len, default="")
    )
    title = ["Which heads follow ", Value("relation", max(offsets, key=len, default="")), ", step ", cursor.number]
    return figure(
        chart.add_params(*(alt.param(name=name, value=value) for name, value in values.items())),
        [*title, "; best fixed offset: ", offset, *([" ", limit] if any(reach.values()) else [])],
        ["each in the better of its two directions;", "outlined: the best; dot: the one shown below"],
        "Accuracy of each attention head on one relation at one checkpoint.",
    )


def head_click(field: str) -> dict[str, str | dict]:
    """Vega event handler for a click on the map: sets a signal to `field` (layer, head, direction) of that head."""
    has_head = "event.item && event.item.datum && isValid(event.item.datum.accuracy_at)"
    return {"events": {"source": "view", "type": "click", "filter": [has_head]}, "update": f"datum.{field}"}


def _grid() -> dict[str, alt.X | alt.Y]:
    return {
        "x": alt.X("head:O", title="head").axis(labelAngle=0, domain=False, ticks=False),
        "y": alt.Y("layer:O", title="layer", sort="descending").axis(domain=False, ticks=False),
    }


def _size(cells: pl.DataFrame) -> dict[str, int]:
    layers, heads = cells["layer"].n_unique(), cells["head"].n_unique()
    column_width, row_height = (46, 40) if heads <= 8 and layers <= 6 else (28, 24)
    return {"width": column_width * heads, "height": row_height * layers}


def _map(base: alt.Chart, **mark) -> list[alt.Chart]:
    tips = ["layer:O", "head:O", "direction:N", *numbers(".1%", "accuracy", "low", "high"), "count:Q"]
    base = base.encode(**_grid(), tooltip=tips)
    return [
        base.mark_rect(**mark).encode(accuracy_colour()),
        base.transform_filter("datum.best").mark_rect(filled=False, stroke=VERMILION, strokeWidth=3),
        base.mark_text(fontSize=11, **mark).encode(alt.Text("accuracy:Q", format=".0%"), color=text_colour()),
    ]


def heads_by_relation(best: pl.DataFrame) -> alt.LayerChart:
    """Relation × checkpoint: accuracy of the best head, chosen on one half of the sentences, scored on the other.

    `best`: step, relation, layer, head, direction, accuracy, count, offset. A dot marks checkpoints where the lower
    end of the 95 % interval is above the offset baseline; the last column names the head. `reachable`, if present and
    below 1 (causal models), is shown in the tooltips.
    """
    columns = ["step", "relation", "layer", "head", "direction", "accuracy", "count", "offset"]
    no_rows = "no relation was measured; lower min_count or give more sentences"
    best = need_rows(best, columns, "heads by relation", no_rows)
    causal = "reachable" in best.columns and bool((best["reachable"] < 1).any())
    name = pl.format("{}-{}", "layer", "head")
    data = with_wilson(best).with_columns(name=name, above=pl.col("low") > pl.col("offset"))
    order = data.group_by("relation").agg(pl.col("count").max()).sort("count", "relation", descending=[True, False])
    last_step = data["step"].max()
    base, size = step_tiles(data, order["relation"].to_list(), "relation", widest=22, tall=22)
    shares = ["accuracy", "low", "high", "offset", *["reachable"] * causal]
    tips = ["relation", "step", alt.Tooltip("name", title="layer-head"), "direction", *numbers(".1%", *shares), "count"]
    base = base.encode(tooltip=tips)
    tile = base.mark_rect().encode(accuracy_colour(offset=44))
    dot = base.transform_filter("datum.above").mark_point(filled=True, size=12, opacity=1, shape="circle")
    label = base.transform_filter(alt.FieldEqualPredicate(field="step", equal=last_step)).mark_text(
        align="left", dx=size["width"] // data["step"].n_unique() // 2 + 6, color=TEXT, fontSize=11
    )
    chart = alt.layer(tile, dot.encode(color=text_colour()), label.encode(alt.Text("name:N"))).properties(**size)
    last = data.filter(pl.col("step") == last_step).sort("count", descending=True)
    ends = "; ".join(
        f"{r['relation']} {r['name']} {r['accuracy']:.0%} (offset {r['offset']:.0%})"
        for r in last.iter_rows(named=True)
    )
    return figure(
        chart,
        "Which head follows which relation, and when",
        [
            "accuracy of the relation's best head (named at the right: layer-head) on unseen sentences;",
            "dot: above the best fixed offset, interval included",
            "a causal model attends to the left only: `reachable` in a tooltip is the most its head could find"
            if causal
            else "",
        ],
        f"Best head per relation over training; at step {last_step}: {ends}.",
    )  # fmt: skip


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
    relations' best heads, as for `analysis.syntax.head_history`, for a third panel: accuracy over training for the
    relation in the signal `relation`.
    """
    if best is not None and cursor is None:
        raise UserError("loss and UAS: best= needs a cursor, and a signal `relation` that chooses one of its relations")
    need_columns(loss, ["step", "loss"], "loss and UAS")
    need_columns(curve, ["step", "source", "uas", "low", "high"], "loss and UAS")
    loss = loss_by_bin(loss, per_decade=15) if len(loss) > 60 else loss.select("step", "loss")
    steps = steps_of(loss, curve)
    last = steps[-1] if steps else 0
    position = cursor if cursor is not None else last if step is None else step
    onsets = [onset] if onset else []
    no_labels = step_axis(steps, None)
    no_labels["axis"]["labels"] = False
    below = no_labels if best is not None else step_axis(steps)
    losses = on_step_axis(loss)
    hover = losses.select("x", "step", "loss"), numbers(".3f", "loss")
    options = {"onsets": onsets, "onset_labels": False, "position": position, **SMALL}
    panels = [panel(LOSS.layers(losses, no_labels, ()), no_labels, number=True, hover=hover, **options)]
    data = on_step_axis(curve).filter(pl.col("source").is_in(list(SOURCES)))
    lower = [layer for source, line in SOURCES.items() for layer in line.layers(data.filter(source=source), below, ())]
    panels.append(panel(lower, below, hover=by_step(data, "source", "uas", ".1%"), **options))
    if best is not None:
        panels.append(_relation_panel(best, step_axis(steps), position))
    sentences, reach = onset_sentences(onsets), uas_within_reach(curve)
    band = "" if onset is None or onset.step is None else "; band: onset of structure beyond shuffled trees"
    notes = [*undated(onsets), reach]
    return figure(
        alt.vconcat(*panels, spacing=8),
        "Where in training",
        [
            f"share of arcs found: blue: best head per relation; orange: shuffled trees; grey: best fixed offset{band}",
            "pink: one head for all words; dashed: one offset" if "single_head" in data["source"] else "",
            *notes,
        ],
        " ".join(["Loss and UAS over training, with a line at one checkpoint.", sentences, reach]),
    )


def _relation_panel(best: pl.DataFrame, x: alt.X, cursor: Cursor) -> alt.LayerChart:
    """Accuracy of one relation's best head and of its best fixed offset, and the step from which the head is better."""
    data = on_step_axis(with_wilson(best)).with_columns(name=pl.format("{}-{}", "layer", "head"))
    chosen = "datum.relation == relation"
    first = head_history(best).drop_nulls("appears").select("relation", pl.col("not_yet", "appears").clip(STEP_ZERO))
    between = alt.Chart(first).mark_rect(color=VERMILION, opacity=0.25)
    offset = replace(BEST, value="offset", colours=GREY, dashes=[6, 4], band=None)
    layers = [
        between.encode(same_axis(x, "not_yet"), alt.X2("appears:Q"), y=alt.value(0), y2=alt.value("height")),
        *BEST.layers(data, x, ()),
        *offset.layers(data, x, ()),
    ]
    tips = [
        alt.Tooltip("name:N", title="layer-head"),
        "direction:N",
        *numbers(".1%", "accuracy", "low", "high", "offset"),
    ]
    hover_strips = strips(data, x, cursor, tips).transform_filter(chosen)
    layers = [layer.transform_filter(chosen) for layer in layers]
    return alt.layer(*layers, step_line(cursor, x), hover_strips).properties(**SMALL)

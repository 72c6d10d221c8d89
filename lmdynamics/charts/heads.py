"""Which head follows which dependency relation: at one checkpoint as a map, over training as a table in colour."""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns, with_wilson
from lmdynamics.analysis.syntax import best_directions, within_reach
from lmdynamics.charts.theme import TEXT, VERMILION, figure
from lmdynamics.charts.tiles import accuracy_colour, ink, step_tiles
from lmdynamics.errors import UserError

PERCENT = ".0%"
PICK = "pick"  # the selection that holds which head a reader clicked


def layer_head_map(
    scores: pl.DataFrame,
    relation: str,
    step: int | None = None,
    offset: float | None = None,
    split: str = "all",
    cursor: alt.Parameter | None = None,
    chosen: tuple[int, int] | tuple[alt.Parameter, alt.Parameter] | None = None,
) -> alt.LayerChart:
    """Accuracy of every head (column) of every layer (row) on one relation, the better of its two directions.

    `scores`: a trace of `HeadScores`. With `cursor`, a parameter holding a step, the chart carries all steps and
    shows the one that the parameter names; otherwise it shows `step` (default: the last). The best head is outlined,
    `chosen` (layer, head, as numbers or as parameters) is marked with a dot. `offset`: accuracy of the best fixed
    offset, the baseline.
    """
    need_columns(scores, ["step", "relation", "layer", "head", "direction", "split", "count", "accuracy"], "head map")
    rows = scores.filter(pl.col("relation") == relation, pl.col("split") == split, pl.col("count") > 0)
    if rows.is_empty():
        known = ", ".join(scores["relation"].unique().sort())
        raise UserError(f"head map: no scores for the relation {relation!r}; measured: {known or 'none'}")
    step = rows["step"].max() if step is None else step
    if step not in rows["step"]:
        raise UserError(f"head map: step {step} was not measured; measured: {_listed(rows['step'].unique().sort())}")
    cells = best_directions(rows)
    if cursor is None:
        cells = cells.filter(pl.col("step") == step)
    layers, heads = cells["layer"].n_unique(), cells["head"].n_unique()
    size, tall = (46, 40) if heads <= 8 else (34, 30)
    base = alt.Chart(cells).encode(
        alt.X("head:O", title="head").axis(labelAngle=0, domain=False, ticks=False),
        alt.Y("layer:O", title="layer", sort="descending").axis(domain=False, ticks=False),
        tooltip=[
            "layer",
            "head",
            "direction",
            *(alt.Tooltip(c, format=".1%") for c in ("accuracy", "low", "high")),
            "count",
        ],
    )
    if cursor is not None:
        base = base.transform_filter(f"datum.step == {cursor.name}")
    colour = accuracy_colour()
    tile = base.mark_rect().encode(colour)
    if cursor is not None:
        fields = ["layer", "head", "direction"]
        tile = tile.add_params(alt.selection_point(name=PICK, on="click", fields=fields, clear=False))
    best = base.transform_filter("datum.best").mark_rect(filled=False, stroke=VERMILION, strokeWidth=3)
    number = base.mark_text(fontSize=11).encode(
        alt.Text("accuracy:Q", format=PERCENT),
        color=ink(),
    )
    parts = [tile, best, number]
    if chosen is not None:
        layer, head = (part.name if isinstance(part, alt.Parameter) else part for part in chosen)
        dot = base.transform_filter(f"datum.layer == {layer} && datum.head == {head}")
        parts.append(dot.mark_point(filled=True, color=VERMILION, opacity=1, size=40, yOffset=7 - tall // 2))
    chart = alt.layer(*parts).properties(width=size * heads, height=tall * layers)
    chart = chart.add_params(*(part for part in (cursor, *(chosen or ())) if isinstance(part, alt.Parameter)))
    top = cells.filter(pl.col("best") & (pl.col("step") == step)).row(0, named=True)
    baseline, reach = "" if offset is None else f"best fixed offset: {offset:.0%}", within_reach(rows)
    where = "" if cursor is not None else f"step {step:,}; "
    return figure(
        chart,
        f"Which heads follow {relation}",
        [
            f"{where}outlined: the best head on all sentences; {top['count']:,} arcs",
            "each in the better of its two directions",
            reach,
            "dot: the head below; a relation brings the one best on half of them" if chosen is not None else "",
            baseline,
        ],
        f"Accuracy of each attention head on the relation {relation} at step {step}. Best: layer {top['layer']}, head "
        f"{top['head']} ({top['direction']}), {top['accuracy']:.0%} "
        f"(95 % interval {top['low']:.0%} to {top['high']:.0%}). "
        f"{baseline.capitalize()}." + (f" {reach.capitalize()}." if reach else ""),
    )


def heads_by_relation(best: pl.DataFrame) -> alt.LayerChart:
    """Relation × checkpoint: accuracy of the best head, chosen on one half of the sentences, scored on the other.

    `best`: step, relation, layer, head, direction, accuracy, count, offset. A dot marks checkpoints where even the
    lower end of the 95 % interval lies above the offset baseline; the last column names the head. `reachable`, if it
    is there and below 1 (causal models), stands in the tooltips.
    """
    need_columns(
        best, ["step", "relation", "layer", "head", "direction", "accuracy", "count", "offset"], "heads by relation"
    )
    if best.is_empty():
        raise UserError("heads by relation: no relation was measured; lower min_count or give more sentences")
    causal = "reachable" in best.columns and bool((best["reachable"] < 1).any())
    name = pl.format("{}-{}", "layer", "head")
    data = with_wilson(best).with_columns(name=name, above=pl.col("low") > pl.col("offset"))
    order = data.group_by("relation").agg(pl.col("count").max()).sort("count", "relation", descending=[True, False])
    last_step = data["step"].max()
    base, size = step_tiles(data, order["relation"].to_list(), "relation", widest=22, tall=22)
    base = base.encode(
        tooltip=[
            "relation", "step", alt.Tooltip("name", title="layer-head"), "direction",
            *(alt.Tooltip(c, format=".1%") for c in ("accuracy", "low", "high", "offset", *["reachable"] * causal)),
            "count",
        ],
    )  # fmt: skip
    colour = accuracy_colour(offset=44)
    tile = base.mark_rect().encode(colour)
    dot = base.transform_filter("datum.above").mark_point(filled=True, size=12, opacity=1, shape="circle").encode(
        color=ink()
    )  # fmt: skip
    label = base.transform_filter(alt.FieldEqualPredicate(field="step", equal=last_step)).mark_text(
        align="left", dx=size["width"] // data["step"].n_unique() // 2 + 6, color=TEXT, fontSize=11
    )
    chart = alt.layer(tile, dot, label.encode(alt.Text("name:N"))).properties(**size)
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
            "a causal model looks left only: a tooltip's `reachable` is the most its head could find" if causal else "",
        ],
        f"Best head per relation over training; at step {last_step}: {ends}.",
    )  # fmt: skip


def _listed(steps: pl.Series) -> str:
    return ", ".join(map(str, steps.to_list()))

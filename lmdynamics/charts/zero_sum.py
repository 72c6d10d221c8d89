"""How much of the change in tokens' losses cancels: over doublings, and in one optimizer step.

D = 1 − |Σ Δℓ| / Σ |Δℓ| is destructive interference, M = mean |Δℓ| its magnitude, and |ΔL| = M (1 − D). Mircea et al.
2025 (arXiv 2506.05447); the numbers are those of `analysis.zero_sum`.
"""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import on_step_axis
from lmdynamics.charts.decomposition import MEASURES, measure_axis, panels, span, spoken, tidy
from lmdynamics.charts.lines import colour_by
from lmdynamics.charts.theme import BLUE, VERMILION, WIDTH, figure, ramp
from lmdynamics.errors import UserError

PUBLISHED = {"interference": "interference", "magnitude": "magnitude", "abs_mean_change": "mean_change"}
SERIES = {  # of one step: (split, direction): (name, colour, dash)
    ("stepped", "update"): ("the batch stepped on", BLUE, [1, 0]),
    ("held out", "update"): ("held out", VERMILION, [1, 0]),
    ("stepped", "random"): ("a random direction, on that batch", BLUE, [2, 3]),
    ("held out", "random"): ("a random direction, held out", VERMILION, [2, 3]),
}
HEADS = ("measured", "published, Mircea et al. 2025")
NEARBY = 1.25  # breaks within this factor of each other share a label


def interference_over_training(
    table: pl.DataFrame, breaks: pl.DataFrame | None = None, published: pl.DataFrame | None = None
) -> alt.ConcatChart | alt.VConcatChart:
    """D, M and |ΔL| over each doubling of training, a line per curve with its 95 % band, and where its loss breaks.

    `table`: curve, step (t, of the doubling t → 2t), interference, magnitude, mean_change and their intervals, as
    `analysis.zero_sum.interference_table` gives them; colours run from the first curve to the last, or, with a column
    `size`, from the first size to the last. `breaks`: curve, step_at_break, as thin upright lines. `published`: model,
    step, metric, value, drawn as a second column on the same scales.

    Raises
    ------
    UserError
        If a column is missing, or there is nothing to draw.
    """
    rows = tidy(table, "curve", "interference over training")
    theirs = None if published is None else _tidy_published(published)
    scales = {name: measure_axis(name, *(part for part in (rows, theirs) if part is not None)) for name in MEASURES}
    wide = WIDTH if theirs is None else 360
    by = "size" if "size" in rows.columns else "curve"
    named = colour_by(by, ramp(rows[by]), columns=6 if theirs is None else 3)
    marked = None if breaks is None else _breaks(breaks, rows)
    ours = panels(rows, scales, wide, named, breaks=marked)
    if theirs is None:
        chart = alt.vconcat(*ours, spacing=10)
    else:
        models = colour_by("curve", ramp(theirs["curve"]), columns=3)
        right = panels(theirs, scales, 250, models, titles=False)
        for column, text in zip((ours, right), HEADS, strict=True):
            column[0] = column[0].properties(
                title=alt.TitleParams(text, fontSize=13, anchor="start", frame="group", offset=8)
            )
        chart = alt.concat(*(panel for pair in zip(ours, right, strict=True) for panel in pair), columns=2, spacing=16)
    chart = chart.resolve_scale(color="independent", strokeDash="independent")
    bounded = rows["low"].is_not_null().any()
    caption = [
        "bands: 95 % over rows of text" if bounded else "",
        "t_d: where that curve's loss decelerates" if marked is not None and len(marked) else "",
        "hollow: the loss rose" if rows["rose"].any() else "",
        "a point stands at the step from which its doubling starts",
    ]
    return figure(
        chart,
        _found(rows),
        "; ".join(filter(None, caption)),
        "Destructive interference, magnitude and change of loss over doublings of training. " + spoken(rows),
    )


def step_interference(table: pl.DataFrame) -> alt.VConcatChart:
    """D, M and |ΔL| of one optimizer step at each checkpoint, beside a step as long in a random direction.

    `table`: step, split, direction, interference, magnitude, mean_change and their intervals (null with one batch), as
    `analysis.zero_sum.over_batches` gives them.

    Raises
    ------
    UserError
        If a column is missing, or there is nothing to draw.
    """
    what = "interference of one step"
    need_columns(table, ["split", "direction"], what)
    pairs = [tuple(pair) for pair in table.select("split", "direction").unique(maintain_order=True).iter_rows()]
    if unknown := [pair for pair in pairs if pair not in SERIES]:
        raise UserError(
            f"{what}: there is no {' / '.join(unknown[0])}; there are stepped and held out, update and random"
        )
    present = {pair: of for pair, of in SERIES.items() if pair in pairs}
    series = pl.struct("split", "direction").map_elements(
        lambda pair: SERIES[pair["split"], pair["direction"]][0], return_dtype=pl.String
    )
    rows = tidy(table.with_columns(series=series), "series", what)
    named = colour_by("series", {name: colour for name, colour, _ in present.values()}, columns=2)
    dashes = {name: dash for name, _, dash in present.values()}
    scales = {name: measure_axis(name, rows) for name in MEASURES}
    made = panels(rows, scales, WIDTH, named, dashes=dashes, title="step that the update is taken at (log scale)")
    chart = alt.vconcat(*made, spacing=10).resolve_scale(color="independent", strokeDash="independent")
    bounded = rows["low"].is_not_null().any()
    caption = ["bands: 95 % over batches" if bounded else "one batch: no interval", "hollow: the loss rose"]
    return figure(
        chart,
        _found_step(rows),
        "; ".join(caption if rows["rose"].any() else caption[:1]),
        "Destructive interference, magnitude and change of loss in one optimizer step. " + spoken(rows, "series"),
    )


def _tidy_published(published: pl.DataFrame) -> pl.DataFrame:
    what = "interference over training: published"
    need_columns(published, ["model", "step", "metric", "value"], what)
    rows = published.filter(pl.col("interval") == "doubling") if "interval" in published.columns else published
    rows = rows.filter(pl.col("metric").is_in(list(PUBLISHED)), pl.col("value") > 0)
    if rows.is_empty():
        raise UserError(f"{what}: there are no rows of {', '.join(PUBLISHED)} over doublings")
    none = pl.lit(None, pl.Float64)
    measure = pl.col("metric").replace_strict(PUBLISHED)
    return on_step_axis(
        rows.select("step", curve="model", measure=measure, value="value", low=none, high=none, rose=pl.lit(False))
    )


def _breaks(breaks: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The curves' breaks at steps that are shown, those that lie close together as a group, which has one label."""
    need_columns(breaks, ["curve", "step_at_break"], "interference over training: breaks")
    curves = rows.select(set(rows.columns) & {"curve", "size"}).unique()
    known = breaks.select(pl.col("curve").cast(pl.String), x=pl.col("step_at_break").cast(pl.Float64))
    known = known.drop_nulls("x").join(curves, on="curve").sort("x")
    known = known.filter(pl.col("x").is_between(rows["x"].min(), 1.08 * rows["x"].max()))
    return known.with_columns(group=(pl.col("x") > NEARBY * pl.col("x").shift()).fill_null(False).cum_sum())


def _found(rows: pl.DataFrame) -> str:
    """The title: D over the last doubling, and where it was least."""
    d = rows.filter(pl.col("measure") == "interference").sort("step")
    by = d.group_by("curve", maintain_order=True)
    ends = by.agg(last=pl.col("value").last(), least=pl.col("value").min(), low=pl.col("low").last(),
                  high=pl.col("high").sort_by("value").first())  # fmt: skip
    last, least = ends["last"], ends["least"]
    of = "" if len(last) == 1 else ", for both curves" if len(last) == 2 else f", for all {len(last)} curves"
    apart = (ends["low"] > ends["high"]).fill_null(False)
    if ((last > 1.1 * least) & apart).all():
        rise = f"from {span(least)} at its lowest to {span(last)} over the last doubling"
        return f"Destructive interference rises {rise}{of}"
    return f"Destructive interference over the last doubling is {span(last)}; at its lowest it was {span(least)}"


def _found_step(rows: pl.DataFrame) -> str:
    d = rows.filter(pl.col("measure") == "interference")
    ends = d.sort("step").group_by("series", maintain_order=True).agg(first=pl.col("value").first(), last="value")
    first = {name: (one, many[-1]) for name, one, many in ends.iter_rows()}
    told = [
        f"{name} {a:.2f} → {b:.2f}"
        for (_, way), (name, *_) in SERIES.items()
        if way == "update" and name in first
        for a, b in [first[name]]
    ] or [f"{name} {a:.2f} → {b:.2f}" for name, (a, b) in first.items()]
    return f"Destructive interference in one step: {'; '.join(told)}"

"""How much of the change in tokens' losses cancels: over doublings, and in one optimizer step.

D = 1 − |Σ Δℓ| / Σ |Δℓ| is destructive interference, M = mean |Δℓ| its magnitude, and |ΔL| = M (1 − D). Mircea et al.
2025 (arXiv 2506.05447); computed by `analysis.zero_sum`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import log_ticks, on_step_axis, step_axis, steps_of
from lmdynamics.charts.conditions import count, span_of
from lmdynamics.charts.encodings import STEP_TIP, head, need_rows, numbers
from lmdynamics.charts.lines import Line, log_scale, panel
from lmdynamics.charts.theme import BLUE, TEXT, VERMILION, WIDTH, figure, ramp
from lmdynamics.errors import UserError

MEASURES = {
    "interference": ["destructive", "interference D"],
    "magnitude": ["magnitude M", "(nats per token)"],
    "mean_change": ["|ΔL| (nats per", "token, log scale)"],
}
DOUBLING = "step t at which the doubling t → 2t starts (log scale)"
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
    table: pl.DataFrame,
    breaks: pl.DataFrame | None = None,
    published: pl.DataFrame | None = None,
    units: str = "rows of text",
) -> alt.ConcatChart | alt.VConcatChart:
    """D, M and |ΔL| over each doubling of training, a line per curve with its 95 % band, and the break of its loss.

    `table`: curve, step (t, of the doubling t → 2t), interference, magnitude, mean_change and their intervals, from
    `analysis.zero_sum.interference_table`; colours are ordered by curve or, with a column `size`, by size.
    `breaks`: curve, step_at_break, as thin vertical lines. `published`: model, step, metric, value, drawn as a second
    column on the same scales. `units`: what the intervals are over.
    """
    rows = _tidy(table, "curve", "interference over training")
    published_rows = None if published is None else _tidy_published(published)
    lines = _measure_lines(*(part for part in (rows, published_rows) if part is not None))
    by = "size" if "size" in rows.columns else "curve"
    wide, columns = (WIDTH, 6) if published_rows is None else (360, 3)
    lines = {name: replace(line, series=by, colours=ramp(rows[by]), columns=columns) for name, line in lines.items()}
    break_rows = None if breaks is None else _breaks(breaks, rows)
    left = _panels(rows, lines, wide, breaks=break_rows)
    if published_rows is None:
        chart = alt.vconcat(*left, spacing=10)
    else:
        models = {"series": "curve", "colours": ramp(published_rows["curve"]), "title": None}
        right = _panels(published_rows, {name: replace(line, **models) for name, line in lines.items()}, 250)
        for column, text in zip((left, right), HEADS, strict=True):
            column[0] = column[0].properties(title=head(text, fontSize=13, fontWeight="bold", frame="group", offset=8))
        chart = alt.concat(*(panel for pair in zip(left, right, strict=True) for panel in pair), columns=2, spacing=16)
    chart = chart.resolve_scale(color="independent", strokeDash="independent")
    bounded = rows["low"].is_not_null().any()
    caption = [
        f"bands: 95 % over {units}" if bounded else "",
        "t_d: where that curve's loss decelerates" if break_rows is not None and len(break_rows) else "",
        "hollow: the loss rose" if rows["rose"].any() else "",
        "points: at the step where the doubling starts",
    ]
    return figure(
        chart,
        _title(rows),
        [caption],
        "Destructive interference, magnitude and change of loss over doublings of training. " + _sentences(rows),
    )


def step_interference(table: pl.DataFrame) -> alt.VConcatChart:
    """D, M and |ΔL| of one optimizer step at each checkpoint, and of an equally long step in a random direction.

    `table`: step, split, direction, interference, magnitude, mean_change and their intervals (null with one batch),
    from `analysis.zero_sum.over_batches`.
    """
    context = "interference of one step"
    need_columns(table, ["split", "direction"], context)
    pairs = [tuple(pair) for pair in table.select("split", "direction").unique(maintain_order=True).iter_rows()]
    if unknown := [pair for pair in pairs if pair not in SERIES]:
        raise UserError(
            f"{context}: there is no {' / '.join(unknown[0])}; there are stepped and held out, update and random"
        )
    series = pl.struct("split", "direction").map_elements(
        lambda pair: SERIES[pair["split"], pair["direction"]][0], return_dtype=pl.String
    )
    rows = _tidy(table.with_columns(series=series), "series", context)
    present = [style for pair, style in SERIES.items() if pair in pairs]
    colours, dashes = ({style[0]: style[i] for style in present} for i in (1, 2))
    dashes = dashes if len({tuple(dash) for dash in dashes.values()}) > 1 else None
    options = {"series": "series", "colours": colours, "dashes": dashes, "columns": 2, "shade": 0.1}
    lines = {name: replace(line, **options) for name, line in _measure_lines(rows).items()}
    panels = _panels(rows, lines, WIDTH, title="step that the update is taken at (log scale)")
    chart = alt.vconcat(*panels, spacing=10).resolve_scale(color="independent", strokeDash="independent")
    bounded = rows["low"].is_not_null().any()
    caption = "bands: 95 % over batches" if bounded else "one batch: no interval"
    return figure(
        chart,
        _step_title(rows),
        [[caption, "hollow: the loss rose" if rows["rose"].any() else ""]],
        "Destructive interference, magnitude and change of loss in one optimizer step. " + _sentences(rows, "series"),
    )


def _tidy(table: pl.DataFrame, key: str, context: str) -> pl.DataFrame:
    """One row per number: the key (with `size`, if given), step, x, measure, value, low, high; whether it `rose`."""
    need_columns(table, [key, "step", *MEASURES], context)
    parts, keys = [], [key, *(["size"] if "size" in table.columns else [])]
    for name in MEASURES:
        ends = [
            pl.col(column).cast(pl.Float64) if column in table.columns else pl.lit(None, pl.Float64)
            for column in (f"{name}_low", f"{name}_high")
        ]
        part = table.select(
            *keys, "step", measure=pl.lit(name), value=pl.col(name).cast(pl.Float64), low=ends[0], high=ends[1]
        )
        part = part.with_columns(rose=(pl.col("value") > 0) if name == "mean_change" else pl.lit(False))
        parts.append(_absolute_values(part) if name == "mean_change" else part)
    rows = on_step_axis(pl.concat(parts)).with_columns(
        pl.col(key).cast(pl.String), pl.col("low", "high").fill_nan(None)
    )
    rows = rows.filter(pl.col("value").is_finite(), (pl.col("value") > 0) | (pl.col("measure") != "mean_change"))
    if rows.is_empty():
        raise UserError(
            f"{context}: none of {len(table)} rows has a number; trace losses at two checkpoints or more first"
        )
    order = table[key].cast(pl.String).unique(maintain_order=True).to_list()
    return rows.sort(pl.col(key).replace_strict(order, list(range(len(order)))), "step", maintain_order=True)


def _panels(
    rows: pl.DataFrame,
    lines: Mapping[str, Line],
    width: int,
    *,
    breaks: pl.DataFrame | None = None,
    title: str = DOUBLING,
) -> list[alt.LayerChart]:
    """The three measures of `_tidy` rows, each a panel, over the same steps; the last one has the legend."""
    steps, panels = steps_of(rows), []
    key = "series" if "series" in rows.columns else "curve"
    for index, (name, line) in enumerate(lines.items()):
        last = index == len(lines) - 1
        x = step_axis(steps, title if last else None, sparse=width < 300)
        line = line if last else replace(line, legend=False)
        data = rows.filter(pl.col("measure") == name)
        tips = [f"{key}:N", STEP_TIP, *numbers(line.style, "value", "low", "high")]
        shown = data.with_columns(pl.col("low", "high").clip(*line.scale["domain"]))
        layers = _break_lines(breaks, x, line.colour, labels=index == 0) if breaks is not None else []
        layers += line.layers(shown, x, (), detail=f"{key}:N")
        base = alt.Chart(data).encode(x, line.y, line.colour, detail=f"{key}:N")
        for rose in sorted(data["rose"].unique()):
            dots = base.mark_point(size=26, filled=not rose, opacity=1, strokeWidth=1.5).encode(tooltip=tips)
            layers.append(dots.transform_filter(f"datum.rose == {str(rose).lower()}"))
        panels.append(panel(layers, x, width=width, height=150 if index == 0 else 110))
    return panels


def _measure_lines(*parts: pl.DataFrame) -> dict[str, Line]:
    """The measures on axes that are the same for all parts: D from 0 to 1, M from 0, |ΔL| logarithmic."""
    rows = pl.concat([part.select("measure", "value", "low", "high") for part in parts])
    scales = {"interference": {"scale": {"domain": [0, 1]}, "axis": {"tickCount": 5}, "style": ".4f"}}
    for name in ("magnitude", "mean_change"):
        values = rows.filter(pl.col("measure") == name)
        highest, lowest = max(values["value"].max() or 1.0, values["high"].max() or 0.0), values["value"].min() or 0.1
        if name == "magnitude":
            scale, ticks = {"domain": [0, 1.05 * highest], "nice": False}, {"tickCount": 4, "format": "~g"}
        else:
            low, high = lowest / 1.4, 1.2 * highest
            scale, ticks = log_scale(low, high), _small_ticks(low, high)
        scales[name] = {"scale": scale, "axis": ticks, "style": ".4~g"}
    return {name: Line("value", title, shade=0.18, **scales[name]) for name, title in MEASURES.items()}


def _small_ticks(low: float, high: float) -> dict:
    """Ticks of a logarithmic axis; over many powers of ten as 1e-6, because longer labels would not fit."""
    if high / low <= 1e4:
        return {"values": log_ticks(low, high, 4), "format": "~g"}
    tens = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return {"values": [10.0**e for e in tens[:: -(-len(tens) // 4)]], "format": "~e"}


def _tidy_published(published: pl.DataFrame) -> pl.DataFrame:
    context = "interference over training: published"
    of_doublings = pl.col("interval") == "doubling" if "interval" in published.columns else pl.lit(True)
    valid = of_doublings & pl.col("metric").is_in(list(PUBLISHED)) & (pl.col("value") > 0)
    no_rows = f"there are no rows of {', '.join(PUBLISHED)} over doublings"
    rows = need_rows(published, ["model", "step", "metric", "value"], context, no_rows, valid)
    null = pl.lit(None, pl.Float64)
    measure = pl.col("metric").replace_strict(PUBLISHED)
    return on_step_axis(
        rows.select("step", curve="model", measure=measure, value="value", low=null, high=null, rose=pl.lit(False))
    )


def _absolute_values(part: pl.DataFrame) -> pl.DataFrame:
    """|ΔL| from ΔL: an interval that contains zero starts at zero."""
    low, high = pl.col("low"), pl.col("high")
    smaller = pl.when(low * high > 0).then(pl.min_horizontal(low.abs(), high.abs())).otherwise(0.0)
    return part.with_columns(
        pl.col("value").abs(),
        low=pl.when(low.is_not_null() & high.is_not_null()).then(smaller),
        high=pl.when(low.is_not_null() & high.is_not_null()).then(pl.max_horizontal(low.abs(), high.abs())),
    )


def _break_lines(breaks: pl.DataFrame, x: alt.X, colour: alt.Color, labels: bool) -> list[alt.Chart]:
    if breaks.is_empty():
        return []
    tips = ["curve:N", alt.Tooltip("x:Q", title="t_d", format=",.0f")]
    layers = [alt.Chart(breaks).mark_rule(strokeWidth=1.2, strokeDash=[4, 3]).encode(x, colour, tooltip=tips)]
    if labels:
        first = breaks.unique("group", keep="first", maintain_order=True).with_columns(label=pl.lit("t_d"))
        text = alt.Chart(first).mark_text(color=TEXT, align="right", baseline="top", dx=-5, fontSize=11)
        layers.append(text.encode(x, text="label:N", y=alt.value(2)))
    return layers


def _sentences(rows: pl.DataFrame, key: str = "curve") -> str:
    sentences = []
    for (name,), part in rows.group_by(key, maintain_order=True):
        ends = [
            f"{measure} {rows_of_measure['value'][0]:.2g} → {rows_of_measure['value'][-1]:.2g}"
            for measure, short in zip(MEASURES, ("D", "M", "|ΔL|"), strict=True)
            for measure, rows_of_measure in [(short, part.filter(pl.col("measure") == measure))]
            if len(rows_of_measure)
        ]
        sentences.append(f"{name}: {', '.join(ends)} over {count(part['step'].n_unique(), 'step')}.")
    return " ".join(sentences)


def _breaks(breaks: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The curves' breaks within the steps shown; breaks close to each other are a group, which has one label."""
    need_columns(breaks, ["curve", "step_at_break"], "interference over training: breaks")
    curves = rows.select(set(rows.columns) & {"curve", "size"}).unique()
    shown = breaks.select(pl.col("curve").cast(pl.String), x=pl.col("step_at_break").cast(pl.Float64))
    shown = shown.drop_nulls("x").join(curves, on="curve").sort("x")
    shown = shown.filter(pl.col("x").is_between(rows["x"].min(), 1.08 * rows["x"].max()))
    return shown.with_columns(group=(pl.col("x") > NEARBY * pl.col("x").shift()).fill_null(False).cum_sum())


def _title(rows: pl.DataFrame) -> str:
    """The title: D over the last doubling, and its lowest value."""
    d = rows.filter(pl.col("measure") == "interference").sort("step")
    by = d.group_by("curve", maintain_order=True)
    ends = by.agg(last=pl.col("value").last(), least=pl.col("value").min(), low=pl.col("low").last(),
                  high=pl.col("high").sort_by("value").first())  # fmt: skip
    last, lowest = ends["last"], ends["least"]
    scope = "" if len(last) == 1 else ", for both curves" if len(last) == 2 else f", for all {len(last)} curves"
    separated = (ends["low"] > ends["high"]).fill_null(False)
    if ((last > 1.1 * lowest) & separated).all():
        rise = f"from {span_of(lowest)} at its lowest to {span_of(last)} over the last doubling"
        return f"Destructive interference rises {rise}{scope}"
    return f"Destructive interference over the last doubling is {span_of(last)}; at its lowest it was {span_of(lowest)}"


def _step_title(rows: pl.DataFrame) -> str:
    d = rows.filter(pl.col("measure") == "interference")
    ends = d.sort("step").group_by("series", maintain_order=True).agg(first=pl.col("value").first(), last="value")
    first = {name: (first_value, last_values[-1]) for name, first_value, last_values in ends.iter_rows()}
    changes = [
        f"{name} {a:.2f} → {b:.2f}"
        for (_, direction), (name, *_) in SERIES.items()
        if direction == "update" and name in first
        for a, b in [first[name]]
    ] or [f"{name} {a:.2f} → {b:.2f}" for name, (a, b) in first.items()]
    return f"Destructive interference in one step: {'; '.join(changes)}"

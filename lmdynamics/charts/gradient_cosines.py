"""Agreement of gradients: cosines between the gradients of rows of text, and between those of token groups."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.analysis.gradients import cosine_spread
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import on_step_axis, same_axis, step_axis, steps_of
from lmdynamics.charts.encodings import STEP_TIP, measured_step, need_rows, numbers, zero_line
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import BLUE, HEIGHT, VERMILION, figure
from lmdynamics.charts.tiles import signed_colour, step_tiles

COLUMNS = ["step", "part", "a", "b", "cosine"]
MAX_ROWS = 64  # of text in a Gram matrix: 4,096 tiles
TILE = 84  # pixels: a group's column
MEDIAN = Line(
    "median", ["cosine between", "gradients of two rows"], style="+.3f", axis={"tickCount": 6}, width=2.2, points=22
)
NEGATIVE = Line(
    "negative",
    ["share of pairs", "below zero"],
    colours=VERMILION,
    percent=True,
    axis={"tickCount": 4},
    width=2.2,
    points=22,
    shade=0.16,
)


def opposition_map(frame: pl.DataFrame) -> alt.LayerChart:
    """The mean cosine between gradients of two rows of text, by part of the model (row) and checkpoint (column).

    `frame`: step, part, a, b, cosine, a trace of `Opposition`; a row's cosine with itself does not count. Blue: to
    first order, a step for one row also reduces the other's loss; orange: it increases it. The tooltip has the share of
    negative cosines.
    """
    pairs = _pairs(frame, "opposition map")
    parts = pairs["part"].unique(maintain_order=True).to_list()
    cells = cosine_spread(pairs, ["step", "part"])
    limit = max(0.05, cells["mean"].abs().max())
    tips = ["part:N", STEP_TIP, alt.Tooltip("mean:Q", title="mean cosine", format="+.3f")]
    tips += [alt.Tooltip("negative:Q", title="share negative", format=".1%"), "pairs:Q"]
    tile, size = step_tiles(cells, parts)
    chart = tile.mark_rect().encode(color=signed_colour("mean", "mean cosine", limit), tooltip=tips)
    last = cells.filter(pl.col("step") == cells["step"].max()).sort("mean")
    lowest, step = last.row(0, named=True), last["step"][0]
    return figure(
        chart.properties(**size),
        f"At step {step:,} the mean cosine is least in {lowest['part']}: {_row_text(lowest)}, no interval",
        f"mean over {_range_text(cells['pairs'])} pairs of rows; blue: gradients agree; orange: they are opposed",
        f"Mean cosine between gradients of two rows, by part and step. At step {step:,}: "
        + "; ".join(f"{row['part']} {_row_text(row)}" for row in last.to_dicts())
        + ".",
    )


def cosine_distribution(
    frame: pl.DataFrame, shares: pl.DataFrame | None = None, *, part: str = "all"
) -> alt.VConcatChart:
    """The distribution of cosines between gradients of two rows over training and, below, the negative share.

    `frame`: as for `opposition_map`; `part`: of the model ("all": all parameters). `shares`: step, part, negative_low,
    negative_high, an `opposition_table` of the frame, with the interval of the negative share.
    """
    context = "cosines over training"
    pairs = _part_rows(_pairs(frame, context), part, context)
    by_step = on_step_axis(_bounded(cosine_spread(pairs, ["step"]), shares, part, context))
    bounded = by_step.drop_nulls(["low", "high"])
    steps = steps_of(by_step)
    above, below = step_axis(steps, None), step_axis(steps)
    low, high = min(0.0, by_step["q05"].min()), max(0.0, by_step["q95"].max())
    line = replace(MEDIAN, scale={"domain": [low - 0.04, min(1.0, high + 0.04)], "nice": False})
    tips = [STEP_TIP, *numbers("+.3f", "q05", "q25", "median", "q75", "q95")]
    middle = replace(line, band=("q25", "q75"), shade=0.28).layers(by_step, above, tips)
    base = alt.Chart(by_step).encode(above)
    wide = base.mark_area(opacity=0.16, color=BLUE).encode(same_axis(line.y, "q05"), alt.Y2("q95"))
    zero = zero_line("y", strokeDash=[4, 3])
    upper = panel([wide, middle[0], zero, *middle[1:]], above, height=HEIGHT - 40)
    top = max(0.1, 1.1 * max(*by_step["negative"], *bounded["high"]))
    share = replace(NEGATIVE, scale={"domain": [0, top], "nice": False})
    tips = [STEP_TIP, *numbers(".1%", "negative", "low", "high"), "pairs:Q"]
    lower = panel(share.layers(by_step, below, tips), below, height=90)
    first, last = by_step.row(0, named=True), by_step.row(-1, named=True)
    place = "" if part == "all" else f" in {part}"
    move = f"{first['median']:+.2f} → {last['median']:+.2f}; {first['negative']:.0%} → {last['negative']:.0%} negative"
    title = f"Median cosine between gradients of two rows{place}: {move}".replace("-", "−")
    bounded_at_end = last["step"] in bounded["step"]
    ends = f" (95 % interval {last['low']:.0%} to {last['high']:.0%})" if bounded_at_end else " (no interval)"
    return figure(
        alt.vconcat(upper, lower, spacing=12),
        title,
        [
            f"line: median; bands: middle 50 and 90 % of {_range_text(by_step['pairs'])} pairs",
            "share below zero: 95 % interval, over rows of text" if len(bounded) else "share below zero: no interval",
        ],
        f"{title}{ends}, from step {first['step']:,} to {last['step']:,}.",
    )


def gram(frame: pl.DataFrame, step: int | None = None, *, part: str = "all") -> alt.LayerChart:
    """Cosines between the gradients of all pairs of rows at one step (default: the last), as a matrix.

    `frame`: as for `opposition_map`. The first 64 rows are drawn. The scale ends at the greatest cosine off the
    diagonal, because the diagonal is always 1.
    """
    context = "Gram matrix"
    cosines, step = _matrix(frame, step, part, context)
    rows = cosines["a"].unique().append(cosines["b"].unique()).unique().sort()[:MAX_ROWS].to_list()
    cosines = cosines.filter(pl.col("a").is_in(rows) & pl.col("b").is_in(rows)).select("a", "b", "cosine")
    matrix = _symmetric(cosines)
    off_diagonal = matrix.filter(pl.col("a") != pl.col("b"))["cosine"]
    limit = max(0.05, off_diagonal.abs().max() or 0.0)
    x, y = (alt.X("b:O", title="row of text"), alt.Y("a:O", title="row of text"))
    ticks = rows[:: max(1, -(-len(rows) // 16))]
    tile = alt.Chart(matrix).encode(
        x.axis(values=ticks, labelAngle=0, domain=False, ticks=False),
        y.axis(values=ticks, domain=False, ticks=False),
        signed_colour("cosine", "cosine", limit),
        tooltip=["a:O", "b:O", alt.Tooltip("cosine:Q", format="+.3f")],
    )
    side = max(5, min(24, 400 // len(rows))) * len(rows)
    negative = (off_diagonal < 0).mean() if len(off_diagonal) else None
    finding = (
        "one row"
        if negative is None
        else f"{negative:.0%} of pairs of rows are opposed, mean cosine {off_diagonal.mean():+.2f}"
    )
    place = "" if part == "all" else f" in {part}"
    title = f"At step {step:,}{place} {finding}".replace("-", "−")
    left_out = f"; the first {MAX_ROWS} rows" if len(rows) == MAX_ROWS else ""
    return figure(
        tile.mark_rect().properties(width=side, height=side),
        title,
        f"blue: gradients agree; orange: they are opposed{left_out}",
        f"Cosines between gradients of {len(rows)} rows. {title}.",
    )


def group_opposition(
    frame: pl.DataFrame, step: int | None = None, *, part: str = "all", groups: Sequence[str] | None = None
) -> alt.LayerChart:
    """Cosines between the gradients of groups of tokens at one step (default: the last), as a matrix of numbers.

    `frame`: step, part, a, b (groups), cosine, a trace of `GroupOpposition`. `groups`: their order (or the frame's).
    """
    context = "opposition of groups"
    cosines, step = _matrix(frame, step, part, context)
    cosines = cosines.with_columns(pl.col("a", "b").cast(pl.String))
    present = dict.fromkeys([*cosines["a"], *cosines["b"]])
    groups = [*(name for name in groups or () if name in present), *(n for n in present if n not in (groups or ()))]
    matrix = _symmetric(cosines.select("a", "b", "cosine"))
    off_diagonal = matrix.filter(pl.col("a") != pl.col("b")).sort("cosine")
    limit = max(0.05, off_diagonal["cosine"].abs().max() or 0.0)
    short = json.dumps({name: wrapped(name, TILE, 11) for name in groups})
    base = alt.Chart(matrix).encode(
        alt.X("b:N", title=None, sort=groups).axis(
            labelAngle=0, domain=False, ticks=False, labelPadding=6, labelExpr=f"{short}[datum.label]"
        ),
        alt.Y("a:N", title=None, sort=groups).axis(domain=False, ticks=False),
        tooltip=["a:N", "b:N", alt.Tooltip("cosine:Q", format="+.3f")],
    )
    dark = f"datum.cosine > {0.92 * limit}"  # the darkest blue; on all other tiles black has a contrast above 4.5
    number = base.mark_text(fontSize=11).encode(
        alt.Text("cosine:Q", format="+.2f"), color=alt.condition(dark, alt.value("#ffffff"), alt.value("#000000"))
    )
    title = f"Opposition between groups of tokens at step {step:,}"
    if len(off_diagonal):
        lowest = off_diagonal.row(0, named=True)
        pair = f"“{lowest['a']}” and “{lowest['b']}”"
        title = f"At step {step:,} the cosine is least between {pair}: {lowest['cosine']:+.2f}, no interval"
    listed = "; ".join(
        f"{row['a']} and {row['b']} {row['cosine']:+.2f}" for row in cosines.to_dicts() if row["a"] != row["b"]
    )
    return figure(
        alt.layer(base.mark_rect().encode(signed_colour("cosine", "cosine", limit)), number).properties(
            width=TILE * len(groups), height=38 * len(groups)
        ),
        title.replace("-", "−"),
        "blue: a step for one serves the other; orange: it harms the other; no interval",
        f"Cosines between gradients of token groups at step {step:,}: {listed}.",
    )


def _pairs(frame: pl.DataFrame, context: str) -> pl.DataFrame:
    no_rows = "there are no cosines between two rows; trace Opposition on two rows or more"
    off_diagonal = (pl.col("a") != pl.col("b")) & pl.col("cosine").is_finite()
    return need_rows(frame, COLUMNS, context, no_rows, off_diagonal)


def _bounded(by_step: pl.DataFrame, shares: pl.DataFrame | None, part: str, context: str) -> pl.DataFrame:
    """The rows with low and high, the interval of the share of negative cosines, or null."""
    if shares is None:
        return by_step.with_columns(pl.lit(None, pl.Float64).alias(end) for end in ("low", "high"))
    need_columns(shares, ["step", "part", "negative_low", "negative_high"], f"shares of {context}")
    ends = shares.filter(pl.col("part") == part).select("step", low="negative_low", high="negative_high")
    return by_step.join(ends, on="step", how="left", maintain_order="left")


def _part_rows(frame: pl.DataFrame, part: str, context: str) -> pl.DataFrame:
    parts = ", ".join(frame["part"].unique(maintain_order=True)) if "part" in frame.columns else ""
    no_rows = f"there is no part {part!r}; parts: {parts or 'none'}"
    return need_rows(frame, COLUMNS, context, no_rows, pl.col("part") == part)


def _matrix(frame: pl.DataFrame, step: int | None, part: str, context: str) -> tuple[pl.DataFrame, int]:
    """The cosines of one part at one step, by default the last."""
    rows = _part_rows(frame, part, context)
    step = measured_step(step, steps_of(rows), context)
    return rows.filter(pl.col("step") == step), step


def _symmetric(half: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([half, half.select(a="b", b="a", cosine="cosine")]).unique(["a", "b"], maintain_order=True)


def _row_text(row: dict) -> str:
    mean = round(row["mean"], 2) + 0.0  # no −0.00
    return f"mean cosine {mean:+.2f}, {row['negative']:.0%} negative".replace("-", "−")


def _range_text(pairs: Iterable[int]) -> str:
    low, high = min(pairs), max(pairs)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"

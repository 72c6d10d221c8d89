"""The first-order prediction of one optimizer step: how accurate it is, and where in the model its parts cancel.

With u the update, g_i the gradient of token i's loss and p_ij = g_ij u_j: C_g = Σ_j|Σ_i p_ij| / Σ_jΣ_i|p_ij|, C_ug =
Σ_i|Σ_j p_ij| / Σ_jΣ_i|p_ij|, C_uG = |ΣΣ p| / Σ_j|Σ_i p_ij|, and 1 − D = C_g C_uG / C_ug (Mircea et al. 2025).
"""

import math
from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.gradients import each_batch
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import on_step_axis, step_axis, steps_of
from lmdynamics.charts.conditions import capital, count
from lmdynamics.charts.encodings import SIGNED, STEP_TIP, head, measured_step, need_rows, numbers
from lmdynamics.charts.lines import Line, log_axis, panel
from lmdynamics.charts.theme import BLUE, GREEN, HEIGHT, ORANGE, SEQUENTIAL, TEXT, VERMILION, figure
from lmdynamics.charts.tiles import step_tiles
from lmdynamics.charts.trades import spread
from lmdynamics.errors import UserError

SPLITS = {"stepped": ("the batch stepped on", BLUE), "held out": ("held out", VERMILION)}
MAX_POINTS = 1200  # in one panel
COEFFICIENTS = {  # a column: (label, colour)
    "C_g": ("C_g: across tokens, in each parameter", BLUE),
    "C_ug": ("C_ug: across parameters, for each token", GREEN),
    "C_uG": ("C_uG: across parameters, of the sum over tokens", ORANGE),
    "kept": ("1 − D = C_g C_uG / C_ug: across tokens", VERMILION),
}


def first_order_against_measured(
    changes: pl.DataFrame, steps: Sequence[int] | None = None, *, seed: int = 0
) -> alt.ConcatChart:
    """Each token's change of loss in one step against the change that the first order predicts; a panel per step.

    `changes`: step, split, first_order, change (nats), a trace of `OneStep`; rows of a random direction are left out.
    `steps`: which checkpoints (default: 4, evenly over log step). A panel shows at most 1,200 tokens, sampled with
    `seed` (600 with both splits); its slope and correlation are those of all tokens.
    """
    context = "first order against measured"
    no_rows = "no token has a change and a prediction of it; trace OneStep first"
    updates = pl.col("direction") == "update" if "direction" in changes.columns else pl.lit(True)
    numbered = [pl.col(name).cast(pl.Float64).is_finite() for name in ("first_order", "change")]
    valid = pl.all_horizontal(updates, *numbered)
    rows = need_rows(changes, ["step", "split", "first_order", "change"], context, no_rows, valid)
    rows = rows.select("step", "split", pl.col("first_order", "change").cast(pl.Float64))
    known = steps_of(rows)
    steps = [measured_step(step, known, context) for step in (spread(known, 4) if steps is None else steps)]
    splits = {split: style for split, style in SPLITS.items() if split in rows["split"]}
    fitted = each_batch(rows.with_columns(batch=0), ["step", "split"])  # all batches as one
    limit, panels, slopes, sentences = MAX_POINTS // len(splits), [], {}, []
    for split, (name, colour) in splits.items():
        for step in steps:
            tokens = rows.filter(pl.col("step") == step, pl.col("split") == split)
            text = "no tokens"
            if len(tokens):
                slope, correlation = fitted.filter(step=step, split=split).select("slope", "correlation").row(0)
                text = "no line: nothing varies"
                if correlation is not None:
                    slopes.setdefault(split, []).append(correlation)
                    text = f"slope {slope:.2f}, r {correlation:.3f}".replace("-", "−")
                sentences.append(f"Step {step:,}, {name}: {text}.")
            sample = tokens.sample(limit, seed=seed) if len(tokens) > limit else tokens
            y_title = ["measured change", f"(nats), {name}"] if step == steps[0] else None
            x_title = "predicted (nats)" if split == list(splits)[-1] else None
            title = head(f"step {step:,}", subtitle=text, frame="group")
            panels.append(_scatter(sample, colour, x_title, y_title).properties(title=title))
    correlations = {split: (min(values), max(values)) for split, values in slopes.items()}
    ranges = [
        f"{SPLITS[split][0]}: {low:.2f}" + (f" to {high:.2f}" if high - low > 0.005 else "")
        for split, (low, high) in correlations.items()
    ]
    return figure(
        alt.concat(*panels, columns=len(steps), spacing=14),
        f"First order against measured change, correlation over tokens ({'; '.join(ranges)})".replace("-", "−"),
        [f"dots: tokens (at most {count(limit, 'token')} a panel); line: prediction and measurement agree"],
        "Change of each token's loss in one step against its first-order prediction. " + " ".join(sentences),
    )


def coefficients_over_training(frame: pl.DataFrame) -> alt.LayerChart:
    """C_g, C_ug, C_uG and 1 − D of the whole model's step against step, all on one logarithmic axis.

    `frame`: step, batch, C_g, C_ug, C_uG, interference, a trace of `Coefficients`. Lines are means over batches, bands
    extend from the lowest batch to the highest. On this axis, 1 − D is as far from C_g as C_uG is from C_ug.
    """
    context = "coefficients over training"
    need_columns(frame, ["step", "batch", "C_g", "C_ug", "C_uG", "interference"], context)
    rows = frame.filter(pl.col("level") == "all") if "level" in frame.columns else frame
    rows = rows.with_columns(kept=1 - pl.col("interference")).unpivot(
        list(COEFFICIENTS), index=["step", "batch"], variable_name="name"
    )
    no_rows = "there is no coefficient of the whole model (level “all”); trace Coefficients first"
    rows = need_rows(rows, ["value"], context, no_rows, pl.col("value").is_finite() & (pl.col("value") > 0))
    labels = {name: label for name, (label, _) in COEFFICIENTS.items()}
    value = pl.col("value")
    means = rows.group_by("step", "name", maintain_order=True).agg(
        value.mean(), low=value.min(), high=value.max(), batches=pl.len()
    )
    means = on_step_axis(means.with_columns(coefficient=pl.col("name").replace_strict(labels)))
    x = step_axis(steps_of(means))
    line = Line(
        "value",
        "share that does not cancel (log scale)",
        "coefficient",
        dict(COEFFICIENTS.values()),
        **log_axis(means["low"].min() / 1.3, means["high"].max() * 1.3),
        style=".3~g",
        points=22,
        shade=0.18,
        columns=2,
    )
    ends = {
        name: (part["value"][0], part["value"][-1])
        for name in COEFFICIENTS
        if len(part := means.filter(pl.col("name") == name))
    }
    moves = {name: f"{_short(a)} → {_short(b)}" for name, (a, b) in ends.items()}
    order = sorted(
        (name for name in ends if name != "kept"), key=lambda name: -abs(math.log(ends[name][1] / ends[name][0]))
    )
    title = f"The share of a step that survives, 1 − D, goes {moves['kept']}; {order[0]} moves most, {moves[order[0]]}"
    return figure(
        panel(line.layers(means, x), x, height=HEIGHT + 40),
        title if "kept" in moves and order else "Coefficients of one step over training",
        "lines: mean over batches; bands: from the least batch to the greatest"
        if means["batches"].max() > 1
        else "one batch",
        "First-order coefficients of one step over training. "
        + " ".join(f"{labels[name]}: {text}." for name, text in moves.items()),
    )


def coefficients_by_layer(frame: pl.DataFrame, coefficient: str = "C_g", *, level: str = "layer") -> alt.LayerChart:
    """One coefficient in each part of the model (row) at each checkpoint (column), as the mean over batches.

    `frame`: step, batch, level, part and the coefficient, a trace of `Coefficients`. `coefficient`: C_g, C_ug, C_uG,
    interference or gradient_interference. `level`: "layer" or "module".
    """
    context = "coefficients by layer"
    need_columns(frame, ["step", "batch", "level", "part", coefficient], context)
    rows = frame.filter(pl.col("level") == level, pl.col(coefficient).is_finite())
    if rows.is_empty():
        levels = ", ".join(frame["level"].unique().sort())
        raise UserError(f"{context}: there is no {coefficient} at the level {level!r}; levels: {levels or 'none'}")
    parts = rows["part"].unique(maintain_order=True).to_list()
    value = pl.col(coefficient).cast(pl.Float64)
    cells = rows.group_by("step", "part", maintain_order=True).agg(
        value=value.mean(), low=value.min(), high=value.max(), batches=pl.len()
    )
    colour = alt.Color("value:Q", title=coefficient).scale(scheme=SEQUENTIAL, zero=False, nice=False)
    tips = ["part:N", STEP_TIP, *numbers(".3~g", "value", "low", "high")]
    tile, size = step_tiles(cells, parts)
    chart = tile.mark_rect().encode(color=colour.legend(gradientLength=120, format=".2~g", tickCount=5), tooltip=tips)
    last = cells.filter(pl.col("step") == cells["step"].max()).sort("value")
    lowest, highest = last.row(0, named=True), last.row(-1, named=True)
    title = f"{capital(coefficient)} by {level}: at the last step from {_short(lowest['value'])} ({lowest['part']})"
    return figure(
        chart.properties(**size),
        f"{title} to {_short(highest['value'])} ({highest['part']})",
        "mean over batches; no interval" if cells["batches"].max() > 1 else "one batch; no interval",
        f"{coefficient} of each part over training; at step {cells['step'].max():,}: "
        + "; ".join(f"{row['part']} {_short(row['value'])}" for row in last.to_dicts())
        + ".",
    )


def _scatter(rows: pl.DataFrame, colour: str, x_title: str | None, y_title: list[str] | None) -> alt.LayerChart:
    values = [*rows["first_order"], *rows["change"]]
    low, high = min([0.0, *values]), max([0.0, *values])
    ends = [1.06 * low or -1e-9, 1.06 * high or 1e-9]
    axis = alt.Axis(tickCount=3, labelExpr=SIGNED)
    x = alt.X("first_order:Q", title=x_title, axis=axis).scale(domain=ends, nice=False)
    y = alt.Y("change:Q", title=y_title, axis=axis).scale(domain=ends, nice=False)
    equal = alt.Chart(alt.Data(values=[{"first_order": end, "change": end} for end in ends]))
    tips = numbers("+.4f", "first_order", "change")
    dots = alt.Chart(rows).mark_point(size=9, filled=True, opacity=0.35, color=colour).encode(x, y, tooltip=tips)
    return alt.layer(equal.mark_line(color=TEXT, strokeWidth=1.2).encode(x, y), dots).properties(width=150, height=150)


def _short(value: float) -> str:
    return f"{value:.2g}"

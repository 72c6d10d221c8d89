"""Masking-rate schedules: their rates, the speed-up over a baseline, and the gain on each paradigm."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.conditions import ROW, count, missing_text, number, tidy
from lmdynamics.charts.encodings import SIGNED, head, names, need_rows, numbers, rule_at, single_row
from lmdynamics.charts.lines import Line, colour_by
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import HEIGHT, TEXT, WIDTH, condition_colours, figure
from lmdynamics.errors import UserError

DASHES = ([1, 0], [16, 3], [9, 4], [3, 3], [12, 4, 3, 4], [6, 3], [9, 3, 2, 3, 2, 3], [2, 4])
WIDEST, NARROWEST = 6.5, 2.0  # later lines are thinner, so that lines that coincide are all visible
STEP = "training step"
NOTE = {"color": TEXT, "align": "left", "fontSize": 11}  # style of texts in the figure


def masking_rates(rates: pl.DataFrame, *, conditions: Sequence[str] | None = None) -> alt.LayerChart:
    """Masking rate against step, one line per schedule. `rates`: condition, step, rate (share of tokens)."""
    no_rows = "the frame has no rows; give each schedule's rate at each step"
    rates = need_rows(rates, ["condition", "step", "rate"], "masking rates", no_rows)
    colours = condition_colours(rates["condition"], conditions)
    data = pl.concat([_sample_rates(rates.filter(pl.col("condition") == name)) for name in colours])
    spread = (WIDEST - NARROWEST) / max(1, len(colours) - 1)
    widths = [WIDEST - spread * i for i in range(len(colours))] if len(colours) > 1 else [2.5]
    line = Line(
        "rate",
        "masking rate (share of tokens)",
        "condition",
        colours,
        dict(zip(colours, DASHES, strict=False)),
        band=None,
        percent=True,
        scale={"domain": [0, float(data["rate"].max()) * 1.15 or 1.0], "nice": False},
        width=dict(zip(colours, widths, strict=True)),
        legend=True,
        columns=3,
    )
    x, tips = _linear_steps(data["step"].max()), ["condition", "step", *numbers(".1%", "rate")]
    layers = [
        layer.transform_filter(alt.FieldEqualPredicate(field="condition", equal=name))
        for name in colours
        for layer in line.layers(data, x, tips)
    ]
    mean = rates.group_by("condition", maintain_order=True).agg(pl.col("rate").cast(pl.Float64).mean())
    means = {row["condition"]: row["rate"] for row in mean.iter_rows(named=True)}
    low, high = rates["rate"].min(), rates["rate"].max()
    rate_range = f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"
    equal = f"{min(means.values()):.1%}" == f"{max(means.values()):.1%}"
    mean_range = f"{min(means.values()):.1%}" + ("" if equal else f" to {max(means.values()):.1%}")
    schedule_means = "; ".join(f"{name}: {means[name]:.1%}" for name in colours)
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=200),
        f"Schedules mask {rate_range} of tokens, on average over training {mean_range}",
        f"average over training, {schedule_means}",
        f"Masking rate over {rates['step'].max():,} training steps. On average: {schedule_means}.",
    )


def speedup_curves(
    points: pl.DataFrame,
    fits: pl.DataFrame,
    speedups: pl.DataFrame,
    baseline: str,
    measure: str,
    *,
    level: float = 1.0,
    percent: bool = False,
    conditions: Sequence[str] | None = None,
) -> alt.LayerChart:
    """Scores with their fitted curves, the baseline's best as a line, and the step where each schedule reaches it.

    `points`: condition, seed, step, value; `fits`: condition, step, value; `speedups`, a row per condition other than
    the baseline: condition, value, low, high, step, target, as the fields of `analysis.speedup.Speedup`. `value` is
    null where the best is never reached, `low` where the interval is open below, `low` and `high` where there is none.
    `measure`: its name with its unit. `level`: the target, as a share of the way from the
    baseline's start to its best.
    """
    data, missing = tidy(points, ["condition", "seed", "step", "value"], "speed-up: points")
    curves, _ = tidy(fits, ["condition", "step", "value"], "speed-up: fits")
    columns = ["condition", "value", "low", "high", "step", "target"]
    need_columns(speedups, columns, "speed-up: rows")
    rows = speedups.select("condition", pl.col(columns[1:]).cast(pl.Float64).fill_nan(None))
    colours = condition_colours([*data["condition"], *curves["condition"]], conditions)
    if without_scores := next((name for name in [baseline, *rows["condition"]] if name not in colours), None):
        raise UserError(f"speed-up: there are no scores of {without_scores!r}; conditions: {', '.join(colours)}")
    if rows.is_empty() or rows["target"].max() - rows["target"].min() > 1e-6:
        raise UserError("speed-up: rows must share one target, the best of one baseline; draw each baseline by itself")
    best, target = rows["target"][0], f"best of {baseline}"
    if level < 1:
        target = f"{level:.0%} of the way to the {target}"
    last = max(frame["step"].max() for frame in (data, curves, rows) if frame["step"].max() is not None)
    x = _linear_steps(last)
    y = alt.Y("value:Q", title=measure).scale(zero=False).axis(format="%" if percent else ",.4~g")
    colour = colour_by("condition", colours, legend=True)
    tips = ["condition", "step", alt.Tooltip("value", title=measure, format=".1%" if percent else ",.4~g")]
    label = single_row(value=best, label=f"{target}: {number(best, percent)}").mark_text(
        **NOTE, baseline="bottom", dx=4, dy=-3
    )
    layers = [
        rule_at(y, best, color=colours[baseline], strokeDash=[6, 4], strokeWidth=1.5),
        alt.Chart(data).mark_point(size=18, filled=True, opacity=1).encode(x, y, colour, tooltip=["seed", *tips]),
        alt.Chart(curves).mark_line(strokeWidth=2.2).encode(x, y, colour, tooltip=tips),
        label.encode(y, alt.Text("label:N"), x=alt.value(0)),
    ]
    texts = {row["condition"]: _speedup_text(row) for row in rows.iter_rows(named=True)}
    # texts further right are higher, and each vertical line ends at its text, so that no text is crossed
    reached = rows.drop_nulls("value").sort("step")
    not_reached = [name for name in rows["condition"] if name not in reached["condition"]]
    height = HEIGHT + 60
    for index, row in enumerate(reached.iter_rows(named=True)):
        y_end = alt.value(height - 10 - 16 * (index + len(not_reached)))
        label, hue = f"{row['condition']}: {texts[row['condition']]}", colours[row["condition"]]
        base = single_row(value=best, x=row["step"], label=label).encode(alt.X("x:Q", title=STEP))
        layers += [
            base.mark_rule(color=hue, strokeWidth=1.2).encode(y, y2=y_end),
            base.mark_point(color=hue, filled=True, size=90, opacity=1).encode(y),
            base.mark_text(**NOTE, dx=5).encode(alt.Text("label:N"), y=y_end),
        ]
    for index, name in enumerate(not_reached):
        text = single_row(label=f"{name}: {texts[name]}").mark_text(**NOTE | {"align": "right"}, dx=-4)
        layers.append(text.encode(alt.Text("label:N"), x=alt.value(WIDTH), y=alt.value(height - 10 - 16 * index)))
    fastest = reached.sort("value", descending=True)["condition"].to_list()
    title = f"No schedule reaches {'the ' if level == 1 else ''}{target}"
    if fastest:
        title = (
            f"{'Largest speed-up' if len(rows) > 1 else 'Speed-up'} over {baseline}: {texts[fastest[0]]}, {fastest[0]}"
        )
        title += f"; {len(not_reached)} of {len(rows)} never reach the target" if not_reached else ""
    interval_key = "[ ]: 95 % interval" if reached["high"].is_not_null().any() else ""
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=height),
        title,
        [["dot: a seed", "line: fitted curve", interval_key, missing_text(missing)]],
        f"{measure} over training, with fitted curves. {target[0].upper() + target[1:]}: {number(best, percent)}. "
        + "; ".join(f"{name}: {text}" for name, text in texts.items())
        + ".",
    )


def gain_by_paradigm(
    frame: pl.DataFrame, baseline: str = "the baseline", *, conditions: Sequence[str] | None = None
) -> alt.HConcatChart:
    """Accuracy minus that of the baseline with the same seed: a row per paradigm, a column per condition.

    `frame`: paradigm, condition, seed, difference (a share; shown in percentage points). Paradigms are sorted by mean
    gain over conditions; rows of the baseline itself are left out.
    """
    need_columns(frame, ["paradigm", "condition", "seed", "difference"], "gain by paradigm")
    compared = frame.filter(pl.col("condition") != baseline).with_columns(value="difference")
    data, missing = tidy(compared, ["paradigm", "condition", "seed", "value"], "gain by paradigm")
    colours = condition_colours(data["condition"], conditions)
    data = data.with_columns(
        pl.col("value") * 100, name=pl.col("paradigm").str.replace_all("_", " ").str.replace("-([^-]*)$", ": $1")
    )
    mean = data.group_by("condition", "name", maintain_order=True).agg(pl.col("value").mean()).drop_nulls("value")
    ranked = mean.group_by("name", maintain_order=True).agg(pl.col("value").mean())
    order = ranked.sort("value", descending=True, maintain_order=True)["name"].to_list()
    low, high = (min(0, data["value"].min()), max(0, data["value"].max()))
    scale = alt.Scale(domain=[low, high] if low < high else [-1, 1], nice=True)
    dense = len(order) > 8
    panels, sentences, gains = [], [], {}
    for index, (name, colour) in enumerate(colours.items()):
        rows, means = (t.filter(pl.col("condition") == name) for t in (data, mean))
        y = names("name", order, labels=index == 0, grid=True, labelLimit=0)
        width = max(104, min(240, WIDTH // len(colours)))
        axis = alt.Axis(labelExpr=SIGNED, tickCount=4 if width > 140 else 3, grid=False)
        x = alt.X("value:Q", title="percentage points", axis=axis, scale=scale)
        tips = [alt.Tooltip("name", title="paradigm"), alt.Tooltip("value", title="gain (points)", format="+.1f")]
        dots = alt.Chart(rows).mark_point(size=14 if dense else 26, filled=True, opacity=1, color=colour)
        ticks = alt.Chart(means).mark_tick(thickness=3, size=12 if dense else 18, color=colour, opacity=1)
        panel = alt.layer(
            rule_at(x, 0, strokeWidth=1.2), dots.encode(x, y, tooltip=[*tips, "seed"]), ticks.encode(x, y, tooltip=tips)
        )
        up = (means["value"] > 0).sum()
        gains[name] = means["value"].mean()
        summary = f"{_points(gains[name])}, {up} of {len(means)} up"
        title = head(wrapped(name, width), subtitle=summary, subtitleFontSize=11, anchor="middle", offset=6)
        panels.append(panel.properties(width=width, height=(16 if dense else ROW) * len(order), title=title))
        sentences.append(f"{name} {summary}")
    gains = {name: gain for name, gain in gains.items() if gain is not None}
    (worst, low), (best, high) = min(gains.items(), key=lambda g: g[1]), max(gains.items(), key=lambda g: g[1])
    span = f"{_points(low)} ({worst}) to {_points(high)} ({best})" if len(gains) > 1 else f"{_points(low)} ({worst})"
    return figure(
        alt.hconcat(*panels, spacing=14),
        f"Mean gain over {baseline}, {count(len(order), 'paradigm')}: {span}",
        [["in percentage points of accuracy, same seed", "dot: a seed", "tick: mean", missing_text(missing)]],
        f"Gain in accuracy over {baseline}, by paradigm. Mean in percentage points: {'; '.join(sentences)}. "
        f"Largest for {order[0]}, smallest for {order[-1]}.",
    )


def _points(value: float | None) -> str:
    return "no value" if value is None else f"{value:+.1f}".replace("-", "−")


def _speedup_text(row: dict) -> str:
    if row["value"] is None:
        return "never reached"
    if row["high"] is None:
        return f"{row['value']:.1f}× (no interval)"
    return f"{row['value']:.1f}× [{'open' if row['low'] is None else format(row['low'], '.1f')}, {row['high']:.1f}]"


def _linear_steps(last: int) -> alt.X:
    return (
        alt.X("step:Q", title=STEP)
        .scale(domain=[0, max(1, last)], nice=False)
        .axis(format=",d", tickCount=8, grid=False)
    )


def _sample_rates(rate: pl.DataFrame, max_rows: int = 200) -> pl.DataFrame:
    """About `max_rows` rows of one schedule, including its corners and jumps."""
    rate = rate.sort("step").with_columns(pl.col("rate").cast(pl.Float64))
    bend = pl.col("rate").diff().diff().abs() > 1e-3
    selected = bend | bend.shift(-1) | bend.shift(-2) | (pl.int_range(pl.len()) % (1 + pl.len() // max_rows) == 0)
    ends = (pl.col("step") == pl.col("step").min()) | (pl.col("step") == pl.col("step").max())
    return rate.filter(selected.fill_null(False) | ends)

"""Masking-rate schedules, and how much sooner one reaches what its baseline comes to."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.conditions import absent, number, tidy
from lmdynamics.charts.lines import colour_by
from lmdynamics.charts.theme import HEIGHT, TEXT, WIDTH, condition_colours, figure
from lmdynamics.errors import UserError

DASHES = ([1, 0], [16, 3], [9, 4], [3, 3], [12, 4, 3, 4], [6, 3], [9, 3, 2, 3, 2, 3], [2, 4])
WIDEST, NARROWEST = 6.5, 2.0  # a later line lies thinner on an earlier one, so that both are seen where they coincide
STEP = "training step"


def masking_rates(rates: pl.DataFrame, *, conditions: Sequence[str] | None = None) -> alt.LayerChart:
    """Masking rate against step, one line per schedule. `rates`: condition, step, rate (share of tokens)."""
    need_columns(rates, ["condition", "step", "rate"], "masking rates")
    if rates.is_empty():
        raise UserError("masking rates: the frame has no rows; give each schedule's rate at each step")
    colours = condition_colours(rates["condition"], conditions)
    data = pl.concat([_thinned(rates.filter(pl.col("condition") == name)) for name in colours])
    spread = (WIDEST - NARROWEST) / max(1, len(colours) - 1)
    widths = [WIDEST - spread * i for i in range(len(colours))] if len(colours) > 1 else [2.5]
    names = list(colours)
    key = alt.Legend(orient="bottom", columns=3, symbolType="stroke")
    colour = alt.Color("condition:N", title=None, legend=key).scale(domain=names, range=list(colours.values()))
    dash = alt.StrokeDash("condition:N", title=None, legend=key).scale(domain=names, range=list(DASHES[: len(names)]))
    width = alt.StrokeWidth("condition:N", title=None, legend=key).scale(domain=names, range=widths)
    top = float(data["rate"].max()) * 1.15 or 1.0
    base = alt.Chart(data).encode(
        _linear_steps(data["step"].max()),
        alt.Y("rate:Q", title="masking rate (share of tokens)").axis(format="%").scale(domain=[0, top], nice=False),
        colour,
        dash,
        width,
        tooltip=["condition", "step", alt.Tooltip("rate", format=".1%")],
    )
    layers = [
        base.transform_filter(alt.FieldEqualPredicate(field="condition", equal=name)).mark_line() for name in names
    ]
    mean = rates.group_by("condition", maintain_order=True).agg(pl.col("rate").cast(pl.Float64).mean())
    means = {row["condition"]: row["rate"] for row in mean.iter_rows(named=True)}
    low, high = rates["rate"].min(), rates["rate"].max()
    between = f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"
    same = f"{min(means.values()):.1%}" == f"{max(means.values()):.1%}"
    spoken = f"{min(means.values()):.1%}" + ("" if same else f" to {max(means.values()):.1%}")
    each = "; ".join(f"{name}: {means[name]:.1%}" for name in names)
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=200),
        f"Schedules mask {between} of tokens, on average over training {spoken}",
        f"average over training, {each}",
        f"Masking rate over {rates['step'].max():,} training steps. On average: {each}.",
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
    """Scores with their fitted curves, the baseline's best across, and where each schedule reaches it.

    `points`: condition, seed, step, value; `fits`: condition, step, value; `speedups`, a row per condition other than
    the baseline: condition, value, low, high, step, target, as the fields of `analysis.speedup.Speedup`. `value` is
    null where the best is never reached, `low` where the interval is open below, `low` and `high` where there is none.
    `measure`: its name with its unit.
    `level`: the share of the way to the best that was asked for.
    """
    data, missing = tidy(points, ["condition", "seed", "step", "value"], "speed-up: points")
    curves, _ = tidy(fits, ["condition", "step", "value"], "speed-up: fits")
    columns = ["condition", "value", "low", "high", "step", "target"]
    need_columns(speedups, columns, "speed-up: rows")
    rows = speedups.select("condition", pl.col(columns[1:]).cast(pl.Float64).fill_nan(None))
    colours = condition_colours([*data["condition"], *curves["condition"]], conditions)
    if unknown := next((name for name in [baseline, *rows["condition"]] if name not in colours), None):
        raise UserError(f"speed-up: there are no scores of {unknown!r}; conditions: {', '.join(colours)}")
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
    line = alt.Chart(pl.DataFrame({"value": [best], "label": [f"{target}: {number(best, percent)}"]}))
    label = line.mark_text(color=TEXT, align="left", baseline="bottom", dx=4, dy=-3, fontSize=11)
    layers = [
        line.mark_rule(color=colours[baseline], strokeDash=[6, 4], strokeWidth=1.5).encode(y),
        alt.Chart(data).mark_point(size=18, filled=True, opacity=1).encode(x, y, colour, tooltip=["seed", *tips]),
        alt.Chart(curves).mark_line(strokeWidth=2.2).encode(x, y, colour, tooltip=tips),
        label.encode(y, alt.Text("label:N"), x=alt.value(0)),
    ]
    told = {row["condition"]: _told(row) for row in rows.iter_rows(named=True)}
    # texts rise towards the right, and each line down ends at its text: none is crossed
    reached = rows.drop_nulls("value").sort("step")
    missed = [name for name in rows["condition"] if name not in reached["condition"]]
    height = HEIGHT + 60
    for index, row in enumerate(reached.iter_rows(named=True)):
        place = alt.value(height - 10 - 16 * (index + len(missed)))
        one = {"value": best, "x": row["step"], "label": f"{row['condition']}: {told[row['condition']]}"}
        base = alt.Chart(alt.Data(values=[one])).encode(alt.X("x:Q", title=STEP))
        hue = colours[row["condition"]]
        text = base.mark_text(color=TEXT, align="left", dx=5, fontSize=11)
        layers += [
            base.mark_rule(color=hue, strokeWidth=1.2).encode(y, y2=place),
            base.mark_point(color=hue, filled=True, size=90, opacity=1).encode(y),
            text.encode(alt.Text("label:N"), y=place),
        ]
    for index, name in enumerate(missed):
        base = alt.Chart(alt.Data(values=[{"label": f"{name}: {told[name]}"}]))
        text = base.mark_text(color=TEXT, align="right", dx=-4, fontSize=11)
        layers.append(text.encode(alt.Text("label:N"), x=alt.value(WIDTH), y=alt.value(height - 10 - 16 * index)))
    fastest = reached.sort("value", descending=True)["condition"].to_list()
    title = f"No schedule reaches {'the ' if level == 1 else ''}{target}"
    if fastest:
        title = (
            f"{'Largest speed-up' if len(rows) > 1 else 'Speed-up'} over {baseline}: {told[fastest[0]]}, {fastest[0]}"
        )
        title += f"; {len(missed)} of {len(rows)} never get there" if missed else ""
    caption = ["dot: a seed", "line: fitted curve", "[ ]: 95 % interval" if reached["high"].is_not_null().any() else ""]
    caption += [absent(missing)]
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=height),
        title,
        "; ".join(filter(None, caption)),
        f"{measure} over training, with fitted curves. {target[0].upper() + target[1:]}: {number(best, percent)}. "
        + "; ".join(f"{name}: {text}" for name, text in told.items())
        + ".",
    )


def _told(row: dict) -> str:
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


def _thinned(rate: pl.DataFrame, most: int = 200) -> pl.DataFrame:
    """About `most` rows of one schedule, its corners and jumps among them."""
    rate = rate.sort("step").with_columns(pl.col("rate").cast(pl.Float64))
    bend = pl.col("rate").diff().diff().abs() > 1e-3
    kept = bend | bend.shift(-1) | bend.shift(-2) | (pl.int_range(pl.len()) % (1 + pl.len() // most) == 0)
    ends = (pl.col("step") == pl.col("step").min()) | (pl.col("step") == pl.col("step").max())
    return rate.filter(kept.fill_null(False) | ends)

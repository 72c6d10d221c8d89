"""Effects of interventions: conditions over training, at the end, and against the settings of a parameter.

Every seed is shown, as a thin line or a dot, and the mean over seeds as a thick one. `conditions`: the conditions in
the order of their colours; if all figures of a notebook get the same list, a condition has the same colour in each.
`percent`: whether values are shares, or which measures are.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.statistics import mean_of_all_seeds
from lmdynamics.charts.axes import on_step_axis, same_axis, step_axis, steps_of
from lmdynamics.charts.conditions import (
    ROW,
    capital,
    count,
    findings,
    is_share,
    missing_text,
    names_of,
    number,
    span,
    stacked,
    tidy,
)
from lmdynamics.charts.encodings import interval, names, numbers, rule_at
from lmdynamics.charts.lines import Line, colour_by, levels, panel
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import BLUE, GREY, WIDTH, condition_colours, figure
from lmdynamics.errors import UserError


def conditions_over_training(
    frame: pl.DataFrame,
    measure: str,
    *,
    percent: bool = False,
    controls: Mapping[str, float] | None = None,
    conditions: Sequence[str] | None = None,
) -> alt.VConcatChart:
    """One measure against step, a line per seed and condition; `measure`: its name with its unit.

    `frame`: condition, seed, step, value, perhaps low and high (of each seed, drawn as a thin vertical line).
    `controls`: reference values by name, dashed. A condition that starts after the first step, such as a branch,
    starts with a dot. The mean is drawn at steps where every seed has a value.
    """
    return conditions_panels(
        frame.with_columns(measure=pl.lit(measure)),
        percent=percent,
        controls={measure: controls or {}},
        conditions=conditions,
    )


def conditions_panels(
    frame: pl.DataFrame,
    *,
    percent: bool | Collection[str] = False,
    controls: Mapping[str, Mapping[str, float]] | None = None,
    conditions: Sequence[str] | None = None,
    title: str = "",
    width: int = WIDTH,
) -> alt.VConcatChart:
    """As `conditions_over_training`, a panel per measure (column `measure`) over the same steps, with one legend.

    `controls`: reference values by name, for each measure. `title`: by default the first measure at the end.
    """
    data, missing = tidy(frame, ["measure", "condition", "seed", "step", "value"], "conditions over training")
    colours = condition_colours(data["condition"], conditions)
    measures, steps = names_of(data, "measure"), steps_of(data)
    controls = controls or {}
    if extra := [name for name in controls if name not in measures]:
        raise UserError(f"conditions over training: a control for {extra[0]!r}; measures: {', '.join(measures)}")
    panels, sentences, level_texts, late = [], [], [], False
    for index, measure in enumerate(measures):
        last = index == len(measures) - 1
        rows = data.filter(pl.col("measure") == measure)
        mean = mean_of_all_seeds(rows)
        x = step_axis(steps, "training step (log scale)" if last else None)
        share, panel_levels = is_share(measure, percent), controls.get(measure, {})
        single = Line(
            "value",
            stacked(measure) if len(measures) > 1 else measure,
            "condition",
            colours,
            band=None,
            axis={"format": _axis_format(share), "tickCount": 4 if len(measures) > 1 else 6},
            width=0.8,
        )
        value = alt.Tooltip("value", title=measure, format=_tip_format(share))
        tips = ["condition", "step", value]
        layers, seeds = levels(panel_levels, single.y, right=True), on_step_axis(rows)
        layers += interval(seeds.drop_nulls("value"), single.y, x, single.colour, alt.Detail("seed:N"), strokeWidth=0.8)
        layers += single.layers(seeds, x, ["seed", *tips], detail="seed:N")
        layers += replace(single, width=2.8, points=10).layers(on_step_axis(mean), x, tips)
        starts = _late_starts(rows, mean)
        if len(starts):
            late = True
            dots = alt.Chart(on_step_axis(starts)).mark_point(size=90, filled=True, opacity=1)
            layers.append(dots.encode(x, single.y, single.colour))
        panels.append(panel(layers, x, height=260 if len(measures) == 1 else 140, width=width))
        ends = mean.drop_nulls("value").group_by("condition", maintain_order=True).last()
        sentences.append(f"{measure} at the end: {span(ends, share)}")
        level_texts += [f"{name}: {number(level, share)}" for name, level in panel_levels.items()]
    return figure(
        alt.vconcat(*panels, spacing=12),
        title or capital(sentences[0]),
        [
            *findings(sentences if not title else ["", *sentences]),
            [_seeds(data), "dot: where a branch leaves" if late else "", missing_text(missing)],
        ],
        f"Conditions over training. {'. '.join(map(capital, [*sentences, *level_texts]))}. {capital(_seeds(data))}.",
    )


def final_by_condition(
    frame: pl.DataFrame,
    means: pl.DataFrame,
    baseline: str | None = None,
    *,
    measure: str = "value",
    percent: bool | Collection[str] = False,
    conditions: Sequence[str] | None = None,
    columns: int = 3,
    zero: bool = False,
    title: str = "",
) -> alt.ConcatChart:
    """One row per condition: a dot per seed, the mean as a tick, its interval as a bar, the baseline as a line.

    `frame`: condition, seed, value; `means`: condition, mean, low, high (null with one seed), from `mean_over_seeds`.
    With a column `measure` in both, a panel per measure, each with its own scale; otherwise `measure` is its name.
    `zero`: the values are differences, and a line marks 0. `title`: by default the first measure.
    """
    frame, means = (t if "measure" in t.columns else t.with_columns(measure=pl.lit(measure)) for t in (frame, means))
    data, missing = tidy(frame, ["measure", "condition", "seed", "value"], "conditions at the end")
    need_columns(means, ["measure", "condition", "mean", "low", "high"], "means of the conditions at the end")
    colours = condition_colours(data["condition"], conditions)
    measures = names_of(data, "measure")
    if baseline is not None and baseline not in colours:
        raise UserError(f"conditions at the end: no baseline {baseline!r}; conditions: {', '.join(colours)}")
    means = means.with_columns(pl.col("mean", "low", "high").cast(pl.Float64).fill_nan(None))
    columns = min(columns, len(measures))
    width = 420 if columns == 1 else max(150, WIDTH // columns)
    panels, sentences = [], []
    for index, name in enumerate(measures):
        panel_means = means.filter(pl.col("measure") == name, pl.col("condition").is_in(list(colours)))
        share = is_share(name, percent)
        y = names("condition", list(colours), labels=index % columns == 0, grid=True, labelLimit=0)
        x = alt.X("value:Q", title=wrapped(name, width)).scale(zero=False, padding=8)
        x = x.axis(format=_axis_format(share), tickCount=5, grid=False)
        colour, style = colour_by("condition", colours, legend=False), _tip_format(share)
        tips = ["condition", *numbers(style, "mean", "low", "high")]
        bars = interval(panel_means, x, y, colour, strokeWidth=2, yOffset=-4, y2Offset=-4)
        ticks = alt.Chart(panel_means).mark_tick(thickness=4, size=12, yOffset=-4, opacity=1)
        baseline_row = alt.Chart(panel_means.filter(pl.col("condition") == (baseline or "")))
        dots = alt.Chart(data.filter(pl.col("measure") == name)).mark_point(size=22, filled=True, opacity=1, yOffset=8)
        layers = [
            *([rule_at(x, 0, strokeWidth=1.2)] if zero else []),
            baseline_row.mark_rule(color=GREY, strokeDash=[6, 4], strokeWidth=1.5).encode(same_axis(x, "mean")),
            *(bar.encode(tooltip=tips) for bar in bars),
            ticks.encode(same_axis(x, "mean"), y, colour, tooltip=tips),
            dots.encode(x, y, colour, tooltip=["condition", "seed", *numbers(style, "value")]),
        ]
        panels.append(alt.layer(*layers).properties(width=width, height=ROW * len(colours)))
        sentences.append(f"{name}: {span(panel_means.rename({'mean': 'value'}), share, baseline)}")
    bar = "bar: 95 % interval" if means["low"].is_not_null().any() else "one seed each: no interval"
    caption = ["dot: a seed", "tick: mean", bar, f"dashed: {baseline}" if baseline else "", missing_text(missing)]
    sentence = "; ".join(_mean_text(row, is_share(row["measure"], percent)) for row in means.iter_rows(named=True))
    return figure(
        alt.concat(*panels, columns=columns, spacing=24),
        title or capital(sentences[0]),
        [*([] if title else findings(sentences)), caption],
        f"Conditions at the end of training. {sentence}.",
    )


def value_over_parameter(
    frame: pl.DataFrame,
    parameter: str,
    *,
    percent: bool | Collection[str] = False,
    baseline: str | None = None,
    conditions: Sequence[str] | None = None,
) -> alt.VConcatChart:
    """Values against the settings of one parameter, in order: a dot per seed, a line through the means.

    `frame`: condition (a setting's label), seed, measure, value; a panel per measure. `parameter`: its name and unit.
    The order is that of `conditions`, or of appearance; `baseline`: the setting whose mean is a dashed line.
    """
    data, missing = tidy(frame, ["condition", "seed", "measure", "value"], f"values over {parameter}")
    order = names_of(data, "condition")
    if conditions is not None:
        if extra := [name for name in order if name not in conditions]:
            raise UserError(f"values over {parameter}: {extra[0]!r} is not among conditions=; add it at its place")
        order = [name for name in conditions if name in order]
    if baseline is not None and baseline not in order:
        raise UserError(f"values over {parameter}: no baseline {baseline!r}; settings: {', '.join(order)}")
    position = pl.col("condition").replace_strict(order, range(len(order)), return_dtype=pl.Int64)
    data = data.with_columns(place=position).sort("place", maintain_order=True)
    measures = names_of(data, "measure")
    slanted = max(map(len, order)) * 6.5 > WIDTH / len(order)
    panels, sentences = [], []
    for index, measure in enumerate(measures):
        last = index == len(measures) - 1
        rows = data.filter(pl.col("measure") == measure)
        mean = rows.group_by("condition", "place", maintain_order=True).agg(pl.col("value").mean())
        axis = alt.Axis(labels=last, ticks=last, labelAngle=-35 if slanted else 0, grid=False)
        x = alt.X("condition:N", title=parameter if last else None, sort=order, axis=axis).scale(domain=order)
        y = alt.Y("value:Q", title=stacked(measure)).scale(zero=False)
        share = is_share(measure, percent)
        y = y.axis(format=_axis_format(share), tickCount=4)
        value = alt.Tooltip("value", title=measure, format=_tip_format(share))
        baseline_row = alt.Chart(mean.filter(pl.col("condition") == (baseline or ""))).encode(y)
        base = alt.Chart(mean).encode(x, y, order="place:Q", tooltip=["condition", value])
        layers = [
            baseline_row.mark_rule(color=GREY, strokeDash=[6, 4], strokeWidth=1.5),
            base.mark_line(color=BLUE, strokeWidth=2.5),
            base.mark_tick(color=BLUE, thickness=3, size=16, opacity=1),
            alt.Chart(rows).mark_point(size=24, filled=True, opacity=1, color=BLUE, xOffset=14)
            .encode(x, y, tooltip=["condition", "seed", value]),
        ]  # fmt: skip
        panels.append(alt.layer(*layers).properties(width=WIDTH, height=240 if len(measures) == 1 else 120))
        sentences.append(f"{measure}: {span(mean, share, baseline)}")
    caption = f"{count(data['seed'].n_unique(), 'seed')}; dot: a seed; line and ticks: mean"
    return figure(
        alt.vconcat(*panels, spacing=12),
        capital(sentences[0]),
        [*findings(sentences), [caption, f"dashed: {baseline}" if baseline else "", missing_text(missing)]],
        f"Values over {parameter}. {'. '.join(map(capital, sentences))}. {caption}.",
    )


def _axis_format(share: bool) -> str:
    return "%" if share else ",.4~g"


def _tip_format(share: bool) -> str:
    return ".1%" if share else ",.4~g"


def _late_starts(rows: pl.DataFrame, mean: pl.DataFrame) -> pl.DataFrame:
    """The first row of each condition that starts later than others."""
    first = mean.group_by("condition", maintain_order=True).first()
    return first.filter(pl.col("step") > rows["step"].min()).drop_nulls("value")


def _mean_text(row: dict, share: bool) -> str:
    if row["mean"] is None:
        return f"{row['measure']}, {row['condition']}: no value"
    interval = "" if row["low"] is None else f" (95 % {number(row['low'], share)} to {number(row['high'], share)})"
    return f"{row['measure']}, {row['condition']}: {number(row['mean'], share)}{interval}"


def _seeds(data: pl.DataFrame) -> str:
    counts = sorted(set(data.group_by("condition").agg(pl.col("seed").n_unique())["seed"].to_list()))
    if counts == [1]:
        return "one seed each"
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"thin: each of {number} seeds; thick: their mean"

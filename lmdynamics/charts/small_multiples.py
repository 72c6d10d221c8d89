"""Several runs side by side, one small panel each, with a line at the same checkpoint in all of them."""

import math
from collections.abc import Collection
from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.charts.axes import Cursor, on_step_axis, step_axis, steps_of
from lmdynamics.charts.conditions import capital, findings, is_share, names_of, span, stacked, tidy
from lmdynamics.charts.encodings import head, numbers
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import BLUE, GREY, TEXT, figure
from lmdynamics.errors import UserError

ROW_WIDTH, MIN_WIDTH, MAX_WIDTH = 850, 105, 420  # pixels: of a row of panels, and of one panel
PANELS_PER_ROW = 6  # at most
MAX_HEIGHT = 252  # pixels: of all rows of panels with a slider, to fit on one screen


def small_multiples(
    curves: pl.DataFrame,
    cursor: Cursor | None = None,
    step: int | None = None,
    *,
    percent: bool | Collection[str] = False,
    runs: Collection[str] | None = None,
) -> alt.VConcatChart:
    """A panel per run and measure: the run in blue with its band, all others in grey, a line at one checkpoint.

    `curves`: run, measure, step, value, perhaps low and high (95 %). The line and the run's value are at `step`
    (default: the last) or at the cursor's step. `runs`: which have a panel (default: all). `percent`: whether values
    are shares, or which measures are.
    """
    renamed = curves.rename({"run": "condition"}) if "run" in curves.columns else curves
    data, _ = tidy(renamed, ["measure", "condition", "step", "value"], "small multiples")
    data = on_step_axis(data.drop_nulls("value"))
    shown = [name for name in names_of(data, "condition") if runs is None or name in runs]
    if not shown:
        raise UserError(f"small multiples: none of these runs has a value: {', '.join(runs or [])}")
    steps = steps_of(data)
    position = cursor if cursor is not None else steps[-1] if step is None else step
    measures, per_row = names_of(data, "measure"), math.ceil(len(shown) / math.ceil(len(shown) / PANELS_PER_ROW))
    width = max(MIN_WIDTH, min(MAX_WIDTH, ROW_WIDTH // per_row - 24))
    count = len(measures) * math.ceil(len(shown) / per_row)
    height = 130 if cursor is None else min(130, max(60, MAX_HEIGHT // count))
    columns = _numbers(data)
    rows, sentences = [], []
    for i, measure in enumerate(measures):
        measure_rows, share = data.filter(pl.col("measure") == measure), is_share(measure, percent)
        line, panels = _line(measure_rows, measure, share), []
        for j, name in enumerate(shown):
            low_row, first = i == len(measures) - 1 and j >= len(shown) - per_row, j % per_row == 0
            x = step_axis(steps, "training step (log)" if low_row else None, sparse=width < 300)
            run_rows = measure_rows.filter(pl.col("condition") == name)
            layers = _run(measure_rows, run_rows, line if first else _inner(line), x, position)
            hover = (run_rows, numbers(".1%" if share else ".4~g", *columns)) if len(run_rows) else None
            chart = panel(layers, x, position=position, number=i == 0, hover=hover, width=width, height=height)
            if len(shown) > 1 and (i == 0 or len(shown) > PANELS_PER_ROW):
                title = wrapped(name, width, 12, bold=True)
                chart = chart.properties(title=head(title, fontWeight="bold", anchor="middle", offset=16))
            panels.append(chart)
        rows.append(alt.concat(*panels, columns=per_row, spacing=14))
        ends = measure_rows.group_by("condition", maintain_order=True).last()
        sentences.append(f"{measure} at the end of training: {span(ends, share)}")
    chart = alt.vconcat(*rows, spacing=16)
    banded = {"low", "high"} <= set(data.columns) and data["low"].is_not_null().any()
    caption = ["blue: the run; grey: the others" if data["condition"].n_unique() > 1 else ""]
    caption += ["band: 95 %" if banded else "no intervals", "click to go to a checkpoint" if cursor is not None else ""]
    return figure(
        chart,
        capital(sentences[0]),
        [*findings(sentences), caption],
        f"Runs side by side over training. {'. '.join(map(capital, sentences))}.",
    )


def _line(data: pl.DataFrame, measure: str, share: bool) -> Line:
    """The style of a measure's curves: a scale for all of them, with room for a number above."""
    values = pl.concat([data[column].cast(pl.Float64).drop_nulls() for column in _numbers(data)])
    low, high = values.min(), values.max()
    reach = (high - low) or abs(high) or 1.0
    scale = {"domain": [low - 0.06 * reach, high + 0.14 * reach], "nice": False}
    axis = {"format": "%" if share else ",.4~g", "tickCount": 4, "labels": True, "ticks": True}
    aligned = {"minExtent": 36, "maxExtent": 36}  # the rows of panels are aligned
    style = ".1%" if share else ".3~g"
    return Line("value", stacked(measure), scale=scale, axis=axis | aligned, style=style, points=8, shade=0.22)


def _inner(line: Line) -> Line:
    """The same for a panel that shares the axis of the panel at its left."""
    axis = {"format": line.axis["format"], "tickCount": 4, "labels": False, "ticks": False}
    return replace(line, title=None, axis=axis)


def _run(rows: pl.DataFrame, run: pl.DataFrame, line: Line, x: alt.X, place: Cursor | int) -> list[alt.Chart]:
    """All runs in grey, one of them in blue, and its number at a checkpoint."""
    layers, step = [], place.name if isinstance(place, Cursor) else str(place)
    if rows["condition"].n_unique() > 1:
        grey = alt.Chart(rows).mark_line(color=GREY, strokeWidth=0.8, opacity=0.6)
        layers.append(grey.encode(x, line.y, detail="condition:N"))
    at_step = alt.Chart(run).encode(x, line.y).transform_filter(f"datum.step == {step}")
    late = f"{step} > {math.sqrt(rows['x'].min() * rows['x'].max())}"  # the number is where there is room
    side = {"align": alt.ExprRef(f"{late} ? 'right' : 'left'"), "dx": alt.ExprRef(f"{late} ? -5 : 5")}
    text = at_step.mark_text(color=TEXT, fontSize=11, fontWeight="bold", **side)
    return [
        *layers,
        *line.layers(run, x, ()),
        at_step.mark_point(color=BLUE, size=55, filled=True, opacity=1),
        text.encode(alt.Text("value:Q", format=line.style), y=alt.value(7)),
    ]


def _numbers(data: pl.DataFrame) -> list[str]:
    return ["value", *(name for name in ("low", "high") if name in data.columns)]


def step_text(curves: pl.DataFrame, step: int, percent: bool | Collection[str] = False) -> str:
    """The values at a checkpoint, in words: the lowest and the highest run of each measure."""
    at_step = curves.filter(pl.col("step") == step).drop_nulls("value").rename({"run": "condition"})
    parts = []
    for measure in names_of(at_step, "measure"):
        rows, share = at_step.filter(pl.col("measure") == measure), is_share(measure, percent)
        parts.append(f"{measure} {span(rows, share)}")
    return f"Step {step:,}: {'; '.join(parts) or 'nothing was measured'}."

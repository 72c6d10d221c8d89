"""Several runs side by side, one small panel each, with one line through all of them at the same checkpoint."""

import math
from collections.abc import Collection

import altair as alt
import polars as pl

from lmdynamics.charts.axes import Cursor, on_step_axis, step_axis, step_number, steps_of, strips, upright
from lmdynamics.charts.conditions import axis_format, capital, findings, is_share, names_of, number, span, stacked, tidy
from lmdynamics.charts.lines import line_layers
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import BLUE, GREY, TEXT, figure
from lmdynamics.errors import UserError

ACROSS, LEAST, MOST = 850, 105, 420  # pixels: all panels of a row, and one of them
BESIDE = 6  # panels in a row


def small_multiples(
    curves: pl.DataFrame,
    cursor: Cursor | None = None,
    step: int | None = None,
    *,
    percent: bool | Collection[str] = False,
    runs: Collection[str] | None = None,
) -> alt.VConcatChart:
    """A panel per run and measure: the run in blue with its band, all others grey behind it, a line at one checkpoint.

    `curves`: run, measure, step, value, perhaps low and high (95 %). The line stands at `step` (default: the last) or
    at the step that `cursor` holds; there the value is written. `runs`: which have a panel (default: all). `percent`:
    whether values are shares, or which measures are.

    Raises
    ------
    UserError
        If a column is missing, or there is nothing to draw.
    """
    named = curves.rename({"run": "condition"}) if "run" in curves.columns else curves
    data, _ = tidy(named, ["measure", "condition", "step", "value"], "small multiples")
    data = on_step_axis(data.drop_nulls("value"))
    shown = [name for name in names_of(data, "condition") if runs is None or name in runs]
    if not shown:
        raise UserError(f"small multiples: none of these runs has a value: {', '.join(runs or [])}")
    steps = steps_of(data)
    place = cursor if cursor is not None else steps[-1] if step is None else step
    here = cursor.name if cursor is not None else str(place)
    measures, across = names_of(data, "measure"), min(len(shown), BESIDE)
    width = max(LEAST, min(MOST, ACROSS // across - 24))
    rows, said = [], []
    for i, measure in enumerate(measures):
        of_measure = data.filter(pl.col("measure") == measure)
        panels = []
        for j, name in enumerate(shown):
            low_row = i == len(measures) - 1 and j >= len(shown) - across
            x = step_axis(steps, "training step (log)" if low_row else None, sparse=width < 300)
            layers = _panel(of_measure, name, measure, x, here, percent, first=j % across == 0)
            own = of_measure.filter(pl.col("condition") == name)
            style = ".1%" if is_share(measure, percent) else ".4~g"
            tips = [alt.Tooltip(f"{column}:Q", format=style) for column in _numbers(own)]
            layers.append(upright(place, x))
            if cursor is not None and len(own):
                layers.append(strips(own, x, cursor, tips))
            if i == 0:
                layers.append(step_number(place, x))
            panel = alt.layer(*layers).properties(width=width, height=130)
            if len(shown) > 1 and (i == 0 or len(shown) > BESIDE):
                title = alt.TitleParams(wrapped(name, width, 12, bold=True), fontSize=12, anchor="middle", offset=16)
                panel = panel.properties(title=title)
            panels.append(panel)
        rows.append(alt.concat(*panels, columns=across, spacing=14))
        ends = of_measure.group_by("condition", maintain_order=True).last()
        said.append(f"{measure} at the end of training: {span(ends, is_share(measure, percent))}")
    chart = alt.vconcat(*rows, spacing=16)
    banded = {"low", "high"} <= set(data.columns) and data["low"].is_not_null().any()
    caption = ["blue: the run; grey: the others" if data["condition"].n_unique() > 1 else ""]
    caption += ["band: 95 %" if banded else "no intervals", "click to go to a checkpoint" if cursor is not None else ""]
    return figure(
        chart,
        capital(said[0]),
        [*findings(said), "; ".join(filter(None, caption))],
        f"Runs side by side over training. {'. '.join(map(capital, said))}.",
    )


def _panel(
    data: pl.DataFrame, name: str, measure: str, x: alt.X, here: str, percent: bool | Collection[str], first: bool
) -> list[alt.Chart]:
    columns = _numbers(data)
    low = min(data[column].min() for column in columns if data[column].is_not_null().any())
    high = max(data[column].max() for column in columns if data[column].is_not_null().any())
    reach = (high - low) or abs(high) or 1.0
    scale = alt.Scale(domain=[low - 0.06 * reach, high + 0.14 * reach], nice=False)
    aligned = {"minExtent": 36, "maxExtent": 36} if first else {}  # rows of panels stand under each other
    axis = alt.Axis(format=axis_format(measure, percent), tickCount=4, labels=first, ticks=first, **aligned)
    y = alt.Y("value:Q", title=stacked(measure) if first else None, scale=scale, axis=axis)
    middle = math.sqrt(data["x"].min() * data["x"].max())
    everyone, own = alt.Chart(data), data.filter(pl.col("condition") == name)
    layers = []
    if data["condition"].n_unique() > 1:
        layers.append(everyone.mark_line(color=GREY, strokeWidth=0.8, opacity=0.6).encode(x, y, detail="condition:N"))
    line = alt.Chart(own).encode(x, y)
    at = line.transform_filter(f"datum.step == {here}")
    late = f"{here} > {middle}"  # a number stands on that side of the line where there is room
    beside = {"align": alt.ExprRef(f"{late} ? 'right' : 'left'"), "dx": alt.ExprRef(f"{late} ? -5 : 5")}
    text = alt.Text("value:Q", format=".1%" if is_share(measure, percent) else ".3~g")
    layers += [
        *line_layers(own, x, y, BLUE, opacity=0.22, points=8),
        at.mark_point(color=BLUE, size=55, filled=True, opacity=1),
        at.mark_text(color=TEXT, fontSize=11, fontWeight="bold", **beside).encode(text, y=alt.value(7)),
    ]
    return layers


def _numbers(data: pl.DataFrame) -> list[str]:
    return ["value", *(name for name in ("low", "high") if name in data.columns)]


def told_at(curves: pl.DataFrame, step: int, percent: bool | Collection[str] = False) -> str:
    """What the curves say at a checkpoint, in words: the lowest and the highest run of each measure."""
    here = curves.filter(pl.col("step") == step).drop_nulls("value").rename({"run": "condition"})
    parts = []
    for measure in names_of(here, "measure"):
        rows, share = here.filter(pl.col("measure") == measure), is_share(measure, percent)
        parts.append(
            f"{measure} {number(rows['value'][0], share)}" if len(rows) == 1 else f"{measure} {span(rows, share)}"
        )
    return f"Step {step:,}: {'; '.join(parts) or 'nothing was measured'}."

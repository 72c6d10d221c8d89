"""Several runs side by side, one small panel each, with one line through all of them at the same checkpoint."""

import math
from collections.abc import Collection
from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.charts.axes import Cursor, on_step_axis, step_axis, steps_of
from lmdynamics.charts.conditions import capital, findings, is_share, names_of, number, span, stacked, tidy
from lmdynamics.charts.encodings import head, numbers
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import BLUE, GREY, TEXT, figure
from lmdynamics.errors import UserError

ACROSS, LEAST, MOST = 850, 105, 420  # pixels: all panels of a row, and one of them
BESIDE = 6  # panels in a row
HIGH = 252  # pixels: all rows of panels that a slider moves, which fit on one screen


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
    """
    named = curves.rename({"run": "condition"}) if "run" in curves.columns else curves
    data, _ = tidy(named, ["measure", "condition", "step", "value"], "small multiples")
    data = on_step_axis(data.drop_nulls("value"))
    shown = [name for name in names_of(data, "condition") if runs is None or name in runs]
    if not shown:
        raise UserError(f"small multiples: none of these runs has a value: {', '.join(runs or [])}")
    steps = steps_of(data)
    place = cursor if cursor is not None else steps[-1] if step is None else step
    measures, wide = names_of(data, "measure"), min(len(shown), BESIDE)
    width = max(LEAST, min(MOST, ACROSS // wide - 24))
    count = len(measures) * math.ceil(len(shown) / wide)
    height = 130 if cursor is None else min(130, max(60, HIGH // count))
    columns = _numbers(data)
    rows, said = [], []
    for i, measure in enumerate(measures):
        of_measure, share = data.filter(pl.col("measure") == measure), is_share(measure, percent)
        line, panels = _line(of_measure, measure, share), []
        for j, name in enumerate(shown):
            low_row, first = i == len(measures) - 1 and j >= len(shown) - wide, j % wide == 0
            x = step_axis(steps, "training step (log)" if low_row else None, sparse=width < 300)
            own = of_measure.filter(pl.col("condition") == name)
            layers = _run(of_measure, own, line if first else _inner(line), x, place)
            here = (own, numbers(".1%" if share else ".4~g", *columns)) if len(own) else None
            chart = panel(layers, x, at=place, number=i == 0, here=here, width=width, height=height)
            if len(shown) > 1 and (i == 0 or len(shown) > BESIDE):
                title = wrapped(name, width, 12, bold=True)
                chart = chart.properties(title=head(title, fontWeight="bold", anchor="middle", offset=16))
            panels.append(chart)
        rows.append(alt.concat(*panels, columns=wide, spacing=14))
        ends = of_measure.group_by("condition", maintain_order=True).last()
        said.append(f"{measure} at the end of training: {span(ends, share)}")
    chart = alt.vconcat(*rows, spacing=16)
    banded = {"low", "high"} <= set(data.columns) and data["low"].is_not_null().any()
    caption = ["blue: the run; grey: the others" if data["condition"].n_unique() > 1 else ""]
    caption += ["band: 95 %" if banded else "no intervals", "click to go to a checkpoint" if cursor is not None else ""]
    return figure(
        chart,
        capital(said[0]),
        [*findings(said), caption],
        f"Runs side by side over training. {'. '.join(map(capital, said))}.",
    )


def _line(data: pl.DataFrame, measure: str, share: bool) -> Line:
    """A measure's curves on a scale that holds all of them, with room for a number above."""
    values = pl.concat([data[column].cast(pl.Float64).drop_nulls() for column in _numbers(data)])
    low, high = values.min(), values.max()
    reach = (high - low) or abs(high) or 1.0
    scale = {"domain": [low - 0.06 * reach, high + 0.14 * reach], "nice": False}
    axis = {"format": "%" if share else ",.4~g", "tickCount": 4, "labels": True, "ticks": True}
    aligned = {"minExtent": 36, "maxExtent": 36}  # rows of panels stand under each other
    style = ".1%" if share else ".3~g"
    return Line("value", stacked(measure), scale=scale, axis=axis | aligned, style=style, points=8, shade=0.22)


def _inner(line: Line) -> Line:
    """The same beside another panel, whose axis it shares."""
    axis = {"format": line.axis["format"], "tickCount": 4, "labels": False, "ticks": False}
    return replace(line, title=None, axis=axis)


def _run(everyone: pl.DataFrame, own: pl.DataFrame, line: Line, x: alt.X, place: Cursor | int) -> list[alt.Chart]:
    """All runs in grey, one of them in blue, and its number at a checkpoint."""
    layers, here = [], place.name if isinstance(place, Cursor) else str(place)
    if everyone["condition"].n_unique() > 1:
        grey = alt.Chart(everyone).mark_line(color=GREY, strokeWidth=0.8, opacity=0.6)
        layers.append(grey.encode(x, line.y, detail="condition:N"))
    at = alt.Chart(own).encode(x, line.y).transform_filter(f"datum.step == {here}")
    late = f"{here} > {math.sqrt(everyone['x'].min() * everyone['x'].max())}"  # a number stands where there is room
    side = {"align": alt.ExprRef(f"{late} ? 'right' : 'left'"), "dx": alt.ExprRef(f"{late} ? -5 : 5")}
    text = at.mark_text(color=TEXT, fontSize=11, fontWeight="bold", **side)
    return [
        *layers,
        *line.layers(own, x, ()),
        at.mark_point(color=BLUE, size=55, filled=True, opacity=1),
        text.encode(alt.Text("value:Q", format=line.style), y=alt.value(7)),
    ]


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

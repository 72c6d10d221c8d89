"""A line at one checkpoint, the same in every chart over training, and the click that asks for another."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.charts.theme import BEFORE_ONE, TEXT

JUMP = "jump"  # how selections begin that hold where along the steps a reader clicked, one per panel


def upright(place: alt.Parameter | int, x: alt.X) -> alt.Chart:
    """A line at a step, or at the step that a parameter holds."""
    return _at(place).mark_rule(color=TEXT, strokeWidth=2).encode(x)


def step_number(place: alt.Parameter | int, x: alt.X) -> alt.Chart:
    """The step itself, above the line."""
    text = _at(place).mark_text(color=TEXT, fontWeight="bold", baseline="bottom", dy=-3)
    return text.encode(x, alt.Text("step:Q", format=",d"), y=alt.value(0))


def clickable(frame: pl.DataFrame, x: alt.X, tips: Sequence[alt.Tooltip] = (), panel: int = 0) -> alt.Chart:
    """Over a whole panel, and not to be seen: hovering tells what is at the nearest step, a click goes there.

    `frame`: x (as `on_step_axis` puts it), step, and what `tips` tell; one row per step. Goes on top of a panel,
    which has a number if it is one of several.
    """
    click = alt.selection_point(name=f"{JUMP}_{panel}", on="click", nearest=True, encodings=["x"], clear=False)
    points = alt.Chart(frame).mark_point(opacity=0, size=1)
    return points.encode(x, y=alt.value(1), tooltip=[alt.Tooltip("step:Q", format=",d"), *tips]).add_params(click)


def by_step(rows: pl.DataFrame, name: str, value: str, style: str) -> tuple[pl.DataFrame, list[alt.Tooltip]]:
    """For `clickable`: of rows with x, step, a name and a value, one row per step, and what tells each value."""
    names = rows[name].unique(maintain_order=True).to_list()
    columns = {f"value_{i}": pl.col(value).filter(pl.col(name) == each).first() for i, each in enumerate(names)}
    wide = rows.group_by("step", maintain_order=True).agg(pl.col("x").first(), **columns)
    return wide, [
        alt.Tooltip(f"{column}:Q", title=str(each), format=style) for column, each in zip(columns, names, strict=True)
    ]


def _at(place: alt.Parameter | int) -> alt.Chart:
    step = place.name if isinstance(place, alt.Parameter) else str(place)
    data = alt.Chart(alt.Data(values=[{}]))
    return data.transform_calculate(x=f"max({step}, {BEFORE_ONE})", step=step)

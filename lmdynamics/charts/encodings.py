"""Shared by all figures: checked rows, tooltips, axes of names, panel titles, reference lines."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import same_axis
from lmdynamics.charts.theme import TEXT
from lmdynamics.errors import UserError

STEP_TIP = alt.Tooltip("step:Q", format=",d")
SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+.3~r')"


def need_rows(
    frame: pl.DataFrame, columns: Sequence[str], context: str, no_rows: str, condition: pl.Expr | None = None
) -> pl.DataFrame:
    """The rows of a frame that fulfil `condition` (default: all); `no_rows`: the error message if there are none.

    Raises
    ------
    UserError
        If a column is missing, or there are no rows.
    """
    need_columns(frame, list(columns), context)
    rows = frame if condition is None else frame.filter(condition)
    if rows.is_empty():
        raise UserError(f"{context}: {no_rows}")
    return rows


def measured_step(step: int | None, steps: Sequence[int], context: str) -> int:
    """The step, checked to be among those measured; by default the last one.

    Raises
    ------
    UserError
        If it was not measured.
    """
    if step is not None and step not in steps:
        raise UserError(f"{context}: step {step} was not measured; measured: {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def numbers(style: str, *columns: str) -> list[alt.Tooltip]:
    """Columns of numbers in a tooltip, all in one format."""
    return [alt.Tooltip(f"{column}:Q", format=style) for column in columns]


def names(field: str, order: Sequence[str], *, labels: bool = True, padding: int = 8, **axis) -> alt.Y:
    """A row for each name, in this order; `axis`: further options of the axis."""
    y = alt.Y(f"{field}:N", title=None, sort=list(order)).scale(domain=list(order))
    return y.axis(labels=labels, ticks=False, domain=False, labelPadding=padding, **axis)


def head(text: str | list[str], **options) -> alt.TitleParams:
    """The title of a panel, left-aligned."""
    return alt.TitleParams(text, **{"fontSize": 12, "fontWeight": "normal", "anchor": "start"} | options)


def interval(
    frame: pl.DataFrame, axis: alt.X | alt.Y, *channels, band: tuple[str, str] = ("low", "high"), **mark
) -> list[alt.Chart]:
    """A line along an axis for each interval, from low to high; no layer if no row has an interval."""
    if not set(band) <= set(frame.columns) or (bounded := frame.drop_nulls(band)).is_empty():
        return []
    low, high = band
    end = alt.X2(f"{high}:Q") if isinstance(axis, alt.X) else alt.Y2(f"{high}:Q")
    return [alt.Chart(bounded).mark_rule(**mark).encode(same_axis(axis, low), end, *channels)]


def rule_at(axis: alt.X | alt.Y, value: float, **mark) -> alt.Chart:
    """A line through a whole panel at one value of an axis."""
    field = axis["shorthand"].partition(":")[0]
    rule = alt.Chart(alt.Data(values=[{field: value}])).mark_rule(**{"color": TEXT} | mark)
    return rule.encode(axis)


def zero_line(channel: str = "x", **mark) -> alt.Chart:
    """A line at zero of a panel's x or y axis, whatever its field is."""
    return alt.Chart(alt.Data(values=[{}])).mark_rule(**{"color": TEXT} | mark).encode(**{channel: alt.datum(0)})


def single_row(**fields) -> alt.Chart:
    """A chart of one row, for a single mark."""
    return alt.Chart(alt.Data(values=[fields]))

"""What figures of any kind share: checked rows, tooltips, names along a side, heads of panels, lines across."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import placed
from lmdynamics.charts.theme import TEXT
from lmdynamics.errors import UserError

STEP_TIP = alt.Tooltip("step:Q", format=",d")
SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+.3~r')"


def need_rows(
    frame: pl.DataFrame, columns: Sequence[str], what: str, otherwise: str, where: pl.Expr | None = None
) -> pl.DataFrame:
    """The rows of a frame that has all columns, or those `where` an expression is true; `otherwise`: refused if none.

    Raises
    ------
    UserError
        If a column is missing, or there are no rows.
    """
    need_columns(frame, list(columns), what)
    rows = frame if where is None else frame.filter(where)
    if rows.is_empty():
        raise UserError(f"{what}: {otherwise}")
    return rows


def measured_step(step: int | None, steps: Sequence[int], what: str) -> int:
    """A step that is among those measured; without one, the last.

    Raises
    ------
    UserError
        If it was not measured.
    """
    if step is not None and step not in steps:
        raise UserError(f"{what}: step {step} was not measured; measured: {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def numbers(style: str, *columns: str) -> list[alt.Tooltip]:
    """Columns of numbers in a tooltip, all in one format."""
    return [alt.Tooltip(f"{column}:Q", format=style) for column in columns]


def names(field: str, order: Sequence[str], *, labels: bool = True, padding: int = 8, **axis) -> alt.Y:
    """A row for each name, in this order; `axis`: further options of the axis."""
    y = alt.Y(f"{field}:N", title=None, sort=list(order)).scale(domain=list(order))
    return y.axis(labels=labels, ticks=False, domain=False, labelPadding=padding, **axis)


def head(text: str | list[str], **options) -> alt.TitleParams:
    """The head of a panel, at its left end."""
    return alt.TitleParams(text, **{"fontSize": 12, "fontWeight": "normal", "anchor": "start"} | options)


def interval(
    frame: pl.DataFrame, axis: alt.X | alt.Y, *channels, band: tuple[str, str] = ("low", "high"), **mark
) -> list[alt.Chart]:
    """A line from the low to the high end of each interval along an axis, or nothing where no row has one."""
    if not set(band) <= set(frame.columns) or (known := frame.drop_nulls(band)).is_empty():
        return []
    low, high = band
    other = alt.X2(f"{high}:Q") if isinstance(axis, alt.X) else alt.Y2(f"{high}:Q")
    return [alt.Chart(known).mark_rule(**mark).encode(placed(axis, low), other, *channels)]


def across(axis: alt.X | alt.Y, value: float, **mark) -> alt.Chart:
    """A line through a whole panel at one value of an axis."""
    field = axis["shorthand"].partition(":")[0]
    rule = alt.Chart(alt.Data(values=[{field: value}])).mark_rule(**{"color": TEXT} | mark)
    return rule.encode(axis)


def zero_line(channel: str = "x", **mark) -> alt.Chart:
    """A line at zero of a panel's x or y axis, whatever its field is."""
    return alt.Chart(alt.Data(values=[{}])).mark_rule(**{"color": TEXT} | mark).encode(**{channel: alt.datum(0)})


def one(**fields) -> alt.Chart:
    """A chart of one row, for a single mark."""
    return alt.Chart(alt.Data(values=[fields]))

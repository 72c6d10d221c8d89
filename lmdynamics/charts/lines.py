"""Curves over steps: lines, bands, points and tooltips for a column with its scale, series and interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import polars as pl

from lmdynamics.analysis.onsets import Onset
from lmdynamics.charts.axes import Cursor, log_ticks, onset_bands, same_axis, step_line, step_number, strips
from lmdynamics.charts.encodings import STEP_TIP, numbers
from lmdynamics.charts.text import text_width
from lmdynamics.charts.theme import BLUE, GREY, HEIGHT, TEXT, WIDTH


@dataclass(frozen=True)
class Line:
    """Curves over steps: the column of their values, its title and scale, and the style of the lines.

    A row without an interval has no band; without the columns of `band`, or with None, no row has one.
    """

    value: str
    title: str | Sequence[str] | None = None  # with the unit
    series: str | None = None  # column with one curve for each value; without it, all rows are one curve
    colours: str | Mapping[str, str] = BLUE  # of the curve, or of each series
    dashes: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    band: tuple[str, str] | None = ("low", "high")  # columns of the interval
    percent: bool = False
    style: str = ".3f"  # of numbers in tooltips
    scale: Mapping[str, Any] = field(default_factory=lambda: {"zero": False})
    axis: Mapping[str, Any] = field(default_factory=dict)
    width: float | Mapping[str, float] = 2  # of the line, or of each series
    points: int = 0  # size in square pixels; 0: none
    shade: float = 0.2  # opacity of the band
    legend: bool | None = None  # by default where there are several series
    columns: int = 4  # of the legend, as far as they fit

    @property
    def y(self) -> alt.Y:
        """The axis of the values."""
        axis = {"format": "%", **self.axis} if self.percent else self.axis
        return alt.Y(f"{self.value}:Q", title=self.title, scale=alt.Scale(**self.scale), axis=alt.Axis(**axis))

    @property
    def colour(self) -> alt.Color | None:
        """The colour of each series, with its legend."""
        if isinstance(self.colours, str):
            return None
        return colour_by(self.series, self.colours, self.columns, self.legend)

    def tips(self, *ends: str) -> list[alt.Tooltip | str]:
        """The tooltip of a row: its series, step and value, and the `ends` of its interval."""
        series = [f"{self.series}:N"] if self.series else []
        return [*series, STEP_TIP, *numbers(".1%" if self.percent else self.style, self.value, *ends)]

    def layers(
        self, frame: pl.DataFrame | alt.InlineData, x: alt.X, tips: Sequence | None = None, **channels
    ) -> list[alt.Chart]:
        """Layers of one panel: a band, a line, and points.

        `frame`: x (from `on_step_axis`) and the line's columns, or a data set that receives such rows later.
        `tips`: replace the line's own; `channels`: more encodings, such as `detail`.
        """
        constant, colour = ({"color": self.colours}, []) if self.colour is None else ({}, [self.colour])
        base, layers = alt.Chart(frame).encode(x, self.y, *colour, **channels), []
        streamed = isinstance(frame, alt.InlineData)  # its rows will all have intervals
        band = self.band if self.band and (streamed or set(self.band) <= set(frame.columns)) else ()
        bounded, total = (1, 1) if streamed else (frame.drop_nulls(band or None).height, len(frame))
        tips = self.tips(*band) if tips is None else list(tips)
        if band and bounded:
            finite = " && ".join(f"isValid(datum['{end}'])" for end in band)
            area = base if bounded == total else base.transform_filter(finite)
            area = area.mark_area(opacity=self.shade, **constant)
            layers.append(area.encode(same_axis(self.y, band[0]), alt.Y2(f"{band[1]}:Q")))
        fixed, by_series = self._line_style()
        layers.append(base.mark_line(**constant, **fixed).encode(*by_series, tooltip=tips))
        if self.points:
            layers.append(base.mark_point(size=self.points, filled=True, opacity=1, **constant).encode(tooltip=tips))
        return layers

    def _line_style(self) -> tuple[dict[str, Any], list[alt.StrokeDash | alt.StrokeWidth]]:
        """Dash and width of the line: mark options if all series share them, otherwise encodings by series."""
        fixed, by_series = {}, []
        for channel, style in ((alt.StrokeDash, self.dashes), (alt.StrokeWidth, self.width)):
            dash = channel is alt.StrokeDash
            if isinstance(style, Mapping):
                scale = alt.Scale(domain=list(style), range=[list(v) if dash else v for v in style.values()])
                legend = self.colour["legend"] if dash else None
                by_series.append(channel(field=self.series, type="nominal", title=None, scale=scale, legend=legend))
            elif style is not None:
                fixed["strokeDash" if dash else "strokeWidth"] = list(style) if dash else style
        return fixed, by_series


def log_axis(low: float, high: float, max_ticks: int = 7, style: str = "~g") -> dict[str, Mapping]:
    """`scale` and `axis` of a `Line` on a logarithmic axis from `low` to `high`."""
    return {"scale": log_scale(low, high), "axis": {"values": log_ticks(low, high, max_ticks), "format": style}}


def log_scale(low: float, high: float) -> dict[str, Any]:
    """A logarithmic scale that ends at `low` and `high`."""
    return {"type": "log", "domain": [low, high], "nice": False}


def panel(
    layers: Sequence[alt.Chart],
    x: alt.X,
    *,
    onsets: Sequence[Onset] = (),
    onset_labels: bool = True,
    position: Cursor | int | None = None,
    number: bool = False,
    hover: tuple[pl.DataFrame, Sequence[alt.Tooltip]] | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> alt.LayerChart:
    """Curves over the step axis `x`, with bands for onsets, and a vertical line at the checkpoint `position`.

    `number`: whether the step is written above that line. `hover`: one row per step, and its tooltips; used if
    `position` is a cursor, which a click then moves.
    """
    marks = [] if position is None else [step_line(position, x), *([step_number(position, x)] if number else [])]
    areas = [strips(hover[0], x, position, hover[1])] if hover is not None and isinstance(position, Cursor) else []
    bands = onset_bands(onsets, x, labels=onset_labels)
    return alt.layer(*bands, *layers, *marks, *areas).properties(width=width, height=height)


def colour_by(column: str, colours: Mapping[str, str], columns: int = 4, legend: bool | None = None) -> alt.Color:
    """Colour by a column, with a legend below (by default if there are several colours).

    The legend has as many of the `columns` as fit.
    """
    longest = max((text_width(name, 11) for name in colours), default=0)
    columns = max(1, min(columns, int(WIDTH // (longest + 30))))
    key = alt.Legend(
        orient="bottom", columns=columns, columnPadding=10 + longest / 6,  # room for a wider font
        symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1,
    )  # fmt: skip
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    shown = len(colours) > 1 if legend is None else legend
    return alt.Color(field=column, type="nominal", title=None, scale=scale, legend=key if shown else None)


def levels(
    values: Mapping[str, float],
    y: alt.Y,
    *,
    right: bool = False,
    labels: bool = True,
    dash: Sequence[int] = (6, 4),
    min_distance: float = 0.0,
) -> list[alt.Chart]:
    """Reference values as dashed lines across a panel, with names above the lines or, if `right`, at its right side.

    There, if two values differ by less than `min_distance`, the upper name is placed above its line.
    """
    if not values:
        return []
    column = y["shorthand"].partition(":")[0]
    rows = pl.DataFrame({"name": list(values), column: [float(value) for value in values.values()]}).sort(column)
    rules = [alt.Chart(rows).mark_rule(color=GREY, strokeDash=list(dash), strokeWidth=1.5).encode(y)]
    if not labels:
        return rules
    if not right:
        text = alt.Chart(rows).mark_text(color=TEXT, align="left", baseline="bottom", dx=4, dy=-3, fontSize=11)
        return [*rules, text.encode(y, alt.Text("name:N"), x=alt.value(0))]
    close = rows[column].diff().fill_null(min_distance) < min_distance
    parts = ((rows.filter(close), -6), (rows.filter(~close), 3 if close.any() else 0))
    return rules + [
        alt.Chart(part)
        .mark_text(color=TEXT, align="left", dx=6, dy=dy, fontSize=10)
        .encode(y, alt.Text("name:N"), x=alt.value("width"))
        for part, dy in parts
        if len(part)
    ]

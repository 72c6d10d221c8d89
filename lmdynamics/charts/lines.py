"""Curves over steps: a figure names column, scale, series and band, and gets lines, bands, points and tooltips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import polars as pl

from lmdynamics.analysis.onsets import Onset
from lmdynamics.charts.axes import Cursor, log_ticks, onset_bands, placed, step_number, strips, upright
from lmdynamics.charts.encodings import STEP_TIP, numbers
from lmdynamics.charts.text import text_width
from lmdynamics.charts.theme import BLUE, GREY, HEIGHT, TEXT, WIDTH


@dataclass(frozen=True)
class Line:
    """What curves show over steps: the column of their values, what it is called, its scale, and how they look.

    A row without an interval has no band; without the columns of `band`, or with None, there is none at all.
    """

    value: str
    title: str | Sequence[str] | None = None  # with the unit
    series: str | None = None  # column whose values have a curve each; without it, all rows are one curve
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
        """What the tooltip of a row tells: its series, step and value, and the `ends` of its interval."""
        named = [f"{self.series}:N"] if self.series else []
        return [*named, STEP_TIP, *numbers(".1%" if self.percent else self.style, self.value, *ends)]

    def layers(
        self, frame: pl.DataFrame | alt.InlineData, x: alt.X, tips: Sequence | None = None, **channels
    ) -> list[alt.Chart]:
        """A band behind, a line, and points on it: layers of one panel.

        `frame`: x (as `on_step_axis` puts it) and the columns that are named, or data of these columns that are yet to
        come. `tips`: instead of the line's own; `channels`: further ones, as `detail`.
        """
        own, by = ({"color": self.colours}, []) if self.colour is None else ({}, [self.colour])
        base, layers = alt.Chart(frame).encode(x, self.y, *by, **channels), []
        later = isinstance(frame, alt.InlineData)  # of which every row will have an interval
        ends = self.band if self.band and (later or set(self.band) <= set(frame.columns)) else ()
        known, rows = (1, 1) if later else (frame.drop_nulls(ends or None).height, len(frame))
        tips = self.tips(*ends) if tips is None else list(tips)
        if ends and known:
            both = " && ".join(f"isValid(datum['{end}'])" for end in ends)
            area = base if known == rows else base.transform_filter(both)
            area = area.mark_area(opacity=self.shade, **own)
            layers.append(area.encode(placed(self.y, ends[0]), alt.Y2(f"{ends[1]}:Q")))
        look, looks = self._looks()
        layers.append(base.mark_line(**own, **look).encode(*looks, tooltip=tips))
        if self.points:
            layers.append(base.mark_point(size=self.points, filled=True, opacity=1, **own).encode(tooltip=tips))
        return layers

    def _looks(self) -> tuple[dict[str, Any], list[alt.StrokeDash | alt.StrokeWidth]]:
        """Dash and width of the line: of its mark if all series share them, and channels if each has its own."""
        look, looks = {}, []
        for channel, given in ((alt.StrokeDash, self.dashes), (alt.StrokeWidth, self.width)):
            dash = channel is alt.StrokeDash
            if isinstance(given, Mapping):
                scale = alt.Scale(domain=list(given), range=[list(each) if dash else each for each in given.values()])
                legend = self.colour["legend"] if dash else None
                looks.append(channel(field=self.series, type="nominal", title=None, scale=scale, legend=legend))
            elif given is not None:
                look["strokeDash" if dash else "strokeWidth"] = list(given) if dash else given
        return look, looks


def log_axis(low: float, high: float, most: int = 7, style: str = "~g") -> dict[str, Mapping]:
    """`scale` and `axis` of a `Line` on a logarithmic axis from `low` to `high`."""
    return {"scale": log_scale(low, high), "axis": {"values": log_ticks(low, high, most), "format": style}}


def log_scale(low: float, high: float) -> dict[str, Any]:
    """A logarithmic scale that ends at `low` and `high`."""
    return {"type": "log", "domain": [low, high], "nice": False}


def panel(
    layers: Sequence[alt.Chart],
    x: alt.X,
    *,
    onsets: Sequence[Onset] = (),
    named: bool = True,
    at: Cursor | int | None = None,
    number: bool = False,
    here: tuple[pl.DataFrame, Sequence[alt.Tooltip]] | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> alt.LayerChart:
    """Curves over the step axis `x`, onsets behind them (`named`: with labels), and a line at the checkpoint `at`.

    `number`: the checkpoint's step above that line. `here`: one row per step and what they tell where a pointer is,
    if `at` is a cursor, which a click then moves.
    """
    marks = [] if at is None else [upright(at, x), *([step_number(at, x)] if number else [])]
    over = [strips(here[0], x, at, here[1])] if here is not None and isinstance(at, Cursor) else []
    behind = onset_bands(onsets, x, labels=named)
    return alt.layer(*behind, *layers, *marks, *over).properties(width=width, height=height)


def colour_by(column: str, colours: Mapping[str, str], columns: int = 4, legend: bool | None = None) -> alt.Color:
    """A line's or a point's colour by a column, with a legend below: by default where there are several colours.

    The legend has as many of the `columns` as fit.
    """
    longest = max((text_width(name, 11) for name in colours), default=0)
    columns = max(1, min(columns, int(WIDTH // (longest + 30))))
    key = alt.Legend(
        orient="bottom", columns=columns, columnPadding=10 + longest / 6,  # as far as a wider font reaches
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
    apart: float = 0.0,
) -> list[alt.Chart]:
    """Values to compare with, dashed across a panel, their names above the line, or `right` of the panel.

    Of two names there whose values are less than `apart` from each other, the upper one stands above its line.
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
    near = rows[column].diff().fill_null(apart) < apart
    parts = ((rows.filter(near), -6), (rows.filter(~near), 3 if near.any() else 0))
    return rules + [
        alt.Chart(part)
        .mark_text(color=TEXT, align="left", dx=6, dy=dy, fontSize=10)
        .encode(y, alt.Text("name:N"), x=alt.value("width"))
        for part, dy in parts
        if len(part)
    ]

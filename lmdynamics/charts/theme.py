"""The style of every figure: one palette, one theme, one layout of titles.

Colours are Okabe & Ito's (2008), distinguishable with any common kind of colour blindness. Backgrounds are transparent
and text has the colour of the page's text, so that a figure is readable on a light page and on a dark one. No label
has its own colour: none of these colours, nor any grey, has a contrast of 4.5 on both.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import altair as alt

from lmdynamics.charts.text import MIN_WIDTH, Value, title_lines, width_of, wrapped
from lmdynamics.errors import UserError

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY = "#8c8c8c"
BROWN, CHARCOAL = "#8b5a2b", "#5a5a5a"  # Okabe & Ito's yellow and black are invisible on a white or a black page
CONDITIONS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, BROWN, CHARCOAL)
TEXT = "currentColor"  # the colour of the page's text
STILL_TEXT = "#7a7a7a"  # in a picture, which does not know its page: contrast 4.3 on white and on #111
SEQUENTIAL = "viridis"
RAMP = ("#e3a02c", "#dd7a3c", "#c9505f", "#a0478f", "#6f5fb4", "#3f7fc4")  # ordered, visible on white and on black
OPPOSED = (VERMILION, "#e9e9e6", BLUE)  # below zero, zero, above
WIDTH, HEIGHT = 560, 260
TITLE = 15  # pixels

SOURCES = {  # a source of UAS: (its label in a legend, colour, dash, line width)
    "per_relation": ("the best head of each relation", BLUE, [1, 0], 2.5),
    "per_relation_same": ("the same, scored where chosen (biased up)", SKY, [1, 0], 1.0),
    "offset": ("control: the best fixed offset of each (position alone)", GREY, [6, 4], 1.8),
    "shuffled": ("control: the same on shuffled trees", ORANGE, [2, 2], 1.8),
    "single_head": ("one head for all words", PURPLE, [1, 0], 1.8),
    "single_offset": ("control: one fixed offset for all words", PURPLE, [6, 4], 1.2),
}
ONSETS = {"structure": VERMILION, "structure beyond position": GREEN, "capabilities": PURPLE, "loss drop": GREY}


def condition_colours(present: Iterable[str], order: Sequence[str] | None = None) -> dict[str, str]:
    """A colour for each condition, by first appearance; with `order`, as in any other figure of that order.

    Raises
    ------
    UserError
        If there are more conditions than distinguishable colours, or one that `order` does not name.
    """
    present = list(dict.fromkeys(present))
    names = present if order is None else list(dict.fromkeys(order))
    if unknown := [name for name in present if name not in names]:
        raise UserError(
            f"the frame has the condition {unknown[0]!r}, conditions= names only {', '.join(names)}; add it"
        )
    if len(names) > len(CONDITIONS):
        raise UserError(f"{len(names)} conditions, and only {len(CONDITIONS)} distinguishable colours; choose fewer")
    return {name: colour for name, colour in zip(names, CONDITIONS, strict=False) if name in present}


def ramp(names: Iterable[str]) -> dict[str, str]:
    """A colour for each of some ordered names, such as sizes or frequency groups: from orange over purple to blue."""
    names = list(dict.fromkeys(names))
    if len(names) == 1:
        return {names[0]: BLUE}
    positions = [i * (len(RAMP) - 1) / (len(names) - 1) for i in range(len(names))]
    return {
        name: _mix(RAMP[int(position)], RAMP[min(int(position) + 1, len(RAMP) - 1)], position % 1)
        for name, position in zip(names, positions, strict=True)
    }


def _mix(start: str, end: str, share: float) -> str:
    parts = [(int(start[i : i + 2], 16), int(end[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in parts)


def figure(
    chart: alt.TopLevelMixin,
    title: str | Sequence[str | Value],
    caption: str | Sequence[str | Sequence[str]],
    description: str,
):
    """The finished chart with title, caption, description (for screen readers) and theme.

    Title and caption are wrapped to the chart's width. Each text of a caption starts a new line; the non-empty parts
    of a text are joined by semicolons. A title of several parts is one text, with values of the chart's parameters.
    """
    width = max(MIN_WIDTH, width_of(chart))
    texts = [caption] if isinstance(caption, str) else caption
    texts = [text if isinstance(text, str) else "; ".join(filter(None, text)) for text in texts]
    lines = [line for text in texts for line in wrapped(text, width)]
    chart = chart.copy(deep=False)  # Altair's methods would copy the whole chart for each part of the theme
    chart.title = alt.TitleParams(title_lines(title, width, TITLE), subtitle=lines, anchor="start")
    chart.description, chart.config = description, THEME
    return chart


THEME = alt.Config(
    background="transparent",
    font="sans-serif",
    autosize=alt.AutoSizeParams(type="pad"),
    view=alt.ViewConfig(stroke=None),
    axis=alt.AxisConfig(
        labelColor=TEXT, titleColor=TEXT, domainColor=TEXT, tickColor=TEXT, gridColor="#88888833",
        labelFontSize=11, titleFontSize=12, titleFontWeight="normal", titlePadding=8, labelFlush=False, labelLimit=260,
    ),
    title=alt.TitleConfig(
        color=TEXT, subtitleColor=TEXT, fontSize=TITLE, subtitleFontSize=12, offset=12, subtitlePadding=5
    ),
    legend=alt.LegendConfig(
        labelColor=TEXT, titleColor=TEXT, labelFontSize=11, titleFontSize=11, titleFontWeight="normal",
        labelLimit=320, columnPadding=24, symbolSize=250,
    ),
    header=alt.HeaderConfig(labelColor=TEXT, titleColor=TEXT, labelFontSize=12),
    text=alt.MarkConfig(color=TEXT),
)  # fmt: skip


class Chart(Protocol):
    """A chart of Altair, or several joined in one: whatever has a specification in Vega-Lite."""

    def to_dict(self, **options: Any) -> dict[str, Any]: ...


def specification(chart: Chart, **options) -> dict:
    """The chart as Vega-Lite, without Altair's limit on rows: a map has one for each relation and attention head."""
    with alt.data_transformers.disable_max_rows():
        return chart.to_dict(**options)

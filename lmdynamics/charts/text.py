"""The width of text, so that titles are no wider than their charts and no picture cuts a label.

A picture is measured in one font and shown in another. Widths are therefore those of DejaVu Sans, the widest of the
fonts that browsers use for "sans-serif": text that fits in it fits in Helvetica, Arial or Liberation Sans, too.
"""

import cmath
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import altair as alt

ADVANCES = {  # of DejaVu Sans, in font sizes, each class as wide as its widest character
    0.32: "'ijlIJ ,.·‘’",
    0.42: "!/:;|\\()[]-frt²³",
    0.56: '"*?_`cszL–“”‖°',
    0.62: "aeokvxyFPTYλθé",
    0.64: "bdghnpquESβμ0123456789$√",
    0.70: "ABKCRVXZΔ∇Σα",
    0.79: "DGHNOQU&",
    0.84: "w#+<=>^~−→←×≈±≥≤≠∞",
    1.00: "mMW%@—…∅",
}
ADVANCE = {character: advance for advance, characters in ADVANCES.items() for character in characters}
BOLD = 1.14  # width of bold words, relative to regular ones
MIN_WIDTH = 320.0  # pixels: narrower text is hard to read, even over a smaller chart
STAND_IN = 0xE000  # the first private-use character
UNBREAKABLE = re.compile(r" (?=[%→=\d−\ue000-\uf8ff])|(?<=[→=]) ")  # "linear 30 → 15 %" and "λ = 1" stay on one line


@dataclass(frozen=True)
class Value:
    """A variable part of a title: a Vega expression that returns text, and the longest such text."""

    expression: str
    longest: str = "1,000,000"


def text_width(text: str, size: float = 12, bold: bool = False) -> float:
    """Maximum width of a line in pixels; unknown characters count as wide."""
    return size * (BOLD if bold else 1) * sum(ADVANCE.get(character, 1.0) for character in text)


def wrapped(
    text: str, width: float, size: float = 12, bold: bool = False, stand_ins: Mapping[int, str] | None = None
) -> list[str]:
    """A text in as few lines of at most `width` pixels as possible, of similar length; longer words are broken.

    `stand_ins`: replacements of some characters, as in `str.translate`.
    """

    def line_width(line: str) -> float:
        return text_width(line.translate(stand_ins or {}), size, bold)

    glued = (word.replace("\0", " ") for word in UNBREAKABLE.sub("\0", text).split())
    words = [word for pair in glued for word in ([pair] if line_width(pair) <= width else pair.split())]
    lines, longest = _filled(words, width, line_width), min(width, max(map(line_width, words), default=0))
    balanced = (_filled(words, max(longest, share * width), line_width) for share in (0.6, 0.7, 0.8, 0.9))
    return next((candidate for candidate in balanced if len(candidate) == len(lines)), lines)


def _filled(words: Sequence[str], width: float, line_width: Callable[[str], float]) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and line_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while line_width(word) > width and len(word) > 1:
            fitting = max((n for n in range(1, len(word)) if line_width(word[:n]) <= width), default=1)
            lines.append(word[:fitting])
            word = word[fitting:]
        lines.append(word)
    return lines


def title_lines(title: str | Sequence[str | Value], width: float, size: float) -> list[str] | alt.ExprRef:
    """A bold title in lines; a title with variable parts is wrapped for the longest texts."""
    if isinstance(title, str):
        return wrapped(title, width, size, bold=True)
    values = {chr(STAND_IN + i): part for i, part in enumerate(title) if isinstance(part, Value)}
    text = "".join(part if isinstance(part, str) else chr(STAND_IN + i) for i, part in enumerate(title))
    stand_ins = {ord(sign): value.longest for sign, value in values.items()}
    lines = [
        " + ".join(
            values[part].expression if part in values else quoted(part)
            for part in re.split(f"([{''.join(values)}])", line)
        )
        for line in wrapped(text, width, size, True, stand_ins)
    ]
    return alt.ExprRef(f"[{', '.join(lines)}]")


def quoted(text: str) -> str:
    """Text as a string in a Vega expression; `show` would not see characters that JSON had escaped."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def width_of(chart: alt.TopLevelMixin) -> float:
    """Minimum width of a chart in pixels, in any font: its panels side by side, and the labels at their left."""
    return _across(chart) + _labels(chart)


def _across(chart: alt.TopLevelMixin) -> float:
    if isinstance(chart, alt.VConcatChart):
        return max(map(_across, chart.vconcat))
    if isinstance(chart, alt.FacetChart):
        columns = _defined(chart.columns, 1)
        panels = [chart.spec] * columns
    elif isinstance(chart, alt.HConcatChart | alt.ConcatChart):
        panels = chart.hconcat if isinstance(chart, alt.HConcatChart) else chart.concat
        columns = _defined(getattr(chart, "columns", alt.Undefined), len(panels))
    else:
        return float(_defined(chart.width, 200))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    return max(sum(map(_across, row)) + _defined(chart.spacing, 20) * (len(row) - 1) for row in rows)


def _labels(chart: alt.TopLevelMixin) -> float:
    """Width of the labels of the first panel's vertical axis: names of rows, or a digit."""
    for parts in ("vconcat", "hconcat", "concat", "layer"):
        if isinstance(panels := getattr(chart, parts, None), list):
            return max(map(_labels, panels if parts == "layer" else panels[:1]), default=0)
    if isinstance(chart, alt.FacetChart):
        return _labels(chart.spec)
    y = getattr(chart.encoding, "y", None)
    y = y.to_dict(validate=False) if isinstance(y, alt.Y) else {"axis": None}
    if y.get("axis", {}) is None:
        return 0
    names = y["sort"] if isinstance(y.get("sort"), list) else ["0"]
    longest = 0.8 * max((text_width(str(name), 11) for name in names), default=0)  # in a narrow font
    return 12 + min(longest, y.get("axis", {}).get("labelLimit") or longest)


def _defined(value, default):
    return default if value is alt.Undefined else value


def with_room(svg: str) -> str:
    """The SVG picture with wider margins where a text would exceed them in a wider font."""
    head = re.search(r'width="([\d.]+)" height="([\d.]+)" viewBox="0 0 [\d.]+ [\d.]+"', svg)
    width, height = map(float, head.groups())
    corners = [0j, complex(width, height), *_ends(ElementTree.fromstring(svg), 0j)]
    left, right = math.floor(min(corner.real for corner in corners)), math.ceil(max(corner.real for corner in corners))
    top, bottom = math.floor(min(corner.imag for corner in corners)), math.ceil(max(corner.imag for corner in corners))
    width, height = right - left, bottom - top
    box = f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}"'
    return svg[: head.start()] + box + svg[head.end() :]


def _ends(element: ElementTree.Element, origin: complex) -> Iterator[complex]:
    """Start and end of the texts of an SVG element: x as the real part, y as the imaginary part."""
    transform = re.match(r"translate\(([^,]+),([^)]+)\)(?: rotate\(([^),]+))?", element.get("transform", ""))
    if transform:
        origin += complex(float(transform[1]), float(transform[2]))
    if element.tag.endswith("}text"):
        size = float(element.get("font-size").removesuffix("px"))
        lines = [line.text or "" for line in element] or [element.text or ""]
        width = max(text_width(line, size, element.get("font-weight") == "bold") for line in lines)
        offset = width * {"middle": 0.5, "end": 1}.get(element.get("text-anchor"), 0)
        direction = cmath.rect(1, math.radians(float(transform[3] or 0) if transform else 0))
        yield origin - offset * direction
        yield origin + (width - offset) * direction
    for child in element:
        yield from _ends(child, origin)

"""How wide text is, so that titles end where their charts do and no picture cuts a label.

A picture is measured in one font and shown in another. Widths are therefore those of DejaVu Sans, the widest of the
fonts that browsers take for "sans-serif": what fits in it fits in Helvetica, Arial or Liberation Sans, too.
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
BOLD = 1.14  # times as wide: of whole words, not of each character
LEAST = 320.0  # pixels: narrower columns of text are not readable, even over a smaller chart
STAND_IN = 0xE000  # the first of the characters without a meaning of their own
UNBREAKABLE = re.compile(r" (?=[%→=\d−\ue000-\uf8ff])|(?<=[→=]) ")  # "linear 30 → 15 %" and "λ = 1" stay on one line


@dataclass(frozen=True)
class Value:
    """What a title takes from the chart's parameters: a Vega expression of text, and the longest that it becomes."""

    expression: str
    longest: str = "1,000,000"


def text_width(text: str, size: float = 12, bold: bool = False) -> float:
    """Pixels that a line takes at most; a character that is not known counts as a wide one."""
    return size * (BOLD if bold else 1) * sum(ADVANCE.get(character, 1.0) for character in text)


def wrapped(
    text: str, width: float, size: float = 12, bold: bool = False, stand_ins: Mapping[int, str] | None = None
) -> list[str]:
    """A text in as few lines of at most `width` pixels as it takes, about evenly long; a word that is longer is broken.

    `stand_ins`: what some characters stand for, as in `str.translate`.
    """

    def measured(line: str) -> float:
        return text_width(line.translate(stand_ins or {}), size, bold)

    glued = (word.replace("\0", " ") for word in UNBREAKABLE.sub("\0", text).split())
    words = [word for pair in glued for word in ([pair] if measured(pair) <= width else pair.split())]
    lines, longest = _filled(words, width, measured), min(width, max(map(measured, words), default=0))
    narrower = (_filled(words, max(longest, share * width), measured) for share in (0.6, 0.7, 0.8, 0.9))
    return next((even for even in narrower if len(even) == len(lines)), lines)


def _filled(words: Sequence[str], width: float, measured: Callable[[str], float]) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and measured(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while measured(word) > width and len(word) > 1:
            most = max((n for n in range(1, len(word)) if measured(word[:n]) <= width), default=1)
            lines.append(word[:most])
            word = word[most:]
        lines.append(word)
    return lines


def title_lines(title: str | Sequence[str | Value], width: float, size: float) -> list[str] | alt.ExprRef:
    """A bold title in lines; one that follows parameters has the lines that its longest text needs."""
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
    """Text as a string of a Vega expression; JSON would hide from `show` what no SVG may hold."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def width_of(chart: alt.TopLevelMixin) -> float:
    """Pixels that a chart takes at least, in any font: its panels side by side, and the labels at their left."""
    return _across(chart) + _labels(chart)


def _across(chart: alt.TopLevelMixin) -> float:
    if isinstance(chart, alt.VConcatChart):
        return max(map(_across, chart.vconcat))
    if isinstance(chart, alt.FacetChart):
        columns = _given(chart.columns, 1)
        panels = [chart.spec] * columns
    elif isinstance(chart, alt.HConcatChart | alt.ConcatChart):
        panels = chart.hconcat if isinstance(chart, alt.HConcatChart) else chart.concat
        columns = _given(getattr(chart, "columns", alt.Undefined), len(panels))
    else:
        return float(_given(chart.width, 200))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    return max(sum(map(_across, row)) + _given(chart.spacing, 20) * (len(row) - 1) for row in rows)


def _labels(chart: alt.TopLevelMixin) -> float:
    """What the labels of the first panel's vertical axis take: names of rows, or a digit."""
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


def _given(value, otherwise):
    return otherwise if value is alt.Undefined else value


def with_room(svg: str) -> str:
    """An SVG picture with more room at its sides where a text would reach beyond them in a wider font."""
    head = re.search(r'width="([\d.]+)" height="([\d.]+)" viewBox="0 0 [\d.]+ [\d.]+"', svg)
    width, height = map(float, head.groups())
    ends = [0j, complex(width, height), *_ends(ElementTree.fromstring(svg), 0j)]
    left, right = math.floor(min(end.real for end in ends)), math.ceil(max(end.real for end in ends))
    top, bottom = math.floor(min(end.imag for end in ends)), math.ceil(max(end.imag for end in ends))
    width, height = right - left, bottom - top
    box = f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}"'
    return svg[: head.start()] + box + svg[head.end() :]


def _ends(element: ElementTree.Element, at: complex) -> Iterator[complex]:
    """Where the texts of an SVG element begin and end: across as real, down as imaginary parts."""
    moved = re.match(r"translate\(([^,]+),([^)]+)\)(?: rotate\(([^),]+))?", element.get("transform", ""))
    if moved:
        at += complex(float(moved[1]), float(moved[2]))
    if element.tag.endswith("}text"):
        size = float(element.get("font-size").removesuffix("px"))
        lines = [line.text or "" for line in element] or [element.text or ""]
        width = max(text_width(line, size, element.get("font-weight") == "bold") for line in lines)
        before = width * {"middle": 0.5, "end": 1}.get(element.get("text-anchor"), 0)
        along = cmath.rect(1, math.radians(float(moved[3] or 0) if moved else 0))
        yield at - before * along
        yield at + (width - before) * along
    for child in element:
        yield from _ends(child, at)

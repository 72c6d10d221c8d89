"""Text on a page: data are shown as text, never interpreted as HTML or as a formula."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from itertools import chain, repeat
from typing import Any

LITERAL = "mathjax_ignore tex2jax_ignore"  # this class stops a notebook from typesetting the text between two "$"
MOVING = "application/vnd.lmdynamics.moving+json"  # type of an output: views with one slider
STILL = {"lmdynamics": {"still": True}}  # metadata of a picture that repeats moving views
LETTER = 0.55  # em: width of a letter; "ch" would be wider in a bold header
CELL = "padding:0 1.2em 0 0;text-align:left"
HEADER_CELL = "padding:0 1.2em .45em 0;text-align:left"


def json_in_script(content: Any) -> str:
    """JSON for a script element of a page; an end tag within a text does not end the element."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def html_table(header: Sequence[object], rows: Iterable[Sequence[object]], widths: Sequence[int] = ()) -> str:
    """A small table. `widths`: of its columns, in characters, so that the columns of several tables align."""
    min_widths = [f";min-width:{width * LETTER:.1f}em" for width in widths]

    def cells(tag: str, texts: Sequence[object]) -> str:
        elements = (
            f"<{tag} style='{HEADER_CELL if tag == 'th' else CELL}{style}'>{escape(str(text))}</{tag}>"
            for text, style in zip(texts, chain(min_widths, repeat("")), strict=False)
        )
        return f"<tr style='background:none'>{''.join(elements)}</tr>"  # no stripes: a table may be one row of several

    lines = [cells("th", header)] if header else []
    return f"<table class='{LITERAL}'>{''.join([*lines, *(cells('td', row) for row in rows)])}</table>"

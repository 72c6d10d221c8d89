"""Text on a page: data are shown as text, never interpreted as HTML or as a formula."""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import chain, repeat
from typing import Any

LITERAL = "mathjax_ignore tex2jax_ignore"  # this class stops a notebook from typesetting the text between two "$"
MOVING = "application/vnd.lmdynamics.moving+json"  # type of an output: views with one slider
STILL = {"lmdynamics": {"still": True}}  # metadata of a picture that repeats moving views
LETTER = 0.55  # em: width of a letter; "ch" would be wider in a bold header
CELL = "padding:0 1.2em 0 0;text-align:left"
# for the whole page: printed lines break between words, pictures are no wider than the page, and a folded answer takes
# its figure, another output of its cell, with it
PAGE_STYLE = (
    "<style>.jp-RenderedText pre { word-break: normal !important; overflow-wrap: anywhere } "
    ".jp-RenderedSVG :is(img, svg) { max-width: 100%; height: auto } "
    "details.lmd-answer > summary { cursor: pointer } details.lmd-answer > summary > h2 { display: inline-block } "
    ".jp-OutputArea:has(details.lmd-answer:not([open])) > .jp-OutputArea-child:not(:has(details.lmd-answer)) "
    "{ display: none }</style>"
)
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


def plain_tables(decimals: int = 3) -> None:
    """In a notebook, show polars frames whole and as plain tables: no shape, no types, no quotes around text."""
    import polars as pl
    from IPython.core.getipython import get_ipython

    pl.Config(tbl_cols=-1, tbl_rows=60, fmt_str_lengths=90, float_precision=decimals)
    pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True)
    if shell := get_ipython():
        shell.display_formatter.formatters["text/html"].for_type(pl.DataFrame, _unquoted)


def _unquoted(frame: Any) -> str:
    return re.sub(r"<td>&quot;(.*?)&quot;</td>", r"<td>\1</td>", frame._repr_html_(), flags=re.DOTALL)

"""Numbers beside a chart, as a table whose text is text: nothing from the data reaches the page as HTML."""

from collections.abc import Iterable, Sequence
from html import escape

CELL = "padding: 0 1.2em 0 0; text-align: left"
LITERAL = "mathjax_ignore tex2jax_ignore"  # or a notebook typesets what stands between two dollar signs


def html_table(heads: Sequence[object], rows: Iterable[Sequence[object]], marked: Sequence[int] = ()) -> str:
    """A small table; `marked` rows, by number, are set in bold."""
    head = "".join(f"<th style='{CELL}'>{escape(str(name))}</th>" for name in heads)
    lines = []
    for i, row in enumerate(rows):
        weight = "; font-weight: bold" if i in marked else ""
        lines.append("".join(f"<td style='{CELL}{weight}'>{escape(str(value))}</td>" for value in row))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table class='{LITERAL}'><tr>{head}</tr>{body}</table>"

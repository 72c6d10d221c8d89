"""Text on a page: what comes from data is shown as text, never read as HTML or as a formula."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import chain, repeat

LITERAL = "mathjax_ignore tex2jax_ignore"  # a class, without which a notebook typesets what stands between two "$"
MOVING = "application/vnd.lmdynamics.moving+json"  # type of an output: views, and one slider that moves them
STILL = {"lmdynamics": {"still": True}}  # metadata of a picture of what moving views beside it show as well
LETTER = 0.55  # em: a letter's width; "ch" would be another one in a table's bold heads
CELL = "padding:0 1.2em 0 0;text-align:left"


def html_table(heads: Sequence[object], rows: Iterable[Sequence[object]], widths: Sequence[int] = ()) -> str:
    """A small table. `widths`: of its columns, in characters, so that several tables stand under each other."""
    least = [f";min-width:{width * LETTER:.1f}em" for width in widths]

    def cells(tag: str, texts: Sequence[object]) -> str:
        inside = (
            f"<{tag} style='{CELL}{wide}'>{escape(str(text))}</{tag}>"
            for text, wide in zip(texts, chain(least, repeat("")), strict=False)
        )
        return f"<tr>{''.join(inside)}</tr>"

    lines = [cells("th", heads)] if heads else []
    return f"<table class='{LITERAL}'>{''.join([*lines, *(cells('td', row) for row in rows)])}</table>"

"""Rows of text whose tokens are coloured by their losses, or by the changes of these."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.zero_sum import large_change
from lmdynamics.charts.theme import BLUE, VERMILION
from lmdynamics.errors import UserError, printable, shortened
from lmdynamics.html import LITERAL

Texts = Mapping[int, Sequence[str]] | Callable[[int], Sequence[str]]
LONGEST = 60  # characters of one token that are shown
FAINTEST, STRONGEST = 0.10, 0.55  # opacity of a token's background; text is readable on it, on white and on black
PLAIN = "unicode-bidi:isolate;padding:2px;margin-right:2px"  # isolate: right-to-left tokens do not reorder others
TOKEN = f"{PLAIN};border-bottom:3px"
FRAME = ";outline:2px solid currentColor"


class ColouredTokens:
    """Rows of text, each token on blue (its loss fell) or vermilion (it rose); larger changes have stronger colours.

    Blue tokens have a solid underline, vermilion ones a dotted underline, so that colour is not needed to distinguish
    them. The numbers are in each token's tooltip. A token without a change, such as the first of a row, is faint.

    `texts`: the tokens of each row, as a mapping or a function of the row. `changes`: row, position, change (nats),
    perhaps loss (before) and first_order; rows of text are shown in its order. `limit`: the change (nats) at full
    colour (default: 1 in 20 tokens exceeds it). `title`: a line above. `marked`: row and position of a framed token.
    `by="loss"` colours by a column `loss` instead, in vermilion; no column `change` is then needed.

    Tokens are always shown as text, never as HTML; unprintable characters are escaped.

    Raises
    ------
    UserError
        If a column is missing, there are no changes, a token has two, or a position is outside its row's text.
    """

    def __init__(
        self,
        texts: Texts,
        changes: pl.DataFrame,
        *,
        limit: float | None = None,
        title: str = "",
        by: str = "change",
        marked: tuple[int, int] | None = None,
    ):
        name = "coloured tokens"
        need_columns(changes, ["row", "position", by], name)
        measured = changes.filter(pl.col(by).is_finite())
        if measured.is_empty():
            raise UserError(f"{name}: there are no changes to show; choose a row of text that was measured")
        if measured.select("row", "position").is_duplicated().any():
            raise UserError(f"{name}: a token has several changes; choose one checkpoint, batch, split and direction")
        self.title, self.by, self.limit = title, by, large_change(measured, by) if limit is None else float(limit)
        self.marked = marked
        self.rows: dict[int, list[tuple[str, dict | None]]] = {}
        for (row,), part in measured.group_by("row", maintain_order=True):
            tokens = list(texts(row) if callable(texts) else texts[row])
            places = {change["position"]: change for change in part.to_dicts()}
            if not 0 <= min(places) <= max(places) < len(tokens):
                raise UserError(f"{name}: row {row} has {len(tokens)} tokens, and a change at position {max(places)}")
            self.rows[row] = [(token, places.get(position)) for position, token in enumerate(tokens)]
        values = measured[by]
        if by == "loss":
            self.summary = f"mean loss {values.mean():.2f} nats; from {values.min():.2f} to {values.max():.2f}"
        else:
            gained, lost = (values < 0).sum(), (values > 0).sum()
            ends = f"from {_signed(values.min())} to {_signed(values.max())} nats"
            self.summary = f"{gained} tokens gained, {lost} lost; {ends}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": str(self)}

    def _repr_html_(self) -> str:
        head = f"<div><b>{escape(printable(self.title))}</b></div>" if self.title else ""
        rows = "".join(self._row(row, tokens) for row, tokens in self.rows.items())
        return f'<div class="{LITERAL}" dir="ltr">{head}<div>{escape(self.summary)}</div>{self._legend()}{rows}</div>'

    def __str__(self) -> str:
        lines = {
            name: " ".join(_plain(token, change, self.by) for token, change in row) for name, row in self.rows.items()
        }
        rows = [f"{name}: {line}" for name, line in lines.items()]
        return "\n".join([*([printable(self.title)] if self.title else []), self.summary, *rows])

    __repr__ = __str__

    def page(self) -> str:
        """The view as a separate HTML page, light or dark like the reader's browser."""
        head = (
            f'<meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>{escape(self.title)}</title>'
        )
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{self._repr_html_()}</body></html>'

    def save(self, path: Path) -> None:
        """Write the page.

        Raises
        ------
        UserError
            If the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.page(), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the page {path}: {error.strerror}; choose another output_dir") from error

    def _row(self, row: int, tokens: list[tuple[str, dict | None]]) -> str:
        html = "<wbr>".join(
            self._token(token, change, framed=(row, position) == self.marked)
            for position, (token, change) in enumerate(tokens)
        )
        name = f'<span style="opacity:0.7;padding-right:0.8em">row {int(row)}</span>' if len(self.rows) > 1 else ""
        return f'<div style="white-space:pre-wrap;line-height:2.1;margin-top:6px">{name}{html}</div>'

    def _token(self, token: str, change: dict | None, framed: bool = False) -> str:
        frame = FRAME if framed else ""
        text = escape(visible(token), quote=True)
        if change is None:
            return f'<span style="{PLAIN};opacity:0.6{frame}" title="not predicted">{text}</span>'
        tooltip = escape(_tooltip(token, change), quote=True)
        return f'<span style="{self._style(change[self.by])}{frame}" title="{tooltip}">{text}</span>'

    def _style(self, change: float) -> str:
        """CSS from computed numbers only, never from the text."""
        if change == 0:
            return f"{TOKEN} solid transparent"
        red, green, blue = (int((BLUE if change < 0 else VERMILION)[i : i + 2], 16) for i in (1, 3, 5))
        strength = FAINTEST + (STRONGEST - FAINTEST) * min(1.0, abs(change) / self.limit)
        line = "solid" if change < 0 else "dotted"
        background = f"background-color:rgba({red},{green},{blue},{strength:.2f})"
        return f"{TOKEN} {line} rgb({red},{green},{blue});{background}"

    def _legend(self) -> str:
        of_loss = self.by == "loss"
        values = [share * self.limit for share in ((0.25, 0.5, 1) if of_loss else (-1, -0.5, 0, 0.5, 1))]
        labels = {value: _signed(value).lstrip("+" * of_loss) for value in values}
        samples = "".join(f'<span style="{self._style(value)}"> {text} </span> ' for value, text in labels.items())
        title = "loss (nats): " if of_loss else "change of loss (nats): "
        key = "full colour there and beyond" + ("" if of_loss else "; solid: fell, dotted: rose")
        key += "" if self.marked is None else "; framed: the token followed"
        key = f'<span style="opacity:0.8">{key}</span>'
        return f'<div style="white-space:pre-wrap;line-height:2.1;margin-top:4px">{title}{samples}{key}</div>'


def visible(token: str) -> str:
    """A token for display: invisible characters are escaped, and long tokens are cut.

    A space stays a space; a tokenizer's sign for a leading space (Ġ of byte-level BPE, ▁ of SentencePiece) becomes one.
    """
    spaced = f" {token[1:]}" if token[:1] in ("Ġ", "▁") else token
    return shortened(printable(spaced), LONGEST) or "∅"


def _tooltip(token: str, change: Mapping) -> str:
    parts = [f"“{visible(token)}”"]
    before = "loss before" if "change" in change else "loss"
    for name, column in ((before, "loss"), ("change", "change"), ("first order", "first_order")):
        if change.get(column) is not None:
            value = change[column]
            parts.append(f"{name} {f'{value:.3f}' if column == 'loss' else _signed(value)} nats")
    return "; ".join(parts)


def _plain(token: str, change: Mapping | None, by: str) -> str:
    text = visible(token).strip() or "␣"
    if change is None:
        return text
    return f"{text}({change[by]:.2f})" if by == "loss" else f"{text}({_signed(change[by])})"


def _signed(value: float) -> str:
    """+0.25, −0.0031, 0: with a sign, to three digits."""
    if value == 0:
        return "0"
    digits = f"{value:+.2f}" if abs(value) >= 0.1 else f"{value:+.2g}"
    return digits.replace("-", "−")

"""The one error a person can cause, and how its words are put: short, harmless, with a hint for a misspelt name."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """Something a person can put right. The message is one line: found, expected, what to do.

    The command line prints it as `lmdynamics: MESSAGE` and exits with status 2, without a traceback.
    """


def one_line(error: BaseException) -> str:
    """What an error says, in one line; with its kind where it is none that a person causes."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shortened(text: str, most: int = 80) -> str:
    """A text without its middle where it is long, as a schedule of thousands of points is."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 4 :]}"


def printable(text: str) -> str:
    """Control characters by their escapes: a name from a file can hold what a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` when a known name is close, otherwise the list of known names."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for a sentence, the first dozen of them."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more]) or "none"

"""The error for a user's mistakes, and the text of messages: short, printable, with a hint for a misspelt name."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that a user can correct. The message is one line: found, expected, what to do.

    The command line prints it as `lmdynamics: MESSAGE` and exits with status 2, without a traceback.
    """


def one_line(error: BaseException) -> str:
    """The message of an error in one line; with its type unless it is a UserError."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shortened(text: str, max_length: int = 80) -> str:
    """A text, without its middle if it is long."""
    return text if len(text) <= max_length else f"{text[: max_length // 2]}…{text[-max_length // 4 :]}"


def printable(text: str) -> str:
    """A text with control characters escaped: a name from a file may contain terminal commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` when a known name is close, otherwise the list of known names."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def listed(names: Sequence[str], max_names: int = 12) -> str:
    """Names for a sentence, the first `max_names` of them."""
    remaining = [f"{len(names) - max_names} more"] if len(names) > max_names else []
    return ", ".join([*names[:max_names], *remaining]) or "none"

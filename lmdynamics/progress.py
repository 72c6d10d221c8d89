"""One progress bar for terminals, notebooks and batch runs; and lines for a person, on standard error."""

import sys
from collections.abc import Mapping
from html import escape

_SAID: set[str] = set()


def bar(total: int, what: str, show: bool | None = None, unit: str = "it", initial: int = 0):
    """A tqdm bar: HTML in a notebook, plain text in a terminal, nothing where nobody looks.

    `show=None` decides by itself: yes in a terminal or a notebook, no when output goes to a file.
    """
    in_notebook = _in_notebook() and not sys.stderr.isatty()
    if show is None:
        show = in_notebook or sys.stderr.isatty()
    options = {"total": total, "desc": what, "unit": unit, "initial": initial}
    if in_notebook and show:
        return _notebook_bar(**options)
    from tqdm import tqdm

    return tqdm(**options, disable=not show)


def _notebook_bar(**options):
    """A bar of HTML that is emptied when it is finished; one that was interrupted stays.

    Not of widgets: to take one away while a page is still drawing it is an error there, and a saved notebook would
    reopen with a widget that is missing.
    """
    from IPython.display import display
    from tqdm.std import tqdm

    class Bar(tqdm):
        def display(self, msg=None, pos=None) -> None:
            output.update({"text/html": _html(self.format_dict), "text/plain": str(self)}, raw=True)

        def close(self) -> None:
            if self.disable:  # closed before
                return
            super().close()
            if not self.total or self.n >= self.total:
                output.update({"text/html": ""}, raw=True)
            else:
                self.display()

    output = display({"text/html": "", "text/plain": ""}, raw=True, display_id=True)
    return Bar(**options, gui=True)


def _html(state: Mapping) -> str:
    """A bar as HTML: what is done, how far, and what is left, in tqdm's words."""
    from tqdm.std import tqdm

    words = escape(tqdm.format_meter(**{**state, "bar_format": "{l_bar}\0{r_bar}"}))
    done = f"<progress value='{state['n']}' max='{state['total'] or 1}'></progress>"
    return f"<pre style='margin: 0'>{words.replace(chr(0), done)}</pre>"


def _in_notebook() -> bool:
    """Whether this process is a kernel; to have imported one's modules is not enough."""
    shell = sys.modules.get("IPython.core.getipython")
    return getattr(shell and shell.get_ipython(), "kernel", None) is not None


def say(line: str) -> None:
    """Print a line to standard error: standard output is for what programs read."""
    print(f"lmdynamics: {line}", file=sys.stderr, flush=True)


def say_once(line: str) -> None:
    """Say it unless this process has said it already."""
    if line not in _SAID:
        _SAID.add(line)
        say(line)


def was_said(part: str) -> bool:
    """Whether a line that begins so has been said in this process."""
    return any(line.startswith(part) for line in _SAID)

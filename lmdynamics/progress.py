"""One progress bar for terminals, notebooks and batch runs; and messages on standard error."""

import sys
from collections.abc import Mapping
from html import escape

_PRINTED: set[str] = set()


def bar(total: int, label: str, show: bool | None = None, unit: str = "it", initial: int = 0):
    """A tqdm bar: HTML in a notebook, plain text in a terminal, hidden otherwise.

    `show=None`: shown in a terminal or a notebook, hidden when output goes to a file.
    """
    in_notebook = _in_notebook() and not sys.stderr.isatty()
    if show is None:
        show = in_notebook or sys.stderr.isatty()
    options = {"total": total, "desc": label, "unit": unit, "initial": initial}
    if in_notebook and show:
        return _notebook_bar(**options)
    from tqdm import tqdm

    return tqdm(**options, disable=not show)


def _notebook_bar(**options):
    """An HTML bar that is cleared when it is finished; an interrupted bar stays.

    Not a widget: removing a widget while the page still draws it is an error, and a saved notebook would reopen with
    a missing widget.
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
    """A bar as HTML, with tqdm's text."""
    from tqdm.std import tqdm

    text = escape(tqdm.format_meter(**{**state, "bar_format": "{l_bar}\0{r_bar}"}))
    element = f"<progress value='{state['n']}' max='{state['total'] or 1}'></progress>"
    return f"<pre style='margin: 0'>{text.replace(chr(0), element)}</pre>"


def _in_notebook() -> bool:
    """Whether this process is a kernel; imported kernel modules are not enough."""
    shell = sys.modules.get("IPython.core.getipython")
    return getattr(shell and shell.get_ipython(), "kernel", None) is not None


def print_message(line: str) -> None:
    """Print a line to standard error, as standard output is for other programs; in a notebook that would be red."""
    print(f"lmdynamics: {line}", file=sys.stdout if _in_notebook() else sys.stderr, flush=True)


def print_once(line: str) -> None:
    """Print a message unless this process has printed it already."""
    if line not in _PRINTED:
        _PRINTED.add(line)
        print_message(line)


def was_printed(beginning: str) -> bool:
    """Whether this process has printed a message with this beginning by `print_once`."""
    return any(line.startswith(beginning) for line in _PRINTED)

"""One progress bar for terminals, notebooks and batch runs."""

import sys


def bar(total: int, what: str, show: bool | None = None, unit: str = "it", initial: int = 0):
    """A tqdm bar: widgets in a notebook, plain text in a terminal, nothing where nobody looks.

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
    """A bar of widgets that leaves nothing: a notebook saved with its output would reopen as a missing widget.

    Its output is emptied. The widgets themselves are not closed: a page that is still drawing them would fail to.
    """
    from IPython.display import display
    from tqdm.notebook import tqdm

    class Bar(tqdm):
        def close(self):
            if self.disable:  # closed before
                return
            super().close()
            if not self.total or self.n >= self.total:  # one that was interrupted stays, in red
                output.update({"text/html": ""}, raw=True)

    made = Bar(**options, display=False)
    output = display(made.container, display_id=True)
    return made


def _in_notebook() -> bool:
    """Whether this process is a kernel; to have imported one's modules is not enough."""
    shell = sys.modules.get("IPython.core.getipython")
    return getattr(shell and shell.get_ipython(), "kernel", None) is not None

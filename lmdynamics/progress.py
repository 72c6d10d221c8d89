"""One progress bar for terminals, notebooks and batch runs."""

import sys


def bar(total: int, what: str, show: bool | None = None, unit: str = "it", initial: int = 0):
    """A tqdm bar: widgets in a notebook, plain text in a terminal, nothing where nobody looks.

    `show=None` decides by itself: yes in a terminal or a notebook, no when output goes to a file.
    """
    in_notebook = _in_notebook() and not sys.stderr.isatty()
    if show is None:
        show = in_notebook or sys.stderr.isatty()
    if in_notebook and show:
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    return tqdm(total=total, desc=what, unit=unit, initial=initial, disable=not show, leave=not in_notebook)


def _in_notebook() -> bool:
    """Whether this process is a kernel; to have imported one's modules is not enough."""
    shell = sys.modules.get("IPython.core.getipython")
    return getattr(shell and shell.get_ipython(), "kernel", None) is not None

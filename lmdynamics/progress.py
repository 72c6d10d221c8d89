"""One progress bar for terminals, notebooks and batch runs."""

import sys


def bar(total: int, what: str, show: bool | None = None, unit: str = "it", initial: int = 0):
    """A tqdm bar: widgets in a notebook, plain text in a terminal, nothing where nobody looks.

    `show=None` decides by itself: yes in a terminal or a notebook, no when output goes to a file.
    """
    in_notebook = "ipykernel" in sys.modules and not sys.stderr.isatty()
    if show is None:
        show = in_notebook or sys.stderr.isatty()
    if in_notebook and show:
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    return tqdm(total=total, desc=what, unit=unit, initial=initial, disable=not show, leave=not in_notebook)

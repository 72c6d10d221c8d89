"""Run a notebook's code cells in a fresh IPython, and then once more from the last to the first.

Backwards, each cell finds the names as the cells after it left them, as for a reader who goes back to one cell.

python -m tests.notebooks.twice NOTEBOOK OUTPUT_DIR
"""

import sys
from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell

SET_UP = 2  # cells that begin anew: parameters and imports


def run(notebook: Path, output_dir: str) -> str:
    """What went wrong first: the number of the cell, its run and the error; empty where nothing did."""
    shell = InteractiveShell.instance()
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    assert "parameters" in cells[0].metadata.tags
    given = f"\nprofile, interactive, output_dir = 'smoke', True, {output_dir!r}"
    sources = [cell.source + given * (cell is cells[0]) for cell in cells]
    order = [(i, "first") for i in range(len(cells))]
    again = [(i, "second") for i in reversed(range(SET_UP, len(cells)))]
    for i, turn in [*order, *again]:
        if error := shell.run_cell(sources[i]).error_in_exec:
            return f"code cell {i + 1}, {turn} run: {type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    if said := run(Path(sys.argv[1]), sys.argv[2]):
        sys.exit(said)

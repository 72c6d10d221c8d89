"""Run notebooks' code cells, each notebook in a fresh namespace, and then once more from the last to the first.

Backwards, each cell finds the names as the cells after it left them, as for a reader who goes back to one cell. All
notebooks run in one process, because importing torch and transformers takes seconds.

python -m tests.notebooks.twice FOLDER NOTEBOOK...    records go to FOLDER/STEM; prints {STEM: what went wrong first}
"""

import json
import sys
from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

SET_UP = 2  # cells that begin anew, from the parameters on: these and imports


def run(notebook: Path, output_dir: Path) -> str:
    """What went wrong first: the number of the cell, its run and the error; empty where nothing did."""
    shell = InteractiveShell.instance()
    shell.reset()
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    (first,) = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", ())]
    parameters = f"\nprofile, interactive, output_dir = 'smoke', True, {str(output_dir)!r}"
    sources = [cell.source + parameters * (i == first) for i, cell in enumerate(cells)]
    order = [(i, "first") for i in range(len(cells))]
    second_pass = [(i, "second") for i in reversed(range(first + SET_UP, len(cells)))]
    for i, turn in [*order, *second_pass]:
        if error := shell.run_cell(sources[i]).error_in_exec:
            return f"code cell {i + 1}, {turn} run: {type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    folder, *notebooks = map(Path, sys.argv[1:])
    with capture_output():
        errors = {notebook.stem: run(notebook, folder / notebook.stem) for notebook in notebooks}
    print(json.dumps(errors))

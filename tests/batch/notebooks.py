"""Small notebooks made for tests."""

from pathlib import Path

import nbformat

PARAMETERS = """\
run: str = "a-run"  # a run
seed: int = 0  # a seed
rate: float = 0.15  # a rate
sizes: list[int] = [1, 2]  # some sizes
profile: str = "default"  # smoke, default or full
interactive: bool = True  # explorers if true
output_dir: str = ""  # where records go
"""


def write_notebook(path: Path, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    """A notebook of a title, a parameters cell (unless None) and these code cells."""
    v4 = nbformat.v4
    new_cells = [v4.new_markdown_cell(f"# {path.stem}")]
    if parameters is not None:
        new_cells.append(v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    new_cells += [v4.new_code_cell(source) for source in cells]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(v4.new_notebook(cells=new_cells, metadata={"kernelspec": kernel}), path)
    return path

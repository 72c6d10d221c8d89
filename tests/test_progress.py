"""Where a progress bar is shown: to a person at a terminal or in a notebook, not into a program's output."""

import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from tests.batch.notebooks import write_notebook


@pytest.mark.parametrize("imported", ["sys", "ipykernel, IPython"])
def test_a_bar_stays_out_of_files_even_where_a_kernel_is_imported(imported):
    code = f"import {imported}\nfrom lmdynamics.progress import bar\nwith bar(2, 'x') as shown:\n    shown.update(2)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.notebook
def test_a_finished_bar_leaves_no_widget_in_a_notebook(tmp_path):
    finished = "from lmdynamics.progress import bar\nwith bar(2, 'x') as shown:\n    shown.update(2)"
    interrupted = "with bar(2, 'x<y') as shown:\n    shown.update(1)"
    path = write_notebook(tmp_path / "bars.ipynb", finished, interrupted, parameters=None)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3").execute()
    outputs = [[output.data for output in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]
    assert outputs[0] == [{"text/html": ""}]
    assert "<progress value='1' max='2'>" in outputs[1][0]["text/html"]
    assert "x&lt;y:  50%" in outputs[1][0]["text/html"]
    assert "1/2" in outputs[1][0]["text/html"]


@pytest.mark.notebook
def test_a_message_and_a_table_are_plain_in_a_notebook(tmp_path):
    """A message on standard error would be red there; polars puts text into quotes."""
    message = "from lmdynamics.progress import print_message\nprint_message('waiting for it')"
    table = """import polars as pl
from lmdynamics.html import plain_tables
plain_tables(decimals=2)
pl.DataFrame({"name": ["nsubj", "<b>", '"quoted"', None], "share": [0.123, None, 1.0, 2.0]})"""
    path = write_notebook(tmp_path / "plain.ipynb", message, table, parameters=None)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3").execute()
    printed, shown = (cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert [(output.name, output.text) for output in printed] == [("stdout", "lmdynamics: waiting for it\n")]
    html = shown[0].data["text/html"]
    for cell in ("nsubj", "&lt;b&gt;", "&quot;quoted&quot;", "0.12", "null"):
        assert f"<td>{cell}</td>" in html
    assert "shape:" not in html
    assert "f64" not in html
    outside = "from lmdynamics.progress import print_message\nprint_message('waiting for it')"
    result = subprocess.run([sys.executable, "-c", outside], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("", "lmdynamics: waiting for it\n")

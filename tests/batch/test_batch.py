"""Whole batches, on small notebooks: each starts real processes, so there are few, and each looks at much."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from lmdynamics.batch.command import batch
from lmdynamics.batch.execute import run_notebook
from lmdynamics.batch.plan import plan
from lmdynamics.records import MIME_TYPE, read_records
from tests.batch.notebooks import write_notebook

RECORDING = """\
from lmdynamics.records import record, start_records
start_records(output_dir)
record("seed doubled", 2 * seed, unit="<b>", tolerance=0.5)
from pathlib import Path
if output_dir:
    Path(output_dir, "a_figure.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
"""
FAILING = "# what goes wrong\nraise ValueError('no <script>\\nway')"
DYING = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One batch of a good notebook, one that fails, one whose kernel dies, and a good one after them."""
    folder = tmp_path_factory.mktemp("a {batch} & more")  # braces and blanks: papermill formats paths
    notebooks = [
        write_notebook(folder / "good.ipynb", RECORDING, "sizes"),
        write_notebook(folder / "bad.ipynb", "x = 1", FAILING, "x = 2"),
        write_notebook(folder / "dies.ipynb", DYING),
        write_notebook(folder / "last.ipynb", "1 + 1", parameters=None),
    ]
    sources = {path: path.read_bytes() for path in notebooks}
    cwd = os.getcwd()
    status = batch(plan(notebooks[:3], ["seed=4", "rate=1"], "smoke", folder / "out"))
    status_of_last = batch(plan(notebooks[3:], [], None, folder / "out"))
    assert {path: path.read_bytes() for path in notebooks} == sources
    assert os.getcwd() == cwd
    return folder / "out", status, status_of_last


def outcome(folder, name):
    return json.loads((folder / name / "outcome.json").read_text())


def test_one_failure_fails_the_batch_and_the_others_still_run(mixed):
    folder, status, status_of_last = mixed
    assert (status, status_of_last) == (1, 0)
    names = ("good", "bad", "dies", "last")
    assert [outcome(folder, name)["status"] for name in names] == ["finished", "failed", "failed", "finished"]


def test_the_failing_cell_is_named_as_the_reader_counts(mixed):
    failure = outcome(mixed[0], "bad")
    assert failure["cell"] == 4  # title, parameters, x = 1, this one; papermill's own cell does not count
    assert failure["source"] == "raise ValueError('no <script>\\nway')"
    assert failure["error"] == "ValueError: no <script> way"


def test_a_dead_kernel_is_a_failure_of_the_cell_that_ran(mixed):
    failure = outcome(mixed[0], "dies")
    assert failure["cell"] == 3
    assert "its kernel died" in failure["error"]


def test_results_lie_beside_the_executed_notebook(mixed):
    folder = mixed[0] / "good"
    assert [(record.name, record.value, record.tolerance) for record in read_records(folder)] == [
        ("seed doubled", 8, 0.5)
    ]
    assert (folder / "a_figure.svg").exists()
    executed = nbformat.read(folder / "good.ipynb", as_version=4)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.data[MIME_TYPE]["value"] for output in outputs if MIME_TYPE in output.get("data", {})] == [8]
    automatic = {"interactive": False, "output_dir": str(folder), "profile": "smoke"}
    assert outcome(mixed[0], "good")["parameters"] == {"seed": 4, "rate": 1.0, **automatic}


def test_the_index_shows_every_notebook_and_escapes_what_it_shows(mixed):
    index, records = ((mixed[0] / name).read_text("utf-8") for name in ("index.html", "records.html"))
    for text in ("good", "bad", "dies", "last", "no &lt;script&gt; way"):
        assert text in index
        assert text in records
    for text in ("seed doubled", "&lt;b&gt;", "± 0.5", 'src="good/a_figure.svg"'):
        assert text in records
    assert "<script" not in index + records
    assert 'href="good/good.html"' in index


def test_the_executed_notebook_is_a_page_that_loads_nothing_from_elsewhere(mixed):
    page = (mixed[0] / "good" / "good.html").read_text("utf-8")
    assert re.search(r">seed doubled</td><td[^>]*>8 &lt;b&gt;<", page)
    assert 'src="http' not in page


def test_an_old_result_does_not_pass_for_a_new_one(tmp_path):
    notebook = write_notebook(tmp_path / "one.ipynb", RECORDING, FAILING)
    (job,) = plan([notebook], ["seed=1"], None, tmp_path / "out")
    stale = job.folder / "old_figure.svg"
    job.folder.mkdir(parents=True)
    stale.write_text("<svg/>")
    notes = job.folder / "notes.txt"
    notes.write_text("mine")
    run_notebook(job)
    assert stale.exists()  # the folder was not one of ours
    assert run_notebook(job).status == "failed"
    assert not stale.exists()
    assert notes.read_text() == "mine"
    assert [record.value for record in read_records(job.folder)] == [2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_what_has_finished(tmp_path, number):
    write_notebook(tmp_path / "quick.ipynb", "1", parameters=None)
    write_notebook(
        tmp_path / "slow.ipynb", "import os, time", "print(os.getpid(), flush=True)", "time.sleep(600)", parameters=None
    )
    code = "import sys; from lmdynamics.cli import main; sys.argv[0] = 'lmdynamics'; main()"
    command = [sys.executable, "-c", code, "batch", "quick.ipynb", "slow.ipynb"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        log = tmp_path / "out" / "slow" / "log.txt"
        quick = tmp_path / "out" / "quick" / "outcome.json"
        until = time.monotonic() + 60
        while time.monotonic() < until and not (
            quick.exists() and log.exists() and "Executing Cell 4" in log.read_text()
        ):
            time.sleep(0.1)
        parent.send_signal(number)
        printed = parent.communicate(timeout=60)[0]
    assert parent.returncode == 130
    assert printed.splitlines()[-1].startswith("interrupted; finished items are in ")
    assert outcome(tmp_path / "out", "quick")["status"] == "finished"
    assert outcome(tmp_path / "out", "slow")["status"] == "interrupted"
    kernel = int(next(line for line in log.read_text().splitlines() if line.isdigit()))
    until = time.monotonic() + 30
    while time.monotonic() < until and os.path.exists(f"/proc/{kernel}"):
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{kernel}")

"""What may happen to a batch in a night: processes killed, disks full, clocks wrong, notebooks that misbehave.

Each time: what was finished is kept, what was not is said in one line, and the same command goes on.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import polars as pl
import psutil
import pytest

from lmdynamics.batch.command import Options, batch
from lmdynamics.batch.execute import read_outcome
from lmdynamics.batch.plan import plan
from lmdynamics.records import read_records
from tests.batch import stub_kernel_process
from tests.batch.notebooks import write_notebook
from tests.batch.test_executors import dask_cluster, ends

RECORDING = """\
import random, time
from lmdynamics.records import record, start_records
start_records(output_dir)
time.sleep(0.5 + random.random())
record("squared", seed**2)
record("sum", sum(1 / (i + seed + 1) for i in range(1000)), tolerance=1e-9)
"""
SEEDS = "seed=0,1,2,3"
pytestmark = pytest.mark.slow


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write_notebook(tmp_path / "one.ipynb", RECORDING, "import time\ntime.sleep(0.5)")


def records(out: Path) -> dict[str, list]:
    items = [path.parent for path in out.glob("*/outcome.json")]
    return {item.name: [(record.name, record.value) for record in read_records(item)] for item in items}


def finished(out: Path) -> list[str]:
    """The items that have come to their end, once for each time."""
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return sorted(line["name"] for line in lines if line["status"] == "finished")


STUBBED = """\
from lmdynamics import cli
from lmdynamics.batch import execute
from tests.batch import stub_kernel_process
execute.kernel_process = stub_kernel_process
cli.main()
"""


def begin(notebook: Path, out: Path, *options: str, stub: bool = False) -> subprocess.Popen:
    """A batch in a process of its own; see `ended` for what it prints. `stub`: without papermill and kernels."""
    start = ["-c", STUBBED] if stub else ["-m", "lmdynamics.cli"]
    command = [sys.executable, *start, "batch", str(notebook), "--grid", SEEDS, "--out", str(out)]
    number = len(list(notebook.parent.glob("printed-*")))
    files = [notebook.parent / f"{name}-{number}" for name in ("printed", "wrong")]
    with files[0].open("w") as printed, files[1].open("w") as wrong:
        running = subprocess.Popen([*command, *options], stdout=printed, stderr=wrong)
    running.files = files
    return running


def ended(running: subprocess.Popen) -> tuple[int, str, str]:
    """How a batch ended, and what it printed."""
    status = running.wait(180)
    return status, *(file.read_text() for file in running.files)


def below(process: psutil.Process, word: str) -> list[psutil.Process]:
    """The processes below one whose command line has a word in it."""
    processes = []
    for child in process.children(recursive=True):
        try:
            processes += [child] if any(word in part for part in child.cmdline()) else []
        except psutil.Error:
            continue
    return processes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    notebook = write_notebook(folder / "one.ipynb", RECORDING, "import time\ntime.sleep(0.5)")
    running = begin(notebook, folder / "out", "--workers", "2", stub=True)
    assert running.wait(180) == 0
    return records(folder / "out")


def test_killed_three_times_at_random_and_begun_again(notebook, undisturbed):
    """The batch itself is killed, so that nothing is cleaned up: nothing runs on, and no item is finished twice."""
    out, chance = notebook.parent / "out", random.Random(7)
    for _ in range(3):
        running = begin(notebook, out, "--workers", "2")
        time.sleep(chance.uniform(2, 6))
        children = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        running.wait()
        assert all(ends(child.pid) for child in children)
    status, printed, wrong = ended(begin(notebook, out, "--workers", "2"))
    assert (status, wrong) == (0, ""), printed
    assert records(out) == undisturbed
    assert finished(out) == sorted(undisturbed)


@pytest.mark.parametrize("victim", ["lmdynamics.batch.kernel_process", "ipykernel"])
def test_a_notebooks_process_or_kernel_is_killed(notebook, undisturbed, victim):
    out = notebook.parent / "out"
    running = begin(notebook, out, "--workers", "2")
    process, until = psutil.Process(running.pid), time.monotonic() + 60
    while time.monotonic() < until and not list(out.glob("*/progress.json")):
        time.sleep(0.05)
    killed = below(process, victim)[0]
    killed.kill()
    status, printed, _ = ended(running)
    assert status == 1
    (line,) = [line for line in printed.splitlines() if "failed" in line]
    assert ("SIGKILL" if victim == "lmdynamics.batch.kernel_process" else "kernel died") in line
    assert batch(plan([notebook], out=out, grid=[SEEDS]), Options(workers=2)) == 0
    assert records(out) == undisturbed
    assert finished(out) == sorted(undisturbed)


def test_with_retries_a_killed_kernel_is_not_even_a_failure(notebook, undisturbed):
    out = notebook.parent / "out"
    running = begin(notebook, out, "--workers", "2", "--retry", "2")
    process, until = psutil.Process(running.pid), time.monotonic() + 60
    while time.monotonic() < until and not (kernels := below(process, "ipykernel")):
        time.sleep(0.05)
    kernels[0].kill()
    assert running.wait(180) == 0
    assert records(out) == undisturbed


def test_the_client_of_a_cluster_is_killed(notebook, undisturbed, tmp_path):
    out = notebook.parent / "out"
    with dask_cluster(tmp_path, workers=2) as (address, _):
        running = begin(notebook, out, "--executor", f"dask://{address}")
        until = time.monotonic() + 60
        while time.monotonic() < until and not list(out.glob("*/progress.json")):
            time.sleep(0.05)
        running.kill()
        running.wait()
        status, printed, wrong = ended(begin(notebook, out, "--executor", f"dask://{address}"))
    assert status == 0, printed + wrong
    assert records(out) == undisturbed
    assert finished(out) == sorted(undisturbed)


def test_a_full_disk(notebook, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs to mount a small disk (root)")
    out = disk / "out"
    try:
        filler = disk / "filler"
        filler.write_bytes(b"x" * 2_070_000)
        status, printed, wrong = ended(begin(notebook, out, "--workers", "2"))
        assert status in (1, 2)
        assert "Traceback" not in printed + wrong
        assert "no space left on device" in (printed + wrong).lower()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        status, printed, wrong = ended(begin(notebook, out, "--workers", "2"))
        assert (status, wrong) == (0, ""), printed
        assert records(out) == undisturbed
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("code", ["import sys\nsys.exit(0)", "import sys\nsys.exit(3)"])
def test_a_notebook_that_ends_itself_has_not_finished(tmp_path, code):
    notebook = write_notebook(tmp_path / "leaves.ipynb", "x = 1", code, "x = 2", "x = 3")
    assert batch(plan([notebook], out=tmp_path / "out")) == 1
    outcome = read_outcome(tmp_path / "out" / "leaves")
    assert (outcome.status, outcome.cell) == ("failed", 4)


def test_a_notebook_that_prints_a_hundred_megabytes(tmp_path):
    flood = "for _ in range(1000):\n    print('x' * 100_000)"
    notebook = write_notebook(tmp_path / "floods.ipynb", flood, "print('after the flood')")
    assert batch(plan([notebook], out=tmp_path / "out")) == 0
    folder = tmp_path / "out" / "floods"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6
    executed = nbformat.read(folder / "floods.ipynb", as_version=4)
    flooded, after = [cell for cell in executed.cells if cell.cell_type == "code"][-2:]
    printed = "".join(output.text for output in flooded.outputs)
    assert 2_000_000 <= len(printed) < 2_000_200
    assert printed.count("[cut: this cell printed more than 2,000,000 characters]") == 1
    assert after.outputs[0].text == "after the flood\n"


def test_clocks_that_are_wrong(notebook, undisturbed, capsys, monkeypatch):
    """What is done is known by its content: neither files from the future nor from the past are run again."""
    monkeypatch.setattr("lmdynamics.batch.execute.kernel_process", stub_kernel_process)
    out = notebook.parent / "out"
    assert batch(plan([notebook], out=out, grid=[SEEDS]), Options(workers=2)) == 0
    for number, file in enumerate(sorted(out.rglob("*"))):
        when = (0, 4_000_000_000)[number % 2]
        os.utime(file, (when, when))
    os.utime(notebook, (4_000_000_000, 4_000_000_000))
    capsys.readouterr()
    assert batch(plan([notebook], out=out, grid=[SEEDS]), Options(workers=2)) == 0
    assert "4 items, 4 done already, 0 to do" in capsys.readouterr().out
    assert records(out) == undisturbed
    assert set(pl.read_parquet(out / "records.parquet")["item"]) == set(undisturbed)


def test_two_batches_into_one_folder(notebook, undisturbed):
    out = notebook.parent / "out"
    first = begin(notebook, out, "--workers", "2", stub=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(out.glob("*/progress.json")):
        time.sleep(0.05)
    status, _, wrong = ended(begin(notebook, out, stub=True))
    assert status == 2
    assert wrong == f"lmdynamics: another batch is writing to {out}; wait for it, or name another folder with --out\n"
    assert first.wait(180) == 0
    assert records(out) == undisturbed
    assert finished(out) == sorted(undisturbed)

"""Execute one notebook in a process of its own, and say what came of it.

The parent starts `python -m lmdynamics.batch.execute`, hands it the job on standard input, and reads one JSON
line per event from a pipe. A notebook that exhausts memory or is killed takes only its own process with it.
"""

import ast
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmdynamics.batch.plan import Job
from lmdynamics.batch.records import write_json

OUTCOME = "outcome.json"
LOG = "log.txt"
_GRACE = 10  # seconds a notebook gets to stop its kernel after Ctrl-C


@dataclass(frozen=True)
class Outcome:
    """What came of a job. `cell` is the failing cell's place in the notebook, counted from 1."""

    name: str
    status: str  # "finished" | "failed" | "interrupted"
    seconds: float
    parameters: dict[str, Any]
    cell: int | None = None
    source: str = ""  # first line of the failing cell
    error: str = ""  # last line of its traceback
    ended: str = ""  # local time, ISO 8601

    def __str__(self) -> str:
        if self.status != "failed":
            return f"{self.name}: {self.status} after {self.seconds:.0f} s"
        where = f"cell {self.cell} (`{self.source}`) failed" if self.cell else "failed"
        return f"{self.name}: {where}: {self.error}"


def run_notebook(job: Job, on_cell: Callable[[int, int], None] = lambda cell, cells: None) -> Outcome:
    """Execute a job into its folder: the notebook with its outputs, `outcome.json`, `log.txt`, and what the notebook
    itself writes there (records, figures).

    `on_cell(cell, cells)` is called when a cell starts. What an earlier run left in the folder goes first.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C, after the notebook's process has stopped; the outcome "interrupted" is on disk then.
    """
    _clear(job)
    started = time.monotonic()
    read_end, write_end = os.pipe()
    message = repr((str(job.notebook), str(job.folder), job.parameters, write_end))  # literals, so tuples stay tuples
    last: dict[str, Any] = {}
    interrupted = False
    with (job.folder / LOG).open("w", encoding="utf-8") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "lmdynamics.batch.execute"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[write_end],
            start_new_session=True,  # Ctrl-C comes to this process alone, which then stops the other in good order
        )
        os.close(write_end)
        try:
            with suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(message.encode())
            with os.fdopen(read_end, encoding="utf-8") as events:
                for line in events:
                    last = json.loads(line)
                    if "cells" in last:
                        on_cell(last["cell"], last["cells"])
            child.wait()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            _stop(child)
    ended = time.strftime("%Y-%m-%dT%H:%M:%S")
    common = {
        "name": job.name,
        "seconds": round(time.monotonic() - started, 2),
        "parameters": job.parameters,
        "ended": ended,
    }
    if interrupted:
        outcome = Outcome(status="interrupted", **common)
    elif child.returncode == 0 and last.get("status") == "finished":
        outcome = Outcome(status="finished", **common)
    else:  # a last event without an error: the process or its kernel died while that cell ran
        death = f"{_death(child.returncode)}; see {job.folder / LOG}"
        failed = {"cell": last.get("cell"), "source": last.get("source", ""), "error": last.get("error", death)}
        outcome = Outcome(status="failed", **failed, **common)
    write_json(job.folder / OUTCOME, asdict(outcome))
    if interrupted:
        raise KeyboardInterrupt
    return outcome


def _clear(job: Job) -> None:
    """Make the folder, without what an earlier batch left there: an old result must not pass for a new one."""
    job.folder.mkdir(parents=True, exist_ok=True)
    if not (job.folder / LOG).exists():  # not a folder of ours: nothing in it is ours to remove
        return
    for pattern in (OUTCOME, LOG, "records.json", "*.ipynb", "*.html", "*.svg", "*.png"):
        for stale in job.folder.glob(pattern):
            stale.unlink()


def _stop(child: subprocess.Popen) -> None:
    if child.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        child.send_signal(number)
        try:
            child.wait(_GRACE)
            return
        except subprocess.TimeoutExpired:
            continue


def _death(returncode: int) -> str:
    if returncode < 0:
        return f"its process was ended by {signal.Signals(-returncode).name}"
    return "its kernel died (out of memory?) or could not start"


def _execute(job: Job, pipe: int) -> int:
    """The child: execute the notebook, one event line per cell it starts, and a last one with the result."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel named python3 is this interpreter's, not the user's
    os.environ["LMDYNAMICS_BATCH"] = "1"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("papermill").setLevel(logging.INFO)

    from papermill import PapermillExecutionError, execute_notebook
    from papermill.iorw import load_notebook_node
    from papermill.utils import find_first_tagged_cell_index

    os.set_inheritable(pipe, False)  # the kernel must not hold the parent's end open
    events = os.fdopen(pipe, "w", buffering=1, encoding="utf-8")

    notebook = load_notebook_node(str(job.notebook))
    parameters_cell = max(find_first_tagged_cell_index(notebook, "parameters"), 0)

    def own(index: int) -> int:
        """The index of an executed cell in the reader's notebook, which lacks the cell that papermill injects."""
        return index - bool(job.parameters and index > parameters_cell)

    def tell(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    def cell_starts(cell: Any, cell_index: int) -> None:
        index = own(cell_index)
        tell(cell=index + 1, cells=len(notebook.cells), source=_first_line(cell.source))

    try:
        execute_notebook(
            _literally(job.notebook),
            _literally(job.executed),
            parameters=job.parameters,
            kernel_name="python3",
            progress_bar=False,
            log_output=True,
            on_cell_start=cell_starts,
        )
    except PapermillExecutionError as error:
        tell(
            status="failed", cell=own(error.cell_index) + 1, source=_first_line(error.source), error=_error_line(error)
        )
        return 1
    tell(status="finished")
    return 0


def _literally(path: Path) -> str:
    """A path that papermill takes as it stands: braces in it are format fields otherwise."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _first_line(source: str) -> str:
    """The first line that is code, or else the first line."""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")


def _error_line(error: Any) -> str:
    message = " ".join(error.evalue.split())
    return f"{error.ename}: {message}" if message else error.ename


if __name__ == "__main__":
    _notebook, _folder, _parameters, _pipe = ast.literal_eval(sys.stdin.read())
    sys.exit(_execute(Job(Path(_notebook), Path(_folder), _parameters), _pipe))

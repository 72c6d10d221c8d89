"""Execute one notebook in a process of its own, and return its outcome.

A notebook that exhausts memory, hangs or is killed ends only its own process (`batch.kernel_process`). The caller waits
in a thread, a worker of dask or a job of SLURM: all share the batch's folder and communicate through files in it.
"""

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lmdynamics import files, jobs
from lmdynamics.batch import kernel_process
from lmdynamics.batch.plan import Job
from lmdynamics.errors import UserError

OUTCOME = "outcome.json"
PROGRESS = "progress.json"
LOG = "log.txt"
HISTORY = "history.jsonl"  # in the batch's folder: one line for each item that has ended, never rewritten
STOP = ".stop"  # in the batch's folder: every process that executes an item should stop
LOCK = ".lock"  # in an item's folder: a process executes it
_POLL = 0.25  # seconds between two checks whether to stop


@dataclass(frozen=True)
class Outcome:
    """The result of a job. `cell` is the number of the failing cell, counted from 1."""

    name: str
    status: str  # "finished" | "failed" | "interrupted"
    seconds: float
    parameters: dict[str, Any]
    cell: int | None = None
    source: str = ""  # first line of the failing cell
    error: str = ""  # last line of its traceback
    ended: str = ""  # local time, ISO 8601
    notebook: str = ""
    key: str = ""  # the job's, see `batch.cache_key`
    peak_mb: float | None = None  # memory of its largest process
    attempts: int = 1

    def __str__(self) -> str:
        if self.status != "failed":
            return f"{self.name}: {self.status} after {self.seconds:.0f} s"
        failure = f"cell {self.cell} (`{self.source}`) failed" if self.cell else "failed"
        return f"{self.name}: {failure}: {self.error}"


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome of an item; None if it has none yet, or its file is broken."""
    try:
        content = json.loads((folder / OUTCOME).read_text("utf-8"))
        known = {field.name for field in fields(Outcome)}
        return Outcome(**{name: value for name, value in content.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def is_done(job: Job) -> bool:
    """Whether the item has finished with the same key as now."""
    outcome = read_outcome(job.folder)
    return bool(outcome and outcome.status == "finished" and outcome.key == job.key) and job.executed.exists()


def run_notebook(
    job: Job,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    force: bool = False,
    attempts: int = 1,
) -> Outcome:
    """Execute a job into its folder: the notebook with its outputs, `outcome.json`, `log.txt`, and what the notebook
    itself writes there (records, figures).

    `timeout`: seconds after which it is stopped, and has failed. `environment`: variables for its process. `attempts`:
    how many times it has been tried, this time included. Results of an earlier run in the folder are removed first. If
    another process executes the same item, this waits for it; an item that is done (`is_done`) is not executed again,
    unless with `force`. A file `.stop` in the batch's folder stops it.

    Raises KeyboardInterrupt on Ctrl-C, after the notebook's process has stopped; the outcome "interrupted" is on disk
    then.
    """
    started = time.monotonic()
    common = {"name": job.name, "notebook": job.notebook.stem, "parameters": job.parameters, "key": job.key}
    common["attempts"] = attempts
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.folder / LOCK)
    if not _acquire(lock, job):
        return Outcome(status="interrupted", seconds=0.0, **common)
    try:
        if is_done(job) and not force:
            return read_outcome(job.folder)
        _clear(job)
        result = _run_process(job, started, timeout, environment or {})
        interrupted = result.pop("interrupted", False)
        seconds = round(time.monotonic() - started, 2)
        outcome = Outcome(seconds=seconds, ended=time.strftime("%Y-%m-%dT%H:%M:%S"), **common, **result)
        files.write_json(job.folder / OUTCOME, asdict(outcome))
        _append(job.folder.parent / HISTORY, outcome)
        (job.folder / PROGRESS).unlink(missing_ok=True)
    except (OSError, UserError) as error:  # a full disk, or one that was removed
        message = str(error) if isinstance(error, UserError) else f"{error.strerror}: {error.filename or job.folder}"
        return Outcome(status="failed", seconds=round(time.monotonic() - started, 2), error=message, **common)
    finally:
        lock.release()
    if interrupted:
        raise KeyboardInterrupt
    return outcome


def _acquire(lock: FileLock, job: Job) -> bool:
    """Wait for an item's lock; False if the batch is stopped meanwhile."""
    while not _stopped(job):
        try:
            lock.acquire(timeout=_POLL)
            return True
        except Timeout:
            continue
    return False


def _run_process(job: Job, started: float, timeout: float | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """Start the kernel's process, follow it to its end or stop it; return the fields of its `Outcome`."""
    last: dict[str, Any] = {}
    stopped = late = interrupted = False
    with (job.folder / LOG).open("w", encoding="utf-8") as log:
        process = jobs.Process(kernel_process.execute, job, environment=environment, output=log)
        try:
            while not (late or stopped):
                if process.poll(_POLL):
                    event = process.receive()
                    if event is None:
                        break
                    last = event
                    if "cells" in last:
                        files.write_json(job.folder / PROGRESS, {"cell": last["cell"], "cells": last["cells"]})
                late = timeout is not None and time.monotonic() - started > timeout
                stopped = _stopped(job)
        except KeyboardInterrupt:
            stopped = interrupted = True
        finally:
            process.stop()
    if stopped:
        return {"status": "interrupted", "interrupted": interrupted}
    memory = {"peak_mb": last.get("peak_mb")}
    if late:
        cell = {"cell": last.get("cell"), "source": last.get("source", "")}
        return {"status": "failed", "error": f"stopped: it took longer than {timeout:g} s", **cell, **memory}
    if process.status == 0 and last.get("status") == "finished":
        return {"status": "finished", **memory}
    # a last event without an error: the process or its kernel died while that cell ran
    cause = f"{_exit_cause(process.status)}; see {job.folder / LOG}"
    failed = {"cell": last.get("cell"), "source": last.get("source", ""), "error": last.get("error", cause)}
    return {"status": "failed", **failed, **memory}


def _append(history: Path, outcome: Outcome) -> None:
    """Add a line in one write, so that items that end at the same time do not mix."""
    line = json.dumps({name: value for name, value in asdict(outcome).items() if name not in ("source", "cell")})
    with open(history, "ab", buffering=0) as file:
        file.write(line.encode() + b"\n")


def _stopped(job: Job) -> bool:
    return (job.folder.parent / STOP).exists()


def _clear(job: Job) -> None:
    """Remove results of an earlier batch from the folder: an old result must not pass for a new one."""
    if not (job.folder / LOG).exists():  # not an item's folder: its files belong to somebody else
        return
    for pattern in (OUTCOME, PROGRESS, LOG, "records.json", "*.ipynb", "*.html", "*.svg", "*.png"):
        for stale in job.folder.glob(pattern):
            stale.unlink()


def _exit_cause(status: int) -> str:
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    return "its kernel died (out of memory?) or could not start"

"""`lmdynamics batch`: notebooks × parameters in, a folder of results out."""

import json
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lmdynamics import files
from lmdynamics.batch.cache_key import code_version
from lmdynamics.batch.execute import OUTCOME, PROGRESS, STOP, Outcome, is_done, read_outcome
from lmdynamics.batch.executors import Executor, Pending, open_executor
from lmdynamics.batch.parameters import remarks
from lmdynamics.batch.plan import Job
from lmdynamics.batch.table import Table, print_plan
from lmdynamics.devices import need_device
from lmdynamics.errors import UserError
from lmdynamics.hub.checkpoints import FILE as PINS
from lmdynamics.paths import home, real_data_dirs
from lmdynamics.runs.revision_rules import RULES_FILE

INTERRUPTED = 130
BATCH_LOCK = ".batch.lock"  # in the batch's folder: only the batch that holds it may write there
_POLL = 0.2  # seconds between two checks of what has ended
_STOP_TIMEOUT = 30  # seconds that items get to stop after Ctrl-C


@dataclass(frozen=True)
class Options:
    """How a batch is executed. `timeout`: seconds an item may take; `retry`: times a failed one is tried again."""

    executor: str = "local"
    workers: int | None = None
    slurm: Sequence[str] = ()  # "name=value"
    retry: int = 0
    timeout: float | None = None
    force: bool = False
    fresh: bool = False  # train and measure again, in a separate data folder for each version of the code
    dry_run: bool = False


def batch(jobs: Sequence[Job], options: Options | None = None) -> int:
    """Execute the jobs of a plan (`batch.plan.plan`), and write `index.html` and `records.parquet` beside them.

    An item that has finished already, from the same notebook, parameters, runs and package, is not run again. If an
    item fails, the others still run. After Ctrl-C the same command resumes the batch.

    Returns 0 if all finished, 1 if one failed, 130 on Ctrl-C.

    Raises UserError for a wrong option, executor or folder, a device that is not on this machine, or if another batch
    writes to the folder.
    """
    options = options or Options()
    if options.retry < 0 or (options.timeout is not None and options.timeout <= 0):
        raise UserError("--retry should be 0 or more, and --timeout more than 0 seconds")
    out = jobs[0].folder.parent
    if options.fresh:  # results from earlier runs and traces do not count
        jobs = [replace(job, key=f"{job.key}-fresh") for job in jobs]
    todo = [job for job in jobs if options.force or not is_done(job)]
    if options.executor == "local":  # a cluster's workers have devices of their own
        for device in dict.fromkeys(job.parameters.get("device", "cpu") for job in todo):
            need_device(device)
    for path in dict.fromkeys(job.notebook for job in todo):
        for remark in remarks(path):
            print(f"lmdynamics: {remark}", file=sys.stderr, flush=True)
    if options.dry_run or len(jobs) > 1:
        print_plan(jobs, todo)
    if options.dry_run:
        return 0
    lock = _lock_folder(out)
    (out / STOP).unlink(missing_ok=True)  # left by a batch that was stopped
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` and schedulers act like Ctrl-C
    try:
        flags = _flags(options.slurm)
        gpu = any(job.parameters.get("device", "cpu") != "cpu" for job in todo)
        with open_executor(options.executor, options.workers, flags, out, gpu) as executor:
            outcomes = _run(todo, executor, options)
        print(f"results: {_write_results(out)}", flush=True)
        return int(any(outcome.status != "finished" for outcome in outcomes))
    except KeyboardInterrupt:
        print(f"interrupted; finished items are in {_write_results(out)}; the same command resumes", flush=True)
        return INTERRUPTED
    except OSError as error:
        raise UserError(f"{error.strerror or error}: {error.filename or out}; finished items are kept") from error
    finally:
        signal.signal(signal.SIGTERM, previous)
        with suppress(OSError):
            lock.release()


def _run(jobs: Sequence[Job], executor: Executor, options: Options) -> list[Outcome]:
    """Submit the jobs, follow them, retry those that failed; on Ctrl-C stop what runs and raise."""
    settings = {"timeout": options.timeout}
    settings["environment"] = _fresh_home(jobs[0].folder.parent) if options.fresh and jobs else _data_folders()
    outcomes: dict[str, Outcome] = {}
    with Table(jobs) as table:
        waiting = deque((job, 1) for job in jobs)
        pending: dict[Pending, tuple[Job, int]] = {}
        try:
            while waiting or pending:
                while waiting and (executor.max_jobs is None or len(pending) < executor.max_jobs):
                    job, attempt = waiting.popleft()
                    force = options.force or attempt > 1
                    pending[executor.submit(job, attempts=attempt, force=force, **settings)] = job, attempt
                for future in [future for future in pending if future.done()]:
                    job, attempt = pending.pop(future)
                    outcome = _outcome(future, job, attempt)
                    if outcome.status == "failed" and attempt <= options.retry:
                        table.print(f"{outcome}; trying again ({attempt} of {options.retry})")
                        waiting.append((job, attempt + 1))
                        continue
                    outcomes[job.name] = outcome
                    table.finish(outcome)
                table.update({job.name: _progress(job) for job, _ in pending.values()})
                time.sleep(_POLL)
        except BaseException:
            jobs[0].folder.parent.joinpath(STOP).touch()
            for future in pending:
                future.cancel()
            deadline = time.monotonic() + _STOP_TIMEOUT
            while time.monotonic() < deadline and not all(future.done() for future in pending):
                time.sleep(_POLL)
            raise
    return list(outcomes.values())


def _data_folders() -> dict[str, str]:
    """The folders of runs and corpora, if set by environment variables: workers of a cluster may lack these."""
    folders = {"LMDYNAMICS_HOME": home(), "LMDYNAMICS_DATA": real_data_dirs()[0]}
    return {name: str(folder) for name, folder in folders.items() if os.environ.get(name)}


def _fresh_home(out: Path) -> dict[str, str]:
    """A data folder without runs and traces of other versions of the code.

    It shares the corpora, and has copies of the user's revision rules and of the commits that suites are pinned to.
    """
    fresh = out / f"home-{code_version()}"
    for file in (home() / RULES_FILE, *home().glob(f"suites/*/{PINS}")):
        if file.is_file():
            copy = fresh / file.relative_to(home())
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    if (home() / "fetched").is_dir() and not (fresh / "fetched").exists():
        fresh.mkdir(parents=True, exist_ok=True)
        (fresh / "fetched").symlink_to(home() / "fetched")
    return {"LMDYNAMICS_HOME": str(fresh), "LMDYNAMICS_DATA": str(real_data_dirs()[0])}


def _outcome(future: Pending, job: Job, attempt: int) -> Outcome:
    """The outcome of an item; if its worker was lost, the outcome is a failure."""
    try:
        return future.result()
    except Exception as error:  # a cluster may raise any exception
        if is_done(job):
            return read_outcome(job.folder)
        message = " ".join(f"its worker was lost ({type(error).__name__}: {error})".split())
        item = {"notebook": job.notebook.stem, "key": job.key, "attempts": attempt}
        failure = Outcome(job.name, "failed", 0.0, job.parameters, error=message, **item)
        job.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(job.folder / OUTCOME, asdict(failure))
        return failure


def _progress(job: Job) -> tuple[int, int] | None:
    """The cell that an item executes, and how many it has; None if it has not started."""
    try:
        progress = json.loads((job.folder / PROGRESS).read_text("utf-8"))
        return progress["cell"], progress["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lock_folder(out: Path) -> FileLock:
    """Make the batch's folder and lock it: two batches in one would delete each other's results."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / BATCH_LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another batch is writing to {out}; wait for it, or name another folder with --out") from None
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}; name another folder with --out") from error
    return lock


def _flags(texts: Sequence[str]) -> dict[str, str]:
    flags: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--slurm {text!r} is not of the form name=value, such as slurm_partition=gpu")
        flags[name] = value
    return flags


def _write_results(out: Path) -> Path:
    """Write the records of all items as one file, and the index page; return the page."""
    from lmdynamics.batch.collect import collect
    from lmdynamics.batch.site import write_index

    collect(out)
    return write_index(out)

"""Where the items of a batch are executed: processes here, the workers of a dask scheduler, or jobs of SLURM.

All are used in the same way: `submit` gives something with `done`, `result` and `cancel`.
"""

import logging
import os
import queue
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lmdynamics.batch.execute import Outcome, run_notebook
from lmdynamics.batch.plan import Job
from lmdynamics.errors import UserError
from lmdynamics.jobs import CORES, GPUS, available_cores, visible_gpus

PATIENCE = 10  # seconds for a scheduler to answer
QUEUE_LOOK = 10  # seconds between two looks at SLURM's queue


class Pending(Protocol):
    """An item that was submitted."""

    def done(self) -> bool: ...
    def result(self) -> Outcome: ...
    def cancel(self) -> Any: ...


@dataclass(frozen=True)
class Where:
    """What executes items: `submit` takes a job and options. `at_once`: how many to submit at a time, None for all."""

    submit: Callable[..., Pending]
    at_once: int | None


@contextmanager
def open_executor(
    where: str, workers: int | None, flags: dict[str, str], folder: Path, gpu: bool = False
) -> Iterator[Where]:
    """What `where` names: `local`, `dask://HOST:PORT`, `slurm`, or `slurm-local` (SLURM's stand-in, on this machine).

    `workers`: items at a time; by default here one per core, or with `gpu` one per visible GPU, and elsewhere as many
    as there are.
    `flags`: SLURM's settings as submitit calls them (`timeout_min`, `slurm_partition`, `gpus_per_node`, …). `folder`:
    the batch's own.

    Raises UserError if there is no such executor, a package it needs is missing, or its scheduler does not answer.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; at least 1 is needed")
    if flags and not where.startswith("slurm"):
        raise UserError(f"--slurm is for --executor slurm; this one is {where!r}")
    if where == "local":
        with Local(workers, gpu) as local:
            yield Where(local.submit, local.at_once)
    elif where.startswith("dask://"):
        with _dask(where.removeprefix("dask://"), workers) as dask:
            yield dask
    elif where in ("slurm", "slurm-local"):
        yield _slurm("slurm" if where == "slurm" else "local", workers, flags, folder)
    else:
        raise UserError(f"there is no executor {where!r}; known: local, dask://HOST:PORT, slurm")


class Local(ThreadPoolExecutor):
    """Threads, each of which waits for one notebook's own process; a GPU each, or a share of the cores."""

    def __init__(self, workers: int | None = None, gpu: bool = False):
        gpus, cores = visible_gpus() if gpu else [], available_cores()
        self.at_once = workers or len(gpus) or (1 if gpu else cores)
        super().__init__(self.at_once)
        self._slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for slot in range(self.at_once):
            own = {CORES: str(max(1, cores // self.at_once))}
            self._slots.put(own | ({GPUS: gpus[slot % len(gpus)]} if gpus else {}))

    def submit(self, job: Job, **options: Any) -> Pending:
        return super().submit(self._run, job, options)

    def _run(self, job: Job, options: dict[str, Any]) -> Outcome:
        slot = self._slots.get()
        by_number = ":" in str(job.parameters.get("device", ""))  # a GPU of its choice, not the slot's
        try:
            return run_there(job, options, {CORES: slot[CORES]} if by_number else slot)
        finally:
            self._slots.put(slot)


def run_there(job: Job, options: dict[str, Any], slot: Mapping[str, str] | None = None) -> Outcome:
    """An item where it is executed, perhaps by a worker of a cluster, which shares package and the batch's folder."""
    # a kernel computes with one thread, unless told otherwise: sums do not depend on how many cores there are
    one_thread = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    own = {**one_thread, **(slot or {}), **options.get("environment", {})}
    return run_notebook(job, **{**options, "environment": own})


@contextmanager
def _dask(address: str, workers: int | None) -> Iterator[Where]:
    try:
        from dask.distributed import Client
    except ImportError:
        raise UserError("--executor dask:// needs dask; run `pip install 'lmdynamics[cluster]'`") from None
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no dask scheduler answers at {address}: {' '.join(str(error).split())}") from None

    def submit(job: Job, **options: Any) -> Pending:
        # impure: the same item may be tried again; a worker that is killed is no fault of the item's
        return client.submit(run_there, job, options, pure=False, retries=0)

    with client:
        yield Where(submit, workers)


def _slurm(cluster: str, workers: int | None, flags: dict[str, str], folder: Path) -> Where:
    try:
        import submitit
    except ImportError:
        raise UserError("--executor slurm needs submitit; run `pip install 'lmdynamics[cluster]'`") from None
    logging.getLogger("submitit").setLevel(logging.ERROR)  # without accounting, every look at a job would be a warning
    try:
        executor = submitit.AutoExecutor(folder / ".slurm", cluster=cluster)
        executor.update_parameters(**{"timeout_min": 60, "name": "lmdynamics", **_typed(flags)})
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(f"SLURM is not to be had as asked: {' '.join(str(error).split())}") from None
    jobs = _Queue() if cluster == "slurm" else None

    def submit(job: Job, **options: Any) -> Pending:
        submitted = executor.submit(run_there, job, options)
        return submitted if jobs is None else _SlurmJob(submitted, jobs)

    return Where(submit, workers)


class _Queue:
    """The jobs that SLURM still has: on a cluster without accounting nothing else tells that one has ended."""

    def __init__(self) -> None:
        self.looks, self._looked, self._jobs = 0, time.monotonic(), None

    def lacks(self, job_id: str) -> bool:
        """Whether SLURM has no such job; asked at most every `QUEUE_LOOK` seconds, False where it does not answer."""
        if time.monotonic() - self._looked > QUEUE_LOOK:
            self._looked, self.looks = time.monotonic(), self.looks + 1
            asked = ["squeue", "--noheader", "--me", "--array", "--format=%i"]
            try:
                done = subprocess.run(asked, capture_output=True, text=True, timeout=QUEUE_LOOK)
                self._jobs = set(done.stdout.split()) if done.returncode == 0 else None
            except (OSError, subprocess.TimeoutExpired):
                self._jobs = None
        return self._jobs is not None and job_id not in self._jobs


class _SlurmJob:
    """A job of submitit's that is also done when it has left the queue without a result."""

    def __init__(self, job: Any, queue: _Queue):
        self.job, self.queue, self.cancel = job, queue, job.cancel
        self._missed: int | None = None  # the look at which it was first not in the queue

    def done(self) -> bool:
        return self.job.done() or self._is_lost()

    def _is_lost(self) -> bool:
        if not self.queue.lacks(self.job.job_id):
            self._missed = None
        elif self._missed is None:
            self._missed = self.queue.looks
        # one look more, for a result that the network's file system shows late
        return self._missed is not None and self.queue.looks > self._missed

    def result(self) -> Outcome:
        if not self.job.done():
            raise RuntimeError(f"SLURM has no job {self.job.job_id} any more, and it has left no result")
        return self.job.result()


def _typed(flags: dict[str, str]) -> dict[str, Any]:
    """SLURM's settings: whole numbers and truth values as such, all else as text."""
    words = {"true": True, "false": False}
    return {
        name: int(text) if text.lstrip("-").isdigit() else words.get(text.lower(), text) for name, text in flags.items()
    }

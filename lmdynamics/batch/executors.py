"""Executors of a batch's items: local processes, the workers of a dask scheduler, or jobs of SLURM.

All are used in the same way: `submit` returns an object with `done`, `result` and `cancel`.
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

SCHEDULER_TIMEOUT = 10  # seconds
QUEUE_INTERVAL = 10  # seconds between two queries of SLURM's queue


class Pending(Protocol):
    """An item that was submitted."""

    def done(self) -> bool: ...
    def result(self) -> Outcome: ...
    def cancel(self) -> Any: ...


@dataclass(frozen=True)
class Executor:
    """`submit` takes a job and the options of `run_notebook`. `max_jobs`: how many to submit at a time; None: all."""

    submit: Callable[..., Pending]
    max_jobs: int | None


@contextmanager
def open_executor(
    name: str, workers: int | None, flags: dict[str, str], folder: Path, gpu: bool = False
) -> Iterator[Executor]:
    """The executor of this `name`: `local`, `dask://HOST:PORT`, `slurm`, or `slurm-local` (submitit's local executor).

    `workers`: items at a time; by default one per core, or with `gpu` one per visible GPU; on a cluster without a
    limit.
    `flags`: SLURM's settings as submitit names them (`timeout_min`, `slurm_partition`, `gpus_per_node`, …). `folder`:
    the batch's own.

    Raises UserError if there is no such executor, a package it needs is missing, or its scheduler does not answer.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; at least 1 is needed")
    if flags and not name.startswith("slurm"):
        raise UserError(f"--slurm is for --executor slurm; this one is {name!r}")
    if name == "local":
        with Local(workers, gpu) as local:
            yield Executor(local.submit, local.max_jobs)
    elif name.startswith("dask://"):
        with _dask(name.removeprefix("dask://"), workers) as dask:
            yield dask
    elif name in ("slurm", "slurm-local"):
        yield _slurm("slurm" if name == "slurm" else "local", workers, flags, folder)
    else:
        raise UserError(f"there is no executor {name!r}; known: local, dask://HOST:PORT, slurm")


class Local(ThreadPoolExecutor):
    """Threads that each wait for one notebook's process, which has a GPU of its own, or a share of the cores."""

    def __init__(self, workers: int | None = None, gpu: bool = False):
        gpus, cores = visible_gpus() if gpu else [], available_cores()
        self.max_jobs = workers or len(gpus) or (1 if gpu else cores)
        super().__init__(self.max_jobs)
        self._slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for slot in range(self.max_jobs):
            share = {CORES: str(max(1, cores // self.max_jobs))}
            self._slots.put(share | ({GPUS: gpus[slot % len(gpus)]} if gpus else {}))

    def submit(self, job: Job, **options: Any) -> Pending:
        return super().submit(self._run, job, options)

    def _run(self, job: Job, options: dict[str, Any]) -> Outcome:
        slot = self._slots.get()
        numbered = ":" in str(job.parameters.get("device", ""))  # it names its GPU, so does not use the slot's
        try:
            return run_on_worker(job, options, {CORES: slot[CORES]} if numbered else slot)
        finally:
            self._slots.put(slot)


def run_on_worker(job: Job, options: dict[str, Any], slot: Mapping[str, str] | None = None) -> Outcome:
    """Execute an item, perhaps on a worker of a cluster, which shares the package and the batch's folder."""
    # one thread per kernel by default, so that sums do not depend on the number of cores
    one_thread = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    environment = {**one_thread, **(slot or {}), **options.get("environment", {})}
    return run_notebook(job, **{**options, "environment": environment})


@contextmanager
def _dask(address: str, workers: int | None) -> Iterator[Executor]:
    try:
        from dask.distributed import Client
    except ImportError:
        raise UserError("--executor dask:// needs dask; run `pip install 'lmdynamics[cluster]'`") from None
    try:
        client = Client(address, timeout=SCHEDULER_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no dask scheduler answers at {address}: {' '.join(str(error).split())}") from None

    def submit(job: Job, **options: Any) -> Pending:
        # impure: the same item may be tried again; if its worker is killed, dask should not retry it
        return client.submit(run_on_worker, job, options, pure=False, retries=0)

    with client:
        yield Executor(submit, workers)


def _slurm(cluster: str, workers: int | None, flags: dict[str, str], folder: Path) -> Executor:
    try:
        import submitit
    except ImportError:
        raise UserError("--executor slurm needs submitit; run `pip install 'lmdynamics[cluster]'`") from None
    logging.getLogger("submitit").setLevel(logging.ERROR)  # without accounting, every query of a job is a warning
    try:
        executor = submitit.AutoExecutor(folder / ".slurm", cluster=cluster)
        executor.update_parameters(**{"timeout_min": 60, "name": "lmdynamics", **_typed(flags)})
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(f"SLURM cannot be used with these settings: {' '.join(str(error).split())}") from None
    jobs = _Queue() if cluster == "slurm" else None

    def submit(job: Job, **options: Any) -> Pending:
        submitted = executor.submit(run_on_worker, job, options)
        return submitted if jobs is None else _SlurmJob(submitted, jobs)

    return Executor(submit, workers)


class _Queue:
    """The jobs in SLURM's queue; on a cluster without accounting, the only way to know that one has ended."""

    def __init__(self) -> None:
        self.queries, self._queried, self._jobs = 0, time.monotonic(), None

    def is_missing(self, job_id: str) -> bool:
        """Whether SLURM has no such job, asked at most every `QUEUE_INTERVAL` seconds; False if it does not answer."""
        if time.monotonic() - self._queried > QUEUE_INTERVAL:
            self._queried, self.queries = time.monotonic(), self.queries + 1
            command = ["squeue", "--noheader", "--me", "--array", "--format=%i"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=QUEUE_INTERVAL)
                self._jobs = set(done.stdout.split()) if done.returncode == 0 else None
            except (OSError, subprocess.TimeoutExpired):
                self._jobs = None
        return self._jobs is not None and job_id not in self._jobs


class _SlurmJob:
    """A job of submitit that also counts as done when it has left the queue without a result."""

    def __init__(self, job: Any, queue: _Queue):
        self.job, self.queue, self.cancel = job, queue, job.cancel
        self._missing_since: int | None = None  # the first query that did not list it

    def done(self) -> bool:
        return self.job.done() or self._is_lost()

    def _is_lost(self) -> bool:
        if not self.queue.is_missing(self.job.job_id):
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = self.queue.queries
        # one query more: a network file system may show a result late
        return self._missing_since is not None and self.queue.queries > self._missing_since

    def result(self) -> Outcome:
        if not self.job.done():
            raise RuntimeError(f"SLURM no longer has job {self.job.job_id}, and the job left no result")
        return self.job.result()


def _typed(flags: dict[str, str]) -> dict[str, Any]:
    """SLURM's settings: integers and booleans are converted, all else is text."""
    bools = {"true": True, "false": False}
    return {
        name: int(text) if text.lstrip("-").isdigit() else bools.get(text.lower(), text) for name, text in flags.items()
    }

"""Worker processes: they ignore the parent's Ctrl-C, and one of them has low priority for work that can wait."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process, resource_tracker
from typing import Any

CORES = "LMDYNAMICS_CORES"
GPUS = "CUDA_VISIBLE_DEVICES"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read as torch and numpy are imported


def cores_here() -> int:
    """How many cores this process may use: all, unless its parent has divided them among several."""
    return int(os.environ.get(CORES) or os.cpu_count() or 1)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them: by number, or by an identity."""
    named = os.environ.get(GPUS)
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:  # quicker to know than by importing torch
        return []
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C waits, and never reaches the processes started here: they are told by a pipe, whatever they are at."""
    resource_tracker.ensure_running()  # the first spawn starts it, which lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def map_in_processes(work: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """`work(job)` of each job, in order: by some processes with a thread each, or here where one worker is enough.

    The processes ignore Ctrl-C and end when their parent ends, even if it is killed.
    """
    if workers == 1:
        yield from map(work, jobs)
        return
    executor = ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent)
    try:
        with without_interrupts(), threads_each(1):
            pending = [executor.submit(work, job) for job in jobs]
        for each in pending:
            yield each.result()
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def threads_each(number: int) -> Iterator[None]:
    """What is started here computes with so many threads."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(number)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def aside() -> Iterator[ProcessPoolExecutor]:
    """An executor of one process of low priority, which ends when its parent ends, even if that is killed.

    For measuring while a run is trained on the same machine. A thread of low priority would not do: while it waits for
    its turn it may hold the interpreter's lock. Ctrl-C keeps away from the process, and from the calling thread.
    """
    with without_interrupts(), ProcessPoolExecutor(1, get_context("spawn"), _begin_aside) as executor:
        yield executor


def _begin_aside() -> None:
    os.nice(19)
    import torch

    torch.set_num_threads(1)
    _end_with_parent()


def _end_with_parent() -> None:
    """Watch the parent process: nothing else would end it, for it holds both ends of the pipe it waits at."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

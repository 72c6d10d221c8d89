"""Processes beside the one a person sits at: deaf to its Ctrl-C, and one of low priority for what need not be soon."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process, resource_tracker

CORES = "LMDYNAMICS_CORES"


def cores_here() -> int:
    """How many cores this process may use: all, unless whoever started several of its kind has divided them."""
    return int(os.environ.get(CORES) or os.cpu_count() or 1)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C waits, and never reaches the processes started here: they are told by a pipe, whatever they are at."""
    resource_tracker.ensure_running()  # the first spawn starts it, which lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def aside() -> Iterator[ProcessPoolExecutor]:
    """An executor of one process of low priority, which ends with whoever started it, however that ends.

    For measuring while a run is trained on the same machine. A thread of low priority would not do: while it waits for
    its turn it may hold the interpreter's lock. Ctrl-C keeps away from the process, and from the calling thread.
    """
    with without_interrupts(), ProcessPoolExecutor(1, get_context("spawn"), _begin) as executor:
        yield executor


def _begin() -> None:
    os.nice(19)
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)  # nothing else would end it: it holds both ends of the pipe that it waits at

"""A process of low priority, for what need not be soon: measuring while a run is trained on the same machine."""

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process


def aside() -> ProcessPoolExecutor:
    """An executor of one such process, which ends with whoever started it, however that ends.

    A thread of low priority would not do: while it waits for its turn it may hold the interpreter's lock.
    """
    return ProcessPoolExecutor(1, get_context("spawn"), _begin)


def without_interrupts() -> None:
    """Keep Ctrl-C from the calling thread and from the processes that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _begin() -> None:
    os.nice(19)
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)  # nothing else would end it: it holds both ends of the pipe that it waits at

"""Trainings in processes of their own: how tests start them, and how those that are left are ended."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmdynamics.runs import background
from tests.conftest import TINY

LONG = {**TINY, "steps": 800}  # some seconds


def command(
    home: Path, verb: str, target: str, *words: str, launcher: tuple[str, ...] = ("-m", "lmdynamics.cli"), **options
):
    """A command line on tiny models, in a process of its own with a data folder and one thread."""
    overrides = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    env = {**os.environ, "LMDYNAMICS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *launcher, verb, target, *overrides, *words]
    return subprocess.Popen(line, env=env, text=True, **options)


@contextmanager
def ended(seconds: float = 0) -> Iterator[None]:
    """No process begun inside outlives it, nor a thread by more than some seconds."""
    threads = alive()
    background._trainings.clear()
    yield
    trainings = list(background._trainings.values())
    for training in trainings:
        training.stop()
    for training in trainings:
        training.wait(60)
        assert training._process is None
    wait_for(lambda: alive() <= threads, seconds)


def alive() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"}  # which progress bars leave


def wait_for(holds, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)

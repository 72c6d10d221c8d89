"""Processes that Ctrl-C does not reach."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from lmdynamics.jobs import aside, map_in_processes, visible_gpus, without_interrupts


def blocked() -> set[int]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_waits_and_then_comes():
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        with without_interrupts():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            assert came == []
        assert came == [True]
        assert signal.SIGINT not in blocked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_aside_is_of_low_priority_and_deaf_from_its_beginning():
    with aside() as executor:
        assert executor.submit(os.nice, 0).result() == 19
        assert signal.SIGINT in executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()
    assert signal.SIGINT not in blocked()


def threads_of(name: str) -> tuple[int, str]:
    return os.getpid(), os.environ[name]


def test_jobs_are_done_in_order_by_processes_with_a_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert list(map_in_processes(abs, range(-20, 0), 2)) == list(range(20, 0, -1))
    apart = list(map_in_processes(threads_of, ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"] * 4, 2))
    assert os.getpid() not in {process for process, _ in apart}
    assert {threads for _, threads in apart} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert signal.SIGINT not in blocked()


def test_one_worker_is_this_process():
    assert list(map_in_processes(threads_of, ["HOME"], 1)) == [(os.getpid(), os.environ["HOME"])]


def test_a_job_that_fails_fails_here():
    with pytest.raises(ZeroDivisionError):
        list(map_in_processes(divmod_by, [1, 0, 1], 2))


def divmod_by(n: int) -> tuple[int, int]:
    return divmod(1, n)


ASLEEP = """\
import sys, time
from lmdynamics.jobs import map_in_processes
if __name__ == "__main__":
    list(map_in_processes(time.sleep, [600, 600], 2))
"""


def test_processes_end_with_whoever_started_them(tmp_path):
    (tmp_path / "asleep.py").write_text(ASLEEP)
    started = subprocess.Popen([sys.executable, tmp_path / "asleep.py"])
    children, until = [], time.monotonic() + 60
    while len(children) < 3 and time.monotonic() < until:  # two, and multiprocessing's resource tracker
        children = psutil.Process(started.pid).children(recursive=True)
        time.sleep(0.2)
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert len(children) == 3
    assert not alive


@pytest.mark.parametrize(("named", "gpus"), [("4,7", ["4", "7"]), ("GPU-1a2b", ["GPU-1a2b"]), ("", []), ("-1", [])])
def test_gpus_are_those_that_the_environment_names(monkeypatch, named, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus

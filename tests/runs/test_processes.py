"""Processes that Ctrl-C does not reach."""

import os
import signal
import threading

from lmdynamics.runs.processes import aside, without_interrupts


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

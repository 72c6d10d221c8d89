"""Processes that Ctrl-C does not reach."""

import signal
import threading

from lmdynamics.runs.processes import without_interrupts


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

"""Long computations in the background: controls stay usable, a line shows the progress, and a button cancels."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from html import escape
from typing import Any

import ipywidgets as widgets

from lmdynamics.errors import one_line

Compute = Callable[[Executor | None], Any]  # gets an executor; what it submits there can be cancelled
MESSAGE_DELAY = 0.15  # seconds before the page shows that something is computed


class Computing:
    """One computation at a time. A later one replaces an earlier one, whose result is dropped.

    In a notebook it runs in a thread; `on_result`, or `on_error` if it failed or was cancelled, is then called in the
    kernel's thread. Without an event loop, as in a plain script, everything is done before `begin` returns.
    """

    def __init__(self):
        self.message = widgets.HTML()
        self.cancel = widgets.Button(description="cancel", layout=widgets.Layout(width="80px"))
        self.cancel.on_click(lambda _: self.abort())
        self.widget = widgets.HBox([self.message, self.cancel], layout=widgets.Layout(display="none"))
        self.busy = False
        self._turn = 0
        self._working = False  # a thread computes, perhaps something that was cancelled
        self._waiting: Callable[[], None] | None = None  # starts the latest request
        self._executor: _CountingExecutor | None = None
        self._on_abort: Callable[[], None] = lambda: None

    def begin(
        self,
        compute: Compute,
        on_result: Callable[[Any], None],
        on_error: Callable[[str], None] = lambda message: None,
        label: str = "computing",
    ) -> None:
        """Compute, then call `on_result` with the result, or `on_error` with a line that explains the failure.

        It starts when the previous one has ended; if several wait, only the last is started.
        """
        self.abort()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            _deliver(lambda: compute(None), on_result, on_error)
            return
        self._turn += 1
        turn, executor = self._turn, _CountingExecutor()
        self.busy, self._executor = True, executor

        def done(result: Future) -> None:
            self._working, waiting, self._waiting = False, self._waiting, None
            if turn == self._turn:
                self._finish()
                _deliver(result.result, on_result, on_error)
            elif waiting:
                waiting()

        def start() -> None:
            if turn != self._turn:
                return
            if self._working:
                self._waiting = start
            else:
                self._working = True
                threading.Thread(target=work, daemon=True).start()

        def work() -> None:
            result: Future = Future()
            try:
                result.set_result(compute(executor))
            except BaseException as error:
                result.set_exception(error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(done, result)

        def update_message() -> None:
            if turn == self._turn and self.busy:
                self.message.value = f"{escape(label)} … {escape(executor.progress)}"
                self.widget.layout.display = None
                loop.call_later(MESSAGE_DELAY, update_message)

        self._on_abort = lambda: on_error("cancelled; what was computed so far is kept")
        loop.call_soon(start)
        loop.call_later(MESSAGE_DELAY, update_message)

    def abort(self) -> None:
        """Cancel the computation, if there is one."""
        if self.busy:
            self._turn += 1
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._finish()
            self._on_abort()

    def _finish(self) -> None:
        self.busy = False
        self.message.value = ""
        self.widget.layout.display = "none"
        self._executor.shutdown(wait=False)


class _CountingExecutor(ThreadPoolExecutor):
    """One thread, with counts of submitted and completed tasks."""

    def __init__(self):
        super().__init__(1)
        self.submitted = self.done = 0

    def submit(self, *arguments, **keywords) -> Future:
        self.submitted += 1
        future = super().submit(*arguments, **keywords)
        future.add_done_callback(self._count)
        return future

    def _count(self, _: Future) -> None:
        self.done += 1

    @property
    def progress(self) -> str:
        return f"{self.done} of {self.submitted} checkpoints" if self.submitted else ""


def _deliver(result: Callable[[], Any], on_result: Callable[[Any], None], on_error: Callable[[str], None]) -> None:
    try:
        value = result()
    except CancelledError:
        return  # already reported
    except Exception as error:  # the computation may raise anything; the page must stay usable
        on_error(one_line(error))
    else:
        on_result(value)

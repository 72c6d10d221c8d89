"""What takes a while, computed beside the page: controls stay free, a line says so, and a button gives it up."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from html import escape
from typing import Any

import ipywidgets as widgets

from lmdynamics.errors import one_line

Compute = Callable[[Executor | None], Any]  # given where to compute; what it submits there can be cancelled
AFTER = 0.15  # seconds that something may take before the page says that it is computing


class Computing:
    """One computation at a time. A later one takes the place of an earlier, whose result is dropped.

    In a notebook it runs in a thread, and what follows it (`then`, or `otherwise` if it failed or was given up) back in
    the kernel's own. Without an event loop, as in a plain script, all is done before `begin` returns.
    """

    def __init__(self):
        self.said = widgets.HTML()
        self.cancel = widgets.Button(description="cancel", layout=widgets.Layout(width="80px"))
        self.cancel.on_click(lambda _: self.give_up())
        self.widget = widgets.HBox([self.said, self.cancel], layout=widgets.Layout(display="none"))
        self.busy = False
        self._turn = 0
        self._working = False  # a thread computes, perhaps something that was given up
        self._waiting: Callable[[], None] | None = None  # starts what was asked for meanwhile
        self._counted: _Counted | None = None
        self._give_up: Callable[[], None] = lambda: None

    def begin(
        self,
        compute: Compute,
        then: Callable[[Any], None],
        otherwise: Callable[[str], None] = lambda said: None,
        what: str = "computing",
    ) -> None:
        """`compute`, and then `then` with its result, or `otherwise` with one line that says why there is none.

        It starts when the one before has ended; of several that wait only the last is started.
        """
        self.give_up()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            _settle(lambda: compute(None), then, otherwise)
            return
        self._turn += 1
        turn, counted = self._turn, _Counted()
        self.busy, self._counted = True, counted

        def done(result: Future) -> None:
            self._working, waiting, self._waiting = False, self._waiting, None
            if turn == self._turn:
                self._rest()
                _settle(result.result, then, otherwise)
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
                result.set_result(compute(counted))
            except BaseException as error:
                result.set_exception(error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(done, result)

        def tell() -> None:
            if turn == self._turn and self.busy:
                self.said.value = f"{escape(what)} … {escape(counted.progress)}"
                self.widget.layout.display = None
                loop.call_later(AFTER, tell)

        self._give_up = lambda: otherwise("cancelled; what was computed so far is kept")
        loop.call_soon(start)
        loop.call_later(AFTER, tell)

    def give_up(self) -> None:
        """Cancel what is being computed, if anything is."""
        if self.busy:
            self._turn += 1
            self._counted.shutdown(wait=False, cancel_futures=True)
            self._rest()
            self._give_up()

    def _rest(self) -> None:
        self.busy = False
        self.said.value = ""
        self.widget.layout.display = "none"
        self._counted.shutdown(wait=False)


class _Counted(ThreadPoolExecutor):
    """One thread that knows how much it was given and how much is done."""

    def __init__(self):
        super().__init__(1)
        self.given = self.done = 0

    def submit(self, *arguments, **keywords) -> Future:
        self.given += 1
        future = super().submit(*arguments, **keywords)
        future.add_done_callback(self._count)
        return future

    def _count(self, _: Future) -> None:
        self.done += 1

    @property
    def progress(self) -> str:
        return f"{self.done} of {self.given} checkpoints" if self.given else ""


def _settle(result: Callable[[], Any], then: Callable[[Any], None], otherwise: Callable[[str], None]) -> None:
    try:
        found = result()
    except CancelledError:
        return  # somebody has said so already
    except Exception as error:  # what was asked for may raise anything; the page stays
        otherwise(one_line(error))
    else:
        then(found)

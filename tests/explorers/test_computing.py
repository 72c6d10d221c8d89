"""Computing beside the page: results arrive in the loop, later ones replace earlier ones, and it can be given up."""

import asyncio
import threading
import time

import pytest

from lmdynamics.errors import UserError
from lmdynamics.explorers.computing import Computing


def failing(_):
    raise UserError("there is <no> such step")


async def settled(computing: Computing) -> None:
    while computing.busy:
        await asyncio.sleep(0.01)


def test_without_a_loop_all_is_done_at_once():
    results, messages = [], []
    Computing().begin(lambda executor: [executor], results.append, messages.append)
    Computing().begin(failing, results.append, messages.append)
    assert (results, messages) == ([[None]], ["there is <no> such step"])


def test_in_a_loop_the_result_comes_back_to_the_loops_own_thread():
    computing, results, threads = Computing(), [], []

    def compute(executor):
        threads.append(threading.current_thread())
        return executor.submit(lambda: 6 * 7).result()

    async def notebook():
        computing.begin(compute, lambda value: results.append((value, threading.current_thread())))
        assert results == []
        await settled(computing)

    asyncio.run(notebook())
    assert results == [(42, threading.main_thread())]
    assert threads != [threading.main_thread()]


def test_the_page_says_what_is_computed_and_how_far_it_is():
    computing, go_on, messages = Computing(), threading.Event(), []

    def compute(executor):
        executor.submit(int).result()
        last = executor.submit(go_on.wait)
        return last.result()

    async def notebook():
        computing.begin(compute, lambda _: None, label="measuring <b>")
        assert computing.widget.layout.display == "none"
        while not computing.message.value.endswith("1 of 2 checkpoints"):
            await asyncio.sleep(0.01)
        messages.append((computing.message.value, computing.widget.layout.display))
        go_on.set()
        await settled(computing)

    asyncio.run(asyncio.wait_for(notebook(), 30))
    assert messages == [("measuring &lt;b&gt; … 1 of 2 checkpoints", None)]
    assert (computing.message.value, computing.widget.layout.display) == ("", "none")


def test_cancelling_ends_what_has_not_begun_and_says_so():
    computing, begun, messages, results = Computing(), [], [], []

    def compute(executor):
        work = [executor.submit(lambda i=i: (begun.append(i), time.sleep(0.05))) for i in range(50)]
        return [each.result() for each in work]

    async def notebook():
        computing.begin(compute, results.append, messages.append)
        while not begun:
            await asyncio.sleep(0.01)
        computing.cancel.click()
        assert not computing.busy
        await asyncio.sleep(0.3)

    asyncio.run(notebook())
    assert results == []
    assert messages == ["cancelled; what was computed so far is kept"]
    assert len(begun) < 50


def test_of_two_only_the_later_arrives():
    computing, results, messages = Computing(), [], []

    async def notebook():
        computing.begin(lambda _: time.sleep(0.1) or 1, results.append, messages.append)
        await asyncio.sleep(0.02)
        computing.begin(lambda _: 2, results.append, messages.append)
        await settled(computing)
        await asyncio.sleep(0.2)

    asyncio.run(notebook())
    assert results == [2]
    assert len(messages) == 1


def test_of_several_in_a_row_only_the_last_is_begun():
    computing, begun, results = Computing(), [], []

    async def notebook():
        for i in range(5):
            computing.begin(lambda _, i=i: begun.append(i) or i, results.append)
        await settled(computing)

    asyncio.run(notebook())
    assert (begun, results) == ([4], [4])


def test_of_thirty_while_one_is_computed_only_the_last_follows_it():
    computing, begun, results, at_once = Computing(), [], [], []

    def compute(i):
        at_once.append(1)
        begun.append((i, sum(at_once)))
        time.sleep(0.3)
        at_once.append(-1)
        return i

    async def notebook():
        for i in range(30):
            computing.begin(lambda _, i=i: compute(i), results.append)
            await asyncio.sleep(0.005)
        await settled(computing)

    asyncio.run(notebook())
    assert begun == [(0, 1), (29, 1)]
    assert results == [29]


def test_what_waits_can_be_cancelled():
    computing, begun, go_on = Computing(), [], threading.Event()

    async def notebook():
        computing.begin(lambda _: go_on.wait(20), print)
        await asyncio.sleep(0.05)
        computing.begin(lambda _: begun.append(1), print)
        await asyncio.sleep(0.05)
        computing.cancel.click()
        go_on.set()
        await asyncio.sleep(0.2)

    asyncio.run(notebook())
    assert begun == []
    assert not computing.busy


@pytest.mark.parametrize("loop", [True, False])
def test_what_goes_wrong_is_reported_in_one_line(loop):
    computing, messages = Computing(), []

    def broken(_):
        raise ValueError("no\nsuch thing")

    async def notebook():
        computing.begin(broken, print, messages.append)
        await settled(computing)

    asyncio.run(notebook()) if loop else computing.begin(broken, print, messages.append)
    assert messages == ["ValueError: no such thing"]

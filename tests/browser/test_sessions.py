"""A long session in JupyterLab: a restarted kernel, several explorers at once, hundreds of moves."""

import os
import re
import time
from pathlib import Path

import pytest

from tests.batch.notebooks import write_notebook
from tests.browser.lab import CHROMIUM, Notebook, notebook_page
from tests.browser.moves import drag, press, slider_areas, views

ROOT = Path(__file__).parents[2]
MOVES = 200
PANELS = 5  # of the explorer: three curves, the map, the sentence
MAX_GROWTH = 50e6  # bytes that the kernel may grow by meanwhile

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="Chromium is not installed (apt install chromium)"),
]

RUN = """\
import lmdynamics as lmd
from lmdynamics.explorers.sas import SasExplorer
from tests.explorers.made import MAKE
run = lmd.train("grammar-mlm", "smoke", progress=False)
trees = run.treebank("grammar", 150)
"""
EXPLORER = """\
{name} = SasExplorer(run, trees, min_count=20, progress=False)
{name}_steps = []
{name}.views.observe(lambda _: {name}_steps.append({name}.now["step"]), "values")
{name}.show()
"""
RSS = "__import__('psutil').Process().memory_info().rss"


def opened(notebook: Notebook, lab, name: str, *cells: str) -> list[int]:
    """Write a notebook, run it, and give the numbers of the outputs with an explorer in them."""
    root, address = lab
    write_notebook(root / f"{name}.ipynb", *cells, parameters=None)
    notebook.open(address, f"{name}.ipynb")
    notebook.run_all()
    assert notebook.errors() == []
    areas = slider_areas(notebook.page)
    for area in areas:
        settled(notebook, area)  # a chart shows its own start values before it is told the present ones
    return areas


def chart_marks(page, area: int) -> list[str]:
    """The marks of an explorer's charts, without the numbers that Vega gives to its gradients and clips.

    And without labels, in which Vega keeps a parameter's value of when it first drew.
    """
    unnumbered = [re.sub(r"\b(clip|gradient_)\d+", r"\1", view) for view in views(page, area)]
    return [re.sub(r' aria-label="[^"]*"', "", view) for view in unnumbered]


def settled(notebook: Notebook, area: int, before: list[str] | None = None) -> list[str]:
    """What an explorer shows once it stands still, with every view moved from `before`; some seconds, where the
    machine is busy."""
    last, until = None, time.monotonic() + 20
    while True:
        now = chart_marks(notebook.page, area)
        if (now == last and (before is None or all(different(before, now)))) or time.monotonic() > until:
            return now
        last = now
        notebook.page.wait_for_timeout(400)


def move(notebook: Notebook, area: int, *keys: str) -> list[str]:
    """Press keys on an explorer's slider, and wait until every view has moved."""
    before = chart_marks(notebook.page, area)
    for key in keys:
        press(notebook.page, area, key)
        notebook.ask("0")
    return settled(notebook, area, before)


def different(before: list[str], after: list[str]) -> list[bool]:
    return [old != new for old, new in zip(before, after, strict=True)]


def no_problems(notebook: Notebook) -> None:
    assert (notebook.errors(), notebook.console, notebook.outside) == ([], [], [])


def test_a_restarted_kernel_draws_the_same_charts(lab):
    with notebook_page() as notebook:
        (area,) = opened(notebook, lab, "restart", RUN, EXPLORER.format(name="explorer"))
        first = chart_marks(notebook.page, area)
        moved = move(notebook, area, "ArrowLeft", "ArrowLeft")
        assert different(first, moved) == [True] * PANELS
        kernel = notebook.ask("__import__('os').getpid()")
        notebook.restart_and_run_all()
        assert notebook.ask("__import__('os').getpid()") != kernel
        assert slider_areas(notebook.page) == [area]
        assert different(first, chart_marks(notebook.page, area)) == [False] * PANELS
        assert different(moved, move(notebook, area, "ArrowLeft", "ArrowLeft")) == [False] * PANELS
        no_problems(notebook)


def test_explorers_beside_each_other_keep_apart(lab):
    cells = [*(EXPLORER.format(name=name) for name in ("one", "other")), "MAKE['dissent']().show()"]
    with notebook_page() as notebook:
        areas = opened(notebook, lab, "beside", RUN, *cells)
        assert len(areas) == 3
        for key in ("ArrowLeft", "ArrowRight"):
            for moved in areas:
                before = {area: settled(notebook, area) for area in areas}
                move(notebook, moved, key)
                for area in areas:
                    changed = different(before[area], chart_marks(notebook.page, area))
                    assert changed == [area == moved] * len(changed), (moved, area)
        assert notebook.ask("(one_steps, other_steps)") == ([32, 64], [32, 64])
        no_problems(notebook)


def test_hundreds_of_moves_leave_the_kernels_memory(lab):
    with notebook_page() as notebook:
        (area,) = opened(notebook, lab, "moves", RUN, EXPLORER.format(name="explorer"))
        page = notebook.page
        at_end = chart_marks(page, area)
        drag(page, area, 0.0)
        page.wait_for_timeout(800)
        notebook.ask("0")  # ipywidgets keeps the last place back until the kernel has answered for the one before it
        assert notebook.ask("(explorer_steps[-1], len(explorer_steps) > 2)") == (0, True)  # not in one leap
        assert different(at_end, chart_marks(page, area)) == [True] * PANELS
        drag(page, area, 1.0)
        page.wait_for_timeout(800)
        assert different(at_end, chart_marks(page, area)) == [False] * PANELS

        moves_to_end = notebook.ask("len(run.steps)") - 1
        rounds = [*["ArrowLeft"] * moves_to_end, *["ArrowRight"] * moves_to_end]
        before, count = notebook.ask(RSS), notebook.ask("len(explorer_steps)")
        for i in range(MOVES):
            press(page, area, rounds[i % len(rounds)])
            notebook.ask("0")
        assert notebook.ask("len(explorer_steps)") == count + MOVES
        assert notebook.ask(RSS) - before < MAX_GROWTH
        no_problems(notebook)


def test_an_explorer_shown_twice_shows_the_same_twice(lab):
    with notebook_page() as notebook:
        cells = [RUN, EXPLORER.format(name="explorer"), "explorer.restore({'step': 4}).show()"]
        one, other = opened(notebook, lab, "twice", *cells)
        for keys in ((), ("ArrowLeft",)):
            if keys:
                move(notebook, one, *keys)
            assert different(settled(notebook, one), settled(notebook, other)) == [False] * PANELS
        assert notebook.ask("explorer.now['step']") == 2
        no_problems(notebook)


def test_another_run_with_more_checkpoints_leaves_nothing_on_the_console(lab):
    few = "from tests.charts import interference_frames as frames\n"
    few += "from lmdynamics.explorers.zero_sum import ZeroSumExplorer\n"
    few += "runs = {'few': frames.one_step(steps=(1, 1024)), 'all': frames.one_step()}\n"
    few += "explorer = ZeroSumExplorer(runs, frames.texts)\n"
    with notebook_page() as notebook:
        opened(notebook, lab, "runs", few + "explorer.show()")
        page = notebook.page
        run, step_label = page.get_by_label("run", exact=True), page.locator(".lmd-moving output")
        assert step_label.inner_text() == "1,024"
        for name, checkpoints in (("all", 11), ("few", 2)):
            run.select_option(name)
            page.wait_for_function(
                "last => document.querySelector('.lmd-moving input[type=range]').max === String(last)",
                arg=checkpoints - 1,
            )
            assert step_label.inner_text() == "1,024"
        height = float(page.locator(".lmd-chart svg").get_attribute("height"))
        max_height = page.locator(".lmd-under").evaluate("under => parseFloat(under.style.maxHeight)")
        assert max_height == pytest.approx(max(120, 580 - height), abs=1)
        no_problems(notebook)

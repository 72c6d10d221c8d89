"""Saving and coming back, as a reader does it in JupyterLab: two buttons, a copied cell, a restarted kernel."""

import os
import re
from pathlib import Path

import pytest

from tests.batch.notebooks import write_notebook
from tests.browser.lab import CHROMIUM, jupyter_lab, notebook_page
from tests.browser.moves import SLIDER

OUT = Path(__file__).parent / "out"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="Chromium is not installed (apt install chromium)"),
]

EXPLORER = """\
from lmdynamics.experiments.ladder import curves_from_fits, published_fits
from lmdynamics.explorers.deceleration import DecelerationExplorer
explorer = DecelerationExplorer(curves_from_fits(published_fits(), [float(step) for step in range(110, 60_000, 300)]))
"""
VIEW = ".vega-embed svg"


def chart_marks(page) -> list[str]:
    """The marks of the picture; without their labels, in which Vega keeps a parameter's value of when it first drew."""
    pictures = page.locator(VIEW).evaluate_all("found => found.map(view => view.outerHTML)")
    return [re.sub(r' aria-label="[^"]*"', "", view) for view in pictures]


@pytest.mark.slow
def test_files_are_written_and_a_copied_state_gives_the_same_picture(tmp_path):
    root, scratch = tmp_path / "notebooks", tmp_path / "jupyter"
    root.mkdir()
    scratch.mkdir()
    write_notebook(root / "first.ipynb", EXPLORER, "explorer.show()", parameters=None)
    with (
        jupyter_lab(root, scratch, LMDYNAMICS_HOME=str(tmp_path / "home")) as address,
        notebook_page() as notebook,
    ):
        notebook.open(address, "first.ipynb")
        notebook.run_all()
        page = notebook.page
        page.locator(VIEW).first.wait_for(timeout=60_000)
        page.locator(SLIDER).focus()
        for _ in range(7):
            page.keyboard.press("ArrowRight")
        page.get_by_role("button", name="save", exact=True).click()
        page.get_by_text("saved 4 files").wait_for(timeout=60_000)
        page.get_by_role("button", name="state", exact=True).click()
        page.wait_for_function("[...document.querySelectorAll('textarea')].some(t => t.value.startsWith('explorer.'))")
        page.screenshot(path=OUT / "saving.png")
        cell = page.locator("textarea").evaluate_all(
            "found => found.map(text => text.value).find(text => text.startsWith('explorer.'))"
        )
        before = chart_marks(page)
        names = sorted(path.name for path in (root / "out").iterdir())
        assert names == ["break_by_hand.csv", "break_profile.csv", "explorer_break.png", "explorer_break.svg"]
        assert (notebook.errors(), notebook.console, notebook.outside) == ([], [], [])

        write_notebook(root / "second.ipynb", EXPLORER, cell, parameters=None)  # a kernel that knows nothing of it
        notebook.open(address, "second.ipynb")
        notebook.run_all()
        page.locator(VIEW).first.wait_for(timeout=60_000)
        page.wait_for_timeout(1000)
        assert chart_marks(page) == before
        assert (notebook.errors(), notebook.console, notebook.outside) == ([], [], [])

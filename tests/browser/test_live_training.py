"""Live training as a reader meets it: start, see the loss move, pause, resume, stop; a page drawn anew; a restart."""

import os
import re
from pathlib import Path

import pytest

from lmdynamics.training import layout
from tests.batch.notebooks import write_notebook
from tests.browser.lab import CHROMIUM, jupyter_lab, notebook_page
from tests.browser.legible import cut_off, inspect_charts
from tests.conftest import TINY

OUT = Path(__file__).parent / "out"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="Chromium is not installed (apt install chromium)"),
]

LIVE = f"""\
from lmdynamics.explorers.training import Watched, train_live
from lmdynamics.measurements.losses import HeldOutLoss
held_out = Watched(lambda run: HeldOutLoss(run.held_out()), "loss")
explorer = train_live("grammar-mlm", overrides={ {**TINY, "steps": 100_000} }, name="live",
                      measurements={{"held-out loss": held_out}})
explorer.show()
"""

STEP = r"at step ([\d,]+) of 100,000"
SAYS = "([words, least]) => { const found = document.body.innerText.match(new RegExp(words + ' at step ([\\\\d,]+)'));"
SAYS += " return found && Number(found[1].replaceAll(',', '')) > least }"


def press(page, name: str) -> None:
    page.locator(f"button.jupyter-button:has-text('{name}')").first.click()


def wait_until(page, state: str, beyond: int = 0) -> int:
    """Wait until the line says that state at a later step, which is returned."""
    page.wait_for_function(SAYS, arg=[state, beyond], timeout=60_000, polling=100)
    text = page.locator(".widget-html-content").filter(has_text=re.compile(STEP)).first.inner_text()
    return int(re.search(STEP, text)[1].replace(",", ""))


def drawn_steps(page) -> int:
    """How many single steps the loss panel shows."""
    return page.locator(".vega-embed svg .mark-symbol path").count()


def test_start_pause_resume_and_stop(tmp_path):
    root, scratch, home = (tmp_path / name for name in ("notebooks", "jupyter", "home"))
    for folder in (root, scratch, home):
        folder.mkdir()
    write_notebook(root / "live.ipynb", LIVE, "1 + 1", parameters=None)
    environment = {"LMDYNAMICS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with jupyter_lab(root, scratch, **environment) as address, notebook_page() as notebook:
        notebook.open(address, "live.ipynb")
        notebook.run_all()
        page = notebook.page
        page.locator(".vega-embed svg").get_by_text("not begun").wait_for(timeout=30_000)
        assert drawn_steps(page) == 0
        press(page, "start")
        first = wait_until(page, "training")
        later = wait_until(page, "training", first + 50)  # two updates, at least
        assert later > first
        assert drawn_steps(page) > 30
        assert cut_off(inspect_charts(page)) == []
        page.locator(".vega-embed svg").get_by_text("training at step").wait_for(timeout=10_000)
        notebook.run_all()  # the kernel is free, and the cell attaches to what is under way
        wait_until(page, "training", later)
        press(page, "pause")
        paused = wait_until(page, "paused", later)
        press(page, "resume")
        wait_until(page, "training", paused)
        notebook.screenshots(OUT, "live-training")
        assert cut_off(inspect_charts(page)) == []
        press(page, "stop")
        stopped = wait_until(page, "stopped", paused)
        assert notebook.errors() == []
        assert notebook.console == []
        assert notebook.outside == []
        run = home / "runs" / "live"
        assert max(layout.step_folders(run / "resume") | layout.step_folders(run / "checkpoints")) == stopped

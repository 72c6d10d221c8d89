"""The series as a reader meets it: JupyterLab, Run All Cells, live charts and widgets, no network."""

import os
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.batch.notebooks import write_notebook
from tests.browser.copies import copy_with_parameters
from tests.browser.lab import CHROMIUM, THEMES, notebook_page
from tests.browser.legible import unreadable
from tests.browser.moves import SLIDER, press, random_moves, slider_areas, views

NOTEBOOKS = sorted(Path(__file__).parents[2].glob("notebooks/*.ipynb"))
OUT = Path(__file__).parent / "out"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="Chromium is not installed (apt install chromium)"),
]

LIVE = """\
import altair as alt, ipywidgets as widgets, polars as pl
alt.JupyterChart.enable_offline()
chart = alt.JupyterChart(alt.Chart(pl.DataFrame({"x": [1, 2, 3], "y": [3, 1, 2]})).mark_point().encode(x="x", y="y"))
slider = widgets.IntSlider(value=3, min=0, max=9, description="slider")
label = widgets.Label("at 3")
slider.observe(lambda change: setattr(label, "value", f"at {change['new']}"), "value")
widgets.VBox([slider, label, chart])
"""

BREAK = """\
from lmdynamics.experiments.ladder import curves_from_fits, published_fits
from lmdynamics.explorers.deceleration import DecelerationExplorer
DecelerationExplorer(curves_from_fits(published_fits(), [float(step) for step in range(110, 60_000, 300)])).show()
"""


def problems(notebook) -> dict[str, list[str]]:
    warnings = [output["text"] for output in notebook.outputs() if output.get("name") == "stderr"]
    observed = {"errors": notebook.errors(), "console": notebook.console, "requests": notebook.outside}
    return observed | {"warnings": warnings}


NO_PROBLEMS = {"errors": [], "console": [], "requests": [], "warnings": []}


SHOWN = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .filter(cell => /(Explorer|Chooser|train_live)\\(/.test(cell.model.sharedModel.getSource()))
  .map(cell => [...cell.node.querySelectorAll('.lmd-live')].some(shown => shown.checkVisibility()))"""


def every_view_follows(page, area: int) -> None:
    """Keys on a slider change every chart beside it."""
    before = views(page, area)
    for _ in range(3):
        press(page, area, "ArrowLeft")
        page.wait_for_timeout(300)

    def unmoved() -> list[int]:
        return [i for i, (old, new) in enumerate(zip(before, views(page, area), strict=True)) if old == new]

    until = time.monotonic() + 20  # a busy machine draws late
    while unmoved() and time.monotonic() < until:
        page.wait_for_timeout(500)
    assert unmoved() == []


def test_live_charts_and_widgets_work_without_a_network(lab):
    root, address = lab
    write_notebook(root / "live.ipynb", LIVE, parameters=None)
    with notebook_page() as notebook:
        notebook.open(address, "live.ipynb")
        notebook.run_all()
        page = notebook.page
        page.locator(".vega-embed svg, .vega-embed canvas").first.wait_for(timeout=30_000)
        label = page.locator(".widget-label")
        label.get_by_text("at 3", exact=True).wait_for(timeout=10_000)
        page.locator(".noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        label.get_by_text("at 4", exact=True).wait_for(timeout=10_000)
        assert problems(notebook) == NO_PROBLEMS


def test_a_break_follows_the_hand(lab):
    root, address = lab
    write_notebook(root / "break.ipynb", BREAK, parameters=None)
    with notebook_page() as notebook:
        notebook.open(address, "break.ipynb")
        notebook.run_all()
        page = notebook.page
        by_hand = page.locator("tr:has-text('by hand')")
        by_hand.wait_for(timeout=30_000)
        before = by_hand.inner_text()
        page.locator(SLIDER).focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        step = float(before.split("\t")[1].replace(",", ""))
        page.wait_for_function(  # five places of the profile are a factor of 1.4
            """least => [...document.querySelectorAll("tr")].some(row =>
                row.innerText.startsWith("by hand") && Number(row.innerText.split("\t")[1].replaceAll(",", "")) > least)
            """.replace("\t", "\\t"),
            arg=1.2 * step,
            timeout=10_000,
        )
        assert problems(notebook) == NO_PROBLEMS


def test_the_watch_notices_errors_and_requests(lab):
    root, address = lab
    source = "from IPython.display import HTML\nHTML(\"<img src='http://192.0.2.1/x.png'>\")"
    write_notebook(root / "bad.ipynb", source, "1 / 0", parameters=None)
    with notebook_page() as notebook:
        notebook.page.route("http://192.0.2.1/**", lambda route: route.abort())
        notebook.open(address, "bad.ipynb")
        notebook.run_all()
        assert notebook.errors() == ["ZeroDivisionError: division by zero"]
        assert set(notebook.outside) == {"http://192.0.2.1/x.png"}


WORD_BREAKS = "[...document.querySelectorAll('.jp-RenderedText pre')].map(pre => getComputedStyle(pre).wordBreak)"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_reader_runs_the_notebook(request, path):
    """The first one trains its run, with a bar; the others find theirs."""
    root, address = request.getfixturevalue("lab" if path == NOTEBOOKS[0] else "furnished_lab")
    copy = copy_with_parameters(path, root, {"profile": "smoke"})
    with notebook_page() as notebook:
        notebook.open(address, copy.name)
        notebook.run_all()
        notebook.screenshots(OUT, path.stem)
        visible, areas = notebook.page.evaluate(SHOWN), slider_areas(notebook.page)
        has_explorers = "Explorer(" in path.read_text("utf-8")
        assert bool(visible) == has_explorers
        assert all(visible), "an explorer's cell does not show it"
        assert bool(areas) == has_explorers, "no slider moves a chart"
        assert set(notebook.page.evaluate(WORD_BREAKS)) == {"normal"}, "a line breaks inside words and numbers"
        for area in areas:
            every_view_follows(notebook.page, area)
            assert random_moves(notebook.page.locator(".jp-OutputArea-output").nth(area), moves=6) == ""
        for theme in reversed(THEMES):
            notebook.set_theme(theme)
            assert unreadable(notebook.page) == [], theme
        assert problems(notebook) == NO_PROBLEMS
        assert notebook.page.locator(".jp-OutputArea-output:has-text('application/vnd')").count() == 0
        charts = notebook.charts()
        assert charts > len(areas)
        notebook.reopen_without_kernel(copy.name)
        print(f"{path.stem}: {charts} charts visible, {notebook.charts()} when reopened without a kernel")
        assert notebook.charts() == charts
        for text in ("Error displaying widget", "Loading widget"):
            assert notebook.page.locator(f".jp-OutputArea-output:visible:has-text('{text}')").count() == 0


def test_the_server_answers_only_with_its_token(lab):
    address = lab[1].format("").partition("/lab/")[0]
    assert address.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}/api/contents", timeout=10)

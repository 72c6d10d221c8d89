"""Every explorer's charts, and the notebooks' (in `test_lab`), are read in JupyterLab's light theme and in its dark."""

import os
from pathlib import Path

import pytest

from tests.batch.notebooks import write_notebook
from tests.browser.lab import CHROMIUM, THEMES, notebook_page
from tests.browser.legible import cut_off, inspect_charts, low_contrast, overlapping, unreadable
from tests.browser.moves import random_moves, slider_areas
from tests.explorers.made import MAKE

ROOT, OUT = Path(__file__).parents[2], Path(__file__).parent / "out"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="Chromium is not installed (apt install chromium)"),
]

SAS = """\
import lmdynamics as lmd
from lmdynamics.explorers.sas import SasExplorer
run = lmd.train("grammar-mlm", "smoke", progress=False)
SasExplorer(run, run.treebank("grammar", 150), min_count=20, progress=False).show()
"""
OTHER = "from tests.explorers.made import MAKE\nif True:\n    MAKE[{name!r}]().show()"
CELLS = {"sas": SAS, **{name: OTHER.format(name=name) for name in MAKE}}

POOR = """\
import altair as alt
alt.JupyterChart.enable_offline()
dots = alt.Chart(alt.Data(values=[{"x": 1, "y": 1, "a": "grey as can be"}, {"x": 1, "y": 1, "a": "black"}]))
cell = dots.mark_rect(width=300, height=40, color="#222222").encode(x="x:Q", y="y:Q")
text = dots.mark_text().encode(x="x:Q", y="y:Q", text="a:N", color=alt.value("black"))
grey = {"labelColor": "#7a7a7a", "titleColor": "currentColor", "domainColor": "#888888", "tickColor": "#888888"}
alt.JupyterChart((cell + text).configure(background="transparent").configure_axis(**grey))
"""


@pytest.fixture
def page_of(lab):
    """Run cells in a notebook of their own; gives the notebook."""
    root, address = lab
    with notebook_page(height=2200) as notebook:

        def run(name: str, *cells: str):
            write_notebook(root / f"{name}.ipynb", *cells, parameters=None)
            notebook.open(address, f"{name}.ipynb")
            notebook.run_all()
            assert notebook.errors() == []
            return notebook

        yield run


def test_explorers_are_read_in_both_themes_keep_their_marks_and_leave_pictures(page_of):
    notebook, grounds = page_of("explorers", *CELLS.values()), []
    page, areas = notebook.page, slider_areas(notebook.page)
    assert len(areas) == len(CELLS)
    for theme in THEMES:
        notebook.set_theme(theme)
        items = inspect_charts(page)
        charts = page.locator(".vega-embed svg").count()
        assert {item["chart"] for item in items if item["kind"] == "text"} == set(range(charts))
        assert unreadable(page) == []
        grounds.append(page.evaluate("getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor"))
        page.screenshot(path=OUT / f"explorers-{theme}.png")
    assert grounds == ["rgb(255, 255, 255)", "rgb(17, 17, 17)"]
    for name, area in zip(CELLS, areas, strict=True):
        assert random_moves(page.locator(".jp-OutputArea-output").nth(area), moves=10) == "", name
    assert cut_off(inspect_charts(page)) == []
    assert (notebook.console, notebook.outside) == ([], [])
    notebook.reopen_without_kernel("explorers.ipynb")
    assert notebook.charts() == charts


def test_what_cannot_be_read_is_noticed(page_of):
    notebook = page_of("poor", POOR)
    for theme in THEMES:
        notebook.set_theme(theme)
        items = inspect_charts(notebook.page)
        messages = low_contrast(items)
        for text in ("grey as can be", "black", "1.0"):  # black on a dark cell in both; no grey reads on both grounds
            assert any(f"text {text!r}" in message for message in messages), theme
        assert not any("text 'x'" in message for message in messages)
        assert not any("axis" in message for message in messages)
        assert overlapping(items) == ["chart 0 (): 'grey as can be' and 'black'"]
        assert cut_off(items) == []
    notebook.page.evaluate("document.querySelector('.vega-embed svg').setAttribute('width', 60)")
    notebook.page.evaluate("document.querySelector('.vega-embed svg').removeAttribute('viewBox')")
    assert len(cut_off(inspect_charts(notebook.page))) > 2

"""A chart whose parameters hold what Python says, whatever a page reports back."""

import base64

import altair as alt
import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from lmdynamics.explorers.live import LiveChart
from tests.batch.notebooks import write_notebook

WITHIN_IF = """\
from tests.explorers.made import MAKE
from lmdynamics import charts
if True:
    MAKE["deceleration"]().show()
"""
PLAIN = "charts.show(MAKE['deceleration']().stills()['break_profile'], 'profile')"


def chart(value=1):
    cursor = alt.param(name="at_step", value=value)
    points = alt.Chart(alt.Data(values=[{"a": 1}, {"a": 2}])).mark_point().encode(x="a:Q")
    return points.transform_filter("datum.a == at_step").add_params(cursor)


@pytest.fixture
def live():
    return LiveChart(chart(), at_step=1)


def test_a_new_value_goes_out_and_the_specification_does_not(live):
    before = live.widget.spec
    sent = []
    live.widget.observe(lambda change: sent.append(change["name"]), names=["_params", "spec"])
    live.set(at_step=2)
    assert live.widget._params == {"at_step": 2.0}
    assert sent == ["_params"]
    assert live.widget.spec is before


def test_a_page_that_reports_its_start_value_is_told_the_present_one(live):
    live.set(at_step=2)
    live.widget._params = {"at_step": 1.0}  # what a reloaded page sends
    assert live.widget._params == {"at_step": 2.0}
    assert live.widget.params.at_step == 2.0


def test_another_chart_keeps_the_value(live):
    live.set(at_step=2)
    live.redraw(chart(2))
    assert live.widget.spec["params"][0]["value"] == 2
    live.set(at_step=1)
    assert live.widget.params.at_step == 1.0


@pytest.mark.notebook
def test_a_notebook_executed_without_a_page_has_pictures(tmp_path):
    """An explorer within an `if` and a plain chart, both interactive, as nbclient, nbconvert and papermill run them."""
    notebook = nbformat.read(write_notebook(tmp_path / "plain.ipynb", WITHIN_IF, PLAIN, parameters=None), as_version=4)
    NotebookClient(notebook, kernel_name="python3").execute()
    outputs = [[output.data for output in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]
    assert [[sorted(data) for data in shown] for shown in outputs] == [
        [
            ["application/vnd.jupyter.widget-view+json", "text/plain"],
            ["image/png", "text/plain"],
            ["image/png", "text/plain"],
            ["text/html", "text/plain"],
        ],
        [["application/vnd.vegalite.v5+json", "image/png", "text/plain"]],
    ]
    pictures = [data["image/png"] for shown in outputs for data in shown if "image/png" in data]
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    assert all(picture.replace("\n", "") in page.replace("\n", "") for picture in pictures)

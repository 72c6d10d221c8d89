"""The page of an executed notebook, without a kernel and without a browser; `tests/browser` opens one."""

import json
import re

import altair as alt
import nbformat
import pytest

from lmdynamics.batch.page import write_page
from lmdynamics.charts import show
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.moving import Place, with_slider
from lmdynamics.charts.theme import figure
from lmdynamics.html import MOVING, STILL

HOSTILE = "</script><script>alert(1)</script>"


def moving():
    """A chart over two places, with words from data at each of them, and at its control."""
    data = alt.Data(values=[{"step": 1, "name": HOSTILE}, {"step": 2, "name": "b"}])
    chart = alt.Chart(data).mark_text().encode(text="name:N").transform_filter("datum.step == cursor_step")
    chart, cursor = figure(chart, "Names", "", "One name."), Cursor([1, 2])
    return with_slider(chart, cursor, 2, [Place(str(k), HOSTILE) for k in (1, 2)], label=f"step {HOSTILE}")


def output(figure, metadata=None):
    bundle = figure._repr_mimebundle_()
    data, own_metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    data = {kind: value for kind, value in data.items() if kind != "image/png"}
    return nbformat.v4.new_output("display_data", data=data, metadata=own_metadata | (metadata or {}))


@pytest.fixture
def write(tmp_path):
    def write(*outputs):
        path = tmp_path / "an_item" / "some_page.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=list(outputs))]), path)
        return path

    return write


def page_of(notebook):
    return write_page(notebook).read_text("utf-8")


def shared(page):
    """Names of the shared files that a page loads."""
    return re.findall(r'(?:href|src)="\.\./assets/([^"]+)"', page)


def test_a_page_without_moving_views_carries_no_vega(write):
    chart = moving().still()
    page = page_of(write(output(show(chart, "v", interactive=False))))
    assert [name.rpartition(".")[2] for name in shared(page)] == ["css"]
    assert page.count('<img alt="One name."') == 1
    assert len(page) < 100_000


def test_pages_share_their_styles_and_their_script(write, tmp_path):
    first = write(output(moving()))
    pages = [page_of(first)]
    (tmp_path / "other").mkdir()
    pages.append(page_of(first.rename(tmp_path / "other" / "other_page.ipynb")))
    assert shared(pages[0]) == shared(pages[1])
    assert sorted(shared(pages[0])) == sorted(path.name for path in (tmp_path / "assets").iterdir())
    assert max(map(len, pages)) < 100_000


def test_a_figure_that_is_a_file_beside_the_page_is_shown_from_there(write):
    still = show(moving().still(), "v", interactive=False)
    path = write(output(still))
    (path.parent / "v.svg").write_text(still.svg, "utf-8")
    assert '<img alt="One name." src="v.svg"' in page_of(path)


def test_the_script_is_there_once_and_the_views_are_data(write):
    views = moving()
    page = page_of(write(output(views), output(views)))
    assert [name.rpartition(".")[2] for name in shared(page)] == ["css", "js"]
    contents = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.S)
    assert [json.loads(content) for content in contents] == [json.loads(json.dumps(views.content()))] * 2
    assert 'src="http' not in page


def test_words_from_data_stay_words(write):
    page = page_of(write(output(moving())))
    assert HOSTILE not in page


def test_stills_of_the_same_views_are_for_those_without_scripts(write):
    views = moving()
    still = show(views.still(), "v", interactive=False)
    page = page_of(write(output(still, STILL), output(views), output(still)))
    inside = re.search(r"<noscript>(.*?)</noscript>", page, flags=re.S)[1]
    assert inside.count('<img alt="One name."') == 1
    assert page.count('<img alt="One name."') == 2  # the other one is nobody's double


def test_a_reader_in_the_dark_gets_a_dark_page(write, tmp_path):
    page = page_of(write(output(moving())))
    assert "prefers-color-scheme: dark" in (tmp_path / "assets" / shared(page)[0]).read_text("utf-8")
    assert "<title>some_page</title>" in page


def test_half_a_notebook_is_no_page(tmp_path):
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    with pytest.raises(ValueError):  # noqa: PT011 -- whatever the reader of JSON says
        write_page(tmp_path / "cut.ipynb")


def test_the_output_keeps_its_type_in_the_notebook(write):
    path = write(output(moving()))
    before = path.read_bytes()
    page_of(path)
    assert path.read_bytes() == before
    assert MOVING.encode() in before


def test_widgets_that_have_no_kernel_are_left_out(write):
    path = write(output(moving()))
    notebook = nbformat.read(path, as_version=4)
    state = {"version_major": 2, "version_minor": 0, "state": {}}
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": state}
    nbformat.write(notebook, path)
    assert "unpkg" not in page_of(path)


def test_a_folded_cell_is_folded_and_its_output_is_not(tmp_path):
    path = tmp_path / "item" / "page.ipynb"
    path.parent.mkdir()
    shown = nbformat.v4.new_output("stream", text="the answer")
    folded = nbformat.v4.new_code_cell("import os", outputs=[shown], metadata={"jupyter": {"source_hidden": True}})
    nbformat.write(nbformat.v4.new_notebook(cells=[folded, nbformat.v4.new_code_cell("1 + 1")]), path)
    page = write_page(path).read_text("utf-8")
    inside = re.search(r"<details class=\"lmd-folded\">(.*?)</details>", page, re.DOTALL)[1]
    assert ">os<" in inside
    assert "the answer" not in inside
    assert "the answer" in page
    assert page.count("<details") == 1, "only the folded cell"

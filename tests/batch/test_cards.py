"""The card of a notebook: what it asks, what it answers and its figure; and the page of all cards."""

import re

import nbformat
import pytest

from lmdynamics.batch.cards import Card, read_card
from lmdynamics.batch.site import write_index
from tests.batch.made import write_item

HOSTILE = '</p><script>alert(1)</script><img src="http://there.test/x.png" onerror="alert(2)">'
OPENING = "# Does it *rise*?\n\nSomebody says so, and\nso do we.\n\nAnother paragraph."
v4 = nbformat.v4


def svg(text, alt=""):
    data = {"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'>{text}</svg>"}
    return v4.new_output("display_data", data=data, metadata={"image/svg+xml": {"alt": alt}})


def printed(text):
    return v4.new_output("stream", name="stdout", text=text)


def markdown(text):
    return v4.new_output("display_data", data={"text/markdown": text, "text/plain": "an object"})


def code(*outputs, tags=()):
    return v4.new_code_cell("1", outputs=list(outputs), metadata={"tags": list(tags)})


@pytest.fixture
def card(tmp_path):
    def card(*cells, opening=OPENING) -> Card:
        nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(opening), *cells]), tmp_path / "some_page.ipynb")
        return read_card(tmp_path / "some_page.ipynb")

    return card


def test_without_tags_a_card_has_the_first_paragraph_and_the_first_figure(card):
    made = card(code(printed("noise")), code(svg("one", "One line.")), code(svg("two")))
    assert made.title == "Does it <em>rise</em>?"
    assert made.answer == "<p>Somebody says so, and\nso do we.</p>"
    address, text = made.figure
    assert address.startswith("data:image/svg+xml;base64,")
    assert text == "One line."


def test_the_tagged_cells_are_the_answer_and_the_figure(card):
    answer = code(printed("It rises **twice**.\n"), markdown("By `0.2`."), tags=["answer"])
    made = card(code(svg("one", "first")), answer, code(svg("two", "second"), tags=["figure"]))
    assert made.answer == "<p>It rises <strong>twice</strong>.</p><p>By <code>0.2</code>.</p>"
    assert made.figure[1] == "second"
    assert card(code(svg("one", "first")), code(svg("two", "of the answer"), tags=["answer"])).figure[1] == (
        "of the answer"
    )


def test_an_answer_that_says_nothing_leaves_the_claim(card):
    assert card(code(tags=["answer"])).answer == "<p>Somebody says so, and\nso do we.</p>"


def test_a_figure_that_is_a_file_already_is_not_stored_twice(card, tmp_path):
    (tmp_path / "the figure.svg").write_text(svg("one").data["image/svg+xml"])
    assert card(code(svg("one"))).figure == ("the%20figure.svg", "")


def test_words_of_data_stay_words(card):
    made = card(
        code(printed(HOSTILE), markdown(f"[x](javascript:alert(3)) ![y](http://there.test/y.png) {HOSTILE}")),
        code(
            printed(HOSTILE),
            markdown(f"[x](javascript:alert(3)) ![y](http://there.test/y.png) {HOSTILE}"),
            tags=["answer"],
        ),
        opening=f"# {HOSTILE}\n\n{HOSTILE}",
    )
    for text in (made.title, made.answer):
        assert "&lt;script&gt;" in text
        assert re.findall(r"<(?!/?(?:p|em)>)", text) == []


def test_half_a_notebook_has_no_card(tmp_path):
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    assert read_card(tmp_path / "cut.ipynb") is None
    assert read_card(tmp_path / "none.ipynb") is None


def test_every_item_has_a_card_and_a_failed_one_says_so(tmp_path):
    folder = write_item(tmp_path, "fine", {"uas": 0.6})
    cells = [v4.new_markdown_cell(OPENING), code(svg("one", f"It's {HOSTILE}"))]
    nbformat.write(v4.new_notebook(cells=cells), folder / "fine.ipynb")
    (folder / "fine.html").write_text("a page")
    error = f"ValueError: {HOSTILE}"
    folder = write_item(tmp_path, "bad", status="failed", cell=4, source="x", error=error)
    (folder / "log.txt").write_text("a log")
    page = write_index(tmp_path).read_text("utf-8")
    bad, fine = re.findall(r"<article.*?</article>", page, flags=re.DOTALL)
    assert "This page failed in cell 4: ValueError: &lt;/p&gt;&lt;script&gt;" in bad
    assert 'href="bad/log.txt"' in bad
    assert 'href="records.html#bad"' in bad
    assert '<h2><a href="fine/fine.html">Does it <em>rise</em>?</a></h2>' in fine
    assert 'alt="It&#39;s &lt;/p&gt;' in fine
    assert "<script" not in page
    records = (tmp_path / "records.html").read_text("utf-8")
    assert "some processor, float32, torch 2.13.0" in records
    assert 'id="bad"' in records
    assert "<script" not in records

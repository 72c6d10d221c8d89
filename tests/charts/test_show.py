"""One figure as a widget, as a picture and as a file."""

import zlib
from xml.etree import ElementTree

import altair as alt
import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.charts.theme import figure
from lmdynamics.errors import UserError


@pytest.fixture
def chart():
    bars = alt.Chart(alt.Data(values=[{"a": 1}, {"a": 3}])).mark_bar().encode(x="a:Q")
    return figure(bars, "Bars", "one and three", "Two bars, of one and three.")


def test_a_still_is_a_picture_and_a_file(chart, tmp_path):
    picture = charts.show(chart, "bars", str(tmp_path / "figures"), interactive=False)
    svg = (tmp_path / "figures" / "bars.svg").read_text(encoding="utf-8")
    bundle, metadata = picture._repr_mimebundle_()
    assert bundle["image/svg+xml"] == svg
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert "Two bars" in metadata["image/png"]["alt"]
    assert "Two bars" in svg
    assert bundle["text/plain"] == "Two bars, of one and three."


def test_without_a_folder_nothing_is_written(chart, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    charts.show(chart, "bars", interactive=False)
    assert list(tmp_path.iterdir()) == []


def test_a_live_figure_is_drawn_by_jupyterlab_and_brings_its_picture(chart):
    bundle, metadata = charts.show(chart, "bars", interactive=True)._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.vegalite.v5+json", "image/png", "text/plain"}
    spec = bundle["application/vnd.vegalite.v5+json"]
    assert spec["$schema"].endswith("/vega-lite/v5.json")
    assert spec["usermeta"]["embedOptions"] == {"actions": False, "renderer": "svg"}
    assert {name: spec[name] for name in ("mark", "encoding", "data")} == {
        name: chart.to_dict()[name] for name in ("mark", "encoding", "data")
    }
    picture = charts.to_png(chart, scale=1)
    assert metadata["image/png"] == {
        "alt": "Two bars, of one and three.",
        "width": int.from_bytes(picture[16:20], "big"),
    }
    assert bundle["image/png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["", "../bars", "a/b", "a b", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(chart, tmp_path, name):
    with pytest.raises(UserError, match="file name"):
        charts.show(chart, name, str(tmp_path), interactive=False)


def test_a_folder_that_cannot_be_made_is_refused(chart, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the figure"):
        charts.show(chart, "bars", str(tmp_path / "file" / "deeper"), interactive=False)


def test_characters_that_no_svg_may_hold_are_escaped():
    """A tokenizer of bytes has them, and vl-convert ends the process at the first."""
    words = ["a\x00", "b\x03", "\x1b[1m", "\x0c", "\ufffe", "\ud800"]
    chart = alt.Chart(pl.DataFrame({"word": words[:-2]})).mark_text().encode(alt.Text("word:N"), y="word:N")
    still = charts.show(figure(chart, f"of {words}", "".join(words), "told \x01"), "words", interactive=False)
    root = ElementTree.fromstring(still.svg)
    assert {r"a\x00", r"b\x03", r"\x1b[1m", r"\x0c"} <= {text.strip() for text in root.itertext()}
    assert root.get("aria-label") == r"told \x01"
    assert still.png.startswith(b"\x89PNG")


def test_half_transparent_marks_keep_their_colour_in_png():
    data = alt.Data(values=[{}])
    edges = {"x": alt.value(0), "x2": alt.value(9), "y": alt.value(0), "y2": alt.value(9)}
    chart = alt.Chart(data, width=9, height=9, padding=0).mark_rect(color="#E69F00", opacity=0.5).encode(**edges)
    png = charts.to_png(chart.configure(background="transparent").configure_view(stroke=None), scale=1)
    start = png.index(b"IDAT")
    row = zlib.decompress(png[start + 4 : start + 4 + int.from_bytes(png[start - 4 : start])])
    red, green, blue, alpha = row[1:5]  # the first pixel of the first row, whose filter changes nothing
    assert alpha == 255
    assert (red, green, blue) == pytest.approx((0xE6 / 2 + 127.5, 0x9F / 2 + 127.5, 127.5), abs=2)


def test_more_rows_than_altair_allows_are_drawn():
    many = alt.Chart(pl.DataFrame({"x": range(5_001)})).mark_point().encode(x="x:Q")
    assert "<svg" in charts.to_svg(many)
    assert charts.to_png(many).startswith(b"\x89PNG")


# one figure as a file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<svg "), ("PNG", b"\x89PNG"), ("html", b"<!DOCTYPE html>")])
def test_a_figure_is_written_by_the_end_of_its_name(chart, tmp_path, suffix, start):
    path = charts.save_figure(chart, tmp_path / f"bars.{suffix}")
    assert path.read_bytes().startswith(start)


def test_a_page_holds_the_text_of_data_as_text(tmp_path):
    hostile = "</script><script>alert(1)</script>"
    bars = alt.Chart(pl.DataFrame({"a": [1], "name": [hostile]})).mark_bar().encode(x="a:Q", tooltip="name:N")
    page = charts.to_html(figure(bars, hostile, "", hostile))
    assert "<script>alert" not in page
    assert page.count("</script>") == 2
    assert "http" not in page.partition("<script")[0]


def test_a_page_and_a_picture_leave_out_what_is_no_number(tmp_path):
    points = alt.Chart(pl.DataFrame({"a": [1.0, float("nan")]})).mark_point().encode(x="a:Q")
    chart = figure(points, "Points", "", "Two points, one without a place.")
    assert "NaN" not in charts.to_html(chart).rpartition("<script")[0]
    assert "<svg" in charts.to_svg(chart)


@pytest.mark.parametrize("name", ["bars", "bars.pdf"])
def test_another_kind_of_file_is_refused(chart, tmp_path, name):
    with pytest.raises(UserError, match=r"end the name in \.html, \.svg, \.png"):
        charts.save_figure(chart, tmp_path / name)


def test_a_file_that_cannot_be_written_is_one_line(chart, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name another file"):
        charts.save_figure(chart, tmp_path / "file" / "bars.svg")

"""A batch as a site: whole, with what it came to, and over past batches; nothing is taken that is not its own."""

import re

import pytest

from lmdynamics.batch.collect import collect
from lmdynamics.batch.site import write_site
from lmdynamics.errors import UserError
from tests.batch.made import write_item


@pytest.fixture
def outs(tmp_path):
    made = []
    for number, uas in enumerate((0.6, 0.62)):
        out = tmp_path / f"night-{number}"
        records = {"uas": {"value": uas, "tolerance": 0.05}, "<b>name</b>": 1}
        folder = write_item(out, "one", records, ended=f"2026-11-0{number + 1}T04:05:06")
        (folder / "one.html").write_text("<p>the page</p>")
        (folder / "uas.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        (folder / "secret.txt").write_text("not of the batch")
        collect(out)
        made.append(out)
    return made


def test_a_site_has_pages_figures_records_and_trends(outs, tmp_path):
    index = write_site(outs, tmp_path / "site")
    page = index.read_text("utf-8")
    for link in re.findall(r'(?:href|src)="([^"#]+)"', page):
        assert (index.parent / link).exists(), link
    assert "over past batches" in page
    assert "<h1>Notebooks of night-1</h1>" in page
    assert "<b>name" not in page
    assert not (index.parent / "one" / "secret.txt").exists()
    trend = (index.parent / "trend.html").read_text("utf-8")
    assert trend.count("<svg") == 2
    assert "<b>name" not in trend
    assert "http://" not in trend.replace("http://www.w3.org", "")


def test_a_site_is_written_anew_and_nothing_else_is(outs, tmp_path):
    to = tmp_path / "site"
    write_site(outs, to)
    write_site(outs[:1], to)
    assert not (to / "trend.html").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    (other / "index.html").write_text("<p>my own pages</p>")
    with pytest.raises(UserError, match="holds something that is no site"):
        write_site(outs, other)
    assert (other / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="must not lie in each other"):
        write_site(outs, outs[0].parent)
    with pytest.raises(UserError, match="--out"):
        write_site([tmp_path / "nowhere"], to)

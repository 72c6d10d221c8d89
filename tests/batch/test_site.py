"""A batch as a site, and records over past batches; nothing is taken that is not the batch's own."""

import re
from datetime import datetime

import nbformat
import polars as pl
import pytest

from lmdynamics.batch.baselines import accept, read_baselines
from lmdynamics.batch.collect import collect, gather
from lmdynamics.batch.page import write_page
from lmdynamics.batch.site import trend, write_site
from tests.batch.made import write_item
from tests.conftest import refuses


@pytest.fixture
def outs(tmp_path):
    folders = []
    for number, uas in enumerate((0.6, 0.62)):
        out = tmp_path / f"night-{number}"
        records = {"uas": {"value": uas, "tolerance": 0.05}, "<b>name</b>": 1}
        folder = write_item(out, "one", records, ended=f"2026-11-0{number + 1}T04:05:06")
        (folder / "one.html").write_text("<p>the page</p>")
        (folder / "uas.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        (folder / "secret.txt").write_text("not of the batch")
        collect(out)
        folders.append(out)
    return folders


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


def test_a_site_has_documents_navigation_and_search_on_every_page(outs, tmp_path):
    for name in ("README.md", "other.md"):
        (tmp_path / name).write_text(f"# Title of {name}\n\nA paragraph.\n\n[next](other.md) `one`\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A page")])
    output = nbformat.v4.new_output("stream", text="x" * 10_000)
    notebook.cells.append(nbformat.v4.new_code_cell("1", outputs=[output]))
    nbformat.write(notebook, outs[-1] / "one" / "one.ipynb")
    write_page(outs[-1] / "one" / "one.ipynb")
    site = write_site(outs, tmp_path / "site", docs=tmp_path / "README.md").parent
    pages = sorted(site.rglob("*.html"))
    names = ["docs/index", "docs/other", "index", "one/one", "records", "trend"]
    assert [path.relative_to(site).as_posix() for path in pages] == [f"{name}.html" for name in names]
    for page in pages:
        text = page.read_text("utf-8")
        assert text.count('<nav class="site-nav"') == 1
        links = re.findall(r'(?:href|src)="([^"#]+)', text)
        assert len(links) >= 4
        for link in links:
            assert (page.parent / link).is_file(), (page, link)
    assert "<h1>Title of README.md</h1>" in pages[2].read_text("utf-8")
    assert "<p>A paragraph.</p>" in pages[2].read_text("utf-8")
    assert '<a href="../one/one.html"><code>one</code></a>' in pages[0].read_text("utf-8")
    assert (site / "one" / "one.ipynb").stat().st_size < 2_000  # without outputs, which are on its page


def test_a_site_is_written_anew_and_nothing_else_is(outs, tmp_path):
    to = tmp_path / "site"
    write_site(outs, to)
    write_site(outs[:1], to)
    assert not (to / "trend.html").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    (other / "index.html").write_text("<p>my own pages</p>")
    refuses("holds files that are not a site", write_site, outs, other)
    assert (other / "notes.txt").read_text() == "mine"
    refuses("must not contain each other", write_site, outs, outs[0].parent)
    refuses("--out", write_site, [tmp_path / "nowhere"], to)


def batches(folder, *values, **outcome):
    outs = []
    for day, value in enumerate(values, 1):
        out = folder / f"night{day}"
        records = {"uas": {"value": value, "low": 0.1, "high": 0.9, "tolerance": 0.5, "unit": "share"}, "word": "x"}
        write_item(out, "n", records, ended=f"2026-11-{day:02d}T04:00:00", **outcome)
        collect(out)
        outs.append(out)
    return outs


def test_a_trend_is_every_batch_in_order_of_time(tmp_path):
    outs = batches(tmp_path, 0.6, 0.5, 0.2)
    write_item(outs[0], "fails", {"uas": 9.0}, status="failed", error="no")
    collect(outs[0])
    frame = trend(outs[::-1])
    assert frame.columns == ["batch", "ended", "item", "record", "value", "low", "high", "tolerance", "unit"]
    uas = frame.filter(record="uas")
    assert uas.row(0) == ("night1", datetime(2026, 11, 1, 4), "n", "uas", 0.6, 0.1, 0.9, 0.5, "share")
    assert uas["batch"].to_list() == ["night1", "night2", "night3"]
    assert uas["value"].to_list() == [0.6, 0.5, 0.2]
    assert frame.filter(record="word")["value"].to_list() == [None] * 3


def test_a_trend_with_baselines_has_theirs_and_their_tolerance(tmp_path):
    outs = batches(tmp_path, 0.6, 0.5)
    accept(gather(outs[0]).with_columns(tolerance=pl.lit(0.05)), tmp_path / "baselines", "Ada")
    write_item(outs[1], "n--seed=1", {"uas": 0.4}, parameters={"seed": 1}, notebook="n", ended="2026-11-02T05:00:00")
    collect(outs[1])
    frame = trend(outs, read_baselines(tmp_path / "baselines")).select("item", "record", "baseline", "tolerance")
    first = [("n", "uas", 0.6, 0.05), ("n", "word", None, None)]
    assert frame.rows() == [*first, *first, ("n--seed=1", "uas", None, None)]


def test_batches_of_one_name_are_distinguished(tmp_path):
    (one,), (other,) = batches(tmp_path / "a", 0.1), batches(tmp_path / "b", 0.2)
    assert trend([one, other])["batch"].unique(maintain_order=True).to_list() == [str(one), str(other)]


def test_what_is_no_batch_has_no_trend(tmp_path):
    refuses("no batch named", trend, [])
    refuses("nowhere has no records.parquet", trend, [tmp_path / "nowhere"])
    (tmp_path / "records.parquet").write_bytes(b"no")
    refuses("is not a Parquet file", trend, [tmp_path])
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "records.parquet")
    refuses("needs the columns", trend, [tmp_path])

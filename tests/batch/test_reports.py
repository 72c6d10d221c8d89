"""What a batch came to, as others read it: nothing lost, nothing that its names could break."""

from datetime import datetime
from xml.etree import ElementTree as ET

import polars as pl
import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from lmdynamics.batch.baselines import accept, read_baselines
from lmdynamics.batch.collect import collect, gather
from lmdynamics.batch.compare import compare, status, summary
from lmdynamics.batch.reports import junit, markdown, trend
from lmdynamics.errors import UserError
from tests.batch.made import write_item

HOSTILE = "a|b <script>alert(1)</script> `x` *y* \\| \x1b[31m ]]>"
BEFORE = {"same": 1, "changes": {"value": 0.61, "tolerance": 0.05}, "gone": True, HOSTILE: "was"}
NOW = {"same": 1, "changes": 0.22, HOSTILE: "is\nnot", "new": None}


@pytest.fixture
def verdicts(tmp_path):
    write_item(tmp_path / "before", "one", BEFORE)
    accept(gather(tmp_path / "before"), tmp_path / "baselines", "Ada")
    out = tmp_path / "now"
    write_item(out, "one", NOW, seconds=12.5)
    write_item(out, "two", {"x": 1}, seconds=2)
    write_item(out, "zero", status="failed", error="ValueError: </testsuite>\x00", seconds=1)
    return compare(gather(out), read_baselines(tmp_path / "baselines"))


def tables(html):
    """The cells of each table, as a reader sees them."""
    found = []
    for table in html.split("<table>")[1:]:
        root = ET.fromstring(f"<table>{table.partition('</table>')[0]}</table>")
        found.append([["".join(cell.itertext()) for cell in row] for row in root.iter("tr")])
    return found


def test_markdown_tells_the_summary_then_what_differs_then_all(verdicts):
    text = markdown(verdicts, "Tonight")
    assert text.startswith("### Tonight\n\n6 records in 3 items: 1 same, 2 changed (one: changes 0.61 → 0.22, ")
    different, every = tables(markdown2html_mistune(text))
    heads = ["item", "record", "verdict", "value", "baseline", "why"]
    assert different[0] == every[0] == heads
    told = ["changes", "new", "gone", "x", ""]
    assert [row[1] for row in different[1:] if "script" not in row[1]] == told
    assert len(every) - 1 == len(verdicts) == len(different)
    assert text.index("<details>") > text.index("| changes |")


def test_markdown_shows_names_as_they_stand(verdicts):
    text = markdown(verdicts)
    assert "<script" not in text
    assert "\x1b" not in text
    different, _ = tables(markdown2html_mistune(text))
    assert all(len(row) == 6 for row in different)
    assert HOSTILE.replace("\x1b", "\\x1b") in [row[1] for row in different]


def test_markdown_of_what_is_all_the_same_has_one_table(verdicts):
    same = verdicts.filter(verdict="same")
    assert markdown(same).count("| item |") == 1
    assert markdown(same).startswith(summary(same))


def test_junit_has_a_suite_per_item_and_a_case_per_record(verdicts):
    root = ET.fromstring(junit(verdicts).encode())
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["one", "two", "zero"]
    assert [suite.get("time") for suite in root] == ["12.500", "2.000", "1.000"]
    assert root.get("time") == "15.500"
    counts = ("tests", "failures", "errors", "skipped")
    assert [suites["one"].get(count) for count in counts] == ["5", "3", "0", "1"]
    assert [suites["two"].get(count) for count in counts] == ["1", "0", "0", "1"]
    assert [suites["zero"].get(count) for count in counts] == ["1", "0", "1", "0"]
    assert [root.get(count) for count in counts] == ["7", "3", "1", "2"]
    cases = {case.get("name"): [child.tag for child in case] for case in suites["one"]}
    hostile = HOSTILE.replace("\x1b", "\\x1b")
    kinds = {"same": [], "changes": ["failure"], hostile: ["failure"], "new": ["skipped"], "gone": ["failure"]}
    assert cases == kinds
    failure = suites["one"].find("testcase[@name='changes']/failure")
    assert failure.get("message") == "changed: 0.61 → 0.22, tolerance 0.05"
    assert suites["zero"].find("testcase/error").get("message") == "failed: ValueError: </testsuite>\\x00"


@pytest.mark.parametrize("strict", [False, True])
def test_junit_agrees_with_the_exit_status(verdicts, strict):
    for verdict in verdicts["verdict"].unique():
        some = verdicts.filter(verdict=verdict)
        root = ET.fromstring(junit(some, strict).encode())
        bad = int(root.get("failures")) + int(root.get("errors"))
        assert bad == len(some) * status(some, strict)


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


def test_batches_of_one_name_are_told_apart(tmp_path):
    (one,), (other,) = batches(tmp_path / "a", 0.1), batches(tmp_path / "b", 0.2)
    assert trend([one, other])["batch"].unique(maintain_order=True).to_list() == [str(one), str(other)]


def test_what_is_no_batch_has_no_trend(tmp_path):
    with pytest.raises(UserError, match="no batch named"):
        trend([])
    with pytest.raises(UserError, match="nowhere has no records.parquet"):
        trend([tmp_path / "nowhere"])
    (tmp_path / "records.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="is not a Parquet file") as refusal:
        trend([tmp_path])
    assert "\n" not in str(refusal.value)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "records.parquet")
    with pytest.raises(UserError, match="needs the columns"):
        trend([tmp_path])

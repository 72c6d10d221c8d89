"""Batches against accepted records: what is the same, what is not, and how each report states it."""

import math
from xml.etree import ElementTree as ET

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from lmdynamics.batch.baselines import accept, read_baselines
from lmdynamics.batch.collect import SCHEMA as COLUMNS
from lmdynamics.batch.collect import gather
from lmdynamics.batch.regression import compare, junit, markdown, same_value, status, summary
from tests.batch.made import ACCEPTED, UAS, write_item
from tests.conftest import refused, refuses


def compared(accepted, records=None, **outcome):
    out = accepted.parent / "second"
    write_item(out, "02_sas", records, **outcome)
    return compare(gather(out), read_baselines(accepted))


def by_record(frame):
    return dict(frame.select("record", "verdict").iter_rows())


def test_a_batch_is_the_same_as_itself(accepted):
    comparison = compared(accepted, ACCEPTED)
    assert by_record(comparison) == dict.fromkeys(ACCEPTED, "same")
    assert status(comparison) == status(comparison, strict=True) == 0
    assert summary(comparison) == "5 records in 1 item: 5 same"


def test_every_verdict_at_once(accepted):
    records = {"uas": UAS | {"value": 0.22}, "onset": 64, "word": "later", "nothing": None, "more": 1.5}
    comparison = compared(accepted, records)
    same = dict.fromkeys(("onset", "word", "nothing"), "same")
    assert by_record(comparison) == same | {"uas": "changed", "more": "new", "grokked": "gone"}
    rows = {row["record"]: row for row in comparison.iter_rows(named=True)}
    assert rows["uas"]["difference"] == pytest.approx(-0.39)
    assert (rows["uas"]["value"], rows["uas"]["baseline"], rows["uas"]["tolerance"]) == ("0.22", "0.61", 0.05)
    assert rows["uas"]["why"] == "0.61 → 0.22, tolerance 0.05"
    assert (rows["grokked"]["value"], rows["grokked"]["baseline"]) == (None, "true")
    assert (rows["more"]["value"], rows["more"]["baseline"]) == ("1.5", None)
    assert status(comparison) == 1
    assert summary(comparison) == (
        "6 records in 1 item: 3 same, 1 changed (02_sas: uas 0.61 → 0.22, tolerance 0.05), 1 new, "
        "1 gone (02_sas: grokked was true, is not recorded any more)"
    )


def test_the_baselines_tolerance_counts_not_the_new_one(accepted):
    wider = compared(accepted, ACCEPTED | {"uas": UAS | {"value": 0.22, "tolerance": 9.0}})
    assert by_record(wider)["uas"] == "changed"


@pytest.mark.parametrize(
    ("value", "baseline", "tolerance", "same"),
    [
        (0.65, 0.6, 0.05, True),  # 0.65 - 0.6 > 0.05 in floats
        (0.55, 0.6, 0.05, True),
        (0.6501, 0.6, 0.05, False),
        (0.5499, 0.6, 0.05, False),
        (64, 32, 32, True),
        (65, 32, 32, False),
        (10**12 + 1, 10**12, 0, False),
        (1.0, 1.0 + 1e-10, None, True),
        (1.0, 1.0 + 1e-8, None, False),
        (0.0, 1e-300, None, True),
        (64, 64.0, None, True),
        (10**12, 10**12 + 1, None, False),  # whole numbers are equal or not
        (None, None, None, True),
        (None, None, 0.5, True),
        (None, 0.0, 0.5, False),
        (0.0, None, 0.5, False),
        (None, False, None, False),
        (None, "", None, False),
        (True, True, None, True),
        (True, False, 5.0, False),  # a tolerance is no excuse for the contrary
        (True, 1, None, False),
        (1, True, 1.0, False),
        (0.0, False, None, False),
        ("1", 1, 9.0, False),
        ("a", "a", None, True),
        ("a", "b", 9.0, False),
        (math.nan, math.nan, None, False),
        (math.nan, 1.0, math.inf, False),
        (1.0, math.nan, 5.0, False),
        (math.inf, math.inf, None, False),
        (math.inf, 1.0, 5.0, False),
        (1e-17, 0.0, None, True),  # what is left of sums that cancel
        (-0.65, -0.6, 0.05, True),
        (0.0, -3e-16, None, True),
        (1e-9, 0.0, None, False),
        (1e-9, 1.1e-9, None, False),
    ],
)
def test_what_is_the_same(value, baseline, tolerance, same):
    assert same_value(value, baseline, tolerance) is same


FINITE = st.floats(-1e6, 1e6)


@given(FINITE, FINITE, st.floats(0, 10))
def test_sameness_is_symmetric_and_grows_with_tolerance(value, baseline, tolerance):
    same = same_value(value, baseline, tolerance)
    assert same == same_value(baseline, value, tolerance)
    assert not same or same_value(value, baseline, tolerance + 1)
    assert same_value(value, value, 0.0)
    if abs(value - baseline) <= tolerance:
        assert same
    if abs(value - baseline) > tolerance + 1e-6:
        assert not same


def test_another_kind_of_value_is_a_change_and_reported(accepted):
    comparison = compared(accepted, {"uas": "high", "onset": None, "grokked": 1, "word": True, "nothing": 0})
    assert set(by_record(comparison).values()) == {"changed"}
    assert comparison["why"].to_list() == [
        '0.61 → "high", a number before',
        "64 → none, a number before",
        "true → 1, a truth value before",
        '"later" → true, a word before',
        "none → 0",
    ]


def test_nan_never_passes(accepted):
    comparison = compared(accepted, ACCEPTED | {"uas": UAS | {"value": math.nan}, "nothing": math.nan})
    assert by_record(comparison) == dict.fromkeys(ACCEPTED, "same") | {"uas": "changed", "nothing": "changed"}
    path = accepted / "02_sas.smoke.cpu.json"
    path.write_text(path.read_text().replace("0.61", "NaN"))
    both = compared(accepted, ACCEPTED | {"uas": UAS | {"value": math.nan}})
    assert by_record(both)["uas"] == "changed"


def test_small_changes_are_reported_in_digits_that_show_them(accepted):
    accept(gather(accepted.parent / "first").with_columns(tolerance=pl.lit(1e-7)), accepted, "Ada")
    (why,) = compared(accepted, ACCEPTED | {"uas": UAS | {"value": 0.610003}}).filter(verdict="changed")["why"]
    assert why == "0.61 → 0.610003, tolerance 1e-07"


def test_another_unit_is_a_change(tmp_path):
    write_item(tmp_path / "a", "n", {"loss": {"value": 5.2, "tolerance": 0.1, "unit": "nats"}})
    write_item(tmp_path / "b", "n", {"loss": {"value": 5.2, "tolerance": 0.1, "unit": "bits"}})
    accept(gather(tmp_path / "a"), tmp_path / "baselines", "Ada")
    comparison = compare(gather(tmp_path / "b"), read_baselines(tmp_path / "baselines"))
    assert comparison.select("verdict", "why").rows() == [("changed", "the unit nats → bits")]


@pytest.mark.parametrize("outcome", ["failed", "interrupted"])
def test_a_failed_item_is_one_row_whatever_it_recorded(accepted, outcome):
    error = "ValueError: no\nway" if outcome == "failed" else ""
    comparison = compared(accepted, ACCEPTED, status=outcome, error=error)
    assert comparison.select("record", "verdict").rows() == [(None, "failed")]
    assert status(comparison) == 1
    assert "1 item failed (02_sas: " in summary(comparison)
    assert "\n" not in summary(comparison)


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        ({"parameters": {"profile": "full"}}, "no 02_sas.full.cpu.json"),
        ({"environment": {"device": "cuda"}}, "no 02_sas.smoke.cuda.json"),
        ({"parameters": {"seed": 7}}, "02_sas.smoke.cpu.json has none for seed=7"),
    ],
)
def test_other_profiles_devices_and_parameters_have_baselines_of_their_own(accepted, outcome, why):
    comparison = compared(accepted, {"uas": UAS, "onset": 9}, **outcome)
    assert comparison.select("verdict", "why").rows() == [("no baseline", why)] * 2
    assert (status(comparison), status(comparison, strict=True)) == (0, 1)
    assert summary(comparison) == "2 records in 1 item: 2 without a baseline"


def test_an_item_that_records_nothing_is_not_forgotten(tmp_path):
    write_item(tmp_path / "a", "n", {})
    frame = gather(tmp_path / "a")
    assert compare(frame, {})["verdict"].to_list() == ["no baseline"]
    accept(frame, tmp_path / "baselines", "Ada")
    comparison = compare(frame, read_baselines(tmp_path / "baselines"))
    assert comparison.select("record", "verdict").rows() == [(None, "same")]
    assert summary(comparison) == "0 records in 1 item: 1 item without records"


def test_many_changes_stay_one_line_of_the_first_few(tmp_path):
    names = [f"r{i}" for i in range(9)]
    write_item(tmp_path / "a", "n", dict.fromkeys(names, 1))
    write_item(tmp_path / "b", "n", dict.fromkeys(names, 2))
    accept(gather(tmp_path / "a"), tmp_path / "baselines", "Ada")
    comparison = compare(gather(tmp_path / "b"), read_baselines(tmp_path / "baselines"))
    assert summary(comparison) == "9 records in 1 item: 9 changed (n: r0 1 → 2; n: r1 1 → 2; n: r2 1 → 2; …)"


def test_two_records_of_one_name_are_refused(accepted):
    frame = gather(accepted.parent / "first")
    refuses("two records of the same name", compare, pl.concat([frame, frame]), {})


def test_a_frame_of_something_else_is_refused():
    refuses("comparing a batch needs the columns", compare, pl.DataFrame({"item": ["a"]}), {})


def test_nothing_compared_is_not_nothing_changed():
    refuses("there is nothing to compare", compare, pl.DataFrame(schema=COLUMNS), {})


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
    rows_by_table = []
    for table in html.split("<table>")[1:]:
        root = ET.fromstring(f"<table>{table.partition('</table>')[0]}</table>")
        rows_by_table.append([["".join(cell.itertext()) for cell in row] for row in root.iter("tr")])
    return rows_by_table


def test_markdown_has_the_summary_then_the_differences_then_all(verdicts):
    text = markdown(verdicts, "Tonight")
    assert text.startswith("### Tonight\n\n6 records in 3 items: 1 same, 2 changed (one: changes 0.61 → 0.22, ")
    different, every = tables(markdown2html_mistune(text))
    heads = ["item", "record", "verdict", "value", "baseline", "why"]
    assert different[0] == every[0] == heads
    expected = ["changes", "new", "gone", "x", ""]
    assert [row[1] for row in different[1:] if "script" not in row[1]] == expected
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
    unchanged = verdicts.filter(verdict="same")
    assert markdown(unchanged).count("| item |") == 1
    assert markdown(unchanged).startswith(summary(unchanged))


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
        subset = verdicts.filter(verdict=verdict)
        root = ET.fromstring(junit(subset, strict).encode())
        bad = int(root.get("failures")) + int(root.get("errors"))
        assert bad == len(subset) * status(subset, strict)


def test_the_command_says_what_changed_and_writes_the_reports(call, accepted):
    out, reports = accepted.parent / "second", accepted.parent / "reports"
    records = {f"<new {i}>": i for i in range(45)} | ACCEPTED
    command = ("compare", out, "--baseline", accepted, "--junit", reports / "j.xml", "--markdown", reports / "m.md")
    write_item(out, "02_sas", records)
    status, printed, _ = call(*command)
    assert (status, printed.splitlines()[0]) == (0, "50 records in 1 item: 5 same, 45 new")
    assert printed.splitlines()[1].split() == ["item", "record", "verdict", "why"]
    assert "02_sas  <new 0>   new      no baseline for this record" in printed
    assert printed.splitlines()[-1] == "and 5 more"
    assert call(*command, "--strict")[0] == 1
    assert ET.parse(reports / "j.xml").getroot().get("failures") == "45"
    assert (reports / "m.md").read_text().startswith("### second against ")
    write_item(out, "02_sas", ACCEPTED | {"onset": 65})
    status, printed, _ = call("compare", out, "--baseline", accepted)
    assert (status, printed.splitlines()[0]) == (1, "5 records in 1 item: 4 same, 1 changed (02_sas: onset 64 → 65)")
    assert refused(call(*command[:-1], accepted), "cannot be written: ", "; name another file")

"""Batches against accepted figures: what is the same, what is not, and what is said of it."""

import json
import math
from types import SimpleNamespace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.batch import baselines
from lmdynamics.batch import verdict as verdict_of
from lmdynamics.batch.baselines import accept, computed_elsewhere, file_name, item_key, read_baselines
from lmdynamics.batch.collect import SCHEMA as COLUMNS
from lmdynamics.batch.collect import gather
from lmdynamics.batch.compare import compare, same_value, status, summary
from lmdynamics.errors import UserError
from tests.batch.made import ENVIRONMENT, write_item
from tests.conftest import refused

UAS = {"value": 0.61, "tolerance": 0.05, "low": 0.5, "high": 0.7, "unit": ""}
ACCEPTED = {"uas": UAS, "onset": 64, "grokked": True, "word": "later", "nothing": None}


@pytest.fixture
def accepted(tmp_path):
    """The baselines' folder, with one item accepted on its defaults."""
    write_item(tmp_path / "first", "02_sas", ACCEPTED)
    accept(gather(tmp_path / "first"), tmp_path / "baselines", "Ada")
    return tmp_path / "baselines"


def verdicts(accepted, records=None, **outcome):
    out = accepted.parent / "second"
    write_item(out, "02_sas", records, **outcome)
    return compare(gather(out), read_baselines(accepted))


def by_record(frame):
    return dict(frame.select("record", "verdict").iter_rows())


def test_a_batch_is_the_same_as_itself(accepted):
    found = verdicts(accepted, ACCEPTED)
    assert by_record(found) == dict.fromkeys(ACCEPTED, "same")
    assert status(found) == status(found, strict=True) == 0
    assert summary(found) == "5 records in 1 item: 5 same"


def test_every_verdict_at_once(accepted):
    records = {"uas": UAS | {"value": 0.22}, "onset": 64, "word": "later", "nothing": None, "more": 1.5}
    found = verdicts(accepted, records)
    assert by_record(found) == {
        "uas": "changed",
        "onset": "same",
        "word": "same",
        "nothing": "same",
        "more": "new",
        "grokked": "gone",
    }
    rows = {row["record"]: row for row in found.iter_rows(named=True)}
    assert rows["uas"]["difference"] == pytest.approx(-0.39)
    assert (rows["uas"]["value"], rows["uas"]["baseline"], rows["uas"]["tolerance"]) == ("0.22", "0.61", 0.05)
    assert rows["uas"]["why"] == "0.61 → 0.22, tolerance 0.05"
    assert (rows["grokked"]["value"], rows["grokked"]["baseline"]) == (None, "true")
    assert (rows["more"]["value"], rows["more"]["baseline"]) == ("1.5", None)
    assert status(found) == 1
    assert summary(found) == (
        "6 records in 1 item: 3 same, 1 changed (02_sas: uas 0.61 → 0.22, tolerance 0.05), 1 new, "
        "1 gone (02_sas: grokked was true, is not recorded any more)"
    )


def test_the_baselines_tolerance_counts_not_the_new_one(accepted):
    wider = verdicts(accepted, ACCEPTED | {"uas": UAS | {"value": 0.22, "tolerance": 9.0}})
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
        (0.0, -3e-16, None, True),
        (1e-9, 0.0, None, False),
        (1e-9, 1.1e-9, None, False),
    ],
)
def test_what_is_the_same(value, baseline, tolerance, same):
    assert same_value(value, baseline, tolerance) is same


FINITE = st.floats(-1e6, 1e6)


@given(FINITE, FINITE, st.floats(0, 10))
def test_sameness_is_symmetric_and_grows_with_tolerance(one, other, tolerance):
    same = same_value(one, other, tolerance)
    assert same == same_value(other, one, tolerance)
    assert not same or same_value(one, other, tolerance + 1)
    assert same_value(one, one, 0.0)
    if abs(one - other) <= tolerance:
        assert same
    if abs(one - other) > tolerance + 1e-6:
        assert not same


def test_another_kind_of_value_is_a_change_and_said(accepted):
    found = verdicts(accepted, {"uas": "high", "onset": None, "grokked": 1, "word": True, "nothing": 0})
    assert set(by_record(found).values()) == {"changed"}
    assert found["why"].to_list() == [
        '0.61 → "high", a number before',
        "64 → none, a number before",
        "true → 1, a truth value before",
        '"later" → true, a word before',
        "none → 0",
    ]


def test_nan_never_passes(accepted):
    found = verdicts(accepted, ACCEPTED | {"uas": UAS | {"value": math.nan}, "nothing": math.nan})
    assert by_record(found) == dict.fromkeys(ACCEPTED, "same") | {"uas": "changed", "nothing": "changed"}
    path = accepted / "02_sas.smoke.cpu.json"
    path.write_text(path.read_text().replace("0.61", "NaN"))
    both = verdicts(accepted, ACCEPTED | {"uas": UAS | {"value": math.nan}})
    assert by_record(both)["uas"] == "changed"


def test_small_changes_are_told_in_digits_that_show_them(accepted):
    accept(gather(accepted.parent / "first").with_columns(tolerance=pl.lit(1e-7)), accepted, "Ada")
    (why,) = verdicts(accepted, ACCEPTED | {"uas": UAS | {"value": 0.610003}}).filter(verdict="changed")["why"]
    assert why == "0.61 → 0.610003, tolerance 1e-07"


def test_another_unit_is_a_change(tmp_path):
    write_item(tmp_path / "a", "n", {"loss": {"value": 5.2, "tolerance": 0.1, "unit": "nats"}})
    write_item(tmp_path / "b", "n", {"loss": {"value": 5.2, "tolerance": 0.1, "unit": "bits"}})
    accept(gather(tmp_path / "a"), tmp_path / "baselines", "Ada")
    found = compare(gather(tmp_path / "b"), read_baselines(tmp_path / "baselines"))
    assert found.select("verdict", "why").rows() == [("changed", "the unit nats → bits")]


@pytest.mark.parametrize("how", ["failed", "interrupted"])
def test_a_failed_item_is_one_row_whatever_it_recorded(accepted, how):
    error = "ValueError: no\nway" if how == "failed" else ""
    found = verdicts(accepted, ACCEPTED, status=how, error=error)
    assert found.select("record", "verdict").rows() == [(None, "failed")]
    assert status(found) == 1
    assert "1 item failed (02_sas: " in summary(found)
    assert "\n" not in summary(found)


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        ({"parameters": {"profile": "full"}}, "no 02_sas.full.cpu.json"),
        ({"environment": {"device": "cuda"}}, "no 02_sas.smoke.cuda.json"),
        ({"parameters": {"seed": 7}}, "02_sas.smoke.cpu.json has none for seed=7"),
    ],
)
def test_other_profiles_devices_and_parameters_have_baselines_of_their_own(accepted, outcome, why):
    found = verdicts(accepted, {"uas": UAS, "onset": 9}, **outcome)
    assert found.select("verdict", "why").rows() == [("no baseline", why)] * 2
    assert (status(found), status(found, strict=True)) == (0, 1)
    assert summary(found) == "2 records in 1 item: 2 without a baseline"


def test_strict_also_refuses_a_new_record(accepted):
    found = verdicts(accepted, ACCEPTED | {"more": 1})
    assert (status(found), status(found, strict=True)) == (0, 1)


def test_an_item_that_records_nothing_is_not_forgotten(tmp_path):
    write_item(tmp_path / "a", "n", {})
    frame = gather(tmp_path / "a")
    assert compare(frame, {})["verdict"].to_list() == ["no baseline"]
    accept(frame, tmp_path / "baselines", "Ada")
    found = compare(frame, read_baselines(tmp_path / "baselines"))
    assert found.select("record", "verdict").rows() == [(None, "same")]
    assert summary(found) == "0 records in 1 item: 1 item without records"


def test_many_changes_stay_one_line_of_the_first_few(tmp_path):
    names = [f"r{i}" for i in range(9)]
    write_item(tmp_path / "a", "n", dict.fromkeys(names, 1))
    write_item(tmp_path / "b", "n", dict.fromkeys(names, 2))
    accept(gather(tmp_path / "a"), tmp_path / "baselines", "Ada")
    found = compare(gather(tmp_path / "b"), read_baselines(tmp_path / "baselines"))
    assert summary(found) == "9 records in 1 item: 9 changed (n: r0 1 → 2; n: r1 1 → 2; n: r2 1 → 2; …)"


def test_two_records_of_one_name_are_refused(accepted):
    frame = gather(accepted.parent / "first")
    with pytest.raises(UserError, match="two records of one name"):
        compare(pl.concat([frame, frame]), {})


def test_accepting_says_who_and_with_what_and_keeps_other_items(accepted):
    out = accepted.parent / "second"
    for seed in (1, 2):
        write_item(out, f"02_sas--seed={seed}", {"uas": UAS | {"value": seed / 10}}, parameters={"seed": seed})
    (path,) = accept(gather(out), accepted, " Grace ")
    assert path == accepted / "02_sas.smoke.cpu.json"
    content = json.loads(path.read_text())
    assert list(content["items"]) == ["", "seed=1", "seed=2"]
    assert content["items"]["seed=2"] == {"uas": UAS | {"value": 0.2}}
    back = {name: fields["value"] for name, fields in content["items"][""].items()}
    assert back == {"uas": 0.61, "onset": 64, "grokked": True, "word": "later", "nothing": None}
    assert type(back["grokked"]) is bool
    assert content["format"] == 1
    signed = content["accepted"]
    assert {key: each["who"] for key, each in signed.items()} == {"": "Ada", "seed=1": "Grace", "seed=2": "Grace"}
    assert len(signed[""].pop("when")) == 19
    assert signed[""] == {
        "who": "Ada",
        "versions": {"torch": "2.13.0", "transformers": "5.1.0", "lmdynamics": "0.4.0"},
        "device": "some processor",
        "commit": "abc1234",
    }


def test_a_file_that_was_signed_as_a_whole_keeps_that_name_for_its_items(accepted):
    path = accepted / "02_sas.smoke.cpu.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "accepted": {"who": "the developers", "commit": "abc1234"}}))
    write_item(accepted.parent / "second", "02_sas--seed=1", {"uas": 0.1}, parameters={"seed": 1})
    accept(gather(accepted.parent / "second"), accepted, "Grace")
    signed = read_baselines(accepted)["02_sas.smoke.cpu.json"].accepted
    assert signed[""] == {"who": "the developers", "commit": "abc1234"}
    assert signed["seed=1"]["who"] == "Grace"


@pytest.fixture
def here(monkeypatch) -> dict:
    """What this checkout and machine would record."""
    monkeypatch.setattr(baselines, "commit", lambda: "abc1234")
    monkeypatch.setattr(baselines, "versions", lambda: ENVIRONMENT)
    monkeypatch.setattr(baselines.platform, "processor", lambda: "some processor")
    return ENVIRONMENT


@pytest.mark.parametrize(
    ("elsewhere", "said"),
    [
        ({"commit": "fff9999"}, "commit fff9999, here abc1234"),
        ({"commit": "abc1234+"}, "commit abc1234 with changes that were not committed"),
        ({"commit": None}, "no commit is recorded"),
        ({"torch": "2.14.0"}, "torch 2.14.0, here 2.13.0"),
        ({"device_name": "another processor"}, "device another processor, here some processor"),
        ({"device": "cuda", "device_name": "H100"}, "device H100, here "),
    ],
)
def test_what_was_computed_elsewhere_is_not_signed_unasked(call, tmp_path, here, elsewhere, said):
    out, folder = tmp_path / "out", tmp_path / "baselines"
    write_item(out, "01_a", {"x": 1})
    write_item(out, "02_b", {"x": 1}, environment=elsewhere)
    assert computed_elsewhere(gather(out).filter(item="01_a")) == []
    result = call("compare", out, "--baseline", folder, "--accept", "--who", "Ada")
    assert refused(result, said, "(1 of 2 items)", "add --yes to accept it as Ada")
    assert not folder.exists()
    assert call("compare", out, "--baseline", folder, "--accept", "--who", "Ada", "--yes")[0] == 0
    assert {each.accepted[""]["who"] for each in read_baselines(folder).values()} == {"Ada"}


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 1)])
def test_at_a_terminal_it_is_asked(call, tmp_path, here, monkeypatch, answer, status):
    write_item(tmp_path / "out", "01_a", {"x": 1}, environment={"commit": None})
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda asked: print(asked) or answer)
    result = call("compare", tmp_path / "out", "--baseline", tmp_path / "baselines", "--accept", "--who", "Ada")
    assert result[0] == status
    assert "no commit is recorded (1 of 1 items)\nAccept as Ada? [y/N]" in result[1]
    assert (tmp_path / "baselines").exists() == (status == 0)


def test_what_was_computed_here_is_accepted_at_once(call, tmp_path, here):
    write_item(tmp_path / "out", "01_a", {"x": 1})
    assert call("compare", tmp_path / "out", "--baseline", tmp_path / "baselines", "--accept", "--who", "Ada")[0] == 0


def test_a_user_without_a_name_is_asked_for_one(call, tmp_path, here, monkeypatch):
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(verdict_of, "getuser", nobody)
    write_item(tmp_path / "out", "01_a", {"x": 1})
    assert refused(call("compare", tmp_path / "out", "--baseline", tmp_path / "b", "--accept"), "--who NAME")


def test_accepting_anew_drops_the_items_old_records(accepted):
    write_item(accepted.parent / "second", "02_sas", {"uas": 0.7})
    (path,) = accept(gather(accepted.parent / "second"), accepted, "Ada")
    assert list(json.loads(path.read_text())["items"][""]) == ["uas"]


@pytest.mark.parametrize("how", ["failed", "interrupted"])
def test_a_batch_that_did_not_finish_is_not_accepted(accepted, how):
    out = accepted.parent / "second"
    write_item(out, "01_a", {"x": 1})
    write_item(out, "02_sas", status=how, error="no")
    before = {path: path.read_bytes() for path in accepted.iterdir()}
    with pytest.raises(UserError, match=f"^02_sas {how}; only a finished batch is accepted") as refusal:
        accept(gather(out), accepted, "Ada")
    assert "\n" not in str(refusal.value)
    assert {path: path.read_bytes() for path in accepted.iterdir()} == before


@pytest.mark.parametrize("number", ["value", "tolerance", "high"])
def test_nan_is_not_accepted(tmp_path, number):
    write_item(tmp_path / "a", "n", {"x": UAS | {number: math.nan}})
    with pytest.raises(UserError, match="n: x has a number that is not finite"):
        accept(gather(tmp_path / "a"), tmp_path / "baselines", "Ada")
    assert not (tmp_path / "baselines").exists()


def test_two_items_of_one_place_are_not_accepted(tmp_path):
    for i, device in enumerate(["cuda:0", "cuda:1"]):
        write_item(tmp_path / "a", f"n--{i}", {"x": i}, parameters={"device": device}, environment={"device": "cuda"})
    with pytest.raises(UserError, match="n--0 and n--1 have the same parameters"):
        accept(gather(tmp_path / "a"), tmp_path / "baselines", "Ada")


def test_nobody_accepts_nothing(tmp_path):
    write_item(tmp_path / "a", "n", {"x": 1})
    with pytest.raises(UserError, match="say who"):
        accept(gather(tmp_path / "a"), tmp_path / "baselines", " ")
    with pytest.raises(UserError, match="nothing to accept"):
        accept(gather(tmp_path / "a").clear(), tmp_path / "baselines", "Ada")


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        ({"profile": "smoke", "device": "cpu", "interactive": False, "output_dir": "/x"}, ""),
        ({"seed": 1, "profile": "smoke"}, "seed=1"),
        ({"seed": 1, "run": "b", "flag": True, "rates": [0.1, 2]}, "flag=true, rates=[0.1, 2], run=b, seed=1"),
    ],
)
def test_an_items_place_is_its_other_parameters(parameters, key):
    assert item_key(json.dumps(parameters)) == key


@pytest.mark.parametrize("pieces", [("../n", "p", "cpu"), ("n", "../p", "cpu"), ("n", "p", "c.u"), ("n", "p", "")])
def test_a_baseline_stays_in_its_folder(pieces):
    with pytest.raises(UserError, match="cannot be part of a baseline's file name"):
        file_name(*pieces)


def test_no_profile_is_the_default_one():
    assert file_name("02_sas", None, "cpu") == "02_sas.default.cpu.json" == file_name("02_sas", "default", "cpu")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not a baseline"),
        ("[]", "is not a baseline"),
        ('{"format": 2, "items": {}}', "has format 2, expected 1"),
        ('{"format": 1}', "'items'"),
        ('{"format": 1, "items": {"": {"x": {}}}}', "'value'"),
        ('{"format": 1, "items": {"": {"x": {"value": [1]}}}}', r"value \[1\] is not a scalar"),
        ('{"format": 1, "items": {"": {"x": {"value": 1, "tolerance": -1}}}}', "tolerance is -1"),
        ('{"format": 1, "items": {"": {"x": {"value": 1, "tolerance": Infinity}}}}', "tolerance is Infinity"),
        ('{"format": 1, "items": {"": {"x": {"value": 1, "tolerance": true}}}}', "tolerance is true"),
        ('{"format": 1, "items": {"": {"x": {"value": 1, "tolerence": 1}}}}', "tolerence"),
    ],
)
def test_a_broken_baseline_is_refused(tmp_path, text, reason):
    (tmp_path / "n.smoke.cpu.json").write_text(text)
    with pytest.raises(UserError, match=reason) as refusal:
        read_baselines(tmp_path)
    assert str(tmp_path / "n.smoke.cpu.json") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_folders_without_baselines(tmp_path):
    with pytest.raises(UserError, match="no folder of baselines .*nowhere"):
        read_baselines(tmp_path / "nowhere")
    assert read_baselines(tmp_path) == {}
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UserError, match="is not called NOTEBOOK.PROFILE.DEVICE.json"):
        read_baselines(tmp_path)


def test_a_frame_of_something_else_is_refused():
    with pytest.raises(UserError, match="comparing a batch needs the columns"):
        compare(pl.DataFrame({"item": ["a"]}), {})


def test_nothing_compared_is_not_nothing_changed():
    with pytest.raises(UserError, match="there is nothing to compare"):
        compare(pl.DataFrame(schema=COLUMNS), {})

"""Accepted records: who may accept what, where it is kept, and what is refused."""

import json
import math
from types import SimpleNamespace

import pytest

from lmdynamics.batch import baselines, regression
from lmdynamics.batch.baselines import accept, environment_differences, file_name, item_key, read_baselines
from lmdynamics.batch.collect import gather
from tests.batch.made import ENVIRONMENT, UAS, write_item
from tests.conftest import refused, refuses


def test_accepting_says_who_and_with_what_and_keeps_other_items(accepted):
    out = accepted.parent / "second"
    for seed in (1, 2):
        write_item(out, f"02_sas--seed={seed}", {"uas": UAS | {"value": seed / 10}}, parameters={"seed": seed})
    (path,) = accept(gather(out), accepted, " Grace ")
    assert path == accepted / "02_sas.smoke.cpu.json"
    content = json.loads(path.read_text())
    assert list(content["items"]) == ["", "seed=1", "seed=2"]
    assert content["items"]["seed=2"] == {"uas": UAS | {"value": 0.2}}
    values = {name: fields["value"] for name, fields in content["items"][""].items()}
    assert values == {"uas": 0.61, "onset": 64, "grokked": True, "word": "later", "nothing": None}
    assert type(values["grokked"]) is bool
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


def test_accepting_anew_drops_the_items_old_records(accepted):
    write_item(accepted.parent / "second", "02_sas", {"uas": 0.7})
    (path,) = accept(gather(accepted.parent / "second"), accepted, "Ada")
    assert list(json.loads(path.read_text())["items"][""]) == ["uas"]


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
def this_environment(monkeypatch) -> dict:
    """What this checkout and machine would record."""
    monkeypatch.setattr(baselines, "commit", lambda: "abc1234")
    monkeypatch.setattr(baselines, "versions", lambda: ENVIRONMENT)
    monkeypatch.setattr(baselines.platform, "processor", lambda: "some processor")
    return ENVIRONMENT


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"commit": "fff9999"}, "commit fff9999, here abc1234"),
        ({"commit": "abc1234+"}, "commit abc1234 with changes that were not committed"),
        ({"commit": None}, "no commit is recorded"),
        ({"torch": "2.14.0"}, "torch 2.14.0, here 2.13.0"),
        ({"device_name": "another processor"}, "device another processor, here some processor"),
        ({"device": "cuda", "device_name": "H100"}, "device H100, here "),
    ],
)
def test_results_computed_elsewhere_are_not_signed_without_confirmation(
    call, tmp_path, this_environment, environment, message
):
    out, folder = tmp_path / "out", tmp_path / "baselines"
    write_item(out, "01_a", {"x": 1})
    write_item(out, "02_b", {"x": 1}, environment=environment)
    assert environment_differences(gather(out).filter(item="01_a")) == []
    result = call("compare", out, "--baseline", folder, "--accept", "--who", "Ada")
    assert refused(result, message, "(1 of 2 items)", "add --yes to accept it anyway as Ada")
    assert not folder.exists()
    assert call("compare", out, "--baseline", folder, "--accept", "--who", "Ada", "--yes")[0] == 0
    assert {each.accepted[""]["who"] for each in read_baselines(folder).values()} == {"Ada"}


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 1)])
def test_at_a_terminal_confirmation_is_requested(call, tmp_path, this_environment, monkeypatch, answer, status):
    write_item(tmp_path / "out", "01_a", {"x": 1}, environment={"commit": None})
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda prompt: print(prompt) or answer)
    result = call("compare", tmp_path / "out", "--baseline", tmp_path / "baselines", "--accept", "--who", "Ada")
    assert result[0] == status
    assert "no commit is recorded (1 of 1 items)\nAccept as Ada? [y/N]" in result[1]
    assert (tmp_path / "baselines").exists() == (status == 0)


def test_results_computed_here_are_accepted_at_once(call, tmp_path, this_environment):
    write_item(tmp_path / "out", "01_a", {"x": 1})
    assert call("compare", tmp_path / "out", "--baseline", tmp_path / "baselines", "--accept", "--who", "Ada")[0] == 0


def test_a_user_without_a_name_is_asked_for_one(call, tmp_path, this_environment, monkeypatch):
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(regression, "getuser", nobody)
    write_item(tmp_path / "out", "01_a", {"x": 1})
    assert refused(call("compare", tmp_path / "out", "--baseline", tmp_path / "b", "--accept"), "--who NAME")


@pytest.mark.parametrize("outcome", ["failed", "interrupted"])
def test_a_batch_that_did_not_finish_is_not_accepted(accepted, outcome):
    out = accepted.parent / "second"
    write_item(out, "01_a", {"x": 1})
    write_item(out, "02_sas", status=outcome, error="no")
    before = {path: path.read_bytes() for path in accepted.iterdir()}
    refuses(f"^02_sas {outcome}; only a finished batch can be accepted", accept, gather(out), accepted, "Ada")
    assert {path: path.read_bytes() for path in accepted.iterdir()} == before


@pytest.mark.parametrize("number", ["value", "tolerance", "high"])
def test_nan_is_not_accepted(tmp_path, number):
    write_item(tmp_path / "a", "n", {"x": UAS | {number: math.nan}})
    refuses("n: x has a number that is not finite", accept, gather(tmp_path / "a"), tmp_path / "baselines", "Ada")
    assert not (tmp_path / "baselines").exists()


def test_two_items_of_one_place_are_not_accepted(tmp_path):
    for i, device in enumerate(["cuda:0", "cuda:1"]):
        write_item(tmp_path / "a", f"n--{i}", {"x": i}, parameters={"device": device}, environment={"device": "cuda"})
    refuses("n--0 and n--1 have the same parameters", accept, gather(tmp_path / "a"), tmp_path / "baselines", "Ada")


def test_nobody_accepts_nothing(tmp_path):
    write_item(tmp_path / "a", "n", {"x": 1})
    refuses("needs the name of the person", accept, gather(tmp_path / "a"), tmp_path / "baselines", " ")
    refuses("nothing to accept", accept, gather(tmp_path / "a").clear(), tmp_path / "baselines", "Ada")


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
    refuses("cannot be part of a baseline's file name", file_name, *pieces)


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
    message = refuses(reason, read_baselines, tmp_path)
    assert str(tmp_path / "n.smoke.cpu.json") in message
    assert "\n" not in message


def test_folders_without_baselines(tmp_path):
    refuses("no folder of baselines .*nowhere", read_baselines, tmp_path / "nowhere")
    assert read_baselines(tmp_path) == {}
    (tmp_path / "notes.json").write_text("{}")
    refuses("is not named NOTEBOOK.PROFILE.DEVICE.json", read_baselines, tmp_path)

"""The records of a batch in one frame: nothing is lost and nothing is invented."""

import json

import polars as pl
import pytest

from lmdynamics.batch.collect import SCHEMA, collect, gather
from tests.batch.made import write_item
from tests.conftest import refuses

VALUES = {"float": 0.61, "int": 3, "yes": True, "no": False, "word": "later", "none": None, "one as a word": "1"}


def rows(out):
    return gather(out).rows(named=True)


def test_a_row_per_record_with_all_that_is_known(tmp_path):
    full = {"value": 0.61, "low": 0.5, "high": 0.7, "tolerance": 0.05, "unit": "UAS"}
    folder = write_item(tmp_path, "02_sas--seed=1", {"uas": full}, parameters={"seed": 1, "a": "x"})
    (row,) = rows(tmp_path)
    assert row == {
        "item": "02_sas--seed=1",
        "notebook": "02_sas",
        "profile": "smoke",
        "device": "cpu",
        "parameters": '{"a": "x", "profile": "smoke", "seed": 1}',
        "record": "uas",
        "value": 0.61,
        "text": "0.61",
        "low": 0.5,
        "high": 0.7,
        "tolerance": 0.05,
        "unit": "UAS",
        "status": "finished",
        "seconds": 12.0,
        "peak_mb": 1000.0,
        "peak_gpu_mb": None,
        "ended": "2026-11-03T04:05:06",
        "key": "k1",
        "torch": "2.13.0",
        "transformers": "5.1.0",
        "lmdynamics": "0.4.0",
        "commit": "abc1234",
        "device_name": "some processor",
        "dtype": "float32",
        "deterministic": True,
        "error": None,
    }
    assert folder.exists()


def test_every_kind_of_value_survives_as_text(tmp_path):
    write_item(tmp_path, "one", VALUES)
    row_by_record = {row["record"]: row for row in rows(tmp_path)}
    parsed = {name: json.loads(row["text"]) for name, row in row_by_record.items()}
    assert parsed == VALUES
    assert [type(value) for value in parsed.values()] == [type(value) for value in VALUES.values()]
    assert [row["value"] for row in row_by_record.values()] == [0.61, 3.0, 1.0, 0.0, None, None, None]


def test_items_stay_apart_and_one_without_records_has_a_row(tmp_path):
    write_item(tmp_path, "b", {"x": 1, "y": 2})
    write_item(tmp_path, "a", {})
    write_item(tmp_path, "c", status="failed", cell=4, error="ValueError: no")
    (tmp_path / "no_item").mkdir()
    frame = gather(tmp_path)
    assert frame.select("item", "record", "status", "error").rows() == [
        ("a", None, "finished", None),
        ("b", "x", "finished", None),
        ("b", "y", "finished", None),
        ("c", None, "failed", "cell 4: ValueError: no"),
    ]
    assert dict(frame.schema) == SCHEMA


def test_an_older_batch_has_nulls(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    old = {"name": "old", "status": "finished", "seconds": 1.5, "parameters": {}}
    (folder / "outcome.json").write_text(json.dumps(old))
    (folder / "records.json").write_text(json.dumps({"format": 1, "records": [{"name": "x", "value": 1}]}))
    (row,) = rows(tmp_path)
    expected = {"item": "old", "notebook": "old", "device": "cpu", "parameters": "{}", "record": "x", "value": 1.0}
    expected |= {"text": "1", "unit": "", "status": "finished", "seconds": 1.5}
    assert {name: value for name, value in row.items() if value is not None} == expected


@pytest.mark.parametrize(
    ("parameters", "environment", "kind"),
    [
        ({}, {"device": "cuda"}, "cuda"),
        ({"device": "cpu"}, {"device": "cuda"}, "cuda"),  # what ran, not what was asked for
        ({"device": "cuda:1"}, {"device": None}, "cuda"),
        ({}, {"device": None}, "cpu"),
        ({"device": ""}, {"device": None}, "cpu"),
    ],
)
def test_the_kind_of_device(tmp_path, parameters, environment, kind):
    write_item(tmp_path, "one", {"x": 1}, parameters=parameters, environment=environment)
    assert gather(tmp_path)["device"].to_list() == [kind]


def test_the_processes_own_peak_wins_and_the_notebooks_fills_in(tmp_path):
    write_item(tmp_path, "a", {"x": 1})
    write_item(tmp_path, "b", {"x": 1}, peak_mb=None, seconds=None)
    assert gather(tmp_path).select("peak_mb", "seconds").rows() == [(1000.0, 12.0), (900.5, 9.0)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "a", ', "is broken"),
        ("[]", "is broken"),
        ("{}", "names no item"),
        ('{"name": "a", "status": "done"}', "has the status 'done', not one of finished, failed, interrupted"),
        ('{"name": "a", "status": "finished", "seconds": "9"}', 'seconds is "9"'),
        ('{"name": "a", "status": "finished", "seconds": true}', "seconds is true"),
        ('{"name": "a", "status": "finished", "parameters": []}', r"parameters is \[\]"),
    ],
)
def test_a_broken_outcome_is_one_line_with_its_file_and_a_remedy(tmp_path, text, reason):
    write_item(tmp_path, "good", {"x": 1})
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "outcome.json").write_text(text)
    message = refuses(reason, gather, tmp_path)
    assert message.startswith(str(folder / "outcome.json"))
    assert message.endswith("delete its folder and run the batch again")
    assert "\n" not in message


@pytest.mark.parametrize(
    "content",
    [
        {"records": [{"name": "x", "value": [1]}]},
        {"records": [{"name": "x", "value": 1, "low": "deep"}]},
        {"records": [], "environment": [1]},
        {"records": [], "environment": {"torch": 2}},
    ],
)
def test_broken_records_are_refused(tmp_path, content):
    folder = write_item(tmp_path, "one")
    (folder / "records.json").write_text(json.dumps(content))
    refuses("one.* run (its notebook|the batch) again", gather, tmp_path)


def test_no_results_are_refused(tmp_path):
    refuses("has no results of a batch; name the --out", gather, tmp_path)
    refuses("is not a folder", gather, tmp_path / "nowhere")


def test_a_batch_stopped_at_once_has_no_rows(tmp_path):
    frame = pl.read_parquet(collect(tmp_path))
    assert frame.is_empty()
    assert dict(frame.schema) == SCHEMA
    refuses("is not a folder", collect, tmp_path / "nowhere")


def test_the_file_is_whole_or_not_at_all(tmp_path, monkeypatch):
    write_item(tmp_path, "one", VALUES)
    path = collect(tmp_path)
    assert path == tmp_path / "records.parquet"
    assert pl.read_parquet(path).equals(gather(tmp_path))
    before = path.read_bytes()

    def cut_short(frame, target):
        target.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    write_item(tmp_path, "two", {"x": 1})
    monkeypatch.setattr(pl.DataFrame, "write_parquet", cut_short)
    refuses("could not save .*records.parquet: no space left", collect, tmp_path)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "records.parquet", "two"]

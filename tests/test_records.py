import json

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.errors import UserError
from lmdynamics.records import MIME_TYPE, Record, read_records, record, start_records


@pytest.fixture
def folder(tmp_path):
    start_records(str(tmp_path / "made"))
    yield tmp_path / "made"
    start_records("")


def test_what_is_recorded_can_be_read(folder, capsys):
    record("structure onset", 208, low=150, high=250, unit="steps", tolerance=40)
    record("capabilities onset", None)
    assert read_records(folder) == [
        Record("structure onset", 208, 40, 150, 250, "steps"),
        Record("capabilities onset", None),
    ]
    assert capsys.readouterr().out == "structure onset: 208 steps [150, 250] ± 40\ncapabilities onset: none\n"


def test_the_file_is_there_from_the_start_and_after_each_record(folder):
    assert read_records(folder) == []
    assert (folder / "records.json").exists()
    record("a", 1)
    record("b", 2)
    assert [entry.name for entry in read_records(folder)] == ["a", "b"]
    assert [path.name for path in folder.iterdir()] == ["records.json"]


def test_a_second_record_of_a_name_replaces_the_first(folder):
    record("a", 1)
    record("a", 2)
    assert [entry.value for entry in read_records(folder)] == [2]


def test_a_new_start_forgets_the_last_notebook(folder, tmp_path):
    record("a", 1)
    start_records(tmp_path / "other")
    record("b", 2)
    assert [entry.name for entry in read_records(folder)] == ["a"]
    assert [entry.name for entry in read_records(tmp_path / "other")] == ["b"]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_records("")
    record("a", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (torch.tensor(2.5), 2.5),
        (pl.Series([7]), 7),
        (True, True),
        ("by threshold", "by threshold"),
    ],
)
def test_scalars_of_other_libraries_become_plain(folder, value, plain):
    record("x", value, tolerance=np.float64(0.1))
    (entry,) = read_records(folder)
    assert entry.value == plain
    assert type(entry.value) is type(plain)
    assert entry.tolerance == 0.1


@given(value=st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text())
def test_every_scalar_survives_the_file(value, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    start_records(folder)
    record("x", value)
    (entry,) = read_records(folder)
    assert entry.value == value
    assert type(entry.value) is type(value)
    start_records("")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value": float("nan")}, "record None"),
        ({"value": float("inf")}, "record None"),
        ({"value": [1, 2]}, "should be a number, found list"),
        ({"value": torch.ones(3)}, "a single value was expected, found Tensor"),
        ({"value": 1, "low": 3, "high": 2}, "low above high"),
        ({"value": 1, "tolerance": -1}, "negative"),
        ({"value": 1, "tolerance": True}, "should be a number"),
        ({"value": 1, "low": "two"}, "should be a number"),
    ],
)
def test_what_is_not_a_figure_is_refused_and_the_rest_is_kept(folder, arguments, message):
    record("kept", 1)
    with pytest.raises(UserError, match=message):
        record("x", **arguments)
    assert [entry.name for entry in read_records(folder)] == ["kept"]


def test_a_record_needs_a_name(folder):
    with pytest.raises(UserError, match="needs a name"):
        record("", 1)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "records.json").write_text('{"records": [{"nam')
    with pytest.raises(UserError, match=r"records\.json is not a records file"):
        read_records(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        start_records(tmp_path / "file" / "below")


def test_a_notebook_carries_its_records(folder, monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda data, raw: displayed.append(data))
    record("uas", 0.75123, unit="of arcs")
    (data,) = displayed
    assert data["text/plain"] == "uas: 0.7512 of arcs"
    assert json.loads(json.dumps(data[MIME_TYPE]))["value"] == 0.75123
    record("<b>$x$", None, low=1, tolerance=0.5)
    lines = [each["text/html"] for each in displayed]
    assert ["recorded" in line for line in lines] == [True, False]
    assert "&lt;b&gt;$x$" in lines[1]
    assert "mathjax_ignore" in lines[1]
    assert [">none<" in line for line in lines] == [False, True]
    assert ["[1, ]" in line for line in lines] == [False, True]


def test_an_interval_of_no_width_is_no_interval(folder):
    record("a", 5.0, low=5.0, high=5.0)
    assert read_records(folder) == [Record("a", 5.0)]

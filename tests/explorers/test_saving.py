"""Saving and restoring what an explorer shows: complete files, and states that report what no longer fits."""

import ast
import os

import altair as alt
import polars as pl
import pytest

from lmdynamics.charts.show import KINDS, save
from lmdynamics.errors import UserError
from lmdynamics.explorers.saving import SaveRow, as_cell, check_among, complete_state

STATE = {"curve": "a", "step": 4, "at": 0.5, "words": ["it", "is"]}


class StandIn:
    """An explorer of one chart."""

    chart = alt.Chart(pl.DataFrame({"x": [1, 2]})).mark_point().encode(x="x:Q")

    def stills(self):
        return {"points": self.chart}

    def tables(self):
        return {"points": pl.DataFrame({"x": [1, 2], "name": ["a,b", '"c"']})}

    def state(self):
        return STATE


@pytest.fixture
def row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return SaveRow(StandIn())


def test_one_click_writes_picture_and_data_and_says_where(row, tmp_path):
    row.save.click()
    assert sorted(os.listdir(tmp_path / "out")) == ["points.csv", "points.png", "points.svg"]
    assert row.message.value == f"saved 3 files, points.svg the first, to {tmp_path / 'out'}"
    assert pl.read_csv(tmp_path / "out" / "points.csv").equals(StandIn().tables()["points"])
    assert not row.save.disabled


def test_the_folder_and_the_kind_are_the_readers(row, tmp_path):
    row.folder.value, row.kinds.value = "my <figures>", ("svg",)
    row.save.click()
    assert os.listdir(tmp_path / "my <figures>") == ["points.svg"]
    assert row.message.value == f"saved a file to {tmp_path}/my &lt;figures&gt;"


@pytest.mark.parametrize(("folder", "says"), [("file/deeper", "cannot write"), ("  ", "no folder to save to")])
def test_what_cannot_be_written_is_reported_in_one_line(row, tmp_path, folder, says):
    (tmp_path / "file").write_text("in the way")
    row.folder.value = folder
    row.save.click()
    assert says in row.message.value
    assert "\n" not in row.message.value
    assert os.listdir(tmp_path) == ["file"]


def test_the_cell_is_a_call_with_literals(row):
    row.state.click()
    (statement,) = ast.parse(row.cell.value).body
    call = statement.value.func.value  # explorer.restore(...), on which .show() is called
    assert (call.func.value.id, call.func.attr) == ("explorer", "restore")
    assert ast.literal_eval(call.args[0]) == STATE
    assert row.cell.layout.display is None


def test_a_state_survives_its_text():
    odd = {"name": "a'b\"\n\\", "words": ["…", "</textarea>"], "at": 0.1 + 0.2}
    text = as_cell(odd)
    assert ast.literal_eval(text[text.index("{") : text.rindex("}") + 1]) == odd


def test_a_state_keeps_what_it_does_not_name():
    assert complete_state({"step": 8, "at": 1}, STATE) == {**STATE, "step": 8, "at": 1}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"stp": 4}, "did you mean 'step'"),
        ({3: 4}, "no entry 3"),
        ({"step": "4"}, "should be a int"),
        ({"step": True}, "should be a int"),
        ({"words": "it is"}, "should be a list"),
        (["step", 4], "a state is a dictionary"),
        ({"curve": None}, "should be a str"),
    ],
)
def test_a_state_of_something_else_is_refused_in_one_line(state, says):
    with pytest.raises(UserError, match=says) as refusal:
        complete_state(state, STATE)
    assert "\n" not in str(refusal.value)


def test_what_is_gone_is_named_with_what_there_is():
    with pytest.raises(UserError, match="step is 5, which does not exist .any more.; known: 1, 2, 4"):
        check_among("step", 5, [1, 2, 4])


def test_nothing_is_overwritten(tmp_path):
    views, tables = StandIn().stills(), StandIn().tables()
    first_paths = save(views, tables, tmp_path, ["csv"])
    second_paths = save(views, tables, tmp_path, KINDS)
    assert [path.name for path in first_paths] == ["points.csv"]
    assert [path.name for path in second_paths] == ["points-2.svg", "points-2.png", "points-2.csv"]

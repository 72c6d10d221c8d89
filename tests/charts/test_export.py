"""A view as files: complete, or not written at all."""

import os

import altair as alt
import polars as pl
import pytest

from lmdynamics.charts.show import save
from lmdynamics.charts.theme import figure
from lmdynamics.errors import UserError


@pytest.fixture
def views():
    bars = alt.Chart(pl.DataFrame({"x": [1, 2]})).mark_bar().encode(x="x:Q")
    return {"bars": figure(bars, "Bars", "", "Two bars."), "more": bars}


def test_pictures_carry_their_words_and_tables_their_columns(views, tmp_path):
    table = pl.DataFrame({"step": [1, 2], "loss": [0.1, None]})
    paths = save(views, {"bars": table}, tmp_path / "new" / "deep")
    assert [path.name for path in paths] == ["bars.svg", "more.svg", "bars.png", "more.png", "bars.csv"]
    assert 'aria-label="Two bars."' in paths[0].read_text(encoding="utf-8")
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert pl.read_csv(paths[4]).equals(table)


def test_an_unknown_kind_is_refused(views, tmp_path):
    with pytest.raises(UserError, match="not saved as 'pgn'; did you mean 'png'"):
        save(views, {}, tmp_path, ["pgn"])


def test_a_view_that_cannot_be_drawn_leaves_no_file(views, tmp_path, monkeypatch):
    def fails(chart):
        raise UserError("no picture")

    monkeypatch.setitem(save.__globals__, "to_png", fails)
    with pytest.raises(UserError, match="no picture"):
        save(views, {}, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(views, tmp_path, monkeypatch):
    path = tmp_path / "bars.csv"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .*No space left on device; name another folder"):
        save(views, {"bars": pl.DataFrame({"x": [1]})}, tmp_path, ["csv"])
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["bars.csv"]

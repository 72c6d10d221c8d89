"""Runs side by side: each panel has its own run, all share scale and cursor, and what is shown is what is there."""

import polars as pl
import pytest

from lmdynamics.charts import to_svg
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.small_multiples import small_multiples, step_text
from lmdynamics.errors import UserError
from tests.charts.specs import mark_layers, rows_of

STEPS = [0, 1, 8, 64, 512]


def curves(runs=("a", "b", "c"), measures=("loss", "accuracy"), bounds=True) -> pl.DataFrame:
    rows = [
        {"run": run, "measure": measure, "step": step, "value": (1 + i) * (5.0 - i * j) / (1 + 0.1 * j)}
        for i, run in enumerate(runs)
        for measure in measures
        for j, step in enumerate(STEPS)
    ]
    frame = pl.DataFrame(rows)
    return frame.with_columns(low=pl.col("value") - 0.2, high=pl.col("value") + 0.3) if bounds else frame


def panels(spec: dict) -> list[list[dict]]:
    return [row["concat"] for row in spec["vconcat"]]


def test_a_panel_for_each_run_and_measure():
    spec = small_multiples(curves()).to_dict()
    assert [len(row) for row in panels(spec)] == [3, 3]
    titles = [panel["title"]["text"] for panel in panels(spec)[0]]
    assert titles == [["a"], ["b"], ["c"]]


def test_all_panels_of_a_measure_share_their_scale():
    spec = small_multiples(curves()).to_dict()
    for row in panels(spec):
        bands = [layer["encoding"] for panel in row for layer in panel["layer"] if "y2" in layer["encoding"]]
        domains = {str(band["y"]["scale"]["domain"]) for band in bands}
        assert len(bands) == 3
        assert len(domains) == 1


def test_the_cursor_goes_through_every_panel_and_each_can_be_clicked():
    spec = small_multiples(curves(), Cursor(STEPS)).to_dict()
    for panel in (panel for row in panels(spec) for panel in row):
        (over,) = mark_layers(panel, "rect")
        assert [row["i"] for row in rows_of(spec, over)] == list(range(len(STEPS)))
        assert str(panel).count("datum.step == cursor_step") == 2
    assert not mark_layers(small_multiples(curves(), step=8).to_dict(), "rect")


def test_one_run_has_no_grey_lines_and_no_title():
    spec = small_multiples(curves(runs=("a",))).to_dict()
    assert "title" not in panels(spec)[0][0]
    assert "detail" not in str(spec["vconcat"])
    assert "grey" not in str(spec["title"])


def test_chosen_runs_keep_the_others_behind():
    spec = small_multiples(curves(), runs=["b"]).to_dict()
    assert [len(row) for row in panels(spec)] == [1, 1]
    inside = {row.get("condition") for rows in spec["datasets"].values() for row in rows}
    assert inside == {"a", "b", "c"}


@pytest.mark.parametrize("bounds", [True, False])
def test_it_says_whether_there_are_intervals(bounds):
    subtitle = str(small_multiples(curves(bounds=bounds)).to_dict()["title"]["subtitle"])
    assert ("band: 95 %" in subtitle) is bounds
    assert ("no intervals" in subtitle) is not bounds


def test_the_title_names_the_ends():
    title = small_multiples(curves(measures=("loss",))).to_dict()["title"]["text"]
    assert title == ["Loss at the end of training: -6.43 (c) to 3.57 (a)"]
    assert "<svg" in to_svg(small_multiples(curves()))


@pytest.mark.parametrize(("runs", "columns"), [("abcdef", 6), ("abcdefg", 4), ("abcdefgh", 4), ("abcdefghijklm", 5)])
def test_many_runs_wrap_into_rows_of_about_one_length(runs, columns):
    spec = small_multiples(curves(runs=tuple(runs))).to_dict()
    assert panels(spec)[0][5]["title"]["text"] == ["f"]
    assert spec["vconcat"][0]["columns"] == columns


def test_what_is_reported_at_a_step():
    assert step_text(curves(runs=("a",), measures=("loss",)), 1) == "Step 1: loss 4.55."
    assert step_text(curves(measures=("loss",)), 1) == "Step 1: loss 4.55 (a) to 8.18 (c)."
    assert step_text(curves(), 3) == "Step 3: nothing was measured."


def test_nothing_to_draw_is_refused():
    with pytest.raises(UserError, match="none of 0 rows|no rows"):
        small_multiples(curves().clear())

"""The explorer of curves over training: its table, its pickers, and what stands beside the charts."""

import ast

import polars as pl
import pytest

from lmdynamics.charts import ColouredTokens
from lmdynamics.errors import UserError
from lmdynamics.explorers.trajectories import TrajectoryExplorer
from tests.charts.test_small_multiples import curves


def coloured(step: int) -> ColouredTokens:
    losses = pl.DataFrame({"row": [0], "position": [1], "loss": [float(step)]})
    return ColouredTokens([["<b>", "two"]], losses, by="loss", title=f"at {step}")


@pytest.fixture
def explorer():
    return TrajectoryExplorer(curves(), percent=["accuracy"], beside=coloured)


def chart(explorer):
    return explorer.views.widget.children[0]


def test_it_starts_at_the_last_checkpoint_with_all_runs_and_measures(explorer):
    assert explorer.state() == {"run": "", "measure": "", "step": 512}
    assert [explorer.said.value.count(f">{run}<") for run in "abc"] == [1, 1, 1]
    assert "357.1% [337.1%, 387.1%]" in explorer.said.value
    assert "3.571 [3.371, 3.871]" in explorer.said.value


def test_the_slider_sends_a_number_and_the_page_follows(explorer):
    spec = chart(explorer).spec
    explorer.checkpoint.slider.value = 8
    assert chart(explorer).spec is spec
    assert chart(explorer)._params == {"curves_step": 8.0}
    assert "4.167" in explorer.said.value
    assert "at 8" in explorer.under.value
    assert "<b>&lt;b&gt;" not in explorer.under.value
    assert "&lt;b&gt;" in explorer.under.value


def test_a_click_in_any_panel_goes_to_the_nearest_checkpoint(explorer):
    names = list(chart(explorer)._vl_selections)
    assert len(names) == 6
    for name, x, step in zip(names, (0.5, 0.8, 5, 30, 1e4, 1.1), (0, 1, 8, 64, 512, 1), strict=True):
        chart(explorer)._vl_selections = {
            **chart(explorer)._vl_selections,
            name: {"value": {"x": [x], "vlPoint": {"or": []}}, "store": []},
        }
        assert explorer.checkpoint.step == step


def test_pickers_choose_panels_and_columns(explorer):
    explorer.run.value = "b"
    assert "<td" in explorer.said.value
    assert explorer.said.value.count("<tr>") == 2
    explorer.measure.value = "loss"
    assert "accuracy" not in explorer.said.value
    assert "grey: the others" in str(chart(explorer).spec["title"])


def test_a_run_without_the_checkpoint_stands_at_its_nearest():
    late = pl.concat([curves(runs=("a",)), curves(runs=("b",)).filter(pl.col("step") >= 8)])
    explorer = TrajectoryExplorer(late, step=1)
    assert ">8<" in explorer.said.value
    assert explorer.checkpoint.steps == [0, 1, 8, 64, 512]


def test_a_state_brings_back_the_same_page(explorer):
    explorer.restore({"run": "c", "measure": "accuracy", "step": 64})
    state = explorer.state()
    assert state == ast.literal_eval(repr(state))
    after = TrajectoryExplorer(curves(), percent=["accuracy"], beside=coloured).restore(state)
    assert chart(after).spec == chart(explorer).spec
    assert (after.said.value, after.under.value) == (explorer.said.value, explorer.under.value)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"run": "d"}, "run is 'd', which is not there"),
        ({"step": 3}, "step is 3"),
        ({"runs": ""}, "did you mean 'run'"),
    ],
)
def test_a_state_that_fits_no_more_changes_nothing(explorer, state, says):
    before = explorer.state()
    with pytest.raises(UserError, match=says):
        explorer.restore({"measure": "loss", **state})
    assert explorer.state() == before


def test_a_page_gets_every_checkpoint_with_what_stands_beside(explorer):
    linked = explorer.linked()
    assert [place.at for place in linked.places] == explorer.checkpoint.steps
    assert "at 64" in linked.places[3].under
    assert linked.places[3].said.startswith("Step 64: loss ")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"step": 3}, "step 3 was not measured"),
        ({"run": "d"}, "no run 'd'"),
        ({"measure": "los"}, "did you mean 'loss'"),
    ],
)
def test_a_start_that_is_not_there_is_refused(options, says):
    with pytest.raises(UserError, match=says):
        TrajectoryExplorer(curves(), **options)


def test_no_rows_are_refused():
    with pytest.raises(UserError, match="no rows"):
        TrajectoryExplorer(curves().clear())

"""The explorer of curves over training: its table, its lists, and what stands below the charts."""

import polars as pl
import pytest

from lmdynamics.charts import ColouredTokens
from lmdynamics.errors import UserError
from lmdynamics.explorers.trajectories import TrajectoryExplorer
from tests.charts.test_small_multiples import STEPS, curves


def coloured(step: int) -> ColouredTokens:
    losses = pl.DataFrame({"row": [0], "position": [1], "loss": [float(step)]})
    return ColouredTokens([["<b>", "two"]], losses, by="loss", title=f"at {step}")


@pytest.fixture
def explorer():
    return TrajectoryExplorer(curves(), percent=["accuracy"], details=coloured)


def place(explorer, step):
    return explorer.moving().places[STEPS.index(step)]


def test_it_starts_at_the_last_checkpoint_with_all_runs_and_measures(explorer):
    assert explorer.state() == {"run": "", "measure": "", "step": 512}
    table = place(explorer, 512).details
    assert [table.count(f">{run}<") for run in "abc"] == [1, 1, 1]
    assert "357.1% [337.1%, 387.1%]" in table
    assert "3.571 [3.371, 3.871]" in table


def test_each_place_has_its_words_its_numbers_and_what_stands_below(explorer):
    place_8 = place(explorer, 8)
    assert place_8.text.startswith("Step 8: loss ")
    assert "4.167" in place_8.details
    assert "at 8" in place_8.details
    assert "&lt;b&gt;" in place_8.details
    assert "<b>&lt;b&gt;" not in place_8.details


def test_lists_choose_panels_and_columns(explorer):
    explorer.widget  # noqa: B018
    explorer.lists["run"].value = "b"
    explorer.lists["measure"].value = "loss"
    table = TrajectoryExplorer(curves(), run="b", measure="loss").moving().places[-1].details
    assert table.count("<tr ") == 2
    assert "accuracy" not in table
    assert explorer.views.content["places"][-1]["under"].startswith(table)
    assert "grey: the others" in str(explorer.views.content["spec"]["title"])


def test_a_run_without_the_checkpoint_stands_at_its_nearest():
    late = pl.concat([curves(runs=("a",)), curves(runs=("b",)).filter(pl.col("step") >= 8)])
    explorer = TrajectoryExplorer(late, step=1)
    assert explorer.steps == STEPS
    assert ">8<" in place(explorer, 1).details


@pytest.mark.parametrize(
    ("frame", "options", "says"),
    [
        (curves(), {"step": 3}, "step 3 was not measured"),
        (curves(), {"run": "d"}, "no run 'd'"),
        (curves(), {"measure": "los"}, "did you mean 'loss'"),
        (curves().clear(), {}, "no rows"),
    ],
)
def test_what_cannot_be_explored_is_reported(frame, options, says):
    with pytest.raises(UserError, match=says):
        TrajectoryExplorer(frame, **options)

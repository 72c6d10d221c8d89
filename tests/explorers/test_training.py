"""The training explorer: what its buttons do, what it sends to the page, what it refuses; no thread outlives it."""

import polars as pl
import pytest

from lmdynamics.charts.live_training import live_rows, live_training
from lmdynamics.errors import UserError
from lmdynamics.explorers import training as module
from lmdynamics.explorers.branching import CHANGES, BranchExplorer
from lmdynamics.explorers.training import (
    TrainingExplorer,
    Watched,
    describe,
    enabled_buttons,
    steps_per_second,
    train_live,
)
from lmdynamics.hub.suites import open_run
from lmdynamics.measurements.losses import HeldOutLoss
from lmdynamics.measurements.trace import trace
from lmdynamics.runs.background import ACTIVE, branch_of, training_of
from tests.conftest import TINY
from tests.runs.trainings import LONG, ended, wait_for

HELD_OUT = {"held-out loss": Watched(lambda run: HeldOutLoss(run.held_out()), "loss")}


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch):
    """Whatever a test does, no process and no thread of its outlives it."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.1)
    with ended(60):
        yield


def sent_rows(explorer) -> dict[str, list]:
    """The rows that went to the page last."""
    return {update["name"]: update["value"] for update in explorer.chart._py_to_js_updates}


def pressable(explorer) -> list[str]:
    return [button.description for button in explorer.buttons if not button.disabled]


def log(steps: int = 1000, pace: float = 50.0) -> pl.DataFrame:
    step = pl.int_range(steps, eager=True)
    return pl.DataFrame({"step": step, "loss": 3.0, "lr": 1e-3, "masking_rate": 0.15, "seconds": step / pace})


# what goes to the page ------------------------------------------------------------------------------------------------


def test_rows_are_few_and_the_newest_step_is_among_them():
    rows = live_rows(log(100_000))
    assert len(rows["raw"]) < 500
    assert rows["raw"][-1]["step"] == 99_999
    assert rows["raw"][0] == {"step": 0, "x": 0.5, "loss": 3.0, "lr": 1e-3, "masking_rate": 0.15}
    assert rows["smooth"][-1]["loss"] == pytest.approx(3.0)
    assert rows["measured"] == []


def test_losses_that_are_no_numbers_are_left_out():
    broken = log(3).with_columns(loss=pl.Series([1.0, float("nan"), float("inf")]))
    assert [row["step"] for row in live_rows(broken)["raw"]] == [0]


def test_the_chart_names_its_data_and_a_causal_model_has_no_masking_rate():
    spec = live_training(100, live_rows(log(0)), ["UAS"]).to_dict()
    assert [panel["data"]["name"] for panel in spec["vconcat"][1:]] == ["raw", "raw", "measured"]
    assert {parameter["name"] for parameter in spec["params"]} >= {"status", "revision"}
    assert len(live_training(100, live_rows(log(0)), masking=False).to_dict()["vconcat"]) == 2


def test_pace_is_that_of_the_last_seconds():
    slow = log(100, 1.0)
    fast = log(1000).with_columns(pl.col("step") + 100, pl.col("seconds") + 100)
    assert steps_per_second(pl.concat([slow, fast])) == pytest.approx(50)
    assert steps_per_second(log(1)) is None
    assert steps_per_second(log(2, 0.01)) == pytest.approx(0.01)  # one step takes longer than the window


def test_the_line_says_step_loss_pace_and_time_left():
    training = training_of("grammar-mlm")
    assert describe("ready", training, log(0)) == "not begun"
    line = "training at step 1,000 of 4,000, loss 3.000, 50 steps/s, 1 min 00 s left"
    assert describe("training", training, log()) == line
    assert describe("paused", training, log()) == "paused at step 1,000 of 4,000, loss 3.000"


@pytest.mark.parametrize("state", ["ready", "starting", "training", "pausing", "paused", "stopping", "stopped", "done"])
def test_never_start_and_resume_together(state):
    start, pause, resume, _ = enabled_buttons(state)
    assert start + pause + resume <= 1


# a training -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_start_pause_resume_stop():
    explorer = train_live("grammar-mlm", overrides=LONG, name="live")
    assert pressable(explorer) == ["start"]
    assert "not begun" in explorer.status.value
    specification = explorer.chart.spec
    explorer.start.click()
    wait_for(lambda: len(sent_rows(explorer)["raw"]) > 10)
    first = sent_rows(explorer)["raw"][-1]["step"]
    wait_for(lambda: sent_rows(explorer)["raw"][-1]["step"] > first + 50)
    assert pressable(explorer) == ["pause", "stop"]
    assert "steps/s" in explorer.status.value
    explorer.pause.click()
    wait_for(lambda: pressable(explorer) == ["resume", "stop"])
    at = explorer.training.saved
    assert f"paused at step {at:,} of 800" in explorer.status.value
    wait_for(lambda: not explorer._threads)
    explorer.resume.click()
    wait_for(lambda: sent_rows(explorer)["raw"][-1]["step"] > at)
    explorer.stop.click()
    wait_for(lambda: pressable(explorer) == ["resume"])
    assert explorer.chart.spec is specification
    assert explorer.message.value == ""


@pytest.mark.slow
def test_two_explorers_show_the_same_training_and_either_steers_it():
    one, other = (train_live("grammar-mlm", overrides=LONG, name="live") for _ in range(2))
    assert one.training is other.training
    one.start.click()
    wait_for(lambda: len(sent_rows(one)["raw"]) > 5 and len(sent_rows(other)["raw"]) > 5)
    one.close()
    other.pause.click()
    wait_for(lambda: pressable(other) == ["resume", "stop"])
    third = train_live("grammar-mlm", overrides=LONG, name="live")
    assert pressable(third) == ["resume", "stop"]


@pytest.mark.slow
def test_checkpoints_are_measured_as_they_land():
    explorer = train_live("grammar-mlm", overrides=LONG, name="live", measurements=HELD_OUT)
    explorer.start.click()
    wait_for(lambda: sent_rows(explorer)["measured"])
    assert explorer.training.wait(120) == "done"
    steps = open_run("live").steps
    wait_for(lambda: [row["step"] for row in sent_rows(explorer)["measured"]] == steps)
    values = [row["value"] for row in sent_rows(explorer)["measured"]]
    assert values[-1] < values[0]
    wait_for(lambda: not explorer._threads)


def test_a_branch_shows_what_its_parent_measured_before_it_left(tiny_run):
    branch = tiny_run.branch(8, lr=0.01, progress=False)
    losses = [trace(run, HeldOutLoss(run.held_out()), progress=False) for run in (tiny_run, branch)]
    before, after = (dict(frame.select("step", "loss").iter_rows()) for frame in losses)
    explorer = TrainingExplorer(branch_of(tiny_run, 8, ["lr=0.01"]), HELD_OUT)
    wait_for(lambda: [row["step"] for row in sent_rows(explorer).get("measured", [])] == [0, 1, 2, 4, 8, 12])
    assert {row["step"]: row["value"] for row in sent_rows(explorer)["measured"]} == pytest.approx(before | after)
    wait_for(lambda: not explorer._threads)


def test_what_cannot_be_measured_is_reported_once_and_training_continues(tiny_run):
    refusing = {"BLiMP": Watched(lambda run: run.pairs("nowhere.jsonl"), "correct")}
    explorer = TrainingExplorer(training_of("grammar-mlm", overrides=TINY, name="tiny"), refusing)
    wait_for(lambda: "BLiMP: " in explorer.message.value)
    wait_for(lambda: not explorer._threads)
    assert "complete at step 12 of 12" in explorer.status.value


def test_a_page_that_draws_the_chart_again_gets_its_rows(tiny_run):
    explorer = TrainingExplorer(training_of("grammar-mlm", overrides=TINY, name="tiny"))
    explorer.chart._py_to_js_updates = []
    explorer.chart._params = {"status": " ", "revision": 0}  # what the page reports
    assert len(sent_rows(explorer)["raw"]) == 12
    assert explorer.chart._params["status"] == explorer._line


@pytest.mark.slow
def test_branch_from_here():
    explorer = train_live("grammar-mlm", overrides=LONG, name="live")
    assert explorer.branch.disabled
    explorer.start.click()
    wait_for(lambda: len(sent_rows(explorer)["raw"]) > 10)
    parent = explorer.training
    explorer.changes.value = "lr=0.01 masking=0.4"
    explorer.branch.click()
    wait_for(lambda: explorer.training is not parent)
    branch = explorer.training
    at = branch.job.origin[1]
    assert branch.folder.name.startswith(f"live@{at}")
    wait_for(lambda: len(branch.log()) > at + 1)
    assert set(branch.log().filter(pl.col("step") >= at)["masking_rate"]) == {0.4}
    assert parent.wait(60) == "stopped"
    assert parent.saved == at
    assert branch.folder.name in str(explorer.chart.spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("lrr=1", "no setting &#x27;lrr&#x27;"),
        ("<img src=x>", "&lt;img"),
        ("hidden_size=32", "cannot change"),
        ("lr", "lr"),
    ],
)
def test_bad_changes_are_reported_as_text_and_training_continues(tiny_run, changes, message):
    explorer = TrainingExplorer(training_of("grammar-mlm", overrides={**TINY}, name="tiny"))
    explorer.changes.value = changes
    explorer.branch.click()
    assert message in explorer.message.value
    assert "<img" not in explorer.message.value
    assert explorer.training.folder.name == "tiny"


@pytest.mark.slow
@pytest.mark.parametrize("compare", [False, True])
def test_the_branch_button_trains_in_a_process_and_then_compares(tiny_run, compare):
    branches = []
    explorer = BranchExplorer([tiny_run], compare=compare, on_branch=branches.append)
    explorer.step.value = 8
    explorer.change.value, explorer.new_value.value = CHANGES[3], "0.01"
    explorer.button.click()
    assert explorer.live.training.state in ACTIVE  # and the button has returned
    wait_for(lambda: branches, 120)
    assert branches[0].parent["changes"] == {"training.lr": 0.01}
    assert branches[0].steps == [8, 12]
    assert branches[0].name in explorer.status.value
    assert len(explorer.training.children) == 1 + compare
    explorer.button.click()  # it is there already
    wait_for(lambda: len(branches) == 2)
    wait_for(lambda: not explorer._followed)


@pytest.mark.slow
def test_a_branch_that_changes_nothing_is_laid_beside_its_parent(tiny_run):
    explorer = BranchExplorer([tiny_run])
    explorer.change.value = CHANGES[0]
    explorer.button.click()
    wait_for(lambda: explorer.status.value == "<code>tiny@2</code>", 120)


def test_what_the_branch_button_cannot_do_is_reported(tiny_run):
    explorer = BranchExplorer([tiny_run], compare=False)
    explorer.change.value, explorer.new_value.value = CHANGES[2], "<b>"
    explorer.begin()
    assert "&lt;b&gt;" in explorer.status.value
    assert explorer.live is None


def test_a_run_of_another_recipe_is_refused(tiny_run):
    with pytest.raises(UserError, match="was trained with"):
        train_live("grammar-mlm", overrides={**TINY, "lr": 0.5}, name="tiny")

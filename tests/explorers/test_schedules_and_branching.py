"""The schedule chooser and 'branch from here': what a control changes, what it refuses, what it costs."""

import html
import sys

import pytest

from lmdynamics.errors import UserError
from lmdynamics.explorers.branching import CHANGES, BranchExplorer, branch_points
from lmdynamics.explorers.schedules import ScheduleChooser, rates_over_training
from lmdynamics.runs.trained import train
from tests.conftest import TINY

USUAL = {"recipe": "grammar-mlm", "profile": "default", "seed": 0}
OTHERS = {"constant 15 %": "constant-0.15", "cosine": "cosine-0.3-0.15"}


def test_rates_are_those_of_the_schedules():
    rates = rates_over_training({"down": "linear-0.3-0.1"}, 100)
    assert rates.row(0) == ("down", 0, 0.3)
    assert rates.row(-1) == ("down", 100, pytest.approx(0.1))
    assert rates.filter(rates["step"] == 50)["rate"].item() == pytest.approx(0.2)


def test_the_chooser_follows_its_sliders_and_says_the_command():
    chooser = ScheduleChooser("linear-0.3-0.15", OTHERS)
    assert chooser.value == "linear-0.3-0.15"
    chooser.last.value = 0.05
    assert chooser.value == "linear-0.3-0.05"
    assert "--set masking=linear-0.3-0.05" in chooser.message.value
    chooser.shape.value = "constant"
    assert chooser.value == "constant-0.3"
    assert chooser.last.disabled
    assert "yours: constant-0.3" in str(chooser.chart.spec)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 4000), ({"steps": 2000}, 2000), ({"profile": "smoke", "seed": 3}, 64), ({"recipe": "english-mlm"}, 4000)],
)
def test_the_command_trains_what_is_drawn(monkeypatch, call, options, steps):
    """The same recipe, profile, seed and steps as the runs that the schedule is compared with."""
    chooser = ScheduleChooser("linear-0.3-0.15", OTHERS, **options)
    recipes = []
    monkeypatch.setattr(
        "lmdynamics.runs.trained.build", lambda recipe, folder, **_: recipes.append(recipe) or sys.exit()
    )
    call(*html.unescape(chooser.message.value.removeprefix("<code>").removesuffix("</code>")).split()[1:])
    assert (chooser.steps, recipes[0].training.steps) == (steps, steps)
    assert recipes[0].training.masking == "linear-0.3-0.15"
    settings = {"recipe": recipes[0].name, "profile": recipes[0].profile, "seed": recipes[0].seed}
    assert settings == {name: options.get(name, usual) for name, usual in USUAL.items()}


def test_what_is_no_schedule_is_reported_and_the_last_one_kept():
    chooser = ScheduleChooser("linear-0.3-0.15", OTHERS)
    chooser.last.value = 0.3
    assert chooser.value == "linear-0.3-0.15"
    assert "starts and ends at 0.3" in chooser.message.value


def test_a_still_chooser_is_a_figure(tmp_path):
    ScheduleChooser("step-0.3-0.15", OTHERS).show(str(tmp_path), interactive=False)
    assert (tmp_path / "schedules.svg").exists()


def test_branch_from_here(tiny_run):
    explorer = BranchExplorer([tiny_run], compare=False)
    assert [value for _, value in explorer.step.options] == branch_points(tiny_run) == [0, 1, 2, 4, 8]
    explorer.step.value = 8
    explorer.change.value, explorer.new_value.value = CHANGES[3], "0.01"
    assert explorer.changes == {"lr": 0.01}
    assert "4 steps" in explorer.cost.value


@pytest.mark.parametrize(
    ("change", "text", "message"),
    [(3, "fast", "is no number"), (2, "linear-0.3", "write linear-FIRST-LAST"), (1, "nan", "every λ must be a number")],
)
def test_what_cannot_be_branched_is_reported_and_nothing_is_trained(tiny_run, change, text, message):
    explorer = BranchExplorer([tiny_run], compare=False)
    explorer.change.value, explorer.new_value.value = CHANGES[change], text
    assert message in explorer.cost.value
    assert explorer.button.disabled
    explorer.begin()
    assert explorer.live is None
    assert message in explorer.status.value


def test_text_from_a_reader_is_escaped(tiny_run):
    explorer = BranchExplorer([tiny_run], compare=False)
    explorer.change.value, explorer.new_value.value = CHANGES[3], "<img src=x>"
    assert "<img" not in explorer.cost.value
    assert "&lt;img" in explorer.cost.value


def test_runs_without_optimizer_state_cannot_be_branched():
    bare = train("grammar-mlm", overrides={**TINY, "optimizer_state": "none"}, name="bare", progress=False)
    with pytest.raises(UserError, match="none of these runs has saved optimizer state"):
        BranchExplorer([bare])

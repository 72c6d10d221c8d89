"""Branches: they repeat the parent bit for bit, or differ by the change alone; mistakes are refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmdynamics import files
from lmdynamics.hub.suites import open_run
from lmdynamics.runs.family import branch_cost, family, history
from lmdynamics.runs.run import Run
from lmdynamics.runs.trained import branch, train
from lmdynamics.training import layout
from lmdynamics.training.masking import parse_schedule
from tests.conftest import TINY, refused, refuses

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
_parents: dict[str, Path] = {}


@pytest.fixture
def parent(home, tmp_path_factory, monkeypatch):
    """`parent("mlm")`: a finished run of twelve steps with dropout; trained once, copied for each test."""

    def make(objective: str = "mlm", **changes) -> Run:
        key = json.dumps([objective, changes])
        if key not in _parents:
            with monkeypatch.context() as patched:
                patched.setenv("LMDYNAMICS_HOME", str(tmp_path_factory.mktemp("parents")))
                overrides = {**TINY, **DROPOUT, "objective": objective, **changes}
                _parents[key] = train("grammar-mlm", overrides=overrides, name="tiny", progress=False).folder
        shutil.copytree(_parents[key], home / "runs" / "tiny")
        return open_run("tiny")

    return make


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run[step].folder / layout.WEIGHTS)


def state(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run[step].folder / layout.TRAINING_STATE)


def same(run: Run, other: Run, step: int = 12) -> bool:
    """Weights and optimizer bit for bit, and logs but for the clock."""
    pairs = [(read(run, step), read(other, step)) for read in (weights, state)]
    logs = [r.log.drop("seconds") for r in (run, other)]
    return logs[0].equals(logs[1]) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


def digests(run: Run) -> dict[int, str]:
    return {step: files.sha256(run[step].folder / layout.WEIGHTS) for step in run.steps}


# exactness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_without_changes_it_is_the_parent_again_bit_for_bit(parent, objective):
    run = parent(objective)
    for step in (0, 4, 8):
        branch = run.branch(step, progress=False)
        assert branch.steps == [s for s in run.steps if s >= step]
        assert same(run, branch)
        assert digests(branch) == {s: digest for s, digest in digests(run).items() if s >= step}


def test_with_a_change_the_log_is_the_parents_and_then_its_own(parent):
    run = parent()
    branch = run.branch(4, masking="linear-0.3-0.6", progress=False)
    before, after = ([r.log.drop("seconds")[part] for r in (run, branch)] for part in (slice(0, 4), slice(4, 12)))
    assert before[0].equals(before[1])
    assert all(a != b for a, b in zip(*(log["loss"] for log in after), strict=True))
    schedule = parse_schedule("linear-0.3-0.6")  # over the whole of training, not over what the branch trains
    assert branch.log["masking_rate"].to_list() == [0.15] * 4 + [schedule(step / 12) for step in range(4, 12)]
    assert branch.log["lr"].equals(run.log["lr"])
    assert digests(branch)[4] == digests(run)[4]
    assert digests(branch)[12] != digests(run)[12]


def test_a_learning_rate_changes_nothing_before_its_first_update(parent):
    run = parent()
    branch = run.branch(4, lr=0.01, progress=False)
    assert branch.log["loss"][4] == run.log["loss"][4]  # the same batch, masks, dropout and weights
    assert branch.log["loss"][5] != run.log["loss"][5]
    assert branch.log["lr"][4] != run.log["lr"][4]


def test_stages_switch_the_penalty_on_and_off(parent):
    run = parent()
    on = run.branch(4, stages=1.0, progress=False)
    assert on.log["penalty"].is_null().to_list() == [True] * 4 + [False] * 8
    off = on.branch(8, stages=[], progress=False)
    assert off.log["penalty"].is_null().to_list() == [True] * 4 + [False] * 4 + [True] * 4


def test_longer_training_continues_beyond_the_parents_end(parent):
    branch = parent().branch(8, steps=20, progress=False)
    assert branch.steps == [8, 16, 20]
    assert len(branch.log) == 20


def test_a_branch_of_a_branch(parent):
    run = parent()
    first = run.branch(2, seed=3, progress=False)
    unchanged = first.branch(8, progress=False)
    assert same(first, unchanged)
    second = first.branch(8, lr=0.01, progress=False)
    assert second.name == "tiny@2-seed=3@8-lr=0.01"
    assert second.parent["run"] == "tiny@2-seed=3"
    assert second.log[:8].equals(first.log[:8])
    assert [(generation, r.name) for generation, r in family([second, unchanged, first, run])] == [
        (0, "tiny"),
        (1, "tiny@2-seed=3"),
        (2, "tiny@2-seed=3@8"),
        (2, "tiny@2-seed=3@8-lr=0.01"),
    ]


def test_the_history_of_a_branch_is_its_parents_up_to_where_it_left(parent):
    run = parent()
    grandchild = run.branch(4, lr=0.01, progress=False).branch(8, seed=3, progress=False)
    run_by_step = {step: owner.name for step, owner in history(grandchild).items()}
    first, second, third = "tiny", "tiny@4-lr=0.01", "tiny@4-lr=0.01@8-seed=3"
    assert run_by_step == {0: first, 1: first, 2: first, 4: second, 8: third, 12: third}
    shutil.rmtree(run.folder)
    assert list(history(grandchild)) == [4, 8, 12]


def test_interrupted_and_resumed_is_the_same_bit_for_bit(parent, monkeypatch):
    from accelerate import Accelerator

    run = parent()
    uninterrupted = run.branch(4, masking=0.4, name="whole", progress=False)
    for stop_at in (0, 3):  # at once, and between two checkpoints
        triggers, name = iter([*[False] * stop_at, True]), f"parts{stop_at}"
        with monkeypatch.context() as patched:
            patched.setattr(Accelerator, "check_trigger", lambda self, triggers=triggers: next(triggers))
            with pytest.raises(KeyboardInterrupt, match=f"stopped at step {4 + stop_at} of 12"):
                run.branch(4, masking=0.4, name=name, progress=False)
        assert same(uninterrupted, run.branch(4, masking=0.4, name=name, progress=False))


def test_killed_before_it_began_it_begins_where_it_should(parent, monkeypatch):
    """A kill while the start is copied leaves no folder that a later branch would take for its own."""
    from lmdynamics.runs import trained as module

    run = parent()

    def killed(*_, **__):
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "copytree", killed)
        with pytest.raises(RuntimeError):
            run.branch(4, name="mine", progress=False)
    assert not (run.folder.parent / "mine").exists()
    branch = run.branch(4, name="mine", progress=False)
    assert same(run, branch)
    for step in branch.steps[1:]:  # as if it had been killed at once, with its start in place
        shutil.rmtree(branch[step].folder)
    assert run.branch(8, name="mine", progress=False).steps == [8, 12]


def test_a_refused_branch_leaves_nothing_and_the_corrected_one_trains(parent):
    run = parent()
    refuses("nowhere", branch, run, 4, {"stages": 1.0, "trees": "/nowhere.conllu"}, name="mine", progress=False)
    assert [folder.name for folder in run.folder.parent.iterdir()] == ["tiny"]
    assert branch(run, 4, {"lr": 0.01}, name="mine", progress=False).steps == [4, 8, 12]


# what it is ---------------------------------------------------------------------------------------------------------


def test_its_name_and_what_it_says_of_its_parent(parent):
    run = parent()
    branch = run.branch(4, masking=0.3, stages=[[6, 1.0], [10, 0.0]], progress=False)
    assert branch.name == "tiny@4-masking=constant-0.3-stages=6_1.0_10_0.0"
    assert branch.parent == {
        "run": "tiny",
        "step": 4,
        "weights": run[4].content_hash,
        "device_kind": "cpu",
        "changes": {"training.masking": "constant-0.3", "regularizer.stages": [[6, 1.0], [10, 0.0]]},
    }
    assert run.parent is None
    assert branch.recipe.schedule.rates == (0.3,)
    assert branch.held_out().ids.tolist() == run.held_out().ids.tolist()


def test_a_function_as_schedule_gets_a_name_that_fits(call, parent):
    run = parent()
    branch = run.branch(8, masking=lambda x: 0.3 + x / 7, steps=40, progress=False)
    assert branch.name.startswith("tiny@8-steps=40-masking=points-0.3-0.30357142857142855-")
    assert len(branch.name) < 200
    assert branch.log["masking_rate"][8:].to_list() == [0.3 + (step / 40) / 7 for step in range(8, 40)]
    assert "…" in call("runs", "list")[1]
    other_branch = run.branch(8, masking=lambda x: 0.3 + x**2 / 7, steps=40, progress=False)
    assert other_branch.name != branch.name


def test_a_finished_branch_is_opened_not_trained_again(parent):
    run = parent()
    branch = run.branch(4, lr=0.01, progress=False)
    before = {file: file.stat().st_mtime_ns for file in branch.folder.rglob("*.*")}
    assert run.branch(4, lr=0.01, progress=False).folder == branch.folder
    assert {file: file.stat().st_mtime_ns for file in branch.folder.rglob("*.*")} == before


def test_copied_elsewhere_it_opens_and_verifies_without_its_parent(parent, tmp_path):
    run = parent()
    branch = run.branch(4, lr=0.01, progress=False)
    shutil.copytree(branch.folder, tmp_path / "copy")
    shutil.rmtree(run.folder)
    shutil.rmtree(branch.folder)
    copy = open_run(tmp_path / "copy")
    assert (copy.steps, copy.parent["run"]) == ([4, 8, 12], "tiny")
    assert sum(layout.check_hashes(checkpoint.folder) for checkpoint in copy) == 9
    assert copy[12].model()(torch.tensor([[2, 5, 3]])).logits.isfinite().all()
    assert [(generation, r.name) for generation, r in family([copy])] == [(0, "copy")]


def test_what_it_will_cost(parent):
    run = parent()
    cost = branch_cost(run, 4, {"lr": 0.01})
    branch = run.branch(4, lr=0.01, progress=False)
    assert cost.steps == 8
    assert cost.seconds == pytest.approx(8 * run.log["seconds"].diff().median())
    on_disk = sum(file.stat().st_size for file in (branch.folder / "checkpoints").rglob("*.*"))
    assert cost.bytes == pytest.approx(on_disk, rel=0.02)
    assert str(cost).startswith("8 steps, about 1 s at the parent's pace, ")
    (run.folder / "log.parquet").unlink()
    assert "an unknown time" in str(branch_cost(run, 4))


# refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        (5, {}, "tiny has no checkpoint at step 5; the nearest are 2, 4, 8"),
        (12, {}, "ends at step 12, so at step 12 nothing is left to do; branch earlier, or set a larger steps"),
        (8, {"steps": 8}, "training ends at step 8, so at step 8 nothing is left"),
        (4, {"model.hidden_size": 32}, "cannot change model.hidden_size: the weights at step 4 were trained with 16"),
        (4, {"layer_norm_eps": 1e-3}, "cannot change model.layer_norm_eps"),
        (4, {"corpus.size": "large"}, "cannot change corpus.size"),
        (4, {"objective": "clm"}, "cannot change objective: .* were trained with 'mlm'"),
        (4, {"lrr": 1}, "no setting 'lrr' to override"),
        (4, {"masking": 15}, "15 per cent is 0.15"),
    ],
)
def test_refused_before_anything_is_written(parent, step, changes, message):
    run = parent()
    refuses(message, branch, run, step, changes, progress=False)
    assert [folder.name for folder in run.folder.parent.iterdir()] == ["tiny"]


def test_without_optimizer_state_the_nearest_steps_with_one_are_named(parent):
    run = parent()
    (run[8].folder / layout.TRAINING_STATE).unlink()
    refuses("no optimizer state at step 8, .* nearest steps with it are 2, 4, 12", run.branch, 8)
    for file in run.folder.rglob(layout.TRAINING_STATE):
        file.unlink()
    refuses("no optimizer state at step 4, .* set optimizer_state=all", run.branch, 4)


def test_a_run_that_was_not_opened_says_how_it_is_branched(parent):
    refuses(r"open .* with lmd\.open_run\(.* to branch it", lambda: Run(parent().folder).branch(4))


def test_a_folder_trained_elsewhere_cannot_be_branched(parent, tmp_path):
    shutil.copytree(parent()[12].folder, tmp_path / "foreign" / "checkpoint-12")
    refuses("foreign was trained elsewhere.* cannot be branched", lambda: open_run(tmp_path / "foreign").branch(12))


def test_a_name_that_is_taken(parent):
    run = parent()
    refuses("tiny is not a branch; give this branch another --name", run.branch, 4, name="tiny")
    run.branch(4, name="mine", progress=False)
    refuses("mine is a branch of tiny at step 4; give this branch another --name", run.branch, 8, name="mine")
    refuses("mine was trained with training.lr=0.002, now 0.01 is requested", run.branch, 4, name="mine", lr=0.01)
    shutil.copytree(run.folder, run.folder.with_name("other"))
    refuses("mine is a branch of tiny at step 4", lambda: open_run("other").branch(4, name="mine"))


# on the command line ------------------------------------------------------------------------------------------------


def test_branch_and_list(call, parent):
    parent()
    status, out, _ = call("branch", "tiny", "--at", 4, "--set", "lr=0.01", "--set", "masking=linear-0.3-0.2")
    assert status == 0
    assert "branching tiny at step 4: 8 steps, about 1 s at the parent's pace" in out
    assert "3 checkpoints up to step 12" in out
    assert call("branch", "tiny", "--at", 8, "--name", "again")[0] == 0
    lines = call("runs", "list")[1].splitlines()
    rows = [next(line for line in lines if f" {name} " in line) for name in ("tiny", "again")]
    assert lines.index(rows[0]) < lines.index(rows[1])
    assert "└ again" in rows[1]
    assert "at step 8: nothing" in rows[1]
    assert any("└ tiny@4-lr=0.01-masking=linear-0.3-0.2" in line and "at step 4" in line for line in lines)
    assert json.loads(call("runs", "show", "again")[1])["parent"]["step"] == 8


def test_mistakes_are_one_line(call, parent):
    parent()
    assert refused(call("branch", "tinny", "--at", 4), "no run 'tinny'", "did you mean 'tiny'")
    assert refused(call("branch", "tiny", "--at", 5), "no checkpoint at step 5", "2, 4, 8")
    status, _, err = call("branch", "tiny", "--at", "four")
    assert (status, "--at" in err, "Traceback" in err) == (2, True, False)

"""Folders of checkpoints trained elsewhere: the same names as on the hub, in order of steps, nothing dropped unsaid."""

import shutil
from pathlib import Path

import pytest

from lmdynamics.errors import UserError
from lmdynamics.hub.suites import open_run, run_names
from tests.conftest import refused


def checkpoints(parent: Path, *names: str) -> Path:
    for name in names:
        (parent / name).mkdir(parents=True)
        (parent / name / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
        (parent / name / "model.safetensors").write_bytes(name.encode())
    return parent


def test_names_of_every_kind_in_order_of_steps(tmp_path, capsys):
    names = ("step_10000", "step_9000", "0200000", "iter_0001000", "global_step500", "checkpoint-best", "best")
    folder = checkpoints(tmp_path / "mine", *names)
    for other in ("logs", "2024", ".step_3"):  # hold no model, and are not called like one
        (folder / other).mkdir()
    run = open_run(folder)
    assert run.steps == [500, 1000, 9000, 10_000, 200_000]
    assert run[1000].folder.name == "iter_0001000"
    said = "lmdynamics: mine: not used: names that tell no step (best, checkpoint-best)\n"
    assert capsys.readouterr().err == said
    open_run(folder)
    assert capsys.readouterr().err == ""


def test_two_folders_of_one_step_are_refused(home, call, capsys):
    folder = checkpoints(home / "runs" / "mine", "step-100", "checkpoint-100", "step-200")
    with pytest.raises(UserError, match="two checkpoints of step 100: checkpoint-100 and step-100; rename or"):
        open_run(folder)
    assert open_run(folder, revisions=r"step-(?P<step>\d+)").steps == [100, 200]
    assert run_names() == []
    capsys.readouterr()
    assert refused(call("runs", "show", "mine"), "two checkpoints of step 100")


def test_trajectories_in_one_folder_are_asked_for(tmp_path, home, capsys):
    folder = checkpoints(home / "runs" / "mine", *(f"big-step-{n}" for n in (1000, 2000)), "small-step-1000")
    with pytest.raises(UserError, match=r"holds several trajectories: #big, #small; name one, as in .*mine#big"):
        open_run(folder)
    for address in (f"{folder}#big", "mine#big"):
        run = open_run(address)
        assert (run.name, run.steps) == ("mine#big", [1000, 2000])
        assert run[2000].folder == folder / "big-step-2000"
    assert capsys.readouterr().err == "lmdynamics: mine#big: not used: #small (small-step-1000)\n"
    checkpoints(folder, "step500")
    assert open_run(folder).steps == [500]
    with pytest.raises(UserError, match="there is no run 'other#big'"):
        open_run("other#big")


def test_phases_of_a_folder(tmp_path, capsys):
    folder = checkpoints(tmp_path / "mine", "step1000", "step2000", "ext1000", "decay100")
    assert open_run(folder).steps == [1000, 2000]
    assert "not used: #ext (ext1000); #decay (decay100)" in capsys.readouterr().err
    run = open_run(f"{folder}#step+ext+decay")
    assert run.steps == [1000, 2000, 3000, 3100]
    assert run[3100].folder.name == "decay100"


def test_what_is_not_understood_is_listed_where_nothing_is(tmp_path):
    checkpoints(tmp_path, "checkpoint-best", "epoch-3")
    with pytest.raises(UserError, match=r"has no checkpoints .*names that tell no step \(checkpoint-best, epoch-3\)"):
        open_run(tmp_path)
    assert open_run(tmp_path, revisions=r"epoch-(?P<step>\d+)").steps == [3]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("mp_rank_00_model_states.pt", r"DeepSpeed shards \(mp_rank_00_.*zero_to_fp32.py . OUT -t global_step500"),
        ("mp_rank_00/model_optim_rng.pt", "Megatron shards"),
        ("__0_0.distcp", "accelerate merge-weights"),
        ("adapter_model.safetensors", r"an adapter without its model .*merge_and_unload"),
        ("tf_model.h5", "TensorFlow weights"),
    ],
)
def test_other_formats_are_named_with_the_way_out(tmp_path, file, words):
    path = tmp_path / "global_step500" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not opened")
    (tmp_path / "zero_to_fp32.py").write_text("raise SystemExit('never run')")
    with pytest.raises(UserError, match=words) as error:
        open_run(tmp_path)
    assert "\n" not in str(error.value)


def test_checkpoints_without_weights_open_and_have_no_model(tmp_path):
    """A trainer may have kept its log only, or have saved no weights at the first step."""
    folder = checkpoints(tmp_path / "mine", "checkpoint-1", "checkpoint-2")
    (folder / "checkpoint-1" / "model.safetensors").unlink()
    run = open_run(folder)
    assert run[2].content_hash
    with pytest.raises(UserError, match="checkpoint-1 has no model.safetensors; save the model with save_pretrained"):
        run[1].content_hash  # noqa: B018


def test_a_trainer_checkpoint_of_deepspeed(tmp_path):
    path = checkpoints(tmp_path, "checkpoint-500") / "checkpoint-500"
    (path / "model.safetensors").unlink()
    (path / "global_step500").mkdir()
    (path / "global_step500" / "mp_rank_00_model_states.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"DeepSpeed shards \(global_step500/mp_rank.* OUT -t global_step500"):
        open_run(tmp_path)


def test_a_tokenizer_beside_the_checkpoints_is_used_and_said(tiny_run, tmp_path, capsys):
    folder = checkpoints(tmp_path / "mine", "checkpoint-1", "checkpoint-2")
    with pytest.raises(UserError, match="has no tokenizer"):
        open_run(folder)[1].tokenizer  # noqa: B018
    shutil.copytree(tiny_run.folder / "tokenizer", folder, dirs_exist_ok=True)
    assert open_run(folder)[1].tokenizer.mask_token == open_run(folder)[2].tokenizer.mask_token == "[MASK]"
    assert capsys.readouterr().err.count(f"use that of {folder}") == 1

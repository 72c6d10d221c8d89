"""How checkpoints are named, and which are found in a folder."""

import shutil
from pathlib import Path

import pytest

from lmdynamics.hub.suites import open_run, run_names
from lmdynamics.runs.revision_rules import Position, folder_rule, rule_for, rules, select_steps
from tests.conftest import refused, refuses

PYTHIA = [0, *(2**i for i in range(10)), *range(1000, 144_000, 1000)]


@pytest.mark.parametrize(
    ("repository", "revision", "name", "position"),
    [
        ("EleutherAI/pythia-14m", "step512", "pythia", Position(512, 512 * 2_097_152)),
        ("EleutherAI/pythia-1.4b-deduped", "step143000", "pythia", Position(143_000, 143_000 * 2_097_152)),
        ("EleutherAI/pythia-70m-seed9", "step1", "polypythias", Position(1, 2_097_152)),
        ("google/multiberts-seed_3-step_1900k", "main", "multiberts", Position(1_900_000, None, "3")),
        ("allenai/OLMo-2-0425-1B", "stage1-step10000-tokens21B", "olmo2", Position(10_000, 21_000_000_000, "stage1")),
        (
            *("allenai/OLMo-2-1124-7B", "stage2-ingredient3-step5000-tokens21B", "olmo2"),
            Position(5000, 21_000_000_000, "stage2-ingredient3"),
        ),
        ("allenai/OLMo-1B-hf", "step20000-tokens84B", "olmo", Position(20_000, 84_000_000_000)),
        ("stanford-crfm/alias-gpt2-small-x21", "checkpoint-400000", "crfm", Position(400_000)),
        ("angie-chen55/bert-base-seed1-ckpt-30000", "main", "sas", Position(30_000, None, "1")),
        ("mirandrom/zsl-checkpoints", "OLMo-14M-step1024", "zsl", Position(1024, None, "OLMo-14M")),
        ("personads/earlyberts-seed4", "step11000", "earlyberts", Position(11_000)),
        ("somebody/model", "global_step20", "somebody", Position(20)),
        ("somebody/model", "ckpt-7", "somebody", Position(7)),
        ("somebody/model", "iter_0001000", "somebody", Position(1000)),
        ("somebody/model", "0200000", "somebody", Position(200_000)),
        ("somebody/model", "10k", "somebody", Position(10_000)),
        ("somebody/model", "step-240k", "somebody", Position(240_000)),
        ("somebody/model", "epoch=3-step=4000", "somebody", Position(4000)),
        ("somebody/model", "step-001000-2BT", "somebody", Position(1000, 2_000_000_000)),
        ("somebody/model", "step1000-tokens4.5B", "somebody", Position(1000, 4_500_000_000)),
        ("somebody/model", "big-step-1000", "somebody", Position(1000, None, "big")),
        ("somebody/model", "my-global_step500", "somebody", Position(500, None, "my")),
        ("somebody/model", "phase2-step1000", "somebody", Position(1000, None, "phase2")),
        ("somebody/model", "step3000-rlhf", "somebody", Position(3000, None, "rlhf")),
        ("somebody/model", "big/step3000-rlhf", "somebody", Position(3000, None, "big-rlhf")),
        ("somebody/model", "lc-4k-to-32k-step-20000", "somebody", Position(20_000, None, "lc-4k-to-32k")),
        ("somebody/model", "ext1000", "somebody", Position(1000, None, "ext")),
    ],
)
def test_real_names(repository, revision, name, position):
    rule = rule_for(repository)
    assert name in (rule.name, repository.split("/")[0])
    assert rule.parse(repository, revision) == position
    assert rule.parse(repository if not rule.by_repository else "google/else", "something") is None


@pytest.mark.parametrize("name", ["main", "checkpoint-best", "v2", "epoch-3", "mystep1000", "step", "10k-words"])
def test_names_without_a_step(name):
    assert rule_for("somebody/model").parse("somebody/model", name) is None
    assert folder_rule().parse("", name) is None


def test_checkpoints_that_are_commits():
    rule = rule_for("pico-lm/pico-decoder-tiny")
    repository_and_branch = ("pico-lm/pico-decoder-tiny", "pico-decoder-tiny-1")
    assert rule.has_commits_on("pico-decoder-tiny-1")
    assert not rule.has_commits_on("main")
    assert rule.parse(*repository_and_branch, "Saving HF Model -- Step 2000") == Position(
        2000, None, "pico-decoder-tiny-1"
    )
    assert rule.parse(*repository_and_branch, "Saving Tokenizer -- Step 0") is None


def test_patterns_of_several_repositories():
    for pattern in ("google/multiberts-seed_0-step_*", "google/multiberts-seed_0-step_*k"):
        assert rule_for(pattern).name == "multiberts"
    rule = rule_for("me/bert-at-*")
    assert rule.parse("me/bert-at-400") == Position(400)
    assert rule.parse("me/bert-at-x") is None


def test_expected_steps():
    expected = {rule.name: rule.expected_steps() for rule in rules()}
    assert expected["pythia"] == expected["polypythias"] == PYTHIA
    assert len(PYTHIA) == 154
    assert len(expected["multiberts"]) == 29
    assert expected["multiberts"][:2] == [0, 20_000]
    assert expected["crfm"] == []


def test_a_persons_own_rules_go_first(home):
    (home / "my_suites.toml").write_text(
        "[mine]\nrepository = 'EleutherAI/pythia-14m'\nrevision = 'at-(?P<step>\\d+)'\n"
    )
    assert rule_for("EleutherAI/pythia-14m").parse("EleutherAI/pythia-14m", "at-12") == Position(12)
    (home / "my_suites.toml").write_text("[mine]\nrepository = 'a/b'\nrevision = 'at-(\\d+)'\n")
    refuses("has no group", rules)
    (home / "my_suites.toml").write_text("[mine]\nrepository = 'a/b'\ncolour = 'red'\n")
    refuses("colour", rules)


def test_ones_own_expression():
    assert rule_for("me/x", r"v(?P<step>\d+)").parse("me/x", "v12") == Position(12)
    refuses("not a regular expression", rule_for, "me/x", r"v(?P<step>\d+")
    refuses("no group", rule_for, "me/x", r"v(\d+)")


def test_choosing_steps():
    assert select_steps(PYTHIA, None) == PYTHIA
    twenty = select_steps(PYTHIA, "log:20")
    assert twenty[0] == 0
    assert twenty[-1] == 143_000
    assert 15 <= len(twenty) <= 20
    assert select_steps(PYTHIA, "log:1") == [143_000]
    assert select_steps(PYTHIA, "log:999") == PYTHIA
    assert select_steps(PYTHIA, [512, 0]) == select_steps(PYTHIA, "512,0") == [0, 512]
    assert select_steps(PYTHIA, "1000:3000") == [1000, 2000, 3000]
    assert select_steps(PYTHIA, "0:9000:4000") == [0, 4000, 8000]
    assert select_steps(PYTHIA, range(1000, 3000, 1000)) == [1000, 2000]
    for wrong, words in (
        ("5:7", "no step is in"),
        ("log:0", "at least"),
        ("x", "selects no steps"),
        ("3", "nearest are"),
    ):
        refuses(words, select_steps, PYTHIA, wrong)


def checkpoints(parent: Path, *names: str) -> Path:
    for name in names:
        (parent / name).mkdir(parents=True)
        (parent / name / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
        (parent / name / "model.safetensors").write_bytes(name.encode())
    return parent


def test_names_of_every_kind_in_order_of_steps(tmp_path, capsys):
    names = ("step_10000", "step_9000", "0200000", "iter_0001000", "global_step500", "checkpoint-best", "best")
    folder = checkpoints(tmp_path / "mine", *names)
    for name in ("logs", "2024", ".step_3"):  # hold no model, and are not called like one
        (folder / name).mkdir()
    run = open_run(folder)
    assert run.steps == [500, 1000, 9000, 10_000, 200_000]
    assert run[1000].folder.name == "iter_0001000"
    message = "lmdynamics: mine: not used: names without a step (best, checkpoint-best)\n"
    assert capsys.readouterr().err == message
    open_run(folder)
    assert capsys.readouterr().err == ""


def test_two_folders_of_one_step_are_refused(home, call, capsys):
    folder = checkpoints(home / "runs" / "mine", "step-100", "checkpoint-100", "step-200")
    refuses("two checkpoints of step 100: checkpoint-100 and step-100; rename or", open_run, folder)
    assert open_run(folder, revisions=r"step-(?P<step>\d+)").steps == [100, 200]
    assert run_names() == []
    capsys.readouterr()
    assert refused(call("runs", "show", "mine"), "two checkpoints of step 100")


def test_trajectories_in_one_folder_are_asked_for(tmp_path, home, capsys):
    folder = checkpoints(home / "runs" / "mine", *(f"big-step-{n}" for n in (1000, 2000)), "small-step-1000")
    refuses(r"holds several trajectories: #big, #small; name one, as in .*mine#big", open_run, folder)
    for address in (f"{folder}#big", "mine#big"):
        run = open_run(address)
        assert (run.name, run.steps) == ("mine#big", [1000, 2000])
        assert run[2000].folder == folder / "big-step-2000"
    assert capsys.readouterr().err == "lmdynamics: mine#big: not used: #small (small-step-1000)\n"
    checkpoints(folder, "step500")
    assert open_run(folder).steps == [500]
    refuses("there is no run 'other#big'", open_run, "other#big")


def test_phases_of_a_folder(tmp_path, capsys):
    folder = checkpoints(tmp_path / "mine", "step1000", "step2000", "ext1000", "decay100")
    assert open_run(folder).steps == [1000, 2000]
    assert "not used: #ext (ext1000); #decay (decay100)" in capsys.readouterr().err
    run = open_run(f"{folder}#step+ext+decay")
    assert run.steps == [1000, 2000, 3000, 3100]
    assert run[3100].folder.name == "decay100"


def test_what_is_not_understood_is_listed_where_nothing_is(tmp_path):
    checkpoints(tmp_path, "checkpoint-best", "epoch-3")
    refuses(r"has no checkpoints .*names without a step \(checkpoint-best, epoch-3\)", open_run, tmp_path)
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
    refuses(words, open_run, tmp_path)


def test_checkpoints_without_weights_open_and_have_no_model(tmp_path):
    """A trainer may have kept its log only, or have saved no weights at the first step."""
    folder = checkpoints(tmp_path / "mine", "checkpoint-1", "checkpoint-2")
    (folder / "checkpoint-1" / "model.safetensors").unlink()
    run = open_run(folder)
    assert run[2].content_hash
    refuses("checkpoint-1 has no model.safetensors; save the model with save_pretrained", lambda: run[1].content_hash)


def test_a_trainer_checkpoint_of_deepspeed(tmp_path):
    path = checkpoints(tmp_path, "checkpoint-500") / "checkpoint-500"
    (path / "model.safetensors").unlink()
    (path / "global_step500").mkdir()
    (path / "global_step500" / "mp_rank_00_model_states.pt").write_bytes(b"")
    refuses(r"DeepSpeed shards \(global_step500/mp_rank.* OUT -t global_step500", open_run, tmp_path)


def test_a_tokenizer_beside_the_checkpoints_is_used_and_reported(tiny_run, tmp_path, capsys):
    folder = checkpoints(tmp_path / "mine", "checkpoint-1", "checkpoint-2")
    refuses("has no tokenizer", lambda: open_run(folder)[1].tokenizer)
    shutil.copytree(tiny_run.folder / "tokenizer", folder, dirs_exist_ok=True)
    assert open_run(folder)[1].tokenizer.mask_token == open_run(folder)[2].tokenizer.mask_token == "[MASK]"
    assert capsys.readouterr().err.count(f"use that of {folder}") == 1

"""How published checkpoints are named, by the real names of real suites."""

import pytest

from lmdynamics.errors import UserError
from lmdynamics.runs.naming import Place, chosen_steps, folder_rule, rule_for, rules

PYTHIA = [0, *(2**i for i in range(10)), *range(1000, 144_000, 1000)]


@pytest.mark.parametrize(
    ("repository", "revision", "name", "place"),
    [
        ("EleutherAI/pythia-14m", "step512", "pythia", Place(512, 512 * 2_097_152)),
        ("EleutherAI/pythia-1.4b-deduped", "step143000", "pythia", Place(143_000, 143_000 * 2_097_152)),
        ("EleutherAI/pythia-70m-seed9", "step1", "polypythias", Place(1, 2_097_152)),
        ("google/multiberts-seed_3-step_1900k", "main", "multiberts", Place(1_900_000, None, "3")),
        ("allenai/OLMo-2-0425-1B", "stage1-step10000-tokens21B", "olmo2", Place(10_000, 21_000_000_000, "stage1")),
        (
            "allenai/OLMo-2-1124-7B",
            "stage2-ingredient3-step5000-tokens21B",
            "olmo2",
            Place(5000, 21_000_000_000, "stage2-ingredient3"),
        ),
        ("allenai/OLMo-1B-hf", "step20000-tokens84B", "olmo", Place(20_000, 84_000_000_000)),
        ("stanford-crfm/alias-gpt2-small-x21", "checkpoint-400000", "crfm", Place(400_000)),
        ("angie-chen55/bert-base-seed1-ckpt-30000", "main", "sas", Place(30_000, None, "1")),
        ("mirandrom/zsl-checkpoints", "OLMo-14M-step1024", "zsl", Place(1024, None, "OLMo-14M")),
        ("personads/earlyberts-seed4", "step11000", "earlyberts", Place(11_000)),
        ("somebody/model", "global_step20", "somebody", Place(20)),
        ("somebody/model", "ckpt-7", "somebody", Place(7)),
        ("somebody/model", "iter_0001000", "somebody", Place(1000)),
        ("somebody/model", "0200000", "somebody", Place(200_000)),
        ("somebody/model", "10k", "somebody", Place(10_000)),
        ("somebody/model", "step-240k", "somebody", Place(240_000)),
        ("somebody/model", "epoch=3-step=4000", "somebody", Place(4000)),
        ("somebody/model", "step-001000-2BT", "somebody", Place(1000, 2_000_000_000)),
        ("somebody/model", "step1000-tokens4.5B", "somebody", Place(1000, 4_500_000_000)),
        ("somebody/model", "big-step-1000", "somebody", Place(1000, None, "big")),
        ("somebody/model", "my-global_step500", "somebody", Place(500, None, "my")),
        ("somebody/model", "phase2-step1000", "somebody", Place(1000, None, "phase2")),
        ("somebody/model", "step3000-rlhf", "somebody", Place(3000, None, "rlhf")),
        ("somebody/model", "big/step3000-rlhf", "somebody", Place(3000, None, "big-rlhf")),
        ("somebody/model", "lc-4k-to-32k-step-20000", "somebody", Place(20_000, None, "lc-4k-to-32k")),
        ("somebody/model", "ext1000", "somebody", Place(1000, None, "ext")),
    ],
)
def test_real_names(repository, revision, name, place):
    rule = rule_for(repository)
    assert name in (rule.name, repository.split("/")[0])
    assert rule.place(repository, revision) == place
    assert rule.place(repository if not rule.by_repository else "google/else", "something") is None


@pytest.mark.parametrize("name", ["main", "checkpoint-best", "v2", "epoch-3", "mystep1000", "step", "10k-words"])
def test_names_that_tell_no_step(name):
    assert rule_for("somebody/model").place("somebody/model", name) is None
    assert folder_rule().place("", name) is None


def test_checkpoints_that_are_commits():
    rule = rule_for("pico-lm/pico-decoder-tiny")
    asked = ("pico-lm/pico-decoder-tiny", "pico-decoder-tiny-1")
    assert rule.has_commits_on("pico-decoder-tiny-1")
    assert not rule.has_commits_on("main")
    assert rule.place(*asked, "Saving HF Model -- Step 2000") == Place(2000, None, "pico-decoder-tiny-1")
    assert rule.place(*asked, "Saving Tokenizer -- Step 0") is None


def test_patterns_of_several_repositories():
    for pattern in ("google/multiberts-seed_0-step_*", "google/multiberts-seed_0-step_*k"):
        assert rule_for(pattern).name == "multiberts"
    own = rule_for("me/bert-at-*")
    assert own.place("me/bert-at-400") == Place(400)
    assert own.place("me/bert-at-x") is None


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
    assert rule_for("EleutherAI/pythia-14m").place("EleutherAI/pythia-14m", "at-12") == Place(12)
    (home / "my_suites.toml").write_text("[mine]\nrepository = 'a/b'\nrevision = 'at-(\\d+)'\n")
    with pytest.raises(UserError, match="has no group"):
        rules()
    (home / "my_suites.toml").write_text("[mine]\nrepository = 'a/b'\ncolour = 'red'\n")
    with pytest.raises(UserError, match="colour"):
        rules()


def test_ones_own_expression():
    assert rule_for("me/x", r"v(?P<step>\d+)").place("me/x", "v12") == Place(12)
    with pytest.raises(UserError, match="not a regular expression"):
        rule_for("me/x", r"v(?P<step>\d+")
    with pytest.raises(UserError, match="no group"):
        rule_for("me/x", r"v(\d+)")


def test_choosing_steps():
    assert chosen_steps(PYTHIA, None) == PYTHIA
    twenty = chosen_steps(PYTHIA, "log:20")
    assert twenty[0] == 0
    assert twenty[-1] == 143_000
    assert 15 <= len(twenty) <= 20
    assert chosen_steps(PYTHIA, "log:1") == [143_000]
    assert chosen_steps(PYTHIA, "log:999") == PYTHIA
    assert chosen_steps(PYTHIA, [512, 0]) == chosen_steps(PYTHIA, "512,0") == [0, 512]
    assert chosen_steps(PYTHIA, "1000:3000") == [1000, 2000, 3000]
    assert chosen_steps(PYTHIA, "0:9000:4000") == [0, 4000, 8000]
    assert chosen_steps(PYTHIA, range(1000, 3000, 1000)) == [1000, 2000]
    for wrong, words in (("5:7", "no step is in"), ("log:0", "at least"), ("x", "says no steps"), ("3", "nearest are")):
        with pytest.raises(UserError, match=words):
            chosen_steps(PYTHIA, wrong)

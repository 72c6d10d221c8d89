"""A run that learned an earlier version of the built-in language: it opens, and is never taken for one of this version.

Version 1 was stored without its number; some of its runs have `words` in their recipes.
"""

import json
import shutil

import pytest
import torch

import lmdynamics as lmd
from lmdynamics.corpora.grammar import VERSION, Grammar
from lmdynamics.experiments.comparison import compare_runs
from lmdynamics.hub.suites import open_run
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy, TokenLosses
from lmdynamics.measurements.syntax import UAS
from lmdynamics.runs.background import branch_of, training_of
from lmdynamics.runs.family import branch_cost
from lmdynamics.runs.sweep import Condition, Plan, sweep
from lmdynamics.runs.trained import build, train
from lmdynamics.training.batches import open_corpus
from lmdynamics.training.recipes import recipe_from_dict
from tests.conftest import TINY, refused, refuses

AS_STORED = ({}, {"words": "invented"}, {"words": "english"})


def make_older(folder, stored=AS_STORED[1]) -> None:
    """Write the recipe of a run as version 1 did."""
    facts = json.loads((folder / "run.json").read_text())
    assert facts["recipe"]["corpus"].pop("version") == VERSION
    facts["recipe"]["corpus"] |= stored
    (folder / "run.json").write_text(json.dumps(facts))


@pytest.fixture(params=AS_STORED, ids=str)
def older(tiny_run, request):
    """A finished run called `tiny`, of version 1."""
    make_older(tiny_run.folder, request.param)
    return open_run("tiny")


@pytest.fixture
def older_once(tiny_run):
    make_older(tiny_run.folder)
    return open_run("tiny")


def message(run) -> str:
    folder = str(run.folder).replace(".", r"\.")
    return (
        f"^{run.name} was trained on version 1 of the built-in language, this is version {VERSION}; "
        f"delete {folder} and train it again$"
    )


def test_a_new_run_has_its_version(tiny_run):
    assert json.loads((tiny_run.folder / "run.json").read_text())["recipe"]["corpus"]["version"] == VERSION == 2


def test_it_is_neither_loaded_nor_resumed_as_if_it_were_the_same(older, home):
    again = {"name": "tiny", "progress": False}
    refuses(message(older), train, "grammar-mlm", overrides=TINY, **again)
    refuses(message(older), train, "grammar-mlm", overrides={**TINY, "lr": 0.5}, **again)
    refuses(message(older), training_of, "grammar-mlm", overrides=TINY, name="tiny")
    shutil.rmtree(older.folder / "checkpoints" / "step-000012")
    log = (older.folder / "log.parquet").read_bytes()
    refuses(message(older), train, "grammar-mlm", overrides=TINY, **again)
    assert open_run("tiny").steps == [0, 1, 2, 4, 8]
    assert (older.folder / "log.parquet").read_bytes() == log
    shutil.rmtree(older.folder)
    assert train("grammar-mlm", overrides=TINY, **again).steps[-1] == 12


def test_the_command_line_says_what_to_do(older_once, call):
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    words = ("tiny was trained on version 1", f"this is version {VERSION}", f"delete {older_once.folder} and train it")
    assert refused(call("train", "grammar-mlm", "--name", "tiny", *settings), *words)
    assert refused(call("branch", "tiny", "--at", "8", "--set", "lr=0.001"), *words)
    status, out, _ = call("runs", "list")
    assert status == 0
    assert "tiny" in out
    assert call("runs", "show", "tiny")[0] == call("runs", "verify", "tiny")[0] == 0


def test_its_log_and_its_own_held_out_rows_remain_readable(older):
    assert len(older.log) == 12
    assert older.recipe.corpus["version"] == 1
    assert len(lmd.trace(older, HeldOutLoss(older.held_out()), steps=[0, 12], progress=False)) == 2
    few = older.held_out().take([3, 5])
    assert set(lmd.trace(older, TokenLosses(few), steps=[12], progress=False)["row"]) <= {0, 1}
    own = {"held-out loss": HeldOutLoss(older.held_out())}
    copy = older.folder.with_name("copy")
    shutil.copytree(older.folder, copy)
    assert set(compare_runs(older, open_run("copy"), measurements=own, progress=False)["run"]) == {"tiny", "copy"}


def test_it_gets_no_sentences_of_this_version(older):
    for sentences in (older.treebank, older.pairs, lambda: older.treebank("grammar", 7)):
        refuses(message(older), sentences)


def test_it_is_not_measured_on_sentences_of_another_run(older_once):
    grammar = Grammar()
    rows = grammar.blocks(20, 3)
    mixed = type(rows).from_rows([*older_once.held_out().take([0, 1]), rows[0]])
    for measurement in (
        UAS(grammar.treebank(60, 3), min_count=10),
        PairAccuracy(grammar.pairs(5, 3)),
        HeldOutLoss(rows),
        HeldOutLoss(mixed),
    ):
        refuses(message(older_once), lmd.trace, older_once, measurement, progress=False)


@pytest.mark.parametrize("older_first", [True, False])
def test_it_is_not_compared_with_a_run_of_this_version(older_once, older_first):
    new = train("grammar-mlm", overrides=TINY, name="new", progress=False)
    runs = (older_once, new) if older_first else (new, older_once)
    refuses(message(older_once), compare_runs, *runs, progress=False)
    rows = {"held-out loss": HeldOutLoss(runs[0].held_out())}
    refuses(message(older_once), compare_runs, *runs, measurements=rows, progress=False)


def test_it_is_not_branched(older):
    refuses(message(older), older.branch, 8, lr=0.001)
    refuses(message(older), branch_of, older, 8, {"lr": 0.001})
    refuses(message(older), branch_cost, older, 8)


def test_a_branch_of_it_is_not_taken_for_one_of_a_new_run(home):
    branched = train("grammar-mlm", overrides=TINY, name="tiny", progress=False).branch(8, lr=0.001, progress=False)
    make_older(branched.folder)
    refuses(message(branched), open_run("tiny").branch, 8, lr=0.001, progress=False)


def test_a_training_of_its_recipe_is_refused_before_it_begins(older, home):
    refuses("grammar-mlm was trained on version 1 .*; delete its folder", open_corpus, older.recipe)
    refuses("grammar-mlm was trained on version 1", build, older.recipe, home / "runs" / "other", progress=False)
    assert not (home / "runs" / "other" / "run.json").exists()


def test_a_sweep_reports_it_and_opens_the_others(home):
    plan = Plan("grammar-mlm", (Condition("slow", {"lr": 1e-3}), Condition("fast", {"lr": 4e-3})))
    settings = {key: value for key, value in TINY.items() if key != "training.lr"}
    for condition in plan.conditions:
        run = train("grammar-mlm", overrides={**condition.set, **settings}, progress=False)
    make_older(run.folder)
    slow, fast = sweep(plan, overrides=settings, progress=False)["error"]
    assert slow is None
    assert f"{run.name} was trained on version 1 of the built-in language, this is version {VERSION}; delete" in fast


def test_a_text_has_no_version(older_once, tmp_path):
    (tmp_path / "text.txt").write_text("A dog sleeps.\n\n" * 500)
    text = {"corpus.source": str(tmp_path / "text.txt"), "corpus.vocab_size": 100, "steps": 2, "batch_size": 4}
    refuses(
        "was trained with .*; give this run another --name",
        train,
        "english-mlm",
        overrides=text,
        name="tiny",
        progress=False,
    )
    run = train("english-mlm", overrides=text, name="text", progress=False)
    assert "version" not in run.recipe.corpus
    assert recipe_from_dict(run.recipe.to_dict()) == run.recipe
    refuses("did not learn the built-in language", run.treebank)


def test_models_of_it_open(older_once):
    model, tokenizer = older_once[12].model(), older_once[12].tokenizer
    assert model(torch.tensor([tokenizer(["the"], is_split_into_words=True)["input_ids"]])).logits.isfinite().all()

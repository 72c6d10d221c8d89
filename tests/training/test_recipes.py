"""Recipes: every mistake is named, every run is determined."""

from itertools import pairwise

import numpy as np
import pytest

from lmdynamics.corpora.grammar import VERSION, Grammar
from lmdynamics.training import batches
from lmdynamics.training.batches import open_corpus
from lmdynamics.training.recipes import (
    PROFILES,
    Optimization,
    checkpoint_steps,
    load_recipe,
    recipe_from_dict,
    recipe_names,
)
from tests.conftest import refuses


def test_steps_double_and_leave_no_large_gap():
    steps = checkpoint_steps(143_000)
    assert steps[:8] == [0, 1, 2, 4, 8, 16, 32, 64]
    assert steps[-1] == 143_000
    late = [b / a for a, b in pairwise(steps) if a >= 64]
    assert max(late) <= 1.25
    assert {2**k for k in range(17)} <= set(steps)
    assert checkpoint_steps(1) == [0, 1]


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("profile", PROFILES)
def test_every_recipe_loads_and_survives_the_disk(name, profile):
    recipe = load_recipe(name, profile, seed=3)
    assert (recipe.name, recipe.profile, recipe.seed) == (name, profile, 3)
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert recipe.config(vocab_size=10).vocab_size == 10


def test_overrides_by_dotted_and_bare_key_and_as_text():
    recipe = load_recipe("grammar-mlm", overrides=["lr=0.5", "model.hidden_size=32", "layer_norm_eps=1e-3", "seed=7"])
    assert (recipe.training.lr, recipe.model["hidden_size"], recipe.seed) == (0.5, 32, 7)
    assert recipe.model["layer_norm_eps"] == 1e-3
    assert load_recipe("grammar-mlm", overrides={"lr": 1}).training.lr == 1.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learning_rate=1"], "no setting 'learning_rate' to override"),
        (["lrr=1"], "no setting 'lrr' to override"),
        (["training.stepz=5"], "did you mean 'training.steps'"),
        (["optim.lr=5"], "no section 'optim'"),
        (["lr"], "is not an override; write key=value"),
        (["lr=fast"], "lr is float"),
        (["sentences=5"], "write corpus.sentences or regularizer.sentences"),
        (["steps=0"], "training.steps is 0"),
        (["masking=constant-1.0"], "must lie between 0 and 1"),
        (["objective=gan"], "choose mlm, clm or rts"),
        (["name=x"], "no setting 'name'"),
        (["corpus.block_size=2"], "corpus.block_size is 2; at least 3 are needed, or 0 for one sentence per row"),
        (["corpus.block_size=-1"], "corpus.block_size is -1; at least 3 are needed"),
        (["corpus.block_size=16", "stages=[[0, 1.0]]"], "trees need unpacked sentences"),
        (["corpus.block_size=16", "stages=[[0, 1.0]]", "trees=shuffled"], "trees need unpacked sentences"),
        ({"stages": "often"}, "give λ, or a list of"),
        ({"stages": [[300, 1.0], [0, 0.0]]}, "steps must increase"),
        ({"stages": [[0, float("nan")]]}, "every λ must be a number"),
        ({"stages": 1.0, "form": "mean"}, "choose max or uniform"),
        ({"stages": 1.0, "arcs": "siblings"}, "choose both, head, children"),
    ],
)
def test_bad_overrides_are_one_clear_line(overrides, message):
    refuses(message, load_recipe, "grammar-mlm", overrides=overrides)


def test_trees_of_a_treebank_go_with_blocks():
    packed = ["corpus.block_size=16", "stages=[[0, 1.0]]", "regularizer.trees=ewt"]
    assert load_recipe("grammar-mlm", overrides=packed).regularizer.trees == "ewt"


@pytest.mark.parametrize("name", ["grammar-mlm", "grammar-ladder"])
def test_sentences_are_packed_into_rows_of_equal_length(name):
    few = {"corpus.sentences": 400, "corpus.held_out": 40}
    rows, packed = (open_corpus(load_recipe(name, overrides={**few, "corpus.block_size": size})) for size in (0, 16))
    for part in ("train", "held_out"):
        sentences, blocks = getattr(rows, part), getattr(packed, part)
        assert set(blocks.lengths.tolist()) == {16}
        assert len(set(sentences.lengths.tolist())) > 1
        inner = [token for row in sentences for token in row[1:-1].tolist()]
        unpacked = [token for row in blocks for token in row[1:-1].tolist()]
        assert unpacked == inner[: len(unpacked)]
        assert 0 <= len(inner) - len(unpacked) < 14


@pytest.mark.parametrize("profile", ["default", "full"])
def test_the_ladder_sees_no_sentence_twice(profile):
    recipe = load_recipe("grammar-ladder", profile)
    tokens = Grammar("large").blocks(20_000, 0).lengths.mean() - 2  # of a sentence in a packed row
    rows = recipe.corpus["sentences"] * tokens / (recipe.corpus["block_size"] - 2)
    assert rows > 1.01 * recipe.training.steps * recipe.training.batch_size


def test_unknown_recipe_profile_and_broken_file(tmp_path):
    refuses("did you mean 'grammar-mlm'", load_recipe, "gramar-mlm")
    refuses("has no profile 'tiny'", load_recipe, "grammar-mlm", "tiny")
    broken = tmp_path / "mine.toml"
    broken.write_text("[training\nsteps=5")
    refuses("is not a recipe", load_recipe, str(broken))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nstep = 5", "training has no setting 'step'; did you mean 'steps'"),
        ("[training]\nsteps = 'many'", "training.steps is int, like 2500; got 'many'"),
        ("[corpus]\nsentences = 0.5", "corpus.sentences is int, like 160000; got 0.5"),
        ("[corpus]\nkind = ['text']", r"corpus.kind is str, like 'grammar'; got \['text'\]"),
        ("training = 3", "training is 3 in a recipe; expected a table of settings"),
        ("model = 3", "model is 3 in a recipe; expected a table of settings"),
        ("profiles = 3", "profiles is 3 in a recipe; expected a table of settings"),
        ("[profiles]\nsmoke = 3", "smoke is 3 in a recipe; expected a table of settings"),
        ("[training]\nlr = 1\n[profiles.smoke]\ntraining = 3", "training is 3 in a recipe"),
    ],
)
def test_a_file_with_wrong_settings_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    refuses(message, load_recipe, str(path), "smoke")


def test_learning_rate_warms_up_and_decays_to_zero():
    t = Optimization(steps=100, lr=1.0, warmup_steps=10)
    assert [round(t.lr_at(s), 3) for s in (0, 9, 10, 55, 100)] == [0.1, 1.0, 1.0, 0.5, 0.0]
    assert Optimization(steps=100, lr=1.0, warmup_steps=0, decay="cosine").lr_at(50) == pytest.approx(0.5)
    assert Optimization(steps=100, lr=1.0, warmup_steps=0, decay="none").lr_at(99) == 1.0


@pytest.mark.parametrize("version", [1, 3])
def test_the_version_of_the_built_in_language_cannot_be_set(tmp_path, version):
    line = f"^corpus.version is {version}; this lmdynamics has version {VERSION} of the built-in language and no other$"
    for key in ("version", "corpus.version"):
        refuses(line, load_recipe, "grammar-mlm", overrides=[f"{key}={version}"])
    path = tmp_path / "mine.toml"
    path.write_text(f"[corpus]\nversion = {version}")
    refuses(line, load_recipe, str(path))
    refuses("no setting 'version' to override", load_recipe, "english-mlm", overrides=[f"version={version}"])
    refuses("no setting 'words' to override", load_recipe, "grammar-mlm", overrides=["words=english"])


@pytest.mark.parametrize(
    ("stored", "version"),
    [({}, 1), ({"words": "invented"}, 1), ({"words": "english", "version": 2}, 1), ({"version": 2}, 2)],
)
def test_a_stored_recipe_without_a_version_is_of_version_1(stored, version):
    table = load_recipe("grammar-mlm").to_dict()
    del table["corpus"]["version"]
    recipe = recipe_from_dict({**table, "corpus": {**table["corpus"], **stored}})
    assert recipe.corpus == {**load_recipe("grammar-mlm").corpus, "version": version}
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert (recipe == load_recipe("grammar-mlm")) == (version == VERSION)


def test_large_corpora_are_stored_by_version(monkeypatch, home):
    monkeypatch.setattr(batches, "PART", 100)
    recipe = load_recipe("grammar-mlm", overrides={"corpus.sentences": 150, "corpus.held_out": 10})
    drawn = open_corpus(recipe).train
    ids, fingerprint = np.zeros_like(drawn.ids), drawn.fingerprint
    (folder,) = (home / "cache" / "corpora").glob("*-0")
    assert folder.name == f"grammar-small-{VERSION}-150-0"
    earlier = folder.rename(folder.with_name(f"grammar-small-{VERSION - 1}-150-0"))
    np.save(earlier / "rows" / "ids.npy", ids)
    assert open_corpus(recipe).train.fingerprint == fingerprint

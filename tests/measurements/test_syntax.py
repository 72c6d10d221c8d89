"""HeadScores and UAS against the published method, halves and shuffled arcs, and models that have learnt nothing."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from benchmarks.false_onsets import KINDS, claims, untrained_run
from lmdynamics.analysis.syntax import beyond_position_by_head, uas_by_step, uas_within_reach
from lmdynamics.corpora.treebanks import Sentence, Treebank
from lmdynamics.errors import UserError
from lmdynamics.measurements import inputs, syntax
from lmdynamics.measurements.inputs import gold_arcs, gold_heads, offset_baseline, score_half, shuffled_trees, sum_by
from lmdynamics.measurements.syntax import UAS, HeadOffsets, HeadScores, Parents, best_heads
from tests.conftest import refuses
from tests.measurements import published
from tests.measurements.conftest import StandIn, random_treebank, wordpiece
from tests.measurements.families import head_scores


@given(st.integers(1, 300), st.integers(0, 5))
def test_halves_are_halves_and_repeatable(n, seed):
    half = score_half(n, seed)
    assert half.sum() == n - n // 2
    assert (half == score_half(n, seed)).all()


@given(st.integers(0, 20))
def test_shuffled_trees_keep_their_shape(seed):
    treebank = random_treebank(30, seed)
    control = shuffled_trees(treebank, seed)
    for before, after in zip(treebank, control, strict=True):
        assert before.words == after.words
        assert labelled_shape(before) == labelled_shape(after)
    assert control == shuffled_trees.__wrapped__(treebank, seed)
    assert (gold_heads(control) != gold_heads(treebank)).any()


def labelled_shape(sentence: Sentence, node: int = -1):
    """A tree without its words: the relation of each node with the sorted shapes below it."""
    children = [i for i, head in enumerate(sentence.heads) if head == node]
    return sorted((sentence.relations[i], labelled_shape(sentence, i)) for i in children)


def test_few_shuffled_arcs_are_gold():
    """No more than chance: one of the other words, or so."""
    sentence = Sentence(tuple("abcdefghij"), (-1, *[0] * 9), ("root", *["x"] * 9))
    control = shuffled_trees(Treebank("star", (sentence,) * 500), 0)
    assert np.mean(gold_heads(control)[gold_heads(control) >= 0] == 0) == pytest.approx(0.1, abs=0.02)


def test_offset_baseline_on_a_language_of_fixed_distances():
    """det always one to the right; obj two to the left in most sentences, one in some."""
    near = Sentence(("see", "a", "dog"), (-1, 2, 0), ("root", "det", "obj"))
    far = Sentence(("see", "big", "a", "dog"), (-1, 3, 3, 0), ("root", "amod", "det", "obj"))
    frame = offset_baseline(Treebank("fixed", (near,) * 30 + (far,) * 10), min_count=20)
    best = {row["relation"]: row for row in frame.filter(split="all").iter_rows(named=True)}
    assert best.keys() == {"det", "obj"}
    assert (best["det"]["offset"], best["det"]["accuracy"], best["det"]["count"]) == (1, 1.0, 40)
    assert (best["obj"]["offset"], best["obj"]["accuracy"]) == (-2, 0.75)
    halves = frame.filter(pl.col("split") != "all").group_by("relation").agg(pl.col("count").sum())
    assert halves["count"].to_list() == [40, 40]


def test_no_frequent_relation_is_refused():
    treebank = Treebank("small", (Sentence(("a", "dog"), (1, -1), ("det", "root")),))
    refuses(r"small: no relation has 2 dependents \(the most frequent is det with 1\)", gold_arcs, treebank, 2)
    refuses(r"\(there are none\)", gold_arcs, Treebank("roots", (Sentence(("dog",), (-1,), ("root",)),)), 1)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), min_size=0, max_size=30))
def test_sums_by_group(items):
    group = np.array([g for g, _ in items], dtype=int)
    values = np.array([v for _, v in items], dtype=float)
    expected = [sum(v for g, v in items if g == k) for k in range(5)]
    np.testing.assert_allclose(sum_by(values, group, 5), expected, atol=1e-9)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_head_scores_equal_the_naive_loop(kind, special, treebank, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_TOKENS", 100)  # several batches, with padding in them
    checkpoint = StandIn(kind, special, tokenizer=wordpiece(special=special))
    frame = HeadScores(treebank, min_count=5)(checkpoint)
    expected = head_scores(checkpoint.model("eager"), checkpoint.tokenizer, treebank, set(frame["relation"]))
    rows = frame.filter(split="all")
    assert len(rows) == len(expected) == 4 * 2 * 4 * 2
    for row in rows.iter_rows(named=True):
        count, right, weight = expected[row["relation"], row["layer"], row["head"], row["direction"]]
        assert row["count"] == count
        assert row["accuracy"] * count == pytest.approx(right, abs=1e-9)
        assert row["weight"] == pytest.approx(weight / count, abs=1e-6)


def test_halves_add_up_and_are_scored_apart(treebank):
    checkpoint = StandIn()
    frame = HeadScores(treebank, min_count=5, seed=3)(checkpoint)
    score = score_half(len(treebank), 3)
    half = Treebank("half", tuple(s for s, chosen in zip(treebank, score, strict=True) if chosen))
    scores_of_half = head_scores(checkpoint.model("eager"), checkpoint.tokenizer, half, set(frame["relation"]))
    for row in frame.filter(split="score").iter_rows(named=True):
        count, right, _ = scores_of_half[row["relation"], row["layer"], row["head"], row["direction"]]
        assert (row["count"], round(row["accuracy"] * count)) == (count, right)
    keys = ["relation", "layer", "head", "direction"]
    halves = frame.filter(pl.col("split") != "all").group_by(keys).agg(pl.col("count").sum())
    assert halves.sort(keys).equals(frame.filter(split="all").sort(keys).select(*keys, "count"))


def test_columns_and_types(treebank):
    frame, uas = (kind(treebank, min_count=5)(StandIn()) for kind in (HeadScores, UAS))
    integers, texts = ("layer", "head", "count"), ("relation", "direction", "split")
    kinds = dict.fromkeys(integers, pl.Int64) | dict.fromkeys(texts, pl.String)
    assert dict(frame.schema) == kinds | dict.fromkeys(("accuracy", "weight", "reachable"), pl.Float64)
    assert len(frame) == 4 * 2 * 4 * 2 * 3
    kinds = dict.fromkeys(("sentence", "arcs", "correct", "reachable"), pl.Int64)
    assert dict(uas.schema) == kinds | {"source": pl.String, "half": pl.String}
    assert (frame["reachable"] == 1).all()
    by_relation, single = (uas.filter(pl.col("source").str.starts_with("single") == one) for one in (False, True))
    assert (by_relation["reachable"] == by_relation["arcs"]).all()
    assert (single["reachable"] == single["arcs"] - 1).all(), "all but the root of each sentence"


def test_a_relation_that_one_half_lacks(treebank):
    """Its rows are there, with count 0 and no accuracy; UAS does not count it, for no head could be chosen."""
    select = np.flatnonzero(~score_half(len(treebank), 0))[0]
    sentences = list(treebank.sentences)
    sentences[select] = Sentence(("the", "dog"), (1, -1), ("rare", "root"))
    altered = Treebank("altered", tuple(sentences))
    frame = HeadScores(altered, min_count=1)(StandIn()).filter(relation="rare")
    by_split = {split: rows for (split,), rows in frame.group_by("split")}
    assert by_split["select"]["count"].unique().to_list() == [1]
    assert by_split["score"]["count"].unique().to_list() == [0]
    assert by_split["score"]["accuracy"].null_count() == len(by_split["score"])
    assert "rare" not in best_heads(HeadScores(altered, min_count=1)(StandIn()))["relation"]
    score = np.flatnonzero(score_half(len(treebank), 0))[0]
    sentences[score] = Sentence(("the", "dog"), (1, -1), ("rarer", "root"))
    uas = UAS(Treebank("altered", tuple(sentences)), min_count=1)(StandIn())
    assert score not in uas.filter(source="per_relation")["sentence"]
    assert score in uas.filter(source="per_relation_same")["sentence"]


def test_uas_follows_from_head_scores(treebank):
    checkpoint = StandIn()
    scores = best_heads(HeadScores(treebank, min_count=5)(checkpoint)).filter(pl.col("relation") != "punct")
    uas = UAS(treebank, min_count=5)(checkpoint).group_by("source").agg(pl.col("arcs", "correct").sum())
    attention_row = uas.row(by_predicate=pl.col("source") == "per_relation", named=True)
    assert attention_row["arcs"] == scores["count"].sum()
    assert attention_row["correct"] == pytest.approx((scores["accuracy"] * scores["count"]).sum())


def test_a_causal_head_that_is_never_wrong_reaches_what_is_reachable(monkeypatch):
    """One that finds every arc it can see: the ceiling, and no more."""
    bank = published.treebank(60)
    gold, first = gold_heads(bank), np.concatenate([np.arange(len(s)) for s in bank])
    visible = np.stack([np.where((gold < first) == to_left, gold, -1) for to_left in (True, False)])
    perfect = Parents(visible[None, :, None].astype(np.int16), (visible[None, :, None] >= 0).astype(np.float32))
    monkeypatch.setattr(syntax, "predicted_parents", lambda *_: perfect)
    scores = HeadScores(bank, min_count=5)(StandIn("llama"))
    assert 0 < scores["reachable"].min() < scores["reachable"].max() < 1
    for name in ("accuracy", "weight"):
        assert scores[name].to_list() == pytest.approx(scores["reachable"].to_list())
    both = scores.group_by("relation", "split").agg(pl.col("reachable").sum())
    assert both["reachable"].to_list() == pytest.approx([1] * len(both))
    uas = UAS(bank, min_count=5)(StandIn("llama")).filter(source="per_relation")
    assert (uas["correct"] == uas["reachable"]).all()
    assert 0.5 < uas["reachable"].sum() / uas["arcs"].sum() < 1


def test_a_fixed_offset_is_held_to_the_side_it_looks_to():
    uas = UAS(published.treebank(60), min_count=5)(StandIn("llama")).filter(source="offset")
    assert (uas["correct"] <= uas["reachable"]).all()
    assert uas["reachable"].sum() < uas["arcs"].sum()


def test_shuffled_control_is_uas_on_the_shuffled_trees(treebank):
    checkpoint = StandIn()
    control = UAS(treebank, min_count=5)(checkpoint).filter(source="shuffled").drop("source")
    expected = UAS(shuffled_trees(treebank, 0), min_count=5)(checkpoint).filter(source="per_relation").drop("source")
    assert control.equals(expected)


def test_only_a_causal_model_is_said_to_be_out_of_reach(treebank):
    """One head for all words misses every root, in any model: that is no matter of direction."""

    def sentence(kind: str) -> str:
        bank = published.treebank(60) if kind == "llama" else treebank
        return uas_within_reach(uas_by_step(UAS(bank, min_count=5)(StandIn(kind)).with_columns(step=pl.lit(1))))

    assert sentence("bert") == ""
    assert "a causal model attends to the left only" in sentence("llama")


def test_a_head_that_looks_one_word_back_is_nothing_but_position(treebank, monkeypatch):
    words = np.concatenate([np.arange(len(s)) for s in treebank])
    back = np.broadcast_to(words - 1, (1, 2, 1, len(words))).astype(np.int16)
    monkeypatch.setattr(syntax, "predicted_parents", lambda *_: Parents(back, (back >= 0).astype(np.float32)))
    offsets = HeadOffsets(treebank)(StandIn()).with_columns(step=pl.lit(4))
    row = beyond_position_by_head(offsets, 1).row(0, named=True)
    assert (row["head"], row["offset"], row["same"], row["beyond"], row["low"]) == ("0-0", -1, 1, 0, 0)
    assert 0 < row["high"] < 0.05
    scores = dict(UAS(treebank, min_count=5)(StandIn()).group_by("source").agg(pl.col("correct").sum()).iter_rows())
    assert scores["single_head"] <= scores["single_offset"], "the best offset is at least as good"


def test_one_prediction_pass_serves_both(treebank, monkeypatch):
    calls = []
    loaded = StandIn.model
    monkeypatch.setattr(StandIn, "model", lambda self, *a, **k: calls.append(1) or loaded(self, *a, **k))
    checkpoint = StandIn(seed=77)
    HeadScores(treebank, min_count=5)(checkpoint)
    UAS(treebank, min_count=5)(checkpoint)
    assert len(calls) == 1


def test_the_first_of_equals_as_argmax_does():
    """Uniform attention: every word ties, and the first other word wins."""
    treebank = random_treebank(12, seed=4)
    checkpoint = StandIn()
    model = checkpoint.model("eager")
    for layer in model.base_model.encoder.layer:
        for part in (layer.attention.self.query, layer.attention.self.key):
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.zeros_(part.bias)
    encoded = inputs.encode_treebank(checkpoint.tokenizer, treebank)
    result = syntax.parents(model, encoded, np.zeros(encoded.words, int)).parent
    starts = np.cumsum([0, *map(len, treebank)])
    for i, sentence in enumerate(treebank):
        if any(word in ("unbelievable", "walking", "walked", "plays", "unbelievables") for word in sentence.words):
            continue
        expected = [1, *[0] * (len(sentence) - 1)] if len(sentence) > 1 else [-1]
        assert (result[..., starts[i] : starts[i + 1]] == expected).all()


def test_too_long_a_sentence_is_named():
    long = Treebank(
        "long", (Sentence(("dog",), (-1,), ("root",)), Sentence(("dog",) * 15, (-1, *[0] * 14), ("x",) * 15))
    )
    with pytest.raises(UserError, match="sentence 1 of long is 17 tokens long, the model takes at most 16"):
        HeadScores(long, min_count=1)(StandIn(positions=16))
    # RoBERTa's positions begin behind its padding index: 16 of them hold 15 tokens
    with pytest.raises(UserError, match="17 tokens long, the model takes at most 15"):
        HeadScores(long, min_count=1)(StandIn("roberta", positions=16))


def test_other_attention_implementations_are_refused(treebank):
    class Sdpa(StandIn):
        def model(self, attention="sdpa", device="cpu"):
            return super().model("sdpa", device)

    with pytest.raises(UserError, match=r'returned attention for 0 of 2 layers; load with attention="eager"'):
        HeadScores(treebank, min_count=5)(Sdpa(seed=5))


def test_a_diverged_model_is_refused(treebank):
    class Diverged(StandIn):
        def model(self, attention="sdpa", device="cpu"):
            model = super().model(attention, device)
            torch.nn.init.constant_(model.base_model.embeddings.word_embeddings.weight, float("nan"))
            return model

    refuses("sums to NaN: the model has diverged", lambda: HeadScores(treebank, min_count=5)(Diverged(seed=6)))


def test_words_are_spelled_by_their_own_tokens_only(treebank, monkeypatch):
    tokenizer = wordpiece()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    assert inputs.spelled_words(tokenizer, treebank) == 1
    encoded = inputs.encode_treebank(tokenizer, treebank)
    shifted = [
        replace(
            batch,
            start=batch.start - 1,
            membership=None if batch.membership is None else batch.membership.roll(-1, dims=1),
        )
        for batch in encoded.batches
    ]
    off_by_one = replace(encoded, batches=tuple(shifted))
    monkeypatch.setattr(inputs, "encode_treebank", lambda *_: off_by_one)
    assert inputs.spelled_words(tokenizer, treebank) < 0.3


@pytest.mark.parametrize("first_step_zero", [False, True], ids=["without step 0", "with step 0"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_run_has_no_onset(tmp_path, kind, first_step_zero):
    run = untrained_run(tmp_path / "run", kind, first_step_zero, redrawn=True, seed=1)
    assert run.steps == [0] * first_step_zero + [500, 1000, 1500, 2000, 2500]
    assert claims(run, sentences=120, min_count=30, pairs_per_paradigm=20, seed=1) == []

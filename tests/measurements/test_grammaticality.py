"""Scores of minimal pairs against one forward pass per token."""

import polars as pl
import pytest
import torch

from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.errors import UserError
from lmdynamics.measurements import grammaticality
from lmdynamics.measurements.grammaticality import PairAccuracy
from tests.measurements.conftest import StandIn, wordpiece

GOOD = ["the dog sees a cat .", "the old man walking runs", "unbelievable dogs", "the dog sees a cat ."]
BAD = ["the dog sees a .", "the old man walked runs", "dog unbelievable", "a dog sees the cat ."]


def pairs(split_into_words: bool = True) -> MinimalPairs:
    frame = pl.DataFrame({"paradigm": ["x", "x", "y", "y"], "pair": [0, 1, 2, 3], "good": GOOD, "bad": BAD})
    return MinimalPairs("four", frame, split_into_words)


def naive_pll(checkpoint, text: str) -> float:
    tokenizer, model = checkpoint.tokenizer, checkpoint.model()
    ids = tokenizer(text.split(" "), is_split_into_words=True, return_tensors="pt")["input_ids"]
    total = 0.0
    for t in range(ids.shape[1]):
        if int(ids[0, t]) in (tokenizer.cls_token_id, tokenizer.sep_token_id):
            continue
        masked = ids.clone()
        masked[0, t] = tokenizer.mask_token_id
        with torch.no_grad():
            total += float(model(input_ids=masked).logits[0, t].log_softmax(-1)[ids[0, t]])
    return total


def naive_log_probability(checkpoint, text: str) -> float:
    tokenizer = checkpoint.tokenizer
    ids = tokenizer(text.split(" "), is_split_into_words=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = checkpoint.model()(input_ids=ids).logits[0].log_softmax(-1)
    return sum(
        float(logits[t - 1, ids[0, t]]) for t in range(1, ids.shape[1]) if int(ids[0, t]) != tokenizer.sep_token_id
    )


@pytest.mark.parametrize("split_into_words", [True, False])
@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_scores_equal_a_loop_over_tokens(kind, split_into_words, monkeypatch):
    monkeypatch.setattr(grammaticality, "TOKENS", 20)  # several batches per length
    checkpoint = StandIn(kind)
    frame = PairAccuracy(pairs(split_into_words))(checkpoint)
    naive = naive_log_probability if kind == "llama" else naive_pll
    assert frame["good"].to_list() == pytest.approx([naive(checkpoint, text) for text in GOOD], abs=1e-4)
    assert frame["bad"].to_list() == pytest.approx([naive(checkpoint, text) for text in BAD], abs=1e-4)
    assert (frame["correct"] == (frame["good"] > frame["bad"])).all()
    assert dict(frame.schema) == {
        "paradigm": pl.String,
        "pair": pl.Int64,
        "good": pl.Float64,
        "bad": pl.Float64,
        "correct": pl.Boolean,
    }


def test_without_special_tokens_a_causal_model_leaves_out_the_first():
    checkpoint = StandIn("llama", special=False, tokenizer=wordpiece(special=False))
    frame = PairAccuracy(pairs())(checkpoint)
    assert frame["good"].to_list() == pytest.approx([naive_log_probability(checkpoint, t) for t in GOOD], abs=1e-4)


def test_a_sentence_is_scored_once(monkeypatch):
    seen = []
    scored = grammaticality.logits_at
    monkeypatch.setattr(grammaticality, "logits_at", lambda *a: seen.append(len(a[1])) or scored(*a))
    PairAccuracy(pairs())(StandIn())
    different = {*GOOD, *BAD}
    lengths = [len(wordpiece()(text)["input_ids"]) - 2 for text in different]
    assert len(different) == 7
    assert sum(seen) == sum(lengths)


def test_too_long_is_refused():
    with pytest.raises(UserError, match="a sentence of four is 8 tokens long, the model takes at most 7"):
        PairAccuracy(pairs())(StandIn(positions=7))


def test_no_mask_token_is_refused():
    tokenizer = wordpiece()
    tokenizer.mask_token = None

    class Named(StandIn):
        run_name = "a-run"

    with pytest.raises(UserError, match="tokenizer of a-run has no mask token"):
        PairAccuracy(pairs())(Named(tokenizer=tokenizer))

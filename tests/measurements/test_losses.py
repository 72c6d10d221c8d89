"""Masked loss against one row at a time; minimal pairs against one pass per token. Causal loss: `support.py`."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
import transformers as hf

from lmdynamics import charts
from lmdynamics.analysis.syntax import accuracy_by_step, average_accuracy, judged_right, ties_and_flips
from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.errors import UserError
from lmdynamics.measurements import losses
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy, TokenLosses, prediction_batches
from tests.conftest import refuses
from tests.measurements.conftest import StandIn, tiny_model, wordpiece


def rows(lengths, seed=0) -> TokenRows:
    random = np.random.default_rng(seed)
    return TokenRows.from_rows([[2, *random.integers(5, 24, n), 3] for n in lengths])


def test_masked_loss_equals_a_loop_over_rows():
    checkpoint, blocks = StandIn(), rows([20, 5, 31, 40] * 5)
    frame = HeldOutLoss(blocks, masking_rate=0.3)(checkpoint)
    model, sums, counts = checkpoint.model(), [], []
    for batch in prediction_batches(checkpoint, blocks, 0.3, 0, 64):
        gold = iter(batch.gold)
        for row, mask, selected in zip(batch.ids, batch.attention_mask, batch.selected, strict=True):
            with torch.no_grad():
                logits = model(input_ids=row[mask][None]).logits[0].log_softmax(-1)
            positions = selected.nonzero()[:, 0]
            sums.append(-sum(float(logits[t, next(gold)]) for t in positions))
            counts.append(len(positions))
    assert frame["tokens"].item() == sum(counts)
    assert frame["loss"].item() == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    residual = np.array(sums) - frame["loss"].item() * np.array(counts)
    assert frame["stderr"].item() == pytest.approx(np.sqrt((residual**2).sum() * 20 / 19) / sum(counts), rel=1e-4)
    assert dict(frame.schema) == {"loss": pl.Float64, "tokens": pl.Int64, "stderr": pl.Float64, "unused_rows": pl.Int64}


def test_masks_are_the_same_at_every_checkpoint_and_spare_special_tokens():
    blocks = rows([30] * 40)
    one, other = (list(prediction_batches(StandIn(seed=seed), blocks, 0.15, 0, 64)) for seed in (0, 1))
    for a, b in zip(one, other, strict=True):
        assert (a.ids == b.ids).all()
        assert (a.selected == b.selected).all()
    share = np.mean(one[0].selected.numpy())
    assert share == pytest.approx(0.15 * 30 / 32, abs=0.03)
    assert not one[0].selected[:, [0, -1]].any()


def test_stderr_is_what_repetition_shows():
    """The spread of the loss over independent texts, with one model."""
    checkpoint = StandIn("llama")
    frames = [HeldOutLoss(rows([12] * 40, seed))(checkpoint) for seed in range(30)]
    losses, errors = (np.array([f[name].item() for f in frames]) for name in ("loss", "stderr"))
    assert np.std(losses, ddof=1) == pytest.approx(errors.mean(), rel=0.5)


@pytest.mark.parametrize("texts", [[[2, *range(5, 15), 3]], [[2, *range(5, 15), 3], [2, 3], [2, 3]]])
def test_one_row_of_text_has_no_standard_error(texts):
    frame = HeldOutLoss(TokenRows.from_rows(texts), masking_rate=0.5)(StandIn())
    assert frame["loss"].item() > 0
    assert frame["stderr"].to_list() == [None]
    assert frame.schema["stderr"] == pl.Float64


def test_nothing_to_predict_is_refused():
    refuses("1 held-out rows have no token to predict", lambda: HeldOutLoss(TokenRows.from_rows([[2, 3]]))(StandIn()))
    refuses("no held-out rows", lambda: HeldOutLoss(TokenRows.from_rows([]))(StandIn()))
    with pytest.raises(UserError, match="a held-out row is 42 tokens long, the model takes at most 16"):
        HeldOutLoss(rows([40]))(StandIn(positions=16))


@dataclass(frozen=True)
class Discriminator(StandIn):
    """A checkpoint that tells of every token whether it was replaced."""

    objective = "rts"

    def model(self, attention: str = "sdpa", device: str = "cpu"):
        torch.manual_seed(self.seed)
        model = hf.BertForTokenClassification(tiny_model("bert").config)
        torch.nn.init.normal_(model.classifier.weight)
        return model.eval()


CHECKPOINTS = {"clm": StandIn("llama"), "mlm": StandIn(), "rts": Discriminator()}


@pytest.mark.parametrize("lengths", [[10] * 70, [3, 9, 30, 4, 12] * 15])
@pytest.mark.parametrize("objective", CHECKPOINTS)
def test_token_losses_have_the_held_out_loss_for_their_mean(objective, lengths):
    checkpoint, blocks = CHECKPOINTS[objective], rows(lengths)
    frame = TokenLosses(blocks)(checkpoint)
    full = HeldOutLoss(blocks)(checkpoint)
    assert dict(frame.schema) == {"row": pl.Int32, "position": pl.Int32, "token": pl.Int32, "loss": pl.Float32}
    assert len(frame) == full["tokens"].item()
    assert frame["loss"].cast(pl.Float64).mean() == pytest.approx(full["loss"].item(), rel=1e-6)
    assert frame.select("row", "position").is_unique().all()
    assert frame["token"].to_list() == [int(blocks[r][p]) for r, p in frame.select("row", "position").iter_rows()]


@pytest.mark.parametrize("objective", ["mlm", "rts"])
def test_masked_and_replaced_tokens_are_called_what_they_were(objective):
    checkpoint, blocks = CHECKPOINTS[objective], rows([20, 5, 31, 40] * 20)
    frame = TokenLosses(blocks, masking_rate=0.3, seed=4)(checkpoint)
    model, expected, first = checkpoint.model(), [], 0
    for batch in prediction_batches(checkpoint, blocks, 0.3, 4, 64):
        gold = iter(batch.gold)
        for number, (row, mask, selected) in enumerate(
            zip(batch.ids, batch.attention_mask, batch.selected, strict=True), start=first
        ):
            with torch.no_grad():
                scores = model(input_ids=row[mask][None]).logits[0].log_softmax(-1)
            expected += [
                (number, int(t), int(blocks[number][t]), -float(scores[t, next(gold)])) for t in selected.nonzero()
            ]
        first += len(batch.ids)
    assert frame.select("row", "position", "token").rows() == [each[:3] for each in expected]
    np.testing.assert_allclose(frame["loss"], [each[3] for each in expected], rtol=1e-3, atol=1e-5)
    assert not frame["token"].is_in(range(5)).any()  # no padding, no special token


GOOD = ["the dog sees a cat .", "the old man walking runs", "unbelievable dogs", "the dog sees a cat ."]
BAD = ["the dog sees a .", "the old man walked runs", "dog unbelievable", "a dog sees the cat ."]


def pairs(split_into_words: bool = True) -> MinimalPairs:
    frame = pl.DataFrame({"paradigm": ["x", "x", "y", "y"], "pair": [0, 1, 2, 3], "good": GOOD, "bad": BAD})
    return MinimalPairs("four", frame, split_into_words)


def naive_pll(checkpoint, text: str, whole_words: bool = False) -> float:
    """With `whole_words`, the later tokens of the same word are masked, too."""
    tokenizer, model = checkpoint.tokenizer, checkpoint.model()
    encoded = tokenizer(text.split(" "), is_split_into_words=True, return_tensors="pt")
    ids, words = encoded["input_ids"], encoded.word_ids(0)
    total = 0.0
    for t in range(ids.shape[1]):
        if int(ids[0, t]) in (tokenizer.cls_token_id, tokenizer.sep_token_id):
            continue
        masked = ids.clone()
        masked[0, t] = tokenizer.mask_token_id
        for later in range(t + 1, ids.shape[1]):
            if whole_words and words[later] == words[t]:
                masked[0, later] = tokenizer.mask_token_id
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
    monkeypatch.setattr(losses, "MAX_TOKENS", 20)  # several batches per length
    checkpoint = StandIn(kind)
    frame = PairAccuracy(pairs(split_into_words))(checkpoint)
    naive = naive_log_probability if kind == "llama" else naive_pll
    assert frame["good"].to_list() == pytest.approx([naive(checkpoint, text) for text in GOOD], abs=1e-4)
    assert frame["bad"].to_list() == pytest.approx([naive(checkpoint, text) for text in BAD], abs=1e-4)
    assert (frame["correct"] == (frame["good"] > frame["bad"])).all()
    numbers, flags = (("good", "bad", "good_word_l2r", "bad_word_l2r"), ("correct", "tie", "flips"))
    kinds = {"paradigm": pl.String, "pair": pl.Int64} | dict.fromkeys(numbers, pl.Float64)
    assert dict(frame.schema) == kinds | dict.fromkeys(flags, pl.Boolean)
    if kind == "llama":
        assert frame.select("good_word_l2r", "bad_word_l2r", "flips").null_count().row(0) == (len(frame),) * 3
        return
    for name, texts in (("good_word_l2r", GOOD), ("bad_word_l2r", BAD)):
        expected = [naive_pll(checkpoint, text, whole_words=True) for text in texts]
        assert frame[name].to_list() == pytest.approx(expected, abs=1e-4)
    assert (frame["flips"] == ((frame["good_word_l2r"] > frame["bad_word_l2r"]) != frame["correct"])).all()


def test_a_sentence_is_scored_once(monkeypatch):
    calls = []
    scored = losses.logits_at
    monkeypatch.setattr(losses, "logits_at", lambda *a: calls.append(len(a[1])) or scored(*a))
    PairAccuracy(pairs())(StandIn())
    different = {*GOOD, *BAD}
    encoded = [wordpiece()(text) for text in different]
    lengths = [len(each["input_ids"]) - 2 for each in encoded]
    again = [len(each.word_ids(0)) - 2 - len(set(each.word_ids(0)) - {None}) for each in encoded]
    assert len(different) == 7
    assert 0 < sum(again) < 8  # what stands before the last token of its word is scored both ways
    assert sum(calls) == sum(lengths) + sum(again)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_scorer_that_knows_no_order_ties_on_reordered_words_and_is_wrong(kind):
    class Constant(StandIn):
        def model(self, *args, **kwargs):
            model = super().model(*args, **kwargs)
            with torch.no_grad():
                model.get_output_embeddings().weight.zero_()
                if kind == "llama":
                    return model
                model.get_output_embeddings().bias.copy_(torch.linspace(-2, 2, len(self.tokenizer)))
            return model

    good = ["the dog sees a cat .", "the old man walking", "a dog sees a cat ."]
    bad = ["the cat sees a dog .", "man old the walking", "the dog sees a cat ."]
    frame = pl.DataFrame({"paradigm": "x", "pair": range(3), "good": good, "bad": bad})
    judged = PairAccuracy(MinimalPairs("three", frame, True))(Constant(kind))
    assert judged["tie"].to_list() == [True, True, kind == "llama"]
    assert not judged.filter("tie")["correct"].any()
    assert judged.filter("tie")["flips"].to_list() == [None if kind == "llama" else False] * len(judged.filter("tie"))


def test_ties_are_equal_but_for_rounding():
    good, bad = np.array([-60.0, -60.0, -60.0, 0.0]), np.array([-60.00001, -60.0, -60.001, 0.0])
    correct, tie = losses.judge(good, bad)
    assert tie.tolist() == [True, True, False, True]
    assert correct.tolist() == [False, False, True, False]


def test_ties_and_flips_are_counted_and_reported():
    judged = pl.DataFrame(
        {
            "step": [0] * 4 + [8] * 4,
            "paradigm": ["x", "x", "y", "y"] * 2,
            "pair": [0, 1, 2, 3] * 2,
            "correct": [False] * 4 + [True, True, False, False],
            "tie": [True] * 4 + [False, False, True, False],
            "flips": [False] * 4 + [True, False, False, False],
        }
    )
    accuracy = accuracy_by_step(judged)
    panels = pl.concat([average_accuracy(accuracy), accuracy])
    lines = [
        "ties count as wrong: 1 of 4 pairs at the last checkpoint",
        "with split words scored from left to right, 1 of 4 pairs (25.0%) are judged differently",
    ]
    assert ties_and_flips(panels) == ties_and_flips(accuracy) == lines
    assert judged_right(judged).filter(step=8)["ties"].to_list() == [1, 0, 1]
    caption = charts.pair_accuracy_over_training(panels).title.subtitle
    assert caption[-2:] == lines
    causal = accuracy_by_step(judged.with_columns(flips=pl.lit(None, pl.Boolean)))
    assert ties_and_flips(pl.concat([average_accuracy(causal), causal])) == lines[:1]
    assert judged_right(judged.with_columns(flips=pl.lit(None, pl.Boolean)))["flips"].null_count() == 6


def test_too_long_is_refused():
    with pytest.raises(UserError, match="a sentence of four is 8 tokens long, the model takes at most 7"):
        PairAccuracy(pairs())(StandIn(positions=7))


def test_no_mask_token_is_refused():
    tokenizer = wordpiece()
    tokenizer.mask_token = None

    class Named(StandIn):
        run_name = "a-run"

    refuses("tokenizer of a-run has no mask token", lambda: PairAccuracy(pairs())(Named(tokenizer=tokenizer)))

"""Held-out loss, whole and token by token, against one row at a time."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
import transformers as hf
from torch.nn import functional as F

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import HeldOutLoss, TokenLosses, prediction_batches
from tests.measurements.conftest import StandIn, tiny_model


def rows(lengths, seed=0) -> Blocks:
    random = np.random.default_rng(seed)
    return Blocks.from_rows([[2, *random.integers(5, 24, n), 3] for n in lengths])


@pytest.mark.parametrize("lengths", [[10] * 70, [3, 9, 30, 4, 12]])
def test_causal_loss_equals_a_loop_over_rows(lengths):
    checkpoint, blocks = StandIn("llama"), rows(lengths)
    frame = HeldOutLoss(blocks)(checkpoint)
    model, total = checkpoint.model(), 0.0
    for row in blocks:
        ids = torch.from_numpy(row.astype(np.int64))[None]
        with torch.no_grad():
            total += float(F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
    tokens = sum(n + 1 for n in lengths)
    assert frame["tokens"].item() == tokens
    assert frame["loss"].item() == pytest.approx(total / tokens, rel=1e-5)


def test_masked_loss_equals_a_loop_over_rows():
    checkpoint, blocks = StandIn(), rows([20, 5, 31, 40] * 5)
    frame = HeldOutLoss(blocks, masking_rate=0.3)(checkpoint)
    model, sums, counts = checkpoint.model(), [], []
    for batch in prediction_batches(checkpoint, blocks, 0.3, 0, 64):
        gold = iter(batch.gold)
        for row, mask, selected in zip(batch.ids, batch.attention_mask, batch.selected, strict=True):
            with torch.no_grad():
                logits = model(input_ids=row[mask][None]).logits[0].log_softmax(-1)
            at = selected.nonzero()[:, 0]
            sums.append(-sum(float(logits[t, next(gold)]) for t in at))
            counts.append(len(at))
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
    frame = HeldOutLoss(Blocks.from_rows(texts), masking_rate=0.5)(StandIn())
    assert frame["loss"].item() > 0
    assert frame["stderr"].to_list() == [None]
    assert frame.schema["stderr"] == pl.Float64


def test_nothing_to_predict_is_refused():
    with pytest.raises(UserError, match="1 held-out rows have no token to predict"):
        HeldOutLoss(Blocks.from_rows([[2, 3]]))(StandIn())
    with pytest.raises(UserError, match="no held-out rows"):
        HeldOutLoss(Blocks.from_rows([]))(StandIn())
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
    whole = HeldOutLoss(blocks)(checkpoint)
    assert dict(frame.schema) == {"row": pl.Int32, "position": pl.Int32, "token": pl.Int32, "loss": pl.Float32}
    assert len(frame) == whole["tokens"].item()
    assert frame["loss"].cast(pl.Float64).mean() == pytest.approx(whole["loss"].item(), rel=1e-6)
    assert frame.select("row", "position").is_unique().all()
    assert frame["token"].to_list() == [int(blocks[r][p]) for r, p in frame.select("row", "position").iter_rows()]


@pytest.mark.parametrize("lengths", [[10] * 70, [3, 9, 30, 4, 12] * 15])
def test_causal_token_losses_equal_a_loop_over_rows(lengths):
    checkpoint, blocks = StandIn("llama"), rows(lengths)
    frame = TokenLosses(blocks)(checkpoint)
    model, expected = checkpoint.model(), []
    for number, row in enumerate(blocks):
        ids = torch.from_numpy(row.astype(np.int64))
        with torch.no_grad():
            log_probability = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        expected += [(number, t, int(ids[t]), -float(log_probability[t - 1, ids[t]])) for t in range(1, len(ids))]
    assert frame.select("row", "position", "token").rows() == [each[:3] for each in expected]
    np.testing.assert_allclose(frame["loss"], [each[3] for each in expected], rtol=1e-4, atol=1e-5)


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


def test_tokens_keep_their_order_at_every_checkpoint():
    blocks = rows([30] * 70)
    one, other = (TokenLosses(blocks)(StandIn(seed=seed)) for seed in (0, 1))
    assert one.drop("loss").equals(other.drop("loss"))
    assert not one["loss"].equals(other["loss"])


def test_no_token_to_predict_is_refused():
    with pytest.raises(UserError, match="1 held-out rows have no token to predict"):
        TokenLosses(Blocks.from_rows([[2, 3]]))(StandIn())
    with pytest.raises(UserError, match="no held-out rows"):
        TokenLosses(Blocks.from_rows([]))(StandIn())

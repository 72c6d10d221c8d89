"""Divergence of two models' predictions: against a loop over tokens, and what cannot be compared."""

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models

from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.measurements.divergence import EARLIER, SEEDS, UNIGRAM, divergence, divergence_over_training
from lmdynamics.measurements.losses import TokenLosses, prediction_batches
from lmdynamics.runs.trained import train
from tests.conftest import TINY, refuses
from tests.measurements.conftest import StandIn
from tests.measurements.test_losses import rows


def probabilities(checkpoint: StandIn, blocks: TokenRows) -> list[np.ndarray]:
    """The distribution at every predicted token: each row alone and unpadded, in float64."""
    found = []
    for batch in prediction_batches(checkpoint, blocks, 0.3, 0, len(blocks)):
        for row, selected, length in zip(batch.ids, batch.selected, blocks.lengths, strict=True):
            with torch.no_grad():
                logits = checkpoint.model()(input_ids=row[None, :length]).logits[0, selected[:length]]
            found += list(logits.double().softmax(-1).numpy())
    return found


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_it_is_the_mean_of_both_divergences_summed_over_the_vocabulary(kind):
    one, other, blocks = StandIn(kind), StandIn(kind, seed=1), rows([20, 5, 31, 9])
    frame = divergence(one, {"other": other}, blocks, 0.3)
    ids = [int(i) for row in blocks for i in (row if kind == "bert" else row[1:])]
    counted = [i for i in ids if kind == "llama" or i not in one.tokenizer.all_special_ids]
    counts = np.array([counted.count(i) + 1 for i in range(24)])
    expected, frequencies = [], []
    for p, q in zip(probabilities(one, blocks), probabilities(other, blocks), strict=True):
        forward = sum(float(a * np.log(a / b)) for a, b in zip(p, q, strict=True))
        backward = sum(float(b * np.log(b / a)) for a, b in zip(p, q, strict=True))
        expected.append((forward + backward) / 2)
        u = counts / counts.sum()
        frequencies.append(float((p * np.log(p / u)).sum() + (u * np.log(u / p)).sum()) / 2)
    np.testing.assert_allclose(frame["other"], expected, rtol=1e-3)
    np.testing.assert_allclose(frame[UNIGRAM], frequencies, rtol=1e-3)
    losses = TokenLosses(blocks, 0.3)(one)
    assert frame.select("row", "position", "token").equals(losses.select("row", "position", "token"))
    np.testing.assert_allclose(frame["loss"], losses["loss"], rtol=1e-5)


def test_equal_models_do_not_differ_and_order_does_not_matter():
    one, other, blocks = StandIn(), StandIn(seed=1), rows([20, 12])
    assert divergence(one, {"same": StandIn()}, blocks)["same"].abs().max() == 0
    there, back = divergence(one, {"x": other}, blocks)["x"], divergence(other, {"x": one}, blocks)["x"]
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert there.min() > 0


def test_runs_that_predict_other_things_are_refused():
    one, blocks = StandIn(), rows([20])
    refuses(
        "trained as mlm, .* as clm: they predict different tokens", divergence, one, {"x": StandIn("llama")}, blocks
    )
    words = one.tokenizer.get_vocab()
    swapped = words | {"dog": words["cat"], "cat": words["dog"]}
    tokenizer = type(one.tokenizer)(
        tokenizer_object=Tokenizer(models.WordPiece(swapped, unk_token="[UNK]")), mask_token="[MASK]", pad_token="[PAD]"
    )
    changed = StandIn(seed=1, tokenizer=tokenizer)
    refuses(r"have different tokenizers \(4 tokens differ\)", divergence, one, {"x": changed}, blocks)


def test_random_token_substitution_is_refused(home):
    run = train("grammar-mlm", overrides={**TINY, "objective": "rts"}, name="rts", progress=False)
    refuses("predicts no tokens; compare mlm or clm", divergence, run[12], {"x": run[12]}, run.held_out())


def test_over_training_each_step_has_its_partner_and_its_own_past(tiny_run):
    other = train("grammar-mlm", seed=1, overrides=TINY, name="other", progress=False)
    blocks = tiny_run.held_out()
    frame = divergence_over_training(tiny_run, other, blocks, progress=False)
    assert frame["step"].unique().sort().to_list() == tiny_run.steps
    for step, earlier in ((12, 6), (1, 0)):
        earlier = max(s for s in tiny_run.steps if s <= earlier)
        direct = divergence(tiny_run[step], {SEEDS: other[step], EARLIER: tiny_run[earlier]}, blocks)
        assert frame.filter(step=step).drop("step").equals(direct.select(frame.drop("step").columns))
    assert frame.filter(step=0)[EARLIER].null_count() == frame.filter(step=0).height
    assert frame.filter(pl.col("step") > 0)[EARLIER].null_count() == 0
    shorter = train("grammar-mlm", overrides={**TINY, "training.steps": 7}, name="shorter", progress=False)
    refuses("no step in common", divergence_over_training, tiny_run, shorter, blocks, [12])

"""TwoNN on manifolds of known dimension; weight norm and Fisher trace against plain loops."""

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from lmdynamics.errors import UserError
from lmdynamics.measurements.complexity import FisherTrace, IntrinsicDimension, WeightNorm, two_nn
from lmdynamics.measurements.losses import prediction_batches
from tests.measurements.conftest import StandIn
from tests.measurements.test_losses import rows


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_directions_uniform_on_a_sphere(dimension):
    """Cosine distance is a squared length: half the sphere's dimension comes out, whatever space it lies in."""
    random = np.random.default_rng(0)
    points = random.normal(size=(2000, dimension + 1)) @ np.linalg.qr(random.normal(size=(20, 20)))[0][: dimension + 1]
    scaled = points * random.uniform(0.1, 10, size=(2000, 1))  # length plays no part
    found, used = two_nn(scaled)
    assert used == 1800
    assert found == pytest.approx(dimension / 2, rel=0.08)


def test_repeated_directions_count_once():
    points = np.random.default_rng(1).normal(size=(200, 5))
    assert two_nn(np.concatenate([points, points])) == two_nn(points)


@pytest.mark.parametrize("points", [np.ones((50, 4)), np.eye(2), np.eye(30)])
def test_no_spread_no_dimension(points):
    assert two_nn(points.astype(float))[0] is None


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_sentence_states_are_first_or_last(kind, treebank):
    checkpoint = StandIn(kind)
    states, body = [], checkpoint.model().base_model
    for words in {sentence.words for sentence in treebank}:
        ids = checkpoint.tokenizer(list(words), is_split_into_words=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = body(input_ids=ids).last_hidden_state[0]
        states.append(hidden[0 if kind == "bert" else -1].double().numpy())
    frame = IntrinsicDimension(treebank)(checkpoint)
    expected = two_nn(np.array(states))
    assert frame["points"].item() == pytest.approx(expected[1], abs=2)
    assert frame["dimension"].item() == pytest.approx(expected[0], rel=0.05)
    assert dict(frame.schema) == {"dimension": pl.Float64, "points": pl.Int64}


def test_dimension_from_rows():
    assert IntrinsicDimension(rows([8, 12, 20] * 30))(StandIn())["points"].item() == 81


def test_weight_norm_counts_tied_weights_once():
    model = StandIn().model()
    expected = sum(float((p.detach().double() ** 2).sum()) for p in {id(p): p for p in model.parameters()}.values())
    assert WeightNorm()(StandIn())["norm2"].item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_fisher_trace_equals_backward_passes(kind):
    checkpoint, blocks = StandIn(kind), rows([25, 31, 18, 30, 22])
    frame = FisherTrace(blocks, examples=5, masking_rate=0.4)(checkpoint)
    norms = []
    for example in prediction_batches(checkpoint, blocks, 0.4, 0, 1):
        model = checkpoint.model()
        loss = F.cross_entropy(model(input_ids=example.ids).logits[example.selected], example.gold)
        loss.backward()
        norms.append(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))
    assert frame["examples"].item() == 5
    assert frame["trace"].item() == pytest.approx(np.mean(norms), rel=1e-4)
    assert frame["stderr"].item() == pytest.approx(np.std(norms, ddof=1) / np.sqrt(5), rel=1e-4)


def test_fisher_trace_of_one_row_is_refused():
    with pytest.raises(UserError, match="1 of 1 rows have a token to predict"):
        FisherTrace(rows([25]))(StandIn())

"""Repetition, parallel states and distance of attention on planted models; `support.py` has loops for every family."""

from dataclasses import dataclass

import polars as pl
import pytest
import torch

from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.measurements.precursors import AttentionDistance, Repetition, StateCosine, row_groups
from tests.conftest import refuses
from tests.measurements.conftest import StandIn
from tests.measurements.test_losses import rows

TEXT = rows([20, 32, 31, 40] * 8)  # 16 groups of two rows


@dataclass(frozen=True)
class Constant(StandIn):
    """Predicts one token everywhere: the output bias outweighs all else."""

    def model(self, attention: str = "sdpa", device: str = "cpu"):
        model = super().model(attention, device)
        with torch.no_grad():
            model.get_output_embeddings().bias[7] += 1e4
        return model


@dataclass(frozen=True)
class Collapsed(StandIn):
    """The last layer writes the same state at every position."""

    def model(self, attention: str = "sdpa", device: str = "cpu"):
        model = super().model(attention, device)
        with torch.no_grad():
            model.bert.encoder.layer[-1].output.LayerNorm.weight.zero_()
            model.bert.encoder.layer[-1].output.LayerNorm.bias.uniform_(0.5, 1)
        return model


@dataclass(frozen=True)
class WithoutWeights(StandIn):
    def model(self, attention: str = "sdpa", device: str = "cpu"):
        return super().model("sdpa", device)


def test_a_constant_prediction_is_repeated_everywhere():
    frame = Repetition(TEXT, masking_rate=0.4)(Constant())
    assert frame["repeated"].to_list() == frame["other_rows"].to_list() == [1.0] * 16
    assert frame["in_text"].max() < 0.3
    assert frame["in_text"].equals(Repetition(TEXT, masking_rate=0.4)(StandIn())["in_text"]), "depends on the text only"


def test_collapsed_states_have_cosine_one_and_only_in_the_collapsed_layer():
    frame = StateCosine(TEXT, masking_rate=0.4)(Collapsed())
    last, first = frame.filter(layer=1), frame.filter(layer=0)
    assert last["cosine"].to_list() == pytest.approx([1.0] * 16, abs=1e-6)
    assert last["other_rows"].to_list() == pytest.approx([1.0] * 16, abs=1e-6)
    assert first["cosine"].max() < 0.9


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_attention_has_no_distance_to_itself_but_to_other_heads(kind):
    frame = AttentionDistance(TEXT, StandIn(kind))(StandIn(kind))
    assert frame["distance"].to_list() == [0.0] * 32
    assert frame["other_heads"].min() > 0.1
    there, back = (AttentionDistance(TEXT, StandIn(kind, seed=b))(StandIn(kind, seed=a)) for a, b in ((0, 1), (1, 0)))
    assert there["distance"].to_list() == pytest.approx(back["distance"].to_list(), abs=1e-6)
    assert there["distance"].is_between(0.01, 1).all()


def test_groups_are_neighbouring_rows_of_equal_number():
    assert row_groups(45).tolist() == sorted(row_groups(45))
    sizes = pl.Series(row_groups(45)).value_counts()["count"]
    assert (len(sizes), sizes.min(), sizes.max()) == (20, 2, 3)
    assert row_groups(7).max() == 2
    assert row_groups(1).tolist() == [0]


def test_a_row_without_a_pair_counts_for_nothing():
    """One row of one token, beside two rows with pairs, in a causal model."""
    long, short = rows([30, 30]), TokenRows.from_rows([[5], *(list(row) for row in rows([30, 30]))])
    for measurement in (Repetition, StateCosine):
        with_short, without = measurement(short)(StandIn("llama")), measurement(long)(StandIn("llama"))
        assert with_short.drop("pairs").equals(without.drop("pairs"))
    alone = TokenRows.from_rows([[2, 5, 6]])
    frame = Repetition(alone, masking_rate=0.9)(StandIn("llama"))
    assert frame.select("tokens", "pairs", "other_rows").rows() == [(2, 1, None)]
    nothing = TokenRows.from_rows([[2]])
    refuses("1 held-out rows have no token to predict", Repetition(nothing), StandIn("llama"))
    refuses("1 held-out rows have no token to predict", StateCosine(nothing), StandIn("llama"))


def test_what_cannot_be_compared_is_refused():
    refuses('load with attention="eager"', lambda: AttentionDistance(TEXT, StandIn())(WithoutWeights()))
    refuses("no held-out rows", lambda: AttentionDistance(TokenRows.from_rows([]), StandIn())(StandIn()))
    refuses("42 tokens long, the model takes at most 16", lambda: StateCosine(rows([40]))(StandIn(positions=16)))


def test_the_final_checkpoint_is_part_of_the_key():
    assert AttentionDistance(TEXT, StandIn(seed=1)).key() != AttentionDistance(TEXT, StandIn(seed=2)).key()
    assert AttentionDistance(TEXT, StandIn(seed=1)).key() == AttentionDistance(TEXT, StandIn(seed=1)).key()

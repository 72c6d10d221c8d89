"""Cosines between gradients against one backward pass a row, or a group."""

import numpy as np
import polars as pl
import pytest
import torch

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.errors import UserError
from lmdynamics.measurements.opposition import GroupOpposition, Opposition, row_grams
from lmdynamics.measurements.optimizer_step import parts
from lmdynamics.measurements.per_example import ELEMENTS, Layer
from tests.measurements.conftest import StandIn
from tests.measurements.families import EACH, TIED, naive_gradients, tiny, tiny_tape


def blocks(rows: int = 6, n: int = 10, seed: int = 0) -> Blocks:
    random = np.random.default_rng(seed)
    return Blocks.from_rows([[2, *random.integers(5, 24, n), 3] for _ in range(rows)])


@EACH
@TIED
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_products_equal_a_loop_over_rows(kind, tied, padded):
    tape = tiny_tape(tiny(kind, tied), kind, rows=4, padded=padded)
    by_token, counts = naive_gradients(tape), torch.bincount(tape.rows, minlength=4).clamp(min=1)
    mean = [{name: torch.zeros_like(g) for name, g in by_token[0].items()} for _ in range(4)]
    for of_token, row in zip(by_token, tape.rows.tolist(), strict=True):
        for name, g in of_token.items():
            mean[row][name] += g / counts[row]
    grams = row_grams(tape)
    for level, part, names in parts(tape):
        if level != "module":
            flat = torch.stack([torch.cat([g[name].flatten() for name in names]) for g in mean])
            wanted = flat @ flat.T
            assert torch.allclose(grams[part], wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max())), part


def test_slices_of_a_table_give_the_same(monkeypatch):
    tape = tiny_tape(tiny("llama"), "llama", rows=4)
    whole = row_grams(tape)
    monkeypatch.setitem(ELEMENTS, "cpu", 300)
    for part, gram in row_grams(tape).items():
        assert torch.allclose(gram, whole[part], rtol=1e-10), part


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_frame(kind):
    frame = Opposition(blocks(), examples=5)(StandIn(kind))
    assert frame["part"].unique(maintain_order=True).to_list() == ["all", "embeddings", "layer 0", "layer 1", "head"]
    assert len(frame) == 5 * 15
    assert (frame["a"] <= frame["b"]).all()
    own = frame.filter(pl.col("a") == pl.col("b"))["cosine"].drop_nulls()
    assert np.allclose(own, 1)
    assert frame["cosine"].drop_nulls().is_between(-1, 1).all()
    whole = frame.filter(pl.col("part") == "all")["dot"].to_numpy()
    rest = frame.filter(pl.col("part") != "all").group_by("a", "b", maintain_order=True).agg(pl.col("dot").sum())
    assert np.allclose(whole, rest["dot"])


def test_a_row_twice_agrees_with_itself():
    row = blocks(1).take([0, 0, 0])
    frame = Opposition(row, examples=3)(StandIn("llama"))
    assert np.allclose(frame["cosine"], 1)


def test_groups_equal_a_loop_over_tokens():
    checkpoint, text = StandIn("llama"), blocks(8)
    groups = tuple("odd" if token % 2 else "even" for token in range(24))
    frame = GroupOpposition(text, groups, examples=8)(checkpoint)
    model = checkpoint.model("eager")
    gradients, counts = {}, {}
    for name, parity in (("even", 0), ("odd", 1)):
        losses = []
        for row in text:
            ids = torch.from_numpy(row.astype(np.int64))[None]
            each = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
            losses.append(each[ids[0, 1:] % 2 == parity])
        losses = torch.cat(losses)
        counts[name] = len(losses)
        gradients[name] = torch.cat([g.flatten() for g in torch.autograd.grad(losses.mean(), list(model.parameters()))])
    row = frame.filter(pl.col("part") == "all", pl.col("a") == "even", pl.col("b") == "odd").row(0, named=True)
    wanted = torch.nn.functional.cosine_similarity(gradients["even"], gradients["odd"], dim=0)
    assert row["cosine"] == pytest.approx(float(wanted), abs=1e-4)
    assert (row["tokens_a"], row["tokens_b"]) == (counts["even"], counts["odd"])


def test_groups_for_too_few_ids_are_refused():
    with pytest.raises(UserError, match="give one for every id"):
        GroupOpposition(blocks(), ("one",) * 3)(StandIn("llama"))


def test_one_row_is_refused():
    with pytest.raises(UserError, match="make no pair"):
        Opposition(blocks(1))(StandIn("llama"))


def test_products_that_a_loop_does_not_confirm_are_refused(monkeypatch):
    right = Layer.outer
    monkeypatch.setattr(Layer, "outer", lambda self, *rest: 1.01 * right(self, *rest))
    with pytest.raises(UserError, match="differ from a plain loop's"):
        Opposition(blocks(), examples=4)(StandIn("llama"))

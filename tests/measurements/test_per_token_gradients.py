"""Gradients of single tokens and rows, and cosines between them, against one backward pass each."""

import numpy as np
import polars as pl
import pytest
import torch
import transformers as hf

from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.measurements.gradients import GroupOpposition, Opposition, row_grams, token_sums
from lmdynamics.measurements.losses import Predictions
from lmdynamics.measurements.per_token_gradients import (
    MAX_ELEMENTS,
    Layer,
    Tape,
    directional_derivative,
    gradient,
    parts,
)
from tests.conftest import refuses
from tests.measurements.conftest import StandIn
from tests.measurements.families import EACH, SIZE, TIED, VOCAB, naive_gradients, random_update, tiny, tiny_tape


@EACH
@TIED
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_sizes_of_token_gradients_equal_a_loop_over_tokens(kind, tied, padded):
    model = tiny(kind, tied)
    tape, update = tiny_tape(model, kind, padded=padded), random_update(model)
    sums, sampled = token_sums(tape, update, share=1.0, seed=0)
    naive = naive_gradients(tape)
    assert sampled.tolist() == list(range(len(tape.losses)))
    largest = max(float(g.abs().max()) for of_token in naive for g in of_token.values())
    reach = max(abs(float((of_token[name] * update[name]).sum())) for of_token in naive for name in of_token)
    for name, parameter in model.named_parameters():
        size = sum(of_token[name].abs() for of_token in naive)
        if name not in sums:  # an untied model may hold parameters that nothing reads
            assert not size.any()
            continue
        # some families take softmax and norms in float32 whatever the weights are
        assert torch.allclose(sums[name].size, size, rtol=1e-5, atol=1e-6 * largest), name
        signed = torch.stack([(of_token[name] * update[name]).sum() for of_token in naive])
        assert torch.allclose(sums[name].signed, signed, rtol=1e-5, atol=1e-6 * reach), name
        assert parameter.grad is None


@EACH
def test_how_many_rounds_at_once_changes_nothing(kind):
    model = tiny(kind)
    tape, update = tiny_tape(model, kind), random_update(model)
    one_round, five_rounds = (token_sums(tape, update, 1.0, 0, rounds)[0] for rounds in (1, 5))
    for name in one_round:
        assert torch.allclose(one_round[name].size, five_rounds[name].size, rtol=1e-6, atol=1e-9), name


def test_a_layer_too_large_to_be_formed_at_once_gives_the_same(monkeypatch):
    model = tiny("gpt2")
    tape, update = tiny_tape(model, "gpt2"), random_update(model)
    full, _ = token_sums(tape, update, 1.0, 0)
    monkeypatch.setitem(MAX_ELEMENTS, "cpu", 500)
    sliced, _ = token_sums(tape, update, 1.0, 0)
    for name in full:
        assert torch.allclose(full[name].size, sliced[name].size, rtol=1e-12), name


@EACH
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_forward_mode_equals_a_loop_over_tokens(kind, padded):
    model = tiny(kind)
    tape, update = tiny_tape(model, kind, padded=padded), random_update(model)
    result = directional_derivative(model, update, tape.batch)
    naive = torch.stack([sum((g[n] * update[n]).sum() for n in g) for g in naive_gradients(tape)])
    assert torch.allclose(result, naive, rtol=1e-5, atol=1e-6 * float(naive.abs().max()))


def test_the_gradient_of_all_is_the_sum_of_each():
    model = tiny("llama")
    tape = tiny_tape(model, "llama")
    full, each = gradient(tape.losses, model), naive_gradients(tape)
    for name in full:
        assert torch.allclose(full[name], sum(g[name] for g in each), atol=1e-6), name


def test_rounds_count_the_tokens_of_each_row():
    tape = tiny_tape(tiny("bert"), "bert", rows=5, time=12)
    order = torch.randperm(len(tape.losses), generator=torch.Generator().manual_seed(1))
    for selection in (order, order[:7]):
        rounds, expected = tape.rounds(selection), set(selection.tolist())
        for row in tape.rows.unique():
            mine = [int(rounds[i]) for i in (tape.rows == row).nonzero()[:, 0] if int(i) in expected]
            assert mine == list(range(len(mine)))
        assert set((rounds == -1).nonzero()[:, 0].tolist()) == set(range(len(tape.losses))) - expected
    assert torch.equal(tape.rounds(), tape.rounds(order))


def test_hooks_are_taken_away_again():
    model = tiny("llama")
    tiny_tape(model, "llama")
    assert not any(module._forward_hooks for module in model.modules())


def test_unknown_layers_are_refused_by_name():
    config = hf.MixtralConfig(**SIZE, num_key_value_heads=4, num_local_experts=2, num_experts_per_tok=1)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    refuses("MixtralForCausalLM has the parameter .* in a Mixtral", tiny_tape, model, "llama")


def test_a_norm_of_another_form_is_refused_by_name():
    model = hf.AutoModelForCausalLM.from_config(
        hf.GemmaConfig(**SIZE, num_key_value_heads=4, head_dim=6), attn_implementation="eager"
    ).eval()
    refuses("GemmaRMSNorm.* is not a norm times a weight", tiny_tape, model, "llama")


def test_layers_used_twice_are_refused_by_name():
    model = hf.AutoModelForMaskedLM.from_config(hf.AlbertConfig(**SIZE, embedding_size=12), attn_implementation="eager")
    refuses("AlbertForMaskedLM uses .* more than once", tiny_tape, model.eval(), "bert")


def test_nothing_to_predict_is_refused():
    ids = torch.randint(4, VOCAB, (2, 5))
    no_targets = torch.zeros_like(ids, dtype=torch.bool)
    refuses("no token to predict", Tape, tiny("llama"), Predictions(ids, None, no_targets, ids[no_targets]))


def blocks(rows: int = 6, n: int = 10, seed: int = 0) -> TokenRows:
    random = np.random.default_rng(seed)
    return TokenRows.from_rows([[2, *random.integers(5, 24, n), 3] for _ in range(rows)])


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
            expected = flat @ flat.T
            assert torch.allclose(grams[part], expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max())), part


def test_slices_of_a_table_give_the_same(monkeypatch):
    tape = tiny_tape(tiny("llama"), "llama", rows=4)
    full = row_grams(tape)
    monkeypatch.setitem(MAX_ELEMENTS, "cpu", 300)
    for part, gram in row_grams(tape).items():
        assert torch.allclose(gram, full[part], rtol=1e-10), part


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_frame(kind):
    frame = Opposition(blocks(), examples=5)(StandIn(kind))
    assert frame["part"].unique(maintain_order=True).to_list() == ["all", "embeddings", "layer 0", "layer 1", "head"]
    assert len(frame) == 5 * 15
    assert (frame["a"] <= frame["b"]).all()
    self_cosines = frame.filter(pl.col("a") == pl.col("b"))["cosine"].drop_nulls()
    assert np.allclose(self_cosines, 1)
    assert frame["cosine"].drop_nulls().is_between(-1, 1).all()
    full = frame.filter(pl.col("part") == "all")["dot"].to_numpy()
    by_part = frame.filter(pl.col("part") != "all").group_by("a", "b", maintain_order=True).agg(pl.col("dot").sum())
    assert np.allclose(full, by_part["dot"])


def test_a_row_twice_agrees_with_itself():
    row = blocks(1).take([0, 0, 0])
    frame = Opposition(row, examples=3)(StandIn("llama"))
    assert np.allclose(frame["cosine"], 1)


def test_groups_for_too_few_ids_are_refused():
    refuses("give one for every id", lambda: GroupOpposition(blocks(), ("one",) * 3)(StandIn("llama")))


def test_one_row_is_refused():
    refuses("are not enough for a pair", lambda: Opposition(blocks(1))(StandIn("llama")))


def test_products_that_a_loop_does_not_confirm_are_refused(monkeypatch):
    right = Layer.outer
    monkeypatch.setattr(Layer, "outer", lambda self, *arguments: 1.01 * right(self, *arguments))
    refuses("differ from a plain loop's", lambda: Opposition(blocks(), examples=4)(StandIn("llama")))

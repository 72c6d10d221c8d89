"""Gradients of single tokens and rows against one backward pass each."""

import pytest
import torch
import transformers as hf

from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import Predictions
from lmdynamics.measurements.per_example import ELEMENTS, Tape, directional_derivative, gradient
from lmdynamics.measurements.token_sums import token_sums
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
    one, other = (token_sums(tape, update, 1.0, 0, rounds)[0] for rounds in (1, 5))
    for name in one:
        assert torch.allclose(one[name].size, other[name].size, rtol=1e-6, atol=1e-9), name


def test_a_layer_too_large_to_be_formed_at_once_gives_the_same(monkeypatch):
    model = tiny("gpt2")
    tape, update = tiny_tape(model, "gpt2"), random_update(model)
    whole, _ = token_sums(tape, update, 1.0, 0)
    monkeypatch.setitem(ELEMENTS, "cpu", 500)
    sliced, _ = token_sums(tape, update, 1.0, 0)
    for name in whole:
        assert torch.allclose(whole[name].size, sliced[name].size, rtol=1e-12), name


@EACH
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_forward_mode_equals_a_loop_over_tokens(kind, padded):
    model = tiny(kind)
    tape, update = tiny_tape(model, kind, padded=padded), random_update(model)
    found = directional_derivative(model, update, tape.batch)
    naive = torch.stack([sum((g[n] * update[n]).sum() for n in g) for g in naive_gradients(tape)])
    assert torch.allclose(found, naive, rtol=1e-5, atol=1e-6 * float(naive.abs().max()))


def test_the_gradient_of_all_is_the_sum_of_each():
    model = tiny("llama")
    tape = tiny_tape(model, "llama")
    whole, each = gradient(tape.losses, model), naive_gradients(tape)
    for name in whole:
        assert torch.allclose(whole[name], sum(g[name] for g in each), atol=1e-6), name


def test_rounds_count_the_tokens_of_each_row():
    tape = tiny_tape(tiny("bert"), "bert", rows=5, time=12)
    order = torch.randperm(len(tape.losses), generator=torch.Generator().manual_seed(1))
    for among in (order, order[:7]):
        rounds, wanted = tape.rounds(among), set(among.tolist())
        for row in tape.rows.unique():
            mine = [int(rounds[i]) for i in (tape.rows == row).nonzero()[:, 0] if int(i) in wanted]
            assert mine == list(range(len(mine)))
        assert set((rounds == -1).nonzero()[:, 0].tolist()) == set(range(len(tape.losses))) - wanted
    assert torch.equal(tape.rounds(), tape.rounds(order))


def test_hooks_are_taken_away_again():
    model = tiny("llama")
    tiny_tape(model, "llama")
    assert not any(module._forward_hooks for module in model.modules())


def test_unknown_layers_are_refused_by_name():
    config = hf.MixtralConfig(**SIZE, num_key_value_heads=4, num_local_experts=2, num_experts_per_tok=1)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(UserError, match="MixtralForCausalLM has the parameter .* in a Mixtral"):
        tiny_tape(model, "llama")


def test_a_norm_of_another_form_is_refused_by_name():
    model = hf.AutoModelForCausalLM.from_config(
        hf.GemmaConfig(**SIZE, num_key_value_heads=4, head_dim=6), attn_implementation="eager"
    ).eval()
    with pytest.raises(UserError, match="GemmaRMSNorm.* is no norm times a weight"):
        tiny_tape(model, "llama")


def test_layers_used_twice_are_refused_by_name():
    model = hf.AutoModelForMaskedLM.from_config(hf.AlbertConfig(**SIZE, embedding_size=12), attn_implementation="eager")
    with pytest.raises(UserError, match="AlbertForMaskedLM uses .* more than once"):
        tiny_tape(model.eval(), "bert")


def test_nothing_to_predict_is_refused():
    ids = torch.randint(4, VOCAB, (2, 5))
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    with pytest.raises(UserError, match="no token to predict"):
        Tape(tiny("llama"), Predictions(ids, None, nothing, ids[nothing]))

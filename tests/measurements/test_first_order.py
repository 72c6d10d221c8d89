"""C_g, C_ug, C_uG and D of first-order changes against the published definitions, token by token in float64."""

import numpy as np
import polars as pl
import pytest
import torch

from lmdynamics.errors import UserError
from lmdynamics.measurements.optimizer_step import ROUNDING, coefficients, parts
from lmdynamics.measurements.per_example import Layer, Tape
from tests.measurements.families import EACH, TIED, naive_gradients, random_update, tiny, tiny_tape


def as_defined(tape, update) -> dict[str, float]:
    """The method as its description gives it: T backward passes, tokens × parameters in memory."""
    naive = naive_gradients(tape)
    g = torch.stack([torch.cat([of_token[name].flatten() for name in update]) for of_token in naive]).double()
    p = g * torch.cat([u.flatten() for u in update.values()]).double()
    total, size = p.abs().sum(), g.abs().sum(0)
    counted = size > ROUNDING * size.max()
    return {
        "sum_abs": float(total),
        "C_g": float(p.sum(0).abs().sum() / total),
        "C_ug": float(p.sum(1).abs().sum() / total),
        "C_uG": float(p.sum().abs() / p.sum(0).abs().sum()),
        "interference": float(1 - p.sum().abs() / p.sum(1).abs().sum()),
        "gradient_interference": float((1 - g.sum(0).abs() / size)[counted].mean()),
    }


@EACH
@TIED
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_equals_the_definitions(kind, tied, dtype):
    model = tiny(kind, tied)
    update = random_update(model)
    wanted = as_defined(tiny_tape(model, kind), update)
    model = model.to(dtype)
    row = coefficients(tiny_tape(model, kind), update).row(0, named=True)
    assert (row["level"], row["part"], row["C_g_stderr"]) == ("all", "all", 0)
    for name, value in wanted.items():
        # float32: relative to what cancels, of which C_uG and 1 - D are what is left
        scale = abs(value) if name != "C_uG" or dtype == torch.float64 else max(value, 0.05)
        # a mean over coordinates counts those near rounding, too
        tolerance = 1e-3 if name == "gradient_interference" and dtype == torch.float32 else 1e-5
        assert abs(row[name] - value) <= tolerance * scale, (name, row[name], value)


@EACH
def test_the_identity_holds_in_every_part(kind):
    model = tiny(kind)
    frame = coefficients(tiny_tape(model, kind), random_update(model))
    assert frame["identity_error"].max() < 1e-6
    kept = 1 - frame["interference"]
    assert np.allclose(kept, frame["C_g"] * frame["C_uG"] / frame["C_ug"], atol=1e-6)
    for name in ("C_g", "C_ug", "C_uG", "interference"):
        assert frame[name].is_between(0, 1 + 1e-9).all()


@EACH
def test_parts_share_out_every_parameter_once(kind):
    tape = tiny_tape(tiny(kind), kind)
    names = sorted(name for name, _ in tape.model.named_parameters())
    found = list(parts(tape))
    for level in ("all", "layer", "module"):
        assert sorted(name for at, _, own in found if at == level for name in own) == names
    layers = [part for level, part, _ in found if level == "layer"]
    assert layers == ["embeddings", "layer 0", "layer 1", "head"]


def test_sums_of_the_parts_are_those_of_all():
    model = tiny("neox")
    frame = coefficients(tiny_tape(model, "neox"), random_update(model))
    total = frame["sum_abs"][0]
    for level in ("layer", "module"):
        assert frame.filter(pl.col("level") == level)["sum_abs"].sum() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_sample_of_tokens_is_unbiased_and_knows_its_error(kind):
    model = tiny(kind)
    tape, update = tiny_tape(model, kind, rows=8, time=24), random_update(model)
    exact = coefficients(tape, update).row(0, named=True)
    drawn = [coefficients(tape, update, share=0.4, seed=seed).row(0, named=True) for seed in range(60)]
    off = np.array([row["C_g"] - exact["C_g"] for row in drawn])
    errors = np.array([row["C_g_stderr"] for row in drawn])
    assert abs(off.mean()) < 4 * off.std(ddof=1) / np.sqrt(len(off))
    assert 0.85 <= np.mean(np.abs(off) < 1.96 * errors) <= 1.0
    assert errors.mean() == pytest.approx(off.std(ddof=1), rel=0.4)
    assert all(row["interference"] == pytest.approx(exact["interference"], abs=1e-9) for row in drawn)
    assert all(row["gradient_interference"] is None for row in drawn)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_share_is_that_of_the_predicted_tokens(kind, monkeypatch):
    """Masked rows predict a few tokens each: an equal number from each row was most of them."""
    model = tiny(kind)
    tape, update = tiny_tape(model, kind, rows=8, time=24), random_update(model)
    formed = []
    deltas = Tape.token_deltas

    def counted(self, *rest):
        for numbers, made in deltas(self, *rest):
            formed.extend(numbers[numbers >= 0].tolist() if self is tape else [])
            yield numbers, made

    monkeypatch.setattr(Tape, "token_deltas", counted)
    found = coefficients(tape, update, share=0.3)
    assert len(formed) == len(set(formed)) == round(0.3 * len(tape.losses))
    assert found["sampled"].unique().to_list() == [len(formed)]


def test_a_small_sample_is_not_smaller_than_its_error_can_be_told():
    model = tiny("bert")
    tape = tiny_tape(model, "bert", rows=4, time=24)
    assert coefficients(tape, random_update(model), share=0.05)["sampled"][0] == 12
    few = tiny_tape(model, "bert", rows=1, time=12)
    assert coefficients(few, random_update(model), share=0.05)["sampled"][0] == len(few.losses) < 12


def test_a_sample_of_all_tokens_is_exact():
    model = tiny("gpt2")
    tape, update = tiny_tape(model, "gpt2"), random_update(model)
    one, other = (coefficients(tape, update, share=share) for share in (1.0, 0.999))
    for name in ("sum_abs", "C_g", "C_ug", "C_uG", "interference"):
        assert np.allclose(one[name], other[name], rtol=1e-6), name
    assert np.allclose(other["C_g_stderr"], 0)


def test_an_update_of_nothing_is_refused():
    model = tiny("llama")
    with pytest.raises(UserError, match="changes no token's loss"):
        coefficients(tiny_tape(model, "llama"), {name: 0 * p.detach() for name, p in model.named_parameters()})


def test_gradients_that_a_loop_does_not_confirm_are_refused(monkeypatch):
    """The check at run time: a layer whose products were formed wrongly does not go through."""
    model = tiny("llama")
    tape, right = tiny_tape(model, "llama"), Layer.outer
    monkeypatch.setattr(Layer, "outer", lambda self, *rest: 1.01 * right(self, *rest))
    with pytest.raises(UserError, match=r"by model\.\S+ of LlamaForCausalLM differ from a plain loop's"):
        coefficients(tape, random_update(model))

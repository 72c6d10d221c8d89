"""One optimizer step from a checkpoint against training itself; C_g, C_ug, C_uG and D against their definitions."""

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import Predictions
from lmdynamics.measurements.optimizer_step import (
    ROUNDING,
    Coefficients,
    OneStep,
    Step,
    Text,
    coefficients,
    random_direction,
)
from lmdynamics.measurements.per_token_gradients import Layer, Tape, parts
from lmdynamics.runs.run import Run
from lmdynamics.runs.trained import train
from lmdynamics.training import layout
from lmdynamics.training.batches import Batches, open_corpus
from lmdynamics.training.masking import Masker
from tests.conftest import TINY, refuses
from tests.measurements.families import EACH, TIED, naive_gradients, random_update, tiny, tiny_tape


@pytest.fixture
def make(home):
    def trained_run(objective: str = "clm", **changes) -> Run:
        changes = {**TINY, "objective": objective, **changes}
        return train("grammar-mlm", overrides=changes, name="tiny", progress=False)

    return trained_run


QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def batches_of(run: Run) -> Batches:
    """What training took at each of its steps."""
    recipe, corpus = run.recipe, open_corpus(run.recipe)
    masker = None if run.objective == "clm" else Masker.for_tokenizer(corpus.tokenizer)
    size, pad = recipe.training.batch_size, corpus.tokenizer.pad_token_id
    return Batches(corpus.train, size, recipe.seed, pad, masker, recipe.schedule, recipe.training.steps)


def is_that_of_training(update: dict[str, torch.Tensor], run: Run, tolerance: float = 2e-3) -> bool:
    """Whether an update is what took the weights from step 1 to step 2, clipping and all."""
    before, after = (load_file(run[step].folder / layout.WEIGHTS) for step in (1, 2))
    moved = {name: after[name] - before[name] for name in after}
    largest = max(float(change.abs().max()) for change in moved.values())
    return largest > 0 and all(
        torch.allclose(update[name], change, atol=tolerance * largest) for name, change in moved.items()
    )


@pytest.mark.parametrize("objective", ["mlm", "clm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_step_is_that_of_training(make, objective, precision):
    run = make(objective, clip=0.05, precision=precision, **QUIET)
    batch = batches_of(run)[1]
    predictions = Predictions(batch.ids, batch.attention_mask, batch.selected, batch.targets[batch.selected])
    tolerance = 2e-3 if precision == "fp32" else 0.3  # Adam divides small gradients by their own size
    assert is_that_of_training(Step(run[1]).update(Text(predictions, pl.DataFrame())), run, tolerance)


@pytest.mark.parametrize("masking", ["subset-linear-0.6-0.3", "linear-0.6-0.3"])
def test_the_loss_is_taken_on_the_tokens_that_training_took(make, masking):
    """The rows of training's second batch, as the second batch of a measurement with the run's own seed."""
    run = make("mlm", masking=masking, **QUIET)
    batches = batches_of(run)
    rows = [int(i) for i in batches._order(0)[1]]
    step = Step(run[1])
    blocks = batches.rows.take([*rows, *rows, 0])
    (text,) = [stepped for b, stepped, _ in step.batches(blocks, 2, 1, run.recipe.seed) if b == 1]
    assert torch.equal(text.batch.ids, batches[1].ids)
    assert torch.equal(text.batch.selected, batches[1].selected)
    assert is_that_of_training(step.update(text), run)


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_changes_are_those_of_each_token(make, objective):
    run = make(objective)
    text = run.held_out()
    frame = OneStep(text, batches=2, batch_size=4, held_out=5)(run[8])
    assert frame["batch"].unique().to_list() == [0, 1]
    for split, rows in (("stepped", set(range(8))), ("held out", set(range(8, 13)))):
        result = set(frame.filter(pl.col("split") == split)["row"])
        assert result == rows if objective == "clm" else result and result <= rows  # a short row may have no mask
    for row, position, token in frame.select("row", "position", "token").unique().iter_rows():
        assert text[row][position] == token

    step = Step(run[8], 4)
    _, stepped, held_out = next(iter(step.batches(text, 2, 5, 0)))
    update = step.update(stepped)
    mine = frame.filter(pl.col("batch") == 0, pl.col("direction") == "update")
    for split, rows in (("stepped", stepped), ("held out", held_out)):
        losses = []
        for moved in (False, True):
            model = run[8].model("sdpa")
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p += update[name] if moved else 0
                b = rows.batch
                logits = model(input_ids=b.ids, attention_mask=b.attention_mask).logits
                losses.append(F.cross_entropy(logits[b.selected], b.gold, reduction="none"))
        result = mine.filter(pl.col("split") == split)
        assert result["loss"].to_list() == pytest.approx(losses[0].tolist(), rel=1e-4)
        assert result["change"].to_list() == pytest.approx((losses[1] - losses[0]).tolist(), abs=2e-5)


def test_a_small_step_agrees_with_its_first_order_prediction(make):
    run = make(lr=1e-5)
    frame = OneStep(run.held_out(), batches=1, batch_size=8, held_out=8)(run[8])
    for (_, direction), part in frame.group_by("split", "direction"):
        assert part.select(pl.corr("change", "first_order")).item() > (0.99 if direction == "update" else 0.9)


def test_the_batch_stepped_on_gains_and_a_random_step_does_nothing(make):
    run = make()
    frame = OneStep(run.held_out(), batches=3, batch_size=8)(run[4])
    means = dict(frame.group_by("split", "direction").agg(pl.col("change").mean()).select(
        pl.concat_str("split", "direction", separator=" "), "change"
    ).iter_rows())  # fmt: skip
    assert means["stepped update"] < 0
    assert abs(means["stepped random"]) < abs(means["stepped update"]) / 3


def test_the_model_is_put_back(make):
    run = make()
    step = Step(run[4], 4)
    _, stepped, _ = next(iter(step.batches(run.held_out(), 1, 4, 0)))
    update = step.update(stepped)
    before = step.losses(stepped)
    with step.applied(update):
        assert not torch.equal(step.losses(stepped), before)
    assert torch.equal(step.losses(stepped), before)
    assert all(torch.equal(repeated, update[name]) for name, repeated in step.update(stepped).items())


def test_a_random_direction_is_as_long_in_every_tensor():
    update = {"a": torch.randn(3, 4), "b": torch.randn(5), "zero": torch.zeros(2)}
    result = random_direction(update, 0)
    for name, u in update.items():
        assert float(result[name].norm()) == pytest.approx(float(u.norm()), rel=1e-5)
    assert torch.equal(result["a"], random_direction(update, 0)["a"])
    assert not torch.equal(result["a"], random_direction(update, 1)["a"])


def test_coefficients_of_a_checkpoint(make):
    run = make()
    frame = Coefficients(run.held_out(), batches=2, batch_size=4, rows=3)(run[8])
    assert frame.filter(pl.col("level") == "all")["batch"].to_list() == [0, 1]
    assert frame["identity_error"].max() < 1e-6
    single = Coefficients(run.held_out(), batches=2, batch_size=4, rows=3, precision="float32")(run[8])
    assert single["C_g"][0] == pytest.approx(frame["C_g"][0], rel=1e-4)


def test_what_cannot_be_stepped_is_refused(make, tmp_path):
    run = make(decay="linear")
    text = run.held_out()
    (run[8].folder / layout.TRAINING_STATE).unlink()
    refuses("has no optimizer state at step 8", lambda: OneStep(text)(run[8]))
    refuses("learning rate of tiny is 0 at step 12", lambda: OneStep(text)(run[12]))
    refuses("need more than", lambda: OneStep(text, batches=1000)(run[4]))
    refuses("choose float32 or float64", lambda: Coefficients(text, precision="int8")(run[4]))
    (run.folder / "run.json").unlink()
    refuses("its optimizer is unknown", lambda: OneStep(text)(Run(run.folder)[4]))


def test_a_penalty_is_refused(make):
    run = make("mlm", stages=1.0)
    refuses("syntactic penalty", lambda: OneStep(run.held_out())(run[4]))


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
    expected = as_defined(tiny_tape(model, kind), update)
    model = model.to(dtype)
    row = coefficients(tiny_tape(model, kind), update).row(0, named=True)
    assert (row["level"], row["part"], row["C_g_stderr"]) == ("all", "all", 0)
    for name, value in expected.items():
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
    net_share = 1 - frame["interference"]
    assert np.allclose(net_share, frame["C_g"] * frame["C_uG"] / frame["C_ug"], atol=1e-6)
    for name in ("C_g", "C_ug", "C_uG", "interference"):
        assert frame[name].is_between(0, 1 + 1e-9).all()


@EACH
def test_parts_share_out_every_parameter_once(kind):
    tape = tiny_tape(tiny(kind), kind)
    names = sorted(name for name, _ in tape.model.named_parameters())
    all_parts = list(parts(tape))
    for level in ("all", "layer", "module"):
        assert (
            sorted(name for other_level, _, part_names in all_parts if other_level == level for name in part_names)
            == names
        )
    layers = [part for level, part, _ in all_parts if level == "layer"]
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
    samples = [coefficients(tape, update, share=0.4, seed=seed).row(0, named=True) for seed in range(30)]
    off = np.array([row["C_g"] - exact["C_g"] for row in samples])
    errors = np.array([row["C_g_stderr"] for row in samples])
    assert abs(off.mean()) < 4 * off.std(ddof=1) / np.sqrt(len(off))
    assert errors.mean() == pytest.approx(off.std(ddof=1), rel=0.4)
    assert all(row["interference"] == pytest.approx(exact["interference"], abs=1e-9) for row in samples)
    assert all(row["gradient_interference"] is None for row in samples)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_share_is_that_of_the_predicted_tokens(kind, monkeypatch):
    """Masked rows predict a few tokens each: an equal number from each row was most of them."""
    model = tiny(kind)
    tape, update = tiny_tape(model, kind, rows=8, time=24), random_update(model)
    formed = []
    deltas = Tape.token_deltas

    def counted(self, *arguments):
        for numbers, by_layer in deltas(self, *arguments):
            formed.extend(numbers[numbers >= 0].tolist() if self is tape else [])
            yield numbers, by_layer

    monkeypatch.setattr(Tape, "token_deltas", counted)
    result = coefficients(tape, update, share=0.3)
    assert len(formed) == len(set(formed)) == round(0.3 * len(tape.losses))
    assert result["sampled"].unique().to_list() == [len(formed)]


def test_a_small_sample_is_large_enough_for_its_standard_error():
    model = tiny("bert")
    tape = tiny_tape(model, "bert", rows=4, time=24)
    assert coefficients(tape, random_update(model), share=0.05)["sampled"][0] == 12
    few = tiny_tape(model, "bert", rows=1, time=12)
    assert coefficients(few, random_update(model), share=0.05)["sampled"][0] == len(few.losses) < 12


def test_a_sample_of_all_tokens_is_exact():
    model = tiny("gpt2")
    tape, update = tiny_tape(model, "gpt2"), random_update(model)
    exact, sampled = (coefficients(tape, update, share=share) for share in (1.0, 0.999))
    for name in ("sum_abs", "C_g", "C_ug", "C_uG", "interference"):
        assert np.allclose(exact[name], sampled[name], rtol=1e-6), name
    assert np.allclose(sampled["C_g_stderr"], 0)


def test_an_update_of_nothing_is_refused():
    model = tiny("llama")
    with pytest.raises(UserError, match="changes no token's loss"):
        coefficients(tiny_tape(model, "llama"), {name: 0 * p.detach() for name, p in model.named_parameters()})


def test_gradients_that_a_loop_does_not_confirm_are_refused(monkeypatch):
    """The check at run time: a layer whose products were formed wrongly does not go through."""
    model = tiny("llama")
    tape, right = tiny_tape(model, "llama"), Layer.outer
    monkeypatch.setattr(Layer, "outer", lambda self, *arguments: 1.01 * right(self, *arguments))
    refuses(r"by model\.\S+ of LlamaForCausalLM differ from a plain loop's", coefficients, tape, random_update(model))

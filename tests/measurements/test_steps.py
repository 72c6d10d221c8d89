"""One optimizer step from a checkpoint against training itself, and against measuring by hand."""

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import Predictions
from lmdynamics.measurements.optimizer_step import Coefficients, OneStep, Step, Text, random_direction
from lmdynamics.runs.run import Run
from lmdynamics.runs.trained import train
from lmdynamics.training import layout
from lmdynamics.training.batches import Batches, open_corpus
from lmdynamics.training.masking import Masker
from tests.conftest import TINY


@pytest.fixture
def make(home):
    def of(objective: str = "clm", **changes) -> Run:
        changes = {**TINY, "objective": objective, **changes}
        return train("grammar-mlm", overrides=changes, name="tiny", progress=False)

    return of


@pytest.mark.parametrize("objective", ["mlm", "clm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_step_is_that_of_training(make, objective, precision):
    """From step 1 on the batch that training took there to the weights of step 2, clipping and all."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    run = make(objective, clip=0.05, precision=precision, **quiet)
    recipe, corpus = run.recipe, open_corpus(run.recipe)
    masker = None if objective == "clm" else Masker.for_tokenizer(corpus.tokenizer)
    batch = Batches(
        corpus.train, recipe.training.batch_size, recipe.seed, corpus.tokenizer.pad_token_id, masker, recipe.schedule,
        recipe.training.steps,
    )[1]  # fmt: skip
    seen = Predictions(batch.ids, batch.attention_mask, batch.selected, batch.targets[batch.selected])
    update = Step(run[1]).update(Text(seen, pl.DataFrame()))
    before, after = (load_file(run[step].folder / layout.WEIGHTS) for step in (1, 2))
    largest = max(float((after[name] - before[name]).abs().max()) for name in after)
    assert largest > 0
    tolerance = 2e-3 if precision == "fp32" else 0.3  # Adam divides small gradients by their own size
    for name in after:
        assert torch.allclose(update[name], after[name] - before[name], atol=tolerance * largest), name


@pytest.mark.parametrize("masking", ["subset-linear-0.6-0.3", "linear-0.6-0.3"])
def test_the_loss_is_taken_on_the_tokens_that_training_took(make, masking):
    """The rows of training's second batch, as the second batch of a measurement with the run's own seed."""
    run = make("mlm", masking=masking, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    recipe, corpus = run.recipe, open_corpus(run.recipe)
    size, masker = recipe.training.batch_size, Masker.for_tokenizer(corpus.tokenizer)
    batches = Batches(
        corpus.train, size, recipe.seed, corpus.tokenizer.pad_token_id, masker, recipe.schedule, recipe.training.steps
    )
    taken = batches[1]
    rows = [int(i) for i in batches._order(0)[1]]
    blocks = corpus.train.take([*rows, *rows, 0])
    step = Step(run[1])
    (text,) = [stepped for b, stepped, _ in step.batches(blocks, 2, 1, recipe.seed) if b == 1]
    assert torch.equal(text.batch.ids, taken.ids)
    assert torch.equal(text.batch.selected, taken.selected)
    update = step.update(text)
    before, after = (load_file(run[at].folder / layout.WEIGHTS) for at in (1, 2))
    largest = max(float((after[name] - before[name]).abs().max()) for name in after)
    assert largest > 0
    for name in after:
        assert torch.allclose(update[name], after[name] - before[name], atol=2e-3 * largest), name


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_changes_are_those_of_each_token(make, objective):
    run = make(objective)
    text = run.held_out()
    frame = OneStep(text, batches=2, batch_size=4, held_out=5)(run[8])
    assert frame["batch"].unique().to_list() == [0, 1]
    for split, rows in (("stepped", set(range(8))), ("held out", set(range(8, 13)))):
        found = set(frame.filter(pl.col("split") == split)["row"])
        assert found == rows if objective == "clm" else found and found <= rows  # a short row may have no mask
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
        found = mine.filter(pl.col("split") == split)
        assert found["loss"].to_list() == pytest.approx(losses[0].tolist(), rel=1e-4)
        assert found["change"].to_list() == pytest.approx((losses[1] - losses[0]).tolist(), abs=2e-5)


def test_a_small_step_does_what_first_order_foretells(make):
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
    with step.taken(update):
        assert not torch.equal(step.losses(stepped), before)
    assert torch.equal(step.losses(stepped), before)
    assert all(torch.equal(again, update[name]) for name, again in step.update(stepped).items())


def test_a_random_direction_is_as_long_in_every_tensor():
    update = {"a": torch.randn(3, 4), "b": torch.randn(5), "zero": torch.zeros(2)}
    found = random_direction(update, 0)
    for name, u in update.items():
        assert float(found[name].norm()) == pytest.approx(float(u.norm()), rel=1e-5)
    assert torch.equal(found["a"], random_direction(update, 0)["a"])
    assert not torch.equal(found["a"], random_direction(update, 1)["a"])


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
    with pytest.raises(UserError, match="keeps no optimizer state at step 8"):
        OneStep(text)(run[8])
    with pytest.raises(UserError, match="learning rate of tiny is 0 at step 12"):
        OneStep(text)(run[12])
    with pytest.raises(UserError, match="need more than"):
        OneStep(text, batches=1000)(run[4])
    with pytest.raises(UserError, match="choose float32 or float64"):
        Coefficients(text, precision="int8")(run[4])
    (run.folder / "run.json").unlink()
    with pytest.raises(UserError, match="its optimizer is not known"):
        OneStep(text)(Run(run.folder)[4])


def test_a_penalty_is_refused(make):
    run = make("mlm", stages=1.0)
    with pytest.raises(UserError, match="syntactic penalty"):
        OneStep(run.held_out())(run[4])

"""Steps in which no token is predicted have no loss, and padding is never predicted."""

import numpy as np
import polars as pl
import pytest
import torch

from lmdynamics import charts
from lmdynamics.analysis.intervals import loss_by_bin, steps_without_loss
from lmdynamics.corpora.blocks import Blocks
from lmdynamics.experiments.reading import read_curves
from lmdynamics.explorers.training import describe
from lmdynamics.measurements.losses import prediction_batches
from lmdynamics.runs.live import LiveLog, read_live
from lmdynamics.runs.trained import train
from lmdynamics.training.batches import Batches, open_corpus, pad
from lmdynamics.training.masking import Masker, parse_schedule
from lmdynamics.training.recipes import load_recipe
from tests.conftest import TINY

NO_PAD = Masker(mask_id=4, vocab_size=100, special_ids=(2, 3, 4))  # the tokenizer declares no pad token
ROWS = Blocks.from_rows([[2, *range(5, 5 + length), 3] for length in (2, 9, 30, 30)])


@pytest.fixture
def short_lines(tmp_path):
    """Rows of three words, read one at a time at a masking rate that falls to 2 %."""
    words = ["dogs", "cats", "birds", "see", "hear", "like", "trees", "cars", "boats"]
    rng = np.random.default_rng(0)
    text = "\n".join(" ".join(rng.choice(words, 3)) for _ in range(300)) + "\n"
    (tmp_path / "lines.txt").write_text(text)
    sizes = {name: value for name, value in TINY.items() if name.startswith("model.")}
    return {
        **sizes,
        "corpus.source": str(tmp_path / "lines.txt"),
        "corpus.block_size": 5,
        "corpus.vocab_size": 64,
        "corpus.held_out": 0.05,
        "training.steps": 60,
        "training.batch_size": 1,
        "training.warmup_steps": 2,
        "checkpoints.per_doubling": 1,
        "masking": "linear-0.15-0.02",
    }


def test_a_step_without_a_target_has_no_loss(short_lines):
    run = train("english-mlm", overrides=short_lines, name="short", progress=False)
    recipe = load_recipe("english-mlm", overrides=short_lines)
    corpus = open_corpus(recipe)
    masker = Masker.for_tokenizer(corpus.tokenizer)
    batches = Batches(
        corpus.train, 1, recipe.seed, corpus.tokenizer.pad_token_id, masker, recipe.schedule, recipe.training.steps
    )
    empty = [not batches[step].selected.any() for step in range(60)]
    assert 20 < sum(empty) < 55
    assert run.log["loss"].is_null().to_list() == empty
    assert run.log["loss"].drop_nulls().min() > 0
    assert f"{sum(empty)} of 60 steps ({sum(empty) / 60:.1%}) had no token to predict" in steps_without_loss(run.log)


def test_averages_and_charts_leave_steps_without_a_loss_out():
    losses = [5 - 0.01 * step if step % 3 else None for step in range(120)]
    log = pl.DataFrame({"step": range(120), "loss": losses})
    known = log.drop_nulls("loss")
    assert loss_by_bin(log).equals(loss_by_bin(known))
    curves = read_curves(log.select("step", "loss"))
    assert curves.frame["loss"].to_list() == known["loss"].to_list()
    assert any(f"{log['loss'].null_count()} of 120 rows have no number as loss" in note for note in curves.notes)
    chart = charts.loss_over_training(log)
    assert any("had no token to predict" in line for line in chart.title.subtitle)
    assert f"to {known['loss'][-1]:.2f} nats" in chart.description
    assert steps_without_loss(known) == ""


def test_a_live_log_keeps_steps_without_a_loss(tmp_path):
    log = LiveLog(tmp_path / "log.parquet")
    for step, loss in enumerate([torch.tensor(1.5), None, torch.tensor(2.5)]):
        log.add(step, loss, 0.1, 0.15, 3, 1.0 + step)
    log.tell()
    assert read_live(tmp_path)["loss"].to_list() == [1.5, None, 2.5]
    log.write()
    assert read_live(tmp_path)["loss"].to_list() == [1.5, None, 2.5]
    assert "penalty" in log.frame.columns


def test_a_diverged_loss_stays_one(tmp_path):
    log = LiveLog(tmp_path / "log.parquet")
    log.add(0, torch.tensor(float("nan")), 0.1, 0.15, 3, 1.0)
    log.write()
    assert log.frame["loss"].is_nan().item()


def test_the_live_line_shows_the_last_loss_there_is():
    class Ten:
        steps = 10

    log = pl.DataFrame({"step": [0, 1], "loss": [2.0, None], "seconds": [0.0, 1.0]})
    assert "loss 2.000" in describe("training", Ten(), log)
    assert "1 of 2 steps (50.0%) had no token to predict" in describe("training", Ten(), log)
    assert "loss" not in describe("training", Ten(), log.tail(1)).split("had no")[0]


@pytest.mark.parametrize("schedule", ["constant-0.9", "subset-linear-0.9-0.5"])
@pytest.mark.parametrize("substitute", [False, True])
def test_training_never_selects_padding(schedule, substitute):
    batches = Batches(ROWS, 4, 0, 7, NO_PAD, parse_schedule(schedule), 10, substitute)
    for step in range(10):
        batch = batches[step]
        assert batch.selected.any()
        assert not (batch.selected & ~batch.attention_mask).any()
        assert (batch.ids[~batch.attention_mask] == 7).all()


@pytest.mark.parametrize("objective", ["mlm", "rts", "clm"])
def test_evaluation_never_selects_padding(objective):
    class Tokenizer:
        mask_token_id, pad_token_id, all_special_ids = 4, None, [2, 3, 4]

        def __len__(self):
            return 100

    class Checkpoint:
        tokenizer = Tokenizer()

    Checkpoint.objective = objective
    (batch,) = prediction_batches(Checkpoint(), ROWS, 0.9, 0, 4)
    assert batch.selected.any()
    assert not (batch.selected & ~batch.attention_mask).any()
    assert (batch.ids[~batch.attention_mask] == 0).all()


def test_where_padding_is_declared_the_masks_are_the_same():
    ids, padded = pad([ROWS[i] for i in range(4)], 0)
    declared = Masker(mask_id=4, vocab_size=100, special_ids=(0, 2, 3, 4))
    one, other = (declared(ids, 0.5, torch.Generator().manual_seed(1), padded=where) for where in (None, padded))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

"""The loop: equal to a naive one, exact when resumed, the same on several processes; steps that predict nothing."""

import os
import signal
import subprocess
import threading
import time
from random import Random

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lmdynamics import charts
from lmdynamics.analysis.intervals import loss_by_bin, steps_without_loss
from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.experiments.reading import read_curves
from lmdynamics.explorers.training import describe
from lmdynamics.hub.suites import open_run
from lmdynamics.measurements.losses import prediction_batches
from lmdynamics.runs.trained import train
from lmdynamics.training import layout
from lmdynamics.training.batches import Batches, made_ahead, open_corpus, pad
from lmdynamics.training.loop import build_model
from lmdynamics.training.masking import Masker, parse_schedule
from lmdynamics.training.recipes import checkpoint_steps, load_recipe
from tests.conftest import TINY
from tests.runs.trainings import command


def weights(run, step=None) -> dict[str, torch.Tensor]:
    return load_file(run[step if step is not None else run.steps[-1]].folder / "model.safetensors")


def same(run, other) -> bool:
    a, b = weights(run), weights(other)
    logs = [r.log.drop("seconds") for r in (run, other)]
    return all(torch.equal(a[name], b[name]) for name in a) and logs[0].equals(logs[1])


def test_equals_a_naive_loop():
    """Full logits, plain cross-entropy, plain AdamW; the loop takes a shortcut in each."""
    recipe = load_recipe("grammar-mlm", overrides=TINY)
    run = train("grammar-mlm", overrides=TINY, name="fast", progress=False)
    corpus = open_corpus(recipe)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, corpus).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    batches = Batches(corpus.train, 8, 0, 0, Masker.for_tokenizer(corpus.tokenizer))
    losses = []
    for step in range(12):
        batch = batches[step]
        mask = None if batch.attention_mask is None else batch.attention_mask.long()
        logits = model(input_ids=batch.ids, attention_mask=mask).logits
        labels = batch.targets.masked_fill(~batch.selected, -100)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.training.lr_at(step)
        optimizer.step()
        losses.append(loss.item())
    assert run.log["loss"].to_list() == pytest.approx(losses, rel=1e-4)
    for name, value in weights(run).items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_a_run_has_what_it_promises(tiny_run):
    assert tiny_run.steps == checkpoint_steps(12, 1)
    log = tiny_run.log
    assert log["step"].to_list() == list(range(12))
    assert log["tokens"].is_sorted()
    assert set(log["masking_rate"]) == {0.15}
    assert log["lr"][:3].to_list() == pytest.approx([1e-3, 2e-3, 2e-3])
    state = tiny_run[12].optimizer_state()
    assert {key.rpartition(".")[2] for key in state} == {"exp_avg", "exp_avg_sq", "step"}
    assert all(float(value) == 12 for key, value in state.items() if key.endswith(".step"))


def test_a_finished_run_is_opened_not_trained_again(tiny_run):
    before = (tiny_run.folder / "log.parquet").stat().st_mtime_ns
    reopened = train("grammar-mlm", overrides=TINY, name="tiny", progress=False)
    assert reopened.folder == tiny_run.folder
    assert (tiny_run.folder / "log.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("objective", ["mlm", "clm"])
@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_stopped_and_resumed_is_the_same_bit_for_bit(monkeypatch, objective, stop_at):
    from accelerate import Accelerator

    changes = {**TINY, "checkpoints.optimizer_state": "none", "hidden_dropout_prob": 0.2, "objective": objective}
    uninterrupted = train("grammar-mlm", overrides=changes, name="whole", progress=False)
    triggers = iter([*[False] * stop_at, True])
    with monkeypatch.context() as patched:
        patched.setattr(Accelerator, "check_trigger", lambda self: next(triggers))
        with pytest.raises(KeyboardInterrupt, match=f"stopped at step {stop_at} of 12, which is saved"):
            train("grammar-mlm", overrides=changes, name="parts", progress=False)
    parts = train("grammar-mlm", overrides=changes, name="parts", progress=False)
    assert same(uninterrupted, parts)
    assert not list((parts.folder / "resume").iterdir()) or parts.steps[-1] == 12


def test_a_causal_llama_learns(home):
    model = {"model.model_type": "llama", "model.num_key_value_heads": 2}
    changes = {**TINY, **model, "objective": "clm", "training.steps": 40, "lr": 0.01}
    run = train("grammar-mlm", overrides=changes, name="llama", progress=False)
    assert run.objective == "clm"
    assert run.log["loss"][-5:].mean() < run.log["loss"][0] - 1
    assert type(run[40].model()).__name__ == "LlamaForCausalLM"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("option", [{"precision": "bf16"}, {"compile": True}])
def test_faster_options_train_the_same_model(option):
    run = train("grammar-mlm", overrides={**TINY, **option}, name="option", progress=False)
    plain = train("grammar-mlm", overrides=TINY, name="plain", progress=False)
    assert run.log["loss"].to_list() == pytest.approx(plain.log["loss"].to_list(), rel=0.02)


def train_command(home, *words, err=subprocess.DEVNULL, **options) -> subprocess.Popen:
    return command(home, "train", "grammar-mlm", *words, stdout=subprocess.DEVNULL, stderr=err, **options)


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_bit_for_bit(home):
    """SIGKILL at random moments while it trains (LMDYNAMICS_KILLS of them), each time gone on with."""
    longer = ("--set", "steps=600", "--set", "save_seconds=0.05")
    assert train_command(home, "--name", "whole", *longer).wait() == 0
    folder, random, saved_steps = home / "runs/killed", Random(0), []
    for _ in range(int(os.environ.get("LMDYNAMICS_KILLS", 3))):
        process = train_command(home, "--name", "killed", *longer)
        before = len(list(folder.glob("*/step-*")))
        while process.poll() is None and len(list(folder.glob("*/step-*"))) == before:
            time.sleep(0.001)  # until it saves something: from here on it is training
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved_steps += [max(layout.step_folders(folder / "resume"), default=0)]
    assert train_command(home, "--name", "killed", *longer).wait() == 0
    uninterrupted, killed = open_run("whole"), open_run("killed")
    print("killed after the save of steps", saved_steps)
    assert same(uninterrupted, killed)
    assert uninterrupted.steps == killed.steps
    assert sum(layout.check_hashes(checkpoint.folder) for checkpoint in killed) == 3 * len(killed)
    assert not list(killed.folder.rglob(".step*"))


@pytest.mark.slow
def test_the_next_batch_is_made_while_one_is_used():
    begun = [threading.Event() for _ in range(5)]

    def make(step: int) -> int:
        begun[step].set()
        return step**2

    prepared = made_ahead(make, range(5))
    for step in range(5):
        assert next(prepared) == step**2
        assert begun[min(step + 1, 4)].wait(10)
        assert not any(event.is_set() for event in begun[step + 2 :])
    assert list(prepared) == list(made_ahead(make, ())) == []


def test_an_error_in_a_batch_made_ahead_is_raised_at_its_step():
    prepared = made_ahead(lambda step: 1 // (2 - step), range(4))
    assert [next(prepared), next(prepared)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(prepared)


def test_ctrl_c_saves_and_explains_how_to_resume(home):
    process = train_command(home, "--name", "stopped", "--set", "steps=100000", err=subprocess.PIPE)
    while not (home / "runs/stopped/checkpoints/step-000064").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to resume" in err
    assert "Traceback" not in err
    assert list((home / "runs/stopped/resume").glob("step-*/training_state.safetensors"))


@pytest.mark.slow
def test_two_processes_make_one_run(home):
    both = [train_command(home, "--name", "shared", "--set", "steps=60") for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    run = open_run("shared")
    assert run.steps == checkpoint_steps(60, 1)
    assert sum(layout.check_hashes(checkpoint.folder) for checkpoint in run) == 3 * len(run)


@pytest.mark.slow
def test_several_processes_train_the_same_model(home):
    """Two processes with half of each batch: the same losses as one process, up to rounding."""
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    launcher += ("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "lmdynamics.cli")
    process = train_command(home, "--name", "two", launcher=launcher, err=subprocess.PIPE)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert train_command(home, "--name", "one").wait() == 0
    one, two = open_run("one"), open_run("two")
    assert two.log["loss"].to_list() == pytest.approx(one.log["loss"].to_list(), rel=1e-4)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=1e-4)
    assert isinstance(two.log, pl.DataFrame)


NO_PAD = Masker(mask_id=4, vocab_size=100, special_ids=(2, 3, 4))  # the tokenizer declares no pad token
ROWS = TokenRows.from_rows([[2, *range(5, 5 + length), 3] for length in (2, 9, 30, 30)])


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
    pad_id, steps = corpus.tokenizer.pad_token_id, recipe.training.steps
    batches = Batches(corpus.train, 1, recipe.seed, pad_id, masker, recipe.schedule, steps)
    empty = [not batches[step].selected.any() for step in range(60)]
    assert 20 < sum(empty) < 55
    assert run.log["loss"].is_null().to_list() == empty
    assert run.log["loss"].drop_nulls().min() > 0
    assert f"{sum(empty)} of 60 steps ({sum(empty) / 60:.1%}) had no token to predict" in steps_without_loss(run.log)


def test_averages_and_charts_leave_steps_without_a_loss_out():
    losses = [5 - 0.01 * step if step % 3 else None for step in range(120)]
    log = pl.DataFrame({"step": range(120), "loss": losses})
    with_loss = log.drop_nulls("loss")
    assert loss_by_bin(log).equals(loss_by_bin(with_loss))
    curves = read_curves(log.select("step", "loss"))
    assert curves.frame["loss"].to_list() == with_loss["loss"].to_list()
    assert any(f"{log['loss'].null_count()} of 120 rows have no number as loss" in note for note in curves.notes)
    chart = charts.loss_over_training(log)
    assert any("had no token to predict" in line for line in chart.title.subtitle)
    assert f"to {with_loss['loss'][-1]:.2f} nats" in chart.description
    assert steps_without_loss(with_loss) == ""


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
    undeclared, declared_padding = (
        declared(ids, 0.5, torch.Generator().manual_seed(1), padded=mask) for mask in (None, padded)
    )
    assert all(torch.equal(a, b) for a, b in zip(undeclared, declared_padding, strict=True))

"""Watching somebody else's training: the same weights bit for bit, and a run that opens with its measurements made."""

import errno
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl
import pytest
import torch
import transformers as hf
from torch.nn import functional as F

import lmdynamics as lmd
from lmdynamics.corpora.grammar import Grammar
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import HeldOutLoss
from lmdynamics.measurements.syntax import UAS
from lmdynamics.measurements.trace import Measurement
from lmdynamics.training.state import save_state

GRAMMAR = Grammar("small")
SIZE = {"max_position_embeddings": 64, "hidden_size": 16, "intermediate_size": 32}
SIZE |= {"num_hidden_layers": 2, "num_attention_heads": 2}
TREES, HELD_OUT = GRAMMAR.treebank(40, seed=1), GRAMMAR.blocks(40, seed=2)


def model(kind: str):
    tokenizer = GRAMMAR.tokenizer()
    torch.manual_seed(5)
    size = {**SIZE, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if kind == "mlm":
        return hf.BertForMaskedLM(hf.BertConfig(**size))
    return hf.LlamaForCausalLM(hf.LlamaConfig(**size, bos_token_id=None, eos_token_id=None))


def with_trainer(kind: str, folder, *callbacks, save_steps: int = 0, resume: bool = False) -> dict[str, torch.Tensor]:
    """Twenty steps of transformers' Trainer, whose masks and dropout take random numbers."""
    net, tokenizer = model(kind), GRAMMAR.tokenizer()
    rows = [{"input_ids": row.tolist()} for row in GRAMMAR.blocks(160, seed=3)]
    arguments = hf.TrainingArguments(
        str(folder), max_steps=20, per_device_train_batch_size=8, use_cpu=True, report_to=[],
        save_strategy="steps" if save_steps else "no", save_steps=save_steps or 500, logging_steps=5,
        disable_tqdm=True, seed=4,
    )  # fmt: skip
    collator = hf.DataCollatorForLanguageModeling(tokenizer, mlm=kind == "mlm")
    options = {"data_collator": collator, "processing_class": tokenizer, "callbacks": list(callbacks)}
    hf.Trainer(net, arguments, train_dataset=rows, **options).train(resume_from_checkpoint=resume)
    return net.state_dict()


def with_a_loop(watch: lmd.Watch | None) -> dict[str, torch.Tensor]:
    net, tokenizer = model("clm").train(), GRAMMAR.tokenizer()
    optimizer, rows = torch.optim.AdamW(net.parameters(), 1e-3), GRAMMAR.blocks(160, seed=3)
    if watch:
        watch.step(0, net, tokenizer)
    for step in range(1, 21):
        ids = torch.stack([torch.tensor(rows[int(i)][:6].astype("int64")) for i in torch.randint(160, (8,))])
        logits = net(input_ids=ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if watch:
            watch.step(step, net, tokenizer, loss=loss.item(), lr=1e-3)
    if watch:
        watch.end(20, net, tokenizer)
    return net.state_dict()


@pytest.mark.parametrize("kind", ["mlm", "clm"])
def test_a_watched_trainer_learns_bit_for_bit_the_same(kind, tmp_path, capsys):
    measurements = [HeldOutLoss(HELD_OUT), UAS(TREES, 10)]
    watch = lmd.Watch(measurements, "mine", max_share=1.0, held_out=HELD_OUT)
    alone, watched = with_trainer(kind, tmp_path), with_trainer(kind, tmp_path, watch)
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
    run = lmd.open_run("mine")
    assert run.steps == [0, 1, 2, 4, 8, 16, 20]
    assert run.objective == kind
    assert run.log["step"].to_list() == [5, 10, 15, 20]
    assert "mine: 7 checkpoints saved and measured, " in capsys.readouterr().out
    refuse_to_compute(measurements)
    losses, uas = (lmd.trace(run, measurement) for measurement in measurements)
    assert losses["step"].to_list() == run.steps == uas["step"].unique(maintain_order=True).to_list()
    assert losses["loss"].is_finite().all()
    last = run[20].model().state_dict()
    assert all(torch.equal(last[name], watched[name]) for name in last)
    assert len(run.held_out()) == len(HELD_OUT)


def refuse_to_compute(measurements: list[Measurement]) -> None:
    """From here on, numbers come from the cache or not at all."""
    for kind in {type(measurement) for measurement in measurements}:
        _refused.append((kind, kind.__call__))
        kind.__call__ = lambda *_: pytest.fail("measured again")


_refused: list[tuple[type, Callable]] = []


@pytest.fixture(autouse=True)
def computing_again():
    yield
    while _refused:
        kind, call = _refused.pop()
        kind.__call__ = call


def test_a_watched_loop_learns_bit_for_bit_the_same(tmp_path):
    torch.manual_seed(6)
    alone = with_a_loop(None)
    torch.manual_seed(6)
    watched = with_a_loop(lmd.Watch([HeldOutLoss(HELD_OUT)], tmp_path / "loop", max_share=1.0))
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
    run = lmd.open_run(tmp_path / "loop")
    assert (run.steps[-1], len(run.log), run.objective) == (20, 20, "clm")


def test_what_would_cost_too_much_is_left_out_and_said(tmp_path, capsys):
    watch = lmd.Watch([HeldOutLoss(HELD_OUT)], tmp_path / "short", max_share=0.001)
    with_a_loop(watch)
    assert watch.saved == [0, 20]
    assert watch.left_out == [1, 2, 4, 8, 16]
    assert "left out to stay below 0.1%: 5 (steps 1, 2, 4, 8, 16)" in capsys.readouterr().out


@dataclass(frozen=True)
class FailsAt(Measurement):
    """Fails at some steps, as a measurement may for a model that has diverged."""

    steps: tuple[int, ...]

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        if checkpoint.step in self.steps:
            raise ValueError(f"no number\nat {checkpoint.step}")
        return pl.DataFrame({"value": [1.0]})


def test_what_fails_later_is_reported_and_the_training_goes_on(tmp_path, capsys, monkeypatch):
    def disk_is_full(target, model, optimizer, step, **options):
        if step == 16:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_state(target, model, optimizer, step, **options)

    monkeypatch.setattr("lmdynamics.measurements.watch.save_state", disk_is_full)
    torch.manual_seed(6)
    alone = with_a_loop(None)
    torch.manual_seed(6)
    watch, calls = lmd.Watch([FailsAt((4, 8))], tmp_path / "fails", max_share=1.0), []
    watch.followers += [lambda: calls.append(watch.now), lambda: 1 / (watch.now < 2)]
    watched = with_a_loop(watch)
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
    assert lmd.open_run(tmp_path / "fails").steps == [0, 1, 2, 4, 8, 20]
    output = capsys.readouterr()
    assert "Watch failed at step 4; the training goes on. ValueError: no number at 4\n" in output.err
    assert output.err.count("ZeroDivisionError") == 1, "what follows is not called again once it has failed"
    assert calls[-1] == 20
    assert "fails: 4 checkpoints saved and measured, " in output.out
    assert "; failed at step 8: ValueError: no number at 8" in output.out
    assert "; failed at step 16: could not save checkpoint 16 of " in output.out


class Interrupts(hf.TrainerCallback):
    def on_step_end(self, args, state, control, **options):
        if state.global_step == 18:
            raise KeyboardInterrupt


def test_an_interrupted_training_is_watched_on(tmp_path):
    """Trainer resumes at its checkpoint of step 10; what was saved after it is made anew."""
    measurements = [HeldOutLoss(HELD_OUT)]
    options = {"max_share": 1.0, "held_out": HELD_OUT}
    with pytest.raises(KeyboardInterrupt):
        with_trainer("mlm", tmp_path / "alone", Interrupts(), save_steps=10)
    alone = with_trainer("mlm", tmp_path / "alone", save_steps=10, resume=True)
    with pytest.raises(KeyboardInterrupt):
        with_trainer("mlm", tmp_path / "trainer", lmd.Watch(measurements, "on", **options), Interrupts(), save_steps=10)
    assert lmd.open_run("on").steps == [0, 1, 2, 4, 8, 16]
    with pytest.raises(UserError, match="or continue it with resume=True"):
        lmd.Watch(measurements, "on")
    early = lmd.Watch(measurements, "on", resume=True, **options)
    with pytest.raises(UserError, match="this training starts at step 0; name another"):
        with_trainer("mlm", tmp_path / "other", early)
    watch = lmd.Watch(measurements, "on", resume=True, **options)
    resumed = with_trainer("mlm", tmp_path / "trainer", watch, save_steps=10, resume=True)
    run = lmd.open_run("on")
    assert run.steps == watch.saved == [0, 1, 2, 4, 8, 16, 20]
    assert [step for step, *_ in watch.headlines] == run.steps
    assert run.log["step"].to_list() == [5, 10, 15, 20]
    last = run[20].model().state_dict()
    assert all(torch.equal(last[name], resumed[name]) for name in last)
    assert all(torch.equal(alone[name], resumed[name]) for name in alone)


def test_what_fails_at_once_is_raised(tmp_path):
    with pytest.raises(ValueError, match="no number"):
        with_a_loop(lmd.Watch([FailsAt((0,))], tmp_path / "fails"))


def test_what_cannot_be_watched_is_refused(tmp_path):
    watch = lmd.Watch([], tmp_path / "new", max_share=1.0)
    with pytest.raises(UserError, match="a Linear has no save_pretrained"):
        watch.step(0, torch.nn.Linear(2, 2), GRAMMAR.tokenizer())
    with pytest.raises(UserError, match="Watch needs the tokenizer"):
        watch.step(0, model("clm"), None)
    watch.step(0, model("clm"), GRAMMAR.tokenizer())
    with pytest.raises(UserError, match="already holds a run; name another, or delete it"):
        lmd.Watch([], tmp_path / "new")
    with pytest.raises(UserError, match="max_share is 0; it must be above 0"):
        lmd.Watch([], tmp_path / "other", max_share=0)

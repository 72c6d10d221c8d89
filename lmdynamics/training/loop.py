"""Pretraining, on one page: masked or causal, on a CPU, a GPU, or several processes."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmdynamics import files
from lmdynamics.devices import default_device, need_device
from lmdynamics.environment import repeatable
from lmdynamics.errors import UserError
from lmdynamics.progress import bar
from lmdynamics.training import layout
from lmdynamics.training.batches import Batch, Batches, Corpus, TreeBatches, mix, open_corpus, open_trees
from lmdynamics.training.masking import Masker
from lmdynamics.training.objective import attend, attention_of, logits_at, penalty_sum
from lmdynamics.training.recipes import Recipe, checkpoint_steps, model_class
from lmdynamics.training.state import Log, forget_before, load_state, resumable, save_state

DEVICE = "ACCELERATE_TORCH_DEVICE"


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a person; the step named in the message is saved and will be gone on from."""


class SummedLoss(nn.Module):
    """Cross-entropy summed over the predicted positions (nats), and γ summed over syntactic arcs: one module, so that
    it can be distributed whole."""

    def __init__(self, model: nn.Module, form: str = "max"):
        super().__init__()
        self.model, self.form = model, form

    def forward(self, batch: Batch, aside: Batch | None = None) -> tuple[Tensor, Tensor | None]:
        links = batch.links or (aside and aside.links)
        attend(self.model, "sdpa" if links is None else "eager")
        seen: list[Tensor] | None = [] if batch.links is not None else None
        logits = logits_at(self.model, batch.ids, batch.attention_mask, batch.selected, seen)
        loss = F.cross_entropy(logits.float(), batch.targets[batch.selected], reduction="sum")
        if links is None:
            return loss, None
        if aside is not None:
            output = self.model.base_model(aside.ids, attention_mask=aside.attention_mask, output_attentions=True)
            seen = attention_of(output, self.model)
        return loss, penalty_sum(seen, links, self.form)


def pretrain(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | None = None,
    progress: bool | None = None,
    log: Callable[[Path], Log] = Log,
) -> None:
    """Train `recipe` into `folder`, or go on where it stopped; returns when the last checkpoint is there.

    `device`: by default the accelerator, if there is one. Of several processes each takes the one that is its own.
    `log` makes the log that is written to, from its path.

    Raises UserError where the folder cannot be gone on from, the device is not there or the disk is full, Interrupted
    after Ctrl-C.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would draw one for every checkpoint written
    t, keep = recipe.training, recipe.checkpoints
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    AcceleratorState._reset_state(reset_partial_state=alone)  # an earlier run here may have used another precision
    repeatable()
    device = device or default_device()
    kind = need_device(device)
    with set_device(device if alone else None):
        accelerator = Accelerator(mixed_precision="bf16" if t.precision == "bf16" else "no", cpu=kind == "cpu")
    if accelerator.device.type != kind:
        raise UserError(f"device {device!r} is asked for, accelerate takes {accelerator.device}; name that one")
    accelerator.wait_for_everyone()  # the main process may have waited for another training of this run
    corpus = open_corpus(recipe)
    causal = recipe.objective == "clm"
    masker = None if causal else Masker.for_tokenizer(corpus.tokenizer)
    batches = Batches(
        corpus.train, t.batch_size, recipe.seed, corpus.tokenizer.pad_token_id, masker, recipe.schedule, t.steps,
        recipe.objective == "rts", corpus.trees, recipe.regularizer,
    )  # fmt: skip

    torch.manual_seed(recipe.seed)
    model = build_model(recipe, corpus).to(accelerator.device).train()
    optimizer = build_optimizer(recipe, model)
    apart = open_trees(recipe, corpus, longest=getattr(model.config, "max_position_embeddings", 512))
    trees = apart and TreeBatches(apart, recipe.regularizer, recipe.seed, corpus.tokenizer.pad_token_id)
    log = log(folder / "log.parquet")
    start, found = max(resumable(folder).items(), default=(0, None))
    if found:
        load_state(found, model, optimizer)
        log.resume(start)
    elif accelerator.is_main_process:
        with files.saving(str(folder)):
            corpus.tokenizer.save_pretrained(folder / "tokenizer")
            corpus.held_out.save(folder / "held_out")
    if t.compile:
        model.base_model.forward = torch.compile(model.base_model.forward, dynamic=True)
    summed_loss, optimizer = accelerator.prepare(SummedLoss(model, recipe.regularizer.form), optimizer)

    keep_at = set(checkpoint_steps(t.steps, keep.per_doubling))
    with_optimizer = {"all": keep_at, "none": set(), "doublings": {t.steps, *checkpoint_steps(t.steps, 1)}}
    with_optimizer = with_optimizer[keep.optimizer_state]

    def save(step: int) -> None:
        log.write()
        if step in keep_at:
            at = layout.step_folder(folder / "checkpoints", step)
            save_state(at, model, optimizer, step, with_optimizer=step in with_optimizer)
        if step not in keep_at & with_optimizer:
            save_state(layout.step_folder(folder / "resume", step), model, optimizer, step, with_optimizer=True)
        forget_before(folder, step)

    process, processes = accelerator.process_index, accelerator.num_processes
    began = last_save = time.perf_counter() - log.last("seconds")
    shown = bar(t.steps, folder.name, progress if accelerator.is_main_process else False, unit="step", initial=start)
    with shown, on_interrupt(accelerator.set_trigger):
        for step in range(start, t.steps + 1):
            now = time.perf_counter()
            stopped = accelerator.check_trigger()
            due = step in keep_at or stopped or now - last_save > keep.save_seconds
            if due and accelerator.is_main_process and not (found and step == start):
                save(step)
                last_save = now
            if step == t.steps:
                break
            if stopped:
                raise Interrupted(
                    f"stopped at step {step:,} of {t.steps:,}, which is saved; run the same command to go on"
                )

            batch, aside, strength = batches[step], trees and trees[step], recipe.regularizer.strength_at(step)
            torch.manual_seed(mix(recipe.seed, step, process))  # dropout, too, is a function of the step
            for group in optimizer.param_groups:
                group["lr"] = t.lr_at(step)
            here = [b and b.share(process, processes).to(accelerator.device) for b in (batch, aside)]
            total, penalty = summed_loss(*here)
            # processes average their gradients; the counts are those of all processes
            targets = int(batch.selected.sum())
            loss = objective = total * (processes / max(1, targets))
            if penalty is not None:
                penalty = penalty * (processes / max(1, (batch.links or aside.links).arcs))
                objective = loss + strength * penalty
            accelerator.backward(objective)
            if t.clip:
                accelerator.clip_grad_norm_(model.parameters(), t.clip)
            optimizer.step()
            optimizer.zero_grad()

            loss = accelerator.reduce(loss.detach(), "mean")
            penalty = None if penalty is None else accelerator.reduce(penalty.detach(), "mean")
            seconds = time.perf_counter() - began
            known = loss if targets else None  # a batch without a target has no loss
            log.add(step, known, t.lr_at(step), batch.masking_rate, batch.tokens, seconds, penalty)
            shown.update()
            if step % 100 == 0:
                give_back_memory()
            if step % 25 == 0 and targets:
                shown.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    accelerator.wait_for_everyone()


def build_model(recipe: Recipe, corpus: Corpus) -> nn.Module:
    """A model with fresh weights for the recipe's configuration and the corpus's tokenizer."""
    tokenizer = corpus.tokenizer
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "cls", "sep", "mask")}
    special |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    if recipe.objective == "rts":
        special["num_labels"] = 2  # kept, replaced
    config = recipe.config(vocab_size=len(tokenizer), **special)
    if recipe.objective == "clm" and getattr(config, "is_decoder", None) is False:
        config.is_decoder = True  # an encoder such as BERT would otherwise see the tokens it is to predict
    longest = int(max(corpus.train.lengths.max(), corpus.held_out.lengths.max(initial=0)))
    limit = getattr(config, "max_position_embeddings", longest)
    if longest > limit:
        raise UserError(
            f"the corpus has a row of {longest} tokens, the model takes at most {limit}; "
            f"--set model.max_position_embeddings={longest} or use shorter rows"
        )
    try:
        return model_class(recipe.objective).from_config(config, attn_implementation="sdpa")
    except ValueError:
        raise UserError(
            f"transformers has no {recipe.objective} model of type {config.model_type!r}; use another"
        ) from None


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases and norms are not decayed."""
    t = recipe.training
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": t.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=t.lr, betas=(t.beta1, t.beta2), fused=True)


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library is glibc.

    Every step predicts another number of tokens, and so asks for blocks of another size; glibc keeps what it gets, and
    a small model on a CPU would come to hold gigabytes.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


@contextmanager
def set_device(device: str | None):
    """Let `accelerate` take this device, inside the block only; None leaves the choice to it."""
    before = os.environ.get(DEVICE)
    if device is not None:
        os.environ[DEVICE] = device
    try:
        yield
    finally:
        os.environ.pop(DEVICE, None) if before is None else os.environ.update({DEVICE: before})


@contextmanager
def on_interrupt(act):
    """Let Ctrl-C ask for a stop between two steps instead of breaking into one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

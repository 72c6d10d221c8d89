"""Pretraining: masked or causal, on a CPU, a GPU, or several processes."""

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
from lmdynamics.training.batches import Batch, Batches, Corpus, TreeBatches, made_ahead, mix, open_corpus, open_trees
from lmdynamics.training.masking import Masker
from lmdynamics.training.objective import attention_of, logits_at, penalty_sum, set_attention
from lmdynamics.training.recipes import Recipe, checkpoint_steps, model_class
from lmdynamics.training.state import Log, delete_resume_points, load_state, resumable, save_state

DEVICE_VARIABLE = "ACCELERATE_TORCH_DEVICE"


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C; the step in the message is saved, and training can resume from it."""


class SummedLoss(nn.Module):
    """Cross-entropy summed over the predicted positions (nats), and γ summed over syntactic arcs: one module, which
    `accelerate` can distribute."""

    def __init__(self, model: nn.Module, form: str = "max"):
        super().__init__()
        self.model, self.form = model, form

    def forward(self, batch: Batch, extra: Batch | None = None) -> tuple[Tensor, Tensor | None]:
        links = batch.links or (extra and extra.links)
        set_attention(self.model, "sdpa" if links is None else "eager")
        attentions: list[Tensor] | None = [] if batch.links is not None else None
        logits = logits_at(self.model, batch.ids, batch.attention_mask, batch.selected, attentions)
        loss = F.cross_entropy(logits.float(), batch.targets[batch.selected], reduction="sum")
        if links is None:
            return loss, None
        if extra is not None:
            output = self.model.base_model(extra.ids, attention_mask=extra.attention_mask, output_attentions=True)
            attentions = attention_of(output, self.model)
        return loss, penalty_sum(attentions, links, self.form)


def pretrain(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | None = None,
    progress: bool | None = None,
    log: Callable[[Path], Log] = Log,
) -> None:
    """Train `recipe` into `folder`, or resume it; returns after the last checkpoint is saved.

    `device`: by default the accelerator, if there is one. Of several processes each takes its own.
    `log` creates the log from its path.

    Raises UserError if the folder cannot be resumed, the device does not exist or the disk is full; Interrupted
    after Ctrl-C.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from transformers.utils import logging

    logging.disable_progress_bar()  # one would appear for every checkpoint
    t, policy = recipe.training, recipe.checkpoints
    single = int(os.environ.get("WORLD_SIZE", 1)) == 1
    AcceleratorState._reset_state(reset_partial_state=single)  # an earlier run may have used another precision
    repeatable()
    device = device or default_device()
    kind = need_device(device)
    with set_device(device if single else None):
        accelerator = Accelerator(mixed_precision="bf16" if t.precision == "bf16" else "no", cpu=kind == "cpu")
    if accelerator.device.type != kind:
        raise UserError(f"device {device!r} was requested, but accelerate uses {accelerator.device}; request that one")
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
    penalty_trees = open_trees(recipe, corpus, longest=getattr(model.config, "max_position_embeddings", 512))
    trees = penalty_trees and TreeBatches(penalty_trees, recipe.regularizer, recipe.seed, corpus.tokenizer.pad_token_id)
    log = log(folder / "log.parquet")
    start, resume_folder = max(resumable(folder).items(), default=(0, None))
    if resume_folder:
        load_state(resume_folder, model, optimizer)
        log.resume(start)
    elif accelerator.is_main_process:
        with files.saving(str(folder)):
            corpus.tokenizer.save_pretrained(folder / "tokenizer")
            corpus.held_out.save(folder / "held_out")
    if t.compile:
        model.base_model.forward = torch.compile(model.base_model.forward, dynamic=True)
    summed_loss, optimizer = accelerator.prepare(SummedLoss(model, recipe.regularizer.form), optimizer)

    checkpoint_at = set(checkpoint_steps(t.steps, policy.per_doubling))
    with_optimizer = {"all": checkpoint_at, "none": set(), "doublings": {t.steps, *checkpoint_steps(t.steps, 1)}}
    with_optimizer = with_optimizer[policy.optimizer_state]

    def save(step: int) -> None:
        log.write()
        if step in checkpoint_at:
            checkpoint = layout.step_folder(folder / "checkpoints", step)
            save_state(checkpoint, model, optimizer, step, with_optimizer=step in with_optimizer)
        if step not in checkpoint_at & with_optimizer:
            save_state(layout.step_folder(folder / "resume", step), model, optimizer, step, with_optimizer=True)
        delete_resume_points(folder, step)

    process, processes = accelerator.process_index, accelerator.num_processes
    start_time = last_save = time.perf_counter() - log.last("seconds")

    def prepare(step: int) -> tuple[Batch, Batch | None]:
        return batches[step], trees and trees[step]

    # an accelerator need not wait for the next batch; on the CPU, training takes all cores
    prepared = (map if kind == "cpu" else made_ahead)(prepare, range(start, t.steps))
    meter = bar(t.steps, folder.name, progress if accelerator.is_main_process else False, unit="step", initial=start)
    with meter, on_interrupt(accelerator.set_trigger):
        for step in range(start, t.steps + 1):
            now = time.perf_counter()
            stopped = accelerator.check_trigger()
            due = step in checkpoint_at or stopped or now - last_save > policy.save_seconds
            if due and accelerator.is_main_process and not (resume_folder and step == start):
                save(step)
                last_save = now
            if step == t.steps:
                break
            if stopped:
                raise Interrupted(
                    f"stopped at step {step:,} of {t.steps:,}, which is saved; run the same command to resume"
                )

            (batch, extra), strength = next(prepared), recipe.regularizer.strength_at(step)
            torch.manual_seed(mix(recipe.seed, step, process))  # dropout is also a function of the step
            for group in optimizer.param_groups:
                group["lr"] = t.lr_at(step)
            shares = [b and b.share(process, processes).to(accelerator.device) for b in (batch, extra)]
            total, penalty = summed_loss(*shares)
            # processes average their gradients; the counts are those of all processes
            targets = int(batch.selected.sum())
            loss = objective = total * (processes / max(1, targets))
            if penalty is not None:
                penalty = penalty * (processes / max(1, (batch.links or extra.links).arcs))
                objective = loss + strength * penalty
            accelerator.backward(objective)
            if t.clip:
                accelerator.clip_grad_norm_(model.parameters(), t.clip)
            optimizer.step()
            optimizer.zero_grad()

            loss = accelerator.reduce(loss.detach(), "mean")
            penalty = None if penalty is None else accelerator.reduce(penalty.detach(), "mean")
            seconds = time.perf_counter() - start_time
            logged_loss = loss if targets else None  # a batch without a target has no loss
            log.add(step, logged_loss, t.lr_at(step), batch.masking_rate, batch.tokens, seconds, penalty)
            meter.update()
            if step % 100 == 0:
                release_memory()
            if step % 25 == 0 and targets:
                meter.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
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
        config.is_decoder = True  # otherwise an encoder such as BERT would see the tokens to predict
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
    """AdamW without weight decay for biases and norms."""
    t = recipe.training
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": t.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=t.lr, betas=(t.beta1, t.beta2), fused=True)


def release_memory() -> None:
    """Return freed memory to the system, where the C library is glibc.

    Every step predicts another number of tokens, and so allocates blocks of another size. glibc keeps freed blocks:
    without this call a small model on a CPU would hold gigabytes.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


@contextmanager
def set_device(device: str | None):
    """Make `accelerate` use this device inside the block; None lets it choose."""
    previous = os.environ.get(DEVICE_VARIABLE)
    if device is not None:
        os.environ[DEVICE_VARIABLE] = device
    try:
        yield
    finally:
        os.environ.pop(DEVICE_VARIABLE, None) if previous is None else os.environ.update({DEVICE_VARIABLE: previous})


@contextmanager
def on_interrupt(callback):
    """Let Ctrl-C call `callback` instead of interrupting a step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, lambda *_: callback())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

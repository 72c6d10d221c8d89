"""Measure a model while anybody's code trains it: Hugging Face's Trainer, or a loop of one's own."""

import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import TrainerCallback
from transformers.utils import logging

from lmdynamics import files
from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.errors import UserError, one_line
from lmdynamics.measurements.trace import Measurement, trace_all
from lmdynamics.paths import runs_dir
from lmdynamics.runs.run import Run
from lmdynamics.training import layout
from lmdynamics.training.recipes import checkpoint_steps
from lmdynamics.training.state import Log, read_log, save_state

LONGEST = 10**9  # steps; a loop of one's own does not say how many it will make


class Watch(TrainerCallback):
    """Saves log-spaced checkpoints of a model in training as a run, and measures each at once.

    `Trainer(..., callbacks=[Watch([UAS(trees)], "my-run")])`, or in a loop `watch.step(step, model, tokenizer)` after
    each update and once before the first, and `watch.end(step, model, tokenizer)`. `lmd.open_run("my-run")` then opens
    the run, and every page and `trace` finds the measurements in the cache.

    A measurement reads the saved checkpoint, not the model in training, and the random numbers of Python, NumPy and
    torch continue as if nothing had happened: weights are the same, bit for bit, with and without it.

    `max_share`: a checkpoint is left out if saving and measuring it would take more than this share of the time since
    the start, judged by the most expensive one so far; the first and the last never are. 1: no limit. `report` says
    how many were left out.
    `resume`: continue the run of a training that was interrupted, from the step at which it resumes; later checkpoints
    are removed, as they are made anew.
    What fails at the first checkpoint is raised. What fails later, such as a full disk, is reported (`failed`), and the
    training goes on.
    `held_out`: rows that the model is not trained on, kept with the run for pages that need them. `steps`: how long the
    training is, for `show_watch`; Trainer tells it.
    """

    def __init__(
        self,
        measurements: Sequence[Measurement],
        run: str | Path,
        *,
        per_doubling: int = 4,
        max_share: float = 0.05,
        held_out: TokenRows | None = None,
        steps: int | None = None,
        resume: bool = False,
        device: str = "cpu",
    ):
        if not 0 < max_share <= 1:
            raise UserError(f"max_share is {max_share}; it must be above 0 and at most 1")
        self.folder = runs_dir() / run if isinstance(run, str) and "/" not in run else Path(run)
        begun = layout.step_folders(self.folder / "checkpoints")
        if (self.folder / "run.json").exists() or (begun and not resume):
            advice = "" if (self.folder / "run.json").exists() else ", or continue it with resume=True"
            raise UserError(f"{self.folder} already holds a run; name another, or delete it{advice}")
        self.measurements: dict[str, Measurement] = {}
        for measurement in measurements:
            kind = name = type(measurement).__name__
            while name in self.measurements:
                name = f"{kind} {len(self.measurements) + 1}"
            self.measurements[name] = measurement
        self.headlines: list[tuple[int, str, float]] = []  # step, measurement, value
        self.followers: list[Callable[[], None]] = []  # called after each new row or checkpoint
        self.steps, self.now, self.ended = steps, 0, False
        self.max_share, self.held_out, self.device = max_share, held_out, device
        self.saved: list[int] = []
        self.left_out: list[int] = []
        self.failed: dict[int, str] = {}  # a reason by step; the checkpoint may be saved, but not measured
        self._due = set(checkpoint_steps(LONGEST, per_doubling))
        self._log = Log(self.folder / "log.parquet")
        self._begin: float | None = None
        self._end: float | None = None
        self._spent = self._most = 0.0

    def step(self, step: int, model: Any, tokenizer: Any, loss: float | None = None, lr: float = 0.0) -> None:
        """Call before the first update with step 0, and after each with its number: the updates made so far."""
        if self._begin is None:
            self._resume(step)
            self._begin = time.perf_counter()
        self.now = step
        if loss is not None:
            self.log(step, loss, lr)
        if step not in self._due or step in self.saved:
            return
        elapsed = time.perf_counter() - self._begin
        if self.saved and self.max_share < 1 and self._spent + self._most > self.max_share * elapsed:
            self.left_out.append(step)
        else:
            self._save(step, model, tokenizer)

    def _resume(self, step: int) -> None:
        """Keep what an interrupted training has saved up to `step`; nothing if the folder is new."""
        begun = layout.step_folders(self.folder / "checkpoints")
        if not step and begun:
            raise UserError(
                f"{self.folder} holds a run, and this training starts at step 0; name another, or delete it"
            )
        for later in (folder for saved, folder in begun.items() if saved > step):
            shutil.rmtree(later)
        self.saved = [saved for saved in begun if saved <= step]
        self._log.frame = read_log(self._log.path).filter(pl.col("step") <= step)
        if self.saved:
            with _undisturbed():
                self._measure(self.saved)

    def log(self, step: int, loss: float, lr: float = 0.0) -> None:
        """Add a row to the log of the run: the training loss at `step` (of Trainer, its mean since the row before)."""
        seconds = 0.0 if self._begin is None else time.perf_counter() - self._begin
        self._log.add(step, torch.tensor(float(loss)), lr, None, 0, seconds)
        self._tell()

    @property
    def rows(self) -> pl.DataFrame:
        """The log so far: step, loss, lr, seconds; see `log`."""
        return self._log.with_unsaved()

    def end(self, step: int, model: Any, tokenizer: Any) -> Run:
        """Save and measure the last checkpoint, print `report`, and return the run."""
        if step not in self.saved:
            self._save(step, model, tokenizer)
        with self._training_goes_on(step):
            self._log.write()
        self.steps, self.ended = step, True
        self._tell()
        self._end = time.perf_counter()
        print(self.report)
        return Run(self.folder)

    @property
    def share(self) -> float:
        """The share of the time from the start to the end, or to now, that went into saving and measuring."""
        if self._begin is None:
            return 0.0
        return self._spent / max((self._end or time.perf_counter()) - self._begin, 1e-9)

    @property
    def report(self) -> str:
        complete = [step for step in self.saved if step not in self.failed]
        text = f"{self.folder.name}: {len(complete)} checkpoints saved and measured, {self.share:.1%} of the time"
        if self.left_out:
            steps = ", ".join(f"{step:,}" for step in self.left_out)
            text += f"; left out to stay below {self.max_share * 100:g}%: {len(self.left_out)} (steps {steps})"
        return text + "".join(f"; failed at step {step:,}: {reason}" for step, reason in self.failed.items())

    def _save(self, step: int, model: Any, tokenizer: Any) -> None:
        begin = time.perf_counter()
        model = getattr(model, "module", model)  # of DistributedDataParallel
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        if not hasattr(model, "save_pretrained"):
            raise UserError(f"Watch saves models of transformers; a {type(model).__name__} has no save_pretrained")
        if tokenizer is None:
            raise UserError("Watch needs the tokenizer: Trainer(processing_class=tokenizer), or step(…, tokenizer)")
        with self._training_goes_on(step), _undisturbed(), files.saving(f"checkpoint {step} of {self.folder}"):
            target = layout.step_folder(self.folder / "checkpoints", step)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "tokenizer").exists():
                tokenizer.save_pretrained(self.folder / "tokenizer")
            if self.held_out is not None and not (self.folder / "held_out").exists():
                self.held_out.save(self.folder / "held_out")
            save_state(target, model, None, step, with_optimizer=False)
            self.saved.append(step)
            self._log.write()
            self._measure([step])
        cost = time.perf_counter() - begin
        self._spent, self._most = self._spent + cost, max(self._most, cost)
        self._tell()

    def _measure(self, steps: Sequence[int]) -> None:
        tables = trace_all(Run(self.folder), self.measurements, steps=steps, device=self.device, progress=False)
        for name, table in tables.items():
            for (step,), rows in table.group_by("step", maintain_order=True):
                if (value := self.measurements[name].headline(rows)) is not None:
                    self.headlines.append((step, name, value))

    @contextmanager
    def _training_goes_on(self, step: int) -> Iterator[None]:
        """Report what fails; before the first checkpoint is complete, raise it: the training has hardly begun."""
        began = bool(self.saved)
        try:
            yield
        except Exception as error:
            if not began:
                raise
            self.failed[step] = one_line(error)
            print(f"Watch failed at step {step:,}; the training goes on. {self.failed[step]}", file=sys.stderr)

    def _tell(self) -> None:
        begin = time.perf_counter()
        for follower in [*self.followers]:
            try:
                follower()
            except Exception as error:  # a chart must not end a training
                self.followers.remove(follower)
                print(f"Watch at step {self.now:,}: shown no longer. {one_line(error)}", file=sys.stderr)
        self._spent += time.perf_counter() - begin

    # what Trainer calls

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs) -> None:
        if state.is_world_process_zero:
            self.steps = self.steps or state.max_steps
            self.step(state.global_step, model, processing_class)

    def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs) -> None:
        if state.is_world_process_zero:
            self.step(state.global_step, model, processing_class)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and "loss" in (logs or {}):
            self.log(state.global_step, logs["loss"], logs.get("learning_rate", 0.0))

    def on_train_end(self, args, state, control, model=None, processing_class=None, **kwargs) -> None:
        if state.is_world_process_zero:
            self.end(state.global_step, model, processing_class)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Afterwards random generators (Python, NumPy, torch), messages and bars of transformers are as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global generator is meant
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng():  # the CPU, and all GPUs there are
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()

"""Training in a process of its own, which a notebook starts, watches, pauses and resumes.

The process (`jobs.Process`) receives messages to pause and to resume; when it is stopped, or its parent is killed, it
saves a checkpoint and ends. Its progress is read from the run's folder: `log.parquet`, written when it saves, and
`live.csv`, the rows since then. So other processes can follow it, too.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from subprocess import DEVNULL
from typing import Any
from weakref import WeakMethod

import polars as pl

from lmdynamics import files, jobs
from lmdynamics.devices import default_device, need_device
from lmdynamics.errors import UserError, one_line
from lmdynamics.paths import runs_dir
from lmdynamics.runs.live import LIVE, LiveLog, read_live
from lmdynamics.runs.run import Run, checkpoint_folders
from lmdynamics.runs.trained import (
    begun_on,
    branch,
    branch_folder,
    branched_recipe,
    build,
    is_complete,
    name_on,
    run_name,
)
from lmdynamics.training import layout
from lmdynamics.training.recipes import Recipe, load_recipe, parse_overrides
from lmdynamics.training.state import resumable

ACTIVE = ("starting", "training", "pausing", "stopping", "elsewhere")

_trainings: dict[Path, "Training"] = {}  # of this process, by folder
_registering = threading.Lock()


@dataclass(frozen=True)
class Job:
    """A run to train: its recipe and folder; `origin` of a branch: the parent run, the step, and the overrides."""

    recipe: Recipe
    folder: Path
    device: str | None = None
    origin: tuple[Run, int, Mapping[str, Any]] | None = None

    @property
    def threads(self) -> int:
        """CPU threads: `OMP_NUM_THREADS`, or as many as a branch's parent, or one. A small model trains as fast with
        one, and several times faster if other processes compute as well."""
        parent = self.origin[0].facts if self.origin else {}
        return int(os.environ.get("OMP_NUM_THREADS") or parent.get("threads") or 1)


@dataclass(frozen=True, repr=False)
class SavedRun(Run):
    """A run whose checkpoints include the step where it was paused, so that it can be branched there."""

    @cached_property
    def _folders(self) -> dict[int, Path]:
        return dict(sorted({**resumable(self.folder), **checkpoint_folders(self.folder)}.items()))


class Training:
    """A run that is trained, or could be, in a process of its own; `training_of` and `branch_of` return one."""

    def __init__(self, job: Job):
        self.job = job
        self.error = ""  # why it ended unexpectedly; one line
        self._process: jobs.Process | None = None
        self._phase = ""
        self._lock = threading.RLock()
        self._watchers: list[WeakMethod] = []

    @property
    def folder(self) -> Path:
        return self.job.folder

    @property
    def steps(self) -> int:
        """The step at which it will be complete."""
        return self.job.recipe.training.steps

    @property
    def saved(self) -> int:
        """The last saved step, from which training would resume."""
        return max(layout.saved_steps(self.folder), default=0)

    @property
    def state(self) -> str:
        """`ready` (never begun), `starting`, `training`, `pausing`, `paused`, `stopping`, `stopped`, `failed`, `done`;
        `elsewhere` if another process trains it."""
        with self._lock:
            self._receive()
            if self._process is not None:
                return self._phase
        if layout.step_folder(self.folder / "checkpoints", self.steps).is_dir():
            return "done"
        if files.is_locked(self.folder / layout.LOCK):
            return "elsewhere"
        return "failed" if self.error else "stopped" if layout.is_begun(self.folder) else "ready"

    def start(self) -> None:
        """Begin or resume; nothing happens if it is being trained, or complete.

        Raises UserError if the folder holds a run of another recipe.
        """
        with self._lock:
            state = self.state
            if state in ACTIVE or is_complete(self.folder, self.job.recipe, self.job.device):
                return
            self.error, self._phase = "", "starting"
            if state == "paused":
                self._process.send("resume")
            else:
                self._launch()
        for watcher in self._watchers:
            if method := watcher():
                method()

    def pause(self) -> None:
        """Save at the next step and wait; `start` resumes."""
        with self._lock:
            self._receive()
            if self._process is not None and self._phase in ("starting", "training"):
                self._phase = "pausing"
                self._process.send("pause")

    def stop(self) -> None:
        """Save at the next step and end the process."""
        with self._lock:
            self._receive()
            if self._process is not None:
                self._phase = "stopping"
                self._process.close()

    def wait(self, timeout: float | None = None) -> str:
        """Wait until it is no longer trained, at most `timeout` seconds; returns `state`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (state := self.state) in ACTIVE and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.05)
        with self._lock:
            if self._process is not None and self._phase != "paused" and state not in ACTIVE:
                self._process.wait()  # it has sent its last message
            return self.state

    def log(self) -> pl.DataFrame:
        """The run's log, with the steps since the last save, at most half a second late."""
        return read_live(self.folder)

    def watch(self, method: Callable[[], None]) -> None:
        """Call a method whenever training starts; its object is held weakly."""
        self._watchers = [watcher for watcher in self._watchers if watcher()] + [WeakMethod(method)]

    def _launch(self) -> None:
        if self._process is not None:  # it has sent its last message
            self._process.wait()
        self._process = jobs.Process(_work, self.job, threads=self.job.threads, output=DEVNULL)

    def _receive(self) -> None:
        """Process the messages of the training process, or its end."""
        while self._process is not None and self._process.poll():
            message = self._process.receive()
            if message is None:
                return self._ended()
            kind, line = message
            if kind == "training":
                self._phase = "training" if self._phase == "starting" else self._phase
            elif kind == "paused":
                self._phase = "paused" if self._phase != "stopping" else self._phase
            else:
                self._phase, self.error = kind, line

    def _ended(self) -> None:
        if status := self._process.status:
            cause = f"signal {-status}" if status < 0 else f"status {status}"
            self.error = (
                f"the training process ended ({cause}), perhaps because memory ran out; "
                f"step {self.saved:,} is saved; start it again to resume from there"
            )
        self._process = None


def training_of(
    recipe: str,
    profile: str = "default",
    seed: int = 0,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    name: str | None = None,
    device: str | None = None,
) -> Training:
    """The training of a recipe, arguments as for `train`: a new one, or the one that this process has already.

    Raises UserError if recipe or overrides are invalid, or the folder holds a run of another recipe.
    """
    overrides = dict(overrides) if isinstance(overrides, Mapping) else list(overrides)
    loaded = load_recipe(recipe, profile, seed, overrides)
    return _register(Job(loaded, runs_dir() / (name or name_on(device, run_name(loaded, overrides))), device))


def branch_of(
    run: Run,
    step: int,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    name: str | None = None,
    device: str | None = None,
) -> Training:
    """The training of a branch, arguments as for `branch`: a new one, or the one that this process has already.

    `run` may be a `SavedRun`, to branch it where it was paused. Raises UserError as `branch` does.
    """
    overrides = parse_overrides(overrides)
    changed, changes = branched_recipe(run, step, overrides)
    folder, _ = branch_folder(run, step, changes, name, device)
    return _register(Job(changed, folder, device or run.trained_on, (run, step, overrides)))


def _register(job: Job) -> Training:
    if not is_complete(job.folder, job.recipe, job.device):  # refuses a folder of another recipe or device
        need_device(job.device or begun_on(job.folder) or default_device())
    with _registering:
        training = _trainings.get(job.folder)
        if training and training.job.recipe == job.recipe:
            return training
        if training and training.state in (*ACTIVE, "paused"):
            raise UserError(f"{job.folder} is being trained with other settings; stop it, or give this another name")
        training = _trainings[job.folder] = Training(job)
        return training


# in the process that trains ------------------------------------------------------------------------------------------


def _work(parent: jobs.Parent, job: Job) -> None:
    """Train; when paused, wait for the next message; end when the parent closes the connection or has ended."""
    while (outcome := _train(parent, job))[0] == "paused":
        parent.send(outcome)
        while (message := parent.receive()) == "pause":  # it is paused already
            continue
        if message is None:
            outcome = ("stopped", "")
            break
    parent.send(outcome)


def _train(parent: jobs.Parent, job: Job) -> tuple[str, str]:
    """The outcome: `done`, `paused`, `stopped` or `failed`, and why."""
    from lmdynamics.training.loop import Interrupted

    def live_log(path: Path) -> LiveLog:
        parent.send(("training", ""))
        return LiveLog(path)

    options = {"device": job.device, "progress": False, "log": live_log}
    try:
        with parent.interruptible():
            if job.origin is None or layout.is_begun(job.folder):
                build(job.recipe, job.folder, **options)
            else:
                run, step, overrides = job.origin
                branch(run, step, overrides, name=job.folder.name, **options)
        (job.folder / LIVE).unlink(missing_ok=True)
        return "done", ""
    except Interrupted:
        return "paused", ""
    except KeyboardInterrupt:  # perhaps during an import, so this process should not be used any more
        return "stopped", ""
    except Exception as error:  # any error is reported to the person who watches
        return "failed", one_line(error)

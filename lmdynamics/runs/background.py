"""Training in a process of its own, which a notebook starts, watches, pauses and goes on with.

The process hears through a pipe what is wanted; at the pipe's end, when its parent has stopped or was killed,
it saves where it is and ends. What it has done is read from the run's folder: `log.parquet`, written when it saves, and
`live.csv`, the rows since then. So any number of readers, in other processes too, can look on.
"""

import _thread
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context, util
from pathlib import Path
from typing import Any
from weakref import WeakMethod

import polars as pl

from lmdynamics import files
from lmdynamics.devices import default_device, need_device
from lmdynamics.errors import UserError
from lmdynamics.paths import runs_dir
from lmdynamics.processes import threads_each, without_interrupts
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
from lmdynamics.training.state import Log, resumable

ACTIVE = ("starting", "training", "pausing", "stopping", "elsewhere")

_trainings: dict[Path, "Training"] = {}  # of this process, by folder
_registering = threading.Lock()


@dataclass(frozen=True)
class Job:
    """What the process is to make: a recipe in a folder; `origin`, what a branch leaves: run, step, overrides."""

    recipe: Recipe
    folder: Path
    device: str | None = None
    origin: tuple[Run, int, Mapping[str, Any]] | None = None

    @property
    def threads(self) -> int:
        """How many it computes with on a CPU: what `OMP_NUM_THREADS` says, or as many as the run that a branch leaves,
        or one. A small model trains as fast with one, and several times faster where others compute, too."""
        parent = self.origin[0].facts if self.origin else {}
        return int(os.environ.get("OMP_NUM_THREADS") or parent.get("threads") or 1)


@dataclass(frozen=True)
class SavedRun(Run):
    """A run whose checkpoints include the point where it was paused, so that a branch can leave there."""

    @cached_property
    def _folders(self) -> dict[int, Path]:
        return dict(sorted({**resumable(self.folder), **checkpoint_folders(self.folder)}.items()))


class Training:
    """A run that is trained, or could be, in a process of its own; `training_of` and `branch_of` give one."""

    def __init__(self, job: Job):
        self.job = job
        self.error = ""  # why it ended, where that was not asked for; one line
        self._process = self._pipe = None
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
        """The step that training would go on from if everything ended now."""
        return max([*layout.step_folders(self.folder / "checkpoints"), *resumable(self.folder)], default=0)

    @property
    def state(self) -> str:
        """`ready` (never begun), `starting`, `training`, `pausing`, `paused`, `stopping`, `stopped`, `failed`, `done`;
        `elsewhere` where another process is at it."""
        with self._lock:
            self._hear()
            if self._process is not None:
                return self._phase
        if layout.step_folder(self.folder / "checkpoints", self.steps).is_dir():
            return "done"
        if files.is_locked(self.folder / layout.LOCK):
            return "elsewhere"
        return "failed" if self.error else "stopped" if layout.is_begun(self.folder) else "ready"

    def start(self) -> None:
        """Begin, or go on where it stopped; nothing happens if it is being trained, or complete.

        Raises UserError where the folder holds a run of another recipe.
        """
        with self._lock:
            state = self.state
            if state in ACTIVE or is_complete(self.folder, self.job.recipe, self.job.device):
                return
            self.error, self._phase = "", "starting"
            if state == "paused":
                self._pipe.send("go on")
            else:
                self._launch()
        self._tell_watchers()

    def pause(self) -> None:
        """Save at the next step and wait there: `start` goes on at once."""
        self._ask("pause", "pausing")

    def stop(self) -> None:
        """Save at the next step and end the process."""
        self._ask("stop", "stopping")

    def wait(self, timeout: float | None = None) -> str:
        """Wait until it is no longer trained, at most `timeout` seconds; returns `state`."""
        until = None if timeout is None else time.monotonic() + timeout
        while (state := self.state) in ACTIVE and (until is None or time.monotonic() < until):
            time.sleep(0.05)
        with self._lock:
            if self._process is not None and self._phase != "paused" and state not in ACTIVE:
                self._process.join()  # it has said that it ends
            return self.state

    def log(self) -> pl.DataFrame:
        """The run's log with the steps made since the last save, which come at most half a second late."""
        return read_live(self.folder)

    def watch(self, method: Callable[[], None]) -> None:
        """Call a method of some object whenever training starts; the object may go away."""
        self._watchers = [watcher for watcher in self._watchers if watcher()] + [WeakMethod(method)]

    def _tell_watchers(self) -> None:
        for watcher in self._watchers:
            if method := watcher():
                method()

    def _launch(self) -> None:
        if self._process is not None:  # it has said that it ends
            self._process.join()
        context = get_context("spawn")  # torch does not survive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self.job), name=f"train {self.folder.name}")
        try:
            with without_interrupts(), threads_each(self.job.threads):
                self._process.start()
        finally:
            theirs.close()

    def _ask(self, word: str, phase: str) -> None:
        with self._lock:
            self._hear()
            if self._process is not None and self._phase != "stopping":
                self._phase = phase if self._phase != "paused" or word == "stop" else "paused"
                with suppress(OSError):  # it has just ended: the next look tells how
                    self._pipe.send(word)

    def _hear(self) -> None:
        """Take in what the process says, and whether it is still there."""
        process = self._process
        if process is None:
            return
        alive = process.is_alive()  # asked first: what it said before its end is still in the pipe
        try:
            while self._pipe.poll():
                kind, line = self._pipe.recv()
                if kind == "training":
                    self._phase = "training" if self._phase == "starting" else self._phase
                elif kind == "paused":
                    self._phase = "paused" if self._phase != "stopping" else self._phase
                else:
                    self._phase, self.error = kind, line
        except (EOFError, OSError):
            alive = process.is_alive()
        if alive:
            return
        process.join()
        if process.exitcode:
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"status {process.exitcode}"
            self.error = (
                f"the training process ended ({how}), perhaps killed for want of memory; "
                f"step {self.saved:,} is saved, and resume goes on from there"
            )
        self._pipe.close()
        process.close()
        self._process = self._pipe = None


def training_of(
    recipe: str,
    profile: str = "default",
    seed: int = 0,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    name: str | None = None,
    device: str | None = None,
) -> Training:
    """The training of a recipe, arguments as for `train`: not begun, or the one that this process has under way.

    Raises UserError where recipe or overrides make no sense, or the folder holds a run of another recipe.
    """
    overrides = dict(overrides) if isinstance(overrides, Mapping) else list(overrides)
    made = load_recipe(recipe, profile, seed, overrides)
    return _register(Job(made, runs_dir() / (name or name_on(device, run_name(made, overrides))), device))


def branch_of(
    run: Run,
    step: int,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    name: str | None = None,
    device: str | None = None,
) -> Training:
    """The training of a branch, arguments as for `branch`: not begun, or the one that this process has under way.

    `run` may be a `SavedRun`, to leave it where it was paused. Raises UserError as `branch` does.
    """
    overrides = parse_overrides(overrides)
    changed, changes = branched_recipe(run, step, overrides)
    folder, _ = branch_folder(run, step, changes, name, device)
    return _register(Job(changed, folder, device or run.trained_on, (run, step, overrides)))


def _register(job: Job) -> Training:
    if not is_complete(job.folder, job.recipe, job.device):  # refuses a folder of another recipe or device
        need_device(job.device or begun_on(job.folder) or default_device())
    with _registering:
        found = _trainings.get(job.folder)
        if found and found.job.recipe == job.recipe:
            return found
        if found and found.state in (*ACTIVE, "paused"):
            raise UserError(f"{job.folder} is being trained with other settings; stop that, or give this another name")
        made = _trainings[job.folder] = Training(job)
        return made


# in the process that trains ------------------------------------------------------------------------------------------


def _work(pipe, job: Job) -> None:
    """Train; when paused, wait for what comes next; end when told so, or when nobody is left to tell."""
    os.setsid()  # a group of its own: a kernel that ends takes its group with it before anything could be saved
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # a notebook would show these under whatever cell ran last
        os.dup2(nowhere, stream)

    def live_log(path: Path) -> LiveLog:
        _say(pipe, "training")
        return LiveLog(path)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whatever is not training
    halt, wanted = threading.Event(), queue.SimpleQueue()

    def end(*_) -> None:
        wanted.put("end")
        halt.set()
        _thread.interrupt_main()

    def listen() -> None:
        while True:
            try:
                word = pipe.recv()
            except (EOFError, OSError):
                return end()
            if word == "go on":
                halt.clear()
                wanted.put(word)
            elif word == "pause":
                halt.set()
                _thread.interrupt_main()
            else:
                end()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=listen, daemon=True).start()
    try:
        while (outcome := _train(job, halt, live_log))[0] == "paused":
            _say(pipe, *outcome)
            if wanted.get() == "end":
                outcome = ("stopped", "")
                break
    except KeyboardInterrupt:  # between two lines of _train
        outcome = ("stopped", "")
    _say(pipe, *outcome)


def _train(job: Job, halt: threading.Event, log: Callable[[Path], Log]) -> tuple[str, str]:
    """What became of it: `done`, `paused`, `stopped` or `failed`, and why."""
    from lmdynamics.training.loop import Interrupted

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if halt.is_set():
            return "paused", ""
        options = {"device": job.device, "progress": False, "log": log}
        if job.origin is None or layout.is_begun(job.folder):
            build(job.recipe, job.folder, **options)
        else:
            run, step, overrides = job.origin
            branch(run, step, overrides, name=job.folder.name, **options)
        (job.folder / LIVE).unlink(missing_ok=True)
        return "done", ""
    except Interrupted:
        return "paused", ""
    except KeyboardInterrupt:  # while it started, perhaps amid an import: this process had better not go on
        return "stopped", ""
    except UserError as error:
        return "failed", str(error)
    except Exception as error:  # whatever it is, the person who looks on must hear of it
        return "failed", " ".join(f"{type(error).__name__}: {error}".split())
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _say(pipe, kind: str, line: str = "") -> None:
    with suppress(OSError):  # nobody listens any more
        pipe.send((kind, line))


def _end_all() -> None:
    """At the end of this process: whatever it trains saves and ends."""
    for training in _trainings.values():
        training.stop()


util.Finalize(None, _end_all, exitpriority=100)  # multiprocessing then waits for its processes

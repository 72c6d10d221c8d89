"""Watch a run during training: start, pause, resume, stop, or branch it, with a live chart."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from html import escape
from typing import Any

import altair as alt
import ipywidgets as widgets
import polars as pl

from lmdynamics.analysis.intervals import steps_without_loss
from lmdynamics.charts.live_training import live_rows, live_training
from lmdynamics.errors import UserError, one_line
from lmdynamics.explorers.live import show_live
from lmdynamics.jobs import background_pool
from lmdynamics.measurements.trace import Measurement, trace
from lmdynamics.runs.background import ACTIVE, SavedRun, Training, branch_of, training_of
from lmdynamics.runs.family import history
from lmdynamics.runs.run import Run

POLL_SECONDS = 1.0  # between two reads of the run's folder
# pause after a measurement, in times its duration, 10 s at most: even at low priority a measurement slows training
REST_FACTOR = 5


@dataclass(frozen=True)
class Watched:
    """A measurement to follow, or a function from a run to one, and the number of it to draw.

    `value` is a column of its frame, whose mean is drawn, or a function from the frame to a number.
    """

    measurement: Measurement | Callable[[Run], Measurement]
    value: str | Callable[[pl.DataFrame], float]

    def measure(self, run: Run, step: int, device: str, executor: Executor | None = None) -> float:
        """The number at one checkpoint, measured or read from the cache."""
        measurement = self.measurement if isinstance(self.measurement, Measurement) else self.measurement(run)
        frame = trace(run, measurement, steps=[step], executor=executor, device=device, progress=False)
        return float(frame[self.value].mean() if isinstance(self.value, str) else self.value(frame))


class TrainingExplorer:
    """A training with buttons and a chart. Nothing is trained before `start` is pressed, and the kernel stays free.

    A training started by another explorer, or another notebook, is shown with its progress. `measurements`: what to
    measure at each new checkpoint, by name; in a process of low priority, so that training is not slowed down.
    """

    def __init__(self, training: Training, measurements: Mapping[str, Watched] | None = None, *, device: str = "cpu"):
        self.measurements, self.device = dict(measurements or {}), device
        self._lock = threading.RLock()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self._revision = 0  # number of updates sent to the page
        self._measured: dict[tuple[str, int], float] = {}
        self._refused: set[str] = set()  # measurements that failed, which is reported once
        wide = widgets.Layout(width="430px")
        self.start, self.pause, self.resume, self.stop = self.buttons = [
            widgets.Button(description=label, layout=widgets.Layout(width="90px"))
            for label in ("start", "pause", "resume", "stop")
        ]
        self.changes = widgets.Text(placeholder="lr=0.001 masking=0.3", description="changes", layout=wide)
        self.branch = widgets.Button(description="branch from here", layout=widgets.Layout(width="140px"))
        self.status, self.message = widgets.HTML(), widgets.HTML()
        for button, action in zip(self.buttons, ("start", "pause", "start", "stop"), strict=True):
            button.on_click(lambda _, action=action: self._press(getattr(self.training, action)))
        self.branch.on_click(lambda _: self._press(self._branch))
        alt.JupyterChart.enable_offline()
        self._adopt(training)
        self.chart = alt.JupyterChart(self._picture(), embed_options={"actions": False})
        # a page that redraws the chart starts with an empty line, and needs the current rows
        self.chart.observe(lambda _: self._send(), names="_params")
        self.widget = widgets.VBox(
            [widgets.HBox(self.buttons), self.status, self.chart, widgets.HBox([self.changes, self.branch]),
             self.message]
        )  # fmt: skip
        self.refresh()
        self._watch()

    def show(self) -> None:
        """Show the training; a saved notebook keeps a picture of the state at this call."""
        with self._lock:
            chart = self._picture(self._line)
        show_live(self.widget, [chart])

    def refresh(self) -> str:
        """Read the run's folder and show its contents; returns the training's state."""
        with self._lock:
            training = self.training
            state = training.state
            log = training.log()
            before = self._line, self._rows
            self._line, self._rows = describe(state, training, log), live_rows(log, self._measurement_rows())
            self._revision += before != (self._line, self._rows)
            self.status.value = f"<code>{escape(training.folder.name)}</code> {escape(self._line)}"
            if training.error:
                self.message.value = escape(training.error)
            for button, enabled in zip(self.buttons, enabled_buttons(state), strict=True):
                button.disabled = not enabled
            self.branch.disabled = state in ("ready", "starting", "elsewhere", "stopping") or "branch" in self._threads
            self._send()
            return state

    def close(self) -> None:
        """Stop watching; the training continues."""
        with self._lock:
            self._closed.set()
        self._wake.set()
        for thread in list(self._threads.values()):
            if thread is not threading.current_thread():
                thread.join()

    def _adopt(self, training: Training) -> None:
        self.training = training
        self._line, self._rows = "", live_rows(training.log())
        self._measured.clear()
        training.watch(self._watch)

    def _picture(self, status: str = " ") -> alt.TopLevelMixin:
        training = self.training
        masking = training.job.recipe.objective != "clm"
        return live_training(training.steps, self._rows, list(self.measurements), masking, training.folder.name, status)

    def _send(self) -> None:
        """Send new rows and a new line to the page; the specification stays there."""
        with self._lock:
            if not hasattr(self, "chart") or self.chart._params.get("revision") == self._revision:
                return
            new = [{"namespace": "data", "name": name, "scope": [], "value": rows} for name, rows in self._rows.items()]
            with self.chart.hold_sync():
                self.chart._py_to_js_updates = new
                self.chart._params = {"status": self._line, "revision": self._revision}

    def _measurement_rows(self) -> pl.DataFrame:
        return measured_rows((step, name, value) for (name, step), value in sorted(self._measured.items()))

    # buttons

    def _press(self, action: Callable[[], None]) -> None:
        """Run the action of a button; an error is shown below, as text."""
        self.message.value = ""
        try:
            action()
        except UserError as error:
            self.message.value = escape(str(error))
        self.refresh()

    def _branch(self) -> None:
        overrides = self.changes.value.split()
        parent = self.training
        check_changes(parent, overrides)
        self._run(lambda: self._branch_off(parent, overrides), "branch")

    def _branch_off(self, parent: Training, overrides: list[str]) -> None:
        """Pause the training, start the branch from there, and watch the branch."""
        try:
            parent.pause()
            parent.wait()
            branch = branch_of(SavedRun(parent.folder), parent.saved, overrides, device=parent.job.device)
            with self._lock:
                self._adopt(branch)
                self.chart.spec = self._picture().to_dict(validate=False)
            branch.start()
            parent.stop()
        except UserError as error:
            self.message.value = escape(str(error))
        finally:
            with self._lock:
                self._threads.pop("branch", None)
            self._wake.set()

    # threads

    def _watch(self) -> None:
        """Watch the training, and measure; one thread each, which ends when there is nothing more to do."""
        self._run(self._poll, "poll")
        if self.measurements:
            self._run(self._measure, "measure")
        self._wake.set()

    def _run(self, action: Callable[[], None], name: str) -> None:
        with self._lock:
            if name not in self._threads and not self._closed.is_set():
                self._threads[name] = threading.Thread(target=action, name=name, daemon=True)
                self._threads[name].start()

    def _poll(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                if self.refresh() not in ACTIVE and set(self._threads) == {"poll"}:
                    del self._threads["poll"]
                    return
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _measure(self) -> None:
        with background_pool() as executor:
            while not self._closed.is_set():
                with self._lock:
                    training, todo = self.training, self._unmeasured()
                    if not todo and training.state not in ACTIVE:
                        break
                if not todo:
                    self._closed.wait(POLL_SECONDS)
                    continue
                (name, step, run), began = todo[0], time.perf_counter()
                try:
                    value = self.measurements[name].measure(run, step, self.device, executor)
                except Exception as error:  # the reader's own measurement may raise anything; training continues
                    self._refused.add(name)
                    self.message.value = escape(f"{name}: {one_line(error)}")
                    continue
                with self._lock:
                    if training is self.training:
                        self._measured[name, step] = value
                self._wake.set()
                self._pause_measuring(training, min(10.0, REST_FACTOR * (time.perf_counter() - began)))
        with self._lock:
            del self._threads["measure"]
            restarted = bool(self._unmeasured()) or self.training.state in ACTIVE
        self._wake.set()
        if restarted:  # training was resumed while the executor was closed
            self._watch()

    def _pause_measuring(self, training: Training, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and training.state in ACTIVE and not self._closed.is_set():
            self._closed.wait(0.1)

    def _unmeasured(self) -> list[tuple[str, int, Run]]:
        """What can be measured now, the newest checkpoint first; a branch shares its parent's history."""
        steps = sorted(history(Run(self.training.folder)).items(), reverse=True)
        names = [name for name in self.measurements if name not in self._refused]
        return [(name, step, run) for step, run in steps for name in names if (name, step) not in self._measured]


def train_live(
    recipe: str,
    profile: str = "default",
    seed: int = 0,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    name: str | None = None,
    device: str | None = None,
    measurements: Mapping[str, Watched] | None = None,
) -> TrainingExplorer:
    """An explorer of a recipe's training, with the arguments and errors of `lmd.train`."""
    training = training_of(recipe, profile, seed, overrides, name=name, device=device)
    return TrainingExplorer(training, measurements, device=device or "cpu")


def measured_rows(values: Iterable[tuple[int, str, float]]) -> pl.DataFrame:
    """Numbers of checkpoints as a frame: step, name, value."""
    return pl.DataFrame(list(values), {"step": pl.Int64, "name": pl.String, "value": pl.Float64}, orient="row")


def check_changes(training: Training, overrides: Iterable[str]) -> None:
    """Raise UserError for changes that a branch at the current step cannot make, before anything is paused."""
    from lmdynamics.runs.trained import changed_recipe

    changed_recipe(training.job.recipe, training.saved, overrides)


def enabled_buttons(state: str) -> tuple[bool, bool, bool, bool]:
    """Whether start, pause, resume and stop are enabled."""
    active = state in ("starting", "training")
    return state == "ready", active, state in ("paused", "stopped", "failed"), active or state in ("pausing", "paused")


def describe(state: str, training: Training, log: pl.DataFrame) -> str:
    """Step, loss, pace and time left in one line."""
    if log.is_empty():
        return {"ready": "not begun", "failed": "failed"}.get(state, f"{state} …")
    done = log["step"][-1] + 1
    parts = [f"{STATE_LABELS.get(state, state)} at step {done:,} of {training.steps:,}"]
    if len(losses := log["loss"].drop_nulls()):
        parts.append(f"loss {losses[-1]:.3f}")
    if (pace := steps_per_second(log)) and state == "training":
        parts += [f"{pace:,.3g} steps/s", f"{_duration((training.steps - done) / pace)} left"]
    if missing := steps_without_loss(log):
        parts.append(missing)
    return ", ".join(parts)


STATE_LABELS = {"done": "complete", "elsewhere": "trained by another process,"}


def steps_per_second(log: pl.DataFrame, over: float = 10.0) -> float | None:
    """The speed in the last `over` seconds of training; None if there are fewer than two steps."""
    recent = log.filter(pl.col("seconds") >= log["seconds"][-1] - over)
    recent = log.tail(2) if len(recent) < 2 else recent
    took = recent["seconds"][-1] - recent["seconds"][0]
    return (len(recent) - 1) / took if took > 0 else None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"

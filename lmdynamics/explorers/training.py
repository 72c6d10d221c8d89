"""Watch a run while it is trained: start it, pause, go on, stop, branch from where it is; a chart that moves."""

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

EVERY = 1.0  # seconds between two looks at what is there
REST = 5  # while it trains, times as long as a measurement took: even at low priority it slows what shares its core


@dataclass(frozen=True)
class Watched:
    """A measurement to follow: itself, or a function of the run that makes it; and which number of it to draw.

    `value` is a column of its frame, whose mean is drawn, or a function from the frame to a number.
    """

    measurement: Measurement | Callable[[Run], Measurement]
    value: str | Callable[[pl.DataFrame], float]

    def of(self, run: Run, step: int, device: str, executor: Executor | None = None) -> float:
        """Measured at one checkpoint, or read from the cache."""
        made = self.measurement if isinstance(self.measurement, Measurement) else self.measurement(run)
        frame = trace(run, made, steps=[step], executor=executor, device=device, progress=False)
        return float(frame[self.value].mean() if isinstance(self.value, str) else self.value(frame))


class TrainingExplorer:
    """A training with buttons and a chart. Nothing is trained before `start` is pressed, and the kernel stays free.

    What another explorer, or another notebook, has begun is shown where it stands. `measurements`: what to measure at
    each checkpoint as it lands, by name; in a process of low priority, so that training is not held up.
    """

    def __init__(self, training: Training, measurements: Mapping[str, Watched] | None = None, *, device: str = "cpu"):
        self.measurements, self.device = dict(measurements or {}), device
        self._lock = threading.RLock()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self._seen = 0  # how often something new went to the page
        self._measured: dict[tuple[str, int], float] = {}
        self._refused: set[str] = set()  # measurements that cannot be taken, said once
        wide = widgets.Layout(width="430px")
        self.start, self.pause, self.resume, self.stop = self.buttons = [
            widgets.Button(description=what, layout=widgets.Layout(width="90px"))
            for what in ("start", "pause", "resume", "stop")
        ]
        self.changes = widgets.Text(placeholder="lr=0.001 masking=0.3", description="changes", layout=wide)
        self.branch = widgets.Button(description="branch from here", layout=widgets.Layout(width="140px"))
        self.status, self.message = widgets.HTML(), widgets.HTML()
        for button, deed in zip(self.buttons, ("start", "pause", "start", "stop"), strict=True):
            button.on_click(lambda _, deed=deed: self._do(getattr(self.training, deed)))
        self.branch.on_click(lambda _: self._do(self._branch))
        alt.JupyterChart.enable_offline()
        self._adopt(training)
        self.chart = alt.JupyterChart(self._picture(), embed_options={"actions": False})
        # a page that draws the chart anew begins with an empty line, and is told what there is by now
        self.chart.observe(lambda _: self._send(), names="_params")
        self.widget = widgets.VBox(
            [widgets.HBox(self.buttons), self.status, self.chart, widgets.HBox([self.changes, self.branch]),
             self.message]
        )  # fmt: skip
        self.look()
        self._watch()

    def show(self) -> None:
        """Show the training; a saved notebook keeps a picture of where it stood when this was called."""
        with self._lock:
            chart = self._picture(self._line)
        show_live(self.widget, [chart])

    def look(self) -> str:
        """Read what the run's folder holds, and show it; returns the training's state."""
        with self._lock:
            training = self.training
            state = training.state
            log = training.log()
            before = self._line, self._rows
            self._line, self._rows = describe(state, training, log), live_rows(log, self._measurement_rows())
            self._seen += before != (self._line, self._rows)
            self.status.value = f"<code>{escape(training.folder.name)}</code> {escape(self._line)}"
            if training.error:
                self.message.value = escape(training.error)
            for button, enabled in zip(self.buttons, enabled_buttons(state), strict=True):
                button.disabled = not enabled
            self.branch.disabled = state in ("ready", "starting", "elsewhere", "stopping") or "branch" in self._threads
            self._send()
            return state

    def close(self) -> None:
        """Look on no longer; the training goes on."""
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

    def _picture(self, said: str = " ") -> alt.TopLevelMixin:
        training = self.training
        masking = training.job.recipe.objective != "clm"
        return live_training(training.steps, self._rows, list(self.measurements), masking, training.folder.name, said)

    def _send(self) -> None:
        """New rows and a new line to the page; the specification stays there."""
        with self._lock:
            if not hasattr(self, "chart") or self.chart._params.get("seen") == self._seen:
                return
            new = [{"namespace": "data", "name": name, "scope": [], "value": rows} for name, rows in self._rows.items()]
            with self.chart.hold_sync():
                self.chart._py_to_js_updates = new
                self.chart._params = {"said": self._line, "seen": self._seen}

    def _measurement_rows(self) -> pl.DataFrame:
        rows = [(step, name, value) for (name, step), value in sorted(self._measured.items())]
        return pl.DataFrame(rows, {"step": pl.Int64, "name": pl.String, "value": pl.Float64}, orient="row")

    # buttons

    def _do(self, deed: Callable[[], None]) -> None:
        """What a button does; what cannot be done is said below, as text."""
        self.message.value = ""
        try:
            deed()
        except UserError as error:
            self.message.value = escape(str(error))
        self.look()

    def _branch(self) -> None:
        overrides = self.changes.value.split()
        leaving = self.training
        check_changes(leaving, overrides)
        self._run(lambda: self._leave(leaving, overrides), "branch")

    def _leave(self, leaving: Training, overrides: list[str]) -> None:
        """Pause where it is, leave there, and look on at the branch."""
        try:
            leaving.pause()
            leaving.wait()
            made = branch_of(SavedRun(leaving.folder), leaving.saved, overrides, device=leaving.job.device)
            with self._lock:
                self._adopt(made)
                self.chart.spec = self._picture().to_dict(validate=False)
            made.start()
            leaving.stop()
        except UserError as error:
            self.message.value = escape(str(error))
        finally:
            with self._lock:
                self._threads.pop("branch", None)
            self._wake.set()

    # threads

    def _watch(self) -> None:
        """Look on while it is trained, and measure; one thread each, which ends when there is nothing more to see."""
        self._run(self._look_on, "look")
        if self.measurements:
            self._run(self._measure, "measure")
        self._wake.set()

    def _run(self, deed: Callable[[], None], name: str) -> None:
        with self._lock:
            if name not in self._threads and not self._closed.is_set():
                self._threads[name] = threading.Thread(target=deed, name=name, daemon=True)
                self._threads[name].start()

    def _look_on(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                if self.look() not in ACTIVE and set(self._threads) == {"look"}:
                    del self._threads["look"]
                    return
            self._wake.wait(EVERY)
            self._wake.clear()

    def _measure(self) -> None:
        with background_pool() as executor:
            while not self._closed.is_set():
                with self._lock:
                    training, todo = self.training, self._unmeasured()
                    if not todo and training.state not in ACTIVE:
                        break
                if not todo:
                    self._closed.wait(EVERY)
                    continue
                (name, step, run), began = todo[0], time.perf_counter()
                try:
                    value = self.measurements[name].of(run, step, self.device, executor)
                except Exception as error:  # the reader's own measurement may raise anything; training goes on
                    self._refused.add(name)
                    self.message.value = escape(f"{name}: {one_line(error)}")
                    continue
                with self._lock:
                    if training is self.training:
                        self._measured[name, step] = value
                self._wake.set()
                self._rest(training, min(10.0, REST * (time.perf_counter() - began)))
        with self._lock:
            del self._threads["measure"]
            again = bool(self._unmeasured()) or self.training.state in ACTIVE
        self._wake.set()
        if again:  # it began anew while the executor went
            self._watch()

    def _rest(self, training: Training, seconds: float) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until and training.state in ACTIVE and not self._closed.is_set():
            self._closed.wait(0.1)

    def _unmeasured(self) -> list[tuple[str, int, Run]]:
        """What can be measured by now, the newest checkpoint first; a branch's history is its parent's."""
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
    """An explorer of a recipe's training, arguments as for `lmd.train`; raises UserError as that does."""
    training = training_of(recipe, profile, seed, overrides, name=name, device=device)
    return TrainingExplorer(training, measurements, device=device or "cpu")


def check_changes(training: Training, overrides: Iterable[str]) -> None:
    """Refuse changes that a branch from where the training is could not make; nothing is paused for them."""
    from lmdynamics.runs.trained import changed_recipe

    changed_recipe(training.job.recipe, training.saved, overrides)


def enabled_buttons(state: str) -> tuple[bool, bool, bool, bool]:
    """Which of start, pause, resume and stop can be pressed."""
    at_it = state in ("starting", "training")
    return state == "ready", at_it, state in ("paused", "stopped", "failed"), at_it or state in ("pausing", "paused")


def describe(state: str, training: Training, log: pl.DataFrame) -> str:
    """Step, loss, pace and time left in one line."""
    if log.is_empty():
        return {"ready": "not begun", "failed": "failed"}.get(state, f"{state} …")
    done = log["step"][-1] + 1
    parts = [f"{WORDS.get(state, state)} at step {done:,} of {training.steps:,}"]
    if len(losses := log["loss"].drop_nulls()):
        parts.append(f"loss {losses[-1]:.3f}")
    if (pace := steps_per_second(log)) and state == "training":
        parts += [f"{pace:,.3g} steps/s", f"{_duration((training.steps - done) / pace)} left"]
    if left_out := steps_without_loss(log):
        parts.append(left_out)
    return ", ".join(parts)


WORDS = {"done": "complete", "elsewhere": "trained by another process,"}


def steps_per_second(log: pl.DataFrame, over: float = 10.0) -> float | None:
    """The pace of the last `over` seconds of training; None where there are not two steps."""
    recent = log.filter(pl.col("seconds") >= log["seconds"][-1] - over)
    recent = log.tail(2) if len(recent) < 2 else recent
    took = recent["seconds"][-1] - recent["seconds"][0]
    return (len(recent) - 1) / took if took > 0 else None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"

"""Branch from a run: choose a run, a checkpoint and a change; see the estimated cost; train the branch; compare."""

import threading
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import altair as alt
import ipywidgets as widgets
import polars as pl

from lmdynamics import charts
from lmdynamics.errors import UserError
from lmdynamics.experiments.comparison import compare_runs
from lmdynamics.explorers.live import show_live
from lmdynamics.explorers.training import TrainingExplorer
from lmdynamics.hub.suites import open_run
from lmdynamics.runs.background import ACTIVE, Training, branch_of
from lmdynamics.runs.family import branch_cost
from lmdynamics.runs.run import Run

CHANGES = ("nothing (repeats the parent)", "strength λ of the penalty", "masking schedule", "learning rate", "seed")


class BranchExplorer:
    """A branch of one of `runs`: its estimated cost, its training, and its comparison with the parent.

    Training starts when the button is pressed, in a separate process, so that the kernel stays free. `on_branch` is
    called with the finished branch, from another thread.

    Raises UserError if no run has saved optimizer state, so that none can be branched.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        device: str = "cpu",
        compare: bool = True,
        on_branch: Callable[[Run], None] | None = None,
    ):
        self.runs = {run.name: run for run in runs if branch_points(run)}
        if not self.runs:
            raise UserError("none of these runs has saved optimizer state; train one with --set optimizer_state=all")
        self.device, self.compare, self.on_branch = device, compare, on_branch
        self.branch: Run | None = None
        self.live: TrainingExplorer | None = None
        self._followed: set[Training] = set()
        self._lock = threading.Lock()
        style, wide = {"description_width": "90px"}, widgets.Layout(width="460px")
        first = next(iter(self.runs.values()))
        points = branch_points(first)
        self.run = widgets.Dropdown(options=list(self.runs), description="run", style=style, layout=wide)
        self.step = widgets.SelectionSlider(
            options=[(f"{step:,}", step) for step in points], value=points[len(points) // 2], description="leave at",
            style=style, layout=wide,
        )  # fmt: skip
        self.change = widgets.Dropdown(
            options=CHANGES, value=CHANGES[1], description="change", style=style, layout=wide
        )
        self.new_value = widgets.Text(value="0.0", description="to", style=style, layout=wide)
        self.cost, self.status = widgets.HTML(), widgets.HTML()
        self.button = widgets.Button(description="branch from here", button_style="primary")
        self.training = widgets.VBox()
        self.run.observe(lambda _: self._run_changed(), names="value")
        self.change.observe(lambda _: self._change_changed(), names="value")
        for control in (self.step, self.new_value):
            control.observe(lambda _: self._show_cost(), names="value")
        self.button.on_click(lambda _: self.begin())
        self.widget = widgets.VBox(
            [self.run, self.step, self.change, self.new_value, self.cost, self.button, self.status, self.training]
        )
        self._show_cost()

    def show(self) -> None:
        """Show the controls; the chart of a branch is added when it is trained."""
        show_live(self.widget, [])

    @property
    def changes(self) -> dict[str, Any]:
        """The chosen change as overrides of the parent's recipe; raises UserError if the text is not a valid value."""
        text, kind = self.new_value.value.strip(), CHANGES.index(self.change.value)
        key, read = [("", str), ("stages", float), ("masking", str), ("lr", float), ("seed", int)][kind]
        try:
            return {key: read(text)} if key else {}
        except ValueError:
            raise UserError(f"{text!r} is no number; {self.change.value} needs one") from None

    def begin(self) -> None:
        """Train the branch in a separate process, and show its progress; `follow` then compares it."""
        self.status.value = ""
        try:
            training = branch_of(self.runs[self.run.value], self.step.value, self.changes, device=self.device)
            if self.live is None or self.live.training is not training:
                if self.live is not None:
                    self.live.close()
                self.live = TrainingExplorer(training, device=self.device)
                self.training.children = [self.live.widget]
                training.watch(self.follow)  # also when it is resumed after a pause
            training.start()
            self.follow()
        except UserError as error:
            self.status.value = escape(str(error))

    def follow(self) -> None:
        """Compare the branch with its parent when it is trained; in a thread, which a pause ends."""
        training = self.live.training
        with self._lock:
            if training not in self._followed:
                self._followed.add(training)
                threading.Thread(target=self._finish, args=(training,), daemon=True).start()

    def _finish(self, training: Training) -> None:
        while True:
            state = training.wait()
            with self._lock:
                if training.state not in ACTIVE:
                    self._followed.remove(training)
                    break
        if state != "done" or training is not self.live.training:  # another branch may be shown by now
            return
        parent, self.branch = training.job.origin[0], open_run(training.folder)
        try:
            if self.compare:
                self.status.value = "comparing …"
                chart = comparison_chart(parent, self.branch, self.device)
                self.training.children = [self.live.widget, chart]
            self.status.value = f"<code>{escape(self.branch.name)}</code>"
            if self.on_branch:
                self.on_branch(self.branch)
        except UserError as error:
            self.status.value = escape(str(error))

    def _run_changed(self) -> None:
        points = branch_points(self.runs[self.run.value])
        nearest = min(points, key=lambda step: abs(step - self.step.value))
        self.step.options = [(f"{step:,}", step) for step in points]
        self.step.value = nearest
        self._show_cost()

    def _change_changed(self) -> None:
        recipe, kind = self.runs[self.run.value].recipe, CHANGES.index(self.change.value)
        texts = ["", "0.0", recipe.training.masking, f"{recipe.training.lr / 2:g}", str(recipe.seed + 1)]
        self.new_value.value = texts[kind]
        self.new_value.disabled = kind == 0
        self._show_cost()

    def _show_cost(self) -> None:
        """Show the estimated cost of the branch, or why it is impossible; enable or disable the button."""
        try:
            line = f"this will take {branch_cost(self.runs[self.run.value], self.step.value, self.changes)}"
            self.button.disabled = False
        except UserError as error:
            line, self.button.disabled = str(error), True
        self.cost.value = escape(line)


def branch_points(run: Run) -> list[int]:
    """Steps at which a run can be branched: those with optimizer state, except the last."""
    return [step for step in run.steps[:-1] if run[step].has_optimizer_state]


def comparison_chart(parent: Run, branched: Run, device: str = "cpu"):
    """Parent and branch over their common steps, one panel per measure."""
    alt.JupyterChart.enable_offline()
    table = compare_runs(parent, branched, device=device)
    frame = table.select(pl.col("run").alias("condition"), pl.lit(0).alias("seed"), "step", "measure", "value")
    return alt.JupyterChart(charts.conditions_panels(frame), embed_options={"actions": False})

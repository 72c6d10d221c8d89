"""A chooser of a masking-rate schedule, with a live preview of the rate over training."""

import shlex
from collections.abc import Mapping
from html import escape

import altair as alt
import ipywidgets as widgets
import polars as pl
from IPython.display import display

from lmdynamics import charts
from lmdynamics.errors import UserError
from lmdynamics.explorers.live import show_live
from lmdynamics.training.masking import SHAPES, Schedule, parse_schedule
from lmdynamics.training.recipes import load_recipe

POINTS = 200  # at which a schedule is drawn


def rates_over_training(schedules: Mapping[str, str | Schedule], steps: int) -> pl.DataFrame:
    """Masking rate of each schedule over `steps`: condition, step, rate."""
    steps_drawn = sorted({round(steps * i / POINTS) for i in range(POINTS + 1)})
    rows = [
        (name, step, (parse_schedule(schedule) if isinstance(schedule, str) else schedule)(step / steps))
        for name, schedule in schedules.items()
        for step in steps_drawn
    ]
    return pl.DataFrame(rows, {"condition": pl.String, "step": pl.Int64, "rate": pl.Float64}, orient="row")


class ScheduleChooser:
    """Choose shape, first and last rate; a preview shows the schedule with `references`, schedules to compare with.

    `value` is the chosen schedule as text, always a valid one. The command shown trains it with the same recipe,
    profile, seed and number of steps (0: the recipe's own) as the others.

    Raises UserError if the initial value is not a schedule, or there is no such recipe.
    """

    def __init__(
        self,
        start: str,
        references: Mapping[str, str],
        recipe: str = "grammar-mlm",
        profile: str = "default",
        seed: int = 0,
        steps: int = 0,
    ):
        changes = {"steps": steps} if steps else {}
        self.references, self.steps = dict(references), load_recipe(recipe, profile, seed, changes).training.steps
        options = [
            ("--profile", profile, "default"),
            ("--seed", str(seed), "0"),
            ("--set", f"steps={steps}", "steps=0"),
        ]
        arguments = [word for name, value, usual in options if value != usual for word in (name, value)]
        self._command = ["lmdynamics", "train", recipe, *arguments]
        chosen = parse_schedule(start)
        self.value = str(chosen)
        style = {"description_width": "80px"}
        rates = {"min": 0.01, "max": 0.99, "step": 0.01, "readout_format": ".0%", "continuous_update": False}
        self.shape = widgets.Dropdown(options=list(SHAPES), value=chosen.shape, description="shape", style=style)
        self.first = widgets.FloatSlider(value=chosen.rates[0], description="first rate", style=style, **rates)
        self.last = widgets.FloatSlider(value=chosen.rates[-1], description="last rate", style=style, **rates)
        self.last.disabled = chosen.shape == "constant"
        self.message = widgets.HTML()
        alt.JupyterChart.enable_offline()
        self.chart = alt.JupyterChart(self.preview(), embed_options={"actions": False})
        for control in (self.shape, self.first, self.last):
            control.observe(lambda _: self._changed(), names="value")
        self._show_command()
        self.widget = widgets.VBox([widgets.HBox([self.shape, self.first, self.last]), self.message, self.chart])

    def preview(self) -> alt.TopLevelMixin:
        """Rates over training of the chosen schedule and of the references."""
        references = {name: schedule for name, schedule in self.references.items() if schedule != self.value}
        return charts.masking_rates(rates_over_training({f"yours: {self.value}": self.value, **references}, self.steps))

    def show(self, output_dir: str = "", interactive: bool = True) -> None:
        """Show the chooser, or its initial value as a still figure."""
        if interactive:
            show_live(self.widget, [self.preview()])
        else:
            display(charts.show(self.preview(), "schedules", output_dir, interactive=False))

    def _changed(self) -> None:
        shape = self.shape.value
        self.last.disabled = shape == "constant"
        rates = (self.first.value,) if shape == "constant" else (self.first.value, self.last.value)
        try:
            self.value = str(Schedule(shape, tuple(round(rate, 4) for rate in rates)))
        except UserError as error:
            self._show_command(error)
            return
        self._show_command()
        self.chart.spec = self.preview().to_dict(validate=False)

    def _show_command(self, error: UserError | None = None) -> None:
        """Show the command for this schedule, or why it is invalid; as text, never as HTML."""
        line = str(error) if error else shlex.join([*self._command, "--set", f"masking={self.value}"])
        self.message.value = f"<code>{escape(line)}</code>"

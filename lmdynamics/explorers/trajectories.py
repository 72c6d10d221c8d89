"""Any curves over training, of one run or of several side by side, with one cursor through all and a table at it."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import altair as alt
import ipywidgets as widgets
import polars as pl
from IPython.display import display

from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.charts.conditions import is_share, names_of
from lmdynamics.charts.linked import Linked, Place
from lmdynamics.charts.small_multiples import small_multiples, told_at
from lmdynamics.errors import UserError
from lmdynamics.explorers.checkpoints import CheckpointSlider, nearest
from lmdynamics.explorers.explorer import Explorer
from lmdynamics.explorers.live import Views
from lmdynamics.explorers.saving import SaveRow, check_among, check_start, restored
from lmdynamics.html import STILL, html_table

ALL = ""  # no run and no measure has this name
CURSOR = "curves_step"
VIEW = "explorer_runs"


class Page(Protocol):
    """What can stand under the charts."""

    def _repr_html_(self) -> str: ...


class TrajectoryExplorer(Explorer):
    """Move through the checkpoints of one or more runs, and read off every measure at each.

    `curves`: run, measure, step, value, perhaps low and high (95 %), from any traces. `step`, `run`, `measure` choose
    where to start: by default the last checkpoint, all runs, all measures. `percent`: whether values are shares, or
    which measures are. `beside`: what else to show at a checkpoint, such as `charts.ColouredTokens`, looked up by step.

    Raises
    ------
    UserError
        If a column is missing, there are no rows, or a start value is not among those there are.
    """

    def __init__(
        self,
        curves: pl.DataFrame,
        *,
        step: int | None = None,
        run: str | None = None,
        measure: str | None = None,
        percent: bool | Collection[str] = False,
        beside: Callable[[int], Page] | None = None,
    ):
        need_columns(curves, ["run", "measure", "step", "value"], "the trajectory explorer")
        if curves.is_empty():
            raise UserError("the trajectory explorer: the frame has no rows; trace a measurement first")
        self.table = curves.with_columns(pl.col("run", "measure").cast(pl.String))
        self.percent, self.beside = percent, beside
        self.runs, self.measures = names_of(self.table, "run"), names_of(self.table, "measure")
        steps = self.table["step"].unique().sort().to_list()
        check_start("run", run, self.runs)
        check_start("measure", measure, self.measures)
        check_start("step", step, steps)
        style = {"style": {"description_width": "80px"}, "layout": widgets.Layout(width="330px")}
        self.run = widgets.Dropdown(options=_with_all(self.runs), value=run or ALL, description="run", **style)
        self.measure = widgets.Dropdown(
            options=_with_all(self.measures), value=measure or ALL, description="measure", **style
        )
        self.checkpoint = CheckpointSlider(steps, step)
        self.said, self.under = widgets.HTML(), widgets.HTML(layout=widgets.Layout(max_width="900px"))
        self.views = Views(self.checkpoint.clicks, upright=True)
        self.views.draw(self.stills())
        pickers = [self.run] * (len(self.runs) > 1) + [self.measure] * (len(self.measures) > 1)
        self.saving = SaveRow(self)
        parts = [widgets.HBox(pickers, layout=widgets.Layout(flex_flow="wrap")), self.checkpoint, self.views.widget]
        self.widget = widgets.VBox([*parts, self.said, self.under, self.saving.widget])
        self.checkpoint.observe(lambda _: self._moved(), names="step")
        for picker in (self.run, self.measure):
            picker.observe(lambda _: self._picked(), names="value")
        self._moved()

    @property
    def rows(self) -> pl.DataFrame:
        """The measures that are looked at, of all runs: those that are not looked at stand grey behind."""
        chosen = self.measure.value
        return self.table if chosen == ALL else self.table.filter(pl.col("measure") == chosen)

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        cursor = alt.param(name=CURSOR, value=self.checkpoint.step)
        runs = None if self.run.value == ALL else [self.run.value]
        return {VIEW: small_multiples(self.rows, cursor, percent=self.percent, runs=runs)}

    def show(self, output_dir: str = "", interactive: bool = True) -> None:
        """As for any explorer; what stands beside the charts stands below the still figures."""
        super().show(output_dir, interactive)
        if not interactive and self.beside is not None:
            display(self.beside(self.checkpoint.step), metadata=STILL)

    def tables(self) -> dict[str, pl.DataFrame]:
        return {VIEW: self.rows}

    def linked(self) -> Linked:
        steps = self.checkpoint.steps
        places = [
            Place(f"{step:,}", {CURSOR: step}, told_at(self.rows, step, self.percent), step, self._under(step))
            for step in steps
        ]
        return Linked("checkpoint at step", places, steps.index(self.checkpoint.step), self.stills())

    def state(self) -> dict[str, str | int]:
        """What is looked at as literals, for `restore`; an empty name is all of them."""
        return {"run": self.run.value, "measure": self.measure.value, "step": self.checkpoint.step}

    def restore(self, state: Mapping[str, Any]) -> "TrajectoryExplorer":
        wanted = restored(state, self.state())
        check_among("run", wanted["run"], [ALL, *self.runs])
        check_among("measure", wanted["measure"], [ALL, *self.measures])
        check_among("step", wanted["step"], self.checkpoint.steps)
        self.run.value, self.measure.value = wanted["run"], wanted["measure"]
        self.checkpoint.go(wanted["step"])
        return self

    def _picked(self) -> None:
        self.views.draw(self.stills())
        self._moved()

    def _moved(self) -> None:
        step = self.checkpoint.step
        self.views.set(**{CURSOR: step})
        self.said.value = self._numbers(step)
        self.under.value = self._under(step)

    def _under(self, step: int) -> str:
        return "" if self.beside is None else self.beside(step)._repr_html_()

    def _numbers(self, step: int) -> str:
        """Every run's measures at the checkpoint, or at its own nearest one, as a table."""
        measures = names_of(self.rows, "measure")
        shown, lines = [name for name in self.runs if self.run.value in (ALL, name)], []
        for run in shown:
            of_run = self.rows.filter(pl.col("run") == run)
            at = nearest(of_run["step"].unique().sort(), step)
            here = {row["measure"]: row for row in of_run.filter(pl.col("step") == at).iter_rows(named=True)}
            values = [_value(here.get(measure), is_share(measure, self.percent)) for measure in measures]
            lines.append([run, f"{at:,}", *values])
        return html_table(["run", "step", *measures], lines)


def _value(row: Mapping | None, share: bool) -> str:
    if row is None or row["value"] is None:
        return "–"
    return with_interval(row["value"], (row.get("low"), row.get("high")), ".1%" if share else "#.4g").replace("-", "−")


def _with_all(names: list[str]) -> list[tuple[str, str]]:
    return [("all", ALL), *((name, name) for name in names)]

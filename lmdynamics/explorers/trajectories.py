"""Explore any curves over training, of one run or of several, with one cursor for all and a table of values."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Protocol

import polars as pl
from IPython.display import display

from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.charts.axes import Cursor, nearest
from lmdynamics.charts.conditions import is_share, names_of
from lmdynamics.charts.moving import Moving, Place, with_slider
from lmdynamics.charts.small_multiples import small_multiples, step_text
from lmdynamics.errors import UserError
from lmdynamics.explorers.explorer import ALL, Explorer, State, step_options, with_all
from lmdynamics.html import STILL, html_table


class Page(Protocol):
    """What can be shown under the charts."""

    def _repr_html_(self) -> str: ...


class TrajectoryExplorer(Explorer):
    """Move through the checkpoints of one or more runs, and read the value of every measure.

    `curves`: run, measure, step, value, perhaps low and high (95 %), from any traces. `step`, `run`, `measure` are the
    initial selection: by default the last checkpoint, all runs, all measures. `percent`: whether values are shares, or
    which measures are. `details`: a function from a step to what is shown below, such as `charts.ColouredTokens`.

    Raises
    ------
    UserError
        If a column is missing, there are no rows, or an initial value is unknown.
    """

    name = "explorer_runs"
    pickers: ClassVar = {"run": "run", "measure": "measure"}

    def __init__(
        self,
        curves: pl.DataFrame,
        *,
        step: int | None = None,
        run: str | None = None,
        measure: str | None = None,
        percent: bool | Collection[str] = False,
        details: Callable[[int], Page] | None = None,
    ):
        need_columns(curves, ["run", "measure", "step", "value"], "the trajectory explorer")
        if curves.is_empty():
            raise UserError("the trajectory explorer: the frame has no rows; trace a measurement first")
        self.table = curves.with_columns(pl.col("run", "measure").cast(pl.String))
        self.percent, self.details = percent, details
        self.steps = self.table["step"].unique().sort().to_list()
        self.start(run=run, measure=measure, step=step)

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        return step_options(self.steps) if entry == "step" else with_all(names_of(self.table, entry))

    @property
    def rows(self) -> pl.DataFrame:
        """The selected measures, of all runs: runs that are not selected are drawn in grey."""
        chosen = self.now["measure"]
        return self.table if chosen == ALL else self.table.filter(pl.col("measure") == chosen)

    def moving(self) -> Moving:
        cursor, run = Cursor(self.steps), self.now["run"]
        chart = small_multiples(self.rows, cursor, percent=self.percent, runs=None if run == ALL else [run])
        places = [Place(f"{step:,}", step_text(self.rows, step, self.percent), self._html(step)) for step in self.steps]
        return with_slider(chart, cursor, self.now["step"], places)

    def tables(self) -> dict[str, pl.DataFrame]:
        return {self.name: self.rows}

    def show(self, output_dir: str = "", interactive: bool = True) -> None:
        """As for any explorer; `details` are shown below the still figures."""
        super().show(output_dir, interactive)
        if not interactive and self.details is not None:
            display(self.details(self.now["step"]), metadata=STILL)

    def _html(self, step: int) -> str:
        return self._numbers(step) + ("" if self.details is None else self.details(step)._repr_html_())

    def _numbers(self, step: int) -> str:
        """Every run's measures at the checkpoint, or at its nearest one, as a table."""
        measures = names_of(self.rows, "measure")
        runs, lines = [name for name in names_of(self.table, "run") if self.now["run"] in (ALL, name)], []
        for run in runs:
            run_rows = self.rows.filter(pl.col("run") == run)
            closest = nearest(run_rows["step"].unique().sort(), step)
            row_of = {row["measure"]: row for row in run_rows.filter(pl.col("step") == closest).iter_rows(named=True)}
            values = [_value(row_of.get(measure), is_share(measure, self.percent)) for measure in measures]
            lines.append([run, f"{closest:,}", *values])
        return html_table(["run", "step", *measures], lines)


def _value(row: Mapping | None, share: bool) -> str:
    if row is None or row["value"] is None:
        return "–"
    return with_interval(row["value"], (row.get("low"), row.get("high")), ".1%" if share else "#.4g").replace("-", "−")

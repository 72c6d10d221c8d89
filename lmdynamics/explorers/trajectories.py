"""Any curves over training, of one run or of several side by side, with one cursor through all and a table at it."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Protocol

import polars as pl
from IPython.display import display

from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.charts.axes import Cursor, nearest
from lmdynamics.charts.conditions import is_share, names_of
from lmdynamics.charts.moving import Moving, Place, moved
from lmdynamics.charts.small_multiples import small_multiples, told_at
from lmdynamics.errors import UserError
from lmdynamics.explorers.explorer import ALL, Explorer, State, numbered, with_all
from lmdynamics.html import STILL, html_table


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
        beside: Callable[[int], Page] | None = None,
    ):
        need_columns(curves, ["run", "measure", "step", "value"], "the trajectory explorer")
        if curves.is_empty():
            raise UserError("the trajectory explorer: the frame has no rows; trace a measurement first")
        self.table = curves.with_columns(pl.col("run", "measure").cast(pl.String))
        self.percent, self.beside = percent, beside
        self.steps = self.table["step"].unique().sort().to_list()
        self.start(run=run, measure=measure, step=step)

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        return numbered(self.steps) if entry == "step" else with_all(names_of(self.table, entry))

    @property
    def rows(self) -> pl.DataFrame:
        """The measures that are looked at, of all runs: those that are not looked at stand grey behind."""
        chosen = self.now["measure"]
        return self.table if chosen == ALL else self.table.filter(pl.col("measure") == chosen)

    def moving(self) -> Moving:
        cursor, run = Cursor(self.steps), self.now["run"]
        chart = small_multiples(self.rows, cursor, percent=self.percent, runs=None if run == ALL else [run])
        places = [Place(f"{step:,}", told_at(self.rows, step, self.percent), self._under(step)) for step in self.steps]
        return moved(chart, cursor, self.now["step"], places)

    def tables(self) -> dict[str, pl.DataFrame]:
        return {self.name: self.rows}

    def show(self, output_dir: str = "", interactive: bool = True) -> None:
        """As for any explorer; what stands beside the charts stands below the still figures."""
        super().show(output_dir, interactive)
        if not interactive and self.beside is not None:
            display(self.beside(self.now["step"]), metadata=STILL)

    def _under(self, step: int) -> str:
        return self._numbers(step) + ("" if self.beside is None else self.beside(step)._repr_html_())

    def _numbers(self, step: int) -> str:
        """Every run's measures at the checkpoint, or at its own nearest one, as a table."""
        measures = names_of(self.rows, "measure")
        shown, lines = [name for name in names_of(self.table, "run") if self.now["run"] in (ALL, name)], []
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

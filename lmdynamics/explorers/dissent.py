"""Explore gradient dissent: the plane and the curves over training follow the same checkpoint."""

from collections.abc import Mapping
from typing import Any, ClassVar

import polars as pl

from lmdynamics import charts
from lmdynamics.analysis.intervals import bounded, need_columns
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.conditions import names_of
from lmdynamics.charts.moving import Moving, Place, in_column, in_row, with_slider
from lmdynamics.errors import UserError
from lmdynamics.explorers.explorer import ALL, Explorer, State, step_options, with_all
from lmdynamics.html import html_table

COLUMNS = {
    "dissent": "dissent",
    "cos_hidden_attractive": "h and attraction",
    "cos_hidden_repulsive": "h and repulsion",
}


class DissentExplorer(Explorer):
    """Move through checkpoints, and see the directions of attraction and repulsion for each group of tokens.

    `table`: step, group, dissent, cos_hidden_attractive, cos_hidden_repulsive and their intervals, perhaps `curve`,
    from `analysis.gradients.dissent_by_group`. `step`, `curve`, `group` are the initial selection: by default the last
    step, all curves, all groups. `published`: published values of dissent, by name.

    Raises
    ------
    UserError
        If a column is missing, there are no rows, or an initial value is unknown.
    """

    name = "explorer_dissent"
    pickers: ClassVar = {"curve": "curve", "group": "tokens"}

    def __init__(
        self,
        table: pl.DataFrame,
        *,
        step: int | None = None,
        curve: str | None = None,
        group: str | None = None,
        published: Mapping[str, float] | None = None,
    ):
        need_columns(table, ["step", "group", *COLUMNS], "the dissent explorer")
        if table.is_empty():
            raise UserError("the dissent explorer: the frame has no rows; trace Dissent on some text first")
        table = table if "curve" in table.columns else table.with_columns(curve=pl.lit(""))
        self.table, self.published = table.with_columns(pl.col("curve", "group").cast(pl.String)), published
        self.groups = names_of(self.table, "group")
        self.start(curve=curve, group=group, step=step)

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        if entry == "step":
            return step_options(self.rows_of(now)["step"].unique().sort())
        return with_all(names_of(self.table, entry))

    def rows_of(self, now: State) -> pl.DataFrame:
        chosen = {name: now[name] for name in ("curve", "group") if now[name] != ALL}
        return self.table.filter(**chosen)

    @property
    def rows(self) -> pl.DataFrame:
        """The selected curves and groups, at every step."""
        return self.rows_of(self.now)

    def moving(self) -> Moving:
        steps = list(self.choices("step", self.now))
        options = {"cursor": Cursor(steps), "groups": self.groups}
        plane = charts.dissent_plane(self.rows, **options)
        course = charts.dissent_over_training(self.rows, published=self.published, **options)
        one_row = self.rows["curve"].n_unique() <= 2
        chart = in_row(plane, course) if one_row else in_column(plane, course)
        # more than two curves fill the screen without a table; the tooltips have its numbers
        tables = [_table(self.rows.filter(step=step)) if one_row else "" for step in steps]
        places = [
            Place(f"{step:,}", self.describe_step(step), table) for step, table in zip(steps, tables, strict=True)
        ]
        return with_slider(chart, options["cursor"], self.now["step"], places)

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data of the views: of the plane at the selected step, of the curves at all steps."""
        return {"dissent_plane": self.rows.filter(step=self.now["step"]), "dissent_over_training": self.rows}

    def describe_step(self, step: int) -> str:
        """Dissent at a step: of all selected curves and groups or, if there are many, the lowest and the highest."""
        rows = self.rows.filter(pl.col("step") == step).drop_nulls("dissent").sort("dissent").to_dicts()
        if not rows:
            return f"Step {step:,}: dissent is undefined."
        extremes = rows if len(rows) <= 4 else [rows[0], rows[-1]]
        parts = [
            f"{bounded(row, 'dissent', '.2f')} ({', '.join(filter(None, [row['curve'], row['group']]))})"
            for row in extremes
        ]
        return f"Step {step:,}: dissent {' to '.join(parts) if len(rows) > 4 else '; '.join(parts)}."


def _table(rows: pl.DataFrame) -> str:
    """Dissent and both cosines by group, at one step; of several curves dissent alone, with a column for each curve."""
    curves = names_of(rows, "curve")
    if len(curves) < 2:
        lines = [[row["group"], *(bounded(row, name, ".2f") for name in COLUMNS)] for row in rows.iter_rows(named=True)]
        return html_table(["tokens", *COLUMNS.values()], lines)
    cells = {(row["group"], row["curve"]): bounded(row, "dissent", ".2f") for row in rows.iter_rows(named=True)}
    lines = [[group, *(cells.get((group, curve), "") for curve in curves)] for group in names_of(rows, "group")]
    return html_table(["dissent of tokens", *curves], lines)

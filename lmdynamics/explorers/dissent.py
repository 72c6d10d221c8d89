"""Gradient dissent, to step through: the plane and the course over training move together."""

from collections.abc import Mapping
from typing import Any, ClassVar

import polars as pl

from lmdynamics import charts
from lmdynamics.analysis.intervals import bounded, need_columns
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.conditions import names_of
from lmdynamics.charts.moving import Moving, Place, above, beside, moved
from lmdynamics.errors import UserError
from lmdynamics.explorers.explorer import ALL, Explorer, State, numbered, with_all
from lmdynamics.html import html_table

COLUMNS = {
    "dissent": "dissent",
    "cos_hidden_attractive": "h and attraction",
    "cos_hidden_repulsive": "h and repulsion",
}


class DissentExplorer(Explorer):
    """Move through checkpoints, and see where attraction and repulsion point, for each group of tokens.

    `table`: step, group, dissent, cos_hidden_attractive, cos_hidden_repulsive and their intervals, perhaps `curve`, as
    `analysis.gradients.dissent_by_group` gives them. `step`, `curve`, `group` choose where to start: by default the
    last step, all curves, all groups. `published`: readings of dissent to compare with, by name.

    Raises
    ------
    UserError
        If a column is missing, there are no rows, or a start value is not among those there are.
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
            return numbered(self.rows_of(now)["step"].unique().sort())
        return with_all(names_of(self.table, entry))

    def rows_of(self, now: State) -> pl.DataFrame:
        chosen = {name: now[name] for name in ("curve", "group") if now[name] != ALL}
        return self.table.filter(**chosen)

    @property
    def rows(self) -> pl.DataFrame:
        """The curve and the groups that are looked at, at every step."""
        return self.rows_of(self.now)

    def moving(self) -> Moving:
        steps = list(self.choices("step", self.now))
        options = {"cursor": Cursor(steps), "groups": self.groups}
        plane = charts.dissent_plane(self.rows, **options)
        course = charts.dissent_over_training(self.rows, published=self.published, **options)
        few = self.rows["curve"].n_unique() <= 2
        chart = beside(plane, course) if few else above(plane, course)
        places = [Place(f"{step:,}", self.in_words(step), _told(self.rows.filter(step=step))) for step in steps]
        return moved(chart, options["cursor"], self.now["step"], places)

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data behind the views: of the plane at its step, of the course at all of them."""
        return {"dissent_plane": self.rows.filter(step=self.now["step"]), "dissent_over_training": self.rows}

    def in_words(self, step: int) -> str:
        """Dissent at a step: of what is looked at, or, of many curves and groups, the least and the most."""
        rows = self.rows.filter(pl.col("step") == step).drop_nulls("dissent").sort("dissent").to_dicts()
        if not rows:
            return f"Step {step:,}: dissent is undefined."
        ends = rows if len(rows) <= 4 else [rows[0], rows[-1]]
        parts = [
            f"{bounded(row, 'dissent', '.2f')} ({', '.join(filter(None, [row['curve'], row['group']]))})"
            for row in ends
        ]
        return f"Step {step:,}: dissent {' to '.join(parts) if len(rows) > 4 else '; '.join(parts)}."


def _told(rows: pl.DataFrame) -> str:
    """The numbers at one step as a table."""
    curves = ["curve"] if rows["curve"].n_unique() > 1 else []
    lines = [
        [*(row[name] for name in [*curves, "group"]), *(bounded(row, name, ".2f") for name in COLUMNS)]
        for row in rows.iter_rows(named=True)
    ]
    return html_table([*curves, "tokens", *COLUMNS.values()], lines)

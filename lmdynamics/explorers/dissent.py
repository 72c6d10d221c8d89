"""Gradient dissent, to step through: the plane and the course over training move together."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import ipywidgets as widgets
import polars as pl

from lmdynamics import charts
from lmdynamics.analysis.intervals import bounded, need_columns
from lmdynamics.charts.linked import Linked, Place
from lmdynamics.errors import UserError
from lmdynamics.explorers.checkpoints import CheckpointSlider, nearest
from lmdynamics.explorers.explorer import Explorer
from lmdynamics.explorers.live import Views
from lmdynamics.explorers.saving import SaveRow, check_among, check_start, restored
from lmdynamics.html import html_table

ALL = ""  # no curve and no group has this name, unless there is only one curve
CURSOR = "plane_step"
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
        self.curves, self.groups = (
            table[name].cast(pl.String).unique(maintain_order=True).to_list() for name in ("curve", "group")
        )
        steps = table["step"].unique().sort().to_list()
        check_start("curve", curve, self.curves)
        check_start("group", group, self.groups)
        check_start("step", step, steps)
        style = {"description_width": "80px"}
        narrow = {"style": style, "layout": widgets.Layout(width="300px")}
        self.curve = widgets.Dropdown(options=_with_all(self.curves), value=curve or ALL, description="curve", **narrow)
        self.group = widgets.Dropdown(
            options=_with_all(self.groups), value=group or ALL, description="tokens", **narrow
        )
        self.checkpoint = CheckpointSlider(steps, step)
        self.said = widgets.HTML()
        self.views = Views(self.checkpoint.clicks, upright=True)
        self.views.draw(self.stills())
        pickers = [self.curve] * (len(self.curves) > 1) + [self.group] * (len(self.groups) > 1)
        wrap = widgets.Layout(flex_flow="wrap")
        self.saving = SaveRow(self)
        shown = [self.checkpoint, self.said, self.views.widget, self.saving.widget]
        self.widget = widgets.VBox([widgets.HBox(pickers, layout=wrap), *shown])
        self.checkpoint.observe(lambda _: self._moved(), names="step")
        for picker in (self.curve, self.group):
            picker.observe(lambda _: self._picked(), names="value")
        self._moved()

    @property
    def rows(self) -> pl.DataFrame:
        """The curve and the groups that are looked at, at every step."""
        chosen = {"curve": self.curve.value, "group": self.group.value}
        return self.table.filter(**{name: value for name, value in chosen.items() if value != ALL})

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        cursor = alt.param(name=CURSOR, value=self.checkpoint.step)
        options = {"cursor": cursor, "groups": self.groups}
        return {
            "dissent_plane": charts.dissent_plane(self.rows, self._step(), **options),
            "dissent_over_training": charts.dissent_over_training(self.rows, published=self.published, **options),
        }

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data behind the views: of the plane at its step, of the course at all of them."""
        return {"dissent_plane": self.rows.filter(pl.col("step") == self._step()), "dissent_over_training": self.rows}

    def linked(self) -> Linked:
        steps = self.rows["step"].unique().sort().to_list()
        places = [Place(f"{step:,}", {CURSOR: step}, self._in_words(step), step) for step in steps]
        return Linked("checkpoint at step", places, steps.index(self._step()), self.stills())

    def state(self) -> dict[str, str | int]:
        """What is looked at as literals, for `restore`; an empty name is all of them."""
        return {"curve": self.curve.value, "group": self.group.value, "step": self.checkpoint.step}

    def restore(self, state: Mapping[str, Any]) -> "DissentExplorer":
        wanted = restored(state, self.state())
        controls = {"curve": self.curve, "group": self.group}
        for name, control in controls.items():
            check_among(name, wanted[name], [value for _, value in control.options])
        check_among("step", wanted["step"], self.checkpoint.steps)
        for name, control in controls.items():
            control.value = wanted[name]
        self.checkpoint.go(wanted["step"])
        return self

    def _step(self) -> int:
        """The chosen step, or where a curve was not measured there, the nearest."""
        return nearest(self.rows["step"].unique().sort(), self.checkpoint.step)

    def _in_words(self, step: int) -> str:
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

    def _moved(self) -> None:
        self.views.set(**{CURSOR: self._step()})
        self.said.value = _told(self.rows.filter(pl.col("step") == self._step()))

    def _picked(self) -> None:
        self.views.draw(self.stills())
        self._moved()


def _with_all(names: list[str]) -> list[tuple[str, str]]:
    return [("all", ALL), *((name, name) for name in names if name != ALL)]


def _told(rows: pl.DataFrame) -> str:
    """The numbers at one step as a table."""
    curves = ["curve"] if rows["curve"].n_unique() > 1 else []
    lines = [
        [*(row[name] for name in [*curves, "group"]), *(bounded(row, name, ".2f") for name in COLUMNS)]
        for row in rows.iter_rows(named=True)
    ]
    return html_table([*curves, "tokens", *COLUMNS.values()], lines)

"""Gradient dissent, to step through: the plane and the course over training move together."""

from collections.abc import Mapping
from html import escape
from typing import Any

import altair as alt
import ipywidgets as widgets
import polars as pl

from lmdynamics import charts
from lmdynamics.charts.linked import Linked, Place
from lmdynamics.curves.intervals import need_columns
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.explorers.live import LiveChart
from lmdynamics.explorers.saving import SaveRow, check_among, restored, show_still

ALL = ""  # no curve and no group has this name, unless there is only one curve
CURSOR = "plane_step"
COLUMNS = {
    "dissent": "dissent",
    "cos_hidden_attractive": "h and attraction",
    "cos_hidden_repulsive": "h and repulsion",
}


class DissentExplorer:
    """Move through checkpoints, and see where attraction and repulsion point, for each group of tokens.

    `table`: step, group, dissent, cos_hidden_attractive, cos_hidden_repulsive and their intervals, perhaps `curve`, as
    `curves.dissent.dissent_by_group` gives them. `step`, `curve`, `group` choose where to start: by default the last
    step, all curves, all groups. `published`: readings of dissent to compare with, by name.

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
        for what, chosen, known in (("curve", curve, self.curves), ("group", group, self.groups)):
            if chosen is not None and chosen not in known:
                raise UserError(f"there is no {what} {chosen!r}{did_you_mean(chosen, known)}")
        if step is not None and step not in steps:
            raise UserError(f"step {step} was not measured; measured: {', '.join(map(str, steps))}")
        style = {"description_width": "80px"}
        narrow = {"style": style, "layout": widgets.Layout(width="300px")}
        self.curve = widgets.Dropdown(options=_with_all(self.curves), value=curve or ALL, description="curve", **narrow)
        self.group = widgets.Dropdown(
            options=_with_all(self.groups), value=group or ALL, description="tokens", **narrow
        )
        self.step = widgets.SelectionSlider(
            options=[(f"{each:,}", each) for each in steps], value=steps[-1] if step is None else step,
            description="checkpoint", style=style, layout=widgets.Layout(width="520px"),
        )  # fmt: skip
        self.said = widgets.HTML()
        self._charts = {name: LiveChart(chart, **{CURSOR: self.step.value}) for name, chart in self.stills().items()}
        pickers = [self.curve] * (len(self.curves) > 1) + [self.group] * (len(self.groups) > 1)
        self.views = widgets.VBox([chart.widget for chart in self._charts.values()])
        wrap = widgets.Layout(flex_flow="wrap")
        self.saving = SaveRow(self)
        shown = [widgets.HBox(pickers, layout=wrap), self.step, self.said, self.views, self.saving.widget]
        self.widget = widgets.VBox(shown)
        self.step.observe(lambda _: self._moved(), names="value")
        for picker in (self.curve, self.group):
            picker.observe(lambda _: self._picked(), names="value")
        self._moved()

    @property
    def rows(self) -> pl.DataFrame:
        """The curve and the groups that are looked at, at every step."""
        chosen = {"curve": self.curve.value, "group": self.group.value}
        return self.table.filter(**{name: value for name, value in chosen.items() if value != ALL})

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        """The two views as they stand, by name: what a page without controls shows."""
        cursor = alt.param(name=CURSOR, value=self.step.value)
        options = {"cursor": cursor, "groups": self.groups}
        return {
            "dissent_plane": charts.dissent_plane(self.rows, self._step(), **options),
            "dissent_over_training": charts.dissent_over_training(self.rows, published=self.published, **options),
        }

    def show(self, output_dir: str = "", interactive: bool = True) -> widgets.Widget | None:
        """The explorer itself, or its start values as still figures (and files, if `output_dir` is given)."""
        if interactive:
            return self.widget
        show_still(self.stills(), self.linked(), output_dir)
        return None

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data behind the views: of the plane at its step, of the course at all of them."""
        return {"dissent_plane": self.rows.filter(pl.col("step") == self._step()), "dissent_over_training": self.rows}

    def linked(self) -> Linked:
        """The views with every step inside, for a page whose slider needs no kernel."""
        steps = self.rows["step"].unique().sort().to_list()
        places = [Place(f"{step:,}", {CURSOR: step}, self._in_words(step)) for step in steps]
        return Linked("checkpoint at step", places, steps.index(self._step()), self.stills())

    def state(self) -> dict[str, str | int]:
        """What is looked at as literals, for `restore`; an empty name is all of them."""
        return {"curve": self.curve.value, "group": self.group.value, "step": self.step.value}

    def restore(self, state: Mapping[str, Any]) -> "DissentExplorer":
        """Look again at what `state()` has told, and return the explorer; what a state does not name stays.

        Raises
        ------
        UserError
            If the state has an entry that is not known, or that the table does not have (any more).
        """
        wanted = restored(state, self.state())
        controls = {"curve": self.curve, "group": self.group, "step": self.step}
        for name, control in controls.items():
            check_among(name, wanted[name], [value for _, value in control.options])
        for name, control in controls.items():
            control.value = wanted[name]
        return self

    def _step(self) -> int:
        """The chosen step, or where a curve was not measured there, the nearest."""
        return min(self.rows["step"].unique(), key=lambda step: abs(step - self.step.value))

    def _in_words(self, step: int) -> str:
        """Dissent at a step: of what is looked at, or, of many curves and groups, the least and the most."""
        rows = self.rows.filter(pl.col("step") == step).drop_nulls("dissent").sort("dissent").to_dicts()
        if not rows:
            return f"Step {step:,}: dissent is undefined."
        ends = rows if len(rows) <= 4 else [rows[0], rows[-1]]
        parts = [
            f"{_bounded(row, 'dissent')} ({', '.join(filter(None, [row['curve'], row['group']]))})" for row in ends
        ]
        return f"Step {step:,}: dissent {' to '.join(parts) if len(rows) > 4 else '; '.join(parts)}."

    def _moved(self) -> None:
        for chart in self._charts.values():
            chart.set(**{CURSOR: self._step()})
        self.said.value = _told(self.rows.filter(pl.col("step") == self._step()))

    def _picked(self) -> None:
        for name, chart in self.stills().items():
            self._charts[name].redraw(chart)
        self._moved()


def _with_all(names: list[str]) -> list[tuple[str, str]]:
    return [("all", ALL), *((name, name) for name in names if name != ALL)]


def _told(rows: pl.DataFrame) -> str:
    """The numbers at one step as a table."""
    cell = "padding: 0 1.2em 0 0; text-align: left"
    curves = rows["curve"].n_unique() > 1
    heads = [*(["curve"] if curves else []), "tokens", *COLUMNS.values()]
    body = []
    for row in rows.iter_rows(named=True):
        values = [*([row["curve"]] if curves else []), row["group"], *(_bounded(row, name) for name in COLUMNS)]
        body.append("".join(f"<td style='{cell}'>{escape(str(value))}</td>" for value in values))
    head = "".join(f"<th style='{cell}'>{name}</th>" for name in heads)
    lines = "".join(f"<tr>{line}</tr>" for line in body)
    return f"<table class='mathjax_ignore tex2jax_ignore'><tr>{head}</tr>{lines}</table>"


def _bounded(row: Mapping, name: str) -> str:
    if row[name] is None:
        return "undefined"
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    between = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{row[name]:.2f}{between}".replace("-", "−")

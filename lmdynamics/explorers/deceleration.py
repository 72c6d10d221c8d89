"""Drag a loss curve's break along its steps, and see what it costs to have it elsewhere than the fit puts it."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import altair as alt
import ipywidgets as widgets
import numpy as np
import polars as pl

from lmdynamics import charts
from lmdynamics.charts.linked import Linked, Place
from lmdynamics.curves.deceleration import Deceleration, fit_deceleration
from lmdynamics.curves.fits import break_profile
from lmdynamics.curves.intervals import need_columns
from lmdynamics.curves.preparation import SMOOTHINGS, prepare
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.explorers.live import LiveChart
from lmdynamics.explorers.saving import SaveRow, check_among, restored, show_still

SKIPS = (0, 10, 20, 50, 100, 200, 400, 1000, 2000)  # first steps that may be left out
ASIDE = 1 / 3  # of the best step: where the break starts, so that the difference is seen
HAND = {  # a view: its parameters, and the columns of a profile that they take
    "break_by_hand": {
        "hand_step": "step_at_break",
        "hand_loss": "loss_at_break",
        "hand_before": "rate_before_break",
        "hand_after": "rate_after_break",
        "hand_width": "f1",
    },
    "break_profile": {"hand_step": "step_at_break", "hand_rsle": "rsle"},
}


@dataclass(frozen=True)
class Fitted:
    """One curve as prepared, its best fit, and the fits with the break put elsewhere."""

    points: pl.DataFrame  # curve, step, loss
    fit: Deceleration
    profile: pl.DataFrame

    def nearest(self, step: float) -> int:
        """The row of the profile whose break lies nearest in log step."""
        return int(np.abs(np.log(self.profile["step_at_break"].to_numpy() / step)).argmin())


class DecelerationExplorer:
    """Choose a curve and how it is prepared, then put its break where you like: fit, error and numbers follow.

    `curves`: curve, step, loss. Each curve is fitted once for each way of preparing it, when first looked at; dragging
    only looks up. `hand` is the row of the profile that is shown, `best` the fit.

    Raises
    ------
    UserError
        If a column is missing, there is no curve, or `curve` or `smoothing` is not among those there are.
    """

    def __init__(
        self, curves: pl.DataFrame, *, curve: str | None = None, smoothing: str = "none", skip_steps: float = 100
    ):
        need_columns(curves, ["curve", "step", "loss"], "the deceleration explorer")
        if curves.is_empty():
            raise UserError("there are no curves to explore; the frame has no rows")
        self.frame = curves.with_columns(pl.col("curve").cast(pl.String))
        names = self.frame["curve"].unique(maintain_order=True).to_list()
        for what, chosen, known in (("curve", curve, names), ("smoothing", smoothing, SMOOTHINGS)):
            if chosen is not None and chosen not in known:
                raise UserError(f"there is no {what} {chosen!r}{did_you_mean(str(chosen), known)}")
        self._kept: dict[tuple, Fitted | UserError] = {}
        self._switching = False  # while the places on offer change, and with them the slider's value
        style = {"description_width": "100px"}
        wide = {"style": style, "layout": widgets.Layout(width="560px"), "continuous_update": True}
        skips = sorted({*map(float, SKIPS), float(skip_steps)})
        self.curve = widgets.Dropdown(options=names, value=curve or names[0], description="curve", style=style)
        self.smoothing = widgets.Dropdown(
            options=list(SMOOTHINGS), value=smoothing, description="smoothing", style=style
        )
        self.skip = widgets.SelectionSlider(
            options=[(f"{step:,g}", step) for step in skips],
            value=float(skip_steps),
            description="skip to step",
            style=style,
        )
        self.place = widgets.SelectionSlider(options=[("", 0)], description="break at step", **wide)
        self.said = widgets.HTML()
        self.views = widgets.HBox(layout=widgets.Layout(flex_flow="wrap", align_items="flex-start"))
        self._charts: dict[str, LiveChart] = {}
        self._step: float | None = None  # where the break was put last; none until a curve is fitted
        self._look(afresh=True)
        self.curve.observe(lambda _: self._switching or self._look(afresh=True), names="value")
        for control in (self.smoothing, self.skip):
            control.observe(lambda _: self._switching or self._look(), names="value")
        self.place.observe(lambda _: self._switching or self._moved(), names="value")
        controls = widgets.HBox([self.curve, self.smoothing, self.skip], layout=widgets.Layout(flex_flow="wrap"))
        self.saving = SaveRow(self)
        self.widget = widgets.VBox([controls, self.place, self.said, self.views, self.saving.widget])

    @property
    def found(self) -> Fitted | UserError:
        """The curve that is looked at, fitted; or why it cannot be."""
        key = (self.curve.value, self.smoothing.value, self.skip.value)
        if key not in self._kept:
            try:
                self._kept[key] = self._fitted(*key)
            except UserError as error:
                self._kept[key] = error
        return self._kept[key]

    @property
    def hand(self) -> dict[str, float] | None:
        """The fit with the break where it was put, or none where the curve cannot be fitted."""
        seen = self.found
        return None if isinstance(seen, UserError) else seen.profile.row(self.place.value, named=True)

    @property
    def best(self) -> Deceleration | None:
        """The best fit, or none where the curve cannot be fitted."""
        seen = self.found
        return None if isinstance(seen, UserError) else seen.fit

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        """The two views as they stand, by name: what a page without controls shows.

        Raises
        ------
        UserError
            If the curve cannot be fitted.
        """
        seen = self.found
        if isinstance(seen, UserError):
            raise seen
        hand = self.hand
        return {
            "break_by_hand": charts.broken_by_hand(seen.points, hand, seen.fit.to_dict()),
            "break_profile": charts.break_profile(seen.profile, seen.fit.step_at_break, hand["step_at_break"]),
        }

    def show(self, output_dir: str = "", interactive: bool = True) -> widgets.Widget | None:
        """The explorer itself, or its start values as still figures (and files, if `output_dir` is given)."""
        if interactive:
            return self.widget
        show_still(self.stills(), self.linked(), output_dir)
        return None

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data behind the views, by the names of `stills`.

        Raises
        ------
        UserError
            If the curve cannot be fitted.
        """
        seen = self.found
        if isinstance(seen, UserError):
            raise seen
        return {"break_by_hand": seen.points, "break_profile": seen.profile}

    def linked(self) -> Linked:
        """The views with the fit of every place inside, for a page whose slider needs no kernel."""
        views, seen = self.stills(), self.found
        columns = {name: column for of_view in HAND.values() for name, column in of_view.items()}
        places = [
            Place(
                f"{row['step_at_break']:,.0f}",
                {name: row[column] for name, column in columns.items()},
                f"Break at step {row['step_at_break']:,.0f}: loss {row['loss_at_break']:.3f}, RMS error of log loss "
                f"{row['rsle']:.3g}; with the best break, at step {seen.fit.step_at_break:,.0f}, {seen.fit.rsle:.3g}.",
            )
            for row in seen.profile.iter_rows(named=True)
        ]
        return Linked("break at step", places, self.place.value, views)

    def state(self) -> dict[str, str | float]:
        """What is looked at as literals, for `restore`."""
        chosen = {"curve": self.curve.value, "smoothing": self.smoothing.value, "skip_steps": self.skip.value}
        return {**chosen, "break_step": self._step or 0.0}

    def restore(self, state: Mapping[str, Any]) -> "DecelerationExplorer":
        """Look again at what `state()` has told, and return the explorer; what a state does not name stays.

        The break goes to the place nearest to `break_step`; 0, where none was, puts it aside of the best.

        Raises
        ------
        UserError
            If the state has an entry that is not known, or that there is not (any more).
        """
        wanted = restored(state, self.state())
        check_among("curve", wanted["curve"], self.curve.options)
        check_among("smoothing", wanted["smoothing"], self.smoothing.options)
        check_among("skip_steps", wanted["skip_steps"], [value for _, value in self.skip.options])
        if not 0 <= wanted["break_step"] < np.inf:
            raise UserError(f"the state's break_step is {wanted['break_step']}; it should be a step, 0 or more")
        self._switching = True  # one look at the end, not one for each
        try:
            self.curve.value, self.smoothing.value = wanted["curve"], wanted["smoothing"]
            self.skip.value = float(wanted["skip_steps"])
        finally:
            self._switching = False
        self._step = float(wanted["break_step"]) or None
        self._look()
        return self

    def _fitted(self, curve: str, smoothing: str, skip: float) -> Fitted:
        rows = self.frame.filter(pl.col("curve") == curve)
        step, loss = (rows[column].cast(pl.Float64).to_numpy() for column in ("step", "loss"))
        options = {"smoothing": smoothing, "skip_steps": skip}
        kept, smoothed = prepare(step, loss, **options)
        points = pl.DataFrame({"curve": [curve] * len(kept), "step": kept, "loss": smoothed})
        return Fitted(points, fit_deceleration(step, loss, **options), break_profile(step, loss, **options))

    def _look(self, afresh: bool = False) -> None:
        """Another curve (`afresh`: its break is put aside of its best), or the same one prepared in another way."""
        seen = self.found
        self.place.disabled = isinstance(seen, UserError)
        if isinstance(seen, UserError):
            self.views.children = ()
            self.said.value = escape(f"{self.curve.value}: {seen}")
            return
        if afresh or self._step is None:
            self._step = ASIDE * seen.fit.step_at_break
        self._switching = True
        try:
            self.place.options = [(f"{at:,.0f}", i) for i, at in enumerate(seen.profile["step_at_break"])]
            self.place.value = seen.nearest(self._step)
        finally:
            self._switching = False
        for name, chart in self.stills().items():
            if name in self._charts:
                self._charts[name].redraw(chart)
            else:
                self._charts[name] = LiveChart(chart, **self._values(name))
        self.views.children = [chart.widget for chart in self._charts.values()]
        self._moved()

    def _moved(self) -> None:
        hand = self.hand
        self._step = hand["step_at_break"]
        for name, chart in self._charts.items():
            chart.set(**self._values(name))
        self.said.value = _told(hand, self.best)

    def _values(self, view: str) -> dict[str, float]:
        hand = self.hand
        return {name: hand[column] for name, column in HAND[view].items()}


def _told(hand: Mapping[str, float], best: Deceleration) -> str:
    """The numbers of both breaks as a table, and what the fit is judged to be."""
    columns = {
        "t<sub>d</sub>": ("step_at_break", ",.0f"),
        "L<sub>d</sub>": ("loss_at_break", ".3f"),
        "r<sub>d</sub>": ("rate_after_break", ".4f"),
        "RSLE": ("rsle", ".4f"),
    }

    rows = {
        "by hand": [f"{hand[name]:{style}}" for name, style in columns.values()],
        "best": [best.told(name, style) for name, style in columns.values()],
    }
    cell = "padding: 0 1.2em 0 0; text-align: left"
    head = "".join(f"<th style='{cell}'>{name}</th>" for name in ("break", *columns))
    body = "".join(
        f"<tr><td style='{cell}'>{name}</td>"
        + "".join(f"<td style='{cell}'>{value.replace('-', '−')}</td>" for value in values)
        + "</tr>"
        for name, values in rows.items()
    )
    return f"<table><tr>{head}</tr>{body}</table>{escape(best.verdict)}: {escape(best.reason)}"

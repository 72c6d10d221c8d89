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
from lmdynamics.analysis.deceleration import Deceleration, fit_deceleration
from lmdynamics.analysis.fits import break_profile
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.loss_curves import SMOOTHINGS, prepare
from lmdynamics.charts.axes import JUMP
from lmdynamics.charts.linked import Linked, Place
from lmdynamics.errors import UserError
from lmdynamics.explorers.explorer import Explorer
from lmdynamics.explorers.live import Views
from lmdynamics.explorers.saving import SaveRow, check_among, check_start, restored
from lmdynamics.html import html_table

SKIPS = (0, 10, 20, 50, 100, 200, 400, 1000, 2000)  # first steps that may be left out
ASIDE = 1 / 3  # of the best step: where the break starts, so that the difference is seen
HAND = {  # parameters of the views, and the columns of a profile that they take
    "hand_step": "step_at_break",
    "hand_loss": "loss_at_break",
    "hand_before": "rate_before_break",
    "hand_after": "rate_after_break",
    "hand_width": "f1",
    "hand_rsle": "rsle",
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


class DecelerationExplorer(Explorer):
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
        check_start("curve", curve, names)
        check_start("smoothing", smoothing, SMOOTHINGS)
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
        self.views = Views({JUMP: self._put})
        self._step: float | None = None  # where the break was put last; none until a curve is fitted
        self._look(afresh=True)
        self.curve.observe(lambda _: self._switching or self._look(afresh=True), names="value")
        for control in (self.smoothing, self.skip):
            control.observe(lambda _: self._switching or self._look(), names="value")
        self.place.observe(lambda _: self._switching or self._moved(), names="value")
        controls = widgets.HBox([self.curve, self.smoothing, self.skip], layout=widgets.Layout(flex_flow="wrap"))
        self.saving = SaveRow(self)
        self.widget = widgets.VBox([controls, self.place, self.said, self.views.widget, self.saving.widget])

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
        """The two views as they stand; raises UserError if the curve cannot be fitted."""
        seen, hand = self._whole(), self.hand
        return {
            "break_by_hand": charts.broken_by_hand(seen.points, hand, seen.fit.to_dict()),
            "break_profile": charts.break_profile(seen.profile, seen.fit.step_at_break, hand["step_at_break"]),
        }

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data behind them; raises UserError if the curve cannot be fitted."""
        seen = self._whole()
        return {"break_by_hand": seen.points, "break_profile": seen.profile}

    def linked(self) -> Linked:
        views, seen = self.stills(), self._whole()
        places = [
            Place(
                f"{row['step_at_break']:,.0f}",
                {name: row[column] for name, column in HAND.items()},
                f"Break at step {row['step_at_break']:,.0f}: loss {row['loss_at_break']:.3f}, RMS error of log loss "
                f"{row['rsle']:.3g}; with the best break, at step {seen.fit.step_at_break:,.0f}, {seen.fit.rsle:.3g}.",
                row["step_at_break"],
            )
            for row in seen.profile.iter_rows(named=True)
        ]
        return Linked("break at step", places, self.place.value, views)

    def state(self) -> dict[str, str | float]:
        chosen = {"curve": self.curve.value, "smoothing": self.smoothing.value, "skip_steps": self.skip.value}
        return {**chosen, "break_step": self._step or 0.0}

    def restore(self, state: Mapping[str, Any]) -> "DecelerationExplorer":
        """As for any explorer; the break goes to the place nearest to `break_step`, 0 puts it aside of the best."""
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

    def _whole(self) -> Fitted:
        if isinstance(self.found, UserError):
            raise self.found
        return self.found

    def _put(self, clicked: Mapping[str, float]) -> None:
        """The break where a reader clicked."""
        self.place.value = self._whole().nearest(clicked["x"])

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
            self.views.clear()
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
        self.views.draw(self.stills())
        self._moved()

    def _moved(self) -> None:
        hand = self.hand
        self._step = hand["step_at_break"]
        self.views.set(**{name: hand[column] for name, column in HAND.items()})
        self.said.value = _told(hand, self.best)


def _told(hand: Mapping[str, float], best: Deceleration) -> str:
    """The numbers of both breaks as a table, and what the fit is judged to be."""
    columns = {
        "t_d": ("step_at_break", ",.0f"),
        "L_d": ("loss_at_break", ".3f"),
        "r_d": ("rate_after_break", ".4f"),
        "RSLE": ("rsle", ".4f"),
    }
    rows = [
        ["by hand", *(f"{hand[name]:{style}}" for name, style in columns.values())],
        ["best", *(best.told(name, style) for name, style in columns.values())],
    ]
    rows = [[value.replace("-", "−") for value in row] for row in rows]
    return f"{html_table(['break', *columns], rows)}{escape(best.headline)}: {escape(best.reason)}"

"""Move a loss curve's break along its steps, and see how the error grows away from the fitted break."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

import altair as alt
import numpy as np
import polars as pl

from lmdynamics import charts
from lmdynamics.analysis.deceleration import Deceleration, fit_deceleration
from lmdynamics.analysis.fits import break_profile
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.loss_curves import SMOOTHINGS, prepare
from lmdynamics.charts.axes import Cursor, nearest
from lmdynamics.charts.deceleration import manual_parameters
from lmdynamics.charts.moving import Moving, Place, in_column, with_parameters, with_slider
from lmdynamics.charts.theme import Chart
from lmdynamics.errors import UserError
from lmdynamics.explorers.explorer import Explorer, State
from lmdynamics.html import html_table

SKIPS = (0, 10, 20, 50, 100, 200, 400, 1000, 2000)  # choices: steps up to and including these are left out
START_SHARE = 1 / 3  # initial step of the break, relative to the best one, so that a difference is visible


@dataclass(frozen=True)
class FittedCurve:
    """One prepared curve, its best fit, and the fits with the break at other steps."""

    points: pl.DataFrame  # curve, step, loss
    best: Deceleration
    profile: pl.DataFrame


class DecelerationExplorer(Explorer):
    """Choose a curve and its preparation, then move its break: fit, error and numbers follow.

    `curves`: curve, step, loss. Each curve is fitted once for each preparation, when it is first selected; moving the
    break computes nothing. `chosen` is the row of the profile that is shown, `best` the fit.

    Raises
    ------
    UserError
        If a column is missing, there is no curve, or `curve` or `smoothing` is unknown.
    """

    name = "explorer_break"
    slider = "break_step"
    pickers: ClassVar = {"curve": "curve", "smoothing": "smoothing", "skip_steps": "skip to step"}

    def __init__(
        self, curves: pl.DataFrame, *, curve: str | None = None, smoothing: str = "none", skip_steps: float = 100
    ):
        need_columns(curves, ["curve", "step", "loss"], "the deceleration explorer")
        if curves.is_empty():
            raise UserError("there are no curves to explore; the frame has no rows")
        self.frame = curves.with_columns(pl.col("curve").cast(pl.String))
        self.skips = sorted({*map(float, SKIPS), float(skip_steps)})
        self._fits: dict[tuple, FittedCurve | UserError] = {}
        self.start(curve=curve, smoothing=smoothing, skip_steps=float(skip_steps), break_step=None)

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        if entry == "curve":
            return {name: name for name in self.frame["curve"].unique(maintain_order=True)}
        if entry == "smoothing":
            return {name: name for name in SMOOTHINGS}
        if entry == "skip_steps":
            return {t: f"{t:,g}" for t in self.skips}
        fit = self.fitted(now)
        return {0.0: ""} if isinstance(fit, UserError) else {t: f"{t:,.0f}" for t in fit.profile["step_at_break"]}

    def default(self, entry: str, options: Mapping[Any, str]) -> Any:
        if entry != self.slider or list(options) == [0.0]:
            return next(iter(options))
        return nearest(options, START_SHARE * self.fitted(self.now).best.step_at_break)

    def fitted(self, now: State) -> FittedCurve | UserError:
        """A prepared and fitted curve, or the error if it cannot be fitted."""
        key = (now["curve"], now["smoothing"], now["skip_steps"])
        if key not in self._fits:
            try:
                self._fits[key] = self._fit(*key)
            except UserError as error:
                self._fits[key] = error
        return self._fits[key]

    @property
    def current(self) -> FittedCurve | UserError:
        """The selected curve, fitted, or the error if it cannot be fitted."""
        return self.fitted(self.now)

    @property
    def chosen(self) -> dict[str, float] | None:
        """The fit with the break at the chosen step, or None if the curve cannot be fitted."""
        fit = self.current
        if isinstance(fit, UserError):
            return None
        return fit.profile.row(list(self.choices(self.slider, self.now)).index(self.now[self.slider]), named=True)

    @property
    def best(self) -> Deceleration | None:
        """The best fit, or None if the curve cannot be fitted."""
        return None if isinstance(self.current, UserError) else self.current.best

    def select(self, entries: Mapping[str, Any], required=()) -> None:
        """As for any explorer; for another curve, or at step 0, the break is moved to its initial step."""
        step = float(entries[self.slider])
        if not 0 <= step < np.inf:
            raise UserError(f"the state's break_step is {step}; it should be a step, 0 or more")
        entries = {**entries, "skip_steps": float(entries["skip_steps"])}
        required = [entry for entry in required if entry != self.slider]
        if (step == 0 or (entries["curve"] != self.now["curve"] and self.slider not in required)) and all(
            entries[entry] in self.choices(entry, entries) for entry in self.pickers
        ):
            fit = self.fitted(entries)
            entries[self.slider] = 0.0 if isinstance(fit, UserError) else START_SHARE * fit.best.step_at_break
        super().select(entries, required)

    def moving(self) -> Moving:
        fit = self.current
        if isinstance(fit, UserError):
            message = f"{self.now['curve']}: {fit}"
            empty = alt.Chart(alt.Data(values=[])).mark_point().properties(width=10, height=10, description=message)
            return with_slider(empty, Cursor([0.0]), 0.0, [Place("", message)])
        cursor = Cursor(fit.profile["step_at_break"].to_list())
        views = in_column(
            charts.manual_break(fit.points, fit.best.to_dict(), cursor),
            charts.break_profile(fit.profile, fit.best.step_at_break, cursor),
        )
        chart = with_parameters(views, manual_parameters(fit.profile))
        places = [
            Place(f"{row['step_at_break']:,.0f}", *self._describe(row)) for row in fit.profile.iter_rows(named=True)
        ]
        return with_slider(chart, cursor, self.now[self.slider], places, label="break at step")

    def stills(self) -> dict[str, Chart]:
        """The picture; raises UserError if the curve cannot be fitted."""
        self._current_fit()
        return super().stills()

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data of the picture; raises UserError if the curve cannot be fitted."""
        fit = self._current_fit()
        return {"break_by_hand": fit.points, "break_profile": fit.profile}

    def _current_fit(self) -> FittedCurve:
        if isinstance(self.current, UserError):
            raise self.current
        return self.current

    def _fit(self, curve: str, smoothing: str, skip: float) -> FittedCurve:
        rows = self.frame.filter(pl.col("curve") == curve)
        step, loss = (rows[column].cast(pl.Float64).to_numpy() for column in ("step", "loss"))
        options = {"smoothing": smoothing, "skip_steps": skip}
        steps, losses = prepare(step, loss, **options)
        points = pl.DataFrame({"curve": [curve] * len(steps), "step": steps, "loss": losses})
        return FittedCurve(points, fit_deceleration(step, loss, **options), break_profile(step, loss, **options))

    def _describe(self, row: Mapping[str, float]) -> tuple[str, str]:
        """The chosen and the best break: as a sentence, and as a table with the verdict on the fit."""
        best = self.best
        sentence = (
            f"Break at step {row['step_at_break']:,.0f}: loss {row['loss_at_break']:.3f}, RMS error of log loss "
            f"{row['rsle']:.3g}; with the best break, at step {best.step_at_break:,.0f}, {best.rsle:.3g}."
        )
        columns = {
            "t_d": ("step_at_break", ",.0f"),
            "L_d": ("loss_at_break", ".3f"),
            "r_d": ("rate_after_break", ".4f"),
            "RSLE": ("rsle", ".4f"),
        }
        rows = [
            ["by hand", *(f"{row[name]:{style}}" for name, style in columns.values())],
            ["best", *(best.describe(name, style) for name, style in columns.values())],
        ]
        rows = [[value.replace("-", "−") for value in row] for row in rows]
        return sentence, f"{html_table(['break', *columns], rows)}{escape(best.headline)}: {escape(best.reason)}"

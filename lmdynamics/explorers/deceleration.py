"""Move a loss curve's break along its steps, and see what it costs to have it elsewhere than the fit puts it."""

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
from lmdynamics.charts.deceleration import hand_parameters
from lmdynamics.charts.moving import Moving, Place, above, moved, with_parameters
from lmdynamics.errors import UserError
from lmdynamics.explorers.explorer import Explorer, State
from lmdynamics.html import html_table

SKIPS = (0, 10, 20, 50, 100, 200, 400, 1000, 2000)  # first steps that may be left out
ASIDE = 1 / 3  # of the best step: where the break starts, so that the difference is seen


@dataclass(frozen=True)
class Fitted:
    """One curve as prepared, its best fit, and the fits with the break put elsewhere."""

    points: pl.DataFrame  # curve, step, loss
    fit: Deceleration
    profile: pl.DataFrame


class DecelerationExplorer(Explorer):
    """Choose a curve and how it is prepared, then put its break where you like: fit, error and numbers follow.

    `curves`: curve, step, loss. Each curve is fitted once for each way of preparing it, when first looked at; moving
    only looks up. `hand` is the row of the profile that is shown, `best` the fit.

    Raises
    ------
    UserError
        If a column is missing, there is no curve, or `curve` or `smoothing` is not among those there are.
    """

    name = "explorer_break"
    place = "break_step"
    pickers: ClassVar = {"curve": "curve", "smoothing": "smoothing", "skip_steps": "skip to step"}

    def __init__(
        self, curves: pl.DataFrame, *, curve: str | None = None, smoothing: str = "none", skip_steps: float = 100
    ):
        need_columns(curves, ["curve", "step", "loss"], "the deceleration explorer")
        if curves.is_empty():
            raise UserError("there are no curves to explore; the frame has no rows")
        self.frame = curves.with_columns(pl.col("curve").cast(pl.String))
        self.skips = sorted({*map(float, SKIPS), float(skip_steps)})
        self._kept: dict[tuple, Fitted | UserError] = {}
        self.start(curve=curve, smoothing=smoothing, skip_steps=float(skip_steps), break_step=None)

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        if entry == "curve":
            return {name: name for name in self.frame["curve"].unique(maintain_order=True)}
        if entry == "smoothing":
            return {name: name for name in SMOOTHINGS}
        if entry == "skip_steps":
            return {step: f"{step:,g}" for step in self.skips}
        seen = self.fitted(now)
        return {0.0: ""} if isinstance(seen, UserError) else {at: f"{at:,.0f}" for at in seen.profile["step_at_break"]}

    def default(self, entry: str, known: Mapping[Any, str]) -> Any:
        if entry != self.place or list(known) == [0.0]:
            return next(iter(known))
        return nearest(known, ASIDE * self.fitted(self.now).fit.step_at_break)

    def fitted(self, now: State) -> Fitted | UserError:
        """A curve, fitted as it is prepared; or why it cannot be."""
        key = (now["curve"], now["smoothing"], now["skip_steps"])
        if key not in self._kept:
            try:
                self._kept[key] = self._fit(*key)
            except UserError as error:
                self._kept[key] = error
        return self._kept[key]

    @property
    def found(self) -> Fitted | UserError:
        """The curve that is looked at, fitted; or why it cannot be."""
        return self.fitted(self.now)

    @property
    def hand(self) -> dict[str, float] | None:
        """The fit with the break where it was put, or none where the curve cannot be fitted."""
        seen = self.found
        if isinstance(seen, UserError):
            return None
        return seen.profile.row(list(self.choices(self.place, self.now)).index(self.now[self.place]), named=True)

    @property
    def best(self) -> Deceleration | None:
        """The best fit, or none where the curve cannot be fitted."""
        return None if isinstance(self.found, UserError) else self.found.fit

    def look(self, wanted: Mapping[str, Any], given=()) -> None:
        """As for any explorer; another curve's break is put aside of its best, and so is one at 0."""
        step = float(wanted[self.place])
        if not 0 <= step < np.inf:
            raise UserError(f"the state's break_step is {step}; it should be a step, 0 or more")
        wanted = {**wanted, "skip_steps": float(wanted["skip_steps"])}
        given = [entry for entry in given if entry != self.place]
        if (step == 0 or (wanted["curve"] != self.now["curve"] and self.place not in given)) and all(
            wanted[entry] in self.choices(entry, wanted) for entry in self.pickers
        ):
            seen = self.fitted(wanted)
            wanted[self.place] = 0.0 if isinstance(seen, UserError) else ASIDE * seen.fit.step_at_break
        super().look(wanted, given)

    def moving(self) -> Moving:
        seen = self.found
        if isinstance(seen, UserError):
            said = f"{self.now['curve']}: {seen}"
            nothing = alt.Chart(alt.Data(values=[])).mark_point().properties(width=10, height=10, description=said)
            return moved(nothing, Cursor([0.0]), 0.0, [Place("", said)])
        cursor = Cursor(seen.profile["step_at_break"].to_list())
        views = above(
            charts.broken_by_hand(seen.points, seen.fit.to_dict(), cursor),
            charts.break_profile(seen.profile, seen.fit.step_at_break, cursor),
        )
        chart = with_parameters(views, hand_parameters(seen.profile))
        places = [
            Place(f"{row['step_at_break']:,.0f}", *self._words(row)) for row in seen.profile.iter_rows(named=True)
        ]
        return moved(chart, cursor, self.now[self.place], places, label="break at step")

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        """The picture; raises UserError if the curve cannot be fitted."""
        self._whole()
        return super().stills()

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data behind it; raises UserError if the curve cannot be fitted."""
        seen = self._whole()
        return {"break_by_hand": seen.points, "break_profile": seen.profile}

    def _whole(self) -> Fitted:
        if isinstance(self.found, UserError):
            raise self.found
        return self.found

    def _fit(self, curve: str, smoothing: str, skip: float) -> Fitted:
        rows = self.frame.filter(pl.col("curve") == curve)
        step, loss = (rows[column].cast(pl.Float64).to_numpy() for column in ("step", "loss"))
        options = {"smoothing": smoothing, "skip_steps": skip}
        kept, smoothed = prepare(step, loss, **options)
        points = pl.DataFrame({"curve": [curve] * len(kept), "step": kept, "loss": smoothed})
        return Fitted(points, fit_deceleration(step, loss, **options), break_profile(step, loss, **options))

    def _words(self, hand: Mapping[str, float]) -> tuple[str, str]:
        """The break by hand beside the best one: in a sentence, and as a table with what the fit is judged to be."""
        best = self.best
        said = (
            f"Break at step {hand['step_at_break']:,.0f}: loss {hand['loss_at_break']:.3f}, RMS error of log loss "
            f"{hand['rsle']:.3g}; with the best break, at step {best.step_at_break:,.0f}, {best.rsle:.3g}."
        )
        columns = {
            "t_d": ("step_at_break", ",.0f"),
            "L_d": ("loss_at_break", ".3f"),
            "r_d": ("rate_after_break", ".4f"),
            "RSLE": ("rsle", ".4f"),
        }
        rows = [
            ["by hand", *(f"{hand[name]:{style}}" for name, style in columns.values())],
            ["best", *(best.describe(name, style) for name, style in columns.values())],
        ]
        rows = [[value.replace("-", "−") for value in row] for row in rows]
        return said, f"{html_table(['break', *columns], rows)}{escape(best.headline)}: {escape(best.reason)}"

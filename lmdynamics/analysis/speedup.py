"""How much earlier a schedule reaches the best score of its baseline.

Ankner et al. 2023 (arXiv 2305.15096) fit g(t) = c1 - c2 exp(-(c3 t)^c4) to the downstream score of intermediate
checkpoints; the speed-up is the baseline's total steps over the step at which the scheduled fit reaches the
baseline's best. 70,000 / 37,000 = 1.89 in the paper.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.stats import t as student

from lmdynamics.analysis.intervals import grid, need_columns
from lmdynamics.errors import UserError

MAX_REACH = 2.0  # a fit is extrapolated up to this many times its last step
MAX_NOT_REACHED = 0.025  # with a larger share of resamples that never reach the best, the interval is open below


@dataclass(frozen=True)
class LearningCurve:
    """g(t) = c1 - c2 exp(-(c3 t)^c4): a score that rises from c1 - c2 at step 0 towards c1. c2, c3, c4 >= 0."""

    c1: float
    c2: float
    c3: float
    c4: float

    def __call__(self, steps: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
        return self.c1 - self.c2 * np.exp(-((self.c3 * steps) ** self.c4))

    def step_at(self, score: float) -> float:
        """The step at which the curve reaches `score`: 0 if it starts there, infinity if it never does."""
        if score <= self.c1 - self.c2:
            return 0.0
        remaining = (self.c1 - score) / self.c2 if self.c2 > 0 else 0.0
        return float((-np.log(remaining)) ** (1 / self.c4) / self.c3) if remaining > 0 else float("inf")


@dataclass(frozen=True)
class Speedup:
    """How many times fewer steps the schedule needs to reach the baseline's best, with a 95 % interval.

    `value` is None if the schedule never reaches it. `low` and `high` are None if there is no interval; only `low` is
    None if the interval is open below, because more than 2.5 % of the resamples never reach it. `share` is the share of
    refits (to resampled residuals, or with one unit left out) that reach it.
    """

    value: float | None
    low: float | None
    high: float | None
    step: float | None  # where the scheduled fit reaches `target`
    reached: bool
    reason: str  # one sentence
    target: float
    share: float
    baseline: LearningCurve
    scheduled: LearningCurve

    def __str__(self) -> str:
        if self.value is None:
            return f"no speed-up to report: {self.reason}"
        if self.high is None:
            return f"speed-up {self.value:.2f}"
        return f"speed-up {self.value:.2f} [{'open' if self.low is None else format(self.low, '.2f')}, {self.high:.2f}]"

    def describe(self) -> str:
        """The speed-up and its reason: some lines to print."""
        text = str(self) if self.value is None else f"{self}\n  {self.reason}"
        return text.replace(": never", "\n  never").replace("; ", ";\n  ")


def speedup(
    baseline: pl.DataFrame,
    scheduled: pl.DataFrame,
    value: str = "accuracy",
    unit: str | None = None,
    *,
    best: Literal["fitted", "observed"] = "fitted",
    level: float = 1.0,
    resamples: int = 300,
    seed: int = 0,
) -> Speedup:
    """The speed-up of `scheduled` over `baseline`: frames with `step` and `value` (higher is better).

    With `unit` (a column: "seed", "pair"), every unit has a value at every step, and the curve is the mean over units.
    The interval is Student's for the log speed-up. Its standard error comes from leaving out single units (jackknife,
    Efron 1982), the same unit in both frames if they have the same units. There is no interval if a frame has one unit,
    or if a curve without one of the units never reaches the target. Without `unit`, rows of one step are averaged and
    the fits' residuals resampled over steps: this is the uncertainty of the curve, not the variation between seeds.

    The best is the baseline's fit at its last step; "observed" uses its highest score, as in the paper. The highest of
    noisy scores overestimates the baseline, so an equally good run may never reach it.

    `level` below 1: the target is this share of the way from the baseline's fitted start to its best, compared with the
    step at which the baseline's fit reaches it. If scores reach a ceiling, all curves are close to the best, and only
    such a level shows which is faster.

    The fit is extrapolated up to twice the last step of `scheduled`, and not below its first step after 0.

    Raises UserError if `level` is not a share, a column is missing, a value is not finite, there are fewer than 5
    steps, units are missing at some step, or the baseline's score never rises.
    """
    if best not in ("fitted", "observed"):
        raise UserError(f"best is {best!r}; expected 'fitted' or 'observed'")
    if not 0 < level <= 1:
        raise UserError(f"level is {level}; expected a share of the way to the baseline's best, above 0 and at most 1")
    runs = [_scores(frame, value, unit, name) for frame, name in ((baseline, "baseline"), (scheduled, "scheduled"))]
    (steps, base_scores), (scheduled_steps, _) = runs
    curves = [fit_curve(step_values, scores.mean(1)) for step_values, scores in runs]
    if not curves[0].c2 > 0:
        raise UserError("the baseline's score does not rise with training, so there is no target to reach earlier")

    total, first = float(steps[-1]), float(scheduled_steps[scheduled_steps > 0][0])

    def reach(base: LearningCurve, scores: np.ndarray, curve: LearningCurve) -> tuple[float, float, float]:
        """The target, the baseline's steps to it, and the schedule's."""
        start, top = base.c1 - base.c2, float(base(steps[-1:])[0] if best == "fitted" else scores.max())
        target = start + level * (top - start)
        step, base_step = (max(curve.step_at(target), first), total if level == 1 else max(base.step_at(target), first))
        return (target, base_step, step if step <= MAX_REACH * scheduled_steps[-1] * (1 + 1e-9) else float("inf"))

    target, base_step, step = reach(curves[0], base_scores.mean(1), curves[1])
    refits = list(_refits(runs, curves, unit, _same_units(baseline, scheduled, unit), resamples, seed))
    factors = [  # for each source of variation: 0 if the best is never reached
        np.array([a / b for _, a, b in map(reach, bases, scores, fits)]) for bases, scores, fits in refits
    ]
    ratios = np.concatenate(factors) if factors else np.zeros(0)
    share = float((ratios > 0).mean()) if len(ratios) else float(np.isfinite(step))
    if unit:
        low, high = _student(base_step / step, factors) if np.isfinite(step) else (None, None)
    else:
        low, high = _percentiles(ratios)
    fields = {"target": target, "share": share, "baseline": curves[0], "scheduled": curves[1]}
    goal = f"the baseline's best of {target:.3f}" if level == 1 else f"{target:.3f}, {level:.0%} of the way to it,"
    refitted = f"curves with one {unit} left out" if unit else "resamples"
    if not np.isfinite(step):
        reason = (
            f"never reached: the scheduled fit tends to {curves[1].c1:.3f} and stays below {goal}"
            f" up to step {MAX_REACH * scheduled_steps[-1]:,.0f}"
            + (f"; {share:.0%} of the {refitted} reach it" if share else "")
        )
        return Speedup(None, None, None, None, False, reason, **fields)
    best_of = f"the best of the baseline's {total:,.0f} steps" if level == 1 else f"{level:.0%} of the way to its best"
    reason = f"the scheduled fit reaches {target:.3f}, {best_of}, at step {step:,.0f}"
    reason += "" if level == 1 else f", the baseline's at step {base_step:,.0f}"
    if step > scheduled_steps[-1] * 1.001:
        reason += f" (beyond its last checkpoint, {scheduled_steps[-1]:,.0f})"
    if 1 - share > (0 if unit else MAX_NOT_REACHED):
        reason += f"; {1 - share:.0%} of the {refitted} never reach it, so "
        reason += "no interval is given" if unit else "the interval is open below"
        reason += " and no speed-up can be claimed"
    return Speedup(base_step / step, low, high, step, True, reason, **fields)


def _percentiles(factors: Float[np.ndarray, " resamples"]) -> tuple[float | None, float | None]:
    """The middle 95 % of the resamples; open below if too many never reach the best."""
    if not len(factors):
        return None, None
    low, high = np.percentile(factors, [2.5, 97.5])
    return (float(low) if (factors == 0).mean() <= MAX_NOT_REACHED else None), (float(high) if high > 0 else None)


def _student(value: float, factors: list[Float[np.ndarray, " _"]]) -> tuple[float | None, float | None]:
    """Student's interval of a log speed-up from the values with one unit left out, for each set of units.

    Two separate sets of units have Satterthwaite's degrees of freedom.
    """
    sizes = np.array([len(values) for values in factors])
    if (sizes < 2).any() or any((values == 0).any() for values in factors):
        return None, None
    variances = np.array([(n - 1) * np.log(values).var() for n, values in zip(sizes, factors, strict=True)])
    total = variances.sum()
    freedom = total**2 / (variances**2 / (sizes - 1)).sum() if total > 0 else 1.0
    reach = student.ppf(0.975, freedom) * np.sqrt(total)
    return float(value * np.exp(-reach)), float(value * np.exp(reach))


def fit_curve(steps: Float[np.ndarray, " steps"], scores: Float[np.ndarray, " steps"]) -> LearningCurve:
    """Least squares from the best of many starting points.

    Bounds: c2 >= 0; 1 / c3 from a tenth of the first step after 0 to ten times the last; c4 from 0.1 to 10.
    """
    from scipy.optimize import least_squares

    size = float(np.ptp(scores))
    if not size > 0:
        return LearningCurve(float(scores[0]), 0.0, 1 / float(steps[-1]), 1.0)
    y = (scores - scores.min()) / size
    log_steps = np.log(np.maximum(steps, 1e-300))

    def residuals(c: np.ndarray) -> np.ndarray:
        return c[0] - c[1] * _unlearnt(c[2:], log_steps) - y

    bounds = _bounds(steps)
    limits = np.array([[-np.inf, np.inf], [0, np.inf], *bounds]).T
    start = np.clip(_fit_all(steps, y[None])[0], *limits)
    c1, c2, c3, c4 = least_squares(residuals, start, bounds=limits, xtol=1e-12, ftol=1e-12, gtol=1e-12).x
    return LearningCurve(float(scores.min() + size * c1), float(size * c2), float(np.exp(c3)), float(np.exp(c4)))


def _unlearnt(shape: Float[np.ndarray, "*curves 2"], log_steps: Float[np.ndarray, " steps"]) -> np.ndarray:
    """exp(-(c3 t)^c4) for log c3 and log c4, shape [*curves, steps]."""
    with np.errstate(over="ignore"):
        return np.exp(-np.exp(np.exp(shape[..., 1:]) * (shape[..., :1] + log_steps)))


def _bounds(steps: Float[np.ndarray, " steps"]) -> Float[np.ndarray, "2 2"]:
    """Lowest and highest log c3 and log c4."""
    return np.log([[0.1 / steps[-1], 10 / steps[steps > 0][0]], [0.1, 10]])


def _fit_all(
    steps: Float[np.ndarray, " steps"], scores: Float[np.ndarray, "curves steps"]
) -> Float[np.ndarray, "curves 4"]:
    """c1, c2, log c3, log c4 of many curves at once: the best point of a grid, then of finer grids around it.

    For given c3 and c4 a curve is linear in c1 and c2, so only two parameters are searched.
    """
    log_steps, bounds = np.log(np.maximum(steps, 1e-300)), _bounds(steps)
    y = scores - scores.mean(1, keepdims=True)
    axes = [np.linspace(*bound, n) for bound, n in zip(bounds, (40, 15), strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, 2)
    width = np.array([axis[1] - axis[0] for axis in axes])
    offsets = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 2, indexing="ij"), -1).reshape(1, -1, 2)
    for _ in range(20):
        unlearnt = _unlearnt(points, log_steps)
        centred = unlearnt - unlearnt.mean(-1, keepdims=True)
        projection = np.einsum("cps,cs->cp", np.broadcast_to(centred, (len(y), *centred.shape[1:])), y)
        size = (centred**2).sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = np.where((projection < 0) & (size > 1e-12), projection**2 / size, 0.0)  # falling curves do not count
        cell = gain.argmax(1)[:, None]
        best = np.take_along_axis(np.broadcast_to(points, (len(y), *points.shape[1:])), cell[..., None], 1)
        points = np.clip(best + offsets * width / 2, bounds[:, 0], bounds[:, 1])
        width = width * 0.6
    unlearnt = _unlearnt(best[:, 0], log_steps)
    spread = unlearnt - unlearnt.mean(1, keepdims=True)
    c2 = np.maximum(0, -(spread * y).sum(1) / np.maximum((spread**2).sum(1), 1e-12))
    return np.column_stack([scores.mean(1) + c2 * unlearnt.mean(1), c2, best[:, 0]])


def _scores(
    frame: pl.DataFrame, value: str, unit: str | None, name: str
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, "steps units"]]:
    role = f"the speed-up's {name}"
    need_columns(frame, ["step", value, *([unit] if unit else [])], role)
    if len(bad := frame.filter(pl.col(value).cast(pl.Float64).is_finite().fill_null(False).not_())):
        raise UserError(f"{role}: {value!r} has no number at step {bad['step'].min()}; keep only the steps before it")
    if unit:
        table = grid(frame, unit, [value], role)
        steps, scores = np.array(table.steps, dtype=float), table.values[value]
    else:
        means = frame.group_by("step").agg(pl.col(value).cast(pl.Float64).mean()).sort("step")
        steps, scores = means["step"].cast(pl.Float64).to_numpy(), means[value].to_numpy()[:, None]
    if len(steps) < 5:
        raise UserError(f"{role} has {len(steps)} step(s); a curve of four parameters needs at least 5")
    return steps, scores


def _same_units(baseline: pl.DataFrame, scheduled: pl.DataFrame, unit: str | None) -> bool:
    return unit is not None and baseline[unit].unique().sort().equals(scheduled[unit].unique().sort())


def _refits(runs, curves, unit: str | None, same: bool, resamples: int, seed: int):
    """For each source of variation: the baseline's fits, its mean scores, and the schedule's fits, a set per refit.

    Residuals are resampled, or units are left out one at a time: in both runs at once if they have the `same` units,
    otherwise in one run, with the other unchanged.
    """
    means = [scores.mean(1) for _, scores in runs]
    if unit is None:
        drawn = []
        for number, ((steps, scores), curve) in enumerate(zip(runs, curves, strict=True)):
            fitted = curve(steps)
            indices = np.random.default_rng([seed, number]).integers(len(steps), size=(resamples, len(steps)))
            # four parameters are fitted, so residuals are smaller than errors
            drawn.append(fitted + (scores[:, 0] - fitted)[indices] * np.sqrt(len(steps) / max(1, len(steps) - 4)))
        sources = [drawn]
    else:
        units = [scores.shape[1] for _, scores in runs]
        loo = [  # leave one out
            (mean[:, None] * n - scores).T / (n - 1) if n > 1 else np.zeros((0, len(mean)))
            for mean, n, (_, scores) in zip(means, units, runs, strict=True)
        ]
        fixed = [np.broadcast_to(mean, (n, len(mean))) for mean, n in zip(means, map(len, loo[::-1]), strict=True)]
        sources = [loo] if same else [[loo[0], fixed[1]], [fixed[0], loo[1]]]
    for scores in sources:
        fits = [
            [LearningCurve(c1, c2, *np.exp(shape)) for c1, c2, *shape in _fit_all(run_steps, run_scores).tolist()]
            for (run_steps, _), run_scores in zip(runs, scores, strict=True)
        ]
        yield fits[0], scores[0], fits[1]

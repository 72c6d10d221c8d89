"""Loss deceleration: whether and where a loss curve breaks in log-log space, with intervals.

Mircea et al. 2025 (arXiv 2506.05447). With one smooth break (`analysis.broken_power_law`), L_d is `loss_at_break` =
b d1^-c0, t_d is `step_at_break` = d1, r_d is `rate_after_break` = c0 + c1; the loss at step T is L_d (t_d / T)^r_d.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lmdynamics.analysis.broken_power_law import BrokenPowerLaw, fit, jacobian, scanned_gain
from lmdynamics.analysis.intervals import with_interval
from lmdynamics.analysis.loss_curves import (
    Jump,
    find_jumps,
    local_scale,
    moved_draws,
    prepare,
    residual_blocks,
    wild_draws,
    without_jumps,
)
from lmdynamics.errors import UserError

LOCATED = ("decelerates", "accelerates", "break at the edge")  # verdicts with one break whose step is known
VERDICTS = (*LOCATED, "break not located", "sudden drop", "sudden rise", "jump in scale", "no break")
MIN_POINTS = 12  # points; a break has five parameters
MIN_DELTA_AIC = 10.0  # ΔAIC beyond which the simpler model has no support left (Burnham and Anderson 2002)
EDGE_SHARE = 0.1  # share of the range of log steps that must lie on either side of a break
ROUNDING = 1e-7  # errors of log loss below this are rounding
MIN_SUDDEN_FACTOR = 1.1  # a sudden drop or rise by this factor is the verdict; a smaller one its caveat
MAX_INTERVAL_SHARE = 0.5  # share of the range of log steps: a break whose interval spans more is not located
NULL_RESAMPLES = 200  # resamples of one power law
MAX_CHANCE = 0.02  # share of resampled power laws that may gain as much by a break
MAX_RESAMPLED_POINTS = 200  # points of a resample; in longer curves neighbours are averaged


@dataclass(frozen=True)
class Deceleration:
    """A fitted loss curve. Losses in nats (or the unit given), rates per natural logarithm of the step.

    `intervals` are 95 % (block bootstrap, each refit starts at this break) of `loss_at_break`, `step_at_break`,
    `rate_before_break` and `rate_after_break`, by name; empty without resamples, without noise, and if the verdict
    claims no break. `delta_aic_power_law` is how much worse (in AIC) one power law is, `delta_aic_two_breaks` how much
    better two breaks are; both count `independent_points`, not points. The numbers are given for every verdict; without
    a break they have no meaning.
    """

    verdict: str  # one of VERDICTS
    caveat: str  # a limitation of the verdict, such as "two breaks fit better"; or empty
    reason: str  # one sentence
    loss_at_break: float  # L_d
    step_at_break: float  # t_d
    rate_after_break: float  # r_d
    b: float
    c0: float
    c1: float
    log_d1: float
    f1: float
    rsle: float  # root mean squared error of log loss
    delta_aic_power_law: float
    delta_aic_two_breaks: float
    steps_of_two_breaks: tuple[float, float]  # of the fit with two breaks
    rates_of_two_breaks: tuple[float, float, float]  # before, between and after
    points: int
    independent_points: float  # points / correlation time of the residuals
    first_step: float
    last_step: float
    jumps: tuple[Jump, ...] = ()  # changes of scale: no learning
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The verdict with its caveat: `decelerates (two breaks fit better)`."""
        return headline(self.verdict, self.caveat)

    @property
    def rate_before_break(self) -> float:
        """The rate of the first piece, c0."""
        return self.c0

    def predict(self, step: Float[np.ndarray, " steps"] | list[float] | float) -> Any:
        """The fitted loss at one step or many, including the smooth break."""
        x = np.log(np.asarray(step, float))
        loss = np.exp(np.log(self.b) - self.c0 * x - self.c1 * self.f1 * np.logaddexp(0, (x - self.log_d1) / self.f1))
        return float(loss) if np.ndim(step) == 0 else loss

    def final_loss(self, step: float) -> float:
        """L_d (t_d / T)^r_d: the loss at step T, with a sharp break."""
        return self.loss_at_break * (self.step_at_break / step) ** self.rate_after_break

    def to_dict(self) -> dict[str, Any]:
        """Every field and `rate_before_break`, for JSON."""
        return {**asdict(self), "rate_before_break": self.c0}

    def describe(self, name: str, style: str) -> str:
        """A number with its interval: `4.050 [4.011, 4.121]`."""
        return with_interval(getattr(self, name), self.intervals.get(name), style)

    def __str__(self) -> str:
        if self.verdict not in (*LOCATED, "break not located"):
            return f"{self.headline}: {self.reason}"
        loss, step = self.describe("loss_at_break", ".3f"), self.describe("step_at_break", ",.0f")
        return f"{self.headline}: L_d {loss}, t_d {step}, r_d {self.describe('rate_after_break', '.4f')}"


def headline(verdict: str, caveat: str | None) -> str:
    """A verdict with its caveat, if it has one."""
    return f"{verdict} ({caveat})" if caveat else verdict


def fit_deceleration(
    step: ArrayLike,
    loss: ArrayLike,
    *,
    smoothing: str = "none",
    skip_steps: float = 100,
    resamples: int = 200,
    seed: int = 0,
    start: tuple[float, float] | None = None,
) -> Deceleration:
    """Fit one smooth break to a loss curve, and decide whether there is one.

    `step` and `loss`: any sequences of equal length, steps rising, losses positive; see `prepare` for `smoothing` and
    `skip_steps`. A curve that is already smoothed needs no smoothing here. Residuals of neighbouring points are
    correlated, especially after smoothing: criteria count the equivalent number of independent points, and the
    bootstrap gives whole blocks of residuals random weights (a wild bootstrap, Shao 2010), `resamples` times.

    The verdict is the first that holds:
    - `jump in scale`: the level shifts between two neighbouring points (`analysis.loss_curves`), and one break fits
      better without that shift;
    - `sudden drop` (`sudden rise`): one break with a level shift of at least 10 % fits better than one or two breaks.
      With a smaller shift, that is the caveat, and there are no intervals. A shift below three times the noise is not
      detected; intervals then cover the break in about 70 % of cases;
    - `no break`: a break improves the AIC by less than 10, or more than 2 % of resampled power laws gain as much;
    - `break not located`: the interval of its step spans more than half of the log steps (only with resamples);
    - `break at the edge`: less than a tenth of the log steps lies before or after it;
    - `accelerates`, if the rate rises at the break; otherwise `decelerates`.

    `start`: (step of the break, width f1) to start from, instead of a scan.

    Raises UserError if the data are not a loss curve, or fewer than 12 points are left to fit.
    """
    step, loss = np.asarray(step, float), np.asarray(loss, float)
    t, smoothed = prepare(step, loss, smoothing, skip_steps)
    if len(t) < MIN_POINTS:
        raise UserError(
            f"{len(t)} points are left of {len(step)} after step {skip_steps:g}; a break needs at least {MIN_POINTS}: "
            "log more often, or skip fewer steps"
        )
    x, y = np.log(t), np.log(smoothed)[None]
    initial = None if start is None else (np.log([[start[0]]]), np.array([[start[1]]]))
    straight, one_break, two_breaks = fit(x, y, 0), fit(x, y, 1, initial), fit(x, y, 2)
    blocks = _Blocks.from_fit(x, y[0], two_breaks)
    points = max(blocks.independent, 8.0)  # two breaks have 8 parameters
    aic = [points * np.log(max(model.rss[0] / len(x), ROUNDING**2)) for model in (straight, one_break, two_breaks)]
    gain, second_gain = aic[0] + 2 * 2 - (aic[1] + 2 * 5), aic[1] + 2 * 5 - (aic[2] + 2 * 8)
    fitted = _numbers(one_break)
    steps, rates = np.exp(two_breaks.breaks[0]).tolist(), two_breaks.rates.cumsum(1)[0].tolist()
    noisy = one_break.rss[0] / len(x) > ROUNDING**2
    verdict, reason = _decide(fitted, gain, blocks, t[0], t[-1], seed + 1)
    caveat = "" if noisy else "no noise, as if computed from a formula"
    if second_gain > MIN_DELTA_AIC:
        caveat = "two breaks fit better"
        place = f"at {steps[0]:,.0f} and {steps[1]:,.0f}, rates " + ", ".join(f"{rate:.3g}" for rate in rates)
        reason += f"; {caveat}: {place}"
    drops, explained = _level_shifts(x, y, one_break)
    after = int(explained[1:-1].argmax()) + 2  # the first point after the best step
    drop = float(drops[after - 1])
    levelled = y - drop * (np.arange(len(x)) < after)
    level_fit = fit(x, levelled, 1, initial=one_break)
    shift_gain = aic[1] + 2 * 5 - (points * np.log(max(level_fit.rss[0] / len(x), ROUNDING**2)) + 2 * 7)
    if is_sudden := shift_gain > max(MIN_DELTA_AIC, second_gain):
        kind, place = "drop" if drop > 0 else "rise", f"at step {t[after]:,.0f}"
        caveat = f"with a sudden {kind} by {np.expm1(abs(drop)):.1%} {place} it fits better"
        reason = f"{reason.split('; two breaks')[0]}; {caveat}"
        if abs(drop) > np.log(MIN_SUDDEN_FACTOR):
            verdict, caveat = f"sudden {kind}", ""
            reason = f"one break fits better with a sudden {kind} by a factor of {np.exp(abs(drop)):.3g} {place}"
    if jumps := _confirmed_jumps(step, loss, smoothing, skip_steps, one_break, points):
        verdict, caveat = "jump in scale", ""
        reason = (
            f"the loss {' and '.join(map(str, jumps))} and stays there: a change of unit or scale, not learning; "
            f"convert the losses to one scale, or fit one part (--skip-steps {jumps[-1].before:.0f})"
        )
    intervals: dict[str, tuple[float, float]] = {}
    if verdict in LOCATED and resamples and noisy:
        draws = blocks.refits(one_break, two_breaks if second_gain > MIN_DELTA_AIC else one_break, resamples, seed)
        if shift_gain > max(0, second_gain):  # whether the level shifts is unknown: both fits are possible
            level_draws = _Blocks.from_fit(x, levelled[0], level_fit).refits(level_fit, level_fit, resamples, seed)
            level_values = _numbers(level_fit)
            shifted = {name: _interval(values, float(level_values[name][0])) for name, values in level_draws.items()}
        else:
            shifted = {}
        for name, values in draws.items():
            low, high = _interval(values, float(fitted[name][0]))
            bound = shifted.get(name, (low, high))
            intervals[name] = min(low, bound[0]), max(high, bound[1])
        low, high = intervals["step_at_break"]
        if is_sudden or (second_gain > MIN_DELTA_AIC and _in_one_gap(t, steps)):  # their coverage is then below 95 %
            intervals = {}
        elif (share := np.log(high / low) / np.log(t[-1] / t[0])) > MAX_INTERVAL_SHARE:
            verdict = "break not located"
            place = f"from step {low:,.0f} to {high:,.0f}, over {share:.0%} of the log steps"
            reason = f"the break may lie anywhere {place}; {reason}"
    return Deceleration(
        verdict=verdict,
        caveat=caveat,
        reason=reason,
        **{name: float(fitted[name][0]) for name in ("loss_at_break", "step_at_break", "rate_after_break")},
        b=float(np.exp(one_break.log_b[0])),
        c0=float(one_break.rates[0, 0]),
        c1=float(one_break.rates[0, 1]),
        log_d1=float(one_break.breaks[0, 0]),
        f1=float(one_break.widths[0, 0]),
        rsle=float(np.sqrt(one_break.rss[0] / len(x))),
        delta_aic_power_law=float(gain),
        delta_aic_two_breaks=float(second_gain),
        steps_of_two_breaks=tuple(steps),
        rates_of_two_breaks=tuple(rates),
        points=len(x),
        independent_points=float(points),
        first_step=float(t[0]),
        last_step=float(t[-1]),
        jumps=jumps,
        intervals=intervals,
    )


def _in_one_gap(t: Float[np.ndarray, " points"], steps: list[float]) -> bool:
    """Whether two breaks are so close that they describe a level shift between neighbouring points."""
    first, second = np.searchsorted(t, steps)
    return bool(second - first <= 1)


def _level_shifts(x, y, fitted: BrokenPowerLaw) -> tuple[np.ndarray, np.ndarray]:
    """The drop of the level (negative: a rise) after each point in the residuals of one break, and the sum of squares
    that it would explain."""
    q, _ = np.linalg.qr(jacobian(x, fitted))
    residual = y[0] - fitted(x)[0]
    residual -= q @ (q.T @ residual)
    cumulative, cumulative_q = np.cumsum(residual)[:-1], np.cumsum(q, axis=0)[:-1]
    variance = np.maximum(np.arange(1, len(x)) - (cumulative_q**2).sum(1), 1e-9)
    return cumulative / variance, cumulative**2 / variance


def _confirmed_jumps(step, loss, smoothing, skip_steps, fitted: BrokenPowerLaw, points: float) -> tuple[Jump, ...]:
    """The jumps after the skipped steps, if one break fits the curve better without them."""
    after_skip = step > max(skip_steps, 0)
    jumps = find_jumps(step[after_skip], loss[after_skip])
    if not jumps:
        return ()
    t, smoothed = prepare(step, without_jumps(step, loss, jumps), smoothing, skip_steps)
    x, y = np.log(t), np.log(smoothed)[None]
    level = fit(x, y, 1)
    gain = points * np.log(max(fitted.rss[0], 1e-300) / max(level.rss[0], 1e-300)) - 2 * len(jumps)
    drops, _ = _level_shifts(x, y, level)
    places = np.searchsorted(t, [jump.after for jump in jumps]).clip(1, len(t) - 1) - 1
    # a slowly decaying spike would cause an opposite shift
    stay = all(abs(drops[index]) < abs(np.log(jump.factor)) / 2 for index, jump in zip(places, jumps, strict=True))
    return tuple(jumps) if gain > MIN_DELTA_AIC and stay else ()


@dataclass(frozen=True)
class _Blocks:
    """A curve for resampling, with neighbours averaged, and the starts of its blocks."""

    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    two_breaks: BrokenPowerLaw
    independent: float

    @classmethod
    def from_fit(cls, x, y, two_breaks: BrokenPowerLaw) -> "_Blocks":
        """Blocks as long as the correlation of the residuals of two breaks."""
        _, independent = residual_blocks(x, y - two_breaks(x)[0])
        edges = np.arange(0, len(x), -(-len(x) // MAX_RESAMPLED_POINTS))
        counts = np.diff(edges, append=len(x))
        x, y = (np.add.reduceat(values, edges) / counts for values in (x, y))
        return cls(x, y, residual_blocks(x, y - two_breaks(x)[0])[0], two_breaks, independent)

    def refits(self, start: BrokenPowerLaw, best: BrokenPowerLaw, resamples: int, seed: int) -> dict[str, np.ndarray]:
        """The numbers of one break in resampled curves: the best fit with resampled noise.

        If two breaks fit better, the misfit of one break is not noise, so it is not resampled.
        """
        fitted = best(self.x)
        noise = wild_draws(self.x, self.y - fitted[0], self.starts, jacobian(self.x, best), resamples, seed)
        return _numbers(fit(self.x, fitted + noise, 1, initial=start))

    def chance(self, seed: int) -> float:
        """How often a break improves one power law with such noise at least as much as it improves this curve.

        The noise is the residuals of two breaks, scaled to the noise around each point.
        """
        n, length = len(self.x), len(self.x) // len(self.starts)
        noise = (self.y - self.two_breaks(self.x)[0]) * np.sqrt(n / (n - 8))
        power_law = fit(self.x, self.y[None], 0)(self.x)
        null_curves = power_law + moved_draws(noise, local_scale(self.y), length, NULL_RESAMPLES, seed)
        return float((scanned_gain(self.x, null_curves) >= scanned_gain(self.x, self.y[None])).mean())


def _interval(values: np.ndarray, fitted: float) -> tuple[float, float]:
    """The middle 95 %, extended to the fitted value if skew or rounding leaves it outside."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(min(low, fitted)), float(max(high, fitted))


def _numbers(fitted: BrokenPowerLaw) -> dict[str, Float[np.ndarray, " curves"]]:
    """L_d, t_d and the rates of each curve."""
    d, c = fitted.breaks[:, 0], fitted.rates
    return {
        "loss_at_break": np.exp(fitted.log_b - c[:, 0] * d),
        "step_at_break": np.exp(d),
        "rate_before_break": c[:, 0],
        "rate_after_break": c.sum(1),
    }


def _decide(fitted, gain: float, blocks: _Blocks, first: float, last: float, seed: int) -> tuple[str, str]:
    """The verdict, and a sentence with its reason."""
    names = ("rate_before_break", "rate_after_break", "step_at_break")
    before, after, step = (float(fitted[name][0]) for name in names)
    break_step, rates = f"step {step:,.0f}", f"from {before:.3g} to {after:.3g}"
    if not gain > MIN_DELTA_AIC:
        return "no break", f"a break improves on one power law by {gain:.1f} in AIC; {MIN_DELTA_AIC:g} is required"
    position = np.log(step / first) / np.log(last / first)
    is_at_edge = not EDGE_SHARE <= position <= 1 - EDGE_SHARE
    if (chance := blocks.chance(seed)) > MAX_CHANCE:
        return "no break", f"one power law with the same noise gains as much by a break in {chance:.0%} of resamples"
    if is_at_edge:
        side = "first" if position < 0.5 else "last"
        return "break at the edge", f"the best break, {break_step}, is in the {side} tenth of the fitted log steps"
    if after >= before:
        return "accelerates", f"at {break_step} the rate rises {rates}"
    return "decelerates", f"at {break_step} the rate falls {rates}"

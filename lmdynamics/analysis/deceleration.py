"""Loss deceleration: whether a loss curve breaks in log-log space, where, and how sure that is.

Mircea et al. 2025 (arXiv 2506.05447). With one smooth break (`analysis.broken_power_law`), L_d is `loss_at_break` =
b d1^-c0, t_d is `step_at_break` = d1, r_d is `rate_after_break` = c0 + c1; the loss at step T is L_d (t_d / T)^r_d.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lmdynamics.analysis.broken_power_law import Broken, fit, scanned_gain, slopes
from lmdynamics.analysis.intervals import with_interval
from lmdynamics.analysis.loss_curves import (
    Jump,
    blocks_of,
    find_jumps,
    local_scale,
    moved_draws,
    prepare,
    wild_draws,
    without_jumps,
)
from lmdynamics.errors import UserError

LOCATED = ("decelerates", "accelerates", "break at the edge")  # verdicts with one break whose place is known
VERDICTS = (*LOCATED, "break not located", "sudden drop", "sudden rise", "jump in scale", "no break")
FEWEST = 12  # points; a break has five parameters
CLEAR = 10.0  # ΔAIC beyond which the simpler model has no support left (Burnham and Anderson 2002)
EDGE = 0.1  # share of the range of log steps that must lie on either side of a break
EXACT = 1e-7  # errors of log loss below this are rounding
SUDDEN = 1.1  # a sudden drop or rise by this factor is the verdict; a smaller one its caveat
WIDE = 0.5  # share of the range of log steps: a break whose interval spans more is not located
STRAIGHT = 200  # resamples of one power law
CHANCE = 0.02  # share of resampled power laws that may gain as much by a break
GROUPS = 200  # points at most that a resample is fitted to; beyond, neighbours are averaged


@dataclass(frozen=True)
class Deceleration:
    """A fitted loss curve. Losses in nats (or the unit given), rates per natural logarithm of the step.

    `intervals` are 95 % (block bootstrap, each refit begun at this break): of `loss_at_break`, `step_at_break`,
    `rate_before_break` and `rate_after_break`, by name; empty without resamples, without noise to resample, and where
    the verdict claims no break. `delta_aic_power_law` is how much worse (in AIC) one power law is,
    `delta_aic_two_breaks` how much better two breaks are; both count `independent_points`, not points. The numbers are
    there whatever the verdict: without a break they describe a break that is not there.
    """

    verdict: str  # one of VERDICTS
    caveat: str  # what a reader of the verdict must know with it, such as "two breaks fit better"; or empty
    reason: str  # one sentence a person can read
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
        """The fitted loss at one step or many, the smooth break included."""
        x = np.log(np.asarray(step, float))
        loss = np.exp(np.log(self.b) - self.c0 * x - self.c1 * self.f1 * np.logaddexp(0, (x - self.log_d1) / self.f1))
        return float(loss) if np.ndim(step) == 0 else loss

    def final_loss(self, step: float) -> float:
        """L_d (t_d / T)^r_d: the loss at step T, the break taken as sharp."""
        return self.loss_at_break * (self.step_at_break / step) ** self.rate_after_break

    def to_dict(self) -> dict[str, Any]:
        """Every field, and `rate_before_break`, as JSON takes them."""
        return {**asdict(self), "rate_before_break": self.c0}

    def told(self, name: str, style: str) -> str:
        """A number with its interval: `4.050 [4.011, 4.121]`."""
        return with_interval(getattr(self, name), self.intervals.get(name), style)

    def __str__(self) -> str:
        if self.verdict not in (*LOCATED, "break not located"):
            return f"{self.headline}: {self.reason}"
        return (
            f"{self.headline}: L_d {self.told('loss_at_break', '.3f')}, t_d {self.told('step_at_break', ',.0f')}, "
            f"r_d {self.told('rate_after_break', '.4f')}"
        )


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
    """Fit one smooth break to a loss curve, and say whether there is one.

    `step` and `loss`: any sequences of equal length, steps rising, losses positive; see `prepare` for `smoothing` and
    `skip_steps`. A curve that is already smoothed needs no smoothing here. Residuals of neighbouring points are not
    independent, least of all after smoothing: criteria count as many points as their correlation leaves, and the
    bootstrap weighs whole blocks of residuals at random in place (a wild bootstrap, Shao 2010), `resamples` times.

    The verdict, the first that holds: `jump in scale` where the level shifts between two neighbouring points
    (`analysis.loss_curves`) and one break fits better without that shift; `sudden drop` (`sudden rise`) where one break
    with a shift of the level at some point, by 10 % at least, fits better than one or two breaks do (a smaller shift is
    the caveat, and there are no intervals; one of less than three times the noise is not seen, and an interval then
    holds its break some seven times in ten); `no break` where a break improves the AIC by less than 10, or by no more
    than it improves resamples of one power law with such noise, 2 % of them aside; `break not located` where the
    interval of its step spans more than half of the range of log steps (only where there are resamples); `break at the
    edge` where less than a tenth of that range lies before or after it; `accelerates` where the rate rises at the
    break; `decelerates`.

    `start`, (step of the break, width f1), begins at one place only instead of scanning for the best.

    Raises UserError if the curve cannot be read as one, or fewer than 12 points are left to fit.
    """
    step, loss = np.asarray(step, float), np.asarray(loss, float)
    kept, smoothed = prepare(step, loss, smoothing, skip_steps)
    if len(kept) < FEWEST:
        raise UserError(
            f"{len(kept)} points are left of {len(step)} after step {skip_steps:g}; a break needs at least {FEWEST}: "
            "log more often, or skip fewer steps"
        )
    x, y = np.log(kept), np.log(smoothed)[None]
    begin = None if start is None else (np.log([[start[0]]]), np.array([[start[1]]]))
    one, broken, twice = fit(x, y, 0), fit(x, y, 1, begin), fit(x, y, 2)
    blocks = _Blocks.of(x, y[0], twice)
    points = max(blocks.independent, 8.0)  # as many as two breaks have parameters
    aic = [points * np.log(max(made.rss[0] / len(x), EXACT**2)) for made in (one, broken, twice)]
    gain, more = aic[0] + 2 * 2 - (aic[1] + 2 * 5), aic[1] + 2 * 5 - (aic[2] + 2 * 8)
    found = _numbers(broken)
    steps, rates = np.exp(twice.breaks[0]).tolist(), twice.rates.cumsum(1)[0].tolist()
    noisy = broken.rss[0] / len(x) > EXACT**2
    verdict, reason = _judged(found, gain, blocks, kept[0], kept[-1], seed + 1)
    caveat = "" if noisy else "no noise, as if drawn from a formula"
    if more > CLEAR:
        caveat = "two breaks fit better"
        where = f"at {steps[0]:,.0f} and {steps[1]:,.0f}, rates " + ", ".join(f"{rate:.3g}" for rate in rates)
        reason += f"; {caveat}: {where}"
    drops, explained = _steps_left(x, y, broken)
    after = int(explained[1:-1].argmax()) + 2  # the first point after the best step
    drop = float(drops[after - 1])
    level = y - drop * (np.arange(len(x)) < after)
    even = fit(x, level, 1, near=broken)
    shifted = aic[1] + 2 * 5 - (points * np.log(max(even.rss[0] / len(x), EXACT**2)) + 2 * 7)
    if sudden := shifted > max(CLEAR, more):
        kind, place = "drop" if drop > 0 else "rise", f"at step {kept[after]:,.0f}"
        caveat = f"with a sudden {kind} by {np.expm1(abs(drop)):.1%} {place} it fits better"
        reason = f"{reason.split('; two breaks')[0]}; {caveat}"
        if abs(drop) > np.log(SUDDEN):
            verdict, caveat = f"sudden {kind}", ""
            reason = f"one break fits better with a sudden {kind} by a factor of {np.exp(abs(drop)):.3g} {place}"
    if jumps := _confirmed(step, loss, smoothing, skip_steps, broken, points):
        verdict, caveat = "jump in scale", ""
        reason = (
            f"the loss {' and '.join(map(str, jumps))} and stays there: a change of unit or scale, no learning; bring "
            f"the losses to one scale, or fit one part (--skip-steps {jumps[-1].before:.0f})"
        )
    intervals: dict[str, tuple[float, float]] = {}
    if verdict in LOCATED and resamples and noisy:
        spread = blocks.resampled(broken, twice if more > CLEAR else broken, resamples, seed)
        if shifted > max(0, more):  # nobody knows whether the level shifts: what either fit says may be true
            other = _Blocks.of(x, level[0], even).resampled(even, even, resamples, seed)
            there = _numbers(even)
            wider = {name: _interval(values, float(there[name][0])) for name, values in other.items()}
        else:
            wider = {}
        for name, values in spread.items():
            low, high = _interval(values, float(found[name][0]))
            also = wider.get(name, (low, high))
            intervals[name] = min(low, also[0]), max(high, also[1])
        low, high = intervals["step_at_break"]
        if sudden or (more > CLEAR and _in_one_gap(kept, steps)):  # then they hold the break less often than they say
            intervals = {}
        elif (share := np.log(high / low) / np.log(kept[-1] / kept[0])) > WIDE:
            verdict = "break not located"
            where = f"from step {low:,.0f} to {high:,.0f}, over {share:.0%} of the log steps"
            reason = f"the break may lie anywhere {where}; {reason}"
    return Deceleration(
        verdict=verdict,
        caveat=caveat,
        reason=reason,
        **{name: float(found[name][0]) for name in ("loss_at_break", "step_at_break", "rate_after_break")},
        b=float(np.exp(broken.log_b[0])),
        c0=float(broken.rates[0, 0]),
        c1=float(broken.rates[0, 1]),
        log_d1=float(broken.breaks[0, 0]),
        f1=float(broken.widths[0, 0]),
        rsle=float(np.sqrt(broken.rss[0] / len(x))),
        delta_aic_power_law=float(gain),
        delta_aic_two_breaks=float(more),
        steps_of_two_breaks=tuple(steps),
        rates_of_two_breaks=tuple(rates),
        points=len(x),
        independent_points=float(points),
        first_step=float(kept[0]),
        last_step=float(kept[-1]),
        jumps=jumps,
        intervals=intervals,
    )


def _in_one_gap(kept: Float[np.ndarray, " points"], steps: list[float]) -> bool:
    """Whether two breaks are so close that they stand for a shift of the level between neighbouring points."""
    first, second = np.searchsorted(kept, steps)
    return bool(second - first <= 1)


def _steps_left(x, y, broken: Broken) -> tuple[np.ndarray, np.ndarray]:
    """What a step down after each point would be in what one break leaves of a curve, and how much it would explain."""
    q, _ = np.linalg.qr(slopes(x, broken))
    residual = y[0] - broken(x)[0]
    residual -= q @ (q.T @ residual)
    along, inside = np.cumsum(residual)[:-1], np.cumsum(q, axis=0)[:-1]
    free = np.maximum(np.arange(1, len(x)) - (inside**2).sum(1), 1e-9)
    return along / free, along**2 / free


def _confirmed(step, loss, smoothing: str, skip_steps: float, broken: Broken, points: float) -> tuple[Jump, ...]:
    """The jumps after the steps that are skipped, if one break describes the curve better once they are taken out."""
    fitted = step > max(skip_steps, 0)
    jumps = find_jumps(step[fitted], loss[fitted])
    if not jumps:
        return ()
    kept, smoothed = prepare(step, without_jumps(step, loss, jumps), smoothing, skip_steps)
    x, y = np.log(kept), np.log(smoothed)[None]
    even = fit(x, y, 1)
    gain = points * np.log(max(broken.rss[0], 1e-300) / max(even.rss[0], 1e-300)) - 2 * len(jumps)
    drops, _ = _steps_left(x, y, even)
    places = np.searchsorted(kept, [jump.after for jump in jumps]).clip(1, len(kept) - 1) - 1
    # a spike that takes time to go leaves the opposite step behind
    stay = all(abs(drops[at]) < abs(np.log(jump.factor)) / 2 for at, jump in zip(places, jumps, strict=True))
    return tuple(jumps) if gain > CLEAR and stay else ()


@dataclass(frozen=True)
class _Blocks:
    """A curve as its resamples see it, neighbours averaged, and where its blocks begin."""

    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    twice: Broken
    independent: float

    @classmethod
    def of(cls, x, y, twice: Broken) -> "_Blocks":
        """Blocks as long as noise reaches, which is what two breaks leave: not where a second break would be."""
        _, independent = blocks_of(x, y - twice(x)[0])
        edges = np.arange(0, len(x), -(-len(x) // GROUPS))
        counts = np.diff(edges, append=len(x))
        x, y = (np.add.reduceat(each, edges) / counts for each in (x, y))
        return cls(x, y, blocks_of(x, y - twice(x)[0])[0], twice, independent)

    def resampled(self, broken: Broken, best: Broken, resamples: int, seed: int) -> dict[str, np.ndarray]:
        """The numbers of one break in the curves that might have been seen instead: the best fit's, with other noise.

        Where two breaks fit better, what one break misses is no noise, and would be missed again.
        """
        fitted = best(self.x)
        drawn = wild_draws(self.x, self.y - fitted[0], self.starts, slopes(self.x, best), resamples, seed)
        return _numbers(fit(self.x, fitted + drawn, 1, near=broken))

    def chance(self, seed: int) -> float:
        """How often one power law with noise like this gains as much by a break.

        The noise is what two breaks leave, as large as it is around each point.
        """
        n, length = len(self.x), len(self.x) // len(self.starts)
        noise = (self.y - self.twice(self.x)[0]) * np.sqrt(n / (n - 8))
        straight = fit(self.x, self.y[None], 0)(self.x)
        drawn = straight + moved_draws(noise, local_scale(self.y), length, STRAIGHT, seed)
        return float((scanned_gain(self.x, drawn) >= scanned_gain(self.x, self.y[None])).mean())


def _interval(values: np.ndarray, fitted: float) -> tuple[float, float]:
    """The middle 95 %, stretched to what was fitted where skew or rounding leaves that outside."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(min(low, fitted)), float(max(high, fitted))


def _numbers(broken: Broken) -> dict[str, Float[np.ndarray, " curves"]]:
    """L_d, t_d and the rates of each curve."""
    d, c = broken.breaks[:, 0], broken.rates
    return {
        "loss_at_break": np.exp(broken.log_b - c[:, 0] * d),
        "step_at_break": np.exp(d),
        "rate_before_break": c[:, 0],
        "rate_after_break": c.sum(1),
    }


def _judged(found, gain: float, blocks: _Blocks, first: float, last: float, seed: int) -> tuple[str, str]:
    """The verdict, and the sentence that gives its reason."""
    before, after, step = (float(found[name][0]) for name in ("rate_before_break", "rate_after_break", "step_at_break"))
    at, rates = f"step {step:,.0f}", f"from {before:.3g} to {after:.3g}"
    if not gain > CLEAR:
        return "no break", f"a break improves on one power law by {gain:.1f} in AIC; {CLEAR:g} is asked for"
    place = np.log(step / first) / np.log(last / first)
    at_the_edge = not EDGE <= place <= 1 - EDGE
    if (chance := blocks.chance(seed)) > CHANCE:
        return "no break", f"one power law with the same noise gains as much by a break in {chance:.0%} of resamples"
    if at_the_edge:
        side = "first" if place < 0.5 else "last"
        return "break at the edge", f"the best break, {at}, lies in the {side} tenth of the log steps fitted"
    if after >= before:
        return "accelerates", f"at {at} the rate rises {rates}"
    return "decelerates", f"at {at} the rate falls {rates}"

"""Loss deceleration: whether a loss curve breaks in log-log space, where, and how sure that is.

Mircea et al. 2025 (arXiv 2506.05447). With one smooth break (`curves.broken_power_law`), L_d is `loss_at_break` =
b d1^-c0, t_d is `step_at_break` = d1, r_d is `rate_after_break` = c0 + c1; the loss at step T is L_d (t_d / T)^r_d.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from lmdynamics.curves.broken_power_law import Broken, fit, scanned_gain, slopes
from lmdynamics.curves.correlated import blocks_of, wild_draws
from lmdynamics.curves.preparation import prepare
from lmdynamics.errors import UserError

VERDICTS = ("decelerates", "accelerates", "break at the edge", "no break")
FEWEST = 12  # points; a break has five parameters
CLEAR = 10.0  # ΔAIC beyond which the simpler model has no support left (Burnham and Anderson 2002)
EDGE = 0.1  # share of the range of log steps that must lie on either side of a break
CHANCE = 0.02  # share of resampled power laws that may gain as much by a break
GROUPS = 200  # points at most that a resample is fitted to; beyond, neighbours are averaged


@dataclass(frozen=True)
class Deceleration:
    """A fitted loss curve. Losses in nats (or the unit given), rates per natural logarithm of the step.

    `intervals` are 95 % (block bootstrap): of `loss_at_break`, `step_at_break`, `rate_before_break`,
    `rate_after_break`, by name; empty without resamples. `delta_aic_power_law` is how much worse (in AIC) one power law
    is, `delta_aic_two_breaks` how much better two breaks are; both count `independent_points`, not points. The numbers
    are there whatever the verdict: without a break they describe a break that is not there.
    """

    verdict: str  # decelerates, accelerates, break at the edge, no break
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
    second_break: tuple[float, float, float, float, float]  # of the fit with two: steps t_1, t_2, and the three rates
    points: int
    independent_points: float  # points / correlation time of the residuals
    first_step: float
    last_step: float
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

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

    def __str__(self) -> str:
        def told(name: str, style: str) -> str:
            bounds = self.intervals.get(name)
            between = f" [{bounds[0]:{style}}, {bounds[1]:{style}}]" if bounds else ""
            return f"{getattr(self, name):{style}}{between}"

        return (
            f"{self.verdict}: L_d {told('loss_at_break', '.3f')}, t_d {told('step_at_break', ',.0f')}, "
            f"r_d {told('rate_after_break', '.4f')}"
        )


def fit_deceleration(
    step,
    loss,
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
    bootstrap flips whole blocks of residuals in place (a wild bootstrap, Shao 2010), `resamples` times.

    The verdict: `no break` where a break improves the AIC by less than 10; `accelerates` where the rate rises at the
    break; `break at the edge` where less than a tenth of the range of log steps lies before or after it; `decelerates`.

    `start`, (step of the break, width f1), begins at one place only instead of scanning for the best.

    Raises
    ------
    UserError
        If the curve cannot be read as one, or fewer than 12 points are left to fit.
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
    one, broken = fit(x, y, 0), fit(x, y, 1, begin)
    twice = fit(x, y, 2)
    n, k = len(x), 5
    _, independent = blocks_of(x, (y - twice(x))[0])
    independent = max(independent, k + 3.0)
    gain = _aic(one, independent, 2) - _aic(broken, independent, 5)
    more = _aic(broken, independent, 5) - _aic(twice, independent, 8)
    found = _numbers(broken)
    spread, chance = _resampled(x, y[0], broken, twice, resamples, seed) if resamples else ({}, 0.0)
    rates = twice.rates.cumsum(1)[0]
    second = (*np.exp(twice.breaks[0]), *rates)
    verdict, reason = _judged(found, gain, chance, more, second, kept[0], kept[-1])
    return Deceleration(
        verdict=verdict,
        reason=reason,
        **{name: found[name] for name in ("loss_at_break", "step_at_break", "rate_after_break")},
        b=float(np.exp(broken.log_b[0])),
        c0=float(broken.rates[0, 0]),
        c1=float(broken.rates[0, 1]),
        log_d1=float(broken.breaks[0, 0]),
        f1=float(broken.widths[0, 0]),
        rsle=float(np.sqrt(broken.rss[0] / n)),
        delta_aic_power_law=gain,
        delta_aic_two_breaks=more,
        second_break=tuple(map(float, second)),
        points=n,
        independent_points=float(independent),
        first_step=float(kept[0]),
        last_step=float(kept[-1]),
        intervals={name: tuple(map(float, np.percentile(values, [2.5, 97.5]))) for name, values in spread.items()},
    )


def _aic(model: Broken, independent: float, parameters: int) -> float:
    n = model.rss[0]
    return float(independent * np.log(max(n, 1e-300)) + 2 * parameters)


def _numbers(broken: Broken) -> dict[str, Any]:
    """L_d, t_d and the rates of each row; floats where there is one row."""
    d, c = broken.breaks[:, 0], broken.rates
    found = {
        "loss_at_break": np.exp(broken.log_b - c[:, 0] * d),
        "step_at_break": np.exp(d),
        "rate_before_break": c[:, 0],
        "rate_after_break": c.sum(1),
    }
    return {name: float(value[0]) if len(d) == 1 else value for name, value in found.items()}


def _resampled(x, y, broken: Broken, twice: Broken, resamples: int, seed: int) -> tuple[dict[str, np.ndarray], float]:
    """The numbers refitted to resampled curves; and how often one power law, resampled, gains as much by a break."""
    size = -(-len(x) // GROUPS)
    edges = np.arange(0, len(x), size)
    counts = np.diff(edges, append=len(x))
    x, y = (np.add.reduceat(each, edges) / counts for each in (x, y))
    residuals = y - broken(x)[0]
    starts, _ = blocks_of(x, y - twice(x)[0])  # how far noise reaches, not where a second break would be
    drawn = wild_draws(x, residuals, starts, slopes(x, broken), resamples, seed)
    spread = _numbers(fit(x, broken(x) + drawn, 1, near=broken))
    straight = fit(x, y[None], 0)
    null = straight(x) + wild_draws(
        x, y - straight(x)[0], starts, np.stack([np.ones_like(x), x], 1), resamples, seed + 1
    )
    return spread, float((scanned_gain(x, null) >= scanned_gain(x, y[None])).mean())


def _judged(found, gain, chance, more, second, first, last) -> tuple[str, str]:
    before, after = found["rate_before_break"], found["rate_after_break"]
    at = f"step {found['step_at_break']:,.0f}"
    rates = f"from {before:.3g} to {after:.3g}"
    beyond = ""
    if more > CLEAR:
        beyond = (
            f"; two breaks fit better still: at {second[0]:,.0f} and {second[1]:,.0f}, "
            f"rates {second[2]:.3g}, {second[3]:.3g}, {second[4]:.3g}"
        )
    if not gain > CLEAR:
        return "no break", f"a break improves on one power law by {gain:.1f} in AIC; {CLEAR:g} is asked for"
    if chance > CHANCE:
        return "no break", f"one power law with the same noise gains as much by a break in {chance:.0%} of resamples"
    place = np.log(found["step_at_break"] / first) / np.log(last / first)
    if not EDGE <= place <= 1 - EDGE:
        side = "first" if place < 0.5 else "last"
        return "break at the edge", f"the best break, {at}, lies in the {side} tenth of the log steps fitted{beyond}"
    if after >= before:
        return "accelerates", f"at {at} the rate rises {rates}{beyond}"
    return "decelerates", f"at {at} the rate falls {rates}{beyond}"

"""Jumps in the scale of a loss curve: a change of unit, of averaging or of accumulation, which is no learning.

Between two neighbouring points the level of log loss shifts and stays there, by far more than noise and trend explain.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

LEAST = np.log(1.1)  # smallest shift of log loss that is looked for; a drop of the learning rate makes a few per cent
WINDOWS = (8, 32, 128)  # points on each side that a line is fitted to
FEWEST = 6  # points that must lie on each side
CHANCE = 0.001  # of a shift as large anywhere along a curve without one, if its noise is independent
MOST = 10  # times that a jump is looked for
GAPS = 2_000  # gaps that are looked at closely: those across which the mean of 32 points moves most


@dataclass(frozen=True)
class Jump:
    """From step `before` to the next point, at step `after`, the loss is multiplied by `factor`."""

    before: float
    after: float
    factor: float

    def __str__(self) -> str:
        way, times = ("rises", self.factor) if self.factor > 1 else ("falls", 1 / self.factor)
        return f"{way} by a factor of {times:.3g} between steps {self.before:,.0f} and {self.after:,.0f}"


def find_jumps(step: Float[np.ndarray, " points"], loss: Float[np.ndarray, " points"]) -> list[Jump]:
    """Jumps of a curve (steps positive and rising, losses positive), in order of step.

    At each gap between neighbours a line in log-log is fitted to the points before and to those after it, the two
    next to the gap left out. Where the lines differ there by at least 10 %, by more than chance allows (Student's t,
    Bonferroni over gaps and windows), and both left-out points lie on their own line, the level has jumped: a steep but
    continuous descent puts them between the lines.
    """
    step = np.asarray(step, float)
    x, y = np.log(step), np.log(np.asarray(loss, float))
    found: dict[int, float] = {}
    for _ in range(MOST):  # also where two windows correct each other at one place without end
        if (place := _most_certain(x, y)) is None:
            break
        at, shift = place
        found[at] = found.get(at, 0.0) + shift
        y = np.where(np.arange(len(y)) <= at, y + shift, y)  # what is left may hide another
    return [
        Jump(float(step[at]), float(step[at + 1]), float(np.exp(found[at])))
        for at in sorted(found)
        if abs(found[at]) >= LEAST
    ]


def _most_certain(x, y) -> tuple[int, float] | None:
    """The point before the jump that chance explains least, and its shift; none where chance explains them all."""
    gaps = _most_moved(y)
    chances, at, shift = [CHANCE / max(len(x), 1) / len(WINDOWS)], None, 0.0
    for window in WINDOWS if len(gaps) else ():
        shifts, chance = _shifts(x, y, gaps, window)
        best = chance.argmin()
        if chance[best] < chances[-1]:
            chances.append(chance[best])
            at, shift = int(gaps[best]), float(shifts[best])
    return None if at is None else (at, shift)


def without_jumps(step, loss, jumps: list[Jump]) -> Float[np.ndarray, " points"]:
    """The losses, those before each jump brought to the scale of those after the last."""
    step, loss = np.asarray(step, float), np.asarray(loss, float).copy()
    for jump in jumps:
        loss[step <= jump.before] *= jump.factor
    return loss


def _most_moved(y: Float[np.ndarray, " points"]) -> np.ndarray:
    """The gaps (by the index of the point before) with enough points on both sides, at most `GAPS` of them."""
    gaps = np.arange(FEWEST - 1, len(y) - FEWEST)
    if len(gaps) <= GAPS:
        return gaps
    summed = np.concatenate([[0.0], np.cumsum(y)])
    reach = WINDOWS[1]
    low, high = np.maximum(gaps + 1 - reach, 0), np.minimum(gaps + 1 + reach, len(y))
    before = (summed[gaps + 1] - summed[low]) / (gaps + 1 - low)
    after = (summed[high] - summed[gaps + 1]) / (high - gaps - 1)
    return gaps[np.argsort(-np.abs(after - before))[:GAPS]]


def _shifts(x, y, gaps, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Shift of the level at each gap, 0 where a neighbour lies off its line; and how likely chance makes it."""
    sides = []
    for offsets in (np.arange(-window, 0), np.arange(2, window + 2)):
        places = gaps[:, None] + offsets
        inside = (places >= 0) & (places < len(x))
        places = places.clip(0, len(x) - 1)
        u = x[places] - (x[gaps] + x[gaps + 1])[:, None] / 2
        sides.append(_line(np.where(inside, u, 0.0), np.where(inside, y[places], 0.0), inside.astype(float)))
    (left, left_rate, left_rss, left_spread, n), (right, right_rate, right_rss, right_spread, m) = sides
    freedom = n + m - 4
    scale = np.sqrt((left_rss + right_rss) / freedom) + 1e-12
    shift = right - left
    chance = 2 * student.sf(np.abs(shift) / (scale * np.sqrt(left_spread + right_spread)), freedom)
    noise = 1.48 * _median_bend(y, gaps, window)
    half = (x[gaps + 1] - x[gaps]) / 2
    off = np.maximum(np.abs(y[gaps] - left + left_rate * half), np.abs(y[gaps + 1] - right - right_rate * half))
    fits = (np.abs(shift) >= LEAST) & (off <= np.maximum(np.abs(shift) / 5, 4 * noise))
    return np.where(fits, shift, 0.0), np.where(fits, chance, 1.0)


def _median_bend(y, gaps, window: int) -> np.ndarray:
    """The median size of second differences / √6 around each gap: noise, whatever trend and jumps do."""
    bends = np.abs(np.diff(y, 2)) / np.sqrt(6)
    places = (gaps[:, None] + np.arange(-window, window + 1)).clip(0, len(bends) - 1)
    return np.median(bends[places], axis=1)


def _line(u, v, weight) -> tuple[np.ndarray, ...]:
    """Least squares of each row: level at 0, slope, residual sum of squares, variance factor of the level, points."""
    n = weight.sum(1)
    middle_u, middle_v = u.sum(1) / n, v.sum(1) / n
    du, dv = (u - middle_u[:, None]) * weight, (v - middle_v[:, None]) * weight
    spread = (du**2).sum(1)
    slope = (du * dv).sum(1) / spread
    rss = ((dv - slope[:, None] * du) ** 2).sum(1)
    return middle_v - slope * middle_u, slope, rss, 1 / n + middle_u**2 / spread, n

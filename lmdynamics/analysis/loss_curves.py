"""A loss curve before anything is fitted to it: smoothing and thinning, jumps in its scale, and its noise.

`log-average` and the thinning are those of Mircea et al. 2025 (arXiv 2506.05447). At a jump, between two neighbouring
points, the level of log loss shifts and stays there, by far more than noise and trend explain: a change of unit, of
averaging or of accumulation, which is no learning. Residuals along a curve are not independent, least of all after
smoothing, so their bootstrap draws blocks of them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.stats import t as student

from lmdynamics.errors import UserError, did_you_mean

Smoothing = Literal["none", "log-average", "log-median"]
SMOOTHINGS = ("none", "log-average", "log-median")
SPAN = 1.2  # an average reaches back to step / SPAN
BINS = 60  # to a factor of ten, for the medians


def prepare(
    step: ArrayLike,
    loss: ArrayLike,
    smoothing: str = "none",
    skip_steps: float = 100,
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Smooth a curve (as many losses as steps), thin it, drop what comes first: steps and losses to fit.

    `none` keeps every point. `log-average`: at step j the mean of all losses from step ⌊j / 1.2⌋ to j, at steps
    divisible by 10^min(⌊log10 j⌋ - 1, 3) and the last (where a log has gaps, at the first step after each); a break
    then comes out about a tenth later than it is. `log-median`: the median of each of 60 bins to a factor of ten, at
    its geometric mean step. Then steps up to `skip_steps` go.

    Raises UserError if steps do not rise, a loss is not a positive number, or the smoothing is unknown.
    """
    step, loss = np.asarray(step, float), np.asarray(loss, float)
    if smoothing not in SMOOTHINGS:
        raise UserError(f"there is no smoothing {smoothing!r}{did_you_mean(str(smoothing), SMOOTHINGS)}")
    if len(step) != len(loss):
        raise UserError(f"{len(step)} steps and {len(loss)} losses; give one loss per step")
    if not (np.isfinite(step).all() and (np.diff(step) > 0).all()):
        raise UserError("the steps do not rise, each above the one before; sort them, or let lmd.read_curves repair it")
    if not (np.isfinite(loss).all() and (loss > 0).all()):
        raise UserError("a loss is not a positive number; drop such rows, or let lmd.read_curves do so and count them")
    step, loss = step[step > 0], loss[step > 0]
    if smoothing == "log-average" and len(step):
        summed = np.concatenate([[0.0], np.cumsum(loss)])
        first, after = np.searchsorted(step, np.floor(step / SPAN)), np.arange(1, len(step) + 1)
        kept = _thinned(step)
        step, loss = step[kept], ((summed[after] - summed[first]) / (after - first))[kept]
    elif smoothing == "log-median" and len(step):
        place = np.floor(np.log10(step) * BINS).astype(int)
        starts = np.flatnonzero(np.diff(place, prepend=place[0] - 1))
        loss = np.array([np.median(part) for part in np.split(loss, starts[1:])])
        step = np.exp([np.log(part).mean() for part in np.split(step, starts[1:])])
    kept = step > skip_steps
    return step[kept], loss[kept]


def prepared(curves: pl.DataFrame, smoothing: str = "none", skip_steps: float = 100) -> pl.DataFrame:
    """The points that are fitted: curve, step, loss after `prepare`."""
    parts = []
    for (curve,), rows in curves.group_by("curve", maintain_order=True):
        step, loss = prepare(rows["step"], rows["loss"], smoothing, skip_steps)
        parts.append(pl.DataFrame({"curve": [curve] * len(step), "step": step, "loss": loss}))
    return pl.concat(parts)


def _thinned(step: Float[np.ndarray, " steps"]) -> np.ndarray:
    """Whether to keep each step: those that reach a multiple of the spacing at their size, and the last."""
    spacing = 10.0 ** np.clip(np.floor(np.log10(step)) - 1, 0, 3)
    before = np.concatenate([[0.0], step[:-1]])
    kept = np.floor(step / spacing) > np.floor(before / spacing)
    kept[-1] = True
    return kept


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


CORRELATED = 2.0  # correlation time of residuals, in points, from which blocks are counted in log steps
EVEN = 512  # places at which residuals are read to find their correlation over log steps


def correlation_time(residuals: Float[np.ndarray, " points"]) -> float:
    """How many neighbouring points say as much as one: 1 + 2 Σ autocorrelation, up to its first negative value."""
    e = residuals - residuals.mean()
    if not (variance := e @ e) > 0:
        return 1.0
    size = 2 * len(e)
    spectrum = np.abs(np.fft.rfft(e, size)) ** 2
    correlation = np.fft.irfft(spectrum, size)[: len(e)] / variance
    below = np.flatnonzero(correlation < 0)
    return float(1 + 2 * correlation[1 : below[0] if len(below) else len(e)].sum())


def blocks_of(
    x: Float[np.ndarray, " points"], residuals: Float[np.ndarray, " points"]
) -> tuple[Int[np.ndarray, " blocks"], float]:
    """Where blocks of neighbouring points begin, and how many points are worth as much as independent ones.

    Where residuals are correlated, as they are after smoothing, blocks are as wide in log step; otherwise they hold
    as many points.
    """
    n, span = len(x), x[-1] - x[0]
    time = correlation_time(residuals)
    if time < CORRELATED:
        length = max(1, round(n ** (1 / 3)))
        return np.arange(0, n, length), n / time
    even = np.linspace(x[0], x[-1], EVEN)
    time = correlation_time(np.interp(even, x, residuals)) * span / (EVEN - 1)
    blocks = int(np.clip(span / (2 * time), 12, 40))
    return np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], blocks + 1)[:-1])), span / time


def wild_draws(
    x: Float[np.ndarray, " points"],
    residuals: Float[np.ndarray, " points"],
    starts: Int[np.ndarray, " blocks"],
    columns: Float[np.ndarray, "points parameters"],
    resamples: int,
    seed: int,
) -> Float[np.ndarray, "resamples points"]:
    """Residuals whose blocks are weighed at random, in place (a wild cluster bootstrap).

    `columns`: how the fit moves with each of its parameters. A fit bends towards what it is fitted to: each block's
    residuals are stretched as far as it does (CR2, Bell and McCaffrey 2002). Few blocks say little of their own
    spread: hence Student's t.
    """
    q, _ = np.linalg.qr(columns)
    ends = [*starts[1:], len(x)]
    honest = residuals.copy()
    for start, end in zip(starts, ends, strict=True):
        here = q[start:end]
        bends, ways = np.linalg.eigh(np.eye(q.shape[1]) - here.T @ here)
        seen = ways.T @ (here.T @ residuals[start:end])
        # (I - H)^-1/2, where H = here @ here.T: the inverse root on its range, nothing elsewhere
        size = np.maximum(1 - bends, 1e-12)
        honest[start:end] += here @ (ways @ (seen * (1 / np.sqrt(np.maximum(bends, 0.1)) - 1) / size))
    # a block as long as two correlation times misses a quarter of the variance, and half of the blocks tell of a side
    wider = student.ppf(0.975, max(2, len(starts) / 2 - 1)) / student.ppf(0.975, 1e6) / np.sqrt(0.75)
    weights = np.random.default_rng(seed).standard_normal((resamples, len(starts)))
    return wider * honest * np.repeat(weights, np.diff(starts, append=len(x)), axis=1)


def local_scale(y: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """How large noise is around each point, up to a factor: the median distance from the mean of two neighbours."""
    apart = np.abs(y[1:-1] - (y[:-2] + y[2:]) / 2)
    window = min(max(5, len(y) // 10), len(apart)) // 2 * 2 - 1
    padded = np.pad(apart, window // 2 + 1, mode="reflect" if len(apart) > window // 2 + 1 else "edge")
    scale = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)[: len(y)]
    return np.maximum(scale, 1e-3 * scale.max() + 1e-300)


def moved_draws(
    residuals: Float[np.ndarray, " points"],
    scale: Float[np.ndarray, " points"],
    length: int,
    resamples: int,
    seed: int,
) -> Float[np.ndarray, "resamples points"]:
    """Residuals in units of `scale`, in blocks of `length` taken from anywhere (Künsch 1989), back in their units.

    Unlike `wild_draws` it does not leave small what a fit followed into an edge.
    """
    n = len(residuals)
    blocks = -(-n // length)
    starts = np.random.default_rng(seed).integers(n - length + 1, size=(resamples, blocks))
    places = (starts[:, :, None] + np.arange(length)).reshape(resamples, -1)[:, :n]
    return (residuals / scale)[places] * scale

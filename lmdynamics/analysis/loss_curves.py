"""Preparation of a loss curve for fits: smoothing and thinning, jumps in its scale, and its noise.

`log-average` and the thinning are those of Mircea et al. 2025 (arXiv 2506.05447). At a jump between two neighbouring
points, the level of log loss shifts permanently, by far more than noise and trend explain: a change of unit, of
averaging or of accumulation, not learning. Residuals along a curve are correlated, especially after smoothing, so the
bootstrap resamples blocks.
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
AVERAGE_SPAN = 1.2  # an average starts at step / AVERAGE_SPAN
BINS_PER_DECADE = 60  # for the medians


def prepare(
    step: ArrayLike,
    loss: ArrayLike,
    smoothing: str = "none",
    skip_steps: float = 100,
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Smooth a curve, thin it and drop its first steps: steps and losses to fit.

    `none` keeps every point. `log-average`: at step j the mean of all losses from step ⌊j / 1.2⌋ to j, at steps
    divisible by 10^min(⌊log10 j⌋ - 1, 3) and the last (in a log with gaps, at the first step after each). This
    delays a break by about a tenth. `log-median`: the median of each of 60 bins per factor of ten, at
    its geometric mean step. Then steps up to `skip_steps` are dropped.

    Raises UserError if steps do not rise, a loss is not a positive number, or the smoothing is unknown.
    """
    step, loss = np.asarray(step, float), np.asarray(loss, float)
    if smoothing not in SMOOTHINGS:
        raise UserError(f"there is no smoothing {smoothing!r}{did_you_mean(str(smoothing), SMOOTHINGS)}")
    if len(step) != len(loss):
        raise UserError(f"{len(step)} steps and {len(loss)} losses; give one loss per step")
    if not (np.isfinite(step).all() and (np.diff(step) > 0).all()):
        raise UserError("the steps do not increase strictly; sort them, or read the curves with lmd.read_curves")
    if not (np.isfinite(loss).all() and (loss > 0).all()):
        raise UserError("a loss is not a positive number; drop such rows, or read the curves with lmd.read_curves")
    step, loss = step[step > 0], loss[step > 0]
    if smoothing == "log-average" and len(step):
        summed = np.concatenate([[0.0], np.cumsum(loss)])
        first, after = np.searchsorted(step, np.floor(step / AVERAGE_SPAN)), np.arange(1, len(step) + 1)
        selected = _thinned(step)
        step, loss = step[selected], ((summed[after] - summed[first]) / (after - first))[selected]
    elif smoothing == "log-median" and len(step):
        bin_index = np.floor(np.log10(step) * BINS_PER_DECADE).astype(int)
        starts = np.flatnonzero(np.diff(bin_index, prepend=bin_index[0] - 1))
        loss = np.array([np.median(part) for part in np.split(loss, starts[1:])])
        step = np.exp([np.log(part).mean() for part in np.split(step, starts[1:])])
    selected = step > skip_steps
    return step[selected], loss[selected]


def prepared(curves: pl.DataFrame, smoothing: str = "none", skip_steps: float = 100) -> pl.DataFrame:
    """The points to fit: curve, step, loss after `prepare`."""
    parts = []
    for (curve,), rows in curves.group_by("curve", maintain_order=True):
        step, loss = prepare(rows["step"], rows["loss"], smoothing, skip_steps)
        names = pl.repeat(curve, len(step), dtype=curves.schema["curve"], eager=True)
        parts.append(pl.DataFrame({"curve": names, "step": step, "loss": loss}))
    return pl.concat(parts)


def _thinned(step: Float[np.ndarray, " steps"]) -> np.ndarray:
    """Whether to keep each step: steps that reach a multiple of the spacing of their magnitude, and the last."""
    spacing = 10.0 ** np.clip(np.floor(np.log10(step)) - 1, 0, 3)
    previous = np.concatenate([[0.0], step[:-1]])
    selected = np.floor(step / spacing) > np.floor(previous / spacing)
    selected[-1] = True
    return selected


MIN_SHIFT = np.log(1.1)  # smallest shift of log loss to detect; a drop of the learning rate causes a few per cent
WINDOWS = (8, 32, 128)  # points on each side that a line is fitted to
MIN_SIDE_POINTS = 6  # points required on each side
MAX_CHANCE = 0.001  # of an equally large shift anywhere in a curve without one, with independent noise
MAX_JUMPS = 10  # number of searches for a jump
MAX_GAPS = 2_000  # gaps examined: those with the largest change of the mean of 32 points


@dataclass(frozen=True)
class Jump:
    """From step `before` to the next point, at step `after`, the loss is multiplied by `factor`."""

    before: float
    after: float
    factor: float

    def __str__(self) -> str:
        direction, ratio = ("rises", self.factor) if self.factor > 1 else ("falls", 1 / self.factor)
        return f"{direction} by a factor of {ratio:.3g} between steps {self.before:,.0f} and {self.after:,.0f}"


def find_jumps(step: Float[np.ndarray, " points"], loss: Float[np.ndarray, " points"]) -> list[Jump]:
    """Jumps of a curve (steps positive and rising, losses positive), in order of step.

    At each gap between neighbours, lines in log-log are fitted to the points before and after it, without the two
    points next to the gap. The level has jumped if the lines differ at the gap by at least 10 % and significantly
    (Student's t, Bonferroni over gaps and windows), and both omitted points lie on their lines; in a steep but
    continuous descent they lie between the lines.
    """
    step = np.asarray(step, float)
    x, y = np.log(step), np.log(np.asarray(loss, float))
    shifts: dict[int, float] = {}
    for _ in range(MAX_JUMPS):  # the limit also stops two windows that correct each other
        if (gap := _most_certain_gap(x, y)) is None:
            break
        index, shift = gap
        shifts[index] = shifts.get(index, 0.0) + shift
        y = np.where(np.arange(len(y)) <= index, y + shift, y)  # a jump may hide another
    return [
        Jump(float(step[index]), float(step[index + 1]), float(np.exp(shifts[index])))
        for index in sorted(shifts)
        if abs(shifts[index]) >= MIN_SHIFT
    ]


def _most_certain_gap(x, y) -> tuple[int, float] | None:
    """The point before the most significant jump, and its shift; None if no jump is significant."""
    gaps = _largest_gaps(y)
    chances, index, shift = [MAX_CHANCE / max(len(x), 1) / len(WINDOWS)], None, 0.0
    for window in WINDOWS if len(gaps) else ():
        shifts, chance = _shifts(x, y, gaps, window)
        best = chance.argmin()
        if chance[best] < chances[-1]:
            chances.append(chance[best])
            index, shift = int(gaps[best]), float(shifts[best])
    return None if index is None else (index, shift)


def without_jumps(step, loss, jumps: list[Jump]) -> Float[np.ndarray, " points"]:
    """The losses, all on the scale after the last jump."""
    step, loss = np.asarray(step, float), np.asarray(loss, float).copy()
    for jump in jumps:
        loss[step <= jump.before] *= jump.factor
    return loss


def _largest_gaps(y: Float[np.ndarray, " points"]) -> np.ndarray:
    """The gaps (by the index of the point before) with enough points on both sides, at most `MAX_GAPS` of them."""
    gaps = np.arange(MIN_SIDE_POINTS - 1, len(y) - MIN_SIDE_POINTS)
    if len(gaps) <= MAX_GAPS:
        return gaps
    summed = np.concatenate([[0.0], np.cumsum(y)])
    reach = WINDOWS[1]
    low, high = np.maximum(gaps + 1 - reach, 0), np.minimum(gaps + 1 + reach, len(y))
    before = (summed[gaps + 1] - summed[low]) / (gaps + 1 - low)
    after = (summed[high] - summed[gaps + 1]) / (high - gaps - 1)
    return gaps[np.argsort(-np.abs(after - before))[:MAX_GAPS]]


def _shifts(x, y, gaps, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Shift of the level at each gap (0 if a neighbour is off its line), and its p-value."""
    sides = []
    for offsets in (np.arange(-window, 0), np.arange(2, window + 2)):
        positions = gaps[:, None] + offsets
        inside = (positions >= 0) & (positions < len(x))
        positions = positions.clip(0, len(x) - 1)
        u = x[positions] - (x[gaps] + x[gaps + 1])[:, None] / 2
        sides.append(_line(np.where(inside, u, 0.0), np.where(inside, y[positions], 0.0), inside.astype(float)))
    (left, left_rate, left_rss, left_spread, n), (right, right_rate, right_rss, right_spread, m) = sides
    freedom = n + m - 4
    scale = np.sqrt((left_rss + right_rss) / freedom) + 1e-12
    shift = right - left
    chance = 2 * student.sf(np.abs(shift) / (scale * np.sqrt(left_spread + right_spread)), freedom)
    noise = 1.48 * _median_bend(y, gaps, window)
    half = (x[gaps + 1] - x[gaps]) / 2
    distance = np.maximum(np.abs(y[gaps] - left + left_rate * half), np.abs(y[gaps + 1] - right - right_rate * half))
    is_jump = (np.abs(shift) >= MIN_SHIFT) & (distance <= np.maximum(np.abs(shift) / 5, 4 * noise))
    return np.where(is_jump, shift, 0.0), np.where(is_jump, chance, 1.0)


def _median_bend(y, gaps, window: int) -> np.ndarray:
    """The median size of second differences / √6 around each gap: noise without trend and jumps."""
    curvature = np.abs(np.diff(y, 2)) / np.sqrt(6)
    positions = (gaps[:, None] + np.arange(-window, window + 1)).clip(0, len(curvature) - 1)
    return np.median(curvature[positions], axis=1)


def _line(u, v, weight) -> tuple[np.ndarray, ...]:
    """Least squares of each row: level at 0, slope, residual sum of squares, variance factor of the level, points."""
    n = weight.sum(1)
    mean_u, mean_v = u.sum(1) / n, v.sum(1) / n
    du, dv = (u - mean_u[:, None]) * weight, (v - mean_v[:, None]) * weight
    spread = (du**2).sum(1)
    slope = (du * dv).sum(1) / spread
    rss = ((dv - slope[:, None] * du) ** 2).sum(1)
    return mean_v - slope * mean_u, slope, rss, 1 / n + mean_u**2 / spread, n


MIN_CORRELATION_TIME = 2.0  # in points; from here on, blocks are measured in log steps
GRID_POINTS = 512  # points at which residuals are interpolated for their correlation over log steps


def correlation_time(residuals: Float[np.ndarray, " points"]) -> float:
    """Neighbouring points per independent point: 1 + 2 Σ autocorrelation, up to its first negative value."""
    e = residuals - residuals.mean()
    if not (variance := e @ e) > 0:
        return 1.0
    size = 2 * len(e)
    spectrum = np.abs(np.fft.rfft(e, size)) ** 2
    correlation = np.fft.irfft(spectrum, size)[: len(e)] / variance
    negative = np.flatnonzero(correlation < 0)
    return float(1 + 2 * correlation[1 : negative[0] if len(negative) else len(e)].sum())


def residual_blocks(
    x: Float[np.ndarray, " points"], residuals: Float[np.ndarray, " points"]
) -> tuple[Int[np.ndarray, " blocks"], float]:
    """The starts of blocks of neighbouring points, and the effective number of independent points.

    If residuals are correlated, as after smoothing, blocks are equally wide in log steps; otherwise they have equally
    many points.
    """
    n, span = len(x), x[-1] - x[0]
    time = correlation_time(residuals)
    if time < MIN_CORRELATION_TIME:
        length = max(1, round(n ** (1 / 3)))
        return np.arange(0, n, length), n / time
    grid = np.linspace(x[0], x[-1], GRID_POINTS)
    time = correlation_time(np.interp(grid, x, residuals)) * span / (GRID_POINTS - 1)
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
    """Residuals with random weights for each block (a wild cluster bootstrap).

    `columns`: derivatives of the fit by its parameters. A fit follows its data, so each block's residuals are enlarged
    to compensate (CR2, Bell and McCaffrey 2002). The spread of few blocks is uncertain, hence Student's t.
    """
    q, _ = np.linalg.qr(columns)
    ends = [*starts[1:], len(x)]
    corrected = residuals.copy()
    for start, end in zip(starts, ends, strict=True):
        block = q[start:end]
        values, vectors = np.linalg.eigh(np.eye(q.shape[1]) - block.T @ block)
        projected = vectors.T @ (block.T @ residuals[start:end])
        # (I - H)^-1/2 with H = block @ block.T, on the range of H
        size = np.maximum(1 - values, 1e-12)
        corrected[start:end] += block @ (vectors @ (projected * (1 / np.sqrt(np.maximum(values, 0.1)) - 1) / size))
    # a block of two correlation times misses a quarter of the variance; one side of a break has half of the blocks
    scale = student.ppf(0.975, max(2, len(starts) / 2 - 1)) / student.ppf(0.975, 1e6) / np.sqrt(0.75)
    weights = np.random.default_rng(seed).standard_normal((resamples, len(starts)))
    return scale * corrected * np.repeat(weights, np.diff(starts, append=len(x)), axis=1)


def local_scale(y: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """The noise around each point, up to a factor: the median distance from the mean of two neighbours."""
    distance = np.abs(y[1:-1] - (y[:-2] + y[2:]) / 2)
    window = min(max(5, len(y) // 10), len(distance)) // 2 * 2 - 1
    padded = np.pad(distance, window // 2 + 1, mode="reflect" if len(distance) > window // 2 + 1 else "edge")
    scale = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)[: len(y)]
    return np.maximum(scale, 1e-3 * scale.max() + 1e-300)


def moved_draws(
    residuals: Float[np.ndarray, " points"],
    scale: Float[np.ndarray, " points"],
    length: int,
    resamples: int,
    seed: int,
) -> Float[np.ndarray, "resamples points"]:
    """Residuals divided by `scale`, resampled in blocks of `length` (Künsch 1989), and multiplied by `scale`.

    Unlike `wild_draws`, it also resamples the small residuals near an edge.
    """
    n = len(residuals)
    blocks = -(-n // length)
    starts = np.random.default_rng(seed).integers(n - length + 1, size=(resamples, blocks))
    positions = (starts[:, :, None] + np.arange(length)).reshape(resamples, -1)[:, :n]
    return (residuals / scale)[positions] * scale

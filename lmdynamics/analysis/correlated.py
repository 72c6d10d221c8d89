"""A bootstrap for residuals along a curve, which are not independent, least of all after smoothing."""

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student

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

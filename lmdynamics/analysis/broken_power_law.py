"""Power laws with smooth breaks, fitted by least squares in log-log.

    log L(t) = log b - c0 log t - sum_k c_k f_k log(1 + exp((log t - log d_k) / f_k))

Caballero et al. 2023 (arXiv 2210.14891), with no irreducible term, as in Mircea et al. 2025 (arXiv 2506.05447).
Given places d_k and widths f_k the rest is linear (Golub and Pereyra 1973): a scan over places and widths finds the
basin, Newton's method its bottom. All of it works on many curves over the same steps at once.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.special import expit

NARROWEST, WIDEST = 0.01, 3.0  # widths f of a break, in natural logarithms of the step
PLACES, WIDTHS = 60, (0.02, 0.06, 0.15, 0.3, 0.5, 0.8, 1.2, 2.0)  # what is scanned
PAIRS, PAIRED = 24, (0.02, 0.06, 0.3, 0.8)  # places and widths scanned for two breaks
SCANNED = 1_000  # points that a scan looks at; the steps that follow look at all
EXACT, CLOSE, QUICK = (80, 1e-13), (60, 1e-8), (25, 1e-7)  # steps at most; the relative gain below which they end
FIELDS = ("log_b", "rates", "breaks", "widths", "rss")


@dataclass(frozen=True)
class Broken:
    """Fits of one model to several curves: each array has a row per curve.

    `breaks` are the log d_k, rising; `rates` are c0, c1, ...: minus the slope before the first break, and what each
    break adds to it. Without breaks it is one power law.
    """

    log_b: Float[np.ndarray, " curves"]
    rates: Float[np.ndarray, "curves pieces"]
    breaks: Float[np.ndarray, "curves breaks"]
    widths: Float[np.ndarray, "curves breaks"]
    rss: Float[np.ndarray, " curves"]  # residual sum of squares of log loss

    def __call__(self, x: Float[np.ndarray, " points"]) -> Float[np.ndarray, "curves points"]:
        """log L at x = log t."""
        linear = np.concatenate([self.log_b[:, None], self.rates], axis=1)
        columns = _columns(x, self.widths, _soft(x, self.breaks, self.widths))
        return np.einsum("rpk,rk->rp", columns, linear)

    def rows(self, chosen) -> "Broken":
        """Some of the curves."""
        return Broken(*(getattr(self, name)[chosen] for name in FIELDS))


def fit(
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, "curves points"],
    breaks: int,
    start: tuple[Float[np.ndarray, "curves breaks"], Float[np.ndarray, "curves breaks"]] | None = None,
    near: Broken | None = None,
    fixed: bool = False,
) -> Broken:
    """The least-squares fit of each row of `y` (log loss) over `x` (log step, rising) with 0, 1 or 2 breaks.

    Breaks lie between the first and the last point. With `start` (places, widths) only from there; with `near` only
    from that one fit, and not to the last digit; otherwise from the best places of a scan at several widths. `fixed`
    leaves breaks and widths at `start`, and fits the rest.
    """
    if breaks == 0:
        none = np.empty((len(y), 0))
        return _linear(x, y, none, none, _soft(x, none, none))[0]
    if start is not None:
        return _linear(x, y, *start, _soft(x, *start))[0] if fixed else _refined(x, y, *start)
    if near is not None:
        each = (len(y), breaks)
        return _refined(x, y, np.broadcast_to(near.breaks, each), np.broadcast_to(near.widths, each), *QUICK)
    guesses = list(_scan(x, y, breaks))
    places, widths = (np.concatenate(each) for each in zip(*guesses, strict=True))
    made = _refined(x, np.tile(y, (len(guesses), 1)), places, widths, *(EXACT if breaks == 1 else CLOSE))
    best = made.rss.reshape(len(guesses), -1).argmin(0) * len(y) + np.arange(len(y))
    return made.rows(best)


def slopes(x: Float[np.ndarray, " points"], broken: Broken) -> Float[np.ndarray, "points parameters"]:
    """How the first curve's fit moves with each of its parameters: log b, rates, places, log widths."""
    breaks, widths = broken.breaks[:1], broken.widths[:1]
    z = (x[:, None] - breaks) / widths
    bent = expit(z)
    added = broken.rates[0, 1:]
    by_width = -added * widths * (np.logaddexp(0, z) - z * bent)
    columns = _columns(x, widths, _soft(x, breaks, widths))[0]
    return np.concatenate([columns, added * bent, by_width], axis=1)


def scanned_gain(
    x: Float[np.ndarray, " points"], y: Float[np.ndarray, "curves points"]
) -> Float[np.ndarray, " curves"]:
    """How much the best break of a scan takes away of one power law's residual sum of squares."""
    return _gains(x, y)[1].max((1, 2))


def _columns(x, widths, soft) -> np.ndarray:
    """What log b, c0, c1, ... are multiplied by: [curves, points, 2 + breaks]."""
    columns = np.empty((len(widths), len(x), 2 + widths.shape[1]))
    columns[:, :, 0], columns[:, :, 1] = 1.0, -x
    columns[:, :, 2:] = -widths[:, None, :] * soft
    return columns


def _soft(x, breaks, widths) -> np.ndarray:
    return np.logaddexp(0, (x[None, :, None] - breaks[:, None, :]) / widths[:, None, :])


def _linear(x, y, breaks, widths, soft) -> tuple[Broken, np.ndarray]:
    """log b and the rates, given places and widths; and the residuals."""
    columns = _columns(x, widths, soft)
    q, r = np.linalg.qr(columns)
    # breaks on top of each other leave R singular: the ridge is far below what rounding does to any other fit
    ridge = 1e-12 * np.abs(r[:, 0, 0])[:, None, None] * np.eye(r.shape[-1])
    linear = np.linalg.solve(r + ridge, np.einsum("rpk,rp->rk", q, y)[..., None])[..., 0]
    residual = y - np.einsum("rpk,rk->rp", columns, linear)
    return Broken(linear[:, 0], linear[:, 1:], breaks, widths, (residual**2).sum(1)), residual


def _scan(x, y, breaks: int):
    """Starting places and widths: the best cells of a grid, at the best few widths."""
    every = -(-len(x) // SCANNED)
    x, y = x[::every], y[:, ::every]
    if breaks == 1:
        _, gain, inside = _gains(x, y)
        for width in np.argsort(gain.max(2), axis=1)[:, :-4:-1].T:
            place = gain[np.arange(len(y)), width].argmax(1)
            yield inside[place][:, None], np.array(WIDTHS)[width][:, None]
        return
    q, rest = _less_straight(x, y)
    inside = np.linspace(x[0], x[-1], PAIRS + 2)[1:-1]
    first, second = np.array(list(combinations(range(len(inside)), 2))).T
    for width in PAIRED:
        bent = _bent(x, inside, np.full(len(inside), width), q)
        gram, seen = bent.T @ bent, rest @ bent
        a, b, c = gram[first, first], gram[second, second], gram[first, second]
        u, v = seen[:, first], seen[:, second]
        gain = (b * u**2 - 2 * c * u * v + a * v**2) / np.maximum(a * b - c**2, 1e-9 * a * b)
        best = gain.argmax(1)
        yield np.stack([inside[first[best]], inside[second[best]]], axis=1), np.full((len(y), 2), width)


def _gains(x, y):
    """What is left of each curve after a straight line; how much less a break at each width and place leaves of its
    residual sum of squares; and the places."""
    q, rest = _less_straight(x, y)
    inside = np.linspace(x[0], x[-1], PLACES + 2)[1:-1]
    places, widths = (grid.ravel() for grid in np.meshgrid(inside, WIDTHS))
    bent = _bent(x, places, widths, q)
    gain = (rest @ bent) ** 2 / (bent**2).sum(0)
    return rest, gain.reshape(len(y), len(WIDTHS), len(inside)), inside


def _less_straight(x, y):
    q, _ = np.linalg.qr(np.stack([np.ones_like(x), x], axis=1))
    return q, y - (y @ q) @ q.T


def _bent(x, places, widths, q) -> np.ndarray:
    """The bent columns, less what a straight line explains of them: [points, cells]."""
    bent = widths * np.logaddexp(0, (x[:, None] - places) / widths)
    return bent - q @ (q.T @ bent)


def _refined(x, y, breaks, widths, most: int = EXACT[0], tolerance: float = EXACT[1]) -> Broken:
    """Damped Newton steps over places and log widths, the linear part solved anew at each."""
    k = breaks.shape[1]
    low = np.repeat([x[0], np.log(NARROWEST)], k)
    high = np.repeat([x[-1], np.log(WIDEST)], k)
    place = np.clip(np.concatenate([breaks, np.log(np.clip(widths, NARROWEST, WIDEST))], axis=1), low, high)
    here, slope = _solved_and_slope(x, y, place)
    damping = np.full(len(y), 1e-2)
    moving = np.arange(len(y))
    for _ in range(most):
        # at a bound, what would lead out stays: clipped afterwards it would bend the step of the rest
        out = ((place <= low) & (slope > 0)) | ((place >= high) & (slope < 0))
        step = _step(x, y[moving], place[moving], slope[moving], damping[moving], ~out[moving])
        aim = np.clip(place[moving] + np.clip(step, -1, 1), low, high)
        tried, tilted = _solved_and_slope(x, y[moving], aim)
        gain = here.rss[moving] - tried.rss
        better = gain >= 0
        settled = better & (gain <= tolerance * tried.rss) & (damping[moving] < 1)
        damping[moving] = np.where(better, np.maximum(damping[moving] / 10, 1e-12), damping[moving] * 10)
        taken = moving[better]
        place[taken], slope[taken] = aim[better], tilted[better]
        for name in FIELDS:
            getattr(here, name)[taken] = getattr(tried, name)[better]
        moving = moving[~settled & (damping[moving] < 1e6)]
        if not len(moving):
            break
    order = np.argsort(here.breaks, axis=1)
    added, breaks, widths = (
        np.take_along_axis(each, order, 1) for each in (here.rates[:, 1:], here.breaks, here.widths)
    )
    return Broken(here.log_b, np.concatenate([here.rates[:, :1], added], axis=1), breaks, widths, here.rss)


def _step(x, y, place, slope, damping, free) -> np.ndarray:
    """The Newton step in what is free, its curvature by differences of the slope and made positive."""
    size, nudge = place.shape[1], 1e-5
    nudged = (place[None] + nudge * np.eye(size)[:, None]).reshape(-1, size)
    there = _solved_and_slope(x, np.tile(y, (size, 1)), nudged)[1].reshape(size, len(y), size)
    curvature = (there - slope).transpose(1, 0, 2) / nudge
    curvature = np.where(free[:, :, None] & free[:, None, :], curvature + curvature.transpose(0, 2, 1), 0.0) / 2
    slope = np.where(free, slope, 0.0)
    bends, ways = np.linalg.eigh(curvature)
    bends = np.abs(bends)
    bends += damping[:, None] * bends.max(1, keepdims=True) + 1e-300
    return -np.einsum("rij,rj->ri", ways, np.einsum("rkj,rk->rj", ways, slope) / bends)


def _solved_and_slope(x, y, place) -> tuple[Broken, np.ndarray]:
    """The linear part, and half the gradient of the residual sum of squares over places and log widths."""
    k = place.shape[1] // 2
    breaks, widths = place[:, :k].copy(), np.exp(place[:, k:])
    z = (x[None, :, None] - breaks[:, None, :]) / widths[:, None, :]
    soft = np.logaddexp(0, z)
    made, residual = _linear(x, y, breaks, widths, soft)
    bent = expit(z)
    by_place = made.rates[:, 1:] * np.einsum("rp,rpk->rk", residual, bent)
    by_width = made.rates[:, 1:] * widths * np.einsum("rp,rpk->rk", residual, soft - z * bent)
    return made, np.concatenate([-by_place, by_width], axis=1)

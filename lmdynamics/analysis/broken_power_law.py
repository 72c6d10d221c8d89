"""Power laws with smooth breaks, fitted by least squares in log-log.

    log L(t) = log b - c0 log t - sum_k c_k f_k log(1 + exp((log t - log d_k) / f_k))

Caballero et al. 2023 (arXiv 2210.14891), with no irreducible term, as in Mircea et al. 2025 (arXiv 2506.05447).
Given positions d_k and widths f_k the other parameters are linear (Golub and Pereyra 1973): a scan over positions and
widths finds a starting point, Newton's method the minimum. Many curves over the same steps are fitted at once.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.special import expit

MIN_WIDTH, MAX_WIDTH = 0.01, 3.0  # widths f of a break, in natural logarithms of the step
POSITIONS, WIDTHS = 60, (0.02, 0.06, 0.15, 0.3, 0.5, 0.8, 1.2, 2.0)  # scanned for one break
PAIR_POSITIONS, PAIR_WIDTHS = 24, (0.02, 0.06, 0.3, 0.8)  # positions and widths scanned for two breaks
MAX_SCANNED = 1_000  # points that a scan uses; the Newton steps use all
EXACT, CLOSE, QUICK = (80, 1e-13), (60, 1e-8), (25, 1e-7)  # max. steps; the relative gain below which they end
FIELDS = ("log_b", "rates", "breaks", "widths", "rss")


@dataclass(frozen=True)
class BrokenPowerLaw:
    """Fits of one model to several curves: each array has a row per curve.

    `breaks` are the log d_k, rising; `rates` are c0, c1, ...: minus the slope before the first break, and the change
    at each break. Without breaks it is one power law.
    """

    log_b: Float[np.ndarray, " curves"]
    rates: Float[np.ndarray, "curves pieces"]
    breaks: Float[np.ndarray, "curves breaks"]
    widths: Float[np.ndarray, "curves breaks"]
    rss: Float[np.ndarray, " curves"]  # residual sum of squares of log loss

    def __call__(self, x: Float[np.ndarray, " points"]) -> Float[np.ndarray, "curves points"]:
        """log L at x = log t."""
        linear = np.concatenate([self.log_b[:, None], self.rates], axis=1)
        columns = _columns(x, self.widths, _softplus(x, self.breaks, self.widths))
        return np.einsum("rpk,rk->rp", columns, linear)

    def rows(self, curves) -> "BrokenPowerLaw":
        """The fits of some curves."""
        return BrokenPowerLaw(*(getattr(self, name)[curves] for name in FIELDS))


def fit(
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, "curves points"],
    breaks: int,
    start: tuple[Float[np.ndarray, "curves breaks"], Float[np.ndarray, "curves breaks"]] | None = None,
    initial: BrokenPowerLaw | None = None,
    fixed: bool = False,
) -> BrokenPowerLaw:
    """The least-squares fit of each row of `y` (log loss) over `x` (log step, rising) with 0, 1 or 2 breaks.

    Breaks lie between the first and the last point. The search begins at `start` (positions, widths); or at the fit
    `initial`, with a lower precision; or at the best positions of a scan at several widths. `fixed` keeps breaks and
    widths at `start`, and fits the other parameters.
    """
    if breaks == 0:
        none = np.empty((len(y), 0))
        return _linear(x, y, none, none, _softplus(x, none, none))[0]
    if start is not None:
        return _linear(x, y, *start, _softplus(x, *start))[0] if fixed else _newton_fit(x, y, *start)
    if initial is not None:
        shape = (len(y), breaks)
        return _newton_fit(x, y, np.broadcast_to(initial.breaks, shape), np.broadcast_to(initial.widths, shape), *QUICK)
    guesses = list(_scan(x, y, breaks))
    positions, widths = (np.concatenate(parts) for parts in zip(*guesses, strict=True))
    fits = _newton_fit(x, np.tile(y, (len(guesses), 1)), positions, widths, *(EXACT if breaks == 1 else CLOSE))
    best = fits.rss.reshape(len(guesses), -1).argmin(0) * len(y) + np.arange(len(y))
    return fits.rows(best)


def jacobian(x: Float[np.ndarray, " points"], power_law: BrokenPowerLaw) -> Float[np.ndarray, "points parameters"]:
    """Derivatives of the first curve's fit by its parameters: log b, rates, positions, log widths."""
    breaks, widths = power_law.breaks[:1], power_law.widths[:1]
    z = (x[:, None] - breaks) / widths
    sigmoid = expit(z)
    added = power_law.rates[0, 1:]
    by_width = -added * widths * (np.logaddexp(0, z) - z * sigmoid)
    columns = _columns(x, widths, _softplus(x, breaks, widths))[0]
    return np.concatenate([columns, added * sigmoid, by_width], axis=1)


def scanned_gain(
    x: Float[np.ndarray, " points"], y: Float[np.ndarray, "curves points"]
) -> Float[np.ndarray, " curves"]:
    """How much the best break of a scan reduces the residual sum of squares of one power law."""
    return _gains(x, y)[1].max((1, 2))


def _columns(x, widths, softplus) -> np.ndarray:
    """The columns multiplied by log b, c0, c1, ...: [curves, points, 2 + breaks]."""
    columns = np.empty((len(widths), len(x), 2 + widths.shape[1]))
    columns[:, :, 0], columns[:, :, 1] = 1.0, -x
    columns[:, :, 2:] = -widths[:, None, :] * softplus
    return columns


def _softplus(x, breaks, widths) -> np.ndarray:
    return np.logaddexp(0, (x[None, :, None] - breaks[:, None, :]) / widths[:, None, :])


def _linear(x, y, breaks, widths, softplus) -> tuple[BrokenPowerLaw, np.ndarray]:
    """log b and the rates for given positions and widths; and the residuals."""
    columns = _columns(x, widths, softplus)
    q, r = np.linalg.qr(columns)
    # equal breaks make R singular; for any other fit the ridge is far below rounding errors
    ridge = 1e-12 * np.abs(r[:, 0, 0])[:, None, None] * np.eye(r.shape[-1])
    linear = np.linalg.solve(r + ridge, np.einsum("rpk,rp->rk", q, y)[..., None])[..., 0]
    residual = y - np.einsum("rpk,rk->rp", columns, linear)
    return BrokenPowerLaw(linear[:, 0], linear[:, 1:], breaks, widths, (residual**2).sum(1)), residual


def _scan(x, y, breaks: int):
    """Starting positions and widths: the best cells of a grid, at the best few widths."""
    stride = -(-len(x) // MAX_SCANNED)
    x, y = x[::stride], y[:, ::stride]
    if breaks == 1:
        _, gain, positions = _gains(x, y)
        for width in np.argsort(gain.max(2), axis=1)[:, :-4:-1].T:
            position = gain[np.arange(len(y)), width].argmax(1)
            yield positions[position][:, None], np.array(WIDTHS)[width][:, None]
        return
    q, residual = _detrended(x, y)
    positions = np.linspace(x[0], x[-1], PAIR_POSITIONS + 2)[1:-1]
    first, second = np.array(list(combinations(range(len(positions)), 2))).T
    for width in PAIR_WIDTHS:
        columns = _break_columns(x, positions, np.full(len(positions), width), q)
        gram, projected = columns.T @ columns, residual @ columns
        a, b, c = gram[first, first], gram[second, second], gram[first, second]
        u, v = projected[:, first], projected[:, second]
        gain = (b * u**2 - 2 * c * u * v + a * v**2) / np.maximum(a * b - c**2, 1e-9 * a * b)
        best = gain.argmax(1)
        yield np.stack([positions[first[best]], positions[second[best]]], axis=1), np.full((len(y), 2), width)


def _gains(x, y):
    """Residuals of each curve from a straight line; how much a break at each width and position reduces their sum of
    squares; and the positions."""
    q, residual = _detrended(x, y)
    positions = np.linspace(x[0], x[-1], POSITIONS + 2)[1:-1]
    grid_positions, widths = (grid.ravel() for grid in np.meshgrid(positions, WIDTHS))
    columns = _break_columns(x, grid_positions, widths, q)
    gain = (residual @ columns) ** 2 / (columns**2).sum(0)
    return residual, gain.reshape(len(y), len(WIDTHS), len(positions)), positions


def _detrended(x, y):
    q, _ = np.linalg.qr(np.stack([np.ones_like(x), x], axis=1))
    return q, y - (y @ q) @ q.T


def _break_columns(x, positions, widths, q) -> np.ndarray:
    """The columns of breaks, without their linear part: [points, cells]."""
    columns = widths * np.logaddexp(0, (x[:, None] - positions) / widths)
    return columns - q @ (q.T @ columns)


def _newton_fit(x, y, breaks, widths, max_steps: int = EXACT[0], tolerance: float = EXACT[1]) -> BrokenPowerLaw:
    """Damped Newton steps over positions and log widths; each step solves the linear part."""
    k = breaks.shape[1]
    low = np.repeat([x[0], np.log(MIN_WIDTH)], k)
    high = np.repeat([x[-1], np.log(MAX_WIDTH)], k)
    point = np.clip(np.concatenate([breaks, np.log(np.clip(widths, MIN_WIDTH, MAX_WIDTH))], axis=1), low, high)
    current, gradient = _linear_and_gradient(x, y, point)
    damping = np.full(len(y), 1e-2)
    active = np.arange(len(y))
    for _ in range(max_steps):
        # parameters at a bound that would leave it are fixed: clipping them later would distort the step
        blocked = ((point <= low) & (gradient > 0)) | ((point >= high) & (gradient < 0))
        step = _step(x, y[active], point[active], gradient[active], damping[active], ~blocked[active])
        target = np.clip(point[active] + np.clip(step, -1, 1), low, high)
        candidate, candidate_gradient = _linear_and_gradient(x, y[active], target)
        gain = current.rss[active] - candidate.rss
        better = gain >= 0
        converged = better & (gain <= tolerance * candidate.rss) & (damping[active] < 1)
        damping[active] = np.where(better, np.maximum(damping[active] / 10, 1e-12), damping[active] * 10)
        accepted = active[better]
        point[accepted], gradient[accepted] = target[better], candidate_gradient[better]
        for name in FIELDS:
            getattr(current, name)[accepted] = getattr(candidate, name)[better]
        active = active[~converged & (damping[active] < 1e6)]
        if not len(active):
            break
    order = np.argsort(current.breaks, axis=1)
    added, breaks, widths = (
        np.take_along_axis(values, order, 1) for values in (current.rates[:, 1:], current.breaks, current.widths)
    )
    rates = np.concatenate([current.rates[:, :1], added], axis=1)
    return BrokenPowerLaw(current.log_b, rates, breaks, widths, current.rss)


def _step(x, y, point, gradient, damping, free) -> np.ndarray:
    """The Newton step of the free parameters; the curvature comes from gradient differences and is made positive."""
    size, epsilon = point.shape[1], 1e-5
    shifted = (point[None] + epsilon * np.eye(size)[:, None]).reshape(-1, size)
    shifted_gradient = _linear_and_gradient(x, np.tile(y, (size, 1)), shifted)[1].reshape(size, len(y), size)
    curvature = (shifted_gradient - gradient).transpose(1, 0, 2) / epsilon
    curvature = np.where(free[:, :, None] & free[:, None, :], curvature + curvature.transpose(0, 2, 1), 0.0) / 2
    gradient = np.where(free, gradient, 0.0)
    eigenvalues, eigenvectors = np.linalg.eigh(curvature)
    eigenvalues = np.abs(eigenvalues)
    eigenvalues += damping[:, None] * eigenvalues.max(1, keepdims=True) + 1e-300
    return -np.einsum("rij,rj->ri", eigenvectors, np.einsum("rkj,rk->rj", eigenvectors, gradient) / eigenvalues)


def _linear_and_gradient(x, y, point) -> tuple[BrokenPowerLaw, np.ndarray]:
    """The linear part, and half the gradient of the residual sum of squares by positions and log widths."""
    k = point.shape[1] // 2
    breaks, widths = point[:, :k].copy(), np.exp(point[:, k:])
    z = (x[None, :, None] - breaks[:, None, :]) / widths[:, None, :]
    softplus = np.logaddexp(0, z)
    fits, residual = _linear(x, y, breaks, widths, softplus)
    sigmoid = expit(z)
    by_position = fits.rates[:, 1:] * np.einsum("rp,rpk->rk", residual, sigmoid)
    by_width = fits.rates[:, 1:] * widths * np.einsum("rp,rpk->rk", residual, softplus - z * sigmoid)
    return fits, np.concatenate([-by_position, by_width], axis=1)

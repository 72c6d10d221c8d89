"""Derivatives of a curve that is sampled unevenly, as one matrix, so that a bootstrap costs one product."""

import numpy as np
from jaxtyping import Float


def local_curvature(
    x: Float[np.ndarray, " points"], half_width: float, neighbours: int = 2
) -> Float[np.ndarray, "points points"]:
    """Matrix C with C @ y ≈ d²y/dx² at each point: a weighted quadratic through the points around it.

    A second difference divides noise by the squared gap, so that the closest checkpoints would always win.
    Here each point uses the points within `half_width` (same unit as `x`), or up to its `neighbours`-th
    neighbour on either side where those lie further apart; tricube weights (Cleveland 1979). Points with
    fewer than `neighbours` on one side get a row of NaN: at an end of a curve there is no curvature to see.
    """
    n = len(x)
    weights = np.full((n, n), np.nan)
    for i in range(neighbours, n - neighbours):
        reach = max(half_width, x[i] - x[i - neighbours], x[i + neighbours] - x[i]) * (1 + 1e-6)
        distance = (x - x[i]) / reach
        inside = np.abs(distance) < 1
        # 0.01 keeps the outermost point, whose tricube weight is all but zero, from being left out
        root = np.sqrt((1 - np.abs(distance[inside]) ** 3) ** 3 + 0.01)
        powers = np.stack([np.ones(inside.sum()), distance[inside], distance[inside] ** 2], axis=1)
        weights[i] = 0.0
        weights[i, inside] = 2 * np.linalg.pinv(powers * root[:, None])[2] * root / reach**2
    return weights

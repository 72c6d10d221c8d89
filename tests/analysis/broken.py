"""Loss curves whose every parameter is known."""

import numpy as np

B, C0, C1, BREAK, WIDTH = 20.0, 0.2, -0.17, 3_000.0, 0.3
TRUTH = {"loss_at_break": B * BREAK**-C0, "step_at_break": BREAK, "rate_after_break": C0 + C1}


def broken(steps, c1: float = C1, d: float = BREAK, f: float = WIDTH):
    """The paper's formula, written as a product: b t^-c0 (1 + (t/d)^(1/f))^(-c1 f)."""
    return B * steps**-C0 * (1 + (steps / d) ** (1 / f)) ** (-c1 * f)


def spaced(points: int = 150, first: float = 101, last: float = 60_000):
    return np.unique(np.geomspace(first, last, points).round())


def noisy(steps, sd: float, seed: int, **shape):
    return broken(steps, **shape) * np.exp(sd * np.random.default_rng([5, seed]).standard_normal(len(steps)))

"""From a raw loss curve to the points that a power law is fitted to.

`log-average` and the thinning are those of Mircea et al. 2025 (arXiv 2506.05447).
"""

from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy.typing import ArrayLike

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

    Raises
    ------
    UserError
        If steps do not rise, a loss is not a positive number, or the smoothing is unknown.
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

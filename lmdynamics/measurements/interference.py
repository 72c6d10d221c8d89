"""How far changes of opposite sign cancel: destructive interference D, and magnitude M.

Mircea et al. 2025 (arXiv 2506.05447). For changes x_i of per-token loss (nats), D(x) = 1 - |Σ x_i| / Σ |x_i| and
M(x) = mean |x_i|, so that the change of the mean loss is |ΔL| = |mean x_i| = M (1 - D): learning slows down where
changes get smaller, or where more of them cancel.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from lmdynamics.devices import in_float64


class Decomposition(NamedTuple):
    """|mean_change| = magnitude · (1 - interference). Magnitude and mean change in the unit of the changes."""

    interference: float  # D, from 0 (all changes agree in sign) to 1 (they cancel)
    magnitude: float  # M, never negative
    mean_change: float  # signed: negative where the loss fell


def decomposition(change: Float[Tensor, "*items"]) -> Decomposition:
    """Interference, magnitude and mean of changes of any shape, all items alike; sums in float64.

    Raises
    ------
    ValueError
        If `change` is empty, holds NaN or infinity, or is zero everywhere (D is then undefined).
    """
    change = in_float64(change.detach())
    total, net = float(change.abs().sum()), float(change.sum())
    if not 0 < total < float("inf"):  # NaN and infinity reach the sum
        raise ValueError(f"interference of {change.numel()} changes is undefined: their total size is {total:g}")
    # rounding may leave the sum a little larger than the sum of sizes
    return Decomposition(max(0.0, 1 - abs(net) / total), total / change.numel(), net / change.numel())


def destructive_interference(change: Float[Tensor, "*items"]) -> float:
    """Share of the total movement that cancels: 0 if all changes agree in sign, 1 if they cancel.

    D(x) = 1 - |Σ x| / Σ |x|. Raises ValueError where `decomposition` does.
    """
    return decomposition(change).interference


def magnitude(change: Float[Tensor, "*items"]) -> float:
    """Mean size of the changes, M(x) = mean |x|, in their own unit. Zero where nothing changed.

    Raises
    ------
    ValueError
        If `change` is empty or holds NaN or infinity.
    """
    total = float(in_float64(change.detach()).abs().sum())
    if not change.numel() or not total < float("inf"):
        raise ValueError(f"magnitude of {change.numel()} changes is undefined: their total size is {total:g}")
    return total / change.numel()

"""What a loss curve's break is held against: the same curve without one, and what a power law would have claimed."""

import numpy as np
import polars as pl

from lmdynamics.analysis.broken_power_law import fit
from lmdynamics.analysis.correlated import moved_draws
from lmdynamics.analysis.deceleration import FEWEST
from lmdynamics.analysis.preparation import prepare
from lmdynamics.errors import UserError


def straightened(curves: pl.DataFrame, skip_steps: float = 100, smoothing: str = "none", seed: int = 0) -> pl.DataFrame:
    """The control: each curve's own power law, with the curve's own noise, and no break: curve, step, loss.

    The noise is what two breaks leave of the raw curve, in blocks from anywhere along it. Curves too short to be
    fitted are left out.

    Raises
    ------
    UserError
        If no curve is long enough, or one cannot be read as one.
    """
    parts = []
    for number, ((curve,), rows) in enumerate(curves.group_by("curve", maintain_order=True)):
        step, loss = rows.sort("step").select(pl.col("step", "loss").cast(pl.Float64)).get_columns()
        kept, smoothed = prepare(step, loss, smoothing, skip_steps)
        if len(kept) < FEWEST:
            continue
        x, raw = np.log(step.filter(step > 0).to_numpy()), np.log(loss.filter(step > 0).to_numpy())
        at, y = np.log(kept), np.log(smoothed)[None]
        straight, bent = fit(at, y, 0)(x)[0], fit(at, y, 2)(x)[0]
        noise = raw - bent
        apart = noise[x > np.log(max(skip_steps, 1))]
        drawn = moved_draws(apart, np.ones(len(apart)), max(1, round(len(apart) ** (1 / 3))), 1, seed + number)[0]
        noise = np.concatenate([np.zeros(len(x) - len(apart)), drawn])
        parts.append(
            pl.DataFrame({"curve": [curve] * len(x), "step": np.exp(x).round(), "loss": np.exp(straight + noise)})
        )
    if not parts:
        raise UserError(f"no curve has {FEWEST} points after step {skip_steps:g}: log more often, or skip fewer steps")
    return pl.concat(parts)


def claims(points: pl.DataFrame, share: float, skip_steps: float) -> pl.DataFrame:
    """What one power law, fitted to the first `share` of each prepared curve, says of the rest; and one break's fit.

    Rows: curve, step, loss, method (`one power law`, `one break`); the second sees the whole curve. Curves with fewer
    than 2 points in that share, or 12 in all, are left out.

    Raises
    ------
    UserError
        If that leaves none.
    """
    parts = []
    for (curve,), rows in points.group_by("curve", maintain_order=True):
        step, loss = rows["step"].to_numpy().astype(float), rows["loss"].to_numpy()
        seen = (step <= share * step[-1]) & (step > skip_steps)
        x = np.log(step[step > skip_steps])
        if seen.sum() < 2 or len(x) < FEWEST:
            continue
        law = fit(np.log(step[seen]), np.log(loss[seen])[None], 0)
        bent = fit(x, np.log(loss[step > skip_steps])[None], 1)
        for method, made in (("one power law", law), ("one break", bent)):
            line = {"curve": [curve] * len(x), "step": np.exp(x), "loss": np.exp(made(x)[0]), "method": method}
            parts.append(pl.DataFrame(line))
    if not parts:
        raise UserError(
            f"no curve has 2 points in its first {share:.0%} after step {skip_steps:g}; give a larger share"
        )
    return pl.concat(parts)

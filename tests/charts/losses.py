"""Loss curves with a known break, and their fits, for figures and explorers."""

from functools import cache

import numpy as np
import polars as pl

from lmdynamics.analysis.fits import break_profile, fit_curves, fits_table

STEPS = np.unique(np.geomspace(101, 60_000, 80).round())


def loss(steps, before=0.2, after=0.03, at=3_000.0, width=0.3, level=20.0):
    return level * steps**-before * (1 + (steps / at) ** (1 / width)) ** ((before - after) * width)


def curve(name, noise=0.003, **shape):
    wobble = np.exp(noise * np.random.default_rng(len(name)).standard_normal(len(STEPS)))
    return pl.DataFrame({"curve": name, "step": STEPS.astype(int), "loss": loss(STEPS, **shape) * wobble})


@cache
def points():
    """Two curves that decelerate, and one power law."""
    return pl.concat([curve("small"), curve("large", at=2_000.0, after=0.05), curve("straight", after=0.2)])


@cache
def fits():
    return fits_table(fit_curves(points(), resamples=30, workers=1, progress=False))


@cache
def profile(name="small"):
    rows = points().filter(pl.col("curve") == name)
    return break_profile(rows["step"].to_numpy(), rows["loss"].to_numpy(), places=30)


def fit_of(name):
    return fits().row(by_predicate=pl.col("curve") == name, named=True)

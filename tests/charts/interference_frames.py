"""Frames as the measurements of interference, opposition and dissent give them, made up with a known course."""

from functools import cache

import numpy as np
import polars as pl

STEPS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
GROUPS = ["rare", "uncommon", "common", "frequent"]
PARTS = ["embeddings", "layer 0", "layer 1", "layer 2", "head"]
BOUNDED = {"interference": 0.03, "magnitude": 0.04, "mean_change": 0.02}
WORDS = ["the", " cat", " sat", " on", "the", " mat", ".", " It", " slept", " well", ",", " too"]


def rise(steps, top, at=150.0, low=0.08):
    return low + (top - low) / (1 + (at / np.asarray(steps, float)) ** 1.6)


def bounded(frame):
    """Intervals around the three numbers."""
    ends = [
        (pl.col(name) + sign * spread).alias(f"{name}_{end}")
        for name, spread in BOUNDED.items()
        for end, sign in (("low", -1), ("high", 1))
    ]
    return frame.with_columns(ends)


def of_curve(steps, top, size=1.0):
    """D that rises, M that falls, and the |ΔL| that follows from the two."""
    d = rise(steps, top)
    m = size * (0.6 + 0.7 * np.exp(-(((np.log(steps) - 4) / 3) ** 2)))
    return pl.DataFrame({"step": steps, "interference": d, "magnitude": m, "mean_change": -m * (1 - d)})


@cache
def table(curves=("17k", "43k", "115k", "260k")):
    """`interference_table` of a ladder, one row per doubling."""
    parts = [
        of_curve(STEPS, 0.86 - 0.04 * i, 0.9 + 0.05 * i).with_columns(curve=pl.lit(curve))
        for i, curve in enumerate(curves)
    ]
    frame = bounded(pl.concat(parts)).with_columns(until=2 * pl.col("step"), tokens=pl.lit(9_000), rows=pl.lit(150))
    return frame.select("curve", "step", "until", pl.exclude("curve", "step", "until"))


def breaks(curves=("17k", "43k", "115k", "260k")):
    return pl.DataFrame({"curve": curves, "step_at_break": [105.0 - 8 * i for i in range(len(curves))]})


@cache
def over_batches():
    """One optimizer step at each checkpoint, on both splits and in both directions."""
    parts = []
    for split, shift in (("stepped", -0.15), ("held out", 0.0)):
        for direction in ("update", "random"):
            frame = of_curve(STEPS, 0.85 + shift, 0.05)
            if direction == "random":
                frame = frame.with_columns(
                    interference=pl.lit(0.9), magnitude=pl.lit(0.004), mean_change=pl.lit(0.0004)
                )
            parts.append(frame.with_columns(split=pl.lit(split), direction=pl.lit(direction)))
    frame = pl.concat(parts).with_columns(pl.col("magnitude", "mean_change") * 1.0)
    spread = {"interference": 0.02, "magnitude": 0.0005, "mean_change": 0.0004}
    ends = [
        (pl.col(name) + sign * reach).alias(f"{name}_{end}")
        for name, reach in spread.items()
        for end, sign in (("low", -1), ("high", 1))
    ]
    return frame.with_columns(ends).with_columns(
        tokens=pl.lit(512), batches=pl.lit(3), slope=pl.lit(0.97), correlation=pl.lit(0.99)
    )


@cache
def one_step(steps=tuple(STEPS), batches=2, rows=3, length=12, seed=0):
    """`OneStep` traced: tokens of a few rows before and after one step. More cancels later."""
    rng = np.random.default_rng(seed)
    parts = []
    for step in steps:
        for batch in range(batches):
            for split in ("stepped", "held out"):
                for direction in ("update", "random"):
                    n = rows * length
                    mean = -0.05 if direction == "update" else 0.0
                    first = mean * (1 - rise(step, 0.9)) + 0.03 * rng.standard_normal(n)
                    parts.append(
                        pl.DataFrame(
                            {
                                "step": step,
                                "batch": batch,
                                "split": split,
                                "direction": direction,
                                "row": np.repeat(np.arange(rows), length),
                                "position": np.tile(np.arange(1, length + 1), rows),
                                "token": rng.integers(0, 40, n),
                                "loss": rng.gamma(3, 1.2, n),
                                "change": 0.9 * first + 0.004 * rng.standard_normal(n),
                                "first_order": first,
                            },
                            schema_overrides=dict.fromkeys(("batch", "row", "position", "token"), pl.Int32)
                            | dict.fromkeys(("loss", "change", "first_order"), pl.Float32),
                        )
                    )
    return pl.concat(parts)


def texts(split, batch, row):
    """Thirteen tokens: the first one is predicted from nothing."""
    return [f"{split[0]}{batch}{row}", *WORDS]


@cache
def traded(steps=(64, 1024)):
    """Whose loss fell and whose rose over each of some doublings."""
    rows = []
    for step in steps:
        for i, group in enumerate(GROUPS):
            gained, lost = 0.30 - 0.05 * i, (0.02 + 0.04 * i) * (1 + step / 1024)
            rows.append((step, 2 * step, group, gained, lost, lost - gained, 1 - abs(lost - gained) / (lost + gained)))
    columns = ["step", "until", "group", "gained", "lost", "net", "interference"]
    frame = pl.DataFrame(rows, columns, orient="row").with_columns(tokens=pl.lit(1200))
    return frame.with_columns(
        (pl.col(name) + sign * 0.015).alias(f"{name}_{end}")
        for name in ("gained", "lost", "net")
        for end, sign in (("low", -1), ("high", 1))
    )


def extremes(n=6):
    """`winners_and_losers`: tokens with their mean change."""
    rows = [(i, -0.9 + 0.1 * i, 30 + i, 0.04, "winner") for i in range(n)]
    rows += [(100 + i, 0.7 - 0.1 * i, 20 + i, 0.05, "loser") for i in range(n)]
    return pl.DataFrame(rows, ["token", "change", "count", "stderr", "kind"], orient="row")


@cache
def coefficients(batches=3, steps=tuple(STEPS)):
    """`Coefficients` traced: the whole model and each of its layers."""
    rng = np.random.default_rng(1)
    rows = []
    for step in steps:
        for batch in range(batches):
            for i, (level, part) in enumerate([("all", "all"), *(("layer", part) for part in PARTS)]):
                wobble = 1 + 0.05 * rng.standard_normal()
                c_g, c_ug = 0.06 * wobble / (1 + 0.2 * i), 0.02 * wobble
                c_u = 0.3 * (1 - rise(step, 0.9)) * wobble
                rows.append((step, batch, level, part, 9.0, c_g, c_ug, c_u, 1 - c_g * c_u / c_ug, 0.98, 0.0))
    columns = ["step", "batch", "level", "part", "sum_abs", "C_g", "C_ug", "C_uG", "interference"]
    return pl.DataFrame(rows, [*columns, "gradient_interference", "C_g_stderr"], orient="row")


@cache
def opposition(rows=12, steps=tuple(STEPS)):
    """`Opposition` traced: cosines of the gradients of pairs of rows, which turn from agreement to none."""
    rng = np.random.default_rng(2)
    parts = []
    a, b = np.triu_indices(rows)
    for step in steps:
        for i, part in enumerate(["all", *PARTS]):
            mean = 0.6 * (1 - rise(step, 1.0)) - 0.02 * i
            cosine = np.where(a == b, 1.0, np.clip(mean + 0.08 * rng.standard_normal(len(a)), -1, 1))
            parts.append(
                pl.DataFrame({"step": step, "part": part, "a": a, "b": b, "dot": 3.0 * cosine, "cosine": cosine})
            )
    return pl.concat(parts)


def group_opposition(steps=(64, 1024)):
    rows = []
    for step in steps:
        for i, a in enumerate(GROUPS):
            for j, b in enumerate(GROUPS[i:], i):
                rows.append((step, "all", a, b, 1.0, 1.0 if i == j else 0.5 - 0.3 * (j - i), 100, 100))
    columns = ["step", "part", "a", "b", "dot", "cosine", "tokens_a", "tokens_b"]
    return pl.DataFrame(rows, columns, orient="row")


@cache
def dissent(curves=("17k", "260k")):
    """`dissent_by_group`: the smaller model's rare tokens go towards total dissent."""
    rows = []
    for c, curve in enumerate(curves):
        for i, group in enumerate(GROUPS):
            for step in [0, *STEPS]:
                far = rise(max(step, 0.5), 0.9 - 0.35 * c - 0.08 * i, low=0.1)
                rows.append((curve, step, group, -far, -0.5 * far, 0.7 * far, 2.0 + far, 0.8 - 0.3 * far, 0.7 * far))
    columns = ["curve", "step", "group", "dissent", "cos_hidden_attractive", "cos_hidden_repulsive"]
    frame = pl.DataFrame(rows, [*columns, "norm_hidden", "norm_attractive", "norm_repulsive"], orient="row")
    return frame.with_columns(
        (pl.col(name) + sign * 0.02).alias(f"{name}_{end}")
        for name in ("dissent", "cos_hidden_attractive", "cos_hidden_repulsive")
        for end, sign in (("low", -1), ("high", 1))
    ).with_columns(probability=pl.lit(0.3), tokens=pl.lit(2000), dissent_control=0.3 * pl.col("dissent"))

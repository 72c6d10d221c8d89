"""Curves, traces and changes made by hand, whose every parameter is known."""

import numpy as np
import polars as pl

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 80, 100, 125, 156, 195, 244, 305, 381, 477, 596, 745, 931, 1164, 1455, 1819, 2274]


def sigmoid(steps, low, high, middle, sharpness=6.0):
    """A rise from `low` to `high` around step `middle`, smooth in log(step)."""
    x = np.log(np.maximum(steps, 0.5)) - np.log(middle)
    return low + (high - low) / (1 + np.exp(-sharpness * x))


def uas_trace(curves, sentences=400, steps=STEPS, seed=0):
    """Sentences of 3 to 12 arcs, each arc right with the probability its source has at that step."""
    rng = np.random.default_rng(seed)
    arcs = rng.integers(3, 13, sentences)
    frames = []
    for source, curve in curves.items():
        for step, p in zip(steps, np.broadcast_to(curve, len(steps)), strict=True):
            columns = {"step": step, "sentence": range(sentences), "source": source, "half": "score"}
            frames.append(pl.DataFrame(columns | {"arcs": arcs, "correct": rng.binomial(arcs, p)}))
    return pl.concat(frames)


def pairs_trace(curves, pairs=300, steps=STEPS, seed=0):
    """`pairs` pairs per paradigm, each right with the probability its paradigm has at that step."""
    rng = np.random.default_rng(seed)
    frames = []
    for index, (paradigm, curve) in enumerate(curves.items()):
        for step, p in zip(steps, np.broadcast_to(curve, len(steps)), strict=True):
            gap = np.where(rng.random(pairs) < p, 1.0, -1.0)
            columns = {"step": step, "paradigm": paradigm, "pair": range(index * pairs, (index + 1) * pairs)}
            frames.append(pl.DataFrame(columns | {"good": -20 + gap, "bad": -20.0, "correct": gap > 0}))
    return pl.concat(frames)


B, C0, C1, BREAK, WIDTH = 20.0, 0.2, -0.17, 3_000.0, 0.3
TRUTH = {"loss_at_break": B * BREAK**-C0, "step_at_break": BREAK, "rate_after_break": C0 + C1}


def broken(steps, c1: float = C1, d: float = BREAK, f: float = WIDTH):
    """The paper's formula, written as a product: b t^-c0 (1 + (t/d)^(1/f))^(-c1 f)."""
    return B * steps**-C0 * (1 + (steps / d) ** (1 / f)) ** (-c1 * f)


def spaced(points: int = 150, first: float = 101, last: float = 60_000):
    return np.unique(np.geomspace(first, last, points).round())


def noisy(steps, sd: float, seed: int, **shape):
    return broken(steps, **shape) * np.exp(sd * np.random.default_rng([5, seed]).standard_normal(len(steps)))


TOKENS = dict.fromkeys(("row", "position", "token"), pl.Int32)


def drawn_changes(rng, mean, rows=100, longest=40, step=1):
    """Rows of unequal length, each with an effect of its own, tokens with heavy tails; nats."""
    lengths = rng.integers(10, longest + 1, rows)
    row = np.repeat(np.arange(rows), lengths)
    change = mean + 0.2 * rng.standard_normal(rows)[row] + 0.3 * rng.standard_t(4, len(row))
    columns = {
        "step": step,
        "until": 2 * step,
        "row": row,
        "position": np.concatenate([np.arange(1, n + 1) for n in lengths]),
        "token": rng.integers(0, 12, len(row)),
        "loss": rng.gamma(3, 1.2, len(row)),
        "change": change,
    }
    return pl.DataFrame(columns, schema_overrides=TOKENS)


def losses(rng, steps, rows=6, length=5):
    """A trace of `TokenLosses`."""
    n = rows * length
    parts = []
    for step in steps:
        columns = {
            "step": step,
            "row": np.repeat(np.arange(rows), length),
            "position": np.tile(np.arange(1, length + 1), rows),
            "token": np.arange(n) % 7,
            "loss": rng.gamma(3, 1.2, n),
        }
        parts.append(pl.DataFrame(columns, schema_overrides=TOKENS | {"loss": pl.Float32}))
    return pl.concat(parts)


def stepped(rng, batches=3, noise=0.1, directions=("update", "random")):
    """`OneStep` traced at two steps."""
    parts = []
    for step in (4, 8):
        for batch in range(batches):
            for direction in directions:
                frame = drawn_changes(rng, -0.3 if direction == "update" else 0.0, rows=4, step=step)
                first = frame["change"] * 1.1 + noise * rng.standard_normal(len(frame))
                parts.append(
                    frame.drop("until").with_columns(
                        pl.lit(batch, pl.Int32).alias("batch"),
                        pl.lit("held out").alias("split"),
                        pl.lit(direction).alias("direction"),
                        pl.col("change").cast(pl.Float32),
                        first_order=first.cast(pl.Float32),
                    )
                )
    return pl.concat(parts)


def precursor_rows(groups=20, steps=STEPS, drop=300, repeats=20, attention=600, noise=0.01, seed=0):
    """A precursor table: the loss has a plateau from step 64 to `drop`; repetition and attention rise at given steps.

    Predictions repeat as often between rows; states become parallel within rows only; heads approach their own final
    form only.
    """
    random = np.random.default_rng(seed)
    plateau = 6 - sigmoid(steps, 0, 1, 16, 3)
    curves = {
        "loss": plateau - sigmoid(steps, 0, 2, drop, 8),
        "repeated": sigmoid(steps, 0.05, 0.8, repeats, 12),
        "in_text": 0.02,
        "repeated_between": sigmoid(steps, 0.05, 0.8, repeats, 12),
        "cosine": sigmoid(steps, 0.5, 0.9, repeats, 12),
        "cosine_between": 0.5,
        "distance": 0.4 * (1 - sigmoid(steps, 0, 1, attention, 6)),
        "distance_other": 0.4,
    }
    frames = []
    for group in range(groups):
        columns = {name: curve + random.normal(0, noise, len(steps)) for name, curve in curves.items()}
        frames.append(pl.DataFrame({"step": steps, "group": group, "unigram": 5.0} | columns))
    return pl.concat(frames)


CHECKPOINTS = [0, 1, 2, 4, 8, 16, 32, 45, 64, 90, 128, 181, 256, 362, 512, 724, 1024, 1448, 2048]


def token_curves(curves: np.ndarray, steps=CHECKPOINTS, per_row: int = 20, words: int = 50) -> pl.DataFrame:
    """A trace of `TokenLosses` in which tokens have these losses (tokens, steps), in rows of `per_row` tokens."""
    token = np.arange(len(curves))
    parts = [
        pl.DataFrame({"row": token // per_row, "position": token % per_row + 1, "token": token % words, "loss": losses})
        for losses in np.asarray(curves, dtype=float).T
    ]
    return pl.concat(part.with_columns(step=pl.lit(step)) for step, part in zip(steps, parts, strict=True))


def sigmoids(times, widths, falls, steps=CHECKPOINTS, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Losses (tokens, steps) that fall from 8 nats as sigmoids in log2(step); a width is between the quartiles."""
    x = np.log2(np.maximum(steps, 0.5))
    past = 1 / (1 + np.exp(-2 * np.log(3) * (x - np.log2(np.asarray(times))[:, None]) / np.asarray(widths)[:, None]))
    losses = 8 - np.asarray(falls)[:, None] * past
    return losses + noise * np.random.default_rng(seed).normal(size=losses.shape)

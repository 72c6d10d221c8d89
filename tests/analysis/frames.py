"""Traces made by hand, in the shapes that `UAS` and `PairAccuracy` give."""

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

"""Per-token changes made by hand, in the shapes of `doublings` and `OneStep`."""

import numpy as np
import polars as pl

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

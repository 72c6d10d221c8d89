"""Mean cosines and shares over pairs of rows, against loops and against repetition."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.gradients import opposition_table
from lmdynamics.analysis.intervals import bootstrap_levels, resample_counts
from lmdynamics.errors import UserError


def trace(vectors: np.ndarray, step: int = 1, part: str = "all") -> pl.DataFrame:
    """What `Opposition` gives for rows with these gradients."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    a, b = np.triu_indices(len(vectors))
    frame = {"step": step, "part": part, "a": a, "b": b, "cosine": (unit[a] * unit[b]).sum(1)}
    return pl.DataFrame(frame, schema_overrides={"a": pl.Int32, "b": pl.Int32})


def test_equals_a_loop_over_resamples():
    random = np.random.default_rng(0)
    frame = pl.concat([trace(random.normal(size=(7, 4)), step, part) for step in (2, 1) for part in ("all", "head")])
    table = opposition_table(frame, resamples=40, seed=3)
    assert table.select("step", "part").rows() == [(2, "all"), (2, "head"), (1, "all"), (1, "head")]
    counts = resample_counts(7, 40, 3)
    for row in table.iter_rows(named=True):
        pairs = frame.filter(
            pl.col("step") == row["step"], pl.col("part") == row["part"], pl.col("a") != pl.col("b")
        ).select("a", "b", "cosine").rows()  # fmt: skip
        assert row["pairs"] == len(pairs) == 21
        for name, value in (("cosine", lambda c: c), ("negative", lambda c: c < 0)):
            assert row[name] == pytest.approx(np.mean([value(c) for _, _, c in pairs]))
            drawn = [
                sum(times[a] * times[b] * value(c) for a, b, c in pairs) / sum(times[a] * times[b] for a, b, _ in pairs)
                for times in counts
            ]
            bounds = row[f"{name}_low"], row[f"{name}_high"]
            assert bounds == pytest.approx(tuple(np.percentile(drawn, bootstrap_levels(7))))


def test_intervals_hold_the_mean_of_many_rows():
    """Gradients with a common part; the mean cosine of all rows there could be, in some 95 % of draws of 30."""
    random = np.random.default_rng(1)

    def rows(n: int) -> np.ndarray:
        return random.normal(size=(n, 20)) + 0.4

    many = opposition_table(trace(rows(1500)), resamples=2)["cosine"].item()
    drawn = [opposition_table(trace(rows(30)), resamples=300, seed=i) for i in range(150)]
    held = np.mean([t["cosine_low"].item() <= many <= t["cosine_high"].item() for t in drawn])
    assert 0.88 <= held <= 0.99


def test_edges():
    with pytest.raises(UserError, match="cosine not among them"):
        opposition_table(pl.DataFrame({"step": [1], "part": ["all"], "a": [0], "b": [1]}))
    with pytest.raises(UserError, match="no two different rows"):
        opposition_table(trace(np.ones((1, 3))))

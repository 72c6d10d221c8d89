"""How far the gradients of rows of text oppose each other, with intervals over rows."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from lmdynamics.analysis.intervals import need_columns, resample_counts
from lmdynamics.analysis.row_sums import as_columns, interval, ratio
from lmdynamics.errors import UserError


def opposition_table(
    frame: pl.DataFrame, by: Sequence[str] = ("step", "part"), resamples: int = 500, seed: int = 0
) -> pl.DataFrame:
    """Mean cosine, and share of negative ones, over the pairs of different rows in each group.

    `frame`: a trace of `Opposition` (step, part, a, b, cosine). Rows: *by, cosine, negative, each with _low and _high,
    pairs. The intervals are 95 %, from rows of text drawn with replacement: a pair counts as often as both of its rows
    were drawn together, since pairs that share a row are not independent.

    Raises
    ------
    UserError
        If a column is missing, or there are no two different rows.
    """
    need_columns(frame, [*by, "a", "b", "cosine"], "opposition of rows")
    pairs = frame.filter((pl.col("a") != pl.col("b")) & pl.col("cosine").is_finite())
    if pairs.is_empty():
        raise UserError("opposition of rows: there are no two different rows; trace Opposition on two or more")
    known = pl.concat([pairs["a"], pairs["b"]]).unique().sort()
    place = {row: i for i, row in enumerate(known)}
    counts = resample_counts(len(known), resamples, seed).astype(np.float64)
    keys, columns = [], {f"{name}{end}": [] for name in ("cosine", "negative") for end in ("", "_low", "_high")}
    for key, part in pairs.group_by(by, maintain_order=True):
        a, b = (np.array([place[row] for row in part[side]]) for side in ("a", "b"))
        cosine = part["cosine"].to_numpy()
        weights = counts[:, a] * counts[:, b]
        for name, values in (("cosine", cosine), ("negative", (cosine < 0).astype(float))):
            drawn = ratio(weights @ values, weights.sum(1))
            low, high = interval(drawn[:, None], np.array([float(len(np.union1d(a, b)))]))
            for end, value in (("", values.mean()), ("_low", low[0]), ("_high", high[0])):
                columns[f"{name}{end}"].append(value)
        keys.append((*key, len(part)))
    schema = {name: pairs.schema[name] for name in by} | {"pairs": pl.Int64}
    table = pl.DataFrame(keys, schema, orient="row")
    numbers = as_columns({name: np.array(values, float) for name, values in columns.items()})
    return table.select(by).hstack([*numbers, table["pairs"]])


def cosine_spread(pairs: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """How the cosines of pairs of rows are spread in each group: *by, mean, median, negative (a share), pairs, and
    the quantiles q05, q25, q75, q95."""
    cosine = pl.col("cosine").cast(pl.Float64)
    quantiles = {f"q{round(100 * q):02d}": cosine.quantile(q) for q in (0.05, 0.25, 0.75, 0.95)}
    return pairs.group_by(by, maintain_order=True).agg(
        mean=cosine.mean(), median=cosine.median(), negative=(cosine < 0).mean(), pairs=pl.len(), **quantiles
    )

"""Sums over the tokens of each row of text, and their bootstrap over rows.

Tokens of one row are read in one context and rise or fall together, so rows are what is resampled: the same rows in
every group and at every step. Whatever is a ratio of such sums is then a ratio of matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Float

from lmdynamics.analysis.intervals import bootstrap_levels, need_columns, resample_counts
from lmdynamics.errors import UserError

MISSING = "other"  # the group of a token that no group names


@dataclass(frozen=True)
class RowSums:
    """`sums[name][k, i]` is a sum over the tokens that row i of the text has in group k, zero where it has none."""

    keys: pl.DataFrame  # one row per group
    sums: dict[str, Float[np.ndarray, "groups rows"]]
    resamples: int
    seed: int

    @cached_property
    def _counts(self) -> Float[np.ndarray, "resamples rows"]:
        rows = next(iter(self.sums.values())).shape[1]
        return resample_counts(rows, self.resamples, self.seed).astype(np.float64)

    def total(self, name: str) -> Float[np.ndarray, " groups"]:
        """The sum over all tokens of each group."""
        return self.sums[name].sum(1)

    def drawn(self, name: str) -> Float[np.ndarray, "resamples groups"]:
        """The same sum in each bootstrap resample."""
        return self._counts @ self.sums[name].T


def row_sums(
    frame: pl.DataFrame,
    by: Sequence[str],
    sums: dict[str, pl.Expr],
    *,
    within: Sequence[str] = (),
    resamples: int = 500,
    seed: int = 0,
) -> RowSums:
    """`frame` (with `row`) summed up for each combination of `by` and `within`, and each row of text.

    Groups come in the order in which `by` (at least one column) first has them, and sorted by `within` inside each.
    """
    keys = [*by, *within]
    order = frame.select(by).unique(maintain_order=True).with_row_index("_order")
    groups = frame.select(keys).unique().join(order, on=list(by), nulls_equal=True)
    groups = groups.sort("_order", *within).drop("_order")
    rows = frame.select(pl.col("row").unique().sort()).with_row_index("_row")
    summed = (
        frame.group_by([*keys, "row"])
        .agg(sum.alias(f"_{name}") for name, sum in sums.items())  # `by` may have a column of that name
        .join(groups.with_row_index("_group"), on=keys, nulls_equal=True)
        .join(rows, on="row")
    )
    at = summed["_group"].to_numpy(), summed["_row"].to_numpy()
    arrays = {}
    for name in sums:
        arrays[name] = np.zeros((len(groups), len(rows)))
        arrays[name][at] = summed[f"_{name}"].cast(pl.Float64).to_numpy()
    return RowSums(groups, arrays, resamples, seed)


def interval(
    drawn: Float[np.ndarray, "resamples groups"], rows: Float[np.ndarray, " groups"]
) -> tuple[Float[np.ndarray, " groups"], Float[np.ndarray, " groups"]]:
    """A 95 % interval from each group's resamples (`bootstrap_levels`); NaN without them, or below 6 rows of text."""
    low, high = np.full((2, len(rows)), np.nan)
    drawn = np.where(np.isfinite(drawn), drawn, np.nan)
    for n in np.unique(rows):
        at = (rows == n) & np.isfinite(drawn).any(0)
        if (levels := bootstrap_levels(int(n))) and at.any():
            low[at], high[at] = np.nanpercentile(drawn[:, at], levels, 0)
    return low, high


def ratio(above: Float[np.ndarray, "*shape"], below: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """above / below, NaN where that is divided by zero."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


def as_columns(numbers: dict[str, Float[np.ndarray, " groups"]]) -> list[pl.Series]:
    """Columns of numbers, null for NaN."""
    return [pl.Series(name, values, dtype=pl.Float64).fill_nan(None) for name, values in numbers.items()]


def need_numbers(frame: pl.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise a UserError if a column is missing, or has a value that is no finite number, or there is no row at all."""
    need_columns(frame, list(columns), what)
    if frame.is_empty():
        raise UserError(f"{what}: there are no rows; trace the run first, or keep more of it")
    for name in columns:
        if not frame[name].dtype.is_numeric():
            continue
        bad = frame[name].is_null() | ~frame[name].cast(pl.Float64).is_finite()
        if bad.any():
            first = frame.filter(bad).row(0, named=True)
            where = ", ".join(f"{key} {first[key]}" for key in ("curve", "step", "batch", "row") if key in first)
            raise UserError(
                f"{what}: {name!r} has no number at {where or 'its first row'} ({bad.sum():,} row(s) in all); a "
                "diverged run can be read up to there: keep only the steps before it"
            )


def with_groups(frame: pl.DataFrame, groups: pl.DataFrame | None, what: str) -> pl.DataFrame:
    """`frame` with the `group` of each token, by `row` and `position` or by `token`, whichever `groups` has.

    Tokens without one are in the group "other", the last of an Enum. Without `groups`, all are in the group "all".

    Raises
    ------
    UserError
        If `groups` names neither, or a token twice, or none of the tokens there are.
    """
    if groups is None:
        return frame.with_columns(group=pl.lit("all"))
    need_columns(groups, ["group"], f"groups of {what}")
    on = ["row", "position"] if {"row", "position"} <= set(groups.columns) else ["token"]
    need_columns(groups, on, f"groups of {what}")
    need_columns(frame, on, what)
    if (twice := groups.select(on).is_duplicated()).any():
        first = ", ".join(f"{name} {groups.filter(twice)[name][0]}" for name in on)
        raise UserError(f"groups of {what}: {first} has several groups; give each token one")
    kind = groups["group"].dtype
    label = pl.col("group").cast(pl.String).fill_null(MISSING)
    chosen = groups.select(*(pl.col(name).cast(frame[name].dtype) for name in on), label)
    joined = frame.drop("group", strict=False).join(chosen, on=on, how="left", maintain_order="left")
    if joined["group"].null_count() == len(joined):
        raise UserError(f"groups of {what}: no token of the text has a group; are they of another text?")
    joined = joined.with_columns(pl.col("group").fill_null(MISSING))
    if isinstance(kind, pl.Enum):
        names = kind.categories.to_list()
        joined = joined.with_columns(
            pl.col("group").cast(pl.Enum([*names, *([MISSING] if MISSING not in names else [])]))
        )
    return joined

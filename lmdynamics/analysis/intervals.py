"""Intervals: Wilson's of proportions, and bootstraps over sentences, pairs and rows of text.

Tokens of one row are read in one context and rise or fall together, so rows are what is resampled: the same rows in
every group and at every step. Whatever is a ratio of such sums is then a ratio of matrix products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.special import ndtr, stdtrit

from lmdynamics.errors import UserError

FEWEST_UNITS = 6  # rows of text, sentences: what a bootstrap interval needs at least


@dataclass(frozen=True)
class Grid:
    """One number per checkpoint and unit (sentence or pair), in the order of `steps`."""

    steps: tuple[int, ...]
    units: tuple[int, ...]
    values: dict[str, Float[np.ndarray, "steps units"]]


def grid(frame: pl.DataFrame, unit: str, values: list[str], what: str) -> Grid:
    """A tidy trace as arrays of shape (steps, units), refusing holes.

    Raises UserError if a column is missing, a value is missing or NaN, or the units differ between checkpoints.
    """
    need_columns(frame, ["step", unit, *values], what)
    if frame.is_empty():
        return Grid((), (), {name: np.zeros((0, 0)) for name in values})
    for name in values:
        column = frame.get_column(name)
        bad = column.is_null() | (column.is_nan() if column.dtype.is_float() else pl.Series([False]))
        if bad.any():
            steps = frame.filter(bad)["step"].unique().sort().to_list()
            raise UserError(
                f"{what}: {name!r} has no number at step {steps[0]} ({len(steps)} checkpoint(s) in all); "
                "a diverged run can be read up to there: keep only the steps before it"
            )
    frame = frame.sort("step", unit)
    steps, units = frame["step"].unique().sort(), frame[unit].unique().sort()
    if len(frame) != len(steps) * len(units):
        raise UserError(
            f"{what}: {len(frame)} rows for {len(steps)} checkpoints × {len(units)} {unit}s, expected "
            f"{len(steps) * len(units)}: every {unit} must be there once at every checkpoint; trace all steps alike"
        )
    shape = (len(steps), len(units))
    arrays = {name: frame[name].cast(pl.Float64).to_numpy().reshape(shape) for name in values}
    return Grid(tuple(steps), tuple(units), arrays)


def with_interval(value: float | None, bounds: tuple[float | None, float | None] | None, style: str) -> str:
    """A number, and its interval in brackets where it has one; without a number, "undefined".

    An interval without a width, or none at the digits shown, is left out.
    """
    if value is None:
        return "undefined"
    known = bounds is not None and None not in bounds
    low, high = (f"{bound:{style}}" for bound in bounds) if known else ("", "")
    return f"{value:{style}}" + (f" [{low}, {high}]" if low != high else "")


def bounded(row: Mapping, name: str, style: str) -> str:
    """The number `name` of a row with its interval (`name_low`, `name_high`) for a reader: −0.62 [−0.63, −0.61]."""
    return with_interval(row[name], (row.get(f"{name}_low"), row.get(f"{name}_high")), style).replace("-", "−")


def need_columns(frame: pl.DataFrame, columns: list[str], what: str) -> None:
    """Raise a UserError that names what is missing from `frame`."""
    if missing := [name for name in columns if name not in frame.columns]:
        raise UserError(f"{what} needs the columns {', '.join(columns)}; {', '.join(missing)} not among them")


def resample_counts(units: int, resamples: int, seed: int) -> Float[np.ndarray, "resamples units"]:
    """How often each unit is drawn in each bootstrap resample (rows sum to `units`)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(units, size=(resamples, units)) + np.arange(resamples)[:, None] * units
    return np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units).astype(np.float32)


def bootstrap_levels(units: int) -> tuple[float, float] | None:
    """Which percentiles of bootstrap resamples of `units` make a 95 % interval; None below 6 units.

    A bootstrap of few units is too narrow: its middle 95 % hold the truth 83 to 88 % of the time with 4 to 8 units.
    The percentiles are as much further out as Student's t reaches beyond the normal (Hesterberg 2015), which brings it
    to 93 % or more from 6 units on, and to 89 % with 4.
    """
    if units < FEWEST_UNITS:
        return None
    tail = float(100 * ndtr(-stdtrit(units - 1, 0.975) * np.sqrt(units / (units - 1))))
    return tail, 100 - tail


def wilson(share: pl.Expr, count: pl.Expr, z: float = 1.959964) -> tuple[pl.Expr, pl.Expr]:
    """Wilson's (1927) 95 % interval of a proportion seen `count` times, as two expressions."""
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)).sqrt()
    return (middle - reach).clip(0, 1), (middle + reach).clip(0, 1)  # beyond them by rounding alone


def with_wilson(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame with accuracy and count, and the accuracy's 95 % interval beside them: low, high."""
    low, high = wilson(pl.col("accuracy"), pl.col("count"))
    return frame.with_columns(low=low, high=high)


def steps_without_loss(log: pl.DataFrame) -> str:
    """How many steps of a training log have no loss, for a reader; "" if all of them have one.

    A batch in which no token was selected has no target, and so no loss (null).
    """
    if not (count := log["loss"].null_count()):
        return ""
    return (
        f"{count:,} of {len(log):,} steps ({count / len(log):.1%}) had no token to predict: they have no loss and are "
        "left out"
    )


def unused_rows(held_out: pl.DataFrame | None) -> str:
    """How many output rows of a model belong to no token, for a reader, from a trace of `HeldOutLoss`; "" if none."""
    if held_out is None or "unused_rows" not in held_out.columns or not (most := held_out["unused_rows"].max()):
        return ""
    return f"{most:,} of the model's output rows belong to no token of its tokenizer; they share in every probability"


def loss_by_bin(log: pl.DataFrame, per_decade: int = 40) -> pl.DataFrame:
    """A training log in bins of equal width in log(step): step (mean), loss (mean), low, high (10 and 90 %).

    Thousands of noisy steps become about `per_decade` rows per factor of ten, so that a figure stays small.
    """
    need_columns(log, ["step", "loss"], "a training log")
    place = (pl.col("step").cast(pl.Float64).clip(0.5).log10() * per_decade).floor().cast(pl.Int64)
    return (
        log.filter(pl.col("loss").is_finite())
        .group_by(place.alias("bin"))
        .agg(
            pl.col("step").mean().round().cast(pl.Int64),
            pl.col("loss").mean(),
            pl.col("loss").quantile(0.1).alias("low"),
            pl.col("loss").quantile(0.9).alias("high"),
        )
        .sort("bin")
        .drop("bin")
    )


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


def with_bounds(name: str, value: np.ndarray, bounds: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """A column of numbers, and those of its interval: name, name_low, name_high."""
    return {name: value, f"{name}_low": bounds[0], f"{name}_high": bounds[1]}


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

    Raises UserError if `groups` names neither, or a token twice, or none of the tokens there are.
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

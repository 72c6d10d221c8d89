"""Curves with intervals: traces of sentences and pairs, summed up per checkpoint.

UAS is resampled over sentences, the same resample at every checkpoint, because arcs of one sentence stand or
fall together. Accuracy on minimal pairs is a count, so that Wilson's interval is enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.special import ndtr, stdtrit

from lmdynamics.errors import UserError

FEWEST_UNITS = 6  # rows of text, sentences: what a bootstrap interval needs at least
ALL = "all paradigms"  # the name of their average


@dataclass(frozen=True)
class Grid:
    """One number per checkpoint and unit (sentence or pair), in the order of `steps`."""

    steps: tuple[int, ...]
    units: tuple[int, ...]
    values: dict[str, Float[np.ndarray, "steps units"]]


def grid(frame: pl.DataFrame, unit: str, values: list[str], what: str) -> Grid:
    """A tidy trace as arrays of shape (steps, units), refusing holes.

    Raises
    ------
    UserError
        If a column is missing, a value is missing or NaN, or the units differ between checkpoints.
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


def uas_by_step(uas: pl.DataFrame, resamples: int = 500, seed: int = 0) -> pl.DataFrame:
    """UAS per step and source: step, source, uas, low, high (95 %, bootstrap over sentences), arcs.

    Below 6 sentences there is no interval: low and high are null.
    And `reachable`, if the trace has it: the share of the arcs that the chosen heads could find; 1, but in causal
    models.
    """
    need_columns(uas, ["step", "source", "sentence", "arcs", "correct"], "UAS over steps")
    more, parts = [name for name in ["reachable"] if name in uas.columns], []
    for (source,), rows in sorted(uas.group_by("source")):
        table = grid(rows, "sentence", ["arcs", "correct", *more], f"UAS ({source})")
        arcs, correct = table.values["arcs"], table.values["correct"]
        counts = resample_counts(len(table.units), resamples, seed)
        with np.errstate(invalid="ignore"):  # a resample of nothing but arcless sentences
            values = (counts @ correct.T) / (counts @ arcs.T)
        levels = bootstrap_levels(len(table.units))
        low, high = (None, None) if levels is None else np.nanpercentile(values, levels, axis=0)
        parts.append(
            pl.DataFrame(
                {
                    "step": table.steps,
                    "source": source,
                    "uas": correct.sum(1) / arcs.sum(1),
                    "low": low,
                    "high": high,
                    "arcs": arcs.sum(1).astype(int),
                    **{name: table.values[name].sum(1) / arcs.sum(1) for name in more},
                },
                schema_overrides={"step": pl.Int64, "low": pl.Float64, "high": pl.Float64},
            )
        )
    if not parts:
        raise UserError("UAS over steps: the trace has no rows; trace the run first")
    return pl.concat(parts)


def accuracy_by_step(pairs: pl.DataFrame) -> pl.DataFrame:
    """Share of minimal pairs judged right: step, paradigm, accuracy, low, high (95 %, Wilson 1927), pairs.

    And, if the trace has them, how many pairs are ties (which count as wrong), and how many flip where words are scored
    from left to right: ties, flips (null where that was not measured).
    """
    need_columns(pairs, ["step", "paradigm", "correct"], "accuracy over steps")
    low, high = wilson(pl.col("accuracy"), pl.col("pairs"))
    more = {name: column for name, column in {"ties": "tie", "flips": "flips"}.items() if column in pairs.columns}
    known = {name: summed(column).cast(pl.Int64) for name, column in more.items()}
    return (
        pairs.group_by("step", "paradigm")
        .agg(
            pl.col("correct").cast(pl.Float64).mean().alias("accuracy"), pl.len().cast(pl.Int64).alias("pairs"), **known
        )
        .with_columns(low=low, high=high)
        .select("step", "paradigm", "accuracy", "low", "high", "pairs", *more)
        .sort("paradigm", "step")
    )


def average_accuracy(accuracy: pl.DataFrame, name: str = ALL) -> pl.DataFrame:
    """The mean over paradigms at each step, in the shape of `accuracy_by_step`; `pairs` is their sum.

    Paradigms count alike, as in BLiMP. The reaches of their intervals are squared and added (Newcombe 1998), so that
    the mean's has a width even where every pair is judged right.
    """
    need_columns(accuracy, ["step", "paradigm", "accuracy", "low", "high", "pairs"], "average accuracy")
    p, low, high = pl.col("accuracy"), pl.col("low"), pl.col("high")
    more = [name for name in ("ties", "flips") if name in accuracy.columns]
    return (
        accuracy.group_by("step")
        .agg(
            p.mean(),
            low=p.mean() - ((p - low) ** 2).sum().sqrt() / pl.len(),
            high=p.mean() + ((high - p) ** 2).sum().sqrt() / pl.len(),
            **{column: summed(column) for column in ("pairs", *more)},
        )
        .select("step", pl.lit(name).alias("paradigm"), "accuracy", "low", "high", "pairs", *more)
        .sort("step")
    )


def summed(column: str) -> pl.Expr:
    """The sum of a column; null where all of it is."""
    return pl.when(pl.col(column).count() > 0).then(pl.col(column).sum())


def ties_and_flips(accuracy: pl.DataFrame) -> list[str]:
    """What a reader should know of the pairs at the last checkpoint, from `accuracy_by_step`: ties, and flips."""
    last = accuracy.filter(pl.col("step") == pl.col("step").max())
    if len(last) > 1:
        last = last.filter(pl.col("paradigm") != ALL)
    pairs = last["pairs"].sum()
    said = []
    if "ties" in last.columns:
        said.append(f"ties count as wrong: {last['ties'].sum():,} of {pairs:,} pairs at the last checkpoint")
    if "flips" in last.columns and last["flips"].count():
        flips = last["flips"].sum()
        share = f"{flips:,} of {pairs:,} pairs ({flips / pairs:.1%})"
        said.append(f"with split words scored from left to right, {share} are judged otherwise")
    return said


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

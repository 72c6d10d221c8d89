"""Minimal pairs as a race: how probable the good and the bad sentence become over training, and who leads.

Sentences of different pairs differ in length far more than those of one, so the difference is taken within each pair,
and its interval is over pairs.
"""

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy import stats

from lmdynamics.analysis.intervals import ALL, accuracy_by_step, average_accuracy, grid, need_columns
from lmdynamics.errors import UserError, did_you_mean

WHOLE = ALL
WHAT = "the race of minimal pairs"


def pair_race(pairs: pl.DataFrame, paradigm: str | None = None, pair: int | None = None) -> pl.DataFrame:
    """Both log-probabilities and their difference at each step, from a trace of `PairAccuracy`.

    One row per step and score: step, paradigm, pair (null for a mean), score, value, low, high (nats), pairs (count).
    `score` is "good", "bad", or "difference": good less bad of the same pair. Of one paradigm the mean over its pairs;
    of all, the mean over paradigms, which count alike. Intervals are Student's, 95 %, over pairs (of several paradigms
    with Satterthwaite's degrees of freedom); null where a paradigm has but one pair.

    Raises
    ------
    UserError
        If a column or a value is missing, pairs differ between checkpoints, or there is no such paradigm or pair.
    """
    need_columns(pairs, ["step", "paradigm", "pair", "good", "bad"], WHAT)
    rows = pairs.with_columns(pl.col("paradigm").cast(pl.String))
    if rows.is_empty():
        raise UserError(f"{WHAT}: the trace has no rows; trace PairAccuracy on some pairs first")
    if paradigm is not None:
        known = rows["paradigm"].unique().to_list()
        rows = rows.filter(pl.col("paradigm") == paradigm)
        if rows.is_empty():
            raise UserError(f"{WHAT}: there is no paradigm {paradigm!r}{did_you_mean(paradigm, known)}")
    if pair is not None:
        rows = rows.filter(pl.col("pair") == pair)
        if rows.is_empty():
            raise UserError(f"{WHAT}: there is no pair {pair}" + (f" in {paradigm}" if paradigm else ""))
    table = grid(rows, "pair", ["good", "bad"], WHAT)
    names = rows.unique("pair").sort("pair")["paradigm"].to_numpy()
    different = sorted(set(names))
    good, bad = table.values["good"], table.values["bad"]
    parts = []
    for score, values in (("good", good), ("bad", bad), ("difference", good - bad)):
        mean, reach = _mean_over_paradigms([values[:, names == name] for name in different])
        reach = [None] * len(mean) if reach is None else reach
        parts.append(pl.DataFrame({"step": table.steps, "score": score, "value": mean, "reach": reach}))
    reach = pl.col("reach").cast(pl.Float64)
    return (
        pl.concat(parts, how="vertical_relaxed")
        .with_columns(
            pl.col("step").cast(pl.Int64),
            paradigm=pl.lit(different[0] if len(different) == 1 else WHOLE),
            pair=pl.lit(pair, pl.Int64),
            low=pl.col("value") - reach,
            high=pl.col("value") + reach,
            pairs=pl.lit(len(table.units), pl.Int64),
        )
        .select("step", "paradigm", "pair", "score", "value", "low", "high", "pairs")
        .sort("step", maintain_order=True)
    )


def leads_from(race: pl.DataFrame, k: int = 3) -> int | None:
    """The first step from which the difference, or its lower bound where it has one, stays above 0 to the last step.

    `race`: frame of `pair_race`. None if it leads at fewer than the last `k` checkpoints, unless
    there are no others.
    """
    rows = race.filter(pl.col("score") == "difference").sort("step")
    behind = ~(pl.coalesce("low", "value") > 0)
    later = rows.with_columns(behind=behind.cast(pl.Int64).reverse().cum_sum().reverse()).filter(pl.col("behind") == 0)
    return None if len(later) < min(k, len(rows)) or later.is_empty() else int(later["step"][0])


def judged_right(pairs: pl.DataFrame) -> pl.DataFrame:
    """Share of pairs judged right: `accuracy_by_step`, and of several paradigms `average_accuracy` in front."""
    accuracy = accuracy_by_step(pairs.with_columns(pl.col("paradigm").cast(pl.String)))
    if accuracy["paradigm"].n_unique() < 2:
        return accuracy
    return pl.concat([average_accuracy(accuracy, WHOLE), accuracy])


def _mean_over_paradigms(
    parts: list[Float[np.ndarray, "steps _"]],
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"] | None]:
    """Mean over paradigms of the mean over pairs, and how far its 95 % interval reaches; None if nothing is known."""
    mean = np.mean([part.mean(1) for part in parts], axis=0)
    counts = np.array([part.shape[1] for part in parts])[:, None]
    if counts.min() < 2:
        return mean, None
    errors = np.array([part.var(1, ddof=1) for part in parts]) / counts
    total = errors.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):  # no spread at all: no reach, whatever the degrees of freedom
        freedom = np.where(total > 0, 1 / ((errors / total) ** 2 / (counts - 1)).sum(0), 1.0)
    return mean, stats.t.ppf(0.975, freedom) * np.sqrt(total) / len(parts)

"""From the measured runs of a sweep to the tables of a paper: tests, speed-ups, gains by paradigm, claims judged.

Frames named `final` have one row per `condition`, `seed` and `measure`, with its `value` at the last step.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.speedup import Speedup, speedup
from lmdynamics.analysis.statistics import NO_DIRECTION, compare_to_baseline, decide, mean_over_seeds
from lmdynamics.errors import UserError
from lmdynamics.measurements.trace import Measurement

VERDICTS = {"better": "reproduced", "worse": "not reproduced"}


def against_baseline(final: pl.DataFrame, baseline: str, measurements: Mapping[str, Measurement]) -> pl.DataFrame:
    """Every measure and condition: mean over seeds with its interval, and the test against the baseline.

    `measurements`, by the measure's name in `final`, declare whether higher is better; without that, nothing is called
    better. Rows: measure, condition, mean, low, high, n (seeds), difference from the baseline, p_hochberg (corrected
    for all tests of the table), g, verdict; see `compare_to_baseline`. The baseline's own rows have no test.
    """
    need_columns(final, ["condition", "seed", "measure", "value"], "comparison with a baseline")
    means = mean_over_seeds(final, ["measure", "condition"], "value")
    tests = decide(
        pl.concat(
            compare_to_baseline(
                final.filter(pl.col("measure") == measure),
                baseline,
                value="value",
                higher_is_better=_direction(measurements, measure),
            ).with_columns(measure=pl.lit(measure))
            for measure in final["measure"].unique(maintain_order=True)
        )
    ).select("measure", "condition", "difference", "p_hochberg", "g", "verdict")
    table = means.join(tests, on=["measure", "condition"], how="left", maintain_order="left")
    return table.select("measure", "condition", "mean", "low", "high", "n", "difference", "p_hochberg", "g", "verdict")


def _direction(measurements: Mapping[str, Measurement], measure: str) -> bool | None:
    return getattr(measurements.get(measure), "higher_is_better", None)


@dataclass(frozen=True)
class Claim:
    """Something a paper says: in `measure`, condition `better` does better than condition `worse`."""

    says: str
    measure: str
    better: str
    worse: str


def judge(claims: Iterable[Claim], final: pl.DataFrame, measurements: Mapping[str, Measurement]) -> pl.DataFrame:
    """Each claim against the runs: claim, measure, difference with its 95 % interval low, high, p, p_hochberg, verdict.

    `p` is that of a one-sided t-test over seeds (Welch), `p_hochberg` the same corrected for the number of claims.
    `reproduced`: better at 5 % after the correction; `not reproduced`: worse, corrected likewise; otherwise `undecided
    at this size`, and with one seed always that. `measurements`: as for `against_baseline`.
    """
    columns = ["claim", "measure", "difference", "low", "high", "p", "p_hochberg", "verdict"]
    tests = [
        compare_to_baseline(
            final.filter(pl.col("measure") == claim.measure, pl.col("condition").is_in([claim.better, claim.worse])),
            claim.worse,
            value="value",
            higher_is_better=_direction(measurements, claim.measure),
        ).with_columns(claim=pl.lit(claim.says), measure=pl.lit(claim.measure))
        for claim in claims
    ]
    undecided = pl.lit("undecided at this size")
    verdict = pl.col("verdict").replace_strict(VERDICTS, default=undecided, return_dtype=pl.String)
    without = pl.col("verdict") == NO_DIRECTION
    return decide(pl.concat(tests)).with_columns(pl.when(without).then("verdict").otherwise(verdict)).select(columns)


@dataclass(frozen=True)
class Speedups:
    """Every condition's speed-up over the baseline, with the points and fitted curves to draw; empty if `refused`."""

    found: dict[str, Speedup]
    points: pl.DataFrame  # condition, seed, step, value
    fits: pl.DataFrame  # condition, step, value
    reached: pl.DataFrame  # condition, value (the speed-up), low, high, step, target; null where never reached
    refused: str = ""  # why there are none

    @property
    def frames(self) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        return self.points, self.fits, self.reached


def speedups(curves: pl.DataFrame, measure: str, baseline: str, seed: int = 0, level: float = 1.0) -> Speedups:
    """Speed-ups over `baseline` in one measure of `curves`: condition, seed, step, measure, value (higher is better).

    Intervals are over seeds: with one seed there is none. A baseline that never rises has nothing to be reached sooner:
    then there are no speed-ups, and `refused` says why. `level`: see `speedup`.
    """
    points = curves.filter(pl.col("measure") == measure).select("condition", "seed", "step", "value")
    groups = points.group_by("condition", maintain_order=True)
    of = {name: frame.drop("condition").sort("step", "seed") for (name,), frame in groups}
    if baseline not in of:
        raise UserError(f"speed-up: no condition {baseline!r} in {measure}; there are {', '.join(of)}")
    unit = "seed" if points["seed"].n_unique() > 1 else None
    try:
        found = {
            name: speedup(of[baseline], frame, "value", unit, level=level, seed=seed)
            for name, frame in of.items()
            if name != baseline
        }
    except UserError as error:
        found, refused = {}, str(error)
    else:
        refused = ""
    if unit is None:  # the residuals of one run say nothing about the next one
        found = {
            name: replace(fit, low=None, high=None, reason=f"{fit.reason}; one seed, so there is no interval")
            for name, fit in found.items()
        }
    learning = {baseline: next(iter(found.values())).baseline} if found else {}
    learning |= {name: fit.scheduled for name, fit in found.items()}
    at = points["step"].unique().sort().to_list()
    fits = [
        row
        for name, curve in learning.items()
        for row in zip([name] * len(at), at, curve(np.array(at, float)), strict=True)
    ]
    reached = [(name, fit.value, fit.low, fit.high, fit.step, fit.target) for name, fit in found.items()]
    numbers = dict.fromkeys(("value", "low", "high", "step", "target"), pl.Float64)
    return Speedups(
        found,
        points,
        pl.DataFrame(fits, {"condition": pl.String, "step": pl.Int64, "value": pl.Float64}, orient="row"),
        pl.DataFrame(reached, {"condition": pl.String, **numbers}, orient="row"),
        refused,
    )


def gains_by_paradigm(judged: pl.DataFrame, baseline: str) -> pl.DataFrame:
    """Accuracy on each paradigm less the baseline's with the same seed: paradigm, condition, seed, difference.

    `judged`: a trace of `PairAccuracy` at one step per run, headed by condition and seed.
    """
    need_columns(judged, ["condition", "seed", "paradigm", "correct"], "gains by paradigm")
    accuracy = judged.group_by("condition", "seed", "paradigm", maintain_order=True).agg(
        pl.col("correct").cast(pl.Float64).mean().alias("accuracy")
    )
    base = accuracy.filter(pl.col("condition") == baseline).select("seed", "paradigm", reference="accuracy")
    if base.is_empty():
        raise UserError(f"gains by paradigm: no condition {baseline!r} among {', '.join(judged['condition'].unique())}")
    others = accuracy.filter(pl.col("condition") != baseline).join(base, on=["seed", "paradigm"], maintain_order="left")
    return others.select("paradigm", "condition", "seed", difference=pl.col("accuracy") - pl.col("reference"))


def probe_scores(tuned: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, float]]:
    """A trace of `FineTuning` (headed by condition and seed) as rows of `final`, and each task's majority share.

    Trials of one run are averaged: they say nothing of how another seed would do.
    """
    test = tuned.filter(pl.col("split") == "test")
    majority = test.filter(pl.col("source") == "majority").group_by("task", maintain_order=True)
    trials = test.filter(pl.col("source") != "majority").group_by("condition", "seed", "task", maintain_order=True)
    scores = trials.agg(pl.col("score").mean()).select("condition", "seed", measure="task", value="score")
    return scores, dict(majority.agg(pl.col("score").mean()).iter_rows())

"""Comparison of runs, and of the conditions of a sweep: speed-ups, gains by paradigm, scores of probes.

Frames named `final` have one row per `condition`, `seed` and `measure`, with its `value` at the last step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from lmdynamics.analysis.intervals import need_columns, normal_interval
from lmdynamics.analysis.speedup import Speedup, speedup
from lmdynamics.analysis.syntax import accuracy_by_step, average_accuracy, uas_by_step
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy
from lmdynamics.measurements.syntax import UAS
from lmdynamics.measurements.trace import Measurement, trace_all
from lmdynamics.runs.run import Run

COLUMNS = ("run", "step", "measure", "value", "low", "high", "difference")


def compare_runs(
    *runs: Run,
    measurements: Mapping[str, Measurement] | None = None,
    steps: list[int] | None = None,
    device: str = "cpu",
    progress: bool | None = None,
) -> pl.DataFrame:
    """One number per run, step and measure, with its 95 % interval and its difference from the first run.

    `measurements` by name, of the kinds `HeldOutLoss`, `UAS` and `PairAccuracy`; by default the held-out loss on the
    first run's rows, and for the built-in language UAS and agreement. All runs are measured on the same data, at
    `steps` or, by default, at all common checkpoints: for a branch and its parent, from the branch point on.

    Rows: `run`, `step`, `measure`, `value`, `low`, `high`, `difference` (null for the first run itself).

    Raises UserError if there are fewer than two runs, they share no step, they are of different versions of the
    built-in language, or a measurement is of another kind.
    """
    if len(runs) < 2:
        raise UserError(f"compare_runs needs two runs or more; given: {len(runs)}")
    first = runs[0]
    recipes = {run: run.recipe for run in runs if run.recipe is not None}
    if len({recipe.corpus.get("version") for recipe in recipes.values()}) > 1:
        for run, recipe in recipes.items():
            recipe.check_language(run.name, run.folder)
    shared = sorted(set.intersection(*(set(run.steps) for run in runs)))
    if not shared:
        raise UserError(f"{', '.join(run.name for run in runs)} have no step in common; train them with the same steps")
    measurements = measurements or default_measurements(first)
    for name, measurement in measurements.items():
        if not isinstance(measurement, tuple(SUMMARIES)):
            kinds = ", ".join(kind.__name__ for kind in SUMMARIES)
            raise UserError(f"compare_runs cannot summarise {name!r}, a {type(measurement).__name__}; use {kinds}")
    parts = []
    for run in runs:
        traces = trace_all(run, measurements, steps=steps or shared, device=device, progress=progress)
        parts += [
            summarise(measurements[name], frame).select(
                pl.lit(run.name).alias("run"), "step", pl.lit(name).alias("measure"), "value", "low", "high"
            )
            for name, frame in traces.items()
        ]
    table = pl.concat(parts)
    reference = table.filter(pl.col("run") == first.name).select("step", "measure", reference="value")
    difference = pl.when(pl.col("run") != first.name).then(pl.col("value") - pl.col("reference")).alias("difference")
    return table.join(reference, on=["step", "measure"], maintain_order="left").with_columns(difference).select(COLUMNS)


def default_measurements(
    run: Run, sentences: int = 500, pairs: int = 100, min_count: int = 50
) -> dict[str, Measurement]:
    """Held-out loss; for a run on the built-in language also UAS and number agreement."""
    measurements: dict[str, Measurement] = {"held-out loss": HeldOutLoss(run.held_out())}
    if run.recipe is not None and run.recipe.corpus["kind"] == "grammar":
        measurements["UAS"] = UAS(run.treebank("grammar", sentences), min_count)
        if run.objective != "rts":
            measurements["agreement"] = PairAccuracy(run.pairs("grammar", pairs))
    return measurements


def summarise(measurement: Measurement, frame: pl.DataFrame) -> pl.DataFrame:
    """One number per step from a trace of `measurement`: step, value, low, high (95 %)."""
    return next(summary for kind, summary in SUMMARIES.items() if isinstance(measurement, kind))(frame)


def _loss(frame: pl.DataFrame) -> pl.DataFrame:
    low, high = normal_interval(pl.col("loss"), pl.col("stderr"), z=1.96)
    return frame.select("step", value="loss", low=low, high=high)


def _uas(frame: pl.DataFrame) -> pl.DataFrame:
    return uas_by_step(frame.filter(pl.col("source") == "per_relation")).select("step", "low", "high", value="uas")


def _accuracy(frame: pl.DataFrame) -> pl.DataFrame:
    return average_accuracy(accuracy_by_step(frame)).select("step", "low", "high", value="accuracy")


SUMMARIES = {HeldOutLoss: _loss, UAS: _uas, PairAccuracy: _accuracy}


@dataclass(frozen=True)
class Speedups:
    """Every condition's speed-up over the baseline, with points and fitted curves for a figure; empty if `refused`."""

    by_condition: dict[str, Speedup]
    points: pl.DataFrame  # condition, seed, step, value
    fits: pl.DataFrame  # condition, step, value
    reached: pl.DataFrame  # condition, value (the speed-up), low, high, step, target; null if never reached
    refused: str = ""  # the reason

    @property
    def frames(self) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        return self.points, self.fits, self.reached


def speedups(curves: pl.DataFrame, measure: str, baseline: str, seed: int = 0, level: float = 1.0) -> Speedups:
    """Speed-ups over `baseline` in one measure of `curves`: condition, seed, step, measure, value (higher is better).

    Intervals are over seeds; with one seed there are none. If the baseline never rises, there are no speed-ups, and
    `refused` holds the reason. `level`: see `speedup`.
    """
    points = curves.filter(pl.col("measure") == measure).select("condition", "seed", "step", "value")
    groups = points.group_by("condition", maintain_order=True)
    groups = {name: frame.drop("condition").sort("step", "seed") for (name,), frame in groups}
    if baseline not in groups:
        raise UserError(f"speed-up: no condition {baseline!r} in {measure}; there are {', '.join(groups)}")
    unit = "seed" if points["seed"].n_unique() > 1 else None
    try:
        by_condition = {
            name: speedup(groups[baseline], frame, "value", unit, level=level, seed=seed)
            for name, frame in groups.items()
            if name != baseline
        }
    except UserError as error:
        by_condition, refused = {}, str(error)
    else:
        refused = ""
    if unit is None:  # the residuals of one run do not show the variation between runs
        by_condition = {
            name: replace(fit, low=None, high=None, reason=f"{fit.reason}; one seed, so there is no interval")
            for name, fit in by_condition.items()
        }
    learning_curves = {baseline: next(iter(by_condition.values())).baseline} if by_condition else {}
    learning_curves |= {name: fit.scheduled for name, fit in by_condition.items()}
    steps = np.unique(np.linspace(points["step"].min(), points["step"].max(), 200).round()).astype(int)
    fits = [
        row
        for name, curve in learning_curves.items()
        for row in zip([name] * len(steps), steps, curve(steps.astype(float)), strict=True)
    ]
    reached = [(name, fit.value, fit.low, fit.high, fit.step, fit.target) for name, fit in by_condition.items()]
    numbers = dict.fromkeys(("value", "low", "high", "step", "target"), pl.Float64)
    return Speedups(
        by_condition,
        points,
        pl.DataFrame(fits, {"condition": pl.String, "step": pl.Int64, "value": pl.Float64}, orient="row"),
        pl.DataFrame(reached, {"condition": pl.String, **numbers}, orient="row"),
        refused,
    )


def gains_by_paradigm(judged: pl.DataFrame, baseline: str) -> pl.DataFrame:
    """Accuracy on each paradigm minus the baseline's with the same seed: paradigm, condition, seed, difference.

    `judged`: a trace of `PairAccuracy` at one step per run, with condition and seed.
    """
    need_columns(judged, ["condition", "seed", "paradigm", "correct"], "gains by paradigm")
    accuracy = judged.group_by("condition", "seed", "paradigm", maintain_order=True).agg(
        pl.col("correct").cast(pl.Float64).mean().alias("accuracy")
    )
    base = accuracy.filter(pl.col("condition") == baseline).select("seed", "paradigm", reference="accuracy")
    if base.is_empty():
        raise UserError(f"gains by paradigm: no condition {baseline!r} among {', '.join(judged['condition'].unique())}")
    gains = accuracy.filter(pl.col("condition") != baseline).join(base, on=["seed", "paradigm"], maintain_order="left")
    return gains.select("paradigm", "condition", "seed", difference=pl.col("accuracy") - pl.col("reference"))


def probe_scores(tuned: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, float]]:
    """A trace of `FineTuning` (with condition and seed) as rows of `final`, and each task's majority share.

    Trials of one run are averaged: they do not show the variation between seeds.
    """
    test = tuned.filter(pl.col("split") == "test")
    majority = test.filter(pl.col("source") == "majority").group_by("task", maintain_order=True)
    trials = test.filter(pl.col("source") != "majority").group_by("condition", "seed", "task", maintain_order=True)
    scores = trials.agg(pl.col("score").mean()).select("condition", "seed", measure="task", value="score")
    return scores, dict(majority.agg(pl.col("score").mean()).iter_rows())

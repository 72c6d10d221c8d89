"""Runs side by side: the same measurements on the same data, a branch beside its parent."""

from collections.abc import Callable, Mapping

import polars as pl

from lmdynamics.analysis.syntax import accuracy_by_step, average_accuracy, uas_by_step
from lmdynamics.errors import UserError
from lmdynamics.hub.suites import open_run
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy
from lmdynamics.measurements.syntax import UAS
from lmdynamics.measurements.trace import Measurement, trace_all
from lmdynamics.progress import bar
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
    `steps` or, by default, at all checkpoints they share: for a branch and its parent, from where they part.

    Rows: `run`, `step`, `measure`, `value`, `low`, `high`, `difference` (null for the first run itself).

    Raises
    ------
    UserError
        If there are fewer than two runs, they share no step, or a measurement is of another kind.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run(s) cannot be compared; give two or more")
    first = runs[0]
    shared = sorted(set.intersection(*(set(run.steps) for run in runs)))
    if not shared:
        raise UserError(f"{', '.join(run.name for run in runs)} have no step in common; train them with the same steps")
    measurements = measurements or default_measurements(first)
    for name, measurement in measurements.items():
        if not isinstance(measurement, tuple(SUMMARIES)):
            kinds = ", ".join(kind.__name__ for kind in SUMMARIES)
            raise UserError(f"compare_runs has no one number for {name!r}, a {type(measurement).__name__}; use {kinds}")
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
    found: dict[str, Measurement] = {"held-out loss": HeldOutLoss(run.held_out())}
    if run.recipe is not None and run.recipe.corpus["kind"] == "grammar":
        found["UAS"] = UAS(run.treebank("grammar", sentences), min_count)
        if run.objective != "rts":
            found["agreement"] = PairAccuracy(run.pairs("grammar", pairs))
    return found


def summarise(measurement: Measurement, frame: pl.DataFrame) -> pl.DataFrame:
    """One number per step from a trace of `measurement`: step, value, low, high (95 %)."""
    return next(summary for kind, summary in SUMMARIES.items() if isinstance(measurement, kind))(frame)


def _loss(frame: pl.DataFrame) -> pl.DataFrame:
    reach = 1.96 * pl.col("stderr")
    return frame.select("step", value="loss", low=pl.col("loss") - reach, high=pl.col("loss") + reach)


def _uas(frame: pl.DataFrame) -> pl.DataFrame:
    return uas_by_step(frame.filter(pl.col("source") == "attention")).select("step", "low", "high", value="uas")


def _accuracy(frame: pl.DataFrame) -> pl.DataFrame:
    return average_accuracy(accuracy_by_step(frame)).select("step", "low", "high", value="accuracy")


SUMMARIES = {HeldOutLoss: _loss, UAS: _uas, PairAccuracy: _accuracy}


def trace_conditions(
    made: pl.DataFrame,
    measurements: Mapping[str, Measurement],
    *,
    steps: Callable[[Run], list[int]] | None = None,
    device: str = "cpu",
    progress: bool | None = None,
) -> dict[str, pl.DataFrame]:
    """Trace every run of a sweep: per measurement one frame, its rows headed by `condition` and `seed`.

    `made` comes from `lmd.sweep`; runs that failed are left out. `steps` chooses a run's checkpoints (default: all).

    Raises
    ------
    UserError
        If no run is complete.
    """
    whole = made.filter(pl.col("error").is_null())
    if whole.is_empty():
        first = f"; the first fault: {made['error'][0]}" if len(made) else ""
        raise UserError(f"none of the {len(made)} runs is complete{first}")
    parts: dict[str, list[pl.DataFrame]] = {name: [] for name in measurements}
    with bar(len(whole), "measuring", progress, unit="run") as shown:
        for condition, seed, name in whole.select("condition", "seed", "run").iter_rows():
            run = open_run(name)
            chosen = steps(run) if steps else None
            for key, frame in trace_all(run, measurements, steps=chosen, device=device, progress=False).items():
                head = [pl.lit(condition).alias("condition"), pl.lit(seed, pl.Int64).alias("seed")]
                parts[key].append(frame.select(*head, pl.all()))
            shown.update()
    return {key: pl.concat(frames) for key, frames in parts.items()}


def summarise_conditions(measurements: Mapping[str, Measurement], traces: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """One number per condition, seed, step and measure, with its 95 % interval, from `trace_conditions`."""
    parts = [
        summarise(measurements[name], frame.drop("condition", "seed")).select(
            pl.lit(condition).alias("condition"),
            pl.lit(seed, pl.Int64).alias("seed"),
            "step",
            pl.lit(name).alias("measure"),
            *(pl.col(column).cast(pl.Float64) for column in ("value", "low", "high")),
        )
        for name, trace in traces.items()
        for (condition, seed), frame in trace.group_by("condition", "seed", maintain_order=True)
    ]
    return pl.concat(parts)


def at_the_end(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows at each condition's and seed's last step."""
    return frame.filter(pl.col("step") == pl.col("step").max().over("condition", "seed"))

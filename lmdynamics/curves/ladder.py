"""Loss curves of a ladder of sizes, and which of their breaks a fit has found."""

from collections.abc import Iterable

import numpy as np
import polars as pl

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.curves.intervals import need_columns
from lmdynamics.curves.preparation import prepare
from lmdynamics.curves.scaling import power_laws
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import HeldOutLoss
from lmdynamics.measurements.measurement import Measurement
from lmdynamics.measurements.trace import trace
from lmdynamics.runs.run import Run, open_run

NEAR = 1.5  # a break within this factor of the step where the unigram phase ends is that phase's end


def unigram_entropy(rows: Blocks) -> float:
    """What a model that knows only how frequent each token is would lose on these rows: nats per predicted token.

    The first token of a row is predicted from nothing, so it does not count.
    """
    predicted = np.ones(len(rows.ids), bool)
    predicted[np.asarray(rows.offsets[:-1])] = False
    counts = np.bincount(np.asarray(rows.ids)[predicted])
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def ladder_curves(made: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Training losses of the runs of a sweep, and what each run is.

    Returns curves (curve, step, loss) and runs (curve, size, seed, run, parameters, unigram_entropy, final_loss on
    held-out rows with its stderr); a curve is called by size and seed. No sentence is seen twice in these recipes, so a
    training loss is a held-out loss with other noise.

    Raises
    ------
    UserError
        If no run is complete, or a run logs no loss.
    """
    whole = made.filter(pl.col("error").is_null())
    if whole.is_empty():
        raise UserError(f"none of the {len(made)} runs is complete" + (f": {made['error'][0]}" if len(made) else ""))
    curves, rows = [], []
    for size, seed, name in whole.select("condition", "seed", "run").iter_rows():
        run = open_run(name)
        if not len(run.log):
            raise UserError(f"{run.folder} has no log of its losses; train it with `lmdynamics sweep`")
        curve, held_out = f"{size} seed {seed}", run.held_out()
        curves.append(run.log.select(pl.lit(curve).alias("curve"), pl.col("step").cast(pl.Int64), "loss"))
        last = run[run.steps[-1]]
        end = trace(run, HeldOutLoss(held_out), steps=[last.step], progress=False).row(0, named=True)
        parameters = sum(p.numel() for p in last.model().parameters())
        rows.append((curve, size, seed, name, parameters, unigram_entropy(held_out), end["loss"], end["stderr"]))
    numbers = dict.fromkeys(("unigram_entropy", "final_loss", "stderr"), pl.Float64)
    names = {"curve": pl.String, "size": pl.String, "seed": pl.Int64, "run": pl.String, "parameters": pl.Int64}
    frame = pl.concat(curves).filter(pl.col("loss").is_finite())
    return frame, pl.DataFrame(rows, {**names, **numbers}, orient="row")


def unigram_phase_ends(curves: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The step at which each curve's averaged loss first falls below the unigram entropy: curve, ends (null: never)."""
    need_columns(runs, ["curve", "unigram_entropy"], "the unigram phase")
    rows = []
    for curve, entropy in runs.select("curve", "unigram_entropy").iter_rows():
        of = curves.filter(pl.col("curve") == curve).sort("step")
        step, loss = prepare(of["step"], of["loss"], "log-average", skip_steps=0)
        below = np.flatnonzero(loss < entropy)
        rows.append((curve, float(step[below[0]]) if len(below) else None))
    return pl.DataFrame(rows, {"curve": pl.String, "ends": pl.Float64}, orient="row")


def which_break(fits: pl.DataFrame, phases: pl.DataFrame) -> pl.DataFrame:
    """Which break each fit found: `fits_table` with `ends` of the unigram phase and `which`.

    `which`: `end of the unigram phase` within a factor of 1.5 of it, `after it`, `before it` (also where it never
    ends), or `none` without a break. A short run's one break is that phase's end: the model has learned how frequent
    each token is, and goes on to what is harder.
    """
    ratio = pl.col("step_at_break") / pl.col("ends")
    which = (
        pl.when(pl.col("verdict").is_in(["no break", "not fitted"]))
        .then(pl.lit("none"))
        .when(ratio > NEAR)
        .then(pl.lit("after it"))
        .when((ratio < 1 / NEAR) | pl.col("ends").is_null())
        .then(pl.lit("before it"))
        .otherwise(pl.lit("end of the unigram phase"))
    )
    return fits.join(phases, on="curve", how="left", maintain_order="left").with_columns(which.alias("which"))


def as_published(fits: pl.DataFrame) -> str:
    """Whether L_d falls and r_d rises with size, as published: a sentence, from `fits_table` with `parameters`.

    Only curves that decelerate have an L_d and an r_d; where most do not, there is nothing to compare.
    """
    slowing = fits.filter(pl.col("verdict") == "decelerates")
    if 2 * len(slowing) < len(fits) or slowing["parameters"].n_unique() < 3:
        return (
            f"Only {len(slowing)} of {len(fits)} curves decelerate, at {slowing['parameters'].n_unique()} sizes: there "
            "is no L_d and no r_d to follow over sizes."
        )
    said = []
    laws = power_laws(slowing, ["loss_at_break", "rate_after_break"])
    for symbol, falls, row in zip(("L_d", "r_d"), (True, False), laws.to_dicts(), strict=True):
        if row["exponent"] is None:
            said.append(f"{symbol} is positive in {row['curves']} curves only")
            continue
        found = f"{symbol} ∝ N^{row['exponent']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        if row["low"] <= 0 <= row["high"]:
            said.append(f"{found}: undecided whether it moves with size")
        else:
            way = "falls" if row["exponent"] < 0 else "rises"
            verdict = "as published" if (way == "falls") == falls else "not as published"
            said.append(f"{found}: {way} with size, {verdict}")
    return "; ".join(said) + f" ({len(slowing)} of {len(fits)} curves decelerate)."


def trace_ladder(
    runs: pl.DataFrame,
    measurement: Measurement,
    *,
    steps: Iterable[int] | None = None,
    device: str = "cpu",
    progress: bool | None = None,
) -> pl.DataFrame:
    """One measurement of every run of a ladder: the rows of `trace`, with `curve` and `size` in front.

    `runs`: curve, size, run, as `ladder_curves` gives them. `steps`: by default 1, 2, 4, …, those a run has.
    """
    need_columns(runs, ["curve", "size", "run"], "tracing a ladder")
    frames = []
    for curve, size, name in runs.select("curve", "size", "run").iter_rows():
        run = open_run(name)
        at = doubling_steps(run) if steps is None else steps
        found = trace(run, measurement, steps=at, device=device, progress=progress)
        frames.append(found.select(pl.lit(curve).alias("curve"), pl.lit(size).alias("size"), pl.all()))
    return pl.concat(frames)


def doubling_steps(run: Run) -> list[int]:
    """The run's checkpoints at 1, 2, 4, … steps."""
    return [step for step in run.steps if step and step & (step - 1) == 0]

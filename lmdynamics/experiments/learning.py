"""When the tokens of a ladder's text are learnt: `analysis.learning_times` of every run, and means over seeds."""

from dataclasses import dataclass

import polars as pl

from lmdynamics.analysis.intervals import need_numbers
from lmdynamics.analysis.learning_times import (
    MIN_STEPS,
    fall_density,
    kinds_of_tokens,
    learning_tests,
    learning_times,
    time_correlation,
    token_paths,
    with_verdicts,
)
from lmdynamics.experiments.findings import over_seeds


@dataclass(frozen=True)
class Learning:
    """Frames with a column `size`. Means are over seeds; a size with one run has intervals over rows of text."""

    times: pl.DataFrame  # size, seed, and the columns of `learning_times`
    kinds: pl.DataFrame  # of each run
    density: pl.DataFrame  # means; runs
    tests: pl.DataFrame  # means; verdict, runs
    correlation: pl.DataFrame  # of sizes with several runs


def learning(tokens: pl.DataFrame, seed: int = 0) -> Learning:
    """Learning times of a table `tokens` of `tables.ladder`: condition, seed, step, row, position, loss, text.

    Raises UserError if there are no rows, or fewer than four checkpoints.
    """
    need_numbers(tokens, ["step", "row", "position", "loss"], "learning times")
    makers = {"times": learning_times, "kinds": kinds_of_tokens, "density": fall_density, "tests": learning_tests}
    parts: dict[str, list[pl.DataFrame]] = {name: [] for name in makers}
    runs = tokens.rename({"text": "token"}).partition_by("condition", "seed", maintain_order=True, as_dict=True)
    for (size, number), losses in runs.items():
        paths, keys = token_paths(losses, seed), [pl.lit(size).alias("size"), pl.lit(number, pl.Int64).alias("seed")]
        for name, make in makers.items():
            parts[name].append(make(paths).select(*keys, pl.all()))
    frames = {name: pl.concat(each) for name, each in parts.items()}
    frames["density"] = _means(frames["density"], ["size", "step", "until", "account"], ["fall"])
    numbers = ["value", "expected", "difference"]
    steps = [pl.when(pl.col("measure") == "time").then(pl.col("^value.*$").log()).otherwise(pl.col("^value.*$"))]
    means = _means(frames["tests"].with_columns(steps), ["size", "measure", "control"], numbers)
    steps = [pl.when(pl.col("measure") == "time").then(pl.col("^value.*$").exp()).otherwise(pl.col("^value.*$"))]
    frames["tests"] = with_verdicts(means.with_columns(steps))
    correlation = [
        time_correlation(rows.rename({"seed": "run"}), seed).select(pl.lit(size).alias("size"), pl.all())
        for (size,), rows in frames["times"].group_by("size", maintain_order=True)
    ]
    return Learning(**frames, correlation=pl.concat(correlation))


def learning_from(tokens: pl.DataFrame, fits: pl.DataFrame, seed: int = 0) -> dict[str, Learning]:
    """`learning` with falls counted from the first checkpoint, and from that at which all runs of a size have left
    their unigram phase; by name, without sizes that have fewer than four checkpoints there.

    `fits`: size and ends, from `ladder.fits_after_phase`.
    """
    ends = fits.group_by("size").agg(pl.col("ends").max(), known=pl.col("ends").is_not_null().all()).filter("known")
    later = tokens.join(ends, left_on="condition", right_on="size", maintain_order="left")
    later = later.filter(pl.col("step") >= pl.col("ends")).drop("ends", "known")
    counted = {"from the start": tokens, "after the unigram phase": later}
    enough = {
        name: rows.filter(pl.col("step").n_unique().over("condition") >= MIN_STEPS) for name, rows in counted.items()
    }
    return {name: learning(rows, seed) for name, rows in enough.items() if len(rows)}


def _means(table: pl.DataFrame, by: list[str], values: list[str]) -> pl.DataFrame:
    """Over the seeds of each size, with the number of its runs."""
    return pl.concat(
        over_seeds(rows, by, values).with_columns(runs=pl.lit(rows["seed"].n_unique(), pl.Int64))
        for rows in table.partition_by("size", maintain_order=True)
    )

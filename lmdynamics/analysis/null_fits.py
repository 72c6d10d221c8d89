"""The control of many fits: the same curves without a break, fitted alike, and the counts of verdicts of both."""

from collections import Counter

import polars as pl

from lmdynamics.analysis.deceleration import VERDICTS, Deceleration
from lmdynamics.analysis.fits import fit_curves, null_curves, processes
from lmdynamics.analysis.intervals import with_wilson
from lmdynamics.errors import UserError
from lmdynamics.jobs import map_in_processes
from lmdynamics.progress import bar

PER_JOB = 8  # curves


def fit_null_curves(
    frame: pl.DataFrame,
    *,
    smoothing: str = "none",
    skip_steps: float = 100,
    resamples: int = 200,
    workers: int | None = None,
) -> dict[str, Deceleration | UserError]:
    """The control of `fit_curves`: the `null_curves` of a frame (curve, step, loss), fitted with the same options.

    Curves too short to be fitted are left out.
    """
    curves = frame.partition_by("curve", maintain_order=True)
    options = {"smoothing": smoothing, "skip_steps": skip_steps, "resamples": resamples}
    jobs = [(curves[i : i + PER_JOB], i, options) for i in range(0, len(curves), PER_JOB)]
    fits: dict[str, Deceleration | UserError] = {}
    with bar(len(curves), "fitting null curves", unit="curve") as progress_bar:
        results = map_in_processes(_fit_some, jobs, workers or processes(len(curves)))
        for (some, *_), fitted in zip(jobs, results, strict=True):
            fits |= fitted
            progress_bar.update(len(some))
    return fits


def _fit_some(job) -> dict[str, Deceleration | UserError]:
    curves, first, options = job
    try:  # each curve has its own seed
        made = null_curves(pl.concat(curves), options["skip_steps"], options["smoothing"], seed=first)
    except UserError:  # no curve is long enough
        return {}
    return fit_curves(made, workers=1, progress=False, **options)


def verdict_counts(fits: pl.DataFrame, nulls: pl.DataFrame) -> pl.DataFrame:
    """How many curves, and how many null curves, have each verdict: verdict, curves, null_curves.

    Each has a share of the fitted curves with Wilson's 95 % interval, as if the curves were independent:
    curves_share, curves_low, curves_high, null_curves_share …; null for `not fitted`, which is the last row.
    """
    table = pl.DataFrame({"verdict": [*VERDICTS, "not fitted"]})
    for name, rows in (("curves", fits), ("null_curves", nulls)):
        counts = Counter(rows["verdict"])
        fitted = len(rows) - counts["not fitted"]
        table = table.with_columns(pl.Series(name, [counts[verdict] for verdict in table["verdict"]], pl.Int64))
        has_share = (pl.col("verdict") != "not fitted") & pl.lit(fitted > 0)
        shares = table.select(accuracy=pl.when(has_share).then(pl.col(name) / fitted), count=pl.lit(fitted))
        named = {f"{name}_share": "accuracy", f"{name}_low": "low", f"{name}_high": "high"}
        table = table.hstack(with_wilson(shares).select(**named))
    return table

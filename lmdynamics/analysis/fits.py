"""Many curves fitted at once, and one curve fitted in many ways."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from lmdynamics.analysis.broken_power_law import WIDTHS, fit
from lmdynamics.analysis.deceleration import LOCATED, Deceleration, fit_deceleration, headline
from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.analysis.preparation import SMOOTHINGS, prepare
from lmdynamics.errors import UserError
from lmdynamics.processes import cores_here, map_in_processes
from lmdynamics.progress import bar

FITTED = ("loss_at_break", "step_at_break", "rate_before_break", "rate_after_break")
OTHERS = ("b", "c0", "c1", "log_d1", "f1", "rsle", "delta_aic_power_law", "delta_aic_two_breaks")
FEW = 40  # curves: below, other processes take longer to start than the fits


def fit_curves(
    frame: pl.DataFrame,
    *,
    smoothing: str = "none",
    skip_steps: float = 100,
    resamples: int = 200,
    seed: int = 0,
    workers: int | None = None,
    progress: bool | None = None,
) -> dict[str, Deceleration | UserError]:
    """`fit_deceleration` of every curve of a frame (`curve`, `step`, `loss`): by name, in order of appearance.

    A curve that cannot be fitted has the error in its place, and does not stop the others. `workers`: processes at a
    time, by default one a core where there are many curves.

    Raises
    ------
    UserError
        If a column is missing, there is no curve, the smoothing is unknown, or `workers` is below 1.
    """
    need_columns(frame, ["curve", "step", "loss"], "fitting curves")
    if frame.is_empty():
        raise UserError("there are no curves to fit; the frame has no rows")
    if worded := next((name for name in ("step", "loss") if not frame.schema[name].is_numeric()), None):
        raise UserError(f"the column {worded!r} holds no numbers; let lmd.read_curves read the table")
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; at least 1 is needed")
    prepare((), (), smoothing)  # an unknown one is no fault of any curve
    groups = frame.group_by(pl.col("curve").cast(pl.String), maintain_order=True)
    curves = [(name, rows["step"].to_numpy(), rows["loss"].to_numpy()) for (name,), rows in groups]
    options = {"smoothing": smoothing, "skip_steps": skip_steps, "resamples": resamples, "seed": seed}
    found: dict[str, Deceleration | UserError] = {}
    with bar(len(curves), "fitting", progress, unit="curve") as shown:
        jobs = [(curves[i : i + 8], options) for i in range(0, len(curves), 8)]
        workers = workers or (1 if len(curves) < FEW else min(cores_here(), len(jobs)))
        for done in map_in_processes(_fit_some, jobs, workers):
            found |= done
            shown.update(len(done))
    return found


def fits_table(fits: dict[str, Deceleration | UserError]) -> pl.DataFrame:
    """Fits as rows: curve, verdict, caveat (of the verdict; empty without one), loss_at_break, step_at_break,
    rate_before_break and rate_after_break (each with _low and _high, 95 %), b, c0, c1, log_d1, f1, rsle,
    delta_aic_power_law, delta_aic_two_breaks, points, first_step, last_step, reason. A curve that could not be fitted
    has the verdict `not fitted`, and why as its reason."""
    rows = []
    for name, made in fits.items():
        if isinstance(made, UserError):
            rows.append({"curve": name, "verdict": "not fitted", "caveat": "", "reason": str(made)})
            continue
        row = {"curve": name, "verdict": made.verdict, "caveat": made.caveat, "reason": made.reason}
        row["points"] = made.points
        for value in FITTED:
            low, high = made.intervals.get(value, (None, None))
            row |= {value: getattr(made, value), f"{value}_low": low, f"{value}_high": high}
        rows.append(row | {value: getattr(made, value) for value in (*OTHERS, "first_step", "last_step")})
    columns = [*(f"{value}{end}" for value in FITTED for end in ("", "_low", "_high")), *OTHERS]
    texts = dict.fromkeys(("curve", "verdict", "caveat"), pl.String)
    schema = {**texts, **dict.fromkeys(columns, pl.Float64), "points": pl.Int64}
    return pl.DataFrame(rows, {**schema, "first_step": pl.Float64, "last_step": pl.Float64, "reason": pl.String})


def decelerating(fits: pl.DataFrame) -> pl.DataFrame:
    """`fits_table` with the numbers of a break, and their intervals, null where a curve does not decelerate."""
    numbers = [f"{value}{end}" for value in FITTED for end in ("", "_low", "_high")]
    there = pl.col("verdict") == "decelerates"
    return fits.with_columns(pl.when(there).then(pl.col(name)).alias(name) for name in numbers if name in fits.columns)


def told(fits: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """`fits_table` (or `sensitivity`) for a reader: `columns` of it, the verdict with its caveat, and L_d, t_d, r_d.

    The numbers are texts with intervals; a curve whose verdict claims no break in one place has none.
    """
    ways = [(FITTED[0], "L_d", ".3f"), (FITTED[1], "t_d", ",.0f"), (FITTED[3], "r_d", ".4f")]

    def text(row: dict, name: str, style: str) -> str:
        value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
        return "–" if value is None or row["verdict"] not in LOCATED else with_interval(value, (low, high), style)

    rows = [
        {name: row[name] for name in columns}
        | {"verdict": headline(row["verdict"], row["caveat"])}
        | {symbol: text(row, name, style) for name, symbol, style in ways}
        for row in fits.iter_rows(named=True)
    ]
    kept = {name: fits.schema[name] for name in (*columns, "verdict")}
    return pl.DataFrame(rows, {**kept, **dict.fromkeys(("L_d", "t_d", "r_d"), pl.String)})


def sensitivity(
    step: ArrayLike,
    loss: ArrayLike,
    smoothings: Sequence[str] = SMOOTHINGS,
    skips: Sequence[float] = (50, 100, 200, 400),
    resamples: int = 200,
) -> pl.DataFrame:
    """How much a fit owes to its preparation: the columns of `fits_table` for each smoothing and first step kept.

    `curve` gives way to `smoothing` and `skip_steps`.
    """
    tables = []
    for smoothing in smoothings:
        for skip in skips:
            options = {"smoothing": smoothing, "skip_steps": skip, "resamples": resamples}
            table = fits_table(_fit_some(([("", np.asarray(step), np.asarray(loss))], options)))
            ways = [pl.lit(smoothing).alias("smoothing"), pl.lit(float(skip)).alias("skip_steps")]
            tables.append(table.select(*ways, pl.exclude("curve")))
    return pl.concat(tables)


def break_profile(
    step: ArrayLike, loss: ArrayLike, *, smoothing: str = "none", skip_steps: float = 100, places: int = 80
) -> pl.DataFrame:
    """The error that a break put at each of some steps leaves, everything else fitted: what it costs to be elsewhere.

    Rows, evenly spaced in log step between the first and the last point: step_at_break, rsle, loss_at_break,
    rate_before_break, rate_after_break, and of the whole fit b, c0, c1, log_d1, f1.
    """
    kept, smoothed = prepare(step, loss, smoothing, skip_steps)
    if len(kept) < 6:
        raise UserError(f"{len(kept)} points are left after step {skip_steps:g}; a break needs more: skip fewer steps")
    x, y = np.log(kept), np.log(smoothed)[None]
    at = np.linspace(x[0], x[-1], places + 2)[1:-1]
    rows = np.repeat(y, places, axis=0)
    tried = [fit(x, rows, 1, (at[:, None], np.full((places, 1), width)), fixed=True) for width in (*WIDTHS, 0.01)]
    best = np.argmin([each.rss for each in tried], axis=0)
    chosen = [tried[i] for i in best]
    pick = {
        name: np.array([getattr(c, name)[j] for j, c in enumerate(chosen)]) for name in ("log_b", "rates", "widths")
    }
    rss = np.array([c.rss[j] for j, c in enumerate(chosen)])
    c0, c1 = pick["rates"].T
    return pl.DataFrame(
        {
            "step_at_break": np.exp(at),
            "rsle": np.sqrt(rss / len(x)),
            "loss_at_break": np.exp(pick["log_b"] - c0 * at),
            "rate_before_break": c0,
            "rate_after_break": c0 + c1,
            "b": np.exp(pick["log_b"]),
            "c0": c0,
            "c1": c1,
            "log_d1": at,
            "f1": pick["widths"][:, 0],
        }
    )


def fitted_line(row: Mapping, first: float, last: float) -> pl.DataFrame:
    """A row of `fits_table` as a line between two steps: curve, x (step), loss."""
    steps = np.geomspace(first, last, 160)
    u = np.log(steps / row["step_at_break"])
    turn = row["f1"] * (row["rate_before_break"] - row["rate_after_break"])
    loss = row["loss_at_break"] * np.exp(turn * np.logaddexp(0, u / row["f1"]) - row["rate_before_break"] * u)
    return pl.DataFrame({"curve": [row["curve"]] * len(steps), "x": steps, "loss": loss})


def least_error(profile: pl.DataFrame, step: float) -> float:
    """The error that a profile's break at a step leaves, between two rows by log step; no more than its least row."""
    rows = profile.sort("step_at_break")
    return float(min(np.interp(np.log(step), np.log(rows["step_at_break"]), rows["rsle"]), rows["rsle"].min()))


def _fit_some(job) -> dict[str, Deceleration | UserError]:
    curves, options = job
    found = {}
    for name, step, loss in curves:
        try:
            found[name] = fit_deceleration(step, loss, **options)
        except UserError as error:
            found[name] = error
    return found

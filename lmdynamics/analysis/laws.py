"""A contest of laws: which form of a loss curve forecasts best what it has not seen?

Each law is fitted by least squares in log-log to the first part of a curve, and extrapolated to its last step. A law
that fits a curve well need not forecast it, so the forecast decides; the AIC of the whole curve stands beside it. The
control is a forecast without a law: the last loss that was seen.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.optimize import least_squares

from lmdynamics.analysis.broken_power_law import fit
from lmdynamics.analysis.deceleration import MIN_POINTS, ROUNDING
from lmdynamics.analysis.intervals import bootstrap_levels, need_columns
from lmdynamics.analysis.loss_curves import prepare, residual_blocks
from lmdynamics.errors import UserError
from lmdynamics.jobs import available_cores, map_in_processes
from lmdynamics.progress import bar

LAWS = {"one power law": 2, "power law with a floor": 3, "one break": 5, "two breaks": 8}  # numbers of parameters
CONTROL = "last loss seen"
FLOORS = np.concatenate([[0.0], 1 - np.geomspace(1, 1e-3, 24)[1:]])  # shares of the lowest loss, to start from

Law = Callable[[Float[np.ndarray, " points"]], Float[np.ndarray, " points"]]  # log loss at log steps


def fit_laws(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> dict[str, Law]:
    """Every law, fitted to log loss `y` at log steps `x`."""
    broken = {"one power law": 0, "one break": 1, "two breaks": 2}
    fitted = {name: fit(x, y[None], breaks) for name, breaks in broken.items()}
    laws: dict[str, Law] = {name: lambda at, law=law: law(at)[0] for name, law in fitted.items()}
    return laws | {"power law with a floor": with_floor(x, y)}


def with_floor(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> Law:
    """log L = log(E + exp(a - c x)): a power law of the step above an irreducible loss E (Hoffmann et al. 2022)."""
    loss, best = np.exp(y), None
    for floor in FLOORS * loss.min():
        slope, a = np.polyfit(x, np.log(loss - floor), 1)
        rss = float(((np.log(floor + np.exp(a + slope * x)) - y) ** 2).sum())
        if best is None or rss < best[0]:
            best = rss, (np.log(max(floor, 1e-6 * loss.min())), a, -slope)

    def law(at: np.ndarray, log_floor: float, a: float, c: float) -> np.ndarray:
        return np.logaddexp(log_floor, a - c * at)

    refined = least_squares(lambda parameters: law(x, *parameters) - y, best[1], xtol=1e-10, ftol=1e-10).x
    return lambda at: law(at, *refined)


def contest(
    frame: pl.DataFrame,
    share: float = 0.25,
    *,
    smoothing: str = "none",
    skip_steps: float = 100,
    workers: int | None = None,
    progress: bool | None = None,
) -> pl.DataFrame:
    """How well each law forecasts each curve (`curve`, `step`, `loss`) from the first `share` of its steps.

    Rows: curve, law, error (log of predicted over measured, at the last step), rmse (root mean squared log error over
    all points not seen), aic (of the whole curve, less the best law's; null for the control). Curves with too few
    points are left out.

    Raises UserError if that leaves none, or a column is missing.
    """
    need_columns(frame, ["curve", "step", "loss"], "a contest of laws")
    if not 0 < share < 1:
        raise UserError(f"share is {share}; it must be between 0 and 1: the part of each curve that a law may see")
    groups = frame.group_by(pl.col("curve").cast(pl.String), maintain_order=True)
    curves = [(name, *(rows[c].cast(pl.Float64).to_numpy() for c in ("step", "loss"))) for (name,), rows in groups]
    jobs = [(curves[i : i + 8], share, smoothing, skip_steps) for i in range(0, len(curves), 8)]
    workers, rows = workers or (1 if len(curves) < 16 else min(available_cores(), len(jobs))), []
    with bar(len(curves), "fitting laws", progress, unit="curve") as meter:
        for job, made in zip(jobs, map_in_processes(_contest_some, jobs, workers), strict=True):
            rows += made
            meter.update(len(job[0]))
    if not rows:
        raise UserError(f"no curve has {MIN_POINTS} points in its first {share:.0%} and after it; log more often")
    schema = {"curve": pl.String, "law": pl.String, **dict.fromkeys(("error", "rmse", "aic"), pl.Float64)}
    return pl.DataFrame(rows, schema, orient="row")


def _contest_some(job) -> list[tuple]:
    curves, share, smoothing, skip_steps = job
    rows = []
    for name, step, loss in curves:
        try:
            t, smoothed = prepare(step, loss, smoothing, skip_steps)
            seen = step <= share * t[-1]
            early_t, early_loss = prepare(step[seen], loss[seen], smoothing, skip_steps)
        except (UserError, IndexError):  # not a loss curve, or no point is left
            continue
        if len(early_t) < MIN_POINTS or len(t) - len(early_t) < MIN_POINTS:
            continue
        x, y, unseen = np.log(t), np.log(smoothed), t > share * t[-1]
        forecasts = fit_laws(np.log(early_t), np.log(early_loss))
        whole = fit_laws(x, y)
        points = max(residual_blocks(x, y - whole["two breaks"](x))[1], 8.0)  # two breaks have 8 parameters
        aic = {
            law: points * np.log(max(((whole[law](x) - y) ** 2).mean(), ROUNDING**2)) + 2 * parameters
            for law, parameters in LAWS.items()
        }
        last = np.log(early_loss[-1])
        forecasts[CONTROL] = lambda at, last=last: np.full(len(at), last)
        for law, forecast in forecasts.items():
            missed = forecast(x[unseen]) - y[unseen]
            relative = aic[law] - min(aic.values()) if law in aic else None
            rows.append((name, law, float(missed[-1]), float(np.sqrt((missed**2).mean())), relative))
    return rows


def contest_table(rows: pl.DataFrame, resamples: int = 2_000, seed: int = 0) -> pl.DataFrame:
    """Each law over curves: law, curves, error (median size at the last step), low, high, wins, worse, worse_low,
    worse_high, aic.

    `wins`: share of curves that it forecasts best. `worse`: median over curves of the size of its error less that of
    the law with the smallest median error, the control left aside; both with 95 % intervals (bootstrap over curves;
    null below 6). `aic`: median, less the best law's.
    """
    sizes = rows.with_columns(error=pl.col("error").abs()).pivot("law", index="curve", values="error")
    laws = [name for name in (*LAWS, CONTROL) if name in sizes.columns]  # the control is the last
    errors = sizes.select(laws).to_numpy()
    best, smallest = int(np.median(errors[:, :-1], 0).argmin()), errors.argmin(1)
    levels = bootstrap_levels(len(errors))
    drawn = np.random.default_rng(seed).integers(len(errors), size=(resamples, len(errors)))
    table = []
    for index, law in enumerate(laws):
        columns = errors[:, index], errors[:, index] - errors[:, best]
        error, worse = (
            (np.median(each), *((None, None) if levels is None else np.percentile(np.median(each[drawn], 1), levels)))
            for each in columns
        )
        wins, aic = (smallest == index).mean(), rows.filter(law=law)["aic"].median()
        table.append((law, len(errors), *error, wins, *worse, aic))
    numbers = dict.fromkeys(("error", "low", "high", "wins", "worse", "worse_low", "worse_high", "aic"), pl.Float64)
    return pl.DataFrame(table, {"law": pl.String, "curves": pl.Int64, **numbers}, orient="row")


def verdict(table: pl.DataFrame) -> str:
    """Which law forecasts best, in one sentence that says no more than the intervals."""
    ranked = table.filter(pl.col("law") != CONTROL).sort("error")
    best, second = ranked.row(0, named=True), ranked.row(1, named=True)
    control = table.filter(law=CONTROL).row(0, named=True)
    curves = f"{best['curves']:,} curve{'s' * (best['curves'] != 1)}"
    sentence = f"of {curves}, {best['law']} has the smallest median error: {best['error']:.1%}"
    if best["low"] is None:
        others = "; ".join(f"{row['law']} {row['error']:.1%}" for row in (second, control))
        beaten = ", so no law beats it" if control["error"] <= best["error"] else ""
        return f"{sentence} (no interval below 6 curves); {others}{beaten}"
    sentence += f" [{best['low']:.1%}, {best['high']:.1%}]"
    rivals = [row for row in table.iter_rows(named=True) if row["law"] != best["law"]]
    undecided = [row["law"] for row in rivals if row["worse_low"] <= 0]
    if undecided:
        return f"{sentence}; whether it is better than {' or '.join(undecided)} is undecided"
    lead = f"{second['worse']:.1%} [{second['worse_low']:.1%}, {second['worse_high']:.1%}]"
    return f"{sentence}; better than each of the others, than {second['law']} by {lead}"

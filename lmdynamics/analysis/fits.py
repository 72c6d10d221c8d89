"""Fits of many curves, fits of one curve with many settings, and the effect of model size.

Mircea et al. 2025 (arXiv 2506.05447): scale lowers the loss at the break and raises the rate after it. A break is
compared with the same curve without a break, and with the prediction of a power law.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.stats import linregress
from scipy.stats import t as student

from lmdynamics.analysis.broken_power_law import WIDTHS, fit
from lmdynamics.analysis.deceleration import LOCATED, MIN_POINTS, Deceleration, fit_deceleration, headline
from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.analysis.loss_curves import SMOOTHINGS, moved_draws, prepare
from lmdynamics.errors import UserError
from lmdynamics.jobs import available_cores, map_in_processes
from lmdynamics.progress import bar

FITTED = ("loss_at_break", "step_at_break", "rate_before_break", "rate_after_break")
FIT_PARAMETERS = ("b", "c0", "c1", "log_d1", "f1", "rsle", "delta_aic_power_law", "delta_aic_two_breaks")
MIN_PARALLEL_CURVES = 40  # with fewer curves, starting processes takes longer than the fits


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

    For a curve that cannot be fitted, the value is the error. `workers`: processes at a time, by default one per core
    if there are many curves.

    Raises UserError if a column is missing, there is no curve, the smoothing is unknown, or `workers` is below 1.
    """
    need_columns(frame, ["curve", "step", "loss"], "fitting curves")
    if frame.is_empty():
        raise UserError("there are no curves to fit; the frame has no rows")
    if text_column := next((name for name in ("step", "loss") if not frame.schema[name].is_numeric()), None):
        raise UserError(f"the column {text_column!r} holds no numbers; let lmd.read_curves read the table")
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; at least 1 is needed")
    prepare((), (), smoothing)  # raises an error for an unknown smoothing before the curves are fitted
    groups = frame.group_by(pl.col("curve").cast(pl.String), maintain_order=True)
    curves = [(name, rows["step"].to_numpy(), rows["loss"].to_numpy()) for (name,), rows in groups]
    options = {"smoothing": smoothing, "skip_steps": skip_steps, "resamples": resamples, "seed": seed}
    fits: dict[str, Deceleration | UserError] = {}
    with bar(len(curves), "fitting", progress, unit="curve") as progress_bar:
        jobs = [(curves[i : i + 8], options) for i in range(0, len(curves), 8)]
        for fitted in map_in_processes(_fit_some, jobs, workers or processes(len(curves))):
            fits |= fitted
            progress_bar.update(len(fitted))
    return fits


def processes(curves: int) -> int:
    """How many processes fit this many curves, by default."""
    return 1 if curves < MIN_PARALLEL_CURVES else min(available_cores(), -(-curves // 8))


def fits_table(fits: dict[str, Deceleration | UserError]) -> pl.DataFrame:
    """Fits as rows: curve, verdict, caveat (of the verdict; empty without one), loss_at_break, step_at_break,
    rate_before_break and rate_after_break (each with _low and _high, 95 %), b, c0, c1, log_d1, f1, rsle,
    delta_aic_power_law, delta_aic_two_breaks, points, first_step, last_step, reason. A curve that could not be fitted
    has the verdict `not fitted`, and the error as its reason."""
    rows = []
    for name, result in fits.items():
        if isinstance(result, UserError):
            rows.append({"curve": name, "verdict": "not fitted", "caveat": "", "reason": str(result)})
            continue
        row = {"curve": name, "verdict": result.verdict, "caveat": result.caveat, "reason": result.reason}
        row["points"] = result.points
        for value in FITTED:
            low, high = result.intervals.get(value, (None, None))
            row |= {value: getattr(result, value), f"{value}_low": low, f"{value}_high": high}
        rows.append(row | {value: getattr(result, value) for value in (*FIT_PARAMETERS, "first_step", "last_step")})
    columns = [*(f"{value}{end}" for value in FITTED for end in ("", "_low", "_high")), *FIT_PARAMETERS]
    texts = dict.fromkeys(("curve", "verdict", "caveat"), pl.String)
    schema = {**texts, **dict.fromkeys(columns, pl.Float64), "points": pl.Int64}
    return pl.DataFrame(rows, {**schema, "first_step": pl.Float64, "last_step": pl.Float64, "reason": pl.String})


def decelerating(fits: pl.DataFrame) -> pl.DataFrame:
    """`fits_table` with the numbers of a break, and their intervals, null if a curve does not decelerate."""
    numbers = [f"{value}{end}" for value in FITTED for end in ("", "_low", "_high")]
    shown = pl.col("verdict") == "decelerates"
    return fits.with_columns(pl.when(shown).then(pl.col(name)).alias(name) for name in numbers if name in fits.columns)


def describe_fits(fits: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """`fits_table` (or `sensitivity`) for display: `columns` of it, the verdict with its caveat, and L_d, t_d, r_d.

    The numbers are texts with intervals; they are missing if the verdict claims no located break.
    """
    formats = [(FITTED[0], "L_d", ".3f"), (FITTED[1], "t_d", ",.0f"), (FITTED[3], "r_d", ".4f")]

    def text(row: dict, name: str, style: str) -> str:
        value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
        return "–" if value is None or row["verdict"] not in LOCATED else with_interval(value, (low, high), style)

    rows = [
        {name: row[name] for name in columns}
        | {"verdict": headline(row["verdict"], row["caveat"])}
        | {symbol: text(row, name, style) for name, symbol, style in formats}
        for row in fits.iter_rows(named=True)
    ]
    schema = {name: fits.schema[name] for name in (*columns, "verdict")}
    return pl.DataFrame(rows, {**schema, **dict.fromkeys(("L_d", "t_d", "r_d"), pl.String)})


def sensitivity(
    step: ArrayLike,
    loss: ArrayLike,
    smoothings: Sequence[str] = SMOOTHINGS,
    skips: Sequence[float] = (50, 100, 200, 400),
    resamples: int = 200,
) -> pl.DataFrame:
    """How a fit depends on its preparation: the columns of `fits_table` for each smoothing and number of skipped steps.

    `curve` is replaced by `smoothing` and `skip_steps`.
    """
    tables = []
    for smoothing in smoothings:
        for skip in skips:
            options = {"smoothing": smoothing, "skip_steps": skip, "resamples": resamples}
            table = fits_table(_fit_some(([("", np.asarray(step), np.asarray(loss))], options)))
            settings = [pl.lit(smoothing).alias("smoothing"), pl.lit(skip).alias("skip_steps")]
            tables.append(table.select(*settings, pl.exclude("curve")))
    return pl.concat(tables, how="vertical_relaxed")


def break_profile(
    step: ArrayLike, loss: ArrayLike, *, smoothing: str = "none", skip_steps: float = 100, places: int = 80
) -> pl.DataFrame:
    """The error of fits with the break fixed at each of some steps, and all other parameters fitted.

    Rows, evenly spaced in log step between the first and the last point: step_at_break, rsle, loss_at_break,
    rate_before_break, rate_after_break, and the parameters b, c0, c1, log_d1, f1.
    """
    t, smoothed = prepare(step, loss, smoothing, skip_steps)
    if len(t) < 6:
        raise UserError(f"{len(t)} points are left after step {skip_steps:g}; a break needs more: skip fewer steps")
    x, y = np.log(t), np.log(smoothed)[None]
    log_breaks = np.linspace(x[0], x[-1], places + 2)[1:-1]
    rows = np.repeat(y, places, axis=0)
    starts = [(log_breaks[:, None], np.full((places, 1), width)) for width in (*WIDTHS, 0.01)]
    candidates = [fit(x, rows, 1, start, fixed=True) for start in starts]
    best_fits = [candidates[i] for i in np.argmin([candidate.rss for candidate in candidates], axis=0)]
    best_values = {
        name: np.array([getattr(c, name)[j] for j, c in enumerate(best_fits)]) for name in ("log_b", "rates", "widths")
    }
    rss = np.array([c.rss[j] for j, c in enumerate(best_fits)])
    c0, c1 = best_values["rates"].T
    return pl.DataFrame(
        {
            "step_at_break": np.exp(log_breaks),
            "rsle": np.sqrt(rss / len(x)),
            "loss_at_break": np.exp(best_values["log_b"] - c0 * log_breaks),
            "rate_before_break": c0,
            "rate_after_break": c0 + c1,
            "b": np.exp(best_values["log_b"]),
            "c0": c0,
            "c1": c1,
            "log_d1": log_breaks,
            "f1": best_values["widths"][:, 0],
        }
    )


def fitted_line(row: Mapping, first: float, last: float) -> pl.DataFrame:
    """A row of `fits_table` as a line between two steps: curve, x (step), loss."""
    steps = np.geomspace(first, last, 160)
    u = np.log(steps / row["step_at_break"])
    turn = row["f1"] * (row["rate_before_break"] - row["rate_after_break"])
    loss = row["loss_at_break"] * np.exp(turn * np.logaddexp(0, u / row["f1"]) - row["rate_before_break"] * u)
    return pl.DataFrame({"curve": [row["curve"]] * len(steps), "x": steps, "loss": loss})


def power_law_line(points: pl.DataFrame) -> pl.DataFrame:
    """One power law through the points of a curve, as a line between its first and last step: curve, x (step), loss."""
    line = linregress(np.log(points["step"].to_numpy()), np.log(points["loss"].to_numpy()))
    steps = np.array([points["step"].min(), points["step"].max()], float)
    loss = np.exp(line.intercept + line.slope * np.log(steps))
    return pl.DataFrame({"curve": [points["curve"][0]] * 2, "x": steps, "loss": loss})


def least_error(profile: pl.DataFrame, step: float) -> float:
    """The error of a profile at a step, interpolated over log steps; at most the error of its best row."""
    rows = profile.sort("step_at_break")
    return float(min(np.interp(np.log(step), np.log(rows["step_at_break"]), rows["rsle"]), rows["rsle"].min()))


def _fit_some(job) -> dict[str, Deceleration | UserError]:
    curves, options = job
    fits = {}
    for name, step, loss in curves:
        try:
            fits[name] = fit_deceleration(step, loss, **options)
        except UserError as error:
            fits[name] = error
    return fits


QUANTITIES = ("loss_at_break", "rate_after_break", "step_at_break", "final_loss")


def power_laws(fits: pl.DataFrame, quantities: Sequence[str] = QUANTITIES) -> pl.DataFrame:
    """Each quantity as a power of size, q = a · parameters^exponent, by least squares in log-log over sizes.

    `fits`: a row per curve with `parameters` and the quantities. Seeds of one size are averaged (in log) first: they
    share all other properties of that size, so they do not count as further sizes. Rows: quantity,
    a, exponent, low, high (95 %, Student's t, sizes less two degrees of freedom), p (of no dependence on size), curves,
    sizes. Curves whose quantity is not positive are left out. Below 3 sizes there is no interval
    and no p; below 3 curves or 2 sizes all numbers are null.
    """
    need_columns(fits, ["parameters", *quantities], "power laws over sizes")
    rows = []
    for quantity in quantities:
        positive = fits.filter(pl.col(quantity).is_finite() & (pl.col(quantity) > 0))
        means = positive.group_by("parameters", maintain_order=True).agg(pl.col(quantity).log().mean())
        row: dict = {"quantity": quantity, "curves": len(positive), "sizes": len(means)}
        if len(positive) >= 3 and len(means) > 1:
            line = linregress(np.log(means["parameters"].to_numpy()), means[quantity].to_numpy())
            row |= {"a": np.exp(line.intercept), "exponent": line.slope}
            if len(means) > 2:
                reach = student.ppf(0.975, len(means) - 2) * line.stderr
                row |= {"low": line.slope - reach, "high": line.slope + reach, "p": line.pvalue}
        rows.append(row)
    numbers = dict.fromkeys(("a", "exponent", "low", "high", "p"), pl.Float64)
    return pl.DataFrame(rows, {"quantity": pl.String, **numbers, "curves": pl.Int64, "sizes": pl.Int64})


def split_gains(fits: pl.DataFrame) -> pl.DataFrame:
    """How much each part of the fit explains of the gain in final loss of each size over the next smaller one.

    log L̂_T = log L_d + r_d (log t_d - log T): between two sizes at one T the gain in log loss is a part from L_d, one
    from r_d and one from t_d; for a product, the part of each factor is computed at the mean of the other. `fits`: a
    row per size with size (name), parameters, loss_at_break, rate_after_break, step_at_break, last_step, final_loss
    (as measured).

    Rows: smaller, larger, part (`L_d`, `r_d`, `t_d`, `not explained`), gain (log loss; positive: the larger
    is better). The four parts add up to the measured gain.

    Raises UserError if a size lacks a number, or sizes ended at different steps T.
    """
    columns = ["size", "parameters", "loss_at_break", "rate_after_break", "step_at_break", "last_step", "final_loss"]
    need_columns(fits, columns, "splitting gains")
    if missing := [name for name in columns if fits[name].null_count()]:
        size = fits.filter(pl.col(missing[0]).is_null())["size"][0]
        raise UserError(f"{size} has no {missing[0]}; gains are split between sizes that have all values: leave it out")
    if fits["last_step"].max() > 1.02 * fits["last_step"].min():
        raise UserError(
            f"the curves end between steps {fits['last_step'].min():,.0f} and {fits['last_step'].max():,.0f}; gains "
            "are compared at one step: cut them to the shortest"
        )
    ordered = fits.sort("parameters").to_dicts()
    rows = []
    for a, b in pairwise(ordered):
        log_time = [np.log(fit_row["last_step"] / fit_row["step_at_break"]) for fit_row in (a, b)]
        rates = [fit_row["rate_after_break"] for fit_row in (a, b)]
        parts = {
            "L_d": np.log(a["loss_at_break"] / b["loss_at_break"]),
            "r_d": (rates[1] - rates[0]) * (log_time[0] + log_time[1]) / 2,
            "t_d": (log_time[1] - log_time[0]) * (rates[0] + rates[1]) / 2,
        }
        parts["not explained"] = np.log(a["final_loss"] / b["final_loss"]) - sum(parts.values())
        rows += [(a["size"], b["size"], part, float(gain)) for part, gain in parts.items()]
    return pl.DataFrame(
        rows, {"smaller": pl.String, "larger": pl.String, "part": pl.String, "gain": pl.Float64}, orient="row"
    )


def predict_early(
    frame: pl.DataFrame,
    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
    *,
    smoothing: str = "none",
    skip_steps: float = 100,
) -> pl.DataFrame:
    """The final loss predicted from the first part of training, and the measured one.

    `frame`: curve, step, loss. For each curve and share, the steps up to share · T are fitted and extrapolated to T:
    with one break and, as controls, with one power law and with the last loss. A break that has not happened yet cannot
    be fitted: then one break may be far worse than its controls.

    Rows: curve, share, method (`one break`, `one power law`, `last loss seen`), predicted, truth, error (log
    predicted / truth), verdict (of the fit with one break). Shares with too few points are left out.
    """
    need_columns(frame, ["curve", "step", "loss"], "early prediction")
    rows = []
    for (name,), curve in frame.group_by("curve", maintain_order=True):
        step, loss = (curve[column].cast(pl.Float64).to_numpy() for column in ("step", "loss"))
        t, smoothed = prepare(step, loss, smoothing, skip_steps)
        if len(t) < MIN_POINTS:
            continue
        end, truth = t[-1], smoothed[-1]
        for share in shares:
            early = step <= share * end
            early_steps, early_losses = prepare(step[early], loss[early], smoothing, skip_steps)
            if len(early_steps) < MIN_POINTS:
                continue
            options = {"smoothing": smoothing, "skip_steps": skip_steps, "resamples": 0}
            one_break = fit_deceleration(step[early], loss[early], **options)
            power_law = fit(np.log(early_steps), np.log(early_losses)[None], 0)
            predictions = {
                "one break": one_break.predict(float(end)),
                "one power law": float(np.exp(power_law(np.log([end]))[0, 0])),
                "last loss seen": float(early_losses[-1]),
            }
            rows += [
                (name, share, method, value, float(truth), float(np.log(value / truth)), one_break.verdict)
                for method, value in predictions.items()
            ]
    numbers = dict.fromkeys(("predicted", "truth", "error"), pl.Float64)
    schema = {"curve": pl.String, "share": pl.Float64, "method": pl.String, **numbers, "verdict": pl.String}
    return pl.DataFrame(rows, schema, orient="row")


def null_curves(curves: pl.DataFrame, skip_steps: float = 100, smoothing: str = "none", seed: int = 0) -> pl.DataFrame:
    """Null curves: each curve's power law with the curve's noise, and without a break: curve, step, loss.

    The noise is the residuals of two breaks, resampled in blocks. Curves too short to be fitted are left out.

    Raises UserError if no curve is long enough, or the data are not loss curves.
    """
    parts = []
    for number, ((curve,), rows) in enumerate(curves.group_by("curve", maintain_order=True)):
        step, loss = rows.sort("step").select(pl.col("step", "loss").cast(pl.Float64)).get_columns()
        t, smoothed = prepare(step, loss, smoothing, skip_steps)
        if len(t) < MIN_POINTS:
            continue
        x, raw = np.log(step.filter(step > 0).to_numpy()), np.log(loss.filter(step > 0).to_numpy())
        log_steps, y = np.log(t), np.log(smoothed)[None]
        power_law, two_breaks = fit(log_steps, y, 0)(x)[0], fit(log_steps, y, 2)(x)[0]
        noise = raw - two_breaks
        late = noise[x > np.log(max(skip_steps, 1))]
        drawn = moved_draws(late, np.ones(len(late)), max(1, round(len(late) ** (1 / 3))), 1, seed + number)[0]
        noise = np.concatenate([np.zeros(len(x) - len(late)), drawn])
        parts.append(
            pl.DataFrame({"curve": [curve] * len(x), "step": np.exp(x).round(), "loss": np.exp(power_law + noise)})
        )
    if not parts:
        raise UserError(f"no curve has {MIN_POINTS} points after step {skip_steps:g}: log more often, or skip fewer")
    return pl.concat(parts)


def claims(points: pl.DataFrame, share: float, skip_steps: float) -> pl.DataFrame:
    """One power law fitted to the first `share` of each prepared curve and extrapolated; and a fit with one break.

    Rows: curve, step, loss, method (`one power law`, `one break`); the second uses the whole curve. Curves with fewer
    than 2 points in that share, or 12 in all, are left out.

    Raises UserError if that leaves none.
    """
    parts = []
    for (curve,), rows in points.group_by("curve", maintain_order=True):
        step, loss = rows["step"].to_numpy().astype(float), rows["loss"].to_numpy()
        is_early = (step <= share * step[-1]) & (step > skip_steps)
        x = np.log(step[step > skip_steps])
        if is_early.sum() < 2 or len(x) < MIN_POINTS:
            continue
        power_law = fit(np.log(step[is_early]), np.log(loss[is_early])[None], 0)
        one_break = fit(x, np.log(loss[step > skip_steps])[None], 1)
        for method, fitted in (("one power law", power_law), ("one break", one_break)):
            line = {"curve": [curve] * len(x), "step": np.exp(x), "loss": np.exp(fitted(x)[0]), "method": method}
            parts.append(pl.DataFrame(line))
    if not parts:
        raise UserError(
            f"no curve has 2 points in its first {share:.0%} after step {skip_steps:g}; give a larger share"
        )
    return pl.concat(parts)

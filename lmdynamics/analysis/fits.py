"""Many curves fitted at once, one curve fitted in many ways, and what size does to the fits.

Mircea et al. 2025 (arXiv 2506.05447): scale lowers the loss at the break and raises the rate after it. A break is held
against the same curve without one, and against what a power law would have claimed.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.stats import linregress
from scipy.stats import t as student

from lmdynamics.analysis.broken_power_law import WIDTHS, fit
from lmdynamics.analysis.deceleration import FEWEST, LOCATED, Deceleration, fit_deceleration, headline
from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.analysis.loss_curves import SMOOTHINGS, moved_draws, prepare
from lmdynamics.errors import UserError
from lmdynamics.jobs import cores_here, map_in_processes
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

    Raises UserError if a column is missing, there is no curve, the smoothing is unknown, or `workers` is below 1.
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


QUANTITIES = ("loss_at_break", "rate_after_break", "step_at_break", "final_loss")


def power_laws(fits: pl.DataFrame, quantities: Sequence[str] = QUANTITIES) -> pl.DataFrame:
    """Each quantity as a power of size, q = a · parameters^exponent, by least squares in log-log over sizes.

    `fits`: a row per curve with `parameters` and the quantities. Seeds of one size are averaged (in log) first: they
    share whatever else sets that size apart from the power law, so they do not count as further sizes. Rows: quantity,
    a, exponent, low, high (95 %, Student's t, sizes less two degrees of freedom), p (of no dependence on size), curves,
    sizes. Curves whose quantity is not positive cannot be powers, and are left out. Below 3 sizes there is no interval
    and no p; below 3 curves or 2 sizes all numbers are null.
    """
    need_columns(fits, ["parameters", *quantities], "power laws over sizes")
    rows = []
    for quantity in quantities:
        kept = fits.filter(pl.col(quantity).is_finite() & (pl.col(quantity) > 0))
        means = kept.group_by("parameters", maintain_order=True).agg(pl.col(quantity).log().mean())
        row: dict = {"quantity": quantity, "curves": len(kept), "sizes": len(means)}
        if len(kept) >= 3 and len(means) > 1:
            found = linregress(np.log(means["parameters"].to_numpy()), means[quantity].to_numpy())
            row |= {"a": np.exp(found.intercept), "exponent": found.slope}
            if len(means) > 2:
                reach = student.ppf(0.975, len(means) - 2) * found.stderr
                row |= {"low": found.slope - reach, "high": found.slope + reach, "p": found.pvalue}
        rows.append(row)
    numbers = dict.fromkeys(("a", "exponent", "low", "high", "p"), pl.Float64)
    return pl.DataFrame(rows, {"quantity": pl.String, **numbers, "curves": pl.Int64, "sizes": pl.Int64})


def split_gains(fits: pl.DataFrame) -> pl.DataFrame:
    """How much of the lower final loss of each size, against the next smaller one, each part of the fit explains.

    log L̂_T = log L_d + r_d (log t_d - log T): between two sizes at one T the gain in log loss is a part from L_d, one
    from r_d and one from t_d; where a product changes, each factor's part is taken at the mean of the other. `fits`: a
    row per size with size (name), parameters, loss_at_break, rate_after_break, step_at_break, last_step, final_loss
    (as measured).

    Rows: smaller, larger, part (`L_d`, `r_d`, `t_d`, `not explained`), gain (log loss; the larger is better where it
    is positive). The four parts add up to the measured gain.

    Raises UserError if a size lacks a number, or sizes ended at different steps: the same T is meant.
    """
    columns = ["size", "parameters", "loss_at_break", "rate_after_break", "step_at_break", "last_step", "final_loss"]
    need_columns(fits, columns, "splitting gains")
    if missing := [name for name in columns if fits[name].null_count()]:
        of = fits.filter(pl.col(missing[0]).is_null())["size"][0]
        raise UserError(f"{of} has no {missing[0]}; gains are split between sizes that have all of them: leave it out")
    if fits["last_step"].max() > 1.02 * fits["last_step"].min():
        raise UserError(
            f"the curves end between steps {fits['last_step'].min():,.0f} and {fits['last_step'].max():,.0f}; gains "
            "are compared at one step: cut them to the shortest"
        )
    ordered = fits.sort("parameters").to_dicts()
    rows = []
    for a, b in pairwise(ordered):
        past = [np.log(each["last_step"] / each["step_at_break"]) for each in (a, b)]
        rates = [each["rate_after_break"] for each in (a, b)]
        parts = {
            "L_d": np.log(a["loss_at_break"] / b["loss_at_break"]),
            "r_d": (rates[1] - rates[0]) * (past[0] + past[1]) / 2,
            "t_d": (past[1] - past[0]) * (rates[0] + rates[1]) / 2,
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
    """The final loss as seen from the first part of training, against what it came to be.

    `frame`: curve, step, loss. For each curve and share, the steps up to share · T are fitted, and the fit read at T:
    with one break, and, as controls, with one power law and with no fit at all (the loss seen last). A break that is
    not there yet cannot be fitted: then one break may be far worse than its controls.

    Rows: curve, share, method (`one break`, `one power law`, `last loss seen`), predicted, truth, error (log
    predicted / truth), verdict (of the fit with one break). Shares with too few points are left out.
    """
    need_columns(frame, ["curve", "step", "loss"], "early prediction")
    rows = []
    for (name,), curve in frame.group_by("curve", maintain_order=True):
        step, loss = (curve[column].cast(pl.Float64).to_numpy() for column in ("step", "loss"))
        kept, smoothed = prepare(step, loss, smoothing, skip_steps)
        if len(kept) < FEWEST:
            continue
        end, truth = kept[-1], smoothed[-1]
        for share in shares:
            seen = step <= share * end
            at, early = prepare(step[seen], loss[seen], smoothing, skip_steps)
            if len(at) < FEWEST:
                continue
            made = fit_deceleration(step[seen], loss[seen], smoothing=smoothing, skip_steps=skip_steps, resamples=0)
            straight = fit(np.log(at), np.log(early)[None], 0)
            told = {
                "one break": made.predict(float(end)),
                "one power law": float(np.exp(straight(np.log([end]))[0, 0])),
                "last loss seen": float(early[-1]),
            }
            rows += [
                (name, share, way, value, float(truth), float(np.log(value / truth)), made.verdict)
                for way, value in told.items()
            ]
    numbers = dict.fromkeys(("predicted", "truth", "error"), pl.Float64)
    schema = {"curve": pl.String, "share": pl.Float64, "method": pl.String, **numbers, "verdict": pl.String}
    return pl.DataFrame(rows, schema, orient="row")


def straightened(curves: pl.DataFrame, skip_steps: float = 100, smoothing: str = "none", seed: int = 0) -> pl.DataFrame:
    """The control: each curve's own power law, with the curve's own noise, and no break: curve, step, loss.

    The noise is what two breaks leave of the raw curve, in blocks from anywhere along it. Curves too short to be
    fitted are left out.

    Raises UserError if no curve is long enough, or one cannot be read as one.
    """
    parts = []
    for number, ((curve,), rows) in enumerate(curves.group_by("curve", maintain_order=True)):
        step, loss = rows.sort("step").select(pl.col("step", "loss").cast(pl.Float64)).get_columns()
        kept, smoothed = prepare(step, loss, smoothing, skip_steps)
        if len(kept) < FEWEST:
            continue
        x, raw = np.log(step.filter(step > 0).to_numpy()), np.log(loss.filter(step > 0).to_numpy())
        at, y = np.log(kept), np.log(smoothed)[None]
        straight, bent = fit(at, y, 0)(x)[0], fit(at, y, 2)(x)[0]
        noise = raw - bent
        apart = noise[x > np.log(max(skip_steps, 1))]
        drawn = moved_draws(apart, np.ones(len(apart)), max(1, round(len(apart) ** (1 / 3))), 1, seed + number)[0]
        noise = np.concatenate([np.zeros(len(x) - len(apart)), drawn])
        parts.append(
            pl.DataFrame({"curve": [curve] * len(x), "step": np.exp(x).round(), "loss": np.exp(straight + noise)})
        )
    if not parts:
        raise UserError(f"no curve has {FEWEST} points after step {skip_steps:g}: log more often, or skip fewer steps")
    return pl.concat(parts)


def claims(points: pl.DataFrame, share: float, skip_steps: float) -> pl.DataFrame:
    """What one power law, fitted to the first `share` of each prepared curve, says of the rest; and one break's fit.

    Rows: curve, step, loss, method (`one power law`, `one break`); the second sees the whole curve. Curves with fewer
    than 2 points in that share, or 12 in all, are left out.

    Raises UserError if that leaves none.
    """
    parts = []
    for (curve,), rows in points.group_by("curve", maintain_order=True):
        step, loss = rows["step"].to_numpy().astype(float), rows["loss"].to_numpy()
        seen = (step <= share * step[-1]) & (step > skip_steps)
        x = np.log(step[step > skip_steps])
        if seen.sum() < 2 or len(x) < FEWEST:
            continue
        law = fit(np.log(step[seen]), np.log(loss[seen])[None], 0)
        bent = fit(x, np.log(loss[step > skip_steps])[None], 1)
        for method, made in (("one power law", law), ("one break", bent)):
            line = {"curve": [curve] * len(x), "step": np.exp(x), "loss": np.exp(made(x)[0]), "method": method}
            parts.append(pl.DataFrame(line))
    if not parts:
        raise UserError(
            f"no curve has 2 points in its first {share:.0%} after step {skip_steps:g}; give a larger share"
        )
    return pl.concat(parts)

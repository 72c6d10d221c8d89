"""What size does to a loss curve: L_d and r_d against parameters, whose gain is whose, and how early one can tell.

Mircea et al. 2025 (arXiv 2506.05447): scale lowers the loss at the break and raises the rate after it.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from scipy.stats import linregress
from scipy.stats import t as student

from lmdynamics.analysis.broken_power_law import fit
from lmdynamics.analysis.deceleration import FEWEST, fit_deceleration
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.preparation import prepare
from lmdynamics.errors import UserError

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

    Raises
    ------
    UserError
        If a size lacks a number, or sizes ended at different steps: the same T is meant.
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

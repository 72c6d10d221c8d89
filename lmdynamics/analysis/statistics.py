"""Several seeds as one number with its interval, and whether a condition differs from its baseline.

As in Ankner et al. 2023: a few pretraining seeds per condition, one-sided t-tests, Hochberg's (1988) step-up over the
conditions. The seed is the unit: repeated measurements of one run (fine-tuning trials, tasks) are averaged
within the seed first, since they do not show the variation between runs.
"""

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy import special, stats
from scipy.optimize import brentq

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.errors import UserError, did_you_mean

LEVEL = 0.05  # significance level after Hochberg's correction
NO_DIRECTION = "no direction declared: neither better nor worse"


def mean_over_seeds(frame: pl.DataFrame, by: str | list[str], value: str, seed: str = "seed") -> pl.DataFrame:
    """Mean of `value` over seeds for each combination of the columns `by`: *by, mean, low, high, n, sd.

    The interval is Student's, 95 %. With one seed, the interval and sd are null.

    Raises UserError if a column is missing, or a value is missing or not finite.
    """
    by = [by] if isinstance(by, str) else list(by)
    rows = _one_per_seed(frame, by, value, seed, f"mean {value} over seeds")
    table = rows.group_by(by, maintain_order=True).agg(
        pl.col(value).mean().alias("mean"), pl.len().cast(pl.Int64).alias("n"), pl.col(value).std().alias("sd")
    )
    n = table["n"].to_numpy()
    t = pl.Series("t", stats.t.ppf(0.975, np.maximum(n - 1, 1)))
    reach = t * table["sd"] / table["n"].sqrt()  # null if sd is null
    low, high = (table["mean"] - reach).alias("low"), (table["mean"] + reach).alias("high")
    return table.with_columns(low, high).select(*by, "mean", "low", "high", "n", "sd")


def mean_of_all_seeds(rows: pl.DataFrame) -> pl.DataFrame:
    """Mean `value` of each condition at each step: condition, step, value, n, seeds.

    Null if a seed has no value, since a mean of fewer seeds would jump.
    """
    seeds = rows.group_by("condition").agg(seeds=pl.col("seed").n_unique())
    value = pl.col("value")
    mean = rows.group_by("condition", "step", maintain_order=True).agg(value.mean(), n=value.count())
    mean = mean.join(seeds, "condition", maintain_order="left")
    complete = pl.when(pl.col("n") >= pl.col("seeds")).then("value")
    return mean.with_columns(value=complete).sort("step", maintain_order=True)


def compare_to_baseline(
    frame: pl.DataFrame,
    baseline: str,
    condition: str = "condition",
    value: str = "score",
    *,
    higher_is_better: bool | None = True,
    paired: bool = False,
    seed: str = "seed",
) -> pl.DataFrame:
    """Every other condition against `baseline`, one row each in order of appearance, over seeds.

    condition, n, n_baseline; difference of means (condition minus baseline) with its 95 % interval low, high; p, of
    the one-sided t-test that the condition is better; p_hochberg, p adjusted for the number of conditions; g,
    Hedges' standardised difference with its small-sample correction, and the 95 % interval g_low, g_high of the true
    one, from the noncentral t distribution; verdict.

    Unpaired, the test is Welch's, which allows unequal variances (g pools them). `paired` compares equal seeds, if the
    same seed means the same initial weights and data: g is then in standard deviations of the difference. The verdict
    is "better" or "worse" if the one-sided test is significant at 5 % after Hochberg's correction, otherwise
    "undecided". With one seed in a condition or the baseline, or without spread between seeds, there is no test: p,
    intervals and g are null, and the verdict gives the reason. If `higher_is_better` is None, there is no p, and the
    verdict states this.

    Raises UserError if a column is missing, a value is missing or not finite, the baseline is unknown or the only
    condition, or paired seeds differ.
    """
    subject = f"{value} against {baseline!r}"
    rows = _one_per_seed(frame, [condition], value, seed, subject)
    conditions = rows[condition].unique(maintain_order=True).to_list()
    if baseline not in conditions:
        raise UserError(f"{subject}: no {condition} {baseline!r}{did_you_mean(str(baseline), map(str, conditions))}")
    if len(conditions) < 2:
        raise UserError(f"{subject}: there is no other {condition}; add at least one to compare")
    groups = {name: rows.filter(pl.col(condition) == name).sort(seed) for name in conditions}
    base = groups.pop(baseline)
    table = []
    for name, scores in groups.items():
        if paired and scores[seed].to_list() != base[seed].to_list():
            raise UserError(
                f"{subject}: {name!r} has the seeds {_list(scores[seed])}, the baseline {_list(base[seed])}; "
                "pairing needs equal seeds: leave the other seeds out, or compare unpaired"
            )
        compared = _compare(
            scores[value].to_numpy(), base[value].to_numpy(), -1 if higher_is_better is False else 1, paired
        )
        if higher_is_better is None and compared["p"] is not None:
            compared |= {"p": None, "verdict": NO_DIRECTION}
        table.append({condition: name, "n": len(scores), "n_baseline": len(base)} | compared)
    numbers = ["difference", "low", "high", "p", "p_hochberg", "g", "g_low", "g_high"]
    schema = dict.fromkeys(["n", "n_baseline"], pl.Int64) | dict.fromkeys(numbers, pl.Float64) | {"verdict": pl.String}
    return decide(pl.DataFrame(table, schema={condition: rows.schema[condition]} | schema))


def decide(table: pl.DataFrame) -> pl.DataFrame:
    """`p_hochberg` and the verdict of every row with a `p`, corrected for the number of tests (Hochberg 1988).

    The probability that any condition is wrongly called better is then 5 %, and likewise for worse. `p_hochberg` is
    one-sided, in the direction of the difference.
    """
    p = table["p"].drop_nulls().to_numpy()
    better, worse = hochberg(p), hochberg(1 - p)
    verdicts = np.where(better < LEVEL, "better", np.where(worse < LEVEL, "worse", "undecided"))
    indices, adjusted, decided = iter(range(len(p))), [], []
    for tested, verdict in table.select(pl.col("p").is_not_null(), "verdict").iter_rows():
        index = next(indices) if tested else None
        adjusted.append(None if index is None else float(min(better[index], worse[index])))
        decided.append(verdict if index is None else str(verdicts[index]))
    return table.with_columns(
        pl.Series("p_hochberg", adjusted, dtype=pl.Float64), pl.Series("verdict", decided, dtype=pl.String)
    )


def hochberg(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """P-values adjusted by Hochberg's (1988) step-up: the k-th largest times k, but at most that of a larger one."""
    order = np.argsort(p)[::-1]
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(p[order] * np.arange(1, len(p) + 1))
    return adjusted


def _compare(
    scores: Float[np.ndarray, " n"], base: Float[np.ndarray, " m"], sign: int, paired: bool
) -> dict[str, float | str | None]:
    """Difference, interval, p and effect size of one condition; `decide` adds `p_hochberg` and the verdict."""
    n, m, difference = len(scores), len(base), float(scores.mean() - base.mean())
    row = dict.fromkeys(["low", "high", "p", "p_hochberg", "g", "g_low", "g_high"]) | {"difference": difference}
    if min(n, m) < 2:
        return row | {"verdict": "one seed: undecided"}
    if paired:
        variances, df, root = (scores - base).var(ddof=1) / n, n - 1, 1 / np.sqrt(n)
        error = error_pooled = np.sqrt(variances)
        effect_df = df
    else:
        variances_of_mean = np.array([scores.var(ddof=1) / n, base.var(ddof=1) / m])
        error = np.sqrt(variances_of_mean.sum())
        effect_df, root = n + m - 2, np.sqrt(1 / n + 1 / m)
        pooled = ((n - 1) * scores.var(ddof=1) + (m - 1) * base.var(ddof=1)) / effect_df
        error_pooled = np.sqrt(pooled) * root
        df = variances_of_mean.sum() ** 2 / (variances_of_mean**2 / [n - 1, m - 1]).sum() if error > 0 else effect_df
    if error <= 1e-12 * max(np.abs(scores).max(), np.abs(base).max()):  # rounding errors
        return row | {"verdict": "no spread between seeds: undecided"}
    reach = stats.t.ppf(0.975, df) * error
    t = difference / error_pooled
    low, high = (float(bound * root) for bound in noncentrality(t, effect_df))
    return row | {
        "low": difference - reach,
        "high": difference + reach,
        "p": float(stats.t.sf(sign * difference / error, df)),
        "g": float(t * root * small_sample(effect_df)),
        "g_low": low,
        "g_high": high,
    }


def small_sample(df: float) -> float:
    """Hedges' (1981) factor that makes a standardised difference unbiased; .80 at 4 degrees of freedom."""
    return float(np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / np.sqrt(df / 2)) if df > 1 else 0.0


def noncentrality(t: float, df: float) -> tuple[float, float]:
    """95 % interval of the noncentrality parameter of the t distribution for an observed `t`.

    P(T <= t) is the mean of Phi(t s - nc) over s, the estimate of a standard deviation of 1, at 4,000 quantiles:
    `scipy.stats.nct` returns NaN for the large t of two or three almost equal seeds.
    """
    spread = np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, df) / df)
    width = 10 + abs(t) * spread.max()
    low, high = (
        brentq(lambda nc, tail=tail: special.ndtr(t * spread - nc).mean() - tail, -width, width)
        for tail in (0.975, 0.025)
    )
    return low, high


def _one_per_seed(frame: pl.DataFrame, by: list[str], value: str, seed: str, subject: str) -> pl.DataFrame:
    need_columns(frame, [*by, seed, value], subject)
    bad = frame.filter(pl.col(value).cast(pl.Float64).is_finite().fill_null(False).not_())
    if len(bad):
        place = ", ".join(f"{name} {bad[name][0]}" for name in [*by, seed])
        raise UserError(f"{subject}: no number for {place} ({len(bad)} row(s) in all); leave those out and report it")
    if frame[seed].null_count():
        raise UserError(f"{subject}: {frame[seed].null_count()} row(s) have no {seed}; give every row a seed")
    return frame.group_by([*by, seed], maintain_order=True).agg(pl.col(value).cast(pl.Float64).mean())


def _list(seeds: pl.Series) -> str:
    return ", ".join(map(str, seeds))

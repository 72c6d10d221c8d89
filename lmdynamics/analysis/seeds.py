"""What seeds share: how far two runs' predictions differ by group, and whether the runs form one group or two.

The test of two groups is Engelman and Hartigan's (1969, JASA 64): the numbers are cut where the two parts differ most,
and that cut is compared with those of simulated numbers of one normal distribution. It needs no mixture to be fitted,
and its critical values depend on the number of seeds alone. Steps of onsets are checkpoints, so simulated ones are
rounded up to a checkpoint as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.special import stdtr

from lmdynamics.analysis.intervals import as_columns, interval, need_columns, need_numbers, ratio, row_sums, with_groups
from lmdynamics.analysis.statistics import LEVEL, hochberg, mean_over_seeds
from lmdynamics.errors import UserError

SMALLEST = 3  # seeds in a group: fewer are outliers, not a group
MIN_SEEDS = 8  # fewer leave hardly a cut with three seeds on each side
POWER = 0.8
UNDECIDED = "undecided"
SIMULATIONS = 4000


def divergence_by_group(
    frame: pl.DataFrame, groups: pl.DataFrame | None = None, resamples: int = 500, seed: int = 0
) -> pl.DataFrame:
    """Means over the tokens of each group, from `divergence_over_training`: step, group, tokens, compared, value, low,
    high.

    `compared`: what the run is compared with, or `loss`. `groups`: as for `with_groups`; None: all tokens. Intervals:
    95 %, bootstrap over rows of text; a comparison that a step lacks has no row there.
    """
    need_columns(frame, ["step", "row", "token", "loss"], "divergence by group")
    names = [name for name, kind in frame.schema.items() if kind.is_float()]
    sums = {name: pl.col(name).cast(pl.Float64).sum() for name in names}
    sums |= {f"{name}_n": pl.col(name).count() for name in names} | {"rows": pl.lit(1)}
    grouped = with_groups(frame, groups, "divergence by group")
    totals = row_sums(grouped, ["step"], sums, within=["group"], resamples=resamples, seed=seed)
    keys, parts = totals.keys.with_columns(pl.col("group").cast(pl.String)), []
    for name in names:
        count = totals.total(f"{name}_n")
        low, high = interval(ratio(totals.drawn(name), totals.drawn(f"{name}_n")), totals.total("rows"))
        numbers = as_columns({"value": ratio(totals.total(name), count), "low": low, "high": high})
        compared = [pl.Series("tokens", count.astype(np.int64)), pl.Series("compared", [name] * len(keys))]
        parts.append(keys.hstack([*compared, *numbers]))
    return pl.concat(parts).drop_nulls("value")


@dataclass(frozen=True)
class Groups:
    """Whether some seeds are one group or two. `low`, `high`: the means of the two parts that differ most, which have
    `sizes` seeds; None without a test.

    `found`: the distance, in standard deviations within a group, from which two equal groups of as many seeds in all
    are found with a probability of 80 %; `found_uneven`: if one has a quarter of the seeds. Infinite: at no distance.
    """

    seeds: int
    mean: float
    spread: float  # standard deviation over seeds
    low: float | None
    high: float | None
    sizes: tuple[int, int]
    p: float | None  # None: too few seeds for a test
    found: float
    found_uneven: float

    @property
    def verdict(self) -> str:
        return UNDECIDED if self.p is None or self.p >= LEVEL else "two groups"


def one_or_two(values: Sequence[float], grid: Sequence[float] = (), tests: int = 1, seed: int = 0) -> Groups:
    """Whether numbers of several seeds are one group or two; for onsets, the logarithms of their steps.

    `grid`: the only values that can occur (logarithms of checkpoints), if there are few. `tests`: how many are made
    together; p is multiplied by it (Bonferroni). No test below 8 seeds, or if all values are equal. A p below 5 %
    rejects one normal distribution; it does not prove two: a skewed distribution is rejected, too.

    Raises UserError if a value is not finite, or there is none.
    """
    x = np.sort(np.asarray(values, dtype=float))
    if not len(x) or not np.isfinite(x).all():
        raise UserError(
            f"one group or two: {len(x)} values, of which some are no numbers; leave those out, report them"
        )
    n, spread = len(x), float(x.std(ddof=1)) if len(x) > 1 else 0.0
    if n < MIN_SEEDS or not spread:
        return Groups(n, float(x.mean()), spread, None, None, (n, 0), None, np.inf, np.inf)
    share, cut = _best_cut(x[None])
    null_share = _one_group(n, seed)
    if len(grid):  # otherwise place and scale do not matter
        null = np.random.default_rng(seed).normal(x.mean(), spread, (SIMULATIONS, n))
        null_share, _ = _best_cut(np.sort(_rounded_up(null, np.sort(np.asarray(grid, dtype=float))), axis=1))
    p = (1 + (null_share >= share - 1e-12).sum()) / (1 + SIMULATIONS)
    parts = x[: cut[0]], x[cut[0] :]
    found = (detectable(n, smaller, tests) for smaller in (0.5, 0.25))
    ends, p = (float(part.mean()) for part in parts), min(1.0, float(p) * tests)
    return Groups(n, float(x.mean()), spread, *ends, tuple(map(len, parts)), p, *found)


@lru_cache(maxsize=64)
def _one_group(n: int, seed: int) -> Float[np.ndarray, " samples"]:
    """The largest share of the variance between two parts of one normal group of `n` seeds, simulated."""
    return _best_cut(np.sort(np.random.default_rng(seed).normal(size=(SIMULATIONS, n)), axis=1))[0]


def _best_cut(x: Float[np.ndarray, "samples n"]) -> tuple[np.ndarray, np.ndarray]:
    """Of sorted samples: the largest share of the variance between two parts, and the size of the lower part."""
    n, sizes = x.shape[1], np.arange(SMALLEST, x.shape[1] - SMALLEST + 1)
    x = x - x.mean(1, keepdims=True)
    lower = np.cumsum(x, axis=1)[:, sizes - 1]
    between = lower**2 * n / (sizes * (n - sizes))  # the parts' sums are opposite
    share = ratio(between, np.broadcast_to((x**2).sum(1, keepdims=True), between.shape))
    share = np.nan_to_num(share)  # equal values have no parts
    return share.max(1), sizes[share.argmax(1)]


def _rounded_up(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    return grid[np.searchsorted(grid, x).clip(0, len(grid) - 1)]


@lru_cache(maxsize=64)
def detectable(n: int, smaller: float = 0.5, tests: int = 1, seed: int = 0) -> float:
    """The least distance of two normal groups, in standard deviations within each, that is found among `n` seeds.

    Found: with a probability of 80 %, at a level of 5 % over all `tests`, by simulation. `smaller`: the share of the
    smaller group. Infinite if no distance up to 12 is.
    """
    if n < 2 * SMALLEST:
        return float("inf")
    random = np.random.default_rng(seed)
    noise = random.normal(size=(SIMULATIONS, n))
    critical = np.quantile(_one_group(n, seed + 1), 1 - LEVEL / tests)
    upper = np.arange(n) < max(1, round(smaller * n))
    for distance in np.arange(1, 12.25, 0.25):
        if (_best_cut(np.sort(noise + distance * upper, axis=1))[0] > critical).mean() >= POWER:
            return float(distance)
    return float("inf")


def groups_by_step(curves: pl.DataFrame, low: float = 0.1, high: float = 0.9, seed: int = 0) -> pl.DataFrame:
    """`one_or_two` at every step at which the mean over seeds is between two shares of its rise.

    `curves`: seed, step, value. Rows: step, mean, spread, low, high (means of the parts that differ most), p, and
    p_hochberg, adjusted for the number of steps. A steep curve that is only shifted between seeds spreads them to both
    of its ends: two groups of values do not show two groups of onsets.
    """
    need_numbers(curves, ["seed", "step", "value"], "groups by step")
    means = curves.group_by("step").agg(pl.col("value").mean()).sort("step")
    share = (means["value"] - means["value"][0]) / ((means["value"].max() - means["value"][0]) or 1.0)
    rows = []
    for step, mean in means.filter((share > low) & (share < high)).iter_rows():
        groups = one_or_two(curves.filter(step=step)["value"].to_list(), seed=seed)
        rows.append((step, mean, groups.spread, groups.low, groups.high, groups.p))
    numbers = dict.fromkeys(("mean", "spread", "low", "high", "p"), pl.Float64)
    table = pl.DataFrame(rows, {"step": pl.Int64, **numbers}, orient="row")
    tested = table["p"].drop_nulls()
    if len(tested) < len(table) or table.is_empty():
        return table.with_columns(p_hochberg=pl.lit(None, pl.Float64))
    return table.with_columns(p_hochberg=hochberg(tested.to_numpy()))


def peak_of_the_others(curves: pl.DataFrame) -> pl.DataFrame:
    """For each pair of seeds, the step at which the mean of all other pairs is largest: seed, step; none for one pair.

    A pair's own largest value would be above its neighbours by chance.
    """
    need_numbers(curves, ["seed", "step", "value"], "the peak of a divergence")
    rows = []
    for seed in curves["seed"].unique(maintain_order=True):
        others = curves.filter(pl.col("seed") != seed).group_by("step").agg(pl.col("value").mean()).sort("step")
        rows += [(seed, others["step"][others["value"].arg_max()])] if len(others) else []
    return pl.DataFrame(rows, {"seed": curves.schema["seed"], "step": pl.Int64}, orient="row")


def spans(curves: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Spans of steps to ask for a rise or a fall: seed, what, start, end.

    All of training, the doubling up to the peak of the other pairs, the doubling after it, the window in which UAS
    rises (`windows`: seed, start, end), and the last doubling of training. Each end is the nearest measured step, by
    ratio; a span between one and the same step is left out.
    """
    peak, each = peak_of_the_others(curves), curves.select(pl.col("seed").unique(maintain_order=True))
    first, last = pl.lit(curves["step"].min()), pl.lit(curves["step"].max())
    parts = [
        each.select("seed", what=pl.lit("from the first step to the last"), start=first, end=last),
        peak.select("seed", what=pl.lit("up to the peak"), start=pl.col("step") / 2, end="step"),
        peak.select("seed", what=pl.lit("after the peak"), start="step", end=2 * pl.col("step")),
        windows.select("seed", pl.lit("while UAS rises").alias("what"), "start", "end"),
        each.select("seed", what=pl.lit("the last doubling"), start=last / 2, end=last),
    ]
    steps = np.array(sorted(curves["step"].unique()))
    log = np.log(np.maximum(steps, 0.5))

    def nearest(column: pl.Series) -> pl.Series:
        distance = np.abs(np.log(np.maximum(column.to_numpy(), 0.5))[:, None] - log)
        return pl.Series(steps[distance.argmin(1)], dtype=pl.Int64)

    joined = pl.concat(part.with_columns(pl.col("start", "end").cast(pl.Float64)) for part in parts)
    measured = joined.with_columns(pl.col("start", "end").map_batches(nearest, return_dtype=pl.Int64))
    return measured.filter(pl.col("start") < pl.col("end"))


def changes(curves: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """How much the divergence changes over some `spans`: what, mean, low, high, n, p_hochberg, verdict; over pairs.

    `curves`: seed, step, value; `windows`: as for `spans`. The interval is Student's, 95 %. `p_hochberg`: of the
    two-sided t-test, adjusted for the number of spans. Verdict: rises or falls if it is below 5 %, otherwise undecided.
    """
    at = curves.select("seed", "step", "value")
    moved = spans(curves, windows)
    for end in ("start", "end"):
        renamed = at.rename({"step": end, "value": f"at_{end}"})
        moved = moved.join(renamed, on=["seed", end], maintain_order="left")
    table = mean_over_seeds(moved.with_columns(change=pl.col("at_end") - pl.col("at_start")), "what", "change")
    t = table["mean"].abs() / (table["sd"] / table["n"].sqrt())
    t = t.fill_null(0).fill_nan(0).to_numpy()  # one pair, or no change in any: no test
    p = 2 * stdtr(np.maximum(table["n"].to_numpy() - 1, 1), -t)
    decided, sign = pl.col("p_hochberg") < LEVEL, pl.col("mean") > 0
    verdict = pl.when(decided & sign).then(pl.lit("rises")).when(decided).then(pl.lit("falls"))
    table = table.with_columns(p_hochberg=hochberg(p)).with_columns(verdict=verdict.otherwise(pl.lit(UNDECIDED)))
    return table.drop("sd")

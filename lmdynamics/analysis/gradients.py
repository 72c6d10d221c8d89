"""Gradients over training: how far gradients of tokens and rows cancel, and what one optimizer step changes.

One optimizer step is measured on several batches: how far the changes cancel, how well first order predicts them, and
how they compare with a random step of the same size. Each batch makes a different step, so D, M and the mean change are
computed within a batch and averaged over batches, with Student's t. |ΔL| = M (1 - D) is exact within a batch, and
approximate for the means. Small models saturate first on rare tokens.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy import stats

from lmdynamics.analysis.intervals import (
    as_columns,
    interval,
    need_columns,
    need_numbers,
    ratio,
    resample_counts,
    row_sums,
    with_bounds,
    with_groups,
    with_interval,
)
from lmdynamics.analysis.zero_sum import interference
from lmdynamics.errors import UserError

COSINES = ("dissent", "cos_hidden_attractive", "cos_hidden_repulsive", "dissent_control")
MEANS = ("norm_attractive", "norm_repulsive", "norm_hidden", "probability")


def dissent_by_group(
    frame: pl.DataFrame,
    groups: pl.DataFrame | None,
    by: Sequence[str] = ("step",),
    resamples: int = 500,
    seed: int = 0,
) -> pl.DataFrame:
    """Means of the `Dissent` measures over the tokens of each group.

    `frame`: a trace of `Dissent`; `groups`: token, group (as in `frequency_groups`), or row, position, group; None: all
    tokens in one group, "all". Tokens in no group are in the group "other". Rows, sorted by group within each of `by`:
    *by, group, dissent, cos_hidden_attractive, cos_hidden_repulsive, dissent_control, each with _low and _high (95 %,
    bootstrap over rows of text), norm_attractive, norm_repulsive, norm_hidden, probability, tokens. Tokens without a
    cosine (a zero vector) are excluded from its mean, which is null if there are no others. With `step` in `by`,
    also change, change_low, change_high: of dissent since half that step, in the same resamples; null if that step was
    not measured.

    Raises UserError if a column is missing, there is no row, `groups` assigns two groups to a token, or no token has
    a group.
    """
    need_columns(frame, [*by, "row", *COSINES, *MEANS], "dissent by group")
    if frame.is_empty():
        raise UserError("dissent by group: there are no rows; trace the run first")
    grouped = with_groups(frame, groups, "dissent by group")
    numbers = {name: pl.col(name).cast(pl.Float64) for name in (*COSINES, *MEANS)}
    numbers = {name: pl.when(x.is_finite()).then(x) for name, x in numbers.items()}
    sums = {name: x.sum() for name, x in numbers.items()} | {f"{name}_n": x.count() for name, x in numbers.items()}
    sums |= {"tokens": pl.len(), "rows": pl.lit(1)}
    totals = row_sums(grouped, by, sums, within=["group"], resamples=resamples, seed=seed)
    columns = {}
    for name in numbers:
        columns[name] = ratio(totals.total(name), totals.total(f"{name}_n"))
        if name in COSINES:
            drawn = ratio(totals.drawn(name), totals.drawn(f"{name}_n"))
            columns |= with_bounds(name, columns[name], interval(drawn, totals.total("rows")))
            if name == "dissent" and "step" in by:
                changes = _since_half(totals.keys, columns[name], drawn, totals.total("rows"))
    if "step" in by:
        columns |= changes
    return totals.keys.hstack([*as_columns(columns), pl.Series("tokens", totals.total("tokens").astype(np.int64))])


def _since_half(
    keys: pl.DataFrame,
    value: Float[np.ndarray, " groups"],
    drawn: Float[np.ndarray, "resamples groups"],
    rows: Float[np.ndarray, " groups"],
) -> dict[str, Float[np.ndarray, " groups"]]:
    """The change of each group since half its step, with its interval; NaN if that step was not measured."""
    current = keys.with_row_index("now")
    half = current.with_columns(pl.col("step") * 2).rename({"now": "half"})
    rows_at, before = current.join(half, on=keys.columns, nulls_equal=True).select("now", "half").to_numpy().T
    changes = {name: np.full(len(keys), np.nan) for name in ("change", "change_low", "change_high")}
    changes["change"][rows_at] = value[rows_at] - value[before]
    bounds = interval(drawn[:, rows_at] - drawn[:, before], np.minimum(rows[rows_at], rows[before]))
    changes["change_low"][rows_at], changes["change_high"][rows_at] = bounds
    return changes


def towards_total(table: pl.DataFrame) -> pl.DataFrame:
    """Dissent at the end of each curve, and its direction; with a sentence for each curve and group.

    `table`: of `dissent_by_group`, by curve and step. The last step is compared with half of it: dissent `deepens`
    (towards -1) or `eases` if the 95 % interval of its change (paired, over the same rows of text) excludes 0, and is
    `undecided` otherwise. Rows: curve, group, step, dissent, dissent_low, dissent_high, dissent_control, change,
    change_low, change_high (null if half the step was not measured), verdict, sentence.
    """
    names = ["curve", "group", "step", "dissent", "dissent_low", "dissent_high", "dissent_control"]
    names += ["change", "change_low", "change_high"]
    need_columns(table, names, "total dissent")
    verdict = (
        pl.when(pl.col("change_high") < 0)
        .then(pl.lit("deepens"))
        .when(pl.col("change_low") > 0)
        .then(pl.lit("eases"))
        .otherwise(pl.lit("undecided"))
    )
    last = table.filter(pl.col("step") == pl.col("step").max().over("curve")).select(*names, verdict=verdict)
    return last.with_columns(pl.Series("sentence", [_describe(row) for row in last.to_dicts()], dtype=pl.String))


def _describe(row: dict) -> str:
    bounds = row["dissent_low"], row["dissent_high"]
    if row["dissent"] is None:
        return f"{row['curve']}, {row['group']}: no dissent at step {row['step']:,}, its vectors are zero"
    direction = "does not clearly move" if row["verdict"] == "undecided" else row["verdict"]
    change = with_interval(row["change"], (row["change_low"], row["change_high"]), "+.2f")
    comparison = "" if row["change"] is None else f", {direction} since step {row['step'] // 2:,} ({change})"
    control = "none" if row["dissent_control"] is None else f"{row['dissent_control']:.2f}"
    return (
        f"{row['curve']}, {row['group']}: dissent {with_interval(row['dissent'], bounds, '.2f')} at step "
        f"{row['step']:,}{comparison}; control {control}"
    )


def opposition_table(
    frame: pl.DataFrame, by: Sequence[str] = ("step", "part"), resamples: int = 500, seed: int = 0
) -> pl.DataFrame:
    """Mean cosine, and share of negative ones, over the pairs of different rows in each group.

    `frame`: a trace of `Opposition` (step, part, a, b, cosine). Rows: *by, cosine, negative, each with _low and _high,
    pairs. The 95 % intervals resample rows of text: a pair's weight is the product of the counts of its rows, since
    pairs that share a row are not independent.

    Raises UserError if a column is missing, or there are no two different rows.
    """
    need_columns(frame, [*by, "a", "b", "cosine"], "opposition of rows")
    pairs = frame.filter((pl.col("a") != pl.col("b")) & pl.col("cosine").is_finite())
    if pairs.is_empty():
        raise UserError("opposition of rows: there are no two different rows; trace Opposition on two or more")
    text_rows = pl.concat([pairs["a"], pairs["b"]]).unique().sort()
    position = {row: i for i, row in enumerate(text_rows)}
    counts = resample_counts(len(text_rows), resamples, seed).astype(np.float64)
    keys, columns = [], {f"{name}{end}": [] for name in ("cosine", "negative") for end in ("", "_low", "_high")}
    for key, part in pairs.group_by(by, maintain_order=True):
        a, b = (np.array([position[row] for row in part[side]]) for side in ("a", "b"))
        cosine = part["cosine"].to_numpy()
        weights = counts[:, a] * counts[:, b]
        for name, values in (("cosine", cosine), ("negative", (cosine < 0).astype(float))):
            drawn = ratio(weights @ values, weights.sum(1))
            low, high = interval(drawn[:, None], np.array([float(len(np.union1d(a, b)))]))
            for end, value in (("", values.mean()), ("_low", low[0]), ("_high", high[0])):
                columns[f"{name}{end}"].append(value)
        keys.append((*key, len(part)))
    schema = {name: pairs.schema[name] for name in by} | {"pairs": pl.Int64}
    table = pl.DataFrame(keys, schema, orient="row")
    numbers = as_columns({name: np.array(values, float) for name, values in columns.items()})
    return table.select(by).hstack([*numbers, table["pairs"]])


def cosine_spread(pairs: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """The distribution of the cosines of pairs of rows in each group: *by, mean, median, negative (a share), pairs, and
    the quantiles q05, q25, q75, q95."""
    cosine = pl.col("cosine").cast(pl.Float64)
    quantiles = {f"q{round(100 * q):02d}": cosine.quantile(q) for q in (0.05, 0.25, 0.75, 0.95)}
    return pairs.group_by(by, maintain_order=True).agg(
        mean=cosine.mean(), median=cosine.median(), negative=(cosine < 0).mean(), pairs=pl.len(), **quantiles
    )


QUANTITIES = ("interference", "magnitude", "mean_change", "first_order_interference", "slope", "correlation")
BOUNDED = ("interference", "magnitude", "mean_change", "first_order_interference")


def each_batch(changes: pl.DataFrame, by: Sequence[str] = ("step", "split", "direction")) -> pl.DataFrame:
    """A row for each batch: *by, batch, interference, magnitude, mean_change (nats per token), those of the changes
    predicted by first order (first_order_interference), slope and correlation of measured on predicted change, tokens.

    `changes`: of `OneStep` (batch, row, change, first_order, ...). Undefined values are null: interference if
    nothing changes, slope and correlation if all predicted changes are equal.

    Raises UserError if a column is missing, or a change is not finite.
    """
    need_numbers(changes, [*by, "batch", "change", "first_order"], "one step")
    x, y = pl.col("first_order").cast(pl.Float64), pl.col("change").cast(pl.Float64)
    sums = changes.group_by([*by, "batch"], maintain_order=True).agg(
        net=y.sum(),
        size=y.abs().sum(),
        predicted_net=x.sum(),
        predicted_size=x.abs().sum(),
        xx=(x - x.mean()).pow(2).sum(),
        yy=(y - y.mean()).pow(2).sum(),
        xy=((x - x.mean()) * (y - y.mean())).sum(),
        tokens=pl.len().cast(pl.Int64),
    )
    s = {name: sums[name].to_numpy().astype(float) for name in sums.columns if name not in (*by, "batch")}
    numbers = {
        "interference": interference(s["net"], s["size"]),
        "magnitude": s["size"] / s["tokens"],
        "mean_change": s["net"] / s["tokens"],
        "first_order_interference": interference(s["predicted_net"], s["predicted_size"]),
        "slope": ratio(s["xy"], s["xx"]),
        "correlation": ratio(s["xy"], np.sqrt(s["xx"] * s["yy"])),
    }
    return sums.select(*by, "batch").hstack([*as_columns(numbers), sums["tokens"]])


def over_batches(changes: pl.DataFrame, by: Sequence[str] = ("step", "split", "direction")) -> pl.DataFrame:
    """D, M and the mean change of one step, as means over batches: a row for each of `by`, in order of appearance.

    *by, interference, magnitude, mean_change, first_order_interference, each with _low and _high (95 %, Student's t
    over batches; null with one batch; D within 0 and 1, M above 0), slope and correlation (of the measured change on
    the first-order prediction), tokens (total), batches. Held-out rows are the same for every batch, so their interval
    is over possible steps, not over text.

    Raises UserError if a column is missing, or a change is not finite.
    """
    batches = each_batch(changes, by)
    table = batches.group_by(by, maintain_order=True).agg(
        *(pl.col(name).mean() for name in QUANTITIES),
        *(pl.col(name).std().alias(f"{name}_sd") for name in BOUNDED),
        *(pl.col(name).count().alias(f"{name}_n") for name in BOUNDED),
        pl.col("tokens").sum(),
        pl.len().cast(pl.Int64).alias("batches"),
    )
    columns = []
    for name in QUANTITIES:
        columns.append(table[name])
        if name in BOUNDED:
            reach = _reach(table[f"{name}_sd"].to_numpy(), table[f"{name}_n"].to_numpy())
            value = table[name].cast(pl.Float64).to_numpy()
            lowest, highest = {"mean_change": (-np.inf, np.inf), "magnitude": (0, np.inf)}.get(name, (0, 1))
            low, high = np.maximum(value - reach, lowest), np.minimum(value + reach, highest)
            columns += as_columns({f"{name}_low": low, f"{name}_high": high})
    return table.select(by).hstack([*columns, table["tokens"], table["batches"]])


def against_random(changes: pl.DataFrame, by: Sequence[str] = ("step", "split")) -> pl.DataFrame:
    """The optimizer's update compared with a random step of the same size, batch by batch.

    Rows: *by, quantity (interference, magnitude, mean_change), update, random (means over batches), difference (update
    minus random) with low, high (95 %, Student's t over batches, paired; null with one), batches (that have both).

    Raises UserError if a column is missing, a change is not finite, or no batch has both directions.
    """
    batches = each_batch(changes, [*by, "direction"])
    sides = [batches.filter(pl.col("direction") == direction) for direction in ("update", "random")]
    paired = sides[0].join(sides[1], on=[*by, "batch"], suffix="_random", nulls_equal=True, maintain_order="left")
    if paired.is_empty():
        raise UserError("no batch has both directions; measure OneStep with its random control")
    parts = []
    for rank, name in enumerate(("interference", "magnitude", "mean_change")):
        difference = pl.col(name) - pl.col(f"{name}_random")
        table = (
            paired.drop_nulls([name, f"{name}_random"])
            .group_by(by, maintain_order=True)
            .agg(
                pl.col(name).mean().alias("update"),
                pl.col(f"{name}_random").mean().alias("random"),
                difference.mean().alias("difference"),
                difference.std().alias("sd"),
                pl.len().cast(pl.Int64).alias("batches"),
            )
        )
        reach = _reach(table["sd"].to_numpy(), table["batches"].to_numpy())
        mean = table["difference"].to_numpy()
        bounds = as_columns({"low": mean - reach, "high": mean + reach})
        head = [*by, pl.lit(name).alias("quantity"), "update", "random", "difference"]
        parts.append(table.select(*head).hstack([*bounds, table["batches"]]).with_columns(_place=rank))
    order = paired.select(by).unique(maintain_order=True).with_row_index("_order")
    joined = pl.concat(parts).join(order, on=list(by), nulls_equal=True, maintain_order="left")
    return joined.sort("_order", "_place").drop("_order", "_place")


def _reach(sd: Float[np.ndarray, " groups"], n: np.ndarray) -> Float[np.ndarray, " groups"]:
    """Half the width of Student's 95 % interval of a mean of `n`; NaN for one."""
    sd = np.where(n > 1, sd.astype(float), np.nan)
    return stats.t.ppf(0.975, np.maximum(n - 1, 1)) * sd / np.sqrt(np.maximum(n, 1))

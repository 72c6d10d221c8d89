"""One optimizer step, several batches: how far the changes cancel, how well first order foretells them, and against
a step of the same size in a random direction.

Each batch's step is another step, so D, M and the mean change are taken within a batch and averaged over batches,
with Student's t over them; |ΔL| = M (1 - D) holds within each batch, and for the means only nearly.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy import stats

from lmdynamics.analysis.row_sums import as_columns, need_numbers, ratio
from lmdynamics.analysis.zero_sum import interference
from lmdynamics.errors import UserError

QUANTITIES = ("interference", "magnitude", "mean_change", "first_order_interference", "slope", "correlation")
BOUNDED = ("interference", "magnitude", "mean_change", "first_order_interference")


def each_batch(changes: pl.DataFrame, by: Sequence[str] = ("step", "split", "direction")) -> pl.DataFrame:
    """A row for each batch: *by, batch, interference, magnitude, mean_change (nats per token), those of the changes
    predicted by first order (first_order_interference), slope and correlation of measured on predicted change, tokens.

    `changes`: of `OneStep` (batch, row, change, first_order, ...). Null where it is undefined: interference where
    nothing changes, slope and correlation where all predicted changes are alike.

    Raises
    ------
    UserError
        If a column is missing, or a change is no finite number.
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
    """D, M and the mean change of one step, as means over batches: a row for each of `by`, in the order they come.

    *by, interference, magnitude, mean_change, first_order_interference, each with _low and _high (95 %, Student's t
    over batches; null with one batch; D kept within 0 and 1, M above 0), slope and correlation (of the measured change
    on the one that first order foretells), tokens (in all), batches. Held-out rows are the same for every batch: their
    interval is over steps that might have been taken, not over text.

    Raises
    ------
    UserError
        If a column is missing, or a change is no finite number.
    """
    each = each_batch(changes, by)
    table = each.group_by(by, maintain_order=True).agg(
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
    """The optimizer's update beside a random step of the same size, batch by batch.

    Rows: *by, quantity (interference, magnitude, mean_change), update, random (means over batches), difference (update
    less random) with low, high (95 %, Student's t over batches, paired; null with one), batches (that have both).

    Raises
    ------
    UserError
        If a column is missing, a change is no finite number, or no batch was stepped on in both directions.
    """
    each = each_batch(changes, [*by, "direction"])
    both = [each.filter(pl.col("direction") == direction) for direction in ("update", "random")]
    paired = both[0].join(both[1], on=[*by, "batch"], suffix="_random", nulls_equal=True, maintain_order="left")
    if paired.is_empty():
        raise UserError("no batch was stepped on in both directions; measure OneStep with its random control")
    parts = []
    for place, name in enumerate(("interference", "magnitude", "mean_change")):
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
        middle = table["difference"].to_numpy()
        bounds = as_columns({"low": middle - reach, "high": middle + reach})
        head = [*by, pl.lit(name).alias("quantity"), "update", "random", "difference"]
        parts.append(table.select(*head).hstack([*bounds, table["batches"]]).with_columns(_place=place))
    order = paired.select(by).unique(maintain_order=True).with_row_index("_order")
    joined = pl.concat(parts).join(order, on=list(by), nulls_equal=True, maintain_order="left")
    return joined.sort("_order", "_place").drop("_order", "_place")


def _reach(sd: Float[np.ndarray, " groups"], n: np.ndarray) -> Float[np.ndarray, " groups"]:
    """Half the width of Student's 95 % interval of a mean of `n`; NaN for one."""
    sd = np.where(n > 1, sd.astype(float), np.nan)
    return stats.t.ppf(0.975, np.maximum(n - 1, 1)) * sd / np.sqrt(np.maximum(n, 1))

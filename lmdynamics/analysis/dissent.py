"""Gradient dissent over training, by group of tokens: small models saturate first where tokens are rare."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.analysis.row_sums import as_columns, interval, ratio, row_sums, with_groups
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
    """Means of what `Dissent` measures over the tokens of each group.

    `frame`: a trace of `Dissent`; `groups`: token, group (as of `frequency_groups`), or row, position, group; None: all
    tokens in one group, "all". Tokens in none are in the group "other". Rows, sorted by group inside each of `by`:
    *by, group, dissent, cos_hidden_attractive, cos_hidden_repulsive, dissent_control, each with _low and _high (95 %,
    bootstrap over rows of text), norm_attractive, norm_repulsive, norm_hidden, probability, tokens. Tokens without a
    cosine (a vector of zeros) do not count in its mean, which is null where there are no others. With `step` in `by`,
    also change, change_low, change_high: of dissent since half that step, in the same resamples, null where that was
    not measured.

    Raises
    ------
    UserError
        If a column is missing, there is no row, or `groups` gives a token two groups, or none any.
    """
    need_columns(frame, [*by, "row", *COSINES, *MEANS], "dissent by group")
    if frame.is_empty():
        raise UserError("dissent by group: there are no rows; trace the run first")
    grouped = with_groups(frame, groups, "dissent by group")
    numbers = {name: pl.col(name).cast(pl.Float64) for name in (*COSINES, *MEANS)}
    numbers = {name: pl.when(x.is_finite()).then(x) for name, x in numbers.items()}
    sums = {name: x.sum() for name, x in numbers.items()} | {f"{name}_n": x.count() for name, x in numbers.items()}
    sums |= {"tokens": pl.len(), "rows": pl.lit(1)}
    made = row_sums(grouped, by, sums, within=["group"], resamples=resamples, seed=seed)
    columns = {}
    for name in numbers:
        columns[name] = ratio(made.total(name), made.total(f"{name}_n"))
        if name in COSINES:
            drawn = ratio(made.drawn(name), made.drawn(f"{name}_n"))
            columns[f"{name}_low"], columns[f"{name}_high"] = interval(drawn, made.total("rows"))
            if name == "dissent" and "step" in by:
                since = _since_half(made.keys, columns[name], drawn, made.total("rows"))
    if "step" in by:
        columns |= since
    return made.keys.hstack([*as_columns(columns), pl.Series("tokens", made.total("tokens").astype(np.int64))])


def _since_half(
    keys: pl.DataFrame,
    value: Float[np.ndarray, " groups"],
    drawn: Float[np.ndarray, "resamples groups"],
    rows: Float[np.ndarray, " groups"],
) -> dict[str, Float[np.ndarray, " groups"]]:
    """How far each group has moved since half its step, with its interval; NaN where that was not measured."""
    now = keys.with_row_index("now")
    half = now.with_columns(pl.col("step") * 2).rename({"now": "half"})
    at, before = now.join(half, on=keys.columns, nulls_equal=True).select("now", "half").to_numpy().T
    found = {name: np.full(len(keys), np.nan) for name in ("change", "change_low", "change_high")}
    found["change"][at] = value[at] - value[before]
    ends = interval(drawn[:, at] - drawn[:, before], np.minimum(rows[at], rows[before]))
    found["change_low"][at], found["change_high"][at] = ends
    return found


def towards_total(table: pl.DataFrame) -> pl.DataFrame:
    """Where dissent stands at the end of each curve, and which way it goes; with a sentence for each curve and group.

    `table`: of `dissent_by_group`, by curve and step. The last step is compared with half of it: dissent `deepens`
    (towards -1) or `eases` where the 95 % interval of its change (paired, over the same rows of text) says so, and is
    `undecided` otherwise. Rows: curve, group, step, dissent, dissent_low, dissent_high, dissent_control, change,
    change_low, change_high (null if half the step was not measured), verdict, sentence.

    Raises
    ------
    UserError
        If a column is missing.
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
    return last.with_columns(pl.Series("sentence", [_told(row) for row in last.to_dicts()], dtype=pl.String))


def _told(row: dict) -> str:
    bounds = row["dissent_low"], row["dissent_high"]
    if row["dissent"] is None:
        return f"{row['curve']}, {row['group']}: no dissent at step {row['step']:,}, its vectors have no direction"
    moved = "does not clearly move" if row["verdict"] == "undecided" else row["verdict"]
    change = with_interval(row["change"], (row["change_low"], row["change_high"]), "+.2f")
    compared = "" if row["change"] is None else f", {moved} since step {row['step'] // 2:,} ({change})"
    control = "none" if row["dissent_control"] is None else f"{row['dissent_control']:.2f}"
    return (
        f"{row['curve']}, {row['group']}: dissent {with_interval(row['dissent'], bounds, '.2f')} at step "
        f"{row['step']:,}{compared}; control {control}"
    )

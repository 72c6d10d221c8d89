"""Whose loss fell and whose rose: groups of tokens, and single tokens, that gained and lost between two models."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.row_sums import as_columns, interval, need_numbers, ratio, row_sums, with_groups
from lmdynamics.analysis.zero_sum import PAIR, interference, unfolded
from lmdynamics.errors import UserError

BINS = 36  # of a histogram; an even number: zero is an edge


def traded(
    changes: pl.DataFrame, groups: pl.DataFrame | None, by: Sequence[str] = PAIR, resamples: int = 500, seed: int = 0
) -> pl.DataFrame:
    """What each group of tokens adds to the falls and to the rises of the loss.

    `groups`: row, position, group, or token, group; tokens in none are in the group "other", so that the groups are
    the whole text. Rows, sorted by group inside each of `by`: *by, group, gained and lost (how much the losses of its
    tokens fell and rose in all, in nats per token of the whole text, never negative), net (lost - gained: its part
    of the mean change), interference (D inside the group, null where nothing changes), each with _low and _high (95 %,
    bootstrap over rows of text), tokens. Over groups, `net` adds up to the mean change, and `gained` and `lost` to
    the magnitude.

    Raises
    ------
    UserError
        If a column is missing, a change is no finite number, or `groups` gives a token two groups, or none any.
    """
    need_numbers(changes, [*by, "row", "change"], "what was traded")
    grouped = with_groups(changes, groups, "what was traded")
    change = pl.col("change").cast(pl.Float64)
    sums = {"gained": (-change.clip(None, 0)).sum(), "lost": change.clip(0).sum(), "tokens": pl.len()}
    made = row_sums(grouped, by, sums, within=["group"], resamples=resamples, seed=seed)
    of = made.keys.select(by)
    at = of.join(of.unique().with_row_index(), on=list(by), nulls_equal=True, maintain_order="left")["index"].to_numpy()
    text = np.zeros((at.max() + 1, made.sums["tokens"].shape[1]))
    np.add.at(text, at, made.sums["tokens"])
    made.sums["text"] = text[at]  # tokens of the row, in whatever group
    tokens, drawn_tokens, rows = made.total("text"), made.drawn("text"), (text > 0).sum(1)[at].astype(float)
    gained, lost = made.total("gained"), made.total("lost")
    drawn_gained, drawn_lost = made.drawn("gained"), made.drawn("lost")
    numbers = {}
    for name, value, drawn in (
        ("gained", gained, drawn_gained),
        ("lost", lost, drawn_lost),
        ("net", lost - gained, drawn_lost - drawn_gained),
    ):
        low, high = interval(ratio(drawn, drawn_tokens), rows)
        numbers |= {name: value / tokens, f"{name}_low": low, f"{name}_high": high}
    low, high = interval(unfolded(lost - gained, drawn_lost - drawn_gained, drawn_lost + drawn_gained), rows)
    numbers |= {"interference": interference(lost - gained, lost + gained)}
    numbers |= {"interference_low": np.minimum(low, 1), "interference_high": np.minimum(high, 1)}
    return made.keys.hstack([*as_columns(numbers), pl.Series("tokens", made.total("tokens").astype(np.int64))])


def winners_and_losers(changes: pl.DataFrame, n: int = 8, at_least: int = 10, by: Sequence[str] = ()) -> pl.DataFrame:
    """The tokens whose loss fell and rose most on average, `n` of each at most, in each group of `by`.

    Only tokens that occur `at_least` times count, and only those whose mean really fell or rose. Rows: *by, kind
    ("winner" first, then "loser", the most extreme first), token, change (mean, nats), stderr (of that mean,
    occurrences taken as independent; null for one), count.

    Raises
    ------
    UserError
        If a column is missing, a change is no finite number, or no token occurs that often.
    """
    need_numbers(changes, [*by, "token", "change"], "winners and losers")
    change = pl.col("change").cast(pl.Float64)
    means = (
        changes.group_by([*by, "token"], maintain_order=True)
        .agg(
            change.mean().alias("change"),
            (change.std() / pl.len().sqrt()).alias("stderr"),
            pl.len().cast(pl.Int64).alias("count"),
        )
        .filter(pl.col("count") >= at_least)
    )
    if means.is_empty():
        raise UserError(
            f"winners and losers: no token occurs {at_least} times; lower at_least, or measure on more text"
        )
    order = changes.select(by).unique(maintain_order=True).with_row_index("_order") if by else None
    if order is not None:
        means = means.join(order, on=list(by), nulls_equal=True, maintain_order="left")
    else:
        means = means.with_columns(_order=pl.lit(0))
    kinds = []
    for place, (kind, sign) in enumerate((("winner", 1), ("loser", -1))):
        of_kind = means.filter(sign * pl.col("change") < 0).sort(sign * pl.col("change"), "token")
        kinds.append(
            of_kind.group_by("_order", maintain_order=True).head(n).with_columns(kind=pl.lit(kind), _kind=place)
        )
    chosen = pl.concat(kinds).sort("_order", "_kind", maintain_order=True)
    return chosen.select(*by, "kind", "token", "change", "stderr", "count")


def change_bins(changes: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """How many tokens of each of `by` changed how much: *by, low, high (nats), share (of its tokens), side.

    The edges are the same everywhere: 36 bins, evenly spaced around 0 and ever wider away from it.
    """
    change = changes["change"].cast(pl.Float64)
    most = float(change.abs().max() or 0.0) or 1e-6
    centre = float(change.abs().median() or 0.0) or most / 10
    half = centre * np.expm1(np.linspace(0, np.log1p(most / centre), BINS // 2 + 1))
    edges = np.concatenate([-half[:0:-1], half])
    edges[[0, -1]] = -most, most
    place = np.clip(np.searchsorted(edges, change.to_numpy(), side="right") - 1, 0, BINS - 1)
    return (
        changes.select(by)
        .with_columns(bin=pl.Series(place))
        .group_by([*by, "bin"], maintain_order=True)
        .agg(tokens=pl.len())
        .with_columns(share=pl.col("tokens") / pl.col("tokens").sum().over(by))
        .join(pl.DataFrame({"bin": range(BINS), "low": edges[:-1], "high": edges[1:]}), on="bin", maintain_order="left")
        .with_columns(side=pl.when(pl.col("bin") < BINS // 2).then(pl.lit("fell")).otherwise(pl.lit("rose")))
        .sort([*by, "bin"])
    )


def large_change(changes: pl.DataFrame, by: str = "change", share: float = 0.05) -> float:
    """The size of change (or of what `by` names, in nats) that a share of the tokens exceeds."""
    return float(changes[by].cast(pl.Float64).abs().quantile(1 - share) or 0.0) or 1e-6


def token_names(frame: pl.DataFrame, tokenizer) -> pl.DataFrame:
    """`frame` with `form` behind `token`: each token as its tokenizer writes it."""
    need_columns(frame, ["token"], "naming tokens")
    forms = tokenizer.convert_ids_to_tokens(frame["token"].to_list())
    return frame.insert_column(frame.columns.index("token") + 1, pl.Series("form", forms, dtype=pl.String))

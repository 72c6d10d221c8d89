"""Zero-sum learning: changes of per-token loss between checkpoints, and how far they cancel.

Mircea et al. 2025 (arXiv 2506.05447): with changes x of per-token loss (nats), destructive interference is
D = 1 - |Σ x| / Σ |x|, magnitude M = mean |x|, and the change of the mean loss |ΔL| = M (1 - D). Over a doubling of
training, from step t to 2t, D rises towards 1 once the loss decelerates: some tokens gain what others lose.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from lmdynamics.analysis.intervals import (
    RowSums,
    as_columns,
    interval,
    need_columns,
    need_numbers,
    ratio,
    row_sums,
    with_bounds,
    with_groups,
)
from lmdynamics.errors import UserError

TOKEN = ("row", "position", "token")
PAIR = ("step", "until")


def doublings(losses: pl.DataFrame) -> pl.DataFrame:
    """The change of every token's loss over each doubling of training with both ends measured.

    `losses`: a trace of `TokenLosses` (step, row, position, token, loss). Rows: step (Int64, t), until (Int64, 2t),
    row, position, token, loss (Float64, nats, at t), change (Float64; negative: the token gained).

    Raises UserError if there is no pair of steps t, 2t, a loss is not finite, or checkpoints were measured on other
    tokens.
    """
    need_columns(losses, ["step"], "doublings")
    steps = losses["step"].unique().sort().to_list()
    pairs = [(step, 2 * step) for step in steps if step and 2 * step in set(steps)]
    if not pairs:
        raise UserError(f"none of the steps {_first_steps(steps)} is twice another; measure at 1, 2, 4, ...")
    return changes_between(losses, pairs)


def changes_between(losses: pl.DataFrame, pairs: Iterable[tuple[int, int]]) -> pl.DataFrame:
    """The change of every token's loss from the first to the second step of each pair: columns as in `doublings`."""
    need_numbers(losses, ["step", *TOKEN, "loss"], "changes of loss")
    losses_at = {
        step: frame for (step,), frame in losses.sort("step", "row", "position").group_by("step", maintain_order=True)
    }
    parts = []
    for step, until in pairs:
        for end in (step, until):
            if end not in losses_at:
                raise UserError(f"no losses at step {end}; measured steps: {_first_steps(sorted(losses_at))}")
        parts.append(_difference(losses_at[step], losses_at[until], step, until))
    return pl.concat(parts)


def between_runs(losses: pl.DataFrame, other_losses: pl.DataFrame) -> pl.DataFrame:
    """A control: at each common step, the losses of another run of the same recipe (another seed) minus these.

    If both runs have the same mean loss, gains and losses of tokens cancel: D is close to 1, and M is the difference
    between equally good models. `mean_change` is the difference of the mean losses. Changes over a doubling that are no
    larger than such an M may be random. Columns as in `doublings`; `until` is `step`.

    Raises UserError if no step was measured in both, or not on the same tokens.
    """
    for frame in (losses, other_losses):
        need_numbers(frame, ["step", *TOKEN, "loss"], "losses of two runs")
    shared = sorted(set(losses["step"].unique()) & set(other_losses["step"].unique()))
    if not shared:
        raise UserError("the two runs have no measured step in common; trace them at the same steps")
    return pl.concat(
        [
            _difference(
                *(frame.filter(pl.col("step") == step).sort("row", "position") for frame in (losses, other_losses)),
                step,
                step,
            )
            for step in shared
        ]
    )


def _difference(before: pl.DataFrame, after: pl.DataFrame, step: int, until: int) -> pl.DataFrame:
    """Changes between two frames, both sorted by row and position."""
    if not before.select(TOKEN).equals(after.select(TOKEN)):
        raise UserError(
            f"steps {step} and {until} were not measured on the same tokens, each once; trace them with one measurement"
        )
    loss = before["loss"].cast(pl.Float64)
    return before.select(
        pl.lit(step, pl.Int64).alias("step"),
        pl.lit(until, pl.Int64).alias("until"),
        *TOKEN,
        loss=loss,
        change=after["loss"].cast(pl.Float64) - loss,
    )


def interference_table(
    changes: pl.DataFrame, by: Sequence[str] = PAIR, resamples: int = 500, seed: int = 0
) -> pl.DataFrame:
    """D, M and the mean change of each group of changes, with 95 % intervals (bootstrap over rows of text).

    Rows, in order of first appearance: *by, interference, magnitude, mean_change (signed, nats per token),
    each with _low and _high, tokens, rows (of text). If nothing changes, interference is null; with one row of
    text or no resamples, intervals are null.

    D has a kink where the mean change is zero. Therefore the signed ratio Σ x / Σ |x| is resampled, in the direction of
    the mean change, and the interval ends at 1 where this ratio passes zero. So the interval includes D = 1 if the mean
    change may be zero; resamples of D itself, all below 1, would exclude it.

    Raises UserError if a column is missing, or a change is not finite.
    """
    need_numbers(changes, [*by, "row", "change"], "interference")
    totals = _sums(changes, by, resamples, seed)
    net, size, tokens, rows = (totals.total(name) for name in ("net", "size", "tokens", "rows"))
    drawn_net, drawn_size, drawn_tokens = (totals.drawn(name) for name in ("net", "size", "tokens"))
    numbers = (
        with_bounds("interference", interference(net, size), _around(net, drawn_net, drawn_size, rows))
        | with_bounds("magnitude", size / tokens, interval(ratio(drawn_size, drawn_tokens), rows))
        | with_bounds("mean_change", net / tokens, interval(ratio(drawn_net, drawn_tokens), rows))
    )
    counts = [pl.Series(name, totals.total(name).astype(np.int64)) for name in ("tokens", "rows")]
    return totals.keys.hstack([*as_columns(numbers), *counts])


def _sums(changes: pl.DataFrame, by: Sequence[str], resamples: int, seed: int) -> RowSums:
    change = pl.col("change").cast(pl.Float64)
    sums = {"net": change.sum(), "size": change.abs().sum(), "tokens": pl.len(), "rows": pl.lit(1)}
    return row_sums(changes, by, sums, resamples=resamples, seed=seed)


def interference(net: Float[np.ndarray, "*shape"], size: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """D from Σ x and Σ |x|, NaN if nothing changes."""
    return np.clip(1 - ratio(np.abs(net), size), 0, 1)  # rounding can make it negative


def unfolded(
    net: Float[np.ndarray, " groups"],
    drawn_net: Float[np.ndarray, "resamples groups"],
    drawn_size: Float[np.ndarray, "resamples groups"],
) -> Float[np.ndarray, "resamples groups"]:
    """D in each resample, above 1 if its mean change has the opposite sign of the mean change of all rows."""
    return 1 - ratio(np.where(net < 0, -1.0, 1.0) * drawn_net, drawn_size)


def _around(net, drawn_net, drawn_size, rows) -> tuple[np.ndarray, np.ndarray]:
    """The interval of D of each group, which ends at 1."""
    low, high = interval(unfolded(net, drawn_net, drawn_size), rows)
    return np.minimum(low, 1), np.minimum(high, 1)


def _first_steps(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:8]))
    return shown if len(steps) <= 8 else f"{shown}, ..."


BINS = 36  # of a histogram; even, so that zero is an edge


def traded(
    changes: pl.DataFrame, groups: pl.DataFrame | None, by: Sequence[str] = PAIR, resamples: int = 500, seed: int = 0
) -> pl.DataFrame:
    """How much each group of tokens contributes to decreases and increases of the loss.

    `groups`: row, position, group, or token, group; tokens in no group are in the group "other", so the groups cover
    the whole text. Rows, sorted by group within each of `by`: *by, group, gained and lost (total decrease and increase
    of the losses of its tokens, in nats per token of the whole text, not negative), net (lost - gained: its part of the
    mean change), interference (D within the group, null if nothing changes), each with _low and _high (95 %,
    bootstrap over rows of text), tokens. Over groups, `net` adds up to the mean change, and `gained` and `lost` to
    the magnitude.

    Raises UserError if a column is missing, a change is not finite, or `groups` assigns two groups to a token, or
    a group to no token.
    """
    need_numbers(changes, [*by, "row", "change"], "trades by group")
    grouped = with_groups(changes, groups, "trades by group")
    change = pl.col("change").cast(pl.Float64)
    sums = {"gained": (-change.clip(None, 0)).sum(), "lost": change.clip(0).sum(), "tokens": pl.len()}
    totals = row_sums(grouped, by, sums, within=["group"], resamples=resamples, seed=seed)
    keys = totals.keys.select(by)
    numbered = keys.unique().with_row_index()
    index = keys.join(numbered, on=list(by), nulls_equal=True, maintain_order="left")["index"].to_numpy()
    text = np.zeros((index.max() + 1, totals.sums["tokens"].shape[1]))
    np.add.at(text, index, totals.sums["tokens"])
    totals.sums["text"] = text[index]  # tokens of the row in all groups
    tokens, drawn_tokens, rows = (totals.total("text"), totals.drawn("text"), (text > 0).sum(1)[index].astype(float))
    gained, lost = totals.total("gained"), totals.total("lost")
    drawn_gained, drawn_lost = totals.drawn("gained"), totals.drawn("lost")
    net, drawn_net = lost - gained, drawn_lost - drawn_gained
    numbers = {}
    for name, value, drawn in (("gained", gained, drawn_gained), ("lost", lost, drawn_lost), ("net", net, drawn_net)):
        numbers |= with_bounds(name, value / tokens, interval(ratio(drawn, drawn_tokens), rows))
    around = _around(net, drawn_net, drawn_lost + drawn_gained, rows)
    numbers |= with_bounds("interference", interference(net, lost + gained), around)
    return totals.keys.hstack([*as_columns(numbers), pl.Series("tokens", totals.total("tokens").astype(np.int64))])


def winners_and_losers(changes: pl.DataFrame, n: int = 8, min_count: int = 10, by: Sequence[str] = ()) -> pl.DataFrame:
    """The tokens whose loss fell and rose most on average, at most `n` of each, in each group of `by`.

    Only tokens that occur at least `min_count` times, and whose mean fell or rose. Rows: *by, kind
    ("winner" first, then "loser", the most extreme first), token, change (mean, nats), stderr (of that mean,
    occurrences taken as independent; null for one), count.

    Raises UserError if a column is missing, a change is not finite, or no token occurs often enough.
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
        .filter(pl.col("count") >= min_count)
    )
    if means.is_empty():
        raise UserError(
            f"winners and losers: no token occurs {min_count} times; lower min_count, or measure on more text"
        )
    order = changes.select(by).unique(maintain_order=True).with_row_index("_order") if by else None
    if order is not None:
        means = means.join(order, on=list(by), nulls_equal=True, maintain_order="left")
    else:
        means = means.with_columns(_order=pl.lit(0))
    kinds = []
    for kind_order, (kind, sign) in enumerate((("winner", 1), ("loser", -1))):
        of_kind = means.filter(sign * pl.col("change") < 0).sort(sign * pl.col("change"), "token")
        kinds.append(
            of_kind.group_by("_order", maintain_order=True).head(n).with_columns(kind=pl.lit(kind), _kind=kind_order)
        )
    chosen = pl.concat(kinds).sort("_order", "_kind", maintain_order=True)
    return chosen.select(*by, "kind", "token", "change", "stderr", "count")


def change_bins(changes: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """A histogram of the changes of tokens in each of `by`: *by, low, high (nats), share (of its tokens), side.

    All histograms have the same 36 bins: narrow around 0, and wider away from it.
    """
    change = changes["change"].cast(pl.Float64)
    largest = float(change.abs().max() or 0.0) or 1e-6
    centre = float(change.abs().median() or 0.0) or largest / 10
    half = centre * np.expm1(np.linspace(0, np.log1p(largest / centre), BINS // 2 + 1))
    edges = np.concatenate([-half[:0:-1], half])
    edges[[0, -1]] = -largest, largest
    bin_index = np.clip(np.searchsorted(edges, change.to_numpy(), side="right") - 1, 0, BINS - 1)
    return (
        changes.select(by)
        .with_columns(bin=pl.Series(bin_index))
        .group_by([*by, "bin"], maintain_order=True)
        .agg(tokens=pl.len())
        .with_columns(share=pl.col("tokens") / pl.col("tokens").sum().over(by))
        .join(pl.DataFrame({"bin": range(BINS), "low": edges[:-1], "high": edges[1:]}), on="bin", maintain_order="left")
        .with_columns(side=pl.when(pl.col("bin") < BINS // 2).then(pl.lit("fell")).otherwise(pl.lit("rose")))
        .sort([*by, "bin"])
    )


def large_change(changes: pl.DataFrame, by: str = "change", share: float = 0.05) -> float:
    """The size of change (or of column `by`, in nats) that a share of the tokens exceeds."""
    return float(changes[by].cast(pl.Float64).abs().quantile(1 - share) or 0.0) or 1e-6


def token_names(frame: pl.DataFrame, tokenizer) -> pl.DataFrame:
    """`frame` with a column `form` after `token`: the tokenizer's text of each token."""
    need_columns(frame, ["token"], "naming tokens")
    forms = tokenizer.convert_ids_to_tokens(frame["token"].to_list())
    return frame.insert_column(frame.columns.index("token") + 1, pl.Series("form", forms, dtype=pl.String))

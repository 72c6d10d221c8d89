"""Any two checkpoints of a run: how the losses of the same tokens differ between them."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import polars as pl
from jaxtyping import Float64

from lmdynamics.analysis.intervals import bootstrap_levels, need_numbers, resample_counts
from lmdynamics.errors import UserError

RESAMPLES = 500


def losses_by_token(
    losses: pl.DataFrame, subject: str = "two checkpoints"
) -> tuple[list[int], pl.DataFrame, Float64[np.ndarray, "steps tokens"]]:
    """The steps of a trace of `TokenLosses`, its tokens (row, position, token), and the loss of each at each step.

    Raises UserError if there are no rows, a loss is not finite, or checkpoints were measured on other tokens.
    """
    need_numbers(losses, ["step", "row", "position", "token", "loss"], subject)
    parts = losses.sort("step", "row", "position").partition_by("step", maintain_order=True)
    tokens = parts[0].select("row", "position", "token")
    if not all(part.select("row", "position", "token").equals(tokens) for part in parts):
        raise UserError(f"{subject}: checkpoints were measured on other tokens; trace the same rows at each")
    return [part["step"][0] for part in parts], tokens, np.stack([part["loss"].cast(pl.Float64) for part in parts])


def changes_of_all_pairs(losses: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """The mean change of loss between each two steps, in either order, and the share of the tokens that improve.

    `losses`: a trace of `TokenLosses`. Rows: from_step, step, change (nats per token; negative: the loss fell) with
    change_low and change_high (95 %, rows of text resampled; null below 6 rows), improved (share of tokens), large (the
    absolute change that 1 token in 20 exceeds), tokens, rows.
    """
    steps, tokens, by_step = losses_by_token(losses)
    row = tokens["row"].rank("dense").to_numpy() - 1
    rows = int(row.max()) + 1
    sums = np.stack([np.bincount(row, weights, rows) for weights in by_step])
    drawn_rows = resample_counts(rows, RESAMPLES, seed).astype(np.float64)
    drawn = drawn_rows @ sums.T / (drawn_rows @ np.bincount(row, minlength=rows))[:, None]
    levels, table = bootstrap_levels(rows), []
    for a, b in product(range(len(steps)), repeat=2):
        change = by_step[b] - by_step[a]
        low, high = (None, None) if levels is None else map(float, np.percentile(drawn[:, b] - drawn[:, a], levels))
        shares = float(change.mean()), low, high, float((change < 0).mean()), float(np.quantile(np.abs(change), 0.95))
        table.append((steps[a], steps[b], *shares, len(change), rows))
    numbers = ["change", "change_low", "change_high", "improved", "large"]
    schema = {"from_step": pl.Int64, "step": pl.Int64, **dict.fromkeys(numbers, pl.Float64)}
    return pl.DataFrame(table, {**schema, "tokens": pl.Int64, "rows": pl.Int64}, orient="row")


def changed_heads(heads: pl.DataFrame, from_step: int, step: int) -> pl.DataFrame:
    """The heads that follow another relation best at the second step than at the first.

    `heads`: step, layer, head, relation, accuracy, above, as from `best_heads_and_offset(by=("layer", "head"))`. Rows:
    layer, head, and each of the others at both steps (relation_before, relation, …), the most accurate first.
    """
    columns = ["layer", "head", "relation", "accuracy", "above"]
    before, after = (heads.filter(step=each).select(columns) for each in (from_step, step))
    joined = after.join(before, on=["layer", "head"], suffix="_before")
    changed = joined.filter(pl.col("relation") != pl.col("relation_before"))
    return changed.sort("accuracy", "layer", "head", descending=[True, False, False])


def context_of(tokens: Sequence[str], position: int, before: int = 3, after: int = 2) -> str:
    """A token between its neighbours, in ‹angle quotes›."""
    words = [f"‹{token}›" if i == position else token for i, token in enumerate(tokens)]
    return " ".join(words[max(0, position - before) : position + after + 1])

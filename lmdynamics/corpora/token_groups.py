"""Tokens in groups: by how frequent they are, and by where in their row they stand."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.errors import UserError

BINS = (100, 1_000, 10_000)


def frequency_groups(blocks: Blocks, vocab_size: int, bins: Sequence[int] = BINS) -> pl.DataFrame:
    """Every token of the vocabulary with its count in `blocks` and its group, by relative frequency.

    Rows, by token: token (Int32), count (Int64), group (Enum, ordered from frequent to rare, so that sorting by it
    is sorting by frequency). A bin N divides what comes at least once in N tokens (of all, special ones included) from
    what is rarer; tokens that never occur are with the rarest. For comparison across checkpoints and sizes, `blocks`
    are rows the models were trained on, or others like them.

    Raises
    ------
    UserError
        If there are no tokens, one is not in the vocabulary, or bins do not rise from 2 upwards.
    """
    if not len(bins) or min(bins) < 2 or sorted(set(bins)) != list(bins):
        raise UserError(f"frequency bins must rise, from 2 upwards; {list(bins)} do not")
    if not len(blocks.ids):
        raise UserError("no rows to count tokens in; give some that the models were trained on")
    if blocks.ids.max() >= vocab_size:
        raise UserError(f"token {blocks.ids.max()} is in the rows, but the vocabulary has {vocab_size} tokens")
    counts = np.bincount(blocks.ids, minlength=vocab_size).astype(np.int64)
    names = group_names(bins)
    # counts are whole, so that what comes exactly once in N is on the frequent side, without rounding
    place = (counts[:, None] * np.array(bins) < counts.sum()).sum(1)
    return pl.DataFrame(
        {
            "token": pl.Series(np.arange(vocab_size), dtype=pl.Int32),
            "count": counts,
            "group": pl.Series([names[i] for i in place], dtype=pl.Enum(names)),
        }
    )


def group_names(bins: Sequence[int] = BINS) -> list[str]:
    """What the groups between `bins` are called, from frequent to rare."""
    between = [f"1 in {a:,}–{b:,}" for a, b in pairwise(bins)]
    return [f"at least 1 in {bins[0]:,}", *between, f"rarer than 1 in {bins[-1]:,}"]


def position_groups(blocks: Blocks) -> pl.DataFrame:
    """Every token of some rows with the group of its position: 0, 1, 2–3, 4–7, … tokens stand before it.

    Rows: row, position (Int32), group (Enum, from the first position to the last). What stands far in can be told from
    more context.
    """
    if not len(blocks.ids):
        raise UserError("no rows with positions to group; give some text")
    lengths = blocks.lengths
    position = np.arange(len(blocks.ids)) - np.repeat(np.asarray(blocks.offsets[:-1]), lengths)
    octave = np.frexp(position)[1]  # 0, 1, 2, 2, 3, 3, 3, 3, …
    names = ["0", "1", *(f"{2**k}–{2 ** (k + 1) - 1}" for k in range(1, max(2, int(octave.max()))))]
    return pl.DataFrame(
        {
            "row": pl.Series(np.repeat(np.arange(len(blocks)), lengths), dtype=pl.Int32),
            "position": pl.Series(position, dtype=pl.Int32),
            "group": pl.Series([names[i] for i in octave], dtype=pl.Enum(names)),
        }
    )

"""Which head follows which relation, since when; and what one head makes of one sentence."""

import polars as pl

from lmdynamics.curves.intervals import need_columns, wilson
from lmdynamics.curves.onsets import first_run
from lmdynamics.errors import UserError

DIRECTIONS = ("dependent→head", "head→dependent")


def head_history(best: pl.DataFrame, k: int = 3) -> pl.DataFrame:
    """One row per relation, the most frequent first, from a trace's best heads (step × relation).

    `best`: step, relation, layer, head, direction, accuracy, count, offset (accuracy of the best fixed offset).
    Result: relation, count, head ("layer-head" at the last step), direction, accuracy, low, high (95 %, Wilson),
    offset, since (step from which this head has been the best without interruption), passes_offset (first of
    `k` consecutive checkpoints above the offset baseline, null where there is none).
    """
    need_columns(
        best, ["step", "relation", "layer", "head", "direction", "accuracy", "count", "offset"], "head history"
    )
    rows = []
    for (relation,), frame in best.sort("step").group_by("relation", maintain_order=True):
        last = frame.row(-1, named=True)
        same = (frame["layer"] == last["layer"]) & (frame["head"] == last["head"])
        same &= frame["direction"] == last["direction"]
        changes = [step for step, kept in zip(frame["step"], same, strict=True) if not kept]
        since = next(step for step in frame["step"] if not changes or step > changes[-1])
        above = (frame["accuracy"] > frame["offset"]).to_numpy()[None]
        crossed, first = first_run(above, k) if len(frame) >= k else ([False], [0])
        rows.append(
            {
                "relation": relation,
                "count": last["count"],
                "head": f"{last['layer']}-{last['head']}",
                "direction": last["direction"],
                "accuracy": last["accuracy"],
                "offset": last["offset"],
                "since": since,
                "passes_offset": frame["step"][int(first[0])] if crossed[0] else None,
            }
        )
    if not rows:
        raise UserError("head history: the trace names no relation; lower min_count or give more sentences")
    low, high = wilson(pl.col("accuracy"), pl.col("count"))
    table = pl.DataFrame(rows, schema_overrides={"passes_offset": pl.Int64}).with_columns(low=low, high=high)
    order = ["relation", "count", "head", "direction", "accuracy", "low", "high", "offset", "since", "passes_offset"]
    return table.select(order).sort("count", "relation", descending=[True, False])


def predicted_heads(attention: pl.DataFrame, direction: str = DIRECTIONS[0]) -> pl.DataFrame:
    """Each word's predicted head under each attention head: step (if there), layer, head, word, predicted, weight.

    `attention` is a trace of `WordAttention` (query, key, weight). Read as dependent→head, a word's head is the
    word it attends to most; as head→dependent, the word that attends to it most. Ties go to the earlier word.
    """
    need_columns(attention, ["layer", "head", "query", "key", "weight"], "predicted heads")
    if direction not in DIRECTIONS:
        raise UserError(f"predicted heads: direction {direction!r} is neither {DIRECTIONS[0]!r} nor {DIRECTIONS[1]!r}")
    word, other = ("query", "key") if direction == DIRECTIONS[0] else ("key", "query")
    by = [*(["step"] if "step" in attention.columns else []), "layer", "head", word]
    return (
        attention.filter(pl.col("query") != pl.col("key"))
        .sort(*by, "weight", other, descending=[*[False] * len(by), True, False])
        .group_by(by, maintain_order=True)
        .first()
        .rename({word: "word", other: "predicted"})
        .select(*by[:-1], "word", "predicted", "weight")
    )

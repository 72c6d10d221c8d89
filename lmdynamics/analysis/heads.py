"""Which head follows which relation, since when; and what one head makes of one sentence."""

import polars as pl

from lmdynamics.analysis.intervals import need_columns, wilson, with_wilson
from lmdynamics.errors import UserError

DIRECTIONS = ("dependent→head", "head→dependent")


def head_history(best: pl.DataFrame, k: int = 3) -> pl.DataFrame:
    """One row per relation, the most frequent first, from a trace's best heads (step × relation).

    `best`: step, relation, layer, head, direction, accuracy, count, offset (accuracy of the best fixed offset).
    Result: relation, count, head ("layer-head" at the last step), direction, accuracy, low, high (95 %, Wilson),
    offset, since (first checkpoint from which this head has been the best without interruption), appears (step from
    which even the lower end of the interval has stayed above the offset baseline, at `k` checkpoints or more), not_yet
    (the checkpoint before: the crossing lies between the two), first_head ("layer-head" there), undated (the step from
    which it has stayed above where that dates nothing: the first checkpoint, or one of the last `k` - 1).
    """
    need_columns(
        best, ["step", "relation", "layer", "head", "direction", "accuracy", "count", "offset"], "head history"
    )
    low, high = wilson(pl.col("accuracy"), pl.col("count"))
    best, rows = best.with_columns(low=low, high=high), []
    for (relation,), frame in best.sort("step").group_by("relation", maintain_order=True):
        last = frame.row(-1, named=True)
        same = (frame["layer"] == last["layer"]) & (frame["head"] == last["head"])
        same &= frame["direction"] == last["direction"]
        changes = [step for step, kept in zip(frame["step"], same, strict=True) if not kept]
        since = next(step for step in frame["step"] if not changes or step > changes[-1])
        below = [i for i, above in enumerate(frame["low"] > frame["offset"]) if not above]
        first = below[-1] + 1 if below else 0
        above = frame.row(first, named=True) if first < len(frame) else None
        appeared = above if 0 < first <= len(frame) - k else None
        rows.append(
            {
                "relation": relation,
                "count": last["count"],
                "head": f"{last['layer']}-{last['head']}",
                "direction": last["direction"],
                "accuracy": last["accuracy"],
                "offset": last["offset"],
                "low": last["low"],
                "high": last["high"],
                "since": since,
                "appears": appeared and appeared["step"],
                "not_yet": frame["step"][first - 1] if first else None,
                "first_head": appeared and f"{appeared['layer']}-{appeared['head']}",
                "undated": above["step"] if above and not appeared else None,
            }
        )
    if not rows:
        raise UserError("head history: the trace names no relation; lower min_count or give more sentences")
    schema = {"appears": pl.Int64, "not_yet": pl.Int64, "first_head": pl.String, "undated": pl.Int64}
    order = ["relation", "count", "head", "direction", "accuracy", "low", "high", "offset", "since"]
    return pl.DataFrame(rows, schema_overrides=schema).select(*order, *schema).sort(
        "count", "relation", descending=[True, False]
    )  # fmt: skip


def best_directions(scores: pl.DataFrame) -> pl.DataFrame:
    """Of one relation's scores each head's better direction at each step, with the 95 % interval of its accuracy.

    Rows: step, layer, head, direction, accuracy, low, high, count, and whether it is the step's `best`.
    """
    heads = scores.sort("accuracy", descending=True).group_by("step", "layer", "head", maintain_order=True).first()
    heads = with_wilson(heads).with_columns(best=pl.int_range(pl.len()).over("step") == 0)
    return heads.select("step", "layer", "head", "direction", "accuracy", "low", "high", "count", "best")


def told(history: pl.DataFrame, relation: str) -> str:
    """When a relation appeared and in which head, in one sentence with its control, from `head_history`."""
    row = history.row(by_predicate=pl.col("relation") == relation, named=True)
    now = (
        f"at the end head {row['head']} ({row['direction']}) finds {row['accuracy']:.1%} [{row['low']:.1%}, "
        f"{row['high']:.1%}] of its {row['count']:,} arcs, the best fixed offset {row['offset']:.1%}"
    )
    if (undated := row["undated"]) is not None:
        if row["not_yet"] is not None:
            return (
                f"{relation} is above the offset from step {undated:,} on only, too late to say that it stays: {now}."
            )
        late = f"it appeared at or before step {undated:,}, or is there in an untrained model"
        return f"{relation} is above the offset at every checkpoint: {late if undated else 'nothing appears'}; {now}."
    if row["appears"] is None:
        return f"{relation} has not appeared: {now}."
    before = f" (not yet at {row['not_yet']:,})"
    return f"{relation} appears at step {row['appears']:,}{before}, first in head {row['first_head']}; {now}."


def within_reach(scores: pl.DataFrame) -> str:
    """How much of one relation heads that look left only could find at all, for a reader; "" where that is all of it.

    `scores`: rows of `HeadScores` for one relation and split.
    """
    if "reachable" not in scores.columns or not (scores["reachable"] < 1).any():
        return ""
    share = dict(scores.group_by("direction").agg(pl.col("reachable").first()).iter_rows())
    each = ", ".join(f"{share[direction]:.0%} read {direction}" for direction in DIRECTIONS if direction in share)
    return f"a causal model looks left only: within reach are {each}"


def uas_within_reach(curve: pl.DataFrame) -> str:
    """How many of all arcs the chosen heads could find at all, for a reader; "" where that is all of them.

    `curve`: frame of `analysis.intervals.uas_by_step`. Of shuffled trees less is within reach where a relation's arcs
    mostly lead one way: that control is then lower for want of sight, too.
    """
    if "reachable" not in curve.columns or not (curve["reachable"] < 1).any():
        return ""
    said = []
    for source, of in (("attention", "of the arcs"), ("shuffled", "on shuffled trees")):
        shares = curve.filter(pl.col("source") == source)["reachable"]
        ends = dict.fromkeys(f"{share:.0%}" for share in (shares.min(), shares.max()) if share is not None)
        said += [f"{' to '.join(ends)} {of}"] if ends else []
    return f"a causal model looks left only: its heads could find {', '.join(said)}"


def predicted_heads(attention: pl.DataFrame, direction: str = DIRECTIONS[0]) -> pl.DataFrame:
    """Each word's predicted head under each attention head: step (if there), layer, head, word, predicted, weight.

    `attention` is a trace of `WordAttention` (query, key, weight). Read as dependent→head, a word's head is the
    word it attends to most; as head→dependent, the word that attends to it most. Ties go to the earlier word. A word
    that no weight leads anywhere has no row: in a causal model, the first one read as dependent→head.
    """
    need_columns(attention, ["layer", "head", "query", "key", "weight"], "predicted heads")
    if direction not in DIRECTIONS:
        raise UserError(f"predicted heads: direction {direction!r} is neither {DIRECTIONS[0]!r} nor {DIRECTIONS[1]!r}")
    word, other = ("query", "key") if direction == DIRECTIONS[0] else ("key", "query")
    by = [*(["step"] if "step" in attention.columns else []), "layer", "head", word]
    return (
        attention.filter(pl.col("query") != pl.col("key"), pl.col("weight") > 0)
        .sort(*by, "weight", other, descending=[*[False] * len(by), True, False])
        .group_by(by, maintain_order=True)
        .first()
        .rename({word: "word", other: "predicted"})
        .select(*by[:-1], "word", "predicted", "weight")
    )

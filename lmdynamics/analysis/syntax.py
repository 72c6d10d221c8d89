"""Syntax in attention heads and minimal pairs, by checkpoint.

UAS is resampled over sentences, the same resample at every checkpoint, because arcs of one sentence are
correlated. Accuracy on minimal pairs is a proportion, so Wilson's interval is enough. In the race, the sentences of
each pair are compared with each other, since sentences of different pairs differ more in length.
"""

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy import stats

from lmdynamics.analysis.intervals import bootstrap_levels, grid, need_columns, resample_counts, wilson, with_wilson
from lmdynamics.errors import UserError, did_you_mean

ALL_PARADIGMS = "all paradigms"  # the name of their average


def uas_by_step(uas: pl.DataFrame, resamples: int = 500, seed: int = 0) -> pl.DataFrame:
    """UAS per step and source: step, source, uas, low, high (95 %, bootstrap over sentences), arcs.

    Below 6 sentences there is no interval: low and high are null.
    And `reachable`, if the trace has it: the share of the arcs that the chosen heads could find; below 1 only in
    causal models.
    """
    need_columns(uas, ["step", "source", "sentence", "arcs", "correct"], "UAS over steps")
    optional, parts = [name for name in ["reachable"] if name in uas.columns], []
    for (source,), rows in sorted(uas.group_by("source")):
        table = grid(rows, "sentence", ["arcs", "correct", *optional], f"UAS ({source})")
        arcs, correct = table.values["arcs"], table.values["correct"]
        counts = resample_counts(len(table.units), resamples, seed)
        with np.errstate(invalid="ignore"):  # a resample of nothing but arcless sentences
            values = (counts @ correct.T) / (counts @ arcs.T)
        levels = bootstrap_levels(len(table.units))
        low, high = (None, None) if levels is None else np.nanpercentile(values, levels, axis=0)
        parts.append(
            pl.DataFrame(
                {
                    "step": table.steps,
                    "source": source,
                    "uas": correct.sum(1) / arcs.sum(1),
                    "low": low,
                    "high": high,
                    "arcs": arcs.sum(1).astype(int),
                    **{name: table.values[name].sum(1) / arcs.sum(1) for name in optional},
                },
                schema_overrides={"step": pl.Int64, "low": pl.Float64, "high": pl.Float64},
            )
        )
    if not parts:
        raise UserError("UAS over steps: the trace has no rows; trace the run first")
    return pl.concat(parts)


def accuracy_by_step(pairs: pl.DataFrame) -> pl.DataFrame:
    """Share of minimal pairs judged right: step, paradigm, accuracy, low, high (95 %, Wilson 1927), pairs.

    And, if the trace has them, the number of ties (which count as wrong), and of pairs judged differently if words are
    scored from left to right: ties, flips (null if not measured).
    """
    need_columns(pairs, ["step", "paradigm", "correct"], "accuracy over steps")
    low, high = wilson(pl.col("accuracy"), pl.col("pairs"))
    optional = {name: column for name, column in {"ties": "tie", "flips": "flips"}.items() if column in pairs.columns}
    sums = {name: summed(column).cast(pl.Int64) for name, column in optional.items()}
    return (
        pairs.group_by("step", "paradigm")
        .agg(
            pl.col("correct").cast(pl.Float64).mean().alias("accuracy"), pl.len().cast(pl.Int64).alias("pairs"), **sums
        )
        .with_columns(low=low, high=high)
        .select("step", "paradigm", "accuracy", "low", "high", "pairs", *optional)
        .sort("paradigm", "step")
    )


def average_accuracy(accuracy: pl.DataFrame, name: str = ALL_PARADIGMS) -> pl.DataFrame:
    """The mean over paradigms at each step, in the shape of `accuracy_by_step`; `pairs` is their sum.

    Paradigms have equal weights, as in BLiMP. The half-widths of their intervals are squared and added (Newcombe 1998),
    so the mean has an interval even if every pair is judged right.
    """
    need_columns(accuracy, ["step", "paradigm", "accuracy", "low", "high", "pairs"], "average accuracy")
    p, low, high = pl.col("accuracy"), pl.col("low"), pl.col("high")
    optional = [name for name in ("ties", "flips") if name in accuracy.columns]
    return (
        accuracy.group_by("step")
        .agg(
            p.mean(),
            low=p.mean() - ((p - low) ** 2).sum().sqrt() / pl.len(),
            high=p.mean() + ((high - p) ** 2).sum().sqrt() / pl.len(),
            **{column: summed(column) for column in ("pairs", *optional)},
        )
        .select("step", pl.lit(name).alias("paradigm"), "accuracy", "low", "high", "pairs", *optional)
        .sort("step")
    )


def summed(column: str) -> pl.Expr:
    """The sum of a column; null if all values are null."""
    return pl.when(pl.col(column).count() > 0).then(pl.col(column).sum())


def ties_and_flips(accuracy: pl.DataFrame) -> list[str]:
    """Sentences on the pairs at the last checkpoint, from `accuracy_by_step`: ties and flips."""
    last = accuracy.filter(pl.col("step") == pl.col("step").max())
    if len(last) > 1:
        last = last.filter(pl.col("paradigm") != ALL_PARADIGMS)
    pairs = last["pairs"].sum()
    sentences = []
    if "ties" in last.columns:
        sentences.append(f"ties count as wrong: {last['ties'].sum():,} of {pairs:,} pairs at the last checkpoint")
    if "flips" in last.columns and last["flips"].count():
        flips = last["flips"].sum()
        share = f"{flips:,} of {pairs:,} pairs ({flips / pairs:.1%})"
        sentences.append(f"with split words scored from left to right, {share} are judged differently")
    return sentences


DIRECTIONS = ("dependent→head", "head→dependent")


def head_history(best: pl.DataFrame, k: int = 3) -> pl.DataFrame:
    """One row per relation, the most frequent first, from a trace's best heads (step × relation).

    `best`: step, relation, layer, head, direction, accuracy, count, offset (accuracy of the best fixed offset).
    Result: relation, count, head ("layer-head" at the last step), direction, accuracy, low, high (95 %, Wilson),
    offset, since (first checkpoint from which this head is always the best), appears (step from which the lower end of
    the interval is always above the offset baseline, at `k` checkpoints or more), not_yet (the checkpoint before: the
    crossing is between the two), first_head ("layer-head" at `appears`), undated (the step from which it is always
    above if this gives no date: the first checkpoint, or one of the last `k` - 1).
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
        changes = [step for step, is_same in zip(frame["step"], same, strict=True) if not is_same]
        since = next(step for step in frame["step"] if not changes or step > changes[-1])
        below = [i for i, is_above in enumerate(frame["low"] > frame["offset"]) if not is_above]
        first = below[-1] + 1 if below else 0
        start = frame.row(first, named=True) if first < len(frame) else None
        appeared = start if 0 < first <= len(frame) - k else None
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
                "undated": start["step"] if start and not appeared else None,
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
    """Each head's better direction at each step for one relation, with the 95 % interval of its accuracy.

    Rows: step, layer, head, direction, accuracy, low, high, count, and whether it is the step's `best`.
    """
    heads = scores.sort("accuracy", descending=True).group_by("step", "layer", "head", maintain_order=True).first()
    heads = with_wilson(heads).with_columns(best=pl.int_range(pl.len()).over("step") == 0)
    return heads.select("step", "layer", "head", "direction", "accuracy", "low", "high", "count", "best")


def describe_relation(history: pl.DataFrame, relation: str) -> str:
    """A sentence on when a relation appeared and in which head, with its control, from `head_history`."""
    row = history.row(by_predicate=pl.col("relation") == relation, named=True)
    scores = (
        f"at the end head {row['head']} ({row['direction']}) finds {row['accuracy']:.1%} [{row['low']:.1%}, "
        f"{row['high']:.1%}] of its {row['count']:,} arcs, the best fixed offset {row['offset']:.1%}"
    )
    if (undated := row["undated"]) is not None:
        if row["not_yet"] is not None:
            return f"{relation} is above the offset only from step {undated:,}, too late to date it: {scores}."
        cause = f"it appeared at or before step {undated:,}, or is there in an untrained model"
        return (
            f"{relation} is above the offset at every checkpoint: {cause if undated else 'nothing appears'}; {scores}."
        )
    if row["appears"] is None:
        return f"{relation} has not appeared to stay: {scores}."
    not_yet = f" (not yet at {row['not_yet']:,})"
    return f"{relation} appears at step {row['appears']:,}{not_yet}, first in head {row['first_head']}; {scores}."


def beyond_position_by_head(offsets: pl.DataFrame, heads: int = 4) -> pl.DataFrame:
    """The best heads for all words at the last checkpoint, and what they find beyond their commonest distance.

    `offsets`: a trace of `HeadOffsets`. Rows: head (layer-head), direction, accuracy, offset, same, beyond, and its
    interval low, high (95 %, Wilson).
    """
    last = offsets.filter(pl.col("step") == pl.col("step").max()).sort("accuracy", descending=True, maintain_order=True)
    last = last.head(heads).with_columns(head=pl.format("{}-{}", "layer", "head"))
    low, high = wilson(pl.col("beyond"), pl.col("elsewhere"))
    return last.select("head", "direction", "accuracy", "offset", "same", "beyond", low=low, high=high)


def within_reach(scores: pl.DataFrame) -> str:
    """A sentence on the share of one relation that heads of a causal model can find; "" if it is all.

    `scores`: rows of `HeadScores` for one relation and split.
    """
    if "reachable" not in scores.columns or not (scores["reachable"] < 1).any():
        return ""
    share = dict(scores.group_by("direction").agg(pl.col("reachable").first()).iter_rows())
    each = ", ".join(
        f"{share[direction]:.0%} of the arcs read {direction}" for direction in DIRECTIONS if direction in share
    )
    return f"a causal model attends to the left only: it can find {each}"


def uas_within_reach(curve: pl.DataFrame) -> str:
    """A sentence on the share of arcs that the chosen heads can find; "" if it is all.

    `curve`: frame of `analysis.syntax.uas_by_step`. The share is lower for shuffled trees if a relation's arcs mostly
    have one direction, which also lowers that control.
    """
    populations = {"per_relation": "of the arcs", "shuffled": "on shuffled trees"}
    curve = curve.filter(pl.col("source").is_in(list(populations)))  # one head for all words finds no root in any model
    if "reachable" not in curve.columns or not (curve["reachable"] < 1).any():
        return ""
    parts = []
    for source, population in populations.items():
        shares = curve.filter(pl.col("source") == source)["reachable"]
        ends = dict.fromkeys(f"{share:.0%}" for share in (shares.min(), shares.max()) if share is not None)
        parts += [f"{' to '.join(ends)} {population}"] if ends else []
    return f"a causal model attends to the left only: its heads can find {', '.join(parts)}"


def predicted_heads(attention: pl.DataFrame, direction: str = DIRECTIONS[0]) -> pl.DataFrame:
    """Each word's predicted head for each attention head: step (if present), layer, head, word, predicted, weight.

    `attention` is a trace of `WordAttention` (query, key, weight). Read as dependent→head, a word's head is the
    word it attends to most; as head→dependent, the word that attends to it most. Ties go to the earlier word. A word
    without weights has no row: in a causal model, the first word read as dependent→head.
    """
    need_columns(attention, ["layer", "head", "query", "key", "weight"], "predicted heads")
    if direction not in DIRECTIONS:
        raise UserError(f"predicted heads: direction {direction!r} is neither {DIRECTIONS[0]!r} nor {DIRECTIONS[1]!r}")
    word, candidate = ("query", "key") if direction == DIRECTIONS[0] else ("key", "query")
    by = [*(["step"] if "step" in attention.columns else []), "layer", "head", word]
    return (
        attention.filter(pl.col("query") != pl.col("key"), pl.col("weight") > 0)
        .sort(*by, "weight", candidate, descending=[*[False] * len(by), True, False])
        .group_by(by, maintain_order=True)
        .first()
        .rename({word: "word", candidate: "predicted"})
        .select(*by[:-1], "word", "predicted", "weight")
    )


RACE = "the race of minimal pairs"


def pair_race(pairs: pl.DataFrame, paradigm: str | None = None, pair: int | None = None) -> pl.DataFrame:
    """Both log-probabilities and their difference at each step, from a trace of `PairAccuracy`.

    One row per step and score: step, paradigm, pair (null for a mean), score, value, low, high (nats), pairs (count).
    `score` is "good", "bad", or "difference": good minus bad of the same pair. Values are means over the pairs
    of one paradigm, or means over paradigms with equal weights. Intervals are Student's, 95 %, over pairs (for several
    paradigms with Satterthwaite's degrees of freedom); null if a paradigm has only one pair.

    Raises UserError if a column or a value is missing, pairs differ between checkpoints, or there is no such paradigm
    or pair.
    """
    need_columns(pairs, ["step", "paradigm", "pair", "good", "bad"], RACE)
    rows = pairs.with_columns(pl.col("paradigm").cast(pl.String))
    if rows.is_empty():
        raise UserError(f"{RACE}: the trace has no rows; trace PairAccuracy on some pairs first")
    if paradigm is not None:
        paradigms = rows["paradigm"].unique().to_list()
        rows = rows.filter(pl.col("paradigm") == paradigm)
        if rows.is_empty():
            raise UserError(f"{RACE}: there is no paradigm {paradigm!r}{did_you_mean(paradigm, paradigms)}")
    if pair is not None:
        rows = rows.filter(pl.col("pair") == pair)
        if rows.is_empty():
            raise UserError(f"{RACE}: there is no pair {pair}" + (f" in {paradigm}" if paradigm else ""))
    table = grid(rows, "pair", ["good", "bad"], RACE)
    names = rows.unique("pair").sort("pair")["paradigm"].to_numpy()
    distinct = sorted(set(names))
    good, bad = table.values["good"], table.values["bad"]
    parts = []
    for score, values in (("good", good), ("bad", bad), ("difference", good - bad)):
        mean, reach = _mean_over_paradigms([values[:, names == name] for name in distinct])
        reach = [None] * len(mean) if reach is None else reach
        parts.append(pl.DataFrame({"step": table.steps, "score": score, "value": mean, "reach": reach}))
    reach = pl.col("reach").cast(pl.Float64)
    return (
        pl.concat(parts, how="vertical_relaxed")
        .with_columns(
            pl.col("step").cast(pl.Int64),
            paradigm=pl.lit(distinct[0] if len(distinct) == 1 else ALL_PARADIGMS),
            pair=pl.lit(pair, pl.Int64),
            low=pl.col("value") - reach,
            high=pl.col("value") + reach,
            pairs=pl.lit(len(table.units), pl.Int64),
        )
        .select("step", "paradigm", "pair", "score", "value", "low", "high", "pairs")
        .sort("step", maintain_order=True)
    )


def leads_from(race: pl.DataFrame, k: int = 3) -> int | None:
    """The first step from which the difference, or its lower bound if it has one, is always above 0.

    `race`: frame of `pair_race`. None if this holds at fewer than the last `k` checkpoints,
    unless there are no others.
    """
    rows = race.filter(pl.col("score") == "difference").sort("step")
    behind = ~(pl.coalesce("low", "value") > 0)
    later = rows.with_columns(behind=behind.cast(pl.Int64).reverse().cum_sum().reverse()).filter(pl.col("behind") == 0)
    return None if len(later) < min(k, len(rows)) or later.is_empty() else int(later["step"][0])


def judged_right(pairs: pl.DataFrame) -> pl.DataFrame:
    """Share of pairs judged right: `accuracy_by_step`; of several paradigms, rows of `average_accuracy` come first."""
    accuracy = accuracy_by_step(pairs.with_columns(pl.col("paradigm").cast(pl.String)))
    if accuracy["paradigm"].n_unique() < 2:
        return accuracy
    return pl.concat([average_accuracy(accuracy, ALL_PARADIGMS), accuracy])


def _mean_over_paradigms(
    parts: list[Float[np.ndarray, "steps _"]],
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"] | None]:
    """Mean over paradigms of the mean over pairs, and half the width of its 95 % interval; None if unknown."""
    mean = np.mean([part.mean(1) for part in parts], axis=0)
    counts = np.array([part.shape[1] for part in parts])[:, None]
    if counts.min() < 2:
        return mean, None
    errors = np.array([part.var(1, ddof=1) for part in parts]) / counts
    total = errors.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):  # without spread the width is 0 for any degrees of freedom
        freedom = np.where(total > 0, 1 / ((errors / total) ** 2 / (counts - 1)).sum(0), 1.0)
    return mean, stats.t.ppf(0.975, freedom) * np.sqrt(total) / len(parts)

"""Whose loss is traded for whose: changes of per-token loss between checkpoints, and how far they cancel.

Mircea et al. 2025 (arXiv 2506.05447): with changes x of per-token loss (nats), destructive interference is
D = 1 - |Σ x| / Σ |x|, magnitude M = mean |x|, and the change of the mean loss |ΔL| = M (1 - D). Over a doubling of
training, from step t to 2t, D rises towards 1 once the loss decelerates: what some tokens gain, others lose.
"""

from collections.abc import Iterable, Mapping, Sequence

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
    with_interval,
)
from lmdynamics.errors import UserError

TOKEN = ("row", "position", "token")
PAIR = ("step", "until")


def doublings(losses: pl.DataFrame) -> pl.DataFrame:
    """The change of every token's loss over each doubling of training that both ends were measured at.

    `losses`: a trace of `TokenLosses` (step, row, position, token, loss). Rows: step (Int64, t), until (Int64, 2t),
    row, position, token, loss (Float64, nats, at t), change (Float64; negative: the token gained).

    Raises UserError if there is no pair of steps t, 2t, a loss is no finite number, or checkpoints were measured on
    other tokens.
    """
    need_columns(losses, ["step"], "doublings")
    steps = losses["step"].unique().sort().to_list()
    pairs = [(step, 2 * step) for step in steps if step and 2 * step in set(steps)]
    if not pairs:
        raise UserError(f"none of the steps {_some(steps)} is the double of another; measure at 1, 2, 4, ...")
    return changes_between(losses, pairs)


def changes_between(losses: pl.DataFrame, pairs: Iterable[tuple[int, int]]) -> pl.DataFrame:
    """The change of every token's loss from the first to the second step of each pair: columns as of `doublings`."""
    need_numbers(losses, ["step", *TOKEN, "loss"], "changes of loss")
    of = {
        step: frame for (step,), frame in losses.sort("step", "row", "position").group_by("step", maintain_order=True)
    }
    parts = []
    for step, until in pairs:
        for end in (step, until):
            if end not in of:
                raise UserError(f"no losses at step {end}; there are some at {_some(sorted(of))}")
        parts.append(_difference(of[step], of[until], step, until))
    return pl.concat(parts)


def between_runs(losses: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """A control: at each step both have, the losses of another run of the same recipe (another seed) less these.

    As far as two runs have learnt the same amount, what one token has over the other run's another must lack: then D
    is close to 1, and M says how far models differ that are equally good. Where the runs stand apart, `mean_change`
    says by how much. Changes over a doubling no larger than such an M may be wandering, not trading. Columns as of
    `doublings`; `until` is `step`.

    Raises UserError if no step was measured in both, or not on the same tokens.
    """
    for frame in (losses, others):
        need_numbers(frame, ["step", *TOKEN, "loss"], "losses of two runs")
    shared = sorted(set(losses["step"].unique()) & set(others["step"].unique()))
    if not shared:
        raise UserError("the two runs were not measured at any step in common; trace them at the same steps")
    return pl.concat(
        [
            _difference(
                *(frame.filter(pl.col("step") == step).sort("row", "position") for frame in (losses, others)),
                step,
                step,
            )
            for step in shared
        ]
    )


def _difference(before: pl.DataFrame, after: pl.DataFrame, step: int, until: int) -> pl.DataFrame:
    """Both sorted by row and position."""
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

    Rows, in the order in which `by` first has them: *by, interference, magnitude, mean_change (signed, nats per token),
    each with _low and _high, tokens, rows (of text). Where nothing changes there is no interference (null); one row
    of text, or no resamples, give no intervals (null).

    D is a ratio with a kink where the mean change passes zero. Resampled is therefore the signed ratio Σ x / Σ |x|, in
    the direction in which the mean has moved, and the interval ends at 1 where it passes zero: so it holds D = 1 when
    the mean change may be zero, which resamples of D itself, all below 1, would exclude.

    Raises UserError if a column is missing, or a change is no finite number.
    """
    need_numbers(changes, [*by, "row", "change"], "interference")
    made = _sums(changes, by, resamples, seed)
    net, size, tokens, rows = (made.total(name) for name in ("net", "size", "tokens", "rows"))
    drawn_net, drawn_size, drawn_tokens = (made.drawn(name) for name in ("net", "size", "tokens"))
    numbers = (
        with_bounds("interference", interference(net, size), _around(net, drawn_net, drawn_size, rows))
        | with_bounds("magnitude", size / tokens, interval(ratio(drawn_size, drawn_tokens), rows))
        | with_bounds("mean_change", net / tokens, interval(ratio(drawn_net, drawn_tokens), rows))
    )
    counts = [pl.Series(name, made.total(name).astype(np.int64)) for name in ("tokens", "rows")]
    return made.keys.hstack([*as_columns(numbers), *counts])


def _sums(changes: pl.DataFrame, by: Sequence[str], resamples: int, seed: int) -> RowSums:
    change = pl.col("change").cast(pl.Float64)
    sums = {"net": change.sum(), "size": change.abs().sum(), "tokens": pl.len(), "rows": pl.lit(1)}
    return row_sums(changes, by, sums, resamples=resamples, seed=seed)


def interference(net: Float[np.ndarray, "*shape"], size: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """D from Σ x and Σ |x|, NaN where nothing changes."""
    return np.clip(1 - ratio(np.abs(net), size), 0, 1)  # beyond 0 by rounding


def unfolded(
    net: Float[np.ndarray, " groups"],
    drawn_net: Float[np.ndarray, "resamples groups"],
    drawn_size: Float[np.ndarray, "resamples groups"],
) -> Float[np.ndarray, "resamples groups"]:
    """D in each resample, above 1 where its mean change has the other sign than that of all rows."""
    return 1 - ratio(np.where(net < 0, -1.0, 1.0) * drawn_net, drawn_size)


def _around(net, drawn_net, drawn_size, rows) -> tuple[np.ndarray, np.ndarray]:
    """The interval of D of each group, which ends at 1."""
    low, high = interval(unfolded(net, drawn_net, drawn_size), rows)
    return np.minimum(low, 1), np.minimum(high, 1)


def rises_across(
    changes: pl.DataFrame,
    breaks: Mapping[str, float | None] | float | None,
    resamples: int = 500,
    seed: int = 0,
) -> pl.DataFrame:
    """Whether interference rises across the break of the loss curve: a row, with a sentence, for each curve.

    `changes`: of `doublings`, with `curve` where there are several; `breaks`: t_d of each curve by its name (None: it
    has none), or one for all. Compared are the mean of D over the doublings that end at or before t_d and over those
    that begin at or after it; the one that holds it is left out. The interval of their difference is 95 %, over rows
    of text drawn jointly for all doublings: it says nothing of how another run would turn out.

    Rows: curve, break, before, after, difference, low, high, doublings_before, doublings_after, verdict ("rises",
    "falls", "undecided"), sentence.

    Raises UserError if a column is missing, a change is no finite number, or a curve is not among `breaks`.
    """
    if "curve" not in changes.columns:
        changes = changes.with_columns(curve=pl.lit("the curve"))
    need_numbers(changes, ["curve", *PAIR, "row", "change"], "interference across a break")
    rows = []
    for (curve,), of in changes.group_by("curve", maintain_order=True):
        if isinstance(breaks, Mapping) and curve not in breaks:
            raise UserError(f"no break is given for {curve!r}; give None if its loss curve has none")
        at = breaks[curve] if isinstance(breaks, Mapping) else breaks
        rows.append({"curve": curve, "break": at} | _across(of, at, resamples, seed))
    schema = {"curve": pl.String} | dict.fromkeys(["break", "before", "after", "difference", "low", "high"], pl.Float64)
    schema |= {"doublings_before": pl.Int64, "doublings_after": pl.Int64, "verdict": pl.String}
    table = pl.DataFrame(rows, schema)
    return table.with_columns(sentence=pl.Series([_told(row) for row in table.to_dicts()], dtype=pl.String))


def _across(changes: pl.DataFrame, at: float | None, resamples: int, seed: int) -> dict[str, float | int | str | None]:
    made = _sums(changes, PAIR, resamples, seed)
    each = interference(made.total("net"), made.total("size"))
    drawn = unfolded(made.total("net"), made.drawn("net"), made.drawn("size"))
    moved = np.isfinite(each)
    step, until = (made.keys[name].to_numpy() for name in PAIR)
    before, after = (until <= (at or 0)) & moved, (step >= (at or np.inf)) & moved
    found = {"doublings_before": int(before.sum()), "doublings_after": int(after.sum()), "verdict": "undecided"}
    if before.any():
        found["before"] = float(each[before].mean())
    if after.any():
        found["after"] = float(each[after].mean())
    if not (before.any() and after.any()):
        return found
    differences = drawn[:, after].mean(1) - drawn[:, before].mean(1)
    low, high = interval(differences[:, None], np.array([changes["row"].n_unique()], float))
    found["difference"] = found["after"] - found["before"]
    if np.isfinite(low[0]):
        found |= {"low": float(low[0]), "high": float(high[0])}
        found["verdict"] = "rises" if low[0] > 0 else "falls" if high[0] < 0 else "undecided"
    return found


def _told(row: dict) -> str:
    if row["break"] is None:
        return f"{row['curve']}: its loss curve has no break to compare across."
    if row["difference"] is None:
        side = "ends before" if row["before"] is None else "begins after"
        return (
            f"{row['curve']}: no doubling {side} the break at step {row['break']:,.0f}, so there is nothing to compare."
        )
    how = "does not clearly move" if row["verdict"] == "undecided" else row["verdict"]
    difference = with_interval(row["difference"], (row["low"], row["high"]), "+.2f")
    return (
        f"{row['curve']}: interference {how} across the break at step {row['break']:,.0f}, from {row['before']:.2f} to "
        f"{row['after']:.2f} ({difference}; {row['doublings_before']} and {row['doublings_after']} "
        "doublings)."
    )


def _some(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:8]))
    return shown if len(steps) <= 8 else f"{shown}, ..."


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

    Raises UserError if a column is missing, a change is no finite number, or `groups` gives a token two groups, or none
    any.
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
    net, drawn_net = lost - gained, drawn_lost - drawn_gained
    numbers = {}
    for name, value, drawn in (("gained", gained, drawn_gained), ("lost", lost, drawn_lost), ("net", net, drawn_net)):
        numbers |= with_bounds(name, value / tokens, interval(ratio(drawn, drawn_tokens), rows))
    around = _around(net, drawn_net, drawn_lost + drawn_gained, rows)
    numbers |= with_bounds("interference", interference(net, lost + gained), around)
    return made.keys.hstack([*as_columns(numbers), pl.Series("tokens", made.total("tokens").astype(np.int64))])


def winners_and_losers(changes: pl.DataFrame, n: int = 8, at_least: int = 10, by: Sequence[str] = ()) -> pl.DataFrame:
    """The tokens whose loss fell and rose most on average, `n` of each at most, in each group of `by`.

    Only tokens that occur `at_least` times count, and only those whose mean really fell or rose. Rows: *by, kind
    ("winner" first, then "loser", the most extreme first), token, change (mean, nats), stderr (of that mean,
    occurrences taken as independent; null for one), count.

    Raises UserError if a column is missing, a change is no finite number, or no token occurs that often.
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

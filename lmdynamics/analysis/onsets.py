"""Onsets of syntactic attention structure and of grammatical capabilities, with intervals and controls.

Chen et al. 2023 (arXiv 2309.07311) date both by eye. Here each has a rule, an interval and a control:

(b) the onset: the first of k consecutive checkpoints that exceed the control by more than a margin, in addition to the
    excess of the first checkpoint, which is an untrained model if it is step 0;
(a) additionally: the checkpoint with the largest acceleration of the value (its running maximum) over log(step).

The bootstrap resamples sentences (or pairs) once per resample, for all checkpoints and the control together.
An onset is reported only if its 95 % interval is bounded: at least 97.5 % of the resamples must have an onset. It is
not dated if the first checkpoint is not step 0 and exceeds the control by more than the margin: this excess may have
been learnt earlier, or be present in an untrained model. It is rejected if the control rises too: if, from half the
onset's step to twice that step, the control gains more than the margin and more than half as much as the value. The
control is subtracted from the value before dating, so the control may drift, but not cause most of the rise.
"""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from lmdynamics.analysis.intervals import grid, need_columns, resample_counts
from lmdynamics.errors import UserError

HALF_WIDTH = float(np.log(2))  # acceleration is computed over a factor of two in steps on either side
BOUNDED = 0.975  # share of resamples that must have an onset for the interval to be bounded


@dataclass(frozen=True)
class Onset:
    """One onset, or its absence. Steps are optimizer steps; intervals are 95 % bootstrap percentiles.

    `low` is the checkpoint before the lower percentile: the crossing lies between the two, so no interval is narrower
    than the gap between two checkpoints. `at_or_before`: if an onset cannot be dated because the run begins late
    (left-censored), the latest possible step of the onset; None if there may have been no onset.
    """

    name: str
    step: int | None
    low: int | None
    high: int | None
    acceleration_step: int | None
    acceleration_low: int | None
    acceleration_high: int | None
    control_step: int | None  # the step at which the control rises with the value; then there is no onset
    reason: str  # one sentence
    share: float = 0.0  # of resamples with an onset
    at_or_before: int | None = None

    def __str__(self) -> str:
        if self.at_or_before is not None:
            return f"{self.name} onset at or before step {self.at_or_before:,}, not dated ({self.reason})"
        if self.step is None:
            return f"{self.name}: no onset ({self.reason})"
        interval = ", no interval" if self.low is None else f" [{self.low:,}, {self.high:,}]"
        return f"{self.name} onset at step {self.step:,}{interval}"

    def describe(self) -> str:
        """The onset, its reason, and the largest acceleration: some lines to print, or one without an onset."""
        if self.step is None:
            return str(self)
        bend = ""
        if self.acceleration_step is not None:
            bend = f"; largest acceleration at step {self.acceleration_step:,}"
            if self.acceleration_low is not None:
                bend += f" [{self.acceleration_low:,}, {self.acceleration_high:,}]"
        return f"{self}{bend}\n  " + self.reason.replace("; ", ";\n  ")


def structure_onset(
    uas: pl.DataFrame,
    control: str = "shuffled",
    source: str = "per_relation",
    k: int = 3,
    margin: float = 0.1,
    resamples: int = 500,
    seed: int = 0,
) -> Onset:
    """The onset of syntactic attention structure, from a trace of `UAS` (rows: step × sentence × source).

    `control` is the source to exceed: "shuffled" (the same selection of heads on trees with shuffled arcs: is this
    syntax at all?) or "offset" (the best fixed offset per relation: is it more than position?). The second is exceeded
    much later, and never by small models. For `source="single_head"` they are "single_shuffled" and "single_offset".
    The default margin is above the slow initial rise of a few points, when heads
    learn which words are near and which are often heads.

    Raises UserError if columns or sources are missing, values are NaN, or the sentences differ between checkpoints.
    """
    need_columns(uas, ["step", "source", "sentence", "arcs", "correct"], "structure onset")
    for name in (source, control):
        if name not in (known := uas["source"].unique().sort().to_list()):
            raise UserError(f"structure onset: no source {name!r} in the trace; it has {', '.join(known) or 'no rows'}")
    tables = [
        grid(uas.filter(pl.col("source") == name), "sentence", ["arcs", "correct"], f"structure onset ({name})")
        for name in (source, control)
    ]
    if tables[0].steps != tables[1].steps or tables[0].units != tables[1].units:
        raise UserError(
            f"structure onset: {source!r} and {control!r} were measured at different steps or on different sentences; "
            "trace both together"
        )
    steps, sentences = np.array(tables[0].steps), len(tables[0].units)
    counts = np.concatenate([np.ones((1, sentences), np.float32), resample_counts(sentences, resamples, seed)])
    with np.errstate(invalid="ignore"):  # a resample of sentences without arcs has no onset
        value, control_value = ((counts @ t.values["correct"].T) / (counts @ t.values["arcs"].T) for t in tables)
    name = "structure beyond position" if control.endswith("offset") else "structure"
    name += " (one head)" if source == "single_head" else ""
    return _onset(_Curves(name, steps, value, control_value, f"the {control} control", control_value), k, margin)


def capabilities_onset(
    pairs: pl.DataFrame,
    chance: float = 0.5,
    paradigms: list[str] | None = None,
    k: int = 3,
    margin: float = 0.1,
    resamples: int = 500,
    seed: int = 0,
) -> Onset:
    """The onset of grammaticality, from a trace of `PairAccuracy` (rows: step × pair).

    The value is the mean over paradigms of the share of pairs judged right (BLiMP's average), resampled over
    pairs within each paradigm; it must exceed `chance`. The control is the same pairs, with good and bad
    exchanged in half of them, chosen once by `seed`: it stays at chance if only grammaticality changes.

    Raises UserError if columns or paradigms are missing, values are NaN, or the pairs differ between checkpoints.
    """
    need_columns(pairs, ["step", "paradigm", "pair", "correct"], "capabilities onset")
    for name in {"good", "bad"} & set(pairs.columns):
        grid(pairs, "pair", [name], "capabilities onset")  # rejects NaN: a comparison with NaN is not a judgement
    names = paradigms or pairs["paradigm"].unique().sort().to_list()
    if unknown := sorted(set(names) - set(pairs["paradigm"].unique())):
        raise UserError(f"capabilities onset: no pairs of the paradigm {unknown[0]!r} in the trace")
    tables = [
        grid(pairs.filter(pl.col("paradigm") == name), "pair", ["correct"], f"capabilities onset ({name})")
        for name in names
    ]
    if not tables or len({table.steps for table in tables}) > 1:
        raise UserError(
            "capabilities onset: paradigms were measured at different steps, or not at all; trace all together"
        )
    steps = np.array(tables[0].steps)
    value, exchanged = (np.zeros((resamples + 1, len(steps))) for _ in range(2))
    rng = np.random.default_rng(seed)
    for index, table in enumerate(tables):
        units, correct = len(table.units), table.values["correct"].astype(np.float32)
        counts = np.concatenate([np.ones((1, units), np.float32), resample_counts(units, resamples, seed + index)])
        flipped = rng.permutation(units) < units // 2
        value += counts @ correct.T / units / len(tables)
        exchanged += counts @ np.where(flipped, 1 - correct, correct).T / units / len(tables)
    level = np.full_like(value, chance)
    return _onset(_Curves("capabilities", steps, value, level, "chance", exchanged), k, margin)


def date_curve(
    name: str,
    steps: Int[np.ndarray, " steps"],
    value: Float[np.ndarray, "resamples steps"],
    level: Float[np.ndarray, "resamples steps"],
    against: str,
    *,
    k: int = 3,
    margin: float = 0.1,
) -> Onset:
    """The onset of any curve by both rules: where `value` exceeds `level`, which is also its control.

    Row 0 of both arrays is the data, the other rows are resamples. `against`: the name of the level.
    """
    return _onset(_Curves(name, steps, value, level, against, level), k, margin)


@dataclass(frozen=True)
class _Curves:
    """The curves of an onset. Row 0 of each array is the data, the other rows are resamples."""

    name: str
    steps: Int[np.ndarray, " steps"]
    value: Float[np.ndarray, "resamples steps"]
    level: Float[np.ndarray, "resamples steps"]  # which the value must exceed
    against: str  # name of the level
    control: Float[np.ndarray, "resamples steps"]  # which may not rise with the value


def _onset(curves: _Curves, k: int, margin: float) -> Onset:
    """Both rules for every row, if the first checkpoint can count as an untrained model."""
    steps, against = curves.steps, curves.against
    if len(steps) < k + 1:
        return no_onset(curves.name, f"{len(steps)} checkpoint(s) are too few to see {k} in a row rise above the start")
    onset = _date(curves, k, margin)
    above = float(curves.value[0, 0] - curves.level[0, 0])
    if steps[0] == 0 or not above > margin:
        return onset
    start = (
        f"already {above:.3f} above {against} at step {steps[0]:,}, the first checkpoint; without step 0 an untrained"
    )
    if onset.step is not None:
        reason = f"{start} model cannot be compared; it rises further above it from step {onset.step:,} on"
        return replace(no_onset(curves.name, reason, share=onset.share), at_or_before=onset.step)
    return no_onset(
        curves.name,
        f"{start} model may be as far above; an onset would be at or before that step",
        share=onset.share,
    )


def _date(curves: _Curves, k: int, margin: float) -> Onset:
    """Both rules, with the first checkpoint as the untrained model."""
    name, steps, against = curves.name, curves.steps, curves.against
    gap = curves.value - curves.level
    untrained = np.maximum(gap[:, :1], 0)
    crossed, first = first_run(gap - untrained > margin, k)
    share = float(crossed[1:].mean()) if len(crossed) > 1 else float(crossed[0])
    criterion = f"more than {margin:g} above {against}" if margin else f"above {against}"
    if lead := round(float(untrained[0, 0]), 2):
        criterion += f", beyond its lead of {lead} at step {steps[0]:,},"
    if not crossed[0]:
        rise = np.nan_to_num((gap - untrained)[0], nan=-np.inf)
        best = int(rise.argmax())
        reason = f"never {criterion} {k} times running; the most was {rise[best]:+.3f}"
        return no_onset(name, f"{reason}, at step {steps[best]:,}", share=share)
    if share < BOUNDED:
        return no_onset(name, f"only in {share:.0%} of the resamples {criterion} {k} times running", share=share)
    step = int(steps[first[0]])
    before, after = np.searchsorted(steps, step / 2, "right") - 1, np.searchsorted(steps, step * 2)
    window = [max(before, 0), min(after, len(steps) - 1)]
    gain, control_gain = (float(np.diff(curve[0, window])[0]) for curve in (curves.value, curves.control))
    gain_text = f"from step {steps[window[0]]:,} to {steps[window[1]]:,} the value gains {gain:.2f}"
    gain_text += f", the control {control_gain:.2f}"
    if control_gain > max(margin, gain / 2):
        return no_onset(name, f"the control rises too: {gain_text}", step, share)
    low, high = step_interval(steps, np.where(crossed, first, len(steps))[1:])
    if low is not None:  # the crossing is after the previous checkpoint: intervals are not finer than checkpoints
        low = int(steps[int(np.searchsorted(steps, low)) - 1])
    bend, bend_low, bend_high = _acceleration(steps, curves.value)
    reason = f"{criterion} from step {step:,} on, {k} checkpoints running; {gain_text}"
    return Onset(name, step, low, high, bend, bend_low, bend_high, None, reason, share)


def no_onset(name: str, reason: str, control_step: int | None = None, share: float = 0.0) -> Onset:
    """The absence of an onset, with its reason."""
    return Onset(name, None, None, None, None, None, None, control_step, reason, share)


def first_run(above: Bool[np.ndarray, "rows steps"], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Per row: whether there is a run of `k` consecutive True, and the start of the first one (0 if there is none)."""
    runs = np.lib.stride_tricks.sliding_window_view(above, k, axis=1).all(-1)
    return runs.any(1), runs.argmax(1)


def _acceleration(steps: Int[np.ndarray, " steps"], value: Float[np.ndarray, "resamples steps"]):
    """Step of the largest second derivative over log(step), with its interval; step 0 has no logarithm.

    The running maximum is used: recovery from a dip is not a rise.
    """
    positive = steps > 0
    curvature = local_derivative(np.log(steps[positive]), HALF_WIDTH, 2)
    known = np.isfinite(curvature).all(1)
    if not known.any():
        return None, None, None
    highest = np.maximum.accumulate(np.nan_to_num(value[:, positive]), axis=1)
    index = (highest @ curvature[known].T).argmax(1)
    known_steps = steps[positive][known]
    low, high = step_interval(known_steps, index[1:])
    if low is not None:  # the bend lies between its neighbouring checkpoints: intervals are not finer than those
        low = int(steps[max(int(np.searchsorted(steps, low)) - 1, 0)])
        high = int(steps[min(int(np.searchsorted(steps, high)) + 1, len(steps) - 1)])
    return int(known_steps[index[0]]), low, high


def step_interval(
    steps: Int[np.ndarray, " steps"], index: Int[np.ndarray, " resamples"]
) -> tuple[int | None, int | None]:
    """95 % percentile interval of checkpoint indices, as steps; (None, None) without resamples."""
    if not len(index):
        return None, None
    low, high = np.percentile(index, [2.5, 97.5], method="inverted_cdf").astype(int)
    return int(steps[low]), int(steps[high]) if high < len(steps) else None


def in_order(first: Onset, second: Onset) -> str:
    """A sentence on whether `first` comes before `second`, according to their intervals."""
    if first.step is None or second.step is None:
        absent = " and ".join(_absent(onset) for onset in (first, second) if onset.step is None)
        return f"The order is undefined: {absent}."
    if None in (first.low, first.high, second.low, second.high):
        return f"{first.name} at step {first.step:,}, {second.name} at step {second.step:,}; there are no intervals."
    early, late = sorted((first, second), key=lambda onset: (onset.step, onset.low))
    intervals = f"{early.name} [{early.low:,}, {early.high:,}], {late.name} [{late.low:,}, {late.high:,}]"
    if early.high >= late.low and early.low <= late.high:
        return f"The intervals overlap, so neither comes first: {intervals}."
    return f"{_sentence_case(early.name)} comes first, and the intervals do not overlap: {intervals}."


def order_of_onsets(
    structure: Onset, beyond_position: Onset, capabilities: Onset, curve: pl.DataFrame
) -> tuple[str, str]:
    """Whether structure comes before the capabilities, by both of its controls: two sentences.

    `structure` is dated against shuffled trees, `beyond_position` against the best fixed offset; `curve`: of
    `uas_by_step`, for the UAS of heads and of position alone at the structure onset.
    """
    loose, strict = in_order(structure, capabilities), in_order(beyond_position, capabilities)
    if structure.step is not None:
        uas = dict(curve.filter(pl.col("step") == structure.step).select("source", "uas").iter_rows())
        heads, position = uas["per_relation"], uas["offset"]
        relation = "less than" if heads < position else "and"
        loose += (
            f" At step {structure.step:,} heads find {heads:.0%} of the arcs, {relation} position alone {position:.0%}."
        )
    return f"Beyond shuffled trees: {loose}", f"Beyond position: {strict}"


def _absent(onset: Onset) -> str:
    if onset.at_or_before is None:
        return f"no {onset.name} onset"
    return f"{onset.name} onset at or before step {onset.at_or_before:,}, not dated"


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def rise_window(steps: list[int], values: list[float], low: float = 0.1, high: float = 0.9) -> tuple[int, int] | None:
    """Where a curve rises: from the last checkpoint at or below the share `low` of the rise, before the first one at or
    above `high`, to that one.

    The rise is from the first value to the largest. None if the curve never exceeds its first value.

    Raises UserError if there are no values, or they are not numbers.
    """
    values = np.asarray(values, dtype=float)
    if not len(values) or not np.isfinite(values).all():
        raise UserError("a rise needs numbers at every checkpoint; trace the run again, or keep the steps before NaN")
    share = values - values[0]
    if share.max() <= 0:
        return None
    share = share / share.max()
    top = int(np.argmax(share >= high))
    bottom = int(np.flatnonzero(share[:top] <= low)[-1])
    return steps[bottom], steps[top]


def local_derivative(
    x: Float[np.ndarray, " points"], half_width: float, order: int, neighbours: int = 2
) -> Float[np.ndarray, "points points"]:
    """Matrix D with D @ y ≈ the first or second derivative (`order`): a weighted quadratic through the points around.

    A difference divides noise by the gap or its square, so the closest checkpoints would dominate. Here each point uses
    the points within `half_width` (same unit as `x`), or up to its `neighbours`-th neighbour on either side if those
    are further apart; tricube weights (Cleveland 1979). Points with fewer than `neighbours` on one side get a row of
    NaN: the derivative at an end of a curve is unknown.
    """
    n = len(x)
    weights = np.full((n, n), np.nan)
    for i in range(neighbours, n - neighbours):
        reach = max(half_width, x[i] - x[i - neighbours], x[i + neighbours] - x[i]) * (1 + 1e-6)
        distance = (x - x[i]) / reach
        inside = np.abs(distance) < 1
        # 0.01 keeps the outermost point, whose tricube weight is almost zero
        root = np.sqrt((1 - np.abs(distance[inside]) ** 3) ** 3 + 0.01)
        powers = np.stack([np.ones(inside.sum()), distance[inside], distance[inside] ** 2], axis=1)
        weights[i] = 0.0
        weights[i, inside] = order * np.linalg.pinv(powers * root[:, None])[order] * root / reach**order
    return weights

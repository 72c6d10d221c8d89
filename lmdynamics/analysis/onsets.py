"""When syntactic attention structure appears, when grammatical capabilities follow, and whether we may say so.

Chen et al. 2023 (arXiv 2309.07311) date both by eye; here each is a rule with an interval and a control:

(b) the headline: the first checkpoint from which k consecutive ones exceed the control by more than a margin,
    beyond whatever the first checkpoint already exceeds it by: an untrained model, if that is step 0;
(a) beside it: the checkpoint with the largest acceleration of the value (the largest so far) over log(step).

The bootstrap resamples sentences (or pairs) once per resample, for all checkpoints and the control together.
An onset is reported only if its 95 % interval is bounded, that is, if at least 97.5 % of the resamples have
one. It is not dated where the first checkpoint is not step 0 and exceeds the control by more than the margin: what is
seen there may have been learnt before, or be what an untrained model does. It is refused if the control moves too: if,
from half the onset's step to twice that step, the control gains more than the margin and more than half of what the
value gains. Whatever the control shares with the value is subtracted before anything is dated, so a control may drift;
it may not carry most of the rise.
"""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from lmdynamics.analysis.intervals import grid, need_columns, resample_counts
from lmdynamics.errors import UserError

HALF_WIDTH = float(np.log(2))  # acceleration is read over a factor of two in steps, to either side
BOUNDED = 0.975  # share of resamples that must have an onset for the interval to be bounded


@dataclass(frozen=True)
class Onset:
    """One onset, or its absence. Steps are optimizer steps; intervals are 95 % bootstrap percentiles.

    `low` is the checkpoint before the lower percentile: the crossing lies between the two, so no interval is narrower
    than the gap between two checkpoints. `at_or_before`: where an onset cannot be dated because the run begins late
    (left-censored), the step by which it had come at the latest; None if there may have been none at all.
    """

    name: str
    step: int | None
    low: int | None
    high: int | None
    acceleration_step: int | None
    acceleration_low: int | None
    acceleration_high: int | None
    control_step: int | None  # where the control rises with the value; then there is no onset
    reason: str  # one sentence a person can read
    share: float = 0.0  # of the resamples, those with an onset
    at_or_before: int | None = None

    def __str__(self) -> str:
        if self.at_or_before is not None:
            return f"{self.name} onset at or before step {self.at_or_before:,}, not dated ({self.reason})"
        if self.step is None:
            return f"{self.name}: no onset ({self.reason})"
        interval = ", no interval" if self.low is None else f" [{self.low:,}, {self.high:,}]"
        return f"{self.name} onset at step {self.step:,}{interval}"

    def describe(self) -> str:
        """The onset, what it rests on, and where the curve bends most: some lines to print, or one if there is none."""
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
    source: str = "attention",
    k: int = 3,
    margin: float = 0.1,
    resamples: int = 500,
    seed: int = 0,
) -> Onset:
    """The onset of syntactic attention structure, from a trace of `UAS` (rows: step × sentence × source).

    `control` names the source to exceed: "shuffled" (the same heads-by-selection procedure on trees with
    shuffled arcs: is this syntax at all?) or "offset" (the best fixed offset per relation: is it more than
    position?). The second is passed much later, and by small models never. The default margin is above the slow
    rise of a few points that comes first, when heads learn which words lie near and which are often heads.

    Raises UserError if columns or sources are missing, values are NaN, or the sentences differ between checkpoints.
    """
    need_columns(uas, ["step", "source", "sentence", "arcs", "correct"], "structure onset")
    for wanted in (source, control):
        if wanted not in (known := uas["source"].unique().sort().to_list()):
            raise UserError(
                f"structure onset: no source {wanted!r} in the trace; it has {', '.join(known) or 'no rows'}"
            )
    tables = [
        grid(uas.filter(pl.col("source") == name), "sentence", ["arcs", "correct"], f"structure onset ({name})")
        for name in (source, control)
    ]
    if tables[0].steps != tables[1].steps or tables[0].units != tables[1].units:
        raise UserError(
            f"structure onset: {source!r} and {control!r} were measured at other steps or on other sentences; "
            "trace both together"
        )
    steps, sentences = np.array(tables[0].steps), len(tables[0].units)
    counts = np.concatenate([np.ones((1, sentences), np.float32), resample_counts(sentences, resamples, seed)])
    with np.errstate(invalid="ignore"):  # a resample of nothing but arcless sentences is no onset
        value, against = ((counts @ t.values["correct"].T) / (counts @ t.values["arcs"].T) for t in tables)
    name = "structure beyond position" if control == "offset" else "structure"
    return _onset(_Curves(name, steps, value, against, f"the {control} control", against), k, margin)


def capabilities_onset(
    pairs: pl.DataFrame,
    chance: float = 0.5,
    paradigms: list[str] | None = None,
    k: int = 3,
    margin: float = 0.1,
    resamples: int = 500,
    seed: int = 0,
) -> Onset:
    """The break in grammaticality that follows, from a trace of `PairAccuracy` (rows: step × pair).

    The value is the mean over paradigms of the share of pairs judged right (BLiMP's average), resampled over
    pairs within each paradigm; it must exceed `chance`. The control is the same pairs with good and bad
    exchanged in half of them, drawn once by `seed`: whatever is not grammaticality leaves it at chance.

    Raises UserError if columns or paradigms are missing, values are NaN, or the pairs differ between checkpoints.
    """
    need_columns(pairs, ["step", "paradigm", "pair", "correct"], "capabilities onset")
    for name in {"good", "bad"} & set(pairs.columns):
        grid(pairs, "pair", [name], "capabilities onset")  # refuses NaN: a comparison with NaN is not a judgement
    chosen = paradigms or pairs["paradigm"].unique().sort().to_list()
    if unknown := sorted(set(chosen) - set(pairs["paradigm"].unique())):
        raise UserError(f"capabilities onset: no pairs of the paradigm {unknown[0]!r} in the trace")
    tables = [
        grid(pairs.filter(pl.col("paradigm") == name), "pair", ["correct"], f"capabilities onset ({name})")
        for name in chosen
    ]
    if not tables or len({table.steps for table in tables}) > 1:
        raise UserError(
            "capabilities onset: paradigms were measured at different steps, or not at all; trace all alike"
        )
    steps = np.array(tables[0].steps)
    value, exchanged = (np.zeros((resamples + 1, len(steps))) for _ in range(2))
    rng = np.random.default_rng(seed)
    for index, table in enumerate(tables):
        units, right = len(table.units), table.values["correct"].astype(np.float32)
        counts = np.concatenate([np.ones((1, units), np.float32), resample_counts(units, resamples, seed + index)])
        flipped = rng.permutation(units) < units // 2
        value += counts @ right.T / units / len(tables)
        exchanged += counts @ np.where(flipped, 1 - right, right).T / units / len(tables)
    level = np.full_like(value, chance)
    return _onset(_Curves("capabilities", steps, value, level, "chance", exchanged), k, margin)


@dataclass(frozen=True)
class _Curves:
    """What an onset is read off. Row 0 of each array is the data themselves, the others are resamples of them."""

    name: str
    steps: Int[np.ndarray, " steps"]
    value: Float[np.ndarray, "resamples steps"]
    level: Float[np.ndarray, "resamples steps"]  # which the value must exceed
    against: str  # what the level is called
    control: Float[np.ndarray, "resamples steps"]  # which may not rise with the value


def _onset(curves: _Curves, k: int, margin: float) -> Onset:
    """Both rules on every row, and whether the first checkpoint may be taken for an untrained model."""
    steps, against = curves.steps, curves.against
    if len(steps) < k + 1:
        return _none(curves.name, f"{len(steps)} checkpoint(s) are too few to see {k} in a row rise above the start")
    onset = _dated(curves, k, margin)
    above = float(curves.value[0, 0] - curves.level[0, 0])
    if steps[0] == 0 or not above > margin:
        return onset
    start = (
        f"already {above:.3f} above {against} at step {steps[0]:,}, the first checkpoint; without step 0 an untrained"
    )
    if onset.step is not None:
        reason = f"{start} model cannot be compared; it rises further above it from step {onset.step:,} on"
        return replace(_none(curves.name, reason, share=onset.share), at_or_before=onset.step)
    return _none(
        curves.name,
        f"{start} model may be as far above; if there was an onset, it came at or before that step",
        share=onset.share,
    )


def _dated(curves: _Curves, k: int, margin: float) -> Onset:
    """Both rules, with the first checkpoint taken for an untrained model."""
    name, steps, against = curves.name, curves.steps, curves.against
    gap = curves.value - curves.level
    untrained = np.maximum(gap[:, :1], 0)
    crossed, first = first_run(gap - untrained > margin, k)
    share = float(crossed[1:].mean()) if len(crossed) > 1 else float(crossed[0])
    enough = f"more than {margin:g} above {against}" if margin else f"above {against}"
    if not crossed[0]:
        rise = np.nan_to_num((gap - untrained)[0], nan=-np.inf)
        best = int(rise.argmax())
        reason = f"never {enough} {k} times running; the most was {rise[best]:+.3f}"
        return _none(name, f"{reason}, at step {steps[best]:,}", share=share)
    if share < BOUNDED:
        return _none(name, f"only in {share:.0%} of the resamples {enough} {k} times running", share=share)
    step = int(steps[first[0]])
    before, after = np.searchsorted(steps, step / 2, "right") - 1, np.searchsorted(steps, step * 2)
    ends = [max(before, 0), min(after, len(steps) - 1)]
    gained, control_gained = (float(np.diff(curve[0, ends])[0]) for curve in (curves.value, curves.control))
    gains = f"from step {steps[ends[0]]:,} to {steps[ends[1]]:,} the value gains {gained:.2f}"
    gains += f", the control {control_gained:.2f}"
    if control_gained > max(margin, gained / 2):
        return _none(name, f"the control moves too: {gains}", step, share)
    low, high = _interval(steps, np.where(crossed, first, len(steps))[1:])
    if low is not None:  # the crossing lies after the checkpoint before: no interval is finer than the checkpoints
        low = int(steps[int(np.searchsorted(steps, low)) - 1])
    bend, bend_low, bend_high = _acceleration(steps, curves.value)
    reason = f"{enough} from step {step:,} on, {k} checkpoints running; {gains}"
    return Onset(name, step, low, high, bend, bend_low, bend_high, None, reason, share)


def _none(name: str, reason: str, control_step: int | None = None, share: float = 0.0) -> Onset:
    return Onset(name, None, None, None, None, None, None, control_step, reason, share)


def first_run(above: Bool[np.ndarray, "rows steps"], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Per row: is there a run of `k` consecutive True, and where the first one begins (0 where there is none)."""
    runs = np.lib.stride_tricks.sliding_window_view(above, k, axis=1).all(-1)
    return runs.any(1), runs.argmax(1)


def _acceleration(steps: Int[np.ndarray, " steps"], value: Float[np.ndarray, "resamples steps"]):
    """Step of the largest second derivative over log(step), with its interval; step 0 has no logarithm.

    Taken of the largest value so far: to recover from a dip is not to rise.
    """
    positive = steps > 0
    curvature = local_curvature(np.log(steps[positive]), HALF_WIDTH)
    seen = np.isfinite(curvature).all(1)
    if not seen.any():
        return None, None, None
    highest = np.maximum.accumulate(np.nan_to_num(value[:, positive]), axis=1)
    where = (highest @ curvature[seen].T).argmax(1)
    at = steps[positive][seen]
    low, high = _interval(at, where[1:])
    if low is not None:  # the bend lies between the checkpoints on either side: no interval is finer than those
        low = int(steps[max(int(np.searchsorted(steps, low)) - 1, 0)])
        high = int(steps[min(int(np.searchsorted(steps, high)) + 1, len(steps) - 1)])
    return int(at[where[0]]), low, high


def _interval(steps: Int[np.ndarray, " steps"], index: Int[np.ndarray, " resamples"]) -> tuple[int | None, int | None]:
    """95 % percentile interval of checkpoint indices, as steps; (None, None) without resamples."""
    if not len(index):
        return None, None
    low, high = np.percentile(index, [2.5, 97.5], method="inverted_cdf").astype(int)
    return int(steps[low]), int(steps[high]) if high < len(steps) else None


def in_order(first: Onset, second: Onset) -> str:
    """One sentence: does `first` come before `second`, as far as their intervals can say?"""
    if first.step is None or second.step is None:
        absent = " and ".join(_absent(onset) for onset in (first, second) if onset.step is None)
        return f"There is no order to speak of: {absent}."
    if None in (first.low, first.high, second.low, second.high):
        return (
            f"{first.name} at step {first.step:,}, {second.name} at step {second.step:,}; without intervals, no more."
        )
    early, late = sorted((first, second), key=lambda onset: (onset.step, onset.low))
    said = f"{early.name} [{early.low:,}, {early.high:,}], {late.name} [{late.low:,}, {late.high:,}]"
    if early.high >= late.low and early.low <= late.high:
        return f"The intervals overlap, so neither comes first: {said}."
    return f"{_sentence_case(early.name)} comes first, and the intervals do not overlap: {said}."


def order_of_onsets(
    structure: Onset, beyond_position: Onset, capabilities: Onset, curve: pl.DataFrame
) -> tuple[str, str]:
    """Whether structure comes before the capabilities, by both of its controls: two sentences that belong together.

    `structure` is dated against shuffled trees, `beyond_position` against the best fixed offset; `curve`: of
    `uas_by_step`, for what heads find at the first of the two, beside what position alone finds.
    """
    loose, strict = in_order(structure, capabilities), in_order(beyond_position, capabilities)
    if structure.step is not None:
        at = dict(curve.filter(pl.col("step") == structure.step).select("source", "uas").iter_rows())
        heads, position = at["attention"], at["offset"]
        less = "less than" if heads < position else "and"
        loose += (
            f" At step {structure.step:,} heads find {heads:.0%} of the arcs, {less} position alone {position:.0%}."
        )
    return f"Beyond shuffled trees: {loose}", f"Beyond position: {strict}"


def _absent(onset: Onset) -> str:
    if onset.at_or_before is None:
        return f"no {onset.name} onset"
    return f"{onset.name} onset at or before step {onset.at_or_before:,}, which is no date"


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def rise_window(steps: list[int], values: list[float], low: float = 0.1, high: float = 0.9) -> tuple[int, int] | None:
    """Where a curve rises: from the last checkpoint below `low` of the way up to the first one after it above `high`.

    The way goes from the first value to the largest. None if the curve never rises above its first value.

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


def local_curvature(
    x: Float[np.ndarray, " points"], half_width: float, neighbours: int = 2
) -> Float[np.ndarray, "points points"]:
    """Matrix C with C @ y ≈ d²y/dx² at each point: a weighted quadratic through the points around it.

    A second difference divides noise by the squared gap, so that the closest checkpoints would always win.
    Here each point uses the points within `half_width` (same unit as `x`), or up to its `neighbours`-th
    neighbour on either side where those lie further apart; tricube weights (Cleveland 1979). Points with
    fewer than `neighbours` on one side get a row of NaN: at an end of a curve there is no curvature to see.
    """
    n = len(x)
    weights = np.full((n, n), np.nan)
    for i in range(neighbours, n - neighbours):
        reach = max(half_width, x[i] - x[i - neighbours], x[i + neighbours] - x[i]) * (1 + 1e-6)
        distance = (x - x[i]) / reach
        inside = np.abs(distance) < 1
        # 0.01 keeps the outermost point, whose tricube weight is all but zero, from being left out
        root = np.sqrt((1 - np.abs(distance[inside]) ** 3) ** 3 + 0.01)
        powers = np.stack([np.ones(inside.sum()), distance[inside], distance[inside] ** 2], axis=1)
        weights[i] = 0.0
        weights[i, inside] = 2 * np.linalg.pinv(powers * root[:, None])[2] * root / reach**2
    return weights

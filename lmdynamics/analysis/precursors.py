"""What precedes a drop of the loss: repetition, parallel states and attention, each dated against two controls.

The measures of Gopalani and Hu 2025 (arXiv 2506.13688). Each has two onsets by the rule of `onsets`, against a loose
level, and beyond a strict control that moves if the model does the same to all text:

- repetition: more than in the text; more than between rows (independent predictions of the same frequencies)
- parallel states: a higher cosine than without training; higher than between rows
- attention: nearer to its final form than at first, 1 - distance / first distance; and more so than to the final form
  of another head

The drop is the steepest fall of the loss over log(step) below the unigram entropy, and begins where the slope first
exceeds half of the steepest. The first fall of any loss is to that entropy: it needs the frequencies of tokens only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from lmdynamics.analysis.intervals import MIN_UNITS, bootstrap_levels, grid, resample_counts
from lmdynamics.analysis.onsets import HALF_WIDTH, Onset, date_curve, local_derivative, no_onset, step_interval

LOSS, REPETITION, STATES, ATTENTION = "held-out loss", "repeated predictions", "cosine of states", "attention progress"
MODEL = "the model"
CURVES = {  # of a measure: names and columns; the model's is dated
    LOSS: {MODEL: "loss", "unigram entropy": "unigram"},
    REPETITION: {MODEL: "repeated", "in the text": "in_text", "between rows": "repeated_between"},
    STATES: {MODEL: "cosine", "between rows": "cosine_between"},
    ATTENTION: {MODEL: "distance", "to other heads": "distance_other"},
}
ONSETS = {  # an onset: its measure, the curve to exceed (None: zero), and that curve's name in a sentence
    "repetition": (REPETITION, "in the text", "the share in the text"),
    "repetition beyond frequency": (REPETITION, "between rows", "the share between rows"),
    "parallel states": (STATES, None, "zero"),
    "parallel states within rows": (STATES, "between rows", "the cosine between rows"),
    "attention": (ATTENTION, None, "zero"),
    "attention beyond other heads": (ATTENTION, "to other heads", "the progress to other heads"),
}
DROP = "loss drop"


def precursor_table(repetition: pl.DataFrame, cosines: pl.DataFrame, distances: pl.DataFrame | None) -> pl.DataFrame:
    """Traces of `Repetition`, `StateCosine` (its last layer) and, if there is one, `AttentionDistance` (mean over
    layers) as one table: step, group, and the columns of `CURVES`. Groups without pairs of positions are left out."""
    keys = ["step", "group"]
    table = repetition.select(*keys, "loss", "repeated", "in_text", repeated_between="other_rows")
    last = cosines.filter(pl.col("layer") == pl.col("layer").max())
    table = table.join(last.select(*keys, "cosine", cosine_between="other_rows"), on=keys, maintain_order="left")
    if distances is not None:
        means = distances.group_by(keys).agg(pl.col("distance").mean(), distance_other=pl.col("other_heads").mean())
        table = table.join(means, on=keys, maintain_order="left")
    return table.drop_nulls(["repeated", "repeated_between", "cosine"])


@dataclass(frozen=True)
class Resampled:
    """`curves[measure][name]`: the first row is the data, the others are resamples of the `units` groups of rows."""

    steps: Int[np.ndarray, " steps"]
    units: int
    curves: Mapping[str, Mapping[str, Float[np.ndarray, "resamples steps"]]]


def resampled(table: pl.DataFrame, resamples: int = 500, seed: int = 0) -> Resampled:
    """The curves of a `precursor_table` with `unigram` (nats); below six groups without resamples.

    Each group counts the same. Raises UserError if a number is missing, as in a run that diverged.
    """
    known = [column for curves in CURVES.values() for column in curves.values() if column in table.columns]
    known = [column for column in known if table[column].null_count() < len(table)]  # null: one head has no other
    measured = grid(table, "group", known, "precursors of a drop")
    units = len(measured.units)
    drawn = resample_counts(units, resamples if units >= MIN_UNITS else 0, seed)
    counts = np.concatenate([np.ones((1, units)), drawn]) / max(1, units)
    curves = {}
    for measure, names in CURVES.items():
        means = {name: counts @ measured.values[column].T for name, column in names.items() if column in known}
        if measure == ATTENTION:
            means = {name: 1 - mean / np.maximum(mean[:, :1], 1e-12) for name, mean in means.items()}
        if means:
            curves[measure] = means
    return Resampled(np.array(measured.steps), units, curves)


def precursor_curves(data: Resampled) -> pl.DataFrame:
    """The curves as a tidy frame: measure, curve, step, value, low, high (95 % over groups of rows)."""
    frames, levels = [], bootstrap_levels(data.units)
    for measure, curves in data.curves.items():
        for name, values in curves.items():
            ends = np.percentile(values[1:], levels, axis=0) if levels else np.full((2, len(data.steps)), np.nan)
            columns = {"step": data.steps, "value": values[0], "low": ends[0], "high": ends[1]}
            frame = pl.DataFrame(columns).with_columns(pl.lit(measure).alias("measure"), pl.lit(name).alias("curve"))
            frames.append(frame.select("measure", "curve", "step", pl.col("value", "low", "high").fill_nan(None)))
    return pl.concat(frames)


def precursor_onsets(data: Resampled, margin: float = 0.1, k: int = 3) -> dict[str, Onset]:
    """The loss drop, and the onsets of `ONSETS` whose curves there are, by name."""
    onsets = {DROP: loss_drop(data, margin, k)}
    for name, (measure, control, against) in ONSETS.items():
        curves = data.curves.get(measure, {})
        if MODEL in curves and (control is None or control in curves):
            level = np.zeros_like(curves[MODEL]) if control is None else curves[control]
            onsets[name] = date_curve(name, data.steps, curves[MODEL], level, against, k=k, margin=margin)
    return onsets


def loss_drop(data: Resampled, margin: float = 0.1, k: int = 3) -> Onset:
    """Where the steepest fall of the held-out loss (nats) over log(step) begins, with its interval.

    Only checkpoints at which the loss is more than `margin` below the unigram entropy count. The fall begins at the
    first of the checkpoints around the steepest whose slope is more than half of it. No onset if there are no such
    checkpoints, `k` in a row.
    """
    fall = data.curves[LOSS]["unigram entropy"] - data.curves[LOSS][MODEL]
    below = date_curve(DROP, data.steps, np.maximum(fall, 0), np.zeros_like(fall), "zero", k=k, margin=margin)
    steps = data.steps[data.steps > 0]  # step 0 has no logarithm
    slope = local_derivative(np.log(steps), HALF_WIDTH, 1)
    known = np.isfinite(slope).all(1)
    if below.step is None or not known.any():
        return no_onset(DROP, f"the fall below the unigram entropy, in nats: {below.reason}")
    steps, counts = steps[known], fall[:, data.steps > 0][:, known] > margin
    slopes = np.where(counts, fall[:, data.steps > 0] @ slope[known].T, -np.inf)
    steepest, place = slopes.argmax(1)[:, None], np.arange(len(steps))
    outside = slopes <= np.take_along_axis(slopes, steepest, 1) / 2
    first = np.where(outside & (place < steepest), place + 1, 0).max(1)
    low, high = step_interval(steps, first[1:])
    if low is not None:  # it begins after the previous checkpoint: intervals are not finer than checkpoints
        low = int(data.steps[max(int(np.searchsorted(data.steps, low)) - 1, 0)])
    at = {"step": int(steps[first[0]]), "low": low, "high": high}
    reason = (
        f"the loss falls fastest at step {steps[steepest[0, 0]]:,}, by {slopes[0].max():.2f} nats per e-fold of steps"
    )
    return replace(below, **at, reason=reason)


def before_drop(onsets: Mapping[str, Onset]) -> dict[str, list[str]]:
    """Names of the onsets by whether they come `before` or `after` the loss drop, according to their intervals:
    `undecided` if these overlap, `undated` if there is no onset (all are undecided if the drop is not dated)."""
    drop, order = onsets[DROP], {"before": [], "after": [], "undecided": [], "undated": []}
    for name, onset in onsets.items():
        if name == DROP:
            continue
        if onset.step is None:
            order["undated"].append(name)
        elif None in (onset.low, onset.high, drop.low, drop.high):
            order["undecided"].append(name)
        elif onset.high < drop.low:
            order["before"].append(name)
        else:
            order["after" if onset.low > drop.high else "undecided"].append(name)
    return order

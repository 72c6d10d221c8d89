"""What precedes a drop of the loss: repetition, parallel states and attention, each dated against two controls.

The measures of Gopalani and Hu 2025 (arXiv 2506.13688). Each has two onsets by the rule of `onsets`: against a loose
level, and beyond a strict control that has the same cause for all text:

- repetition: more often than in the text; more often than between rows (equally frequent, independent predictions)
- parallel states: cosine above that of the untrained model; above the cosine between rows
- attention: nearer to its final form than at the first checkpoint, 1 - distance / first distance; and more so than to
  the final form of another head of the layer

The drop is where the fall of the loss below the unigram entropy accelerates most over log(step): a model that knows
token frequencies only cannot fall below it, so the first fall of any loss, to that level, is no drop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from lmdynamics.analysis.intervals import grid, resample_counts
from lmdynamics.analysis.onsets import Onset, date_curve, no_onset

LOSS, REPETITION, STATES, ATTENTION = "held-out loss", "repeated predictions", "cosine of states", "attention progress"
# a measure: its curves, the first of which is dated, with their columns
CURVES = {
    LOSS: {"model": "loss", "unigram entropy": "unigram"},
    REPETITION: {"model": "repeated", "in the text": "in_text", "between rows": "repeated_between"},
    STATES: {"model": "cosine", "between rows": "cosine_between"},
    ATTENTION: {"model": "distance", "to other heads": "distance_other"},
}
# an onset: its measure, and the curve to exceed (None: zero, beyond the first checkpoint's lead) with its name
ONSETS = {
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
    layers) as one table: step, group, and the columns of `CURVES`. Groups without a pair of positions are left out."""
    keys = ["step", "group"]
    table = repetition.select(*keys, "loss", "repeated", "in_text", repeated_between="other_rows")
    last = cosines.filter(pl.col("layer") == pl.col("layer").max())
    table = table.join(last.select(*keys, "cosine", cosine_between="other_rows"), on=keys, maintain_order="left")
    if distances is not None:
        means = distances.group_by(keys).agg(
            distance=pl.col("distance").mean(), distance_other=pl.col("other_heads").mean()
        )
        table = table.join(means, on=keys, maintain_order="left")
    return table.drop_nulls(["repeated", "repeated_between", "cosine"])


@dataclass(frozen=True)
class Curves:
    """`values[measure][curve]`: rows are the data and its bootstrap resamples of groups, columns are `steps`."""

    steps: Int[np.ndarray, " steps"]
    values: dict[str, dict[str, Float[np.ndarray, "resamples steps"]]]


def resampled(table: pl.DataFrame, resamples: int = 500, seed: int = 0) -> Curves:
    """The curves of `CURVES` that a table has, with resamples; each group of rows counts the same."""
    columns = {name for curves in CURVES.values() for name in curves.values() if name in table.columns}
    columns = sorted(name for name in columns if table[name].null_count() < len(table))
    measured = grid(table, "group", columns, "precursors of a drop")
    units = len(measured.units)
    counts = np.concatenate([np.ones((1, units), np.float32), resample_counts(units, resamples, seed)]) / units
    means = {name: counts @ measured.values[name].T for name in columns}
    values = {}
    for measure, curves in CURVES.items():
        present = {curve: means[name] for curve, name in curves.items() if name in means}
        if measure == ATTENTION:  # the first distance is 0 if the run has one checkpoint
            present = {curve: 1 - mean / np.maximum(mean[:, :1], 1e-12) for curve, mean in present.items()}
        if present:
            values[measure] = present
    return Curves(np.array(measured.steps), values)


def precursor_curves(curves: Curves) -> pl.DataFrame:
    """The curves as a tidy frame: measure, curve, step, value, low, high (95 % over groups of rows)."""
    frames = []
    for measure, series in curves.values.items():
        for curve, values in series.items():
            low, high = np.percentile(values[1:], [2.5, 97.5], axis=0)
            columns = {"step": curves.steps, "value": values[0], "low": low, "high": high}
            frames.append(
                pl.DataFrame(columns).select(pl.lit(measure).alias("measure"), pl.lit(curve).alias("curve"), pl.all())
            )
    return pl.concat(frames)


def precursor_onsets(curves: Curves, margin: float = 0.1, k: int = 3) -> dict[str, Onset]:
    """The onsets of `ONSETS` that can be dated from the curves, and the loss drop, by name."""
    onsets = {}
    for name, (measure, control, against) in ONSETS.items():
        series = curves.values.get(measure, {})
        if "model" in series and (control is None or control in series):
            level = np.zeros_like(series["model"]) if control is None else series[control]
            onsets[name] = date_curve(name, curves.steps, series["model"], level, against, k=k, margin=margin)
    return {DROP: loss_drop(curves, margin, k)} | onsets


def loss_drop(curves: Curves, margin: float = 0.1, k: int = 3) -> Onset:
    """Where the fall of the held-out loss below the unigram entropy (nats) accelerates most, with its interval."""
    loss, unigram = curves.values[LOSS]["model"], curves.values[LOSS]["unigram entropy"]
    fall = np.maximum(unigram - loss, 0)
    below = date_curve(DROP, curves.steps, fall, np.zeros_like(fall), "zero", k=k, margin=margin)
    if below.step is None or below.acceleration_step is None:
        return no_onset(DROP, f"the fall below the unigram entropy, in nats: {below.reason}")
    reason = f"the fall accelerates most there; the loss is below the unigram entropy from step {below.step:,} on"
    at = {"step": below.acceleration_step, "low": below.acceleration_low, "high": below.acceleration_high}
    return replace(below, **at, reason=reason)


def at_step(curves: Curves, step: int) -> pl.DataFrame:
    """All curves at one checkpoint: measure, curve, value, low, high."""
    return precursor_curves(curves).filter(pl.col("step") == step).drop("step")

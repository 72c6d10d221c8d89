"""One run's changes of per-token loss for an explorer: numbers, computed once, and sentences about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from lmdynamics.analysis.gradients import each_batch, over_batches
from lmdynamics.analysis.intervals import bounded, need_columns
from lmdynamics.analysis.zero_sum import change_bins, interference_table, traded
from lmdynamics.charts.tokens import visible
from lmdynamics.errors import UserError

KEYS = ["split", "direction", "batch"]
SPLITS = {"stepped": "the batch stepped on", "held out": "held-out text"}
DIRECTIONS = {"update": "the optimizer's update", "random": "a random direction", "doubling": "a doubling of training"}
NUMBERS = {  # a measure: (its column, its format, its unit)
    "D": ("interference", ".2f", ""),
    "M": ("magnitude", ".3g", " nats per token"),
    "ΔL": ("mean_change", "+.3g", " nats per token"),
}


@dataclass(frozen=True)
class RunChanges:
    """One run's changes, and all numbers that the views show, computed once."""

    changes: pl.DataFrame
    groups: pl.DataFrame | None
    doublings: bool

    @cached_property
    def steps(self) -> list[int]:
        return self.changes["step"].unique().sort().to_list()

    @cached_property
    def table(self) -> pl.DataFrame:
        """D, M, ΔL with intervals: over batches or, for doublings, over rows of text."""
        if self.doublings:
            return interference_table(self.changes, ["step", "until", "split", "direction"])
        return over_batches(self.changes)

    @cached_property
    def by_batch(self) -> pl.DataFrame:
        """The same for each batch; doublings have one batch."""
        return self.table.with_columns(batch=pl.lit(0)) if self.doublings else each_batch(self.changes)

    @cached_property
    def bins(self) -> pl.DataFrame:
        return change_bins(self.changes, [*KEYS, "step"])

    @cached_property
    def traded(self) -> pl.DataFrame | None:
        if self.groups is None:
            return None
        return traded(self.changes, self.groups, [*KEYS, "step"], resamples=0)

    @cached_property
    def tokens(self) -> dict[tuple, pl.DataFrame]:
        """The changes of each split, direction, batch and step."""
        return self.changes.partition_by(*KEYS, "step", as_dict=True)

    def options(self, column: str, **chosen) -> list:
        """The values of a column in the rows with the `chosen` values of other columns."""
        rows = self.by_batch if column in self.by_batch.columns else self.changes
        return rows.filter(**chosen)[column].unique(maintain_order=True).to_list()


def run_changes(changes: pl.DataFrame, groups: pl.DataFrame | None) -> RunChanges:
    context = "the zero-sum explorer"
    need_columns(changes, ["step", "row", "position", "token", "change"], context)
    doubled = "until" in changes.columns
    if doubled:
        changes = changes.with_columns(split=pl.lit("held out"), direction=pl.lit("doubling"), batch=pl.lit(0))
    need_columns(changes, [*KEYS, "first_order"] if not doubled else KEYS, context)
    if changes.is_empty():
        raise UserError(f"{context}: there are no changes; trace OneStep, or TokenLosses for doublings, first")
    return RunChanges(changes, groups, doubled)


def preview(tokens: Sequence[str], max_length: int = 60) -> str:
    visible_tokens = [visible(token) for token in tokens]
    text = ("" if any(token.startswith(" ") for token in visible_tokens) else " ").join(visible_tokens)
    return text if len(text) <= max_length else f"{text[:max_length]}…"


def describe_step(changes: RunChanges, step: int, split: str, direction: str) -> str:
    """D, M and ΔL at a checkpoint with their intervals and sample, and their meaning in words."""
    row = changes.table.filter(step=step, split=split, direction=direction).row(0, named=True)
    numbers = ", ".join(
        f"{name} {bounded(row, column, style)}{unit}" for name, (column, style, unit) in NUMBERS.items()
    )
    if changes.doublings:
        sample = f"{row['rows']:,} rows of text" if row["rows"] > 1 else "one row of text"
        sample += ", too few for an interval" if row["mean_change_low"] is None else ""
    else:
        sample = f"{row['batches']} batches" if row["batches"] > 1 else "one batch"
    until = f" → {row['until']:,}" if changes.doublings else ""
    series = f"{SPLITS.get(split, split)}, {DIRECTIONS.get(direction, direction)}"
    return f"Step {step:,}{until}, {series}: {numbers} (over {sample}). {_verdict(row)}"


def _verdict(row: Mapping) -> str:
    if row["interference"] is None:
        return "Nothing changed."
    low, high = row["mean_change_low"], row["mean_change_high"]
    if low is not None and high is not None and low <= 0 <= high:
        return "Whether the loss moved at all is not clear."
    verb = "fell" if row["mean_change"] < 0 else "rose"
    return f"The loss {verb}, by {1 - row['interference']:.0%} of what tokens moved; the rest cancelled."

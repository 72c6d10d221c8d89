"""One run's changes of per-token loss, as an explorer shows them: numbers worked out once, and put into words."""

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
NUMBERS = {  # a measure: (its column, how it is written, its unit)
    "D": ("interference", ".2f", ""),
    "M": ("magnitude", ".3g", " nats per token"),
    "ΔL": ("mean_change", "+.3g", " nats per token"),
}


@dataclass(frozen=True)
class RunChanges:
    """One run's changes, and all that the views show of them, worked out once."""

    changes: pl.DataFrame
    groups: pl.DataFrame | None
    doublings: bool

    @cached_property
    def steps(self) -> list[int]:
        return self.changes["step"].unique().sort().to_list()

    @cached_property
    def table(self) -> pl.DataFrame:
        """D, M, ΔL with intervals: over batches, or, of doublings, over rows of text."""
        if self.doublings:
            return interference_table(self.changes, ["step", "until", "split", "direction"])
        return over_batches(self.changes)

    @cached_property
    def each(self) -> pl.DataFrame:
        """The same of each batch alone; of doublings, there is one."""
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
        """What there is in a column, among the rows of what is chosen already."""
        rows = self.each if column in self.each.columns else self.changes
        return rows.filter(**chosen)[column].unique(maintain_order=True).to_list()


def run_changes(changes: pl.DataFrame, groups: pl.DataFrame | None) -> RunChanges:
    what = "the zero-sum explorer"
    need_columns(changes, ["step", "row", "position", "token", "change"], what)
    doubled = "until" in changes.columns
    if doubled:
        changes = changes.with_columns(split=pl.lit("held out"), direction=pl.lit("doubling"), batch=pl.lit(0))
    need_columns(changes, [*KEYS, "first_order"] if not doubled else KEYS, what)
    if changes.is_empty():
        raise UserError(f"{what}: there are no changes; trace OneStep, or TokenLosses for doublings, first")
    return RunChanges(changes, groups, doubled)


def start(tokens: Sequence[str], most: int = 60) -> str:
    shown = [visible(token) for token in tokens]
    text = ("" if any(token.startswith(" ") for token in shown) else " ").join(shown)
    return text if len(text) <= most else f"{text[:most]}…"


def told(seen: RunChanges, step: int, split: str, direction: str) -> str:
    """D, M and ΔL at a checkpoint with their intervals, what they were taken over, and what they come to."""
    row = seen.table.filter(step=step, split=split, direction=direction).row(0, named=True)
    numbers = ", ".join(
        f"{name} {bounded(row, column, style)}{unit}" for name, (column, style, unit) in NUMBERS.items()
    )
    if seen.doublings:
        over = f"{row['rows']:,} rows of text" if row["rows"] > 1 else "one row of text"
        over += ", too few for an interval" if row["mean_change_low"] is None else ""
    else:
        over = f"{row['batches']} batches" if row["batches"] > 1 else "one batch"
    until = f" → {row['until']:,}" if seen.doublings else ""
    what = f"{SPLITS.get(split, split)}, {DIRECTIONS.get(direction, direction)}"
    return f"Step {step:,}{until}, {what}: {numbers} (over {over}). {_verdict(row)}"


def _verdict(row: Mapping) -> str:
    if row["interference"] is None:
        return "Nothing changed."
    low, high = row["mean_change_low"], row["mean_change_high"]
    if low is not None and high is not None and low <= 0 <= high:
        return "Whether the loss moved at all is not clear."
    way = "fell" if row["mean_change"] < 0 else "rose"
    return f"The loss {way}, by {1 - row['interference']:.0%} of what tokens moved; the rest cancelled."

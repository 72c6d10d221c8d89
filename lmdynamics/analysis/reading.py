"""Loss curves from a table, a training log or a run.

Columns that are not given are detected from names and values, and reported. Rows that cannot be used are counted and
reported too: nothing is filled in, and nothing is dropped silently.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from lmdynamics.analysis.columns import (
    RESTARTS,
    Columns,
    choose_columns,
    has_numbers,
    is_empty,
    looks_like_loss,
    losses_only,
    numbers,
    plain,
    with_decimal_points,
)
from lmdynamics.analysis.formats import Table
from lmdynamics.errors import UserError, shortened

# why a row is not used, and the end of the sentence about such rows
REASONS = {
    "no curve name": "{have} an empty cell where the curve's name should be and {were} left out",
    "no step": "{have} no whole number as step and {were} left out",
    "not a number": "{have} no number as loss and {were} left out",
    "not positive": "{have} a loss of 0 or less and {were} left out",
    "before a restart": "{were} replaced by a later run, which resumed from an earlier step",
    "same step again": "{have} a step that the curve repeats later and {were} left out: the later row is used",
}
WALL_TIMES = ("wall_time", "_timestamp", "timestamp")  # columns by which rows are put in order
MIN_USABLE = 0.5  # share of a file's rows; with fewer usable rows the result would depend on the rows left out
LATE_START = 1_000  # step: the beginning is missing in a curve that starts later, unless its spacing is wide
SAMPLES = (500, 1_000, 1_500, 10_000)  # rows that Weights & Biases keeps of a longer history


@dataclass(frozen=True, eq=False)
class Curves:
    """Loss curves read from a file, one row per curve and step.

    `frame`: curve, step, loss, by curve in order of first appearance, then by step; losses are finite and positive,
    steps whole, each once per curve. `notes`: sentences on the columns used, the rows left out, and
    warnings. `bad_rows`: curve, reason (one of `REASONS`), rows (their count).
    """

    frame: pl.DataFrame
    notes: tuple[str, ...] = field(repr=False)
    bad_rows: pl.DataFrame = field(repr=False)

    @property
    def names(self) -> list[str]:
        return self.frame["curve"].unique(maintain_order=True).to_list()


def curves_in(table: Table, group: str | Sequence[str] | None, step: str | None, loss: str | None) -> Curves:
    """The curves of a table; arguments and errors as for `read_curves`."""
    frame, notes = with_decimal_points(table.frame)
    for name in frame.columns:
        if plain(name) in WALL_TIMES and numbers(frame[name]).null_count() == 0:
            frame = frame.sort(numbers(frame[name]), maintain_order=True)
            break
    table = replace(table, frame=frame, notes=(*table.notes, *notes))
    table = losses_only(table) if loss is None else table
    columns = choose_columns(table, group, step, loss)
    rows = _long(table, columns)
    # of a step that a resumed run logged again, the later row is used
    last = pl.col("row") == pl.col("row").max().over("curve", "step")
    usable = rows.filter(pl.col("reason").is_null())
    current = _not_replaced(usable)
    used = usable.filter(last & current)
    if used.is_empty():
        counted = "; ".join(f"{reason}: {count:,}" for reason, count in rows["reason"].value_counts().iter_rows())
        raise UserError(f"{table.source}: no row can be used ({counted or 'it has none'}); give --step and --loss")
    if len(usable) < MIN_USABLE * len(rows):
        raise UserError(f"{table.source}: {_refusal(rows, usable, columns)}")
    repeated = usable.filter(~last).with_columns(reason=pl.lit("same step again"))
    replaced = usable.filter(last & ~current).with_columns(reason=pl.lit("before a restart"))
    bad = pl.concat([rows.filter(pl.col("reason").is_not_null()), replaced, repeated])
    order = pl.Enum(rows["curve"].drop_nulls().unique(maintain_order=True))
    frame = used.select(pl.col("curve").cast(order), pl.col("step").cast(pl.Int64), "loss").sort("curve", "step")
    counts = bad.group_by(pl.col("curve").fill_null(""), "reason", maintain_order=True)
    return Curves(
        frame.with_columns(pl.col("curve").cast(pl.String)),
        (*table.notes, *columns.notes, *_sentences(rows, bad, usable, used), *_sampled(table, columns, used)),
        counts.agg(rows=pl.len().cast(pl.Int64)),
    )


def _not_replaced(usable: pl.DataFrame) -> pl.Series:
    """Whether each row is current: no later run of its curve (begun where steps decrease) starts at or before it."""
    rows = usable.with_row_index("at").with_columns(
        back=(pl.col("step").diff().over("curve") < 0).fill_null(False),
        earliest=pl.col("step").cum_min().over("curve"),
    )
    part = rows.with_columns(part=pl.col("back").cum_sum().over("curve"))
    is_restart = pl.col("back").sum().over("curve") <= (RESTARTS * pl.len().over("curve")).clip(1)
    overlaps = pl.col("step").max().over("curve", "part") >= pl.col("earliest").shift(1).over("curve")
    # computed from the end: the lowest step at which a later part begins
    begins = pl.when(pl.col("back") & is_restart & overlaps).then(pl.col("step")).otherwise(float("inf"))
    later = begins.reverse().cum_min().shift(1, fill_value=float("inf")).reverse().over("curve")
    return part.with_columns(current=pl.col("step") < later).sort("at")["current"]


def _refusal(rows: pl.DataFrame, usable: pl.DataFrame, columns: Columns) -> str:
    """The error for a file with too few usable rows: the most frequent reason, with the first such cell."""
    reason = rows["reason"].drop_nulls().mode().sort()[0]
    bad = rows.filter(pl.col("reason") == reason)
    problem = REASONS[reason].format(have="have", were="would be")
    option = {"no step": "step", "no curve name": "group"}.get(reason, "loss")
    return (
        f"only {len(usable):,} of {len(rows):,} rows could be used: {len(bad):,} {problem}, the first "
        f"{bad['loss_cell' if option == 'loss' else 'step_cell'][0]!r}; correct the file, or give --{option} COLUMN"
    )


def _long(table: Table, columns: Columns) -> pl.DataFrame:
    """One row per value: row (in the file), curve, step, loss, reason if unusable. Wide tables: no empty cells."""
    frame = table.frame
    labels = pl.concat_str([pl.col(name).cast(pl.String) for name in columns.group], separator=" / ")
    parts = []
    for order, (name, curve) in enumerate(columns.losses.items()):
        curve_name = pl.lit(curve or table.name)
        if columns.group:
            curve_name = pl.concat_str(labels, pl.lit(curve), separator=" / ") if curve else labels
        empty = is_empty(frame[name])
        absent = empty if table.sparse or curve else empty & _logged_for_other_loss(frame, name)
        parts.append(
            frame.select(
                pl.int_range(pl.len()).alias("row"),
                pl.lit(order).alias("place"),
                curve_name.alias("curve"),
                numbers(frame[columns.step]).alias("step"),
                numbers(frame[name]).alias("loss"),
                frame[columns.step].cast(pl.String, strict=False).alias("step_cell"),
                frame[name].cast(pl.String, strict=False).alias("loss_cell"),
                absent=absent,
            )
        )
    valid = pl.col("step").is_finite() & (pl.col("step") == pl.col("step").floor()) & (pl.col("step").abs() < 2**63)
    reason = (
        pl.when(pl.col("curve").is_null() | (pl.col("curve") == ""))
        .then(pl.lit("no curve name"))
        .when(~valid.fill_null(False))
        .then(pl.lit("no step"))
        .when(~pl.col("loss").is_finite().fill_null(False))
        .then(pl.lit("not a number"))
        .when(pl.col("loss") <= 0)
        .then(pl.lit("not positive"))
    )
    return pl.concat(parts).sort("row", "place").filter(~pl.col("absent")).with_columns(reason=reason)


def _logged_for_other_loss(frame: pl.DataFrame, loss: str) -> pl.Series:
    """Rows of another loss, such as validation loss, which is mostly logged where this one is not."""
    logged = ~is_empty(frame[loss])
    elsewhere = pl.repeat(False, len(frame), eager=True)
    for name in frame.columns:
        if name != loss and looks_like_loss(name) and has_numbers(frame[name]):
            logged_too = ~is_empty(frame[name])
            if (logged & logged_too).sum() <= logged.sum() / 2:
                elsewhere |= logged_too
    return elsewhere


def _sentences(rows: pl.DataFrame, bad: pl.DataFrame, usable: pl.DataFrame, used: pl.DataFrame) -> list[str]:
    """Sentences on rows left out, by reason; on steps out of order; on curves without usable rows."""
    sentences = []
    for reason, text in REASONS.items():
        if count := len(bad.filter(pl.col("reason") == reason)):
            number = {"have": "has", "were": "was"} if count == 1 else {"have": "have", "were": "were"}
            sentences.append(f"{count:,} of {len(rows):,} rows {text.format(**number)}.")
    if back := usable.select((pl.col("step").diff().over("curve") < 0).sum()).item():
        count_text = f"{back:,} place{'s' * (back > 1)}"
        sentences.append(f"Steps go back at {count_text} (a restart, or rows out of order); they were sorted.")
    starts = used.group_by("curve").agg(pl.col("step").min(), apart=pl.col("step").sort().diff().median())
    late = starts.filter(pl.col("step") >= LATE_START, pl.col("step") > 10 * pl.col("apart")).sort("step")
    if len(late):
        subject = (
            "The curve starts" if len(starts) == 1 else f"{len(late):,} of {len(starts):,} curves start late, the first"
        )
        sentences.append(f"{subject} at step {late['step'][0]:,.0f}: earlier steps are not in this file.")
    if empty_curves := sorted(set(rows["curve"].drop_nulls()) - set(used["curve"])):
        sentences.append(f"Left out, without a usable row: {shortened(', '.join(empty_curves), 200)}.")
    return sentences


def _sampled(table: Table, columns: Columns, used: pl.DataFrame) -> list[str]:
    """A warning where an export from Weights & Biases looks like a sample of what was logged."""
    frame = table.frame
    signs = []
    bounds = [
        (name, name + end) for name in columns.losses for end in ("__MIN", "__MAX") if name + end in frame.columns
    ]
    if any((numbers(frame[name]) != numbers(frame[bound])).any() for name, bound in bounds):
        signs.append("its __MIN and __MAX differ from the value, so a point represents several steps")
    sizes = used.group_by("curve").agg(pl.len(), (pl.col("step").max() - pl.col("step").min()).alias("range"))
    thinned = sizes.filter(pl.col("len").is_in(SAMPLES), pl.col("range") >= 2 * pl.col("len"))
    if (bounds or "_step" in frame.columns) and len(thinned):
        rows, steps = thinned.row(0)[1:]
        signs.append(f"a curve has exactly {rows:,} points over {steps:,.0f} steps")
    if not signs:
        return []
    return [f"Warning: this export looks sampled ({'; '.join(signs)}); `run.scan_history()` returns every step."]

"""Shared by figures that compare conditions: checked rows, and numbers as text."""

from collections.abc import Collection, Sequence

import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.text import wrapped
from lmdynamics.errors import UserError

MAX_ROWS = 5000  # the most that Altair puts into a panel
ROW = 26  # height of a condition's row, pixels
TITLE_LENGTH = 132  # pixels: the longest title beside a low panel


def tidy(frame: pl.DataFrame, columns: list[str], context: str) -> tuple[pl.DataFrame, int]:
    """The frame's rows with `value` finite or null, and how many are null.

    Raises
    ------
    UserError
        If a column is missing, no row has a number, or there are more rows than a panel holds.
    """
    need_columns(frame, columns, context)
    value = pl.col("value").cast(pl.Float64)
    rows = frame.with_columns(
        value=pl.when(value.is_finite()).then(value), condition=pl.col("condition").cast(pl.String)
    )
    missing = rows["value"].null_count()
    if missing == len(rows):
        raise UserError(f"{context}: none of {len(rows)} rows has a number; trace or train the conditions first")
    longest = rows.group_by("measure").len()["len"].max() if "measure" in columns else len(rows)
    if longest > MAX_ROWS:
        raise UserError(
            f"{context}: {longest:,} rows, a panel holds {MAX_ROWS:,}; average a training log over bins "
            "(analysis.intervals.loss_by_bin), or leave out checkpoints"
        )
    return rows, missing


def span(ends: pl.DataFrame, share: bool, baseline: str | None = None) -> str:
    """Lowest and highest condition, and the baseline between them: `12.0% (SAS−) to 66.1% (SAS+); base: 61.0%`.

    One condition needs no name.
    """
    ends = ends.drop_nulls("value").sort("value", maintain_order=True)
    if ends.is_empty():
        return "no step at which every seed has a value"
    ends = [(row["condition"], row["value"]) for row in ends.iter_rows(named=True)]
    (low, lowest), (high, highest) = ends[0], ends[-1]
    if len(ends) == 1:
        return number(lowest, share)
    text = f"{number(lowest, share)} ({low}) to {number(highest, share)} ({high})"
    base = dict(ends).get(baseline)
    return text if base is None or baseline in (low, high) else f"{text}; {baseline}: {number(base, share)}"


def span_of(values: pl.Series) -> str:
    """Minimum and maximum of some values: `0.12–0.66`."""
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low}–{high}"


def number(value: float, share: bool) -> str:
    """A value as text for a title."""
    if share:
        return f"{value:.1%}"
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def names_of(data: pl.DataFrame, column: str) -> list[str]:
    return data[column].unique(maintain_order=True).to_list()


def is_share(measure: str, percent: bool | Collection[str]) -> bool:
    return percent if isinstance(percent, bool) else measure in percent


def stacked(measure: str) -> list[str]:
    """Name and unit on separate lines, for the title beside a low panel."""
    name, bracket, unit = measure.partition(" (")
    return [*wrapped(name, TITLE_LENGTH), *wrapped(bracket.strip() + unit, TITLE_LENGTH)]


def findings(sentences: Sequence[str]) -> Sequence[str]:
    """The sentences after the first, which is the title, for the caption; none if there are many."""
    return sentences[1:] if len(sentences) <= 4 else []


def missing_text(missing: int) -> str:
    return f"{count(missing, 'value')} missing" if missing else ""


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]

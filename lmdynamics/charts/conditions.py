"""What figures that compare conditions have in common: their rows, their colour, how they put numbers into words."""

from collections.abc import Collection, Sequence

import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.text import wrapped
from lmdynamics.errors import UserError

MOST_ROWS = 5000  # that Altair puts into a panel
ROW = 26  # height of a condition's row, pixels
BESIDE = 132  # pixels: how long the title beside a low panel may be


def tidy(frame: pl.DataFrame, columns: list[str], what: str) -> tuple[pl.DataFrame, int]:
    """The frame's rows with `value` finite or null, and how many are null.

    Raises
    ------
    UserError
        If a column is missing, no row has a number, or there are more rows than a panel holds.
    """
    need_columns(frame, columns, what)
    value = pl.col("value").cast(pl.Float64)
    rows = frame.with_columns(
        value=pl.when(value.is_finite()).then(value), condition=pl.col("condition").cast(pl.String)
    )
    missing = rows["value"].null_count()
    if missing == len(rows):
        raise UserError(f"{what}: none of {len(rows)} rows has a number; trace or train the conditions first")
    longest = rows.group_by("measure").len()["len"].max() if "measure" in columns else len(rows)
    if longest > MOST_ROWS:
        raise UserError(
            f"{what}: {longest:,} rows, a panel holds {MOST_ROWS:,}; average a training log over bins "
            "(curves.intervals.loss_by_bin), or leave out checkpoints"
        )
    return rows, missing


def span(ends: pl.DataFrame, share: bool, baseline: str | None = None) -> str:
    """Lowest and highest condition, and the baseline between them: `12.0% (SAS−) to 66.1% (SAS+); base: 61.0%`."""
    ends = ends.drop_nulls("value").sort("value", maintain_order=True)
    if ends.is_empty():
        return "no step at which every seed has a value"
    ends = [(row["condition"], row["value"]) for row in ends.iter_rows(named=True)]
    (low, least), (high, most) = ends[0], ends[-1]
    if len(ends) == 1:
        return f"{number(least, share)} ({low})"
    text = f"{number(least, share)} ({low}) to {number(most, share)} ({high})"
    rest = dict(ends).get(baseline)
    return text if rest is None or baseline in (low, high) else f"{text}; {baseline}: {number(rest, share)}"


def span_of(values: pl.Series) -> str:
    """Least and greatest of some values: `0.12–0.66`."""
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low}–{high}"


def number(value: float, share: bool) -> str:
    """A value as a title says it."""
    if share:
        return f"{value:.1%}"
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def names_of(data: pl.DataFrame, column: str) -> list[str]:
    return data[column].unique(maintain_order=True).to_list()


def is_share(measure: str, percent: bool | Collection[str]) -> bool:
    return percent if isinstance(percent, bool) else measure in percent


def stacked(measure: str) -> list[str]:
    """Name and unit on two lines: "UAS (share of arcs)" stands beside a low panel."""
    name, bracket, unit = measure.partition(" (")
    return [*wrapped(name, BESIDE), *wrapped(bracket.strip() + unit, BESIDE)]


def findings(said: Sequence[str]) -> Sequence[str]:
    """What the title leaves unsaid, for the caption; of many measures, the text for screen readers tells."""
    return said[1:] if len(said) <= 4 else []


def absent(missing: int) -> str:
    return f"{count(missing, 'value')} missing" if missing else ""


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]

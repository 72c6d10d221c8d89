"""What a column's name and its cells say by themselves: whether it counts steps, whether it is a loss."""

import re
from collections.abc import Sequence

import polars as pl

# In order of preference, as `plain` writes them. Of two columns of steps, W&B's own _step counts calls of its log().
STEPS = (
    *("step", "global_step", "train_global_step", "trainer_global_step", "train_step", "training_step", "steps"),
    *("_step", "iteration", "iterations", "iter", "iters", "update", "updates", "num_updates", "batch"),
    *("tokens", "tokens_seen", "num_tokens", "n_tokens", "total_tokens"),
)
LOSSES = (
    *("loss", "train_loss", "training_loss", "loss_train", "lm_loss", "train_lm_loss", "total_loss"),
    *("train_loss_step", "training_loss_step", "loss_step"),
    *("cross_entropy", "cross_entropy_loss", "train_cross_entropy_loss", "train_crossentropyloss", "ce_loss"),
    *("nll", "nll_loss", "val_loss", "valid_loss", "validation_loss", "dev_loss", "eval_loss", "test_loss"),
    *("loss_val", "epoch_loss", "value"),
)
LOSS_LIKE = re.compile(r"loss|(?<![a-z])nll(?![a-z])|cross_?entropy|(?<![a-z])xent(?![a-z])")
NOT_LOSS = re.compile(r"loss_?(scale|std|var|weight)|__(min|max)$|grad|lossless")


VALIDATION = re.compile(r"(^|[^a-z])(val|valid|validation|dev|eval|test)([^a-z]|$)")
GROUPED = {mark: re.compile(rf"[-+]?[1-9]\d{{0,2}}(?:\{mark}\d{{3}})+") for mark in ",."}
DECIMAL_COMMA = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+(?:[eE][-+]?\d+)?")


def plain(name: str) -> str:
    """A column's name as the lists above write it: `Train/Loss` is train_loss."""
    return re.sub(r"[\s/.-]+", "_", name.strip().lower())


def looks_like_loss(name: str) -> bool:
    return bool(LOSS_LIKE.search(name.lower())) and not NOT_LOSS.search(name.lower())


def numbers(column: pl.Series) -> pl.Series:
    """A column as Float64: null where there is no number, which for dates and flags is everywhere."""
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    elif not column.dtype.is_numeric() and column.dtype != pl.Null:
        return pl.Series(column.name, [None] * len(column), pl.Float64)
    return column.cast(pl.Float64, strict=False)


def with_decimal_points(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """A frame whose texts such as `1,110`, `8,37` and `1.000` are written as one number each, and a note for each kind.

    A comma is a decimal comma where a column's cells have no other reading; then points group thousands in the whole
    table. Otherwise commas that part groups of three are thousands, if the column's other numbers are below 1,000. What
    can be read in two ways stays as it is.
    """
    texts = {
        name: frame[name].drop_nulls().str.strip_chars().unique(maintain_order=True).to_list()
        for name, kind in frame.schema.items()
        if kind == pl.String
    }
    commas = {name: [cell for cell in cells if "," in cell] for name, cells in texts.items()}
    decimal = {name for name, cells in commas.items() if cells and all(map(DECIMAL_COMMA.fullmatch, cells))}
    if all(GROUPED[","].fullmatch(cell) for name in decimal for cell in commas[name]):
        decimal = set()  # 1,110 in all of them: groups of three
    changed, notes = [], []
    for name, cells in texts.items():
        dots = [cell for cell in cells if GROUPED["."].fullmatch(cell)]
        rest = [cell for cell in cells if cell not in commas[name] and cell not in dots]
        small = all(re.fullmatch(r"[-+]?\d{1,3}(\.\d+)?", cell) for cell in rest)
        if name in decimal:
            column, example = pl.col(name).str.replace_all(".", "", literal=True).str.replace(",", "."), commas[name][0]
        elif commas[name] and all(map(GROUPED[","].fullmatch, commas[name])) and rest and small and not decimal:
            column, example = pl.col(name).str.replace_all(",", "", literal=True), commas[name][0]
        elif dots and small and not commas[name] and (decimal or (plain(name) in STEPS and rest)):
            column, example = pl.col(name).str.replace_all(".", "", literal=True), dots[0]
        else:
            continue
        changed.append(column)
        read = pl.select(pl.lit(example).alias(name)).select(column).item()
        notes.append(f"Column {name!r}: {example!r} is read as {read}.")
    return frame.with_columns(changed), notes


def is_empty(column: pl.Series) -> pl.Series:
    """Where a column has no cell, or one of blanks."""
    if column.dtype != pl.String:
        return column.is_null()
    return column.is_null() | (column.str.strip_chars() == "").fill_null(True)


def has_numbers(column: pl.Series) -> bool:
    return numbers(column).count() > 0


def best_known(names: Sequence[str], preferred: Sequence[str]) -> str | None:
    """The name that comes first in a list of preferred ones, if any is in it."""
    known = [name for name in names if plain(name) in preferred]
    return min(known, key=lambda name: preferred.index(plain(name)), default=None)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for a sentence, the first dozen of them."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more]) or "none"

"""Which columns tell the curves of a long table apart: those within whose values each step stands once."""

import polars as pl

from lmdynamics.analysis.cells import STEPS, has_numbers, listed, looks_like_loss, numbers, plain
from lmdynamics.analysis.formats import Table
from lmdynamics.errors import UserError

# names that usually tell runs apart, in order of preference
GROUPS = (
    *("model", "run", "run_name", "name", "path", "curve", "run_id", "seed", "experiment", "model_name", "config"),
    *("condition", "variant", "method", "optimizer", "size", "model_size", "task", "dataset", "metric", "split"),
)
RESTARTS = 0.1  # of a curve's rows: where steps go back more often, rows are out of order, and no run was resumed
REPEATED = 0.25  # of the rows: where more have a step that their curve already has, it is several curves


def guess_group(frame: pl.DataFrame, step: str, losses: dict[str, str | None]) -> tuple[str, ...]:
    """Columns that tell curves apart: by a well-known name, or because every step is then there once."""
    rows, masks = _rows(frame, step, losses)
    named = sorted((c for c in rows.columns if plain(c) in GROUPS), key=lambda name: GROUPS.index(plain(name)))
    named = [name for name in named if name != step and 2 <= rows[name].n_unique() <= len(rows) / 2]
    options = [(name,) for name in named]
    if len(named) > 1:
        options.append(tuple(name for name in rows.columns if name in named))
    alone = _repeated(rows, masks, step, ())
    if alone > REPEATED:
        options += [(name,) for name in _candidates(rows, step, losses) if name not in named]
    repeated = {option: _repeated(rows, masks, step, option) for option in options}
    if once := [option for option in options if not repeated[option]]:
        return once[0]
    # none is perfect where a run was resumed and logged some steps again
    best = min(options, key=repeated.__getitem__, default=())
    return best if best and repeated[best] < min(alone, REPEATED) else ()


def refuse_many_curves_as_one(table: Table, step: str, losses: dict[str, str | None], group: tuple[str, ...]) -> None:
    """UserError where over `REPEATED` of the rows have a step that their curve already has, and no run was resumed."""
    rows, masks = _rows(table.frame, step, losses)
    if (share := _repeated(rows, masks, step, group)) <= REPEATED or all(
        _resumed(rows.filter(m), step, group) for m in masks
    ):
        return
    candidates = [name for name in _candidates(rows, step, losses) if name not in group]
    most = max(rows.filter(mask).group_by(step, *group).len()["len"].max() or 0 for mask in masks)
    tell = f"give --group {','.join((*group, 'COLUMN'))} (candidates: {listed(candidates)})"
    raise UserError(
        f"{table.source}: {share:.0%} of the rows have a step that their curve already has, the same step up to "
        f"{most:,} times, so these are several curves; {tell if candidates else 'no column tells them apart'}"
    )


def _resumed(rows: pl.DataFrame, step: str, group: tuple[str, ...]) -> bool:
    """Whether steps go back a few times only, each time to a step after the curve's first: one run that was resumed."""
    keys = pl.concat_str([pl.lit(""), *(pl.col(name).cast(pl.String) for name in group)], separator="\0").alias("of")
    found = (
        rows.select(keys, pl.col(step).alias("at"))
        .group_by("of")
        .agg(
            first=pl.col("at").first(),
            back=pl.col("at").filter(pl.col("at").diff() <= 0),
            rows=pl.len(),
        )
    )
    many = pl.col("back").list.len() > (RESTARTS * pl.col("rows")).clip(1)
    again = (pl.col("back").list.min() <= pl.col("first")).fill_null(False)
    return found.filter(many | again).is_empty()


def _candidates(rows: pl.DataFrame, step: str, losses: dict[str, str | None]) -> list[str]:
    """Columns with several values that each have several rows: text first, then those with fewer values."""
    values = {
        name: rows[name].n_unique()
        for name in rows.columns
        if name not in (step, *losses) and not looks_like_loss(name) and plain(name) not in ("epoch", *STEPS)
    }
    several = [name for name, count in values.items() if 2 <= count <= len(rows) / 3]
    return sorted(several, key=lambda name: (has_numbers(rows[name]), values[name]))


def _rows(frame: pl.DataFrame, step: str, losses: dict[str, str | None]) -> tuple[pl.DataFrame, list[pl.Series]]:
    """Rows with a step, as a number, and a loss that can be used; and for each loss, which of them have it."""
    steps = numbers(frame[step])
    masks = []
    for name in losses:
        column = numbers(frame[name])
        masks.append((column.is_finite() & (column > 0) & steps.is_not_null()).fill_null(False))
    rows = frame.select(pl.any_horizontal(masks).alias("any"))["any"]
    return frame.with_columns(steps).filter(rows), [mask.filter(rows) for mask in masks]


def _repeated(rows: pl.DataFrame, masks: list[pl.Series], step: str, group: tuple[str, ...]) -> float:
    """Share of the losses whose step their curve already has."""
    keys = rows.select(step, *group)
    total = sum(mask.sum() for mask in masks)
    return 1 - sum(keys.filter(mask).n_unique() for mask in masks) / total if total else 0.0

"""Which columns of a table are steps, losses and the names of curves: as told, or guessed from names and values."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from lmdynamics.analysis.formats import Table
from lmdynamics.errors import UserError, did_you_mean, listed, shortened

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


# names that usually tell runs apart, in order of preference
GROUPS = (
    *("model", "run", "run_name", "name", "path", "curve", "run_id", "seed", "experiment", "model_name", "config"),
    *("condition", "variant", "method", "optimizer", "size", "model_size", "task", "dataset", "metric", "split"),
)
RESTARTS = 0.1  # of a curve's rows: where steps go back more often, rows are out of order, and no run was resumed
REPEATED = 0.25  # of the rows: where more have a step that their curve already has, it is several curves
SEPARATORS = "/_-. "
# how the names of other things end that are logged beside losses, as `plain` writes them
OTHER = re.compile(
    r"(^|_)(lr|learning_rate|rate|weight_decay|wd|momentum|beta\d?|temperature|dropout|norm|grad|scale|epochs?|steps?|tokens|"
    r"samples|examples|sequences|batch(es)?|size|parameters|params|index|idx|row|id|time|timestamp|date|datetime|runtime|"
    r"elapsed|eta|seconds?|secs?|minutes|hours|ms|throughput|speed|tps|fps|flops|mfu|memory|mem|gpu|acc|accuracy|error|"
    r"precision|recall|f1|auc|mcc|bleu|rouge\w*|score|reward|ppl|perplexity|entropy|kl|uas|las|pairs|arcs)$"
)


@dataclass(frozen=True)
class Columns:
    """The choice. `losses`: each column with the name of its curve, None where the table's or the group's will do."""

    step: str
    losses: dict[str, str | None]
    group: tuple[str, ...]
    notes: tuple[str, ...]


def choose_columns(table: Table, group: str | Sequence[str] | None, step: str | None, loss: str | None) -> Columns:
    """Columns by name or pattern where told, otherwise by what their names and values look like.

    Raises UserError if a column is unknown, holds no numbers, or cannot be guessed; or a curve would have the same step
    many times.
    """
    frame = table.frame
    if frame.is_empty():
        raise UserError(f"{table.source} has no rows; write the losses to it, or give another file")
    for name in (told := _names(frame, group)):
        _known(table, name, "group")
    if step is not None:
        _known(table, step, "step")
    step_is = step or best_known([name for name in frame.columns if name not in (*told, loss)], STEPS)
    step_is = step_is or _rising(frame, loss)
    for first, second in (((step_is,), told), ((step_is,), (loss,)), (told, (loss,))):
        if both := set(first) & set(second) - {None}:
            raise UserError(
                f"{table.source}: column {both.pop()!r} cannot be two of step, loss and group; give another"
            )
    losses, others = _losses(table, loss, {step_is, *told})
    if step_is is None:
        raise UserError(
            f"{table.source}: no column looks like a step among {listed(frame.columns)}; give --step COLUMN"
        )
    _need_numbers(table, step_is, "step")
    group_is = _group(table, step_is, losses, told or ((table.group,) if table.group else ()))
    taken = {"step": step_is, "loss": _pattern(list(losses)), "group": ", ".join(group_is)}
    sure = {"step": step, "loss": loss, "group": told or table.group}
    guessed = [kind for kind, name in taken.items() if name and not sure[kind]]
    kinds = [f"{kind} {name!r}{' (guessed)' if kind in guessed else ''}" for kind, name in taken.items() if name]
    advice = f"; choose with {', '.join(f'--{kind}' for kind in guessed)}" if guessed else ""
    notes = [f"Columns: {', '.join(kinds)}{advice}."]
    if loss is None and len(losses) > 1 and not any(map(looks_like_loss, losses)):
        notes.append(
            f"No column is named like a loss; each of these is taken for a curve of losses: {listed([*losses])}."
        )
    if others:
        notes.append(f"Other columns that look like losses, not taken: {listed(others)}.")
    return Columns(step_is, losses, group_is, tuple(notes))


def wanted_tags(loss: str | None) -> Callable[[str], bool]:
    """Whether a tag is worth reading, for a choice of losses that is yet to be made."""
    if loss is None:
        return lambda tag: looks_like_loss(tag) or plain(tag) in LOSSES
    return lambda tag: tag == loss or _regex(loss).fullmatch(tag) is not None


def run_and_metric(name: str) -> tuple[str, str]:
    """Weights & Biases exports name a column `run - metric`; elsewhere the run is empty."""
    run, _, metric = name.rpartition(" - ")
    return run, metric


def _losses(table: Table, loss: str | None, taken: set[str | None]) -> tuple[dict[str, str | None], list[str]]:
    """Loss columns with the names of their curves, and those that might have been meant instead."""
    columns = [name for name in table.frame.columns if name not in taken]
    if loss is None:
        return _guess_losses(table, columns)
    if loss in table.frame.columns:
        _need_numbers(table, loss, "loss")
        return {loss: None}, []
    pattern = loss if "*" in loss else f"* - {loss}"
    found = {
        name: match for name in columns if (match := _regex(pattern).fullmatch(name)) and not NOT_LOSS.search(name)
    }
    found = {name: match for name, match in found.items() if has_numbers(table.frame[name])}
    if not found:
        known = shortened(did_you_mean(loss, columns), 300)
        what = f"no column of numbers matches {loss!r}" if "*" in loss else f"no column {loss!r}"
        raise UserError(f"{table.source}: {what}{known}")
    names = {name: "/".join(filter(None, match.groups())) for name, match in found.items()}
    distinct = len(set(names.values())) == len(names) and all(names.values())
    return {name: names[name] if distinct else name for name in found}, []


def _guess_losses(table: Table, columns: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """The column with the best-known name; or all, where they are the same metric of several runs."""
    like = [name for name in columns if looks_like_loss(name) and has_numbers(table.frame[name])]
    by_run = [name for name in like if run_and_metric(name)[0]]
    if by_run:
        metrics = list(dict.fromkeys(run_and_metric(name)[1] for name in by_run))
        metric = best_known(metrics, LOSSES) or metrics[0]
        chosen = {name: run_and_metric(name)[0] for name in by_run if run_and_metric(name)[1] == metric}
        return chosen, [name for name in like if name not in chosen]
    known = best_known(like, LOSSES)
    if known and VALIDATION.search(known.lower()):  # the loss of training, where it is logged as well
        training = [name for name in like if re.search("train", name.lower())]
        if best := max(training, key=lambda name: numbers(table.frame[name]).count(), default=None):
            return {best: None}, [name for name in like if name != best]
    if best := best_known(like or [name for name in columns if has_numbers(table.frame[name])], LOSSES):
        return {best: None}, [name for name in like if name != best]
    if not like:
        if texts := [name for name in columns if looks_like_loss(name)]:
            _need_numbers(table, texts[0], "loss")
        if wide := _wide(table.frame, columns):
            return dict(zip(wide, wide, strict=True)) if len(wide) > 1 else {wide[0]: None}, []
        raise UserError(f"{table.source}: no column looks like a loss among {listed(columns)}; give --loss COLUMN")
    if len({re.split(r"[/_. ]", name)[-1] for name in like}) > 1 or len(like) == 1:
        return {like[0]: None}, like[1:]
    start, end = _shared(like)
    return {name: name[len(start) : len(name) - len(end)] or name for name in like}, []


def _wide(frame: pl.DataFrame, columns: list[str]) -> list[str]:
    """Columns of a table that may have a curve in each, called by its name: all but what is known to be no loss are of
    positive numbers, and there are several, or the one beside the steps."""
    unknown = [name for name in columns if not (_is_other(name) or is_empty(frame[name]).all())]
    numeric = [numbers(frame[name]) for name in unknown]
    positive = all(column.count() and (column.filter(column.is_finite()) > 0).all() for column in numeric)
    return unknown if positive and (len(unknown) > 1 or len(unknown) == len(frame.columns) - 1) else []


def _rising(frame: pl.DataFrame, loss: str | None) -> str | None:
    """Of two columns the one whose whole numbers rise, called what they may be."""
    names = [name for name in frame.columns if name != loss and not _is_other(name) and not looks_like_loss(name)]
    found = []
    for name in names if len(frame.columns) == 2 and len(frame) > 2 else ():
        column = numbers(frame[name])
        if not column.null_count() and (column == column.floor()).all() and (column.diff().drop_nulls() > 0).all():
            found.append(name)
    return found[0] if len(found) == 1 else None


def _is_other(name: str) -> bool:
    """Whether a column's name, or the last part of its path, is that of something known to be no loss."""
    last = plain(re.split(r"/| - ", name)[-1])
    known = last in (*STEPS, *GROUPS) or last == "" or last.startswith("unnamed")
    return known or bool(OTHER.search(last) or NOT_LOSS.search(name.lower()))


def _names(frame: pl.DataFrame, group: str | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(group, str) and group not in frame.columns:
        group = [name.strip() for name in group.split(",")]
    return (group,) if isinstance(group, str) else tuple(dict.fromkeys(group or ()))


def _known(table: Table, name: str, option: str) -> None:
    if name not in table.frame.columns:
        known = shortened(did_you_mean(name, table.frame.columns), 300)
        raise UserError(f"{table.source}: --{option}: no column {name!r}{known}")


def _need_numbers(table: Table, name: str, option: str) -> None:
    column = table.frame[name]
    if not has_numbers(column):
        first = next(iter(column.drop_nulls()), None)
        what = "is empty" if first is None else f"holds no numbers (its first value is {shortened(str(first))!r})"
        raise UserError(f"{table.source}: column {name!r} {what}; give --{option} COLUMN")


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile("(.*)".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def _shared(names: list[str]) -> tuple[str, str]:
    """What all names begin and end with, up to a separator: of a/x_loss and a/y_loss, `a/` and `_loss`."""
    start = _beginning(names)
    return start, _beginning([name[len(start) :][::-1] for name in names])[::-1]


def _beginning(names: list[str]) -> str:
    low, high = min(names), max(names)  # what these two share, all between them share
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: max(low.rfind(mark, 0, same) for mark in SEPARATORS) + 1]


def _pattern(names: list[str]) -> str:
    return "*".join(_shared(names)) if len(names) > 1 else names[0]


def _group(table: Table, step: str, losses: dict[str, str | None], told: tuple[str, ...]) -> tuple[str, ...]:
    """Columns that tell curves apart, as told or guessed.

    Raises UserError where over `REPEATED` of the rows have a step that their curve already has, and no run was resumed.
    """
    rows, masks = _rows(table.frame, step, losses)
    candidates = _candidates(rows, step, losses)
    group = told or _guess_group(rows, masks, step, candidates)
    share = _repeated(rows, masks, step, group)
    if share <= REPEATED or all(_resumed(rows.filter(mask), step, group) for mask in masks):
        return group
    candidates = [name for name in candidates if name not in group]
    most = max(rows.filter(mask).group_by(step, *group).len()["len"].max() or 0 for mask in masks)
    tell = f"give --group {','.join((*group, 'COLUMN'))} (candidates: {listed(candidates)})"
    raise UserError(
        f"{table.source}: {share:.0%} of the rows have a step that their curve already has, the same step up to "
        f"{most:,} times, so these are several curves; {tell if candidates else 'no column tells them apart'}"
    )


def _guess_group(rows: pl.DataFrame, masks: list[pl.Series], step: str, candidates: list[str]) -> tuple[str, ...]:
    """By a well-known name, or because every step is then there once."""
    named = sorted((c for c in rows.columns if plain(c) in GROUPS), key=lambda name: GROUPS.index(plain(name)))
    named = [name for name in named if name != step and 2 <= rows[name].n_unique() <= len(rows) / 2]
    options = [(name,) for name in named]
    if len(named) > 1:
        options.append(tuple(name for name in rows.columns if name in named))
    alone = _repeated(rows, masks, step, ())
    if alone > REPEATED:
        options += [(name,) for name in candidates if name not in named]
    # none is perfect where a run was resumed and logged some steps again
    repeated = {option: _repeated(rows, masks, step, option) for option in options}
    best = min(options, key=repeated.__getitem__, default=())
    return best if best and (not repeated[best] or repeated[best] < min(alone, REPEATED)) else ()


def _resumed(rows: pl.DataFrame, step: str, group: tuple[str, ...]) -> bool:
    """Whether steps go back a few times only, each time to a step after the curve's first: one run that was resumed."""
    keys = pl.concat_str([pl.lit(""), *(pl.col(name).cast(pl.String) for name in group)], separator="\0").alias("of")
    at = pl.col(step)
    found = rows.group_by(keys).agg(first=at.first(), back=at.filter(at.diff() <= 0), rows=pl.len())
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

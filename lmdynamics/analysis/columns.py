"""Columns of a table that hold steps, losses and curve names: chosen, or detected from names and values."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import polars as pl

from lmdynamics.analysis.formats import Table
from lmdynamics.errors import UserError, did_you_mean, listed, shortened

# In order of preference, as `plain` writes them. W&B's own _step counts calls of log(), so it comes last of the steps.
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
NO_LOSS = re.compile(r"(?<![a-z])(acc|accuracy|f1|em|exact_match|auc|bleu|rouge|mcc|score|ppl|perplexity)(?![a-z])")
VALIDATION = re.compile(r"(^|[^a-z])(val|valid|validation|dev|eval|test)([^a-z]|$)")
THOUSANDS = {mark: re.compile(rf"[-+]?[1-9]\d{{0,2}}(?:\{mark}\d{{3}})+") for mark in ",."}
DECIMAL_COMMA = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+(?:[eE][-+]?\d+)?")


def plain(name: str) -> str:
    """A column's name as the lists above write it: `Train/Loss` is train_loss."""
    return re.sub(r"[\s/.-]+", "_", name.strip().lower())


def losses_only(table: Table) -> Table:
    """A table without the rows whose `metric` is no loss, such as an accuracy or a perplexity, and a note on these.

    Raises UserError if all of them are.
    """
    metrics = [name for name in table.frame.columns if plain(name) in ("metric", "metrics")]
    if not metrics or table.frame[metrics[0]].dtype != pl.String:
        return table
    metric = table.frame[metrics[0]]
    others = [value for value in metric.drop_nulls().unique(maintain_order=True) if NO_LOSS.search(value.lower())]
    kept = table.frame.filter(~metric.is_in(others).fill_null(False))
    if others and kept.is_empty():
        raise UserError(
            f"{table.source}: no {metric.name} is a loss ({listed(others)}); give --loss to read one as a loss"
        )
    note = f"{len(metric) - len(kept):,} rows are no losses ({listed(others)}) and are left out."
    return replace(table, frame=kept, notes=(*table.notes, *([note] if others else [])))


def looks_like_loss(name: str) -> bool:
    return bool(LOSS_LIKE.search(name.lower())) and not NOT_LOSS.search(name.lower())


def numbers(column: pl.Series) -> pl.Series:
    """A column as Float64, null where there is no number; dates and flags are null everywhere."""
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    elif not column.dtype.is_numeric() and column.dtype != pl.Null:
        return pl.Series(column.name, [None] * len(column), pl.Float64)
    return column.cast(pl.Float64, strict=False)


def with_decimal_points(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """A frame with texts such as `1,110`, `8,37` and `1.000` converted to plain numbers, and a note for each column.

    A comma is a decimal comma if a column's cells allow no other reading; then points separate thousands in the whole
    table. Otherwise commas before groups of three separate thousands, if the column's other numbers are below 1,000.
    Ambiguous cells are not changed.
    """
    texts = {
        name: frame[name].drop_nulls().str.strip_chars().unique(maintain_order=True).to_list()
        for name, kind in frame.schema.items()
        if kind == pl.String
    }
    commas = {name: [cell for cell in cells if "," in cell] for name, cells in texts.items()}
    decimal = {name for name, cells in commas.items() if cells and all(map(DECIMAL_COMMA.fullmatch, cells))}
    if all(THOUSANDS[","].fullmatch(cell) for name in decimal for cell in commas[name]):
        decimal = set()  # all of them are like 1,110: groups of three
    changed, notes = [], []
    for name, cells in texts.items():
        dotted = [cell for cell in cells if THOUSANDS["."].fullmatch(cell)]
        bare = [cell for cell in cells if cell not in commas[name] and cell not in dotted]
        small = all(re.fullmatch(r"[-+]?\d{1,3}(\.\d+)?", cell) for cell in bare)
        if name in decimal:
            column, example = pl.col(name).str.replace_all(".", "", literal=True).str.replace(",", "."), commas[name][0]
        elif commas[name] and all(map(THOUSANDS[","].fullmatch, commas[name])) and bare and small and not decimal:
            column, example = pl.col(name).str.replace_all(",", "", literal=True), commas[name][0]
        elif dotted and small and not commas[name] and (decimal or (plain(name) in STEPS and bare)):
            column, example = pl.col(name).str.replace_all(".", "", literal=True), dotted[0]
        else:
            continue
        changed.append(column)
        number = pl.select(pl.lit(example).alias(name)).select(column).item()
        notes.append(f"Column {name!r}: {example!r} is read as {number}.")
    return frame.with_columns(changed), notes


def is_empty(column: pl.Series) -> pl.Series:
    """Whether each cell is empty or blank."""
    if column.dtype != pl.String:
        return column.is_null()
    return column.is_null() | (column.str.strip_chars() == "").fill_null(True)


def has_numbers(column: pl.Series) -> bool:
    return numbers(column).count() > 0


def best_known(names: Sequence[str], preferred: Sequence[str]) -> str | None:
    """The most preferred of some names; None if none is in the list."""
    known = [name for name in names if plain(name) in preferred]
    return min(known, key=lambda name: preferred.index(plain(name)), default=None)


# columns that usually distinguish runs, in order of preference
GROUPS = (
    *("model", "run", "run_name", "name", "path", "curve", "run_id", "seed", "experiment", "model_name", "config"),
    *("condition", "variant", "method", "optimizer", "size", "model_size", "task", "dataset", "metric", "split"),
)
RESTARTS = 0.1  # share of a curve's rows: if steps decrease more often, rows are out of order, and no run was resumed
REPEATED = 0.25  # share of rows that repeat a step of their curve; above it, the rows are several curves
SEPARATORS = "/_-. "
# endings of the names of other quantities that are logged with losses, as `plain` writes them
OTHER_QUANTITY = re.compile(
    r"(^|_)(lr|learning_rate|rate|weight_decay|wd|momentum|beta\d?|temperature|dropout|norm|grad|scale|epochs?|steps?|tokens|"
    r"samples|examples|sequences|batch(es)?|size|parameters|params|index|idx|row|id|time|timestamp|date|datetime|runtime|"
    r"elapsed|eta|seconds?|secs?|minutes|hours|ms|throughput|speed|tps|fps|flops|mfu|memory|mem|gpu|acc|accuracy|error|"
    r"precision|recall|f1|auc|mcc|bleu|rouge\w*|score|reward|ppl|perplexity|entropy|kl|uas|las|pairs|arcs)$"
)


@dataclass(frozen=True)
class Columns:
    """The chosen columns. `losses`: column and curve name; None: the curve is named by the table or the group."""

    step: str
    losses: dict[str, str | None]
    group: tuple[str, ...]
    notes: tuple[str, ...]


def choose_columns(table: Table, group: str | Sequence[str] | None, step: str | None, loss: str | None) -> Columns:
    """Columns by name or pattern if given, otherwise detected from names and values.

    Raises UserError if a column is unknown, holds no numbers, or cannot be detected; or if a curve would repeat many
    steps.
    """
    frame = table.frame
    if frame.is_empty():
        raise UserError(f"{table.source} has no rows; write the losses to it, or give another file")
    for name in (groups := _names(frame, group)):
        _require_column(table, name, "group")
    if step is not None:
        _require_column(table, step, "step")
    step_column = step or best_known([name for name in frame.columns if name not in (*groups, loss)], STEPS)
    step_column = step_column or _rising_column(frame, loss)
    for first, second in (((step_column,), groups), ((step_column,), (loss,)), (groups, (loss,))):
        if shared := set(first) & set(second) - {None}:
            raise UserError(
                f"{table.source}: column {shared.pop()!r} cannot be two of step, loss and group; give another"
            )
    losses, unused = _losses(table, loss, {step_column, *groups})
    if step_column is None:
        raise UserError(
            f"{table.source}: no column looks like a step among {listed(frame.columns)}; give --step COLUMN"
        )
    _need_numbers(table, step_column, "step")
    group_columns = _group(table, step_column, losses, groups or ((table.group,) if table.group else ()))
    selected = {"step": step_column, "loss": _pattern(list(losses)), "group": ", ".join(group_columns)}
    explicit = {"step": step, "loss": loss, "group": groups or table.group}
    detected = [kind for kind, name in selected.items() if name and not explicit[kind]]
    parts = [f"{kind} {name!r}{' (detected)' if kind in detected else ''}" for kind, name in selected.items() if name]
    advice = f"; choose with {', '.join(f'--{kind}' for kind in detected)}" if detected else ""
    notes = [f"Columns: {', '.join(parts)}{advice}."]
    if loss is None and len(losses) > 1 and not any(map(looks_like_loss, losses)):
        notes.append(
            f"No column is named like a loss; each of these is read as a curve of losses: {listed([*losses])}."
        )
    if unused:
        notes.append(f"Other columns that look like losses, not used: {listed(unused)}.")
    return Columns(step_column, losses, group_columns, tuple(notes))


def loss_tag_filter(loss: str | None) -> Callable[[str], bool]:
    """A filter of tags that may be losses; the final choice of columns comes later."""
    if loss is None:
        return lambda tag: looks_like_loss(tag) or plain(tag) in LOSSES
    return lambda tag: tag == loss or _regex(loss).fullmatch(tag) is not None


def run_and_metric(name: str) -> tuple[str, str]:
    """Weights & Biases exports name a column `run - metric`; elsewhere the run is empty."""
    run, _, metric = name.rpartition(" - ")
    return run, metric


def _losses(table: Table, loss: str | None, excluded: set[str | None]) -> tuple[dict[str, str | None], list[str]]:
    """Loss columns with the names of their curves, and the columns that look like losses but are not used."""
    columns = [name for name in table.frame.columns if name not in excluded]
    if loss is None:
        return _detect_losses(table, columns)
    if loss in table.frame.columns:
        _need_numbers(table, loss, "loss")
        return {loss: None}, []
    pattern = loss if "*" in loss else f"* - {loss}"
    matches = {
        name: match for name in columns if (match := _regex(pattern).fullmatch(name)) and not NOT_LOSS.search(name)
    }
    matches = {name: match for name, match in matches.items() if has_numbers(table.frame[name])}
    if not matches:
        known = shortened(did_you_mean(loss, columns), 300)
        problem = f"no column of numbers matches {loss!r}" if "*" in loss else f"no column {loss!r}"
        raise UserError(f"{table.source}: {problem}{known}")
    names = {name: "/".join(filter(None, match.groups())) for name, match in matches.items()}
    distinct = len(set(names.values())) == len(names) and all(names.values())
    return {name: names[name] if distinct else name for name in matches}, []


def _detect_losses(table: Table, columns: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """The column with the first name in `LOSSES`; or all columns, if they are the same metric of several runs."""
    loss_like = [name for name in columns if looks_like_loss(name) and has_numbers(table.frame[name])]
    by_run = [name for name in loss_like if run_and_metric(name)[0]]
    if by_run:
        metrics = list(dict.fromkeys(run_and_metric(name)[1] for name in by_run))
        metric = best_known(metrics, LOSSES) or metrics[0]
        chosen = {name: run_and_metric(name)[0] for name in by_run if run_and_metric(name)[1] == metric}
        return chosen, [name for name in loss_like if name not in chosen]
    known = best_known(loss_like, LOSSES)
    if known and VALIDATION.search(known.lower()):  # prefer the training loss, if it is logged as well
        training = [name for name in loss_like if re.search("train", name.lower())]
        if best := max(training, key=lambda name: numbers(table.frame[name]).count(), default=None):
            return {best: None}, [name for name in loss_like if name != best]
    if best := best_known(loss_like or [name for name in columns if has_numbers(table.frame[name])], LOSSES):
        return {best: None}, [name for name in loss_like if name != best]
    if not loss_like:
        if text_columns := [name for name in columns if looks_like_loss(name)]:
            _need_numbers(table, text_columns[0], "loss")
        if wide := _wide_columns(table.frame, columns):
            return dict(zip(wide, wide, strict=True)) if len(wide) > 1 else {wide[0]: None}, []
        raise UserError(f"{table.source}: no column looks like a loss among {listed(columns)}; give --loss COLUMN")
    if len({re.split(r"[/_. ]", name)[-1] for name in loss_like}) > 1 or len(loss_like) == 1:
        return {loss_like[0]: None}, loss_like[1:]
    start, end = _common_affixes(loss_like)
    return {name: name[len(start) : len(name) - len(end)] or name for name in loss_like}, []


def _wide_columns(frame: pl.DataFrame, columns: list[str]) -> list[str]:
    """Columns of a table with one curve per column: all columns not known to be another quantity, if they hold positive
    numbers and are several, or the only one beside the steps."""
    candidates = [name for name in columns if not (_is_not_loss(name) or is_empty(frame[name]).all())]
    numeric = [numbers(frame[name]) for name in candidates]
    positive = all(column.count() and (column.filter(column.is_finite()) > 0).all() for column in numeric)
    return candidates if positive and (len(candidates) > 1 or len(candidates) == len(frame.columns) - 1) else []


def _rising_column(frame: pl.DataFrame, loss: str | None) -> str | None:
    """In a table of two columns, the one with rising whole numbers, whatever its name."""
    names = [name for name in frame.columns if name != loss and not _is_not_loss(name) and not looks_like_loss(name)]
    rising = []
    for name in names if len(frame.columns) == 2 and len(frame) > 2 else ():
        column = numbers(frame[name])
        if not column.null_count() and (column == column.floor()).all() and (column.diff().drop_nulls() > 0).all():
            rising.append(name)
    return rising[0] if len(rising) == 1 else None


def _is_not_loss(name: str) -> bool:
    """Whether a column's name, or the last part of its path, is that of another quantity."""
    last = plain(re.split(r"/| - ", name)[-1])
    known = last in (*STEPS, *GROUPS) or last == "" or last.startswith("unnamed")
    return known or bool(OTHER_QUANTITY.search(last) or NOT_LOSS.search(name.lower()))


def _names(frame: pl.DataFrame, group: str | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(group, str) and group not in frame.columns:
        group = [name.strip() for name in group.split(",")]
    return (group,) if isinstance(group, str) else tuple(dict.fromkeys(group or ()))


def _require_column(table: Table, name: str, option: str) -> None:
    if name not in table.frame.columns:
        known = shortened(did_you_mean(name, table.frame.columns), 300)
        raise UserError(f"{table.source}: --{option}: no column {name!r}{known}")


def _need_numbers(table: Table, name: str, option: str) -> None:
    column = table.frame[name]
    if not has_numbers(column):
        first = next(iter(column.drop_nulls()), None)
        problem = "is empty" if first is None else f"holds no numbers (its first value is {shortened(str(first))!r})"
        raise UserError(f"{table.source}: column {name!r} {problem}; give --{option} COLUMN")


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile("(.*)".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def _common_affixes(names: list[str]) -> tuple[str, str]:
    """The common beginning and end of names, up to a separator: `a/` and `_loss` for a/x_loss and a/y_loss."""
    start = _common_prefix(names)
    return start, _common_prefix([name[len(start) :][::-1] for name in names])[::-1]


def _common_prefix(names: list[str]) -> str:
    low, high = min(names), max(names)  # a prefix of both is a prefix of all names between them
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: max(low.rfind(mark, 0, same) for mark in SEPARATORS) + 1]


def _pattern(names: list[str]) -> str:
    return "*".join(_common_affixes(names)) if len(names) > 1 else names[0]


def _group(table: Table, step: str, losses: dict[str, str | None], chosen_group: tuple[str, ...]) -> tuple[str, ...]:
    """Columns that distinguish curves, chosen or detected.

    Raises UserError if more than `REPEATED` of the rows repeat a step of their curve, and no run was resumed.
    """
    rows, masks = _rows(table.frame, step, losses)
    candidates = _candidates(rows, step, losses)
    group = chosen_group or _detect_group(rows, masks, step, candidates)
    share = _repeated_share(rows, masks, step, group)
    if share <= REPEATED or all(_resumed(rows.filter(mask), step, group) for mask in masks):
        return group
    candidates = [name for name in candidates if name not in group]
    max_count = max(rows.filter(mask).group_by(step, *group).len()["len"].max() or 0 for mask in masks)
    advice = f"give --group {','.join((*group, 'COLUMN'))} (candidates: {listed(candidates)})"
    raise UserError(
        f"{table.source}: {share:.0%} of the rows have a step that their curve already has, the same step up to "
        f"{max_count:,} times, so these are several curves; {advice if candidates else 'no column distinguishes them'}"
    )


def _detect_group(rows: pl.DataFrame, masks: list[pl.Series], step: str, candidates: list[str]) -> tuple[str, ...]:
    """Columns with a common name, or with which each curve has every step once."""
    known = sorted((c for c in rows.columns if plain(c) in GROUPS), key=lambda name: GROUPS.index(plain(name)))
    known = [name for name in known if name != step and 2 <= rows[name].n_unique() <= len(rows) / 2]
    options = [(name,) for name in known]
    if len(known) > 1:
        options.append(tuple(name for name in rows.columns if name in known))
    ungrouped_share = _repeated_share(rows, masks, step, ())
    if ungrouped_share > REPEATED:
        options += [(name,) for name in candidates if name not in known]
    # a resumed run logs some steps again, so no choice is perfect
    shares = {option: _repeated_share(rows, masks, step, option) for option in options}
    best = min(options, key=shares.__getitem__, default=())
    return best if best and (not shares[best] or shares[best] < min(ungrouped_share, REPEATED)) else ()


def _resumed(rows: pl.DataFrame, step: str, group: tuple[str, ...]) -> bool:
    """Whether steps decrease only a few times, each time to a step after the curve's first: a resumed run."""
    keys = pl.concat_str([pl.lit(""), *(pl.col(name).cast(pl.String) for name in group)], separator="\0").alias("key")
    value = pl.col(step)
    groups = rows.group_by(keys).agg(first=value.first(), back=value.filter(value.diff() <= 0), rows=pl.len())
    too_many = pl.col("back").list.len() > (RESTARTS * pl.col("rows")).clip(1)
    before_first = (pl.col("back").list.min() <= pl.col("first")).fill_null(False)
    return groups.filter(too_many | before_first).is_empty()


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
    """Rows with a numeric step and a usable loss; and for each loss, which rows have it."""
    steps = numbers(frame[step])
    masks = []
    for name in losses:
        column = numbers(frame[name])
        masks.append((column.is_finite() & (column > 0) & steps.is_not_null()).fill_null(False))
    rows = frame.select(pl.any_horizontal(masks).alias("any"))["any"]
    return frame.with_columns(steps).filter(rows), [mask.filter(rows) for mask in masks]


def _repeated_share(rows: pl.DataFrame, masks: list[pl.Series], step: str, group: tuple[str, ...]) -> float:
    """Share of the losses that repeat a step of their curve."""
    keys = rows.select(step, *group)
    total = sum(mask.sum() for mask in masks)
    return 1 - sum(keys.filter(mask).n_unique() for mask in masks) / total if total else 0.0

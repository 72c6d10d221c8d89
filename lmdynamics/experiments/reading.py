"""Loss curves from whatever holds them (files, folders, frames and runs), and the fits that `lmdynamics fit` prints."""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
from rich import table as tables
from rich.console import Console
from rich.text import Text

from lmdynamics.analysis.columns import wanted_tags
from lmdynamics.analysis.deceleration import LOCATED, VERDICTS, Deceleration
from lmdynamics.analysis.fits import fit_curves
from lmdynamics.analysis.formats import KNOWN, Table, frame_table, open_table
from lmdynamics.analysis.reading import Curves, curves_in
from lmdynamics.errors import UserError, did_you_mean, printable, shortened
from lmdynamics.hub.suites import open_run, run_names
from lmdynamics.paths import runs_dir
from lmdynamics.runs.run import Run


def read_curves(
    where: str | Path | pl.DataFrame | Run,
    *,
    group: str | Sequence[str] | None = None,
    step: str | None = None,
    loss: str | None = None,
) -> Curves:
    """Read loss curves from a file, a folder, a frame or a run.

    Tables (CSV, TSV, separated by blanks, Parquet), JSON lines, text logs (`step:250/3000 train_loss:4.5`, `s:250
    trl:4.5`, `{'loss': 4.5}`), all told apart by what they hold and not by their names, also gzipped; Hugging Face's
    `trainer_state.json` or Lightning's `metrics.csv` (or a folder with one, or with checkpoints), TensorBoard event
    files (or a folder of them: each sub-folder is a curve), exports from Weights & Biases, and runs by name, by folder
    or as they are.

    Where steps go back, a run was resumed: from there on its rows replace all that the earlier run has at that step and
    beyond, also where it has not come as far. Rows are in order of wall time where there is a column of it.

    `loss` is a column, or a pattern such as `eval/*/loss` whose columns are a curve each, called what `*` stands for.
    `group` is a column, or several (a list, or separated by commas), whose values together name the curve.

    Raises UserError if there is nothing to read, it is damaged or in no known format, a column is unknown or cannot be
    guessed, a curve would have the same step many times, or fewer than half of the rows can be used.
    """
    return curves_in(_table(where, wanted_tags(loss)), group, step, loss)


def _table(where: str | Path | pl.DataFrame | Run, wanted: Callable[[str], bool]) -> Table:
    """A path is looked for first; a name that is no path is a run's."""
    if isinstance(where, pl.DataFrame):
        return frame_table(where)
    if isinstance(where, Run):
        if not (where.folder / "log.parquet").exists() and not where.facts:
            return open_table(where.folder, wanted)  # checkpoints that another trainer wrote
        return Table(where.log, where.name, f"the log of {where.name}")
    path = Path(where).expanduser()
    if path.is_dir() and any((path / name).exists() for name in ("run.json", "log.parquet")):
        return _table(open_run(path), wanted)
    if path.is_dir() or path.is_file():
        return open_table(path, wanted)
    if path.name == str(where) and (runs_dir() / path).is_dir():
        return _table(open_run(where), wanted)
    known = run_names() if path.name == str(where) and not path.suffix else []
    hint = shortened(did_you_mean(str(where), known), 200) if known else f"; give {KNOWN}"
    raise UserError(f"{where} is no file, folder or run{hint}")


SKIPPED = 100  # steps that are left out unless others are asked for
SHOWN = 60  # rows of a table for a person
NUMBERS = {"loss_at_break": ".3f", "step_at_break": ",.0f", "rate_after_break": ".4f", "rate_before_break": ".3f"}


def fit_files(
    files: Sequence[str],
    group: str | None = None,
    step: str | None = None,
    loss: str | None = None,
    smoothing: str = "none",
    skip_steps: float | None = None,
    resamples: int = 200,
    workers: int | None = None,
    as_json: bool = False,
) -> int:
    """Read, fit and print; notes go to standard error. Returns the exit status: 1 where no curve could be fitted.

    `skip_steps`: 100 where nothing else is asked for.

    Raises UserError if a file cannot be read, there is one curve and it cannot be fitted, or most rows lie in steps
    that would be left out though nobody said so.
    """
    if resamples < 0:
        raise UserError(f"--resamples is {resamples}; give 0 for no intervals, or some hundreds")
    parts = []
    for file in files:
        read = read_curves(file, group=group, step=step, loss=loss)
        for note in read.notes:
            print(printable(f"{file}: {note}"), file=sys.stderr)
        named = pl.col("curve") if len(files) == 1 or read.names == [file] else pl.lit(f"{file}: ") + pl.col("curve")
        parts.append(read.frame.with_columns(named.alias("curve")))
    frame = pl.concat(parts)
    if (twice := frame.select("curve", "step").is_duplicated()).any():
        raise UserError(f"two files hold a curve called {frame.filter(twice)['curve'][0]!r}; fit them one at a time")
    early = frame.filter(pl.col("step") <= SKIPPED)
    if skip_steps is None and len(early) > len(frame) / 2:
        raise UserError(
            f"{len(early):,} of {len(frame):,} rows lie at steps up to {SKIPPED}, which are left out by default; give "
            f"--skip-steps 0 to fit them as well, or --skip-steps {SKIPPED} to fit the rest"
        )
    skip_steps = SKIPPED if skip_steps is None else skip_steps
    fits = fit_curves(frame, smoothing=smoothing, skip_steps=skip_steps, resamples=resamples, workers=workers)
    failed = [made for made in fits.values() if isinstance(made, UserError)]
    if len(fits) == 1 and failed:
        raise failed[0]
    if as_json:
        print(json.dumps([to_json(name, made) for name, made in fits.items()], indent=1, allow_nan=False))
    else:
        _show(fits)
    return 1 if len(failed) == len(fits) else 0


def to_json(name: str, made: Deceleration | UserError) -> dict:
    """One curve as an object: `group`, and the fields of `Deceleration`; where it was not fitted, why, and nulls."""
    if isinstance(made, UserError):
        fields = dict.fromkeys((*Deceleration.__dataclass_fields__, "rate_before_break"))
        return {"group": name, **fields, "verdict": "not fitted", "reason": str(made), "intervals": {}}
    return {"group": name, **_finite(made.to_dict())}


def _finite(value):
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(fits: dict[str, Deceleration | UserError]) -> None:
    table = tables.Table(title="Loss deceleration, with 95 % intervals (block bootstrap)", title_justify="left")
    for column in ("curve", "verdict", "L_d: loss", "t_d: step", "r_d: rate after", "rate before", "RSLE", "ΔAIC"):
        justify = "left" if column in ("curve", "verdict") else "right"
        widest = 60 if column == "curve" else None  # a long name folds, and leaves room for the numbers
        table.add_column(column, justify=justify, no_wrap=column == "verdict", overflow="fold", max_width=widest)
    for name, made in list(fits.items())[:SHOWN]:
        if isinstance(made, UserError):
            table.add_row(Text(printable(name)), Text("not fitted"), *["–"] * 6)
        else:
            located = made.verdict in LOCATED  # otherwise the numbers describe a break that is not there
            table.add_row(
                Text(printable(name)),
                made.verdict + (f"\n({made.caveat})" if made.caveat else ""),
                *(Text(made.told(number, style) if located else "–") for number, style in NUMBERS.items()),
                f"{made.rsle:.4f}",
                f"{made.delta_aic_power_law:.0f}",
            )
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    if len(fits) > SHOWN:
        console.print(f"… and {len(fits) - SHOWN:,} more; --json prints them all")
    for name, made in list(fits.items())[:SHOWN] if len(fits) <= 12 else ():
        console.print(Text(f"{printable(name)}: {made if isinstance(made, UserError) else made.reason}"))
    counts = Counter("not fitted" if isinstance(made, UserError) else made.verdict for made in fits.values())
    told = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in (*VERDICTS, "not fitted") if counts[verdict])
    doubts = Counter(made.caveat for made in fits.values() if isinstance(made, Deceleration) and made.caveat)
    told += "".join(f"; {number:,} with a caveat: {doubt}" for doubt, number in doubts.items())
    console.print(f"{len(fits):,} curves: {told}. ΔAIC: how much worse one power law is.", highlight=False)
    if counts["not fitted"] and len(fits) > 12:
        reasons = Counter(str(made) for made in fits.values() if isinstance(made, UserError))
        reason, count = reasons.most_common(1)[0]
        console.print(Text(f"Not fitted, {count:,} of them: {reason}"))

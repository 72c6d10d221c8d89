"""Loss curves from files, folders, frames and runs, and the fits that `lmdynamics fit` prints."""

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

from lmdynamics.analysis.columns import loss_tag_filter
from lmdynamics.analysis.deceleration import LOCATED, VERDICTS, Deceleration
from lmdynamics.analysis.fits import fit_curves, fits_table
from lmdynamics.analysis.formats import KNOWN, Table, frame_table, open_table
from lmdynamics.analysis.intervals import with_interval
from lmdynamics.analysis.laws import contest, contest_table, verdict
from lmdynamics.analysis.loss_curves import prepared
from lmdynamics.analysis.reading import Curves, curves_in
from lmdynamics.errors import UserError, did_you_mean, printable, shortened
from lmdynamics.hub.suites import open_run, run_names
from lmdynamics.paths import runs_dir
from lmdynamics.runs.run import Run


def read_curves(
    source: str | Path | pl.DataFrame | Run,
    *,
    group: str | Sequence[str] | None = None,
    step: str | None = None,
    loss: str | None = None,
) -> Curves:
    """Read loss curves from a file, a folder, a frame or a run.

    Tables (CSV, TSV, separated by blanks, Parquet), JSON lines, text logs (`step:250/3000 train_loss:4.5`, `s:250
    trl:4.5`, `{'loss': 4.5}`), detected by content, not by name, also gzipped; Hugging Face's
    `trainer_state.json` or Lightning's `metrics.csv` (or a folder with one, or with checkpoints), TensorBoard event
    files (or a folder of them: each sub-folder is a curve), exports from Weights & Biases, and runs by name, by folder
    or as they are.

    If steps decrease, a run was resumed: its rows replace all rows of the earlier run from that step on, even if it is
    shorter. Rows are sorted by wall time if there is such a column.

    `loss` is a column, or a pattern such as `eval/*/loss`: each matching column is a curve, named by the match of `*`.
    `group` is a column, or several (a list, or separated by commas), whose values together name the curve.

    Raises UserError if there is nothing to read, it is damaged or in no known format, a column is unknown or cannot be
    detected, a curve would repeat many steps, or fewer than half of the rows can be used.
    """
    return curves_in(_table(source, loss_tag_filter(loss)), group, step, loss)


def _table(source: str | Path | pl.DataFrame | Run, is_selected: Callable[[str], bool]) -> Table:
    """A path is tried first; otherwise the name is that of a run."""
    if isinstance(source, pl.DataFrame):
        return frame_table(source)
    if isinstance(source, Run):
        if not (source.folder / "log.parquet").exists() and not source.facts:
            return open_table(source.folder, is_selected)  # checkpoints that another trainer wrote
        return Table(source.log, source.name, f"the log of {source.name}")
    path = Path(source).expanduser()
    if path.is_dir() and any((path / name).exists() for name in ("run.json", "log.parquet")):
        return _table(open_run(path), is_selected)
    if path.is_dir() or path.is_file():
        return open_table(path, is_selected)
    if path.name == str(source) and (runs_dir() / path).is_dir():
        return _table(open_run(source), is_selected)
    known = run_names() if path.name == str(source) and not path.suffix else []
    hint = shortened(did_you_mean(str(source), known), 200) if known else f"; give {KNOWN}"
    raise UserError(f"{source} is not a file, folder or run{hint}")


SKIP_STEPS = 100  # steps left out by default
MAX_ROWS = 60  # of a printed table
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
    draw: Callable[[pl.DataFrame, pl.DataFrame], str] | None = None,
    laws: float | None = None,
) -> int:
    """Read, fit and print; notes go to standard error. Returns the exit status: 1 where no curve could be fitted.

    `skip_steps`: 100 by default. If any curve was fitted, `draw` gets the points (curve, step, loss) and the table of
    fits, and gives a sentence to print. `laws`: compare laws instead, by their forecasts from this share of each curve.

    Raises UserError if a file cannot be read, the only curve cannot be fitted, or most rows are in the steps that are
    left out by default.
    """
    if resamples < 0:
        raise UserError(f"--resamples is {resamples}; give 0 for no intervals, or some hundreds")
    parts = []
    for file in files:
        curves = read_curves(file, group=group, step=step, loss=loss)
        for note in curves.notes:
            print(printable(f"{file}: {note}"), file=sys.stderr)
        label = pl.col("curve") if len(files) == 1 or curves.names == [file] else pl.lit(f"{file}: ") + pl.col("curve")
        parts.append(curves.frame.with_columns(label.alias("curve")))
    frame = pl.concat(parts)
    if (repeated := frame.select("curve", "step").is_duplicated()).any():
        raise UserError(f"two files have a curve called {frame.filter(repeated)['curve'][0]!r}; fit them one at a time")
    skip_steps = steps_to_skip(frame, skip_steps)
    if laws is not None and (as_json or draw is not None):
        raise UserError("--laws prints a table of its own; leave out --json and --plot")
    if laws is not None:
        _show_contest(contest(frame, laws, smoothing=smoothing, skip_steps=skip_steps, workers=workers), frame, laws)
        return 0
    fits = fit_curves(frame, smoothing=smoothing, skip_steps=skip_steps, resamples=resamples, workers=workers)
    failed = [result for result in fits.values() if isinstance(result, UserError)]
    if len(fits) == 1 and failed:
        raise failed[0]
    if as_json:
        print(json.dumps([to_json(name, result) for name, result in fits.items()], indent=1, allow_nan=False))
    else:
        _show(fits)
    if draw is not None and len(failed) < len(fits):
        print(draw(prepared(frame, smoothing, skip_steps), fits_table(fits)), file=sys.stderr)
    return 1 if len(failed) == len(fits) else 0


def steps_to_skip(frame: pl.DataFrame, skip_steps: float | None) -> float:
    """The steps to leave out, by default `SKIP_STEPS`, which is then reported on standard error.

    Raises UserError if the default would leave out most rows.
    """
    if skip_steps is not None:
        return skip_steps
    early = (frame["step"] <= SKIP_STEPS).sum()
    if early > len(frame) / 2:
        raise UserError(
            f"{early:,} of {len(frame):,} rows have steps up to {SKIP_STEPS}, which are left out by default; "
            f"give --skip-steps 0 to include them, or --skip-steps {SKIP_STEPS} to leave them out"
        )
    if early:
        print(f"steps up to {SKIP_STEPS} are left out; --skip-steps 0 includes them", file=sys.stderr)
    return SKIP_STEPS


def to_json(name: str, result: Deceleration | UserError) -> dict:
    """One curve as a JSON object: `group` and the fields of `Deceleration`; nulls and a reason if not fitted."""
    if isinstance(result, UserError):
        fields = dict.fromkeys((*Deceleration.__dataclass_fields__, "rate_before_break"))
        return {"group": name, **fields, "verdict": "not fitted", "reason": str(result), "intervals": {}}
    return {"group": name, **_finite(result.to_dict())}


def _finite(value):
    """Infinite numbers as None, since JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show_contest(rows: pl.DataFrame, frame: pl.DataFrame, share: float) -> None:
    table, every = contest_table(rows), frame["curve"].n_unique()
    titles = ("law", "median error at the end", "best of all in", "worse than the best by", "ΔAIC, whole curve")
    shown = tables.Table(*titles, title=f"Forecasts from the first {share:.0%} of each curve", title_justify="left")
    for row in table.sort("error").iter_rows(named=True):
        error, worse = (
            with_interval(row[name], None if row[low] is None else (row[low], row[high]), ".2%")
            for name, low, high in (("error", "low", "high"), ("worse", "worse_low", "worse_high"))
        )
        aic = "–" if row["aic"] is None else f"{row['aic']:.0f}"
        shown.add_row(row["law"], Text(error), f"{row['wins']:.0%}", Text(worse), aic)
    Console(width=None if sys.stdout.isatty() else 180).print(shown)
    print(verdict(table))
    if left_out := every - table["curves"][0]:
        print(f"{left_out:,} of {every:,} curves have too few points and are left out", file=sys.stderr)


def _show(fits: dict[str, Deceleration | UserError]) -> None:
    table = tables.Table(title="Loss deceleration, with 95 % intervals (block bootstrap)", title_justify="left")
    for column in ("curve", "verdict", "L_d: loss", "t_d: step", "r_d: rate after", "rate before", "RSLE", "ΔAIC"):
        justify = "left" if column in ("curve", "verdict") else "right"
        max_width = 60 if column == "curve" else None  # a long name is wrapped
        table.add_column(column, justify=justify, no_wrap=column == "verdict", overflow="fold", max_width=max_width)
    for name, result in list(fits.items())[:MAX_ROWS]:
        if isinstance(result, UserError):
            table.add_row(Text(printable(name)), Text("not fitted"), *["–"] * 6)
        else:
            located = result.verdict in LOCATED  # otherwise the numbers have no meaning
            table.add_row(
                Text(printable(name)),
                result.verdict + (f"\n({result.caveat})" if result.caveat else ""),
                *(Text(result.describe(number, style) if located else "–") for number, style in NUMBERS.items()),
                f"{result.rsle:.4f}",
                f"{result.delta_aic_power_law:.0f}",
            )
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    if len(fits) > MAX_ROWS:
        console.print(f"… and {len(fits) - MAX_ROWS:,} more; --json prints them all")
    for name, result in list(fits.items())[:MAX_ROWS] if len(fits) <= 12 else ():
        console.print(Text(f"{printable(name)}: {result if isinstance(result, UserError) else result.reason}"))
    counts = Counter("not fitted" if isinstance(result, UserError) else result.verdict for result in fits.values())
    summary = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in (*VERDICTS, "not fitted") if counts[verdict])
    caveats = Counter(result.caveat for result in fits.values() if isinstance(result, Deceleration) and result.caveat)
    summary += "".join(f"; {number:,} with a caveat: {caveat}" for caveat, number in caveats.items())
    console.print(f"{len(fits):,} curves: {summary}. ΔAIC: how much worse one power law is.", highlight=False)
    if counts["not fitted"] and len(fits) > 12:
        reasons = Counter(str(result) for result in fits.values() if isinstance(result, UserError))
        reason, count = reasons.most_common(1)[0]
        console.print(Text(f"Not fitted, {count:,} of them: {reason}"))

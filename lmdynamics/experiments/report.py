"""What `lmdynamics fit` prints: fits of every curve of some files, for a person or for a program."""

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmdynamics.analysis.deceleration import LOCATED, VERDICTS, Deceleration
from lmdynamics.analysis.fits import fit_curves
from lmdynamics.errors import UserError, printable
from lmdynamics.experiments.reading import read_curves

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

    Raises
    ------
    UserError
        If a file cannot be read, there is one curve and it cannot be fitted, or most rows lie in steps that would be
        left out though nobody said so.
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
    table = Table(title="Loss deceleration, with 95 % intervals (block bootstrap)", title_justify="left")
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

"""`lmdynamics compare`: does yesterday's result still hold? In one line, and for those who want more."""

import sys
from getpass import getuser
from pathlib import Path

import polars as pl

from lmdynamics import files
from lmdynamics.batch.baselines import accept, computed_elsewhere, read_baselines
from lmdynamics.batch.collect import gather
from lmdynamics.batch.compare import SAME, compare, status, summary
from lmdynamics.batch.reports import junit, markdown
from lmdynamics.errors import UserError

MOST = 40  # rows of a table in a terminal


def verdict(
    out: Path,
    baseline: Path,
    *,
    accepting: bool = False,
    who: str | None = None,
    yes: bool = False,
    strict: bool = False,
    junit_file: Path | None = None,
    markdown_file: Path | None = None,
) -> int:
    """Print what differs between a batch in `out` and the baselines in a folder; the exit status that tells.

    `accepting` makes the batch's records the new baseline instead, signed by `who` (default: the user's name). What was
    computed elsewhere, or from other code, is listed and asked about first, unless with `yes`.

    Raises
    ------
    UserError
        If there is no batch in `out`, no baseline, or a file cannot be written; or if results of elsewhere are to be
        accepted and nobody can be asked.
    """
    frame = gather(out)
    if accepting:
        who = _person() if who is None else who
        if not (yes or _agreed(frame, who)):
            print("nothing was accepted")
            return 1
        written = accept(frame, baseline, who)
        print(f"accepted {frame['item'].n_unique()} items: {', '.join(path.name for path in written)} in {baseline}")
        return 0
    verdicts = compare(frame, read_baselines(baseline))
    for file, text in ((junit_file, junit), (markdown_file, markdown)):
        if file is not None:
            _write(file, text(verdicts, strict) if text is junit else text(verdicts, f"{out.name} against {baseline}"))
    print(summary(verdicts))
    _table(verdicts.filter(pl.col("verdict") != SAME))
    return status(verdicts, strict)


def _person() -> str:
    try:
        return getuser()
    except (KeyError, OSError):
        raise UserError("this user has no name here; say who accepts with --who NAME") from None


def _agreed(frame: pl.DataFrame, who: str) -> bool:
    """Whether a person wants to sign results that were computed elsewhere; True where there are none."""
    lines = computed_elsewhere(frame)
    if not lines:
        return True
    said = f"not computed here from the code as it is: {'; '.join(lines)}"
    if not sys.stdin.isatty():
        raise UserError(f"{said}. Run the batch here, or add --yes to accept it as {who} all the same")
    print(said)
    return input(f"Accept as {who}? [y/N] ").strip().lower() in ("y", "yes")


def _table(rows: pl.DataFrame) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if rows.is_empty():
        return
    table = Table("item", "record", "verdict", "why", box=None, pad_edge=False)
    for row in rows.head(MOST).iter_rows(named=True):
        table.add_row(*(escape(str(row[name] or "")) for name in ("item", "record", "verdict", "why")))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    if len(rows) > MOST:
        print(f"and {len(rows) - MOST} more")


def _write(file: Path, text: str) -> None:
    try:
        with files.saving(str(file)), files.atomic_file(file.expanduser().absolute()) as temporary:
            temporary.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; name another file") from error

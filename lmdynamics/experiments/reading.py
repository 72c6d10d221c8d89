"""Loss curves from whatever holds them: files, folders, frames and runs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from lmdynamics.analysis.columns import wanted_tags
from lmdynamics.analysis.formats import KNOWN, Table, open_table
from lmdynamics.analysis.reading import Curves, curves_in
from lmdynamics.errors import UserError, did_you_mean, shortened
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

    Raises
    ------
    UserError
        If there is nothing to read, it is damaged or in no known format, a column is unknown or cannot be guessed,
        a curve would have the same step many times, or fewer than half of the rows can be used.
    """
    return curves_in(_table(where, wanted_tags(loss)), group, step, loss)


def _table(where: str | Path | pl.DataFrame | Run, wanted: Callable[[str], bool]) -> Table:
    """A path is looked for first; a name that is no path is a run's."""
    if isinstance(where, pl.DataFrame):
        return open_table(where, wanted)
    if isinstance(where, Run):
        if not (where.folder / "log.parquet").exists() and not where.facts:
            return open_table(where.folder, wanted)  # checkpoints that another trainer wrote
        return Table(where.log, where.name, f"the log of {where.name}")
    path = Path(where).expanduser()
    if path.is_dir() and any((path / name).exists() for name in ("run.json", "log.parquet")):
        return _table(open_run(path), wanted)
    if path.exists():
        return open_table(path, wanted)
    if path.name == str(where) and (runs_dir() / path).is_dir():
        return _table(open_run(where), wanted)
    known = run_names() if path.name == str(where) and not path.suffix else []
    hint = shortened(did_you_mean(str(where), known), 200) if known else f"; give {KNOWN}"
    raise UserError(f"{where} is no file, folder or run{hint}")

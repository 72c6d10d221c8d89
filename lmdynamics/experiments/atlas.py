"""Many loss curves at once: the files in folders, their fits, and the fits of null curves as a control."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any

import polars as pl

from lmdynamics import files
from lmdynamics.analysis.fits import fit_curves, fits_table
from lmdynamics.analysis.formats import KNOWN
from lmdynamics.analysis.loss_curves import prepared
from lmdynamics.analysis.null_fits import fit_null_curves, verdict_counts
from lmdynamics.errors import UserError, one_line, printable
from lmdynamics.experiments.reading import read_curves, steps_to_skip
from lmdynamics.trainer_state import trainer_state_file

SUFFIXES = (".csv", ".tsv", ".txt", ".log", ".json", ".jsonl", ".ndjson", ".parquet")  # of files to try in a folder
PAGES = (".html", ".htm")


@dataclass(frozen=True, eq=False)
class Sources:
    """Curves of several sources. `frame`: curve, step, loss. `notes` and `unread`: (source, a sentence)."""

    frame: pl.DataFrame
    notes: Sequence[tuple[str, str]]
    unread: Sequence[tuple[str, str]]


def find_sources(paths: Sequence[str]) -> dict[str, str | Path]:
    """What to read, by a name that is unique and short: folders are searched, anything else is kept.

    A folder that is a run, or has a trainer's state, is one source; so are all event files below a folder that holds
    some. Other files are taken by their suffix. Hidden files and folders, and links to folders, are left out.
    """
    found: dict[Path, str | Path] = {}
    for text in paths:
        path = Path(text).expanduser().absolute()
        inner = (list(_search(path)) or [path]) if path.is_dir() else [path]
        for each in inner:  # the same file may be given twice
            found.setdefault(each.resolve(), each if path.exists() else text)
    existing = [source for source in found.values() if isinstance(source, Path)]
    base = commonpath([source.parent for source in existing]) if existing else ""
    return {
        printable(str(source.relative_to(base)) if isinstance(source, Path) else source): source
        for source in found.values()
    }


def _search(folder: Path, events_are_read: bool = False) -> Iterator[Path]:
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        yield folder  # reading it will say why
        return
    if any(path.name in ("run.json", "log.parquet") for path in entries) or trainer_state_file(folder):
        yield folder
        return
    if not events_are_read and any("tfevents" in path.name for path in entries):
        yield folder
        events_are_read = True
    for path in entries:
        if path.is_dir() and not path.is_symlink():
            yield from _search(path, events_are_read)
        elif path.is_file() and Path(path.name.removesuffix(".gz")).suffix.lower() in SUFFIXES:
            yield path


def read_sources(sources: Mapping[str, str | Path], **columns: Any) -> Sources:
    """The curves of all sources that can be read, with distinct names; `columns`: options of `read_curves`.

    Raises UserError if none can be read, or two curves have one name.
    """
    read, notes, unread = {}, [], []
    for name, source in sources.items():
        try:
            read[name] = read_curves(source, **columns)
        except (UserError, OSError, UnicodeError) as error:
            reason = one_line(error).removesuffix(f"; give {KNOWN}").replace(str(source), name)
            unread.append((name, printable(reason)))
            continue
        notes += [(name, printable(note)) for note in read[name].notes]
    if not read:
        others = f"none of {len(sources)} files could be read; the first: " if len(sources) > 1 else ""
        raise UserError(others + unread[0][1])
    parts = []
    for name, curves in read.items():
        label = pl.lit(f"{name}: ") + pl.col("curve")
        if len(read) == 1:
            label = pl.col("curve")
        elif len(curves.names) == 1 and Path(name).name.startswith(curves.names[0]):  # it is called after its file
            label = pl.lit(name)
        parts.append(curves.frame.with_columns(label.alias("curve")))
    frame = pl.concat(parts)
    if (repeated := frame.select("curve", "step").is_duplicated()).any():
        raise UserError(f"two files have a curve called {frame.filter(repeated)['curve'][0]!r}; rename one of them")
    return Sources(frame, notes, unread)


def write_atlas(
    paths: Sequence[str],
    to: Path,
    page: Callable[..., str],
    *,
    columns: Mapping[str, Any],
    smoothing: str = "none",
    skip_steps: float | None = None,
    resamples: int = 200,
    workers: int | None = None,
    unused: Mapping[str, Any] | None = None,
) -> int:
    """Find, read and fit curves, and write the page over all of them, made by `page`. Returns 1 if no curve is fitted.

    `unused`: options that an atlas does not use, with their values.

    Raises UserError if one of these is given, `to` is no page, or nothing can be read.
    """
    if given := [name for name, value in (unused or {}).items() if value]:
        raise UserError(f"--atlas writes a page over all curves; leave out {' and '.join(given)}")
    if to.suffix.lower() not in PAGES:
        raise UserError(f"--atlas writes a page; {to.name!r} does not end in {PAGES[0]}")
    if resamples < 0:
        raise UserError(f"--resamples is {resamples}; give 0 for no intervals, or some hundreds")
    read = read_sources(find_sources(paths), **columns)
    for name, reason in read.unread:
        print(f"left out: {reason if reason.startswith(name) else f'{name}: {reason}'}", file=sys.stderr)
    skip_steps = steps_to_skip(read.frame, skip_steps)
    options = {"smoothing": smoothing, "skip_steps": skip_steps, "resamples": resamples}
    fits = fits_table(fit_curves(read.frame, workers=workers, **options))
    nulls = fits_table(fit_null_curves(read.frame, workers=workers, **options))
    counts = verdict_counts(fits, nulls)
    points = prepared(read.frame, smoothing, skip_steps)
    text = page(points, fits, counts, preparation=options, notes=read.notes, unread=read.unread)
    files.write_text(to, text)
    print(f"{to}: {len(fits):,} curves, {len(text.encode()) / 1e6:.2f} MB")
    for verdict, number, control in counts.select("verdict", "curves", "null_curves").iter_rows():
        if number or control:
            print(f"{verdict:<20} {number:>6,} curves {control:>6,} null curves (control)")
    return 1 if counts["curves"][-1] == len(fits) else 0

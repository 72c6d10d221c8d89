"""A view as files: the picture as SVG and PNG, and the tidy data behind it as CSV."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import altair as alt
import polars as pl

from lmdynamics.charts.show import to_png, to_svg
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.files import atomic_file

KINDS = ("svg", "png", "csv")


def save(
    views: Mapping[str, alt.TopLevelMixin],
    tables: Mapping[str, pl.DataFrame],
    folder: str | Path,
    kinds: Sequence[str] = KINDS,
) -> list[Path]:
    """Write each view as NAME.svg and NAME.png, each table behind them as NAME.csv, and return where they are.

    Nothing is overwritten: where a name is taken, all files of this call get the same number, NAME-2.svg. A file is
    there whole or not at all.

    Raises
    ------
    UserError
        If a kind is not known, no folder is named, or a file cannot be written.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"a view is not saved as {unknown[0]!r}{did_you_mean(unknown[0], KINDS)}")
    if not str(folder).strip():
        raise UserError("no folder to save to; name one, such as out")
    folder = Path(str(folder).strip()).expanduser().absolute()
    make: dict[str, Callable[[str], bytes]] = {
        "svg": lambda name: to_svg(views[name]).encode(),
        "png": lambda name: to_png(views[name]),
        "csv": lambda name: tables[name].write_csv().encode(),
    }
    wanted = [(name, kind) for kind in kinds for name in (tables if kind == "csv" else views)]
    made = {(name, kind): make[kind](name) for name, kind in wanted}  # before the first is written: all or none
    number, paths = 1, _named(folder, wanted, "")
    while any(path.exists() for path in paths):
        number += 1
        paths = _named(folder, wanted, f"-{number}")
    for path, content in zip(paths, made.values(), strict=True):
        try:
            with atomic_file(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:  # a full disk, or a file in the folder's place: another folder helps
            raise UserError(f"cannot write {path}: {error.strerror}; name another folder") from error
    return paths


def _named(folder: Path, wanted: Sequence[tuple[str, str]], number: str) -> list[Path]:
    return [folder / f"{name}{number}.{kind}" for name, kind in wanted]

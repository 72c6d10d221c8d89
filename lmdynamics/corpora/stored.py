"""Large corpora on disk: built once, below a name that tells their content, and opened whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from lmdynamics.errors import UserError
from lmdynamics.paths import writable

T = TypeVar("T")
COMPLETE = "corpus.json"  # the file that `build` writes last, about what it has made


def stored(place: Path, load: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """`load(place)`; if nothing lies there, or it is damaged, `build` first fills a folder that becomes `place`.

    Of two processes that want it at once, one waits. Where the folder cannot be written, it is built for this process
    alone, and that is said.

    Raises
    ------
    UserError
        If the disk is full.
    """
    if (found := _load(place, load)) is not None:
        return found
    with _disk_full_in_one_line(place.parent):
        place = writable(place.parent) / place.name
        with FileLock(place.with_suffix(".lock")):
            if (found := _load(place, load)) is None:
                _build(place, build)
                found = load(place)
    return found


def _load(place: Path, load: Callable[[Path], T]) -> T | None:
    try:
        return load(place) if (place / COMPLETE).is_file() else None
    except (OSError, ValueError):
        return None


def _build(place: Path, build: Callable[[Path], None]) -> None:
    """Only the holder of the lock is here."""
    building = place.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)  # left by a process that was killed
    shutil.rmtree(place, ignore_errors=True)  # damaged, or it would have been opened
    building.mkdir()
    try:
        build(building)
        for file in building.rglob("*"):
            _fsync(file)
        building.rename(place)
        _fsync(place.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _disk_full_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The tokenizer's own writer raises a bare Exception, with the system's words in it.
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
            raise
        raise UserError(f"no space left on the disk of {folder}; free some and run the same again") from None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

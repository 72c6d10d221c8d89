"""Large corpora on disk: built once, below a name that tells their content, and opened whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lmdynamics.files import atomic_folder, clear, locked, saving
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
    with saving(str(place)):
        place = writable(place.parent) / place.name
        with locked(place.with_suffix(".lock")):
            if (found := _load(place, load)) is None:
                clear(place.parent, place.name)
                with atomic_folder(place) as building:
                    build(building)
                found = load(place)
    return found


def _load(place: Path, load: Callable[[Path], T]) -> T | None:
    try:
        return load(place) if (place / COMPLETE).is_file() else None
    except (OSError, ValueError):
        return None

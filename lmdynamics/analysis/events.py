"""TensorBoard event files as a table: a row per logged value, a column per tag.

Read record by record: TensorBoard's accumulator keeps a sample unless told otherwise, drops what came before a
restart, and does not say where a damaged file made it stop.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from lmdynamics.errors import UserError, listed

FRAMING = 16  # bytes around each record: its length, and the checksums of both


def event_files(folder: Path) -> list[Path]:
    """Event files in a folder and below it, in order of name, which is the order of their writing."""
    return sorted(path for path in folder.rglob("*tfevents*") if path.is_file() and path.suffix != ".profile-empty")


def read_events(
    folder: Path, files: Iterable[Path], wanted: Callable[[str], bool]
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Scalars of event files: `run` (the folder below `folder` that holds the file), `step`, a column for each tag.

    Tags that are not `wanted` have a column without values. Beside the frame: a note for each file that is damaged.

    Raises UserError if TensorBoard is not installed, or no file holds a single whole record or scalar.
    """
    values: dict[tuple[str, str], list[tuple[float, int, float]]] = {}
    tags: dict[str, None] = {}
    notes, whole = [], 0
    scalar_tags: dict[str, set[str]] = {}
    for path in files:
        below = path.parent.relative_to(folder).as_posix()
        run = folder.absolute().name if below == "." else below
        read = 0
        for size, event in _records(path):
            read += size
            for value in event.summary.value:
                if (number := _scalar(value, scalar_tags.setdefault(run, set()))) is None:
                    continue
                tags.setdefault(value.tag)
                if wanted(value.tag):
                    values.setdefault((run, value.tag), []).append((event.wall_time, event.step, number))
        whole += read
        if read < (total := path.stat().st_size):
            notes.append(
                f"Warning: {path.name} is cut short, damaged or still being written: "
                f"of its {total:,} bytes the first {read:,} were read."
            )
    if not tags:
        what = "no scalars" if whole else "no whole record, so it is damaged or no event file"
        raise UserError(f"{path if path.parent == folder else folder} holds {what}; give a folder of event files")
    if not values:
        raise UserError(f"{folder}: none of its tags is a loss ({listed(list(tags))}); give --loss TAG")
    # a tag that is called like one of the first two columns is no loss
    schema = dict.fromkeys(tags, pl.Float64) | {"run": pl.String, "step": pl.Int64}
    parts = [
        pl.DataFrame({"run": run, "step": [step for _, step, _ in points], tag: [number for _, _, number in points]})
        for (run, tag), unordered in values.items()
        for points in [sorted(unordered, key=lambda point: point[0])]  # by wall time: a resumed run comes after
    ]
    return pl.concat([pl.DataFrame(schema=schema), *parts], how="diagonal"), tuple(notes)


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """The whole records of a file from its beginning on, each with its size in bytes."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError:
        raise UserError('event files are read with TensorBoard; pip install "lmdynamics[tensorboard]"') from None
    for record in RawEventFileLoader(str(path)).Load():
        yield len(record) + FRAMING, Event.FromString(record)


def _scalar(value: Any, scalar_tags: set[str]) -> float | None:
    """A summary's number; None for histograms, images, text. Only a tag's first summary says what it is."""
    from tensorboard.util.tensor_util import make_ndarray

    if value.metadata.plugin_data.plugin_name == "scalars":
        scalar_tags.add(value.tag)
    if value.WhichOneof("value") == "simple_value":
        return value.simple_value
    if value.WhichOneof("value") == "tensor" and value.tag in scalar_tags:
        return float(make_ndarray(value.tensor).item())
    return None

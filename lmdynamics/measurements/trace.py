"""Measurements, and their traces: one measurement at every checkpoint of a run, each computed once and kept.

Results are in `traces/CHECKPOINT/MEASUREMENT.parquet` under the cache folder, named by the checkpoint's content, the
measurement's parameters and, where it is not the CPU in float32, the kind of device and its precision. A file is there
whole or not at all, so an interrupted trace goes on where it stopped, and two processes that trace the same run at once
merely do some work twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from lmdynamics import files
from lmdynamics.devices import available_devices, device_kind, device_name, matmul_precision, need_device, note_computed
from lmdynamics.paths import cache_dir, report_unwritable
from lmdynamics.progress import bar
from lmdynamics.runs import faults
from lmdynamics.training import layout

if TYPE_CHECKING:
    from lmdynamics.runs.run import Checkpoint, Run


class Measurement:
    """Subclasses are frozen dataclasses: their fields are their parameters, and so their cache key.

    `trace` adds to the key the kind of device and the precision.

    Calling one on a checkpoint gives one row per observation, the same rows every time on the same device.

    `higher_is_better` decides which of two runs is better. A measurement that declares None is compared, but neither
    run is called better.
    """

    version: ClassVar[int] = 1  # raise when the numbers would change
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool | None] = None
    reads_training: ClassVar[bool] = False  # whether step, recipe and optimizer state count, besides the weights

    def __call__(self, checkpoint: Checkpoint, device: str = "cpu") -> pl.DataFrame:
        raise TypeError(f"{type(self).__name__} does not say what it measures: define __call__(checkpoint, device)")

    def key(self) -> str:
        """16 hex digits that name this measurement's results: class, version, and every field.

        A field that holds data counts by its `fingerprint`, so the same sentences read from another place give the
        same key.

        Raises TypeError if a field is neither a plain value nor data with a fingerprint: it could not be told from
        another.
        """
        parameters = {field.name: self._plain(getattr(self, field.name)) for field in fields(self)}
        described = json.dumps([type(self).__name__, self.version, parameters], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (tuple, list)):
            return [self._plain(part) for part in value]
        if isinstance(fingerprint := getattr(value, "fingerprint", None), str):
            return {"fingerprint": fingerprint}
        raise TypeError(f"{type(self).__name__} has a field of type {type(value).__name__}, which has no fingerprint")


def trace(
    run: Run,
    measurement: Measurement,
    *,
    steps: Iterable[int] | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    progress: bool | None = None,
    cache: bool = True,
) -> pl.DataFrame:
    """`measurement` at each of the run's `steps` (default: all): its rows, with `step` (Int64) as first column.

    `executor`: anything with `submit(function, *arguments)` whose result has `.result()`: a `ProcessPoolExecutor`
    (start method "spawn": torch does not survive a fork), `Client.get_executor()` of dask, `submitit.AutoExecutor`.
    `device`: what computes, such as `cpu`, `cuda:1` or `mps`. Only results computed on that kind of device, in the
    same precision, are taken from the cache. `progress`: whether to show a bar; None decides by where output goes.
    `cache=False` neither reads nor writes files.

    Raises UserError if the run lacks one of `steps`, the measurement refuses a checkpoint, or something is to be
    computed and the device is not there.
    """
    named = {type(measurement).__name__: measurement}
    return trace_all(
        run, named, steps=steps, executor=executor, device=device, progress=progress, cache=cache
    ).popitem()[1]


def trace_all(
    run: Run,
    measurements: Mapping[str, Measurement],
    *,
    steps: Iterable[int] | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    progress: bool | None = None,
    cache: bool = True,
) -> dict[str, pl.DataFrame]:
    """Several measurements of a run, checkpoint by checkpoint, so that what they share is computed once.

    Arguments as for `trace`; returns one frame per name in `measurements`.
    """
    kind = device_kind(device)
    precision = matmul_precision(kind)
    checkpoints = [run[step] for step in (sorted(set(steps)) if steps is not None else run.steps)]

    def path(checkpoint: Checkpoint, name: str) -> Path:
        return _path(checkpoint, measurements[name], kind, precision)

    found: dict[tuple[int, str], pl.DataFrame] = {}
    todo = []
    for checkpoint in checkpoints:
        missing = {}
        for name, measurement in measurements.items():
            kept = _read(path(checkpoint, name), kind, precision) if cache else None
            if kept is None:
                missing[name] = measurement
            else:
                found[checkpoint.step, name] = kept
        if missing:
            todo.append((checkpoint, missing))
    if todo and executor is None:  # an executor's workers have devices of their own
        need_device(device)

    if cache and checkpoints:
        faults.say_equal(checkpoints[0].run_name, {each.step: each.content_hash for each in checkpoints})
    what = " ".join(measurements)
    with bar(len(checkpoints), what, progress, unit="checkpoint", initial=len(checkpoints) - len(todo)) as shown:
        pending = [
            (checkpoint, executor.submit(measure, checkpoint, missing, device) if executor else None, missing)
            for checkpoint, missing in todo
        ]
        try:
            for checkpoint, future, missing in pending:
                frames = future.result() if executor else measure(checkpoint, missing, device)
                for name, frame in frames.items():
                    note_computed(kind, precision, device_name(device))
                    if cache:
                        _write(path(checkpoint, name), frame, kind, device_name(device))
                    found[checkpoint.step, name] = frame
                shown.update()
        finally:  # after an error or Ctrl-C: what has not begun need not begin
            for _, future, _ in pending:
                if executor and hasattr(future, "cancel"):
                    future.cancel()
    return {name: _join([(c.step, found[c.step, name]) for c in checkpoints]) for name in measurements}


def measure(checkpoint: Checkpoint, measurements: Mapping[str, Measurement], device: str) -> dict[str, pl.DataFrame]:
    """What one worker does: several measurements of one checkpoint."""
    return {name: measurement(checkpoint, device) for name, measurement in measurements.items()}


def _path(checkpoint: Checkpoint, measurement: Measurement, kind: str, precision: str) -> Path:
    key = measurement.key()
    if measurement.reads_training:
        key = hashlib.sha256(f"{key} {_training(checkpoint)}".encode()).hexdigest()[:16]
    computed = "" if (kind, precision) == ("cpu", "float32") else f"-{kind}-{precision}"
    return cache_dir() / "traces" / checkpoint.content_hash / f"{key}{computed}.parquet"


def _training(checkpoint: Checkpoint) -> str:
    """What a step of training from a checkpoint depends on, besides its weights: step, recipe, optimizer state."""
    manifest = files.read_json(checkpoint.folder / layout.MANIFEST, "a checkpoint") if checkpoint.recipe else {}
    state = manifest.get("files", {}).get(layout.TRAINING_STATE, {}).get("sha256")
    recipe = checkpoint.recipe and checkpoint.recipe.to_dict()
    return json.dumps([checkpoint.step, recipe, state], sort_keys=True, default=str)


def _read(path: Path, kind: str, precision: str) -> pl.DataFrame | None:
    """A kept result; None if there is none, or it must be made again: it is damaged, or may be another device's."""
    try:
        frame, kept = pl.read_parquet(path, memory_map=False), pl.read_parquet_metadata(path)
    except (pl.exceptions.PolarsError, OSError):
        return None
    # another version of polars may hash differently: then only Parquet's own checks remain
    if kept.get("polars") == pl.__version__ and kept.get("checksum") != _checksum(frame):
        return None
    # earlier versions did not write down the device: where there is only a CPU, it was that
    if kept.get("device", "cpu" if available_devices() == ["cpu"] else None) != kind:
        return None
    note_computed(kind, precision, kept.get("device_name", kind))
    return frame


def _write(path: Path, frame: pl.DataFrame, kind: str, name: str) -> None:
    """Keep a result; where the disk is full or cannot be written that is said, and the result is returned all the
    same."""
    written = {"polars": pl.__version__, "checksum": _checksum(frame), "device": kind, "device_name": name}
    try:
        with files.saving(f"a trace in {path.parent}"), files.atomic_file(path) as temporary:
            frame.write_parquet(temporary, metadata=written)
    except files.NotSaved as error:
        report_unwritable(cache_dir() / "traces", str(error).partition(": ")[2].partition(".")[0])


def _checksum(frame: pl.DataFrame) -> str:
    """Parquet notices a file cut short, but not a changed byte."""
    return f"{frame.columns} {frame.hash_rows(0).sum()}"


def _join(frames: list[tuple[int, pl.DataFrame]]) -> pl.DataFrame:
    if not frames:
        return pl.DataFrame(schema={"step": pl.Int64})
    return pl.concat(frame.select(pl.lit(step, pl.Int64).alias("step"), pl.all()) for step, frame in frames)

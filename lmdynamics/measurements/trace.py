"""Measurements, and their traces: one measurement at every checkpoint of a run, each computed once and cached.

Results are in `traces/CHECKPOINT/MEASUREMENT.parquet` under the cache folder, named by the checkpoint's content, the
measurement's parameters and, except for the CPU in float32, the kind of device and its precision. A file is written
completely or not at all: an interrupted trace can resume, and two processes can trace the same run.
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
from lmdynamics.corpora.grammar import VERSION
from lmdynamics.corpora.tokens import TokenRows
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

    A call on a checkpoint returns one row per observation, the same rows every time on the same device.

    `higher_is_better` decides which of two runs is better. With None, runs are compared but neither is called better.
    """

    version: ClassVar[int] = 1  # raise when the numbers would change
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool | None] = None
    reads_training: ClassVar[bool] = False  # whether results also depend on step, recipe and optimizer state

    def __call__(self, checkpoint: Checkpoint, device: str = "cpu") -> pl.DataFrame:
        raise TypeError(f"{type(self).__name__} has no computation: define __call__(checkpoint, device)")

    def headline(self, rows: pl.DataFrame) -> float | None:
        """One number for the rows of a checkpoint, as charts of a training show it; None if there is no obvious one.

        By default the mean of the only column of fractional numbers, `stderr`, `low` and `high` left aside.
        """
        others = {"stderr", "low", "high"}
        columns = [name for name, kind in rows.schema.items() if kind.is_float() and name not in others]
        return rows[columns[0]].mean() if len(columns) == 1 else None

    def key(self) -> str:
        """Hash (16 hex digits) of class, version and every field, which names this measurement's results.

        Data enter by their `fingerprint`, so the same sentences read from another file give the same key, and
        checkpoints by their weights.

        Raises TypeError if a field is neither a plain value nor data with a fingerprint.
        """
        parameters = {field.name: self._plain(getattr(self, field.name)) for field in fields(self)}
        description = json.dumps([type(self).__name__, self.version, parameters], sort_keys=True)
        return hashlib.sha256(description.encode()).hexdigest()[:16]

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (tuple, list)):
            return [self._plain(item) for item in value]
        for name in ("fingerprint", "content_hash"):  # of data; of a checkpoint
            if isinstance(identity := getattr(value, name, None), str):
                return {name: identity}
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
    """The rows of `measurement` at each of the run's `steps` (default: all), with `step` (Int64) as first column.

    `executor`: anything with `submit(function, *arguments)` whose result has `.result()`: a `ProcessPoolExecutor`
    (start method "spawn": torch does not survive a fork), `Client.get_executor()` of dask, `submitit.AutoExecutor`.
    `device`: such as `cpu`, `cuda:1` or `mps`. Only results computed on that kind of device, in the same precision,
    are read from the cache. `progress`: whether to show a bar; None: only in a terminal or notebook.
    `cache=False` neither reads nor writes files.

    Raises UserError if the run lacks one of `steps`, the measurement refuses a checkpoint, the run learned another
    version of the built-in language (and the data are not its own held-out rows), or the device is needed and does not
    exist.
    """
    options = {"steps": steps, "executor": executor, "device": device, "progress": progress, "cache": cache}
    return trace_all(run, {type(measurement).__name__: measurement}, **options).popitem()[1]


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
    """Several measurements of a run, checkpoint by checkpoint, so that shared results are computed once.

    Arguments as for `trace`; returns one frame per name in `measurements`.
    """
    _refuse_other_language(run, measurements.values())
    kind = device_kind(device)
    precision = matmul_precision(kind)
    checkpoints = [run[step] for step in (sorted(set(steps)) if steps is not None else run.steps)]

    def path(checkpoint: Checkpoint, name: str) -> Path:
        return _path(checkpoint, measurements[name], kind, precision)

    results: dict[tuple[int, str], pl.DataFrame] = {}
    todo = []
    for checkpoint in checkpoints:
        missing = {}
        for name, measurement in measurements.items():
            cached = _read(path(checkpoint, name), kind, precision) if cache else None
            if cached is None:
                missing[name] = measurement
            else:
                results[checkpoint.step, name] = cached
        if missing:
            todo.append((checkpoint, missing))
    if todo and executor is None:  # an executor's workers have devices of their own
        need_device(device)

    if cache and checkpoints:
        faults.report_equal_weights(checkpoints[0].run_name, {c.step: c.content_hash for c in checkpoints})
    title = " ".join(measurements)
    with bar(len(checkpoints), title, progress, unit="checkpoint", initial=len(checkpoints) - len(todo)) as meter:
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
                    results[checkpoint.step, name] = frame
                meter.update()
        finally:  # after an error or Ctrl-C: do not start the others
            for _, future, _ in pending:
                if executor and hasattr(future, "cancel"):
                    future.cancel()
    return {name: _join([(c.step, results[c.step, name]) for c in checkpoints]) for name in measurements}


def _refuse_other_language(run: Run, measurements: Iterable[Measurement]) -> None:
    """Refuse sentences for a run of another version of the built-in language; its own held-out rows are measured."""
    if run.recipe is None or run.recipe.corpus.get("version", VERSION) == VERSION:
        return
    own = {row.tobytes() for row in run.held_out()}
    data = [getattr(measurement, field.name) for measurement in measurements for field in fields(measurement)]
    for value in data:
        rows = isinstance(value, TokenRows)
        if any(row.tobytes() not in own for row in value) if rows else hasattr(value, "fingerprint"):
            run.recipe.check_language(run.name, run.folder)


def measure(checkpoint: Checkpoint, measurements: Mapping[str, Measurement], device: str) -> dict[str, pl.DataFrame]:
    """Several measurements of one checkpoint: the task of one worker."""
    return {name: measurement(checkpoint, device) for name, measurement in measurements.items()}


def _path(checkpoint: Checkpoint, measurement: Measurement, kind: str, precision: str) -> Path:
    key = measurement.key()
    if measurement.reads_training:
        key = hashlib.sha256(f"{key} {_training_key(checkpoint)}".encode()).hexdigest()[:16]
    suffix = "" if (kind, precision) == ("cpu", "float32") else f"-{kind}-{precision}"
    return cache_dir() / "traces" / checkpoint.content_hash / f"{key}{suffix}.parquet"


def _training_key(checkpoint: Checkpoint) -> str:
    """Step, recipe and optimizer state as text: with the weights, they determine the next step of training."""
    manifest = files.read_json(checkpoint.folder / layout.MANIFEST, "a checkpoint") if checkpoint.recipe else {}
    state = manifest.get("files", {}).get(layout.TRAINING_STATE, {}).get("sha256")
    recipe = checkpoint.recipe and checkpoint.recipe.to_dict()
    return json.dumps([checkpoint.step, recipe, state], sort_keys=True, default=str)


def _read(path: Path, kind: str, precision: str) -> pl.DataFrame | None:
    """A cached result; None if there is none, it is damaged, or it may be another device's."""
    try:
        frame, metadata = pl.read_parquet(path, memory_map=False), pl.read_parquet_metadata(path)
    except (pl.exceptions.PolarsError, OSError):
        return None
    # other versions of polars may hash differently: then only Parquet's own checks apply
    if metadata.get("polars") == pl.__version__ and metadata.get("checksum") != _checksum(frame):
        return None
    # earlier versions did not store the device: if there is only a CPU, it was the CPU
    if metadata.get("device", "cpu" if available_devices() == ["cpu"] else None) != kind:
        return None
    note_computed(kind, precision, metadata.get("device_name", kind))
    return frame


def _write(path: Path, frame: pl.DataFrame, kind: str, name: str) -> None:
    """Cache a result; if it cannot be written, report that and continue."""
    metadata = {"polars": pl.__version__, "checksum": _checksum(frame), "device": kind, "device_name": name}
    try:
        with files.saving(f"a trace in {path.parent}"), files.atomic_file(path) as temporary:
            frame.write_parquet(temporary, metadata=metadata)
    except files.NotSaved as error:
        report_unwritable(cache_dir() / "traces", str(error).partition(": ")[2].partition(".")[0])


def _checksum(frame: pl.DataFrame) -> str:
    """Parquet detects a truncated file, but not a changed byte."""
    return f"{frame.columns} {frame.hash_rows(0).sum()}"


def _join(frames: list[tuple[int, pl.DataFrame]]) -> pl.DataFrame:
    if not frames:
        return pl.DataFrame(schema={"step": pl.Int64})
    return pl.concat(frame.select(pl.lit(step, pl.Int64).alias("step"), pl.all()) for step, frame in frames)

"""All records of a batch in one tidy frame."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from lmdynamics import files
from lmdynamics.batch.execute import OUTCOME
from lmdynamics.batch.parameters import DISPLAY_PARAMETERS
from lmdynamics.errors import UserError, first_line
from lmdynamics.records import FILE_NAME as RECORDS
from lmdynamics.records import Record, read_records

FILE_NAME = "records.parquet"
STATUSES = ("finished", "failed", "interrupted")
SCHEMA = {
    **dict.fromkeys(("item", "notebook", "profile", "device", "parameters", "record"), pl.String),
    "value": pl.Float64,  # booleans as 0 and 1; None and words have none
    "text": pl.String,  # the value as JSON, which distinguishes None, true, 1 and "1"
    **dict.fromkeys(("low", "high", "tolerance"), pl.Float64),
    **dict.fromkeys(("unit", "status"), pl.String),
    **dict.fromkeys(("seconds", "peak_mb", "peak_gpu_mb"), pl.Float64),
    **dict.fromkeys(("ended", "key", "torch", "transformers", "lmdynamics", "commit", "device_name"), pl.String),
    "dtype": pl.String,
    "deterministic": pl.Boolean,
    "error": pl.String,  # why an item failed; null if it did not
}
_NUMBER = (int, float)
_OUTCOME = {
    **dict.fromkeys(("name", "notebook", "status", "ended", "key", "error"), str),
    **dict.fromkeys(("seconds", "peak_mb"), _NUMBER),
    "parameters": dict,
    "cell": int,
}
_ENVIRONMENT = {
    **dict.fromkeys(("torch", "transformers", "lmdynamics", "commit", "device", "device_name", "dtype"), str),
    **dict.fromkeys(("peak_mb", "peak_gpu_mb", "seconds"), _NUMBER),
    "deterministic": bool,
}


def gather(out: Path) -> pl.DataFrame:
    """The records of every item below `out`, a row per record; an item without records has one row, its record null.

    What an item's files lack, for example those of an earlier version, is null.

    Raises UserError if there is no item in the folder, or one of its files is broken.
    """
    paths = sorted(out.glob(f"*/{OUTCOME}"))
    if not paths:
        problem = "has no results of a batch" if out.is_dir() else "is not a folder"
        raise UserError(f"{out} {problem}; name the --out of a `lmdynamics batch` that has run")
    return pl.concat([_item(path) for path in paths])


def collect(out: Path) -> Path:
    """Write `gather(out)` to `out/records.parquet`, whole or not at all, and return its path.

    A batch that was stopped before any item ended has no rows; this is not an error.
    """
    frame = gather(out) if any(out.glob(f"*/{OUTCOME}")) or not out.is_dir() else pl.DataFrame(schema=SCHEMA)
    path = out / FILE_NAME
    with files.saving(str(path)), files.atomic_file(path) as temporary:
        frame.write_parquet(temporary)
    return path


def _item(path: Path) -> pl.DataFrame:
    outcome = _fields(path, "", _OUTCOME, "delete its folder and run the batch again")
    if outcome["name"] is None or outcome["status"] not in STATUSES:
        raise UserError(
            f"{path} names no item or has the status {outcome['status']!r}, not one of {', '.join(STATUSES)}; "
            "delete its folder and run the batch again"
        )
    folder, parameters = path.parent, outcome["parameters"] or {}
    records = read_records(folder)
    file = folder / RECORDS
    environment = _fields(file, "environment", _ENVIRONMENT, "run its notebook again") if file.exists() else {}
    device = environment.get("device") or str(parameters.get("device") or "cpu")
    cell = "" if outcome["cell"] is None else f"cell {outcome['cell']}: "
    item = {
        **{name: environment.get(name) for name in SCHEMA if name in _ENVIRONMENT},
        **{name: outcome[name] for name in ("status", "ended", "key")},
        "item": outcome["name"],
        "notebook": outcome["notebook"] or outcome["name"],  # an earlier version named items after their notebook
        "profile": None if parameters.get("profile") is None else str(parameters["profile"]),
        "device": device.partition(":")[0],  # "cuda:1" is of the kind "cuda"
        "parameters": json.dumps(
            {name: value for name, value in parameters.items() if name not in DISPLAY_PARAMETERS},
            sort_keys=True,
            ensure_ascii=False,
        ),
        "error": cell + outcome["error"] if outcome["error"] else None,
        **{name: environment.get(name) if outcome[name] is None else outcome[name] for name in ("seconds", "peak_mb")},
    }
    try:
        return pl.DataFrame([item | _record(record) for record in records] or [item], schema=SCHEMA)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{folder} holds something that is not a record; delete it and run the batch again") from error


def _record(record: Record) -> dict[str, Any]:
    return {
        "record": record.name,
        "value": record.number,
        "text": json.dumps(record.value, ensure_ascii=False),
        **{name: getattr(record, name) for name in ("low", "high", "tolerance", "unit")},
    }


def _fields(path: Path, part: str, known: dict[str, Any], remedy: str) -> dict[str, Any]:
    """The known fields of a JSON object, or of the object `part` in it; those it lacks are None."""
    try:
        content = json.loads(path.read_text("utf-8"))
        content = (content.get(part) or {}) if part else content
        fields = {name: content.get(name) for name in known}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is broken ({first_line(error)}); {remedy}") from error
    for name, value in fields.items():
        # to Python true is an int, but it is not a number of seconds
        wrong = not isinstance(value, known[name]) or (isinstance(value, bool) and known[name] is not bool)
        if value is not None and wrong:
            raise UserError(f"{path} is broken ({name} is {json.dumps(value)[:40]}); {remedy}")
    return fields

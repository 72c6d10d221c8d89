"""Accepted records, in JSON files that diff line by line: one per notebook, profile and kind of device.

`02_sas_emergence.smoke.cpu.json` holds the records of each item: under "" those of the notebook's defaults, under
"seed=1" those of the item with that parameter.
"""

import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from lmdynamics import files
from lmdynamics.batch.parameters import DISPLAY_PARAMETERS
from lmdynamics.devices import available_devices, device_kind, device_name
from lmdynamics.environment import commit, versions
from lmdynamics.errors import UserError, first_line, printable
from lmdynamics.records import Record

FORMAT = 1
FILE_NAME_PARAMETERS = ("profile", "device")
VERSIONS = ("torch", "transformers", "lmdynamics")


@dataclass(frozen=True)
class Baseline:
    """One file, by item key: `items` has the records by name; `accepted` has who accepted the item, when, and the
    versions and device that computed it."""

    accepted: Mapping[str, Mapping[str, Any]]
    items: Mapping[str, Mapping[str, Record]]


Baselines = Mapping[str, Baseline]  # by file name


def file_name(notebook: str, profile: str | None, device: str) -> str:
    """The name of a notebook's baseline file; without a profile it runs as the profile `default`.

    Raises UserError if one of them cannot be part of a file's name.
    """
    pieces = (notebook, profile or "default", device)
    for piece in pieces:
        if not piece or Path(piece).name != piece or (piece is not notebook and "." in piece):
            raise UserError(f"{piece!r} cannot be part of a baseline's file name; use a word without '/' and '.'")
    return ".".join(pieces) + ".json"


def item_key(parameters: str) -> str:
    """An item's key: its parameters (a JSON text) as "name=value", sorted, without those in the file's name."""
    omitted = (*FILE_NAME_PARAMETERS, *DISPLAY_PARAMETERS)
    settings = {name: value for name, value in json.loads(parameters).items() if name not in omitted}
    return ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in sorted(settings.items())
    )


def read_baselines(folder: Path) -> Baselines:
    """Every baseline in a folder.

    Raises UserError if there is no such folder, or a file in it is not a baseline.
    """
    if not folder.is_dir():
        raise UserError(f"no folder of baselines {folder}; name another one, or accept a batch to make it")
    return {path.name: _read(path) for path in sorted(folder.glob("*.json"))}


def accept(frame: pl.DataFrame, folder: Path, signer: str) -> list[Path]:
    """Make a batch's records (`collect.gather`) the baselines of its items; other items of the same files, and their
    signers, stay.

    Returns the files written, each whole or not at all. Nothing is written if anything is refused.

    Raises UserError if an item did not finish, two items have the same key, a value is NaN, or `signer` is empty.
    """
    if not signer.strip():
        raise UserError("a baseline needs the name of the person who accepts it; name one with --who")
    _refuse(frame)
    by_file: dict[str, dict[str, pl.DataFrame]] = {}
    for (name,), rows in frame.group_by("item", maintain_order=True):
        row = rows.row(0, named=True)
        items = by_file.setdefault(file_name(row["notebook"], row["profile"], row["device"]), {})
        key = item_key(row["parameters"])
        if key in items:
            other = items[key]["item"][0]
            raise UserError(f"{other} and {name} have the same parameters, so one baseline; accept only one of them")
        items[key] = rows
    contents = {folder / name: _content(folder / name, items, signer.strip()) for name, items in by_file.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            files.write_json(path, content)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}; name another folder") from error
    return list(contents)


def environment_differences(frame: pl.DataFrame) -> list[str]:
    """How a batch differs from one computed on this machine with the current code, one line each.

    Compared are the commit of this checkout, the versions in `environment.versions`, and the machine's devices.
    """
    current = {**versions(), "commit": commit()}
    items = frame.unique("item", maintain_order=True)
    lines: dict[str, list[str]] = {}
    for row in items.iter_rows(named=True):
        differences = [f"{name} {row[name]}, here {current[name]}" for name in VERSIONS if row[name] != current[name]]
        if row["commit"] is None:
            differences.append("no commit is recorded")
        elif row["commit"].endswith("+"):
            differences.append(f"commit {row['commit'][:-1]} with changes that were not committed")
        elif row["commit"] != current["commit"]:
            differences.append(f"commit {row['commit']}, here {current['commit'] or 'none'}")
        if row["device_name"] not in (names := _local_devices(row["device"])):
            differences.append(f"device {row['device_name']}, here {' and '.join(names) or 'none of its kind'}")
        for line in differences:
            lines.setdefault(printable(line), []).append(row["item"])
    return [f"{line} ({len(names)} of {len(items)} items)" for line, names in lines.items()]


def _local_devices(kind: str) -> list[str]:
    """Names of this machine's devices of a kind, as records have them."""
    if kind == "cpu":
        return [platform.processor() or platform.machine()]
    return [device_name(device) for device in available_devices() if device_kind(device) == kind]


def _refuse(frame: pl.DataFrame) -> None:
    if frame.is_empty():
        raise UserError("there is nothing to accept: the batch has no items; run one first")
    unfinished = frame.filter(pl.col("status").ne_missing("finished")).unique("item", maintain_order=True)
    if len(unfinished):
        name, status = unfinished.row(0, named=True)["item"], unfinished["status"][0]
        more = f" (and {len(unfinished) - 1} more)" if len(unfinished) > 1 else ""
        raise UserError(
            f"{printable(name)} {status}{more}; only a finished batch can be accepted: run it again until all finish"
        )
    numbers = ("value", "low", "high", "tolerance")
    for row in frame.iter_rows(named=True):
        if any(row[number] is not None and not math.isfinite(row[number]) for number in numbers):
            raise UserError(
                f"{printable(row['item'])}: {printable(row['record'])} has a number that is not finite, which never "
                "equals another; record None if there is no value"
            )


def _content(path: Path, items: Mapping[str, pl.DataFrame], signer: str) -> dict[str, Any]:
    """The new content of the file: these items, and those it has already."""
    previous = _read(path) if path.exists() else Baseline({}, {})
    entries = {key: [_entry(record) for record in records.values()] for key, records in previous.items.items()}
    accepted = dict(previous.accepted)
    for key, rows in items.items():
        columns = ("record", "text", "tolerance", "low", "high", "unit")
        records = rows.drop_nulls("record").select(columns).iter_rows()
        entries[key] = [_entry(Record(n, json.loads(text), *nums, unit or "")) for n, text, *nums, unit in records]
        row = rows.row(0, named=True)
        accepted[key] = {
            "who": signer,
            "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "versions": {name: row[name] for name in VERSIONS},
            "device": row["device_name"],
            "commit": row["commit"],
        }
    return {
        "format": FORMAT,
        "accepted": {key: accepted[key] for key in sorted(accepted)},
        "items": {key: dict(entries[key]) for key in sorted(entries)},
    }


def _entry(record: Record) -> tuple[str, dict[str, Any]]:
    return record.name, {field: getattr(record, field) for field in ("value", "tolerance", "low", "high", "unit")}


def _read(path: Path) -> Baseline:
    remedy = "restore it, or delete it and accept a batch again"
    if path.name.count(".") < 3:
        raise UserError(f"{path} is not named NOTEBOOK.PROFILE.DEVICE.json like a baseline; move it away")
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} has format {content['format']!r}, expected {FORMAT}; update lmdynamics, or {remedy}"
            )
        items = {
            key: {name: Record(name, fields["value"], **_checked_fields(fields)) for name, fields in records.items()}
            for key, records in content["items"].items()
        }
        accepted = dict(content.get("accepted") or {})
        return Baseline(dict.fromkeys(items, accepted) if "who" in accepted else accepted, items)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a baseline ({first_line(error)}); {remedy}") from error


def _checked_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a record but its value, checked: with an invalid tolerance any value would pass."""
    if not (fields["value"] is None or isinstance(fields["value"], (bool, int, float, str))):
        raise ValueError(f"the value {json.dumps(fields['value'])[:40]} is not a scalar")
    for name in ("tolerance", "low", "high"):
        number = fields.get(name)
        finite = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        if number is not None and not (finite and (name != "tolerance" or number >= 0)):
            raise ValueError(f"{name} is {json.dumps(number)[:40]}")
    return {name: value for name, value in fields.items() if name != "value"}

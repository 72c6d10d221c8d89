"""Folders as a batch leaves them, written without running anything."""

import json
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.1.0",
    "lmdynamics": "0.4.0",
    "commit": "abc1234",
    "device": "cpu",
    "device_name": "some processor",
    "dtype": "float32",
    "deterministic": True,
    "peak_mb": 900.5,
    "peak_gpu_mb": None,
    "seconds": 9,
}
UAS = {"value": 0.61, "tolerance": 0.05, "low": 0.5, "high": 0.7, "unit": ""}
ACCEPTED = {"uas": UAS, "onset": 64, "grokked": True, "word": "later", "nothing": None}


def write_item(
    out: Path,
    name: str,
    records: dict[str, Any] | None = None,
    *,
    parameters: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    **outcome: Any,
) -> Path:
    """An item's folder; a record is its value, or its fields as a dict. Without records there is no records.json."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": name,
        "notebook": name.partition("--")[0],
        "status": "finished",
        "seconds": 12,
        "parameters": {"profile": "smoke", "interactive": False, "output_dir": str(folder)} | (parameters or {}),
        "cell": None,
        "source": "",
        "error": "",
        "ended": "2026-11-03T04:05:06",
        "key": "k1",
        "attempts": 1,
        "peak_mb": 1000,
    } | outcome
    (folder / "outcome.json").write_text(json.dumps(content), "utf-8")
    if records is not None:
        rows = [
            {"name": record, **(fields if isinstance(fields, dict) else {"value": fields})}
            for record, fields in records.items()
        ]
        content = {"format": 1, "environment": ENVIRONMENT | (environment or {}), "records": rows}
        (folder / "records.json").write_text(json.dumps(content), "utf-8")
    return folder

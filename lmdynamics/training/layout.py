"""The folder of a run: its files, which of them training writes, and how a checkpoint is verified.

    NAME/run.json  log.parquet  tokenizer/  held_out/  checkpoints/step-000512/  resume/step-000700/

A checkpoint holds `model.safetensors`, `config.json`, optionally `training_state.safetensors`, and `manifest.json`
with the size and sha256 of each file.
"""

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmdynamics.errors import UserError
from lmdynamics.files import clear, read_json, sha256, write_json

LOCK = "run.lock"  # held by the process that trains in the folder
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
TRAINING_STATE = "training_state.safetensors"
PARTS = ("run.json", "log.parquet", "live.csv", "tokenizer", "held_out")  # of a run's folder, besides checkpoints
_STEP = re.compile(r"step-(\d+)")


def step_folder(parent: Path, step: int) -> Path:
    return parent / f"step-{step:06d}"


def step_folders(parent: Path) -> dict[int, Path]:
    """Complete checkpoints with this package's names (`step-000512`), by step; for others see `runs.folders`."""
    if not parent.is_dir():
        return {}
    folders = {}
    for folder in parent.iterdir():
        match = _STEP.fullmatch(folder.name)
        if match and folder.is_dir():
            folders[int(match[1])] = folder
    return dict(sorted(folders.items()))


def saved_steps(folder: Path) -> dict[int, Path]:
    """Checkpoints and resume points of a run by step; if a step has both, the resume point."""
    saved = {**step_folders(folder / "checkpoints"), **step_folders(folder / "resume")}
    return dict(sorted(saved.items()))


def remove_incomplete(folder: Path) -> None:
    """Remove incomplete files of a killed process. Only call with the run locked."""
    for parent in (folder, folder / "checkpoints", folder / "resume"):
        clear(parent)


def is_begun(folder: Path) -> bool:
    """Whether a training has saved a checkpoint or resume point here; the one a branch starts from does not count."""
    saved = saved_steps(folder)
    facts = read_json(folder / "run.json", "a run") if saved and (folder / "run.json").exists() else {}
    parent = facts.get("parent")
    return bool(saved) and (parent is None or max(saved) > parent["step"])


def foreign_names(folder: Path) -> list[str]:
    """Names in a folder without a run that training would overwrite, although it did not write them."""
    if (folder / "run.json").exists():
        return []
    return [name for name in (*PARTS, "checkpoints", "resume") if (folder / name).exists()]


def remove_unsaved(folder: Path) -> None:
    """Remove the files of a training that saved nothing to resume from, and the folder if nothing else is in it."""
    remove_incomplete(folder)
    for path in [folder / name for name in PARTS] + [
        saved for name in ("checkpoints", "resume") for saved in step_folders(folder / name).values()
    ]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for path in (folder / "checkpoints", folder / "resume", folder):
        with suppress(OSError):  # something else is in it
            path.rmdir()


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write size and sha256 of every file in `folder`, and `facts`, to its manifest."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {**facts, "files": files})


def check_sizes(folder: Path) -> dict[str, Any] | None:
    """The manifest, after checking every file's size; None for a folder of another program, which has none."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_json(folder / MANIFEST, "a checkpoint")
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; its manifest lists it. {_advice(folder)}")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise UserError(
                f"{path} is {size:,} bytes, its manifest says {entry['bytes']:,}: the file was cut short or changed. "
                f"{_advice(folder)}"
            )
    return manifest


def check_hashes(folder: Path) -> int:
    """Compare every file's sha256 with the manifest; returns how many files were checked."""
    manifest = check_sizes(folder)
    if manifest is None:
        raise UserError(f"{folder} has no {MANIFEST}, so it cannot be verified")
    for name, entry in manifest["files"].items():
        if sha256(folder / name) != entry["sha256"]:
            raise UserError(f"{folder / name} was changed: its hash is not that in the manifest. {_advice(folder)}")
    return len(manifest["files"])


def _advice(folder: Path) -> str:
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    return f"Delete {run} and train it again, or copy that folder again."

"""The folder of a run: which files it has, which of them are a training's own, and how a checkpoint is checked.

    NAME/run.json  log.parquet  tokenizer/  held_out/  checkpoints/step-000512/  resume/step-000700/

A checkpoint holds `model.safetensors`, `config.json`, perhaps `training_state.safetensors`, and `manifest.json`
with the size and sha256 of each.
"""

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmdynamics.errors import UserError
from lmdynamics.files import clear, read_json, sha256, write_json

LOCK = "run.lock"  # held by whoever trains in the folder
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
TRAINING_STATE = "training_state.safetensors"
PARTS = ("run.json", "log.parquet", "live.csv", "tokenizer", "held_out")  # of a run's folder, beside checkpoints
_STEP = re.compile(r"step-(\d+)")


def step_folder(parent: Path, step: int) -> Path:
    return parent / f"step-{step:06d}"


def step_folders(parent: Path) -> dict[int, Path]:
    """Complete checkpoints that were saved here (`step-000512`), by step; for others see `runs.folders`."""
    if not parent.is_dir():
        return {}
    found = {}
    for folder in parent.iterdir():
        match = _STEP.fullmatch(folder.name)
        if match and folder.is_dir():
            found[int(match[1])] = folder
    return dict(sorted(found.items()))


def saved_steps(folder: Path) -> dict[int, Path]:
    """Checkpoints and resume points of a run by step; where a step has both, the resume point."""
    saved = {**step_folders(folder / "checkpoints"), **step_folders(folder / "resume")}
    return dict(sorted(saved.items()))


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written. Only call with the run locked."""
    for parent in (folder, folder / "checkpoints", folder / "resume"):
        clear(parent)


def is_begun(folder: Path) -> bool:
    """Whether a training has saved anything here; what a branch starts from is not its own."""
    saved = saved_steps(folder)
    facts = read_json(folder / "run.json", "a run") if saved and (folder / "run.json").exists() else {}
    parent = facts.get("parent")
    return bool(saved) and (parent is None or max(saved) > parent["step"])


def foreign(folder: Path) -> list[str]:
    """Names in a folder without a run that a training would write over: they are somebody else's."""
    if (folder / "run.json").exists():
        return []
    return [name for name in (*PARTS, "checkpoints", "resume") if (folder / name).exists()]


def forget(folder: Path) -> None:
    """Remove what a training wrote that never saved anything, and the folder if nothing else is in it."""
    sweep(folder)
    for path in [folder / name for name in PARTS] + [
        at for name in ("checkpoints", "resume") for at in step_folders(folder / name).values()
    ]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for path in (folder / "checkpoints", folder / "resume", folder):
        with suppress(OSError):  # something else is in it
            path.rmdir()


def write_manifest(folder: Path, **facts: Any) -> None:
    """Record size and sha256 of every file in `folder`, beside `facts`."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {**facts, "files": files})


def check_sizes(folder: Path) -> dict[str, Any] | None:
    """The manifest, after comparing every file's size with it; None where a foreign folder has none."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_json(folder / MANIFEST, "a checkpoint")
    for name, said in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; its manifest lists it. {_again(folder)}")
        if (size := path.stat().st_size) != said["bytes"]:
            raise UserError(
                f"{path} is {size:,} bytes, its manifest says {said['bytes']:,}: the file was cut short or changed. "
                f"{_again(folder)}"
            )
    return manifest


def check_hashes(folder: Path) -> int:
    """Compare every file's sha256 with the manifest; returns how many files were checked."""
    manifest = check_sizes(folder)
    if manifest is None:
        raise UserError(f"{folder} has no {MANIFEST}, so there is nothing to verify it against")
    for name, said in manifest["files"].items():
        if sha256(folder / name) != said["sha256"]:
            raise UserError(f"{folder / name} does not have the hash in its manifest: it was changed. {_again(folder)}")
    return len(manifest["files"])


def _again(folder: Path) -> str:
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    return f"Delete {run} and train it again, or copy that folder anew."

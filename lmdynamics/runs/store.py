"""The folder layout of a run: written so that a file is there whole or not at all, and checked when opened.

    NAME/run.json  log.parquet  tokenizer/  held_out/  checkpoints/step-000512/  resume/step-000700/

A checkpoint holds `model.safetensors`, `config.json`, perhaps `training_state.safetensors`, and `manifest.json`
with the size and sha256 of each.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lmdynamics.errors import UserError
from lmdynamics.paths import READ_ONLY

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


class NotSaved(UserError):
    """A disk that is full or cannot be written."""


@contextmanager
def saving(what: str) -> Iterator[None]:
    """Turn a full or read-only disk into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, *READ_ONLY):
            raise
        remedy = "free some space" if error.errno not in READ_ONLY else "set LMDYNAMICS_HOME to a folder of yours"
        raise NotSaved(
            f"could not save {what}: {os.strerror(error.errno).lower()}. "
            f"What was saved before is whole; {remedy} and run the same command to go on from there."
        ) from None
    except Exception as error:  # safetensors wraps the operating system's error in its own
        if "No space left" not in str(error):
            raise
        raise NotSaved(
            f"could not save {what}: no space left on the disk. "
            "What was saved before is whole; free some space and run the same command to go on from there."
        ) from None


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `target`; it takes the name when it is complete and on the disk.

    Of several that are filled at once, in threads or processes, each is whole and the last one stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        _flush(temporary)
        temporary.chmod(0o755)
        while not _renamed(temporary, target):
            with suppress(FileNotFoundError):  # another took it away
                target.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        _flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _renamed(folder: Path, target: Path) -> bool:
    """Give a folder its name; False where another folder has it."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Write to a temporary file beside `target`; it replaces `target` when it is complete and on the disk.

    Its name is its own, so that threads and processes may write the same file at once.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written. Only call with the run locked."""
    for parent in (folder, folder / "checkpoints", folder / "resume"):
        for left in parent.glob(".*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            elif left.suffix == ".tmp":
                left.unlink(missing_ok=True)


def is_begun(folder: Path) -> bool:
    """Whether a training has saved anything here; what a branch starts from is not its own."""
    saved = {**step_folders(folder / "checkpoints"), **step_folders(folder / "resume")}
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


@contextmanager
def locked(folder: Path, say=None) -> Iterator[None]:
    """Hold a run's folder: a second process that builds the same run waits here."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if say:
            say(f"another process is training in {folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether some process holds a run's folder; none is made."""
    if not (folder / "run.lock").exists():
        return False
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # it cannot be written here, so nobody trains in it from here
        return False
    lock.release()
    return False


def write_json(target: Path, content: Any) -> None:
    with saving(str(target)), atomic_file(target) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing, so {path.parent} is not {what}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as broken:
        raise UserError(f"{path} is damaged ({broken}); restore it from a copy, or delete {path.parent}") from None


def sha256(*paths: Path) -> str:
    """Of one file; or of several, read one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


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

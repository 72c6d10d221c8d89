"""Files that are there whole or not at all: atomic writes, locks, JSON and hashes."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.paths import READ_ONLY, shipped

DISK = (errno.ENOSPC, errno.EDQUOT, *READ_ONLY)  # errors of a disk that is full or cannot be written


class NotSaved(UserError):
    """A disk that is full or cannot be written."""


@contextmanager
def saving(what: str, home: str = "LMDYNAMICS_HOME") -> Iterator[None]:
    """Turn a full or read-only disk into one line that says what to do; `home` names the folder it was saved in."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        remedy = "free some space" if error.errno not in READ_ONLY else f"set {home} to a folder of yours"
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


def clear(parent: Path, name: str = "") -> None:
    """Remove what killed processes left half written in a folder, of one `name` or all. Only with its lock held."""
    for left in parent.glob(f".{name}.*" if name else ".*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif left.suffix == ".tmp":
            left.unlink(missing_ok=True)


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


@contextmanager
def locked(lock: Path, waiting: str = "") -> Iterator[None]:
    """Hold a lock file; where another process holds it, print `waiting` (if it is not empty) to stderr and wait."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        if waiting:
            print(f"lmdynamics: {waiting}", file=sys.stderr)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def is_locked(lock: Path) -> bool:
    """Whether some process holds a lock file; none is made."""
    if not lock.exists():
        return False
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # it cannot be written here, so nobody holds it from here
        return False
    held.release()
    return False


def write_text(target: Path, text: str) -> None:
    with saving(str(target)), atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Any) -> None:
    write_text(target, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing, so {path.parent} is not {what}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as broken:
        raise UserError(f"{path} is damaged ({broken}); restore it from a copy, or delete {path.parent}") from None


def read_toml(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
        raise UserError(f"{path} is not {what}: {broken}") from None


def shipped_tables(kind: str) -> list[str]:
    """Names of the TOML files in a folder that is shipped: `recipes`, `sweeps`."""
    return sorted(path.stem for path in shipped(kind).glob("*.toml"))


def find_table(kind: str, name: str, what: str) -> Path:
    """A TOML file by its path, or by its name in a folder that is shipped; raises UserError if there is none."""
    path = Path(name) if name.endswith(".toml") else shipped(kind) / f"{name}.toml"
    if not path.is_file():
        raise UserError(f"there is no {what} {name!r}{did_you_mean(name, shipped_tables(kind))}")
    return path


def sha256(*paths: Path) -> str:
    """Of one file; or of several, read one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()

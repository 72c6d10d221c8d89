"""Atomic writes (a file is complete or absent), locks, JSON and hashes."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
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
def saving(description: str, home: str = "LMDYNAMICS_HOME") -> Iterator[None]:
    """Turn a full or read-only disk into a one-line error with a remedy; `home`: variable that sets the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        remedy = "free some space" if error.errno not in READ_ONLY else f"set {home} to a folder you can write to"
        raise NotSaved(
            f"could not save {description}: {os.strerror(error.errno).lower()}. "
            f"Earlier files are complete; {remedy} and run the same command again to resume."
        ) from None
    except Exception as error:  # safetensors wraps the operating system's error
        if "No space left" not in str(error):
            raise
        raise NotSaved(
            f"could not save {description}: no space left on the disk. "
            "Earlier files are complete; free some space and run the same command again to resume."
        ) from None


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `target`; it is renamed when it is complete and on the disk.

    If several are filled at once, in threads or processes, each is complete and the last one stays.
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
            with suppress(FileNotFoundError):  # another process removed it
                target.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        _flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clear(parent: Path, name: str = "") -> None:
    """Remove incomplete files of killed processes from a folder, of one `name` or all. Requires the folder's lock."""
    for leftover in parent.glob(f".{name}.*" if name else ".*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        elif leftover.suffix == ".tmp":
            leftover.unlink(missing_ok=True)


def _renamed(folder: Path, target: Path) -> bool:
    """Rename a folder; False if another folder has the name."""
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

    Its name is unique, so threads and processes may write the same file at once.
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
def locked(lock: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold a lock file. If another process holds it, call `waiting`, and wait."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        waiting()
        file_lock.acquire()
    try:
        yield
    finally:
        file_lock.release()


def is_locked(lock: Path) -> bool:
    """Whether a process holds a lock file; the file is not created."""
    if not lock.exists():
        return False
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # it cannot be written from this machine, so no process here holds it
        return False
    file_lock.release()
    return False


def write_text(target: Path, text: str) -> None:
    with saving(str(target)), atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Any) -> None:
    write_text(target, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, description: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing, so {path.parent} is not {description}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy, or delete {path.parent}") from None


def read_toml(path: Path, description: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not {description}: {error}") from None


def shipped_tables(kind: str) -> list[str]:
    """Names of the TOML files in a shipped folder: `recipes`, `sweeps`."""
    return sorted(path.stem for path in shipped(kind).glob("*.toml"))


def find_table(kind: str, name: str, noun: str) -> Path:
    """A TOML file by its path, or by its name in a shipped folder. Raises UserError if there is none."""
    path = Path(name) if name.endswith(".toml") else shipped(kind) / f"{name}.toml"
    if not path.is_file():
        raise UserError(f"there is no {noun} {name!r}{did_you_mean(name, shipped_tables(kind))}")
    return path


def sha256(*paths: Path) -> str:
    """The hash of one file, or of several files read one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()

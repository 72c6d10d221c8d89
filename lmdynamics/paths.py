"""Folders of shipped files, of results on this machine, and of real corpora."""

import atexit
import errno
import os
import shutil
import sys
import tempfile
from pathlib import Path

from lmdynamics.errors import UserError, printable, shortened

SUITE = "hf://"  # prefix of the address of a published suite; other addresses are paths
_CHECKOUT = Path(__file__).resolve().parent.parent


def exists(path: Path) -> bool:
    """Whether a file or folder exists; False also for a name that is too long."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def shipped(name: str) -> Path:
    """A folder or file that comes with the project: `recipes`, `published`, `sources.toml`."""
    in_checkout = _CHECKOUT / "data" / name
    return in_checkout if exists(in_checkout) else Path(__file__).parent / "shipped" / name


def home() -> Path:
    """The folder for all results: `$LMDYNAMICS_HOME`, a checkout's `data/`, or the user's data folder.

    Raises UserError if `$LMDYNAMICS_HOME` cannot be a folder.
    """
    if folder := os.environ.get("LMDYNAMICS_HOME"):
        return _folder("LMDYNAMICS_HOME", folder)
    if (_CHECKOUT / "data" / "recipes").is_dir():
        return _CHECKOUT / "data"
    from platformdirs import user_data_path

    return user_data_path("lmdynamics")


def runs_dir() -> Path:
    """Trained runs, one folder each."""
    return home() / "runs"


def cache_dir() -> Path:
    """Everything that can be computed or downloaded again: traces, tokenised corpora, downloads."""
    return home() / "cache"


def real_data_dirs() -> list[Path]:
    """Folders searched for real corpora: `$LMDYNAMICS_DATA` first, then the downloads of `lmdynamics fetch`."""
    folder = os.environ.get("LMDYNAMICS_DATA")
    return [*([_folder("LMDYNAMICS_DATA", folder)] if folder else []), home() / "fetched"]


def _folder(variable: str, value: str) -> Path:
    try:
        path = Path(value).expanduser().absolute()
        is_folder = path.is_dir() or not path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, or the home of an unknown user
        cause = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{variable}={shortened(value)} cannot be a folder: {cause}; set it to one") from None
    if not is_folder:
        raise UserError(f"{variable}={shortened(value)} is a file, not a folder; set it to a folder, or unset it")
    return path


READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_substitutes: dict[Path, Path] = {}  # folders that cannot be written, and the folders used instead
_reported: set[str] = set()


def report_unwritable(folder: Path, reason: str) -> None:
    """Report once, in one line, that results cannot be saved."""
    line = f"lmdynamics: results cannot be saved in {folder}: {reason}; set LMDYNAMICS_HOME to another folder"
    if line not in _reported:
        _reported.add(line)
        print(printable(line), file=sys.stderr)


def writable(folder: Path) -> Path:
    """A folder, created if missing. If it cannot be written, this is reported, and a temporary copy replaces it until
    this process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        report_unwritable(folder, os.strerror(error.errno).lower())
    if folder not in _substitutes:
        temporary = Path(tempfile.mkdtemp(prefix="lmdynamics-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        _substitutes[folder] = temporary / folder.name
        shutil.copytree(folder, _substitutes[folder]) if folder.is_dir() else _substitutes[folder].mkdir()
    return _substitutes[folder]

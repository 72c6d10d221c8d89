"""Where things lie: what the project ships, what it makes on this machine, and real corpora."""

import atexit
import errno
import os
import shutil
import sys
import tempfile
from pathlib import Path

from lmdynamics.errors import UserError, printable, shortened

SUITE = "hf://"  # how the address of a published suite begins, where others are paths
_CHECKOUT = Path(__file__).resolve().parent.parent


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; False also for a name that is too long for any."""
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
    """The folder for everything made here: `$LMDYNAMICS_HOME`, a checkout's `data/`, or the user's data folder.

    Raises UserError where `$LMDYNAMICS_HOME` cannot be a folder.
    """
    if named := os.environ.get("LMDYNAMICS_HOME"):
        return _folder("LMDYNAMICS_HOME", named)
    if (_CHECKOUT / "data" / "recipes").is_dir():
        return _CHECKOUT / "data"
    from platformdirs import user_data_path

    return user_data_path("lmdynamics")


def runs_dir() -> Path:
    """Trained runs, one folder each."""
    return home() / "runs"


def cache_dir() -> Path:
    """Everything that can be made again: traces, tokenised corpora, downloads."""
    return home() / "cache"


def real_data_dirs() -> list[Path]:
    """Folders searched for real corpora: `$LMDYNAMICS_DATA` first, then what `lmdynamics fetch` brought."""
    named = os.environ.get("LMDYNAMICS_DATA")
    return [*([_folder("LMDYNAMICS_DATA", named)] if named else []), home() / "fetched"]


def _folder(variable: str, named: str) -> Path:
    try:
        path = Path(named).expanduser().absolute()
        is_folder = path.is_dir() or not path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, say, or the home of an unknown user
        what = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{variable}={shortened(named)} cannot be a folder: {what}; set it to one") from None
    if not is_folder:
        raise UserError(f"{variable}={shortened(named)} is a file, not a folder; set it to a folder, or unset it")
    return path


READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_aside: dict[Path, Path] = {}  # folders that cannot be written, and what this process writes to instead
_told: set[str] = set()


def not_kept(what: Path, reason: str) -> None:
    """Say once, in one line, that what is computed cannot be kept."""
    line = f"lmdynamics: what is computed cannot be kept in {what}: {reason}; LMDYNAMICS_HOME names another folder"
    if line not in _told:
        _told.add(line)
        print(printable(line), file=sys.stderr)


def writable(folder: Path) -> Path:
    """A folder, made if need be. Where it cannot be written, that is said, and a temporary one stands in for it, with
    the same files, until this process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        not_kept(folder, os.strerror(error.errno).lower())
    if folder not in _aside:
        made = Path(tempfile.mkdtemp(prefix="lmdynamics-"))
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        _aside[folder] = made / folder.name
        shutil.copytree(folder, _aside[folder]) if folder.is_dir() else _aside[folder].mkdir()
    return _aside[folder]

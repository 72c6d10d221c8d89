"""A hash of everything that determines an item's results: while it is the same, the item need not run again.

It covers the notebook's code, its parameters, the runs and files that they name, the names and sizes of real corpora,
the package with its data files, and the versions of torch and transformers. It does not cover folders, times and
machines.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lmdynamics.batch.parameters import DISPLAY_PARAMETERS
from lmdynamics.paths import SUITE, exists, real_data_dirs, runs_dir, shipped

SHIPPED = ("recipes", "sweeps", "published", "sources.toml", "suites.toml")
PACKAGES = ("torch", "transformers")


def content_key(notebook: Path, parameters: Mapping[str, Any]) -> str:
    """The key of an item, 16 hexadecimal digits. `parameters`: all parameters of the notebook."""
    values = {name: value for name, value in parameters.items() if name not in DISPLAY_PARAMETERS}
    contents = {name: read for name, value in sorted(values.items()) if (read := _content(value, notebook.parent))}
    parts = [_source(notebook), sorted(values.items()), contents, _corpora(), _package()]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def code_version() -> str:
    """A hash of the package's code, its data files, and the versions it computes with."""
    return hashlib.sha256(json.dumps(_package()).encode()).hexdigest()[:12]


def _source(notebook: Path) -> list[tuple[str, str]]:
    """Kind and text of each cell: outputs, ids and layout change no result."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def _content(value: Any, base: Path) -> Any:
    """Digests of the run, file or folder that a value names, or commits of suites; None if it names none of them."""
    if not isinstance(value, str) or not value:
        return None
    if value.startswith(SUITE):
        from lmdynamics.hub.checkpoints import pinned_commits

        return [pinned_commits(address) for address in value.split()]
    folder = value.rpartition("#")[0] or value  # one of several trajectories
    candidates = (runs_dir() / value, Path(value).expanduser(), base / value, runs_dir() / folder, Path(folder))
    for path in filter(exists, candidates):
        if (path / "run.json").is_file() and _is_recipe(value):
            return None  # its recipe is part of the package; how far it has been trained does not matter
        manifests = sorted(path.glob("checkpoints/*/manifest.json"))
        if (path / "run.json").is_file() or manifests:
            return [_digest(file) for file in (path / "run.json", *manifests) if file.is_file()]
        if path.is_file():
            return _digest(path)
        if path.is_dir():
            return _listing(path)
    return None


def _listing(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of all files below a folder: hashing whole corpora would take too long."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted((str(file.relative_to(folder)), file.stat().st_size) for file in files)


@lru_cache(maxsize=1)
def _corpora() -> list[list[tuple[str, int]]]:
    """The real corpora on this machine: some notebooks show more if there are any."""
    return [_listing(folder) for folder in real_data_dirs() if folder.is_dir()]


def _is_recipe(name: str) -> bool:
    return (shipped("recipes") / f"{name}.toml").is_file()


@lru_cache(maxsize=1)
def _package() -> list[str]:
    """Digests of the package's code and data files, and the versions it computes with."""
    files = [entry for path in (Path(__file__).parents[1], *map(shipped, SHIPPED)) for entry in _files(path)]
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return [*versions, *(f"{name} {_digest(file)}" for name, file in files)]


def _files(path: Path) -> list[tuple[str, Path]]:
    """Name and path of every file below a folder, or of a file itself; without bytecode and editors' backups."""
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    entries = [(file.relative_to(path.parent).as_posix(), file) for file in paths if file.is_file()]
    return [(name, file) for name, file in entries if not re.search(r"(^|/)(\.|__pycache__/)|~$", name)]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

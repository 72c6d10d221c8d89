"""A hash of all that determines what a notebook will show: as long as it is the same, an item need not run again.

Folders, clocks and machines are not in it; the notebook's code, its parameters, the runs and files that they name, the
names and sizes of real corpora, and the package with the recipes and figures it ships are, and so are the versions of
torch and transformers.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lmdynamics.batch.parameters import NOT_SETTINGS
from lmdynamics.paths import SUITE, exists, real_data_dirs, runs_dir, shipped

SHIPPED = ("recipes", "sweeps", "published", "sources.toml", "suites.toml")
PACKAGES = ("torch", "transformers")


def content_key(notebook: Path, parameters: Mapping[str, Any]) -> str:
    """The key of an item, 16 hexadecimal digits. `parameters`: all that the notebook has, by name."""
    values = {name: value for name, value in parameters.items() if name not in NOT_SETTINGS}
    named = {name: found for name, value in sorted(values.items()) if (found := _named(value, notebook.parent))}
    parts = [_source(notebook), sorted(values.items()), named, _corpora(), _package()]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def code_version() -> str:
    """A hash of the package's code, what it ships, and what it computes with."""
    return hashlib.sha256(json.dumps(_package()).encode()).hexdigest()[:12]


def _source(notebook: Path) -> list[tuple[str, str]]:
    """Kind and text of each cell: outputs, ids and layout change no result."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def _named(value: Any, beside: Path) -> Any:
    """What a value names: a run's manifests, suites' commits, or a file's bytes; None if it names none of them."""
    if not isinstance(value, str) or not value:
        return None
    if value.startswith(SUITE):
        from lmdynamics.hub.checkpoints import pinned

        return [pinned(address) for address in value.split()]
    folder = value.rpartition("#")[0] or value  # one of several trajectories
    places = (runs_dir() / value, Path(value).expanduser(), beside / value, runs_dir() / folder, Path(folder))
    for path in filter(exists, places):
        if (path / "run.json").is_file() and _is_recipe(value):
            return None  # made from what the package ships: how far it has been trained is no difference
        manifests = sorted(path.glob("checkpoints/*/manifest.json"))
        if (path / "run.json").is_file() or manifests:
            return [_digest(file) for file in (path / "run.json", *manifests) if file.is_file()]
        if path.is_file():
            return _digest(path)
        if path.is_dir():
            return _listing(path)
    return None


def _listing(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of all files below a folder: reading corpora whole would take too long."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted((str(file.relative_to(folder)), file.stat().st_size) for file in files)


@lru_cache(maxsize=1)
def _corpora() -> list[list[tuple[str, int]]]:
    """The real corpora on this machine: some pages show more where there are some."""
    return [_listing(folder) for folder in real_data_dirs() if folder.is_dir()]


def _is_recipe(name: str) -> bool:
    return (shipped("recipes") / f"{name}.toml").is_file()


@lru_cache(maxsize=1)
def _package() -> list[str]:
    """The package's own code and what it ships, and the versions of what it computes with."""
    files = [named for place in (Path(__file__).parents[1], *map(shipped, SHIPPED)) for named in _files(place)]
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return [*versions, *(f"{name} {_digest(file)}" for name, file in files)]


def _files(place: Path) -> list[tuple[str, Path]]:
    """Name and path of every file below a folder, or of a file itself; without bytecode and what editors leave."""
    below = sorted(place.rglob("*")) if place.is_dir() else [place]
    named = [(file.relative_to(place.parent).as_posix(), file) for file in below if file.is_file()]
    return [(name, file) for name, file in named if not re.search(r"(^|/)(\.|__pycache__/)|~$", name)]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

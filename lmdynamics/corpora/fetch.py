"""Real corpora: where they come from, and bringing them here whole."""

import tomllib
from functools import cache
from pathlib import Path

from lmdynamics import paths
from lmdynamics.errors import UserError, did_you_mean


@cache
def known_sources() -> dict[str, dict]:
    """`data/sources.toml`: for each source its title, licence, homepage, path, base URL and files."""
    return tomllib.loads(paths.shipped("sources.toml").read_text(encoding="utf-8"))


def locate(name: str) -> Path:
    """The folder of a source: under `$LMDYNAMICS_DATA`, or where `lmdynamics fetch` put it.

    Raises
    ------
    UserError
        If the name is unknown, or the source is in neither place.
    """
    if name not in known_sources():
        raise UserError(f"no source {name!r}{did_you_mean(name, known_sources())}")
    path = known_sources()[name]["path"]
    for folder in paths.real_data_dirs():
        if (folder / path).is_dir():
            return folder / path
    raise UserError(f"{name} is not on this machine; run `lmdynamics fetch {name}` or set LMDYNAMICS_DATA")

"""Where things lie: what the project ships, what it makes on this machine, and real corpora."""

import os
from pathlib import Path

SUITE = "hf://"  # how the address of a published suite begins, where others are paths
_CHECKOUT = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """A folder or file that comes with the project: `recipes`, `published`, `sources.toml`."""
    in_checkout = _CHECKOUT / "data" / name
    return in_checkout if in_checkout.exists() else Path(__file__).parent / "shipped" / name


def home() -> Path:
    """The folder for everything made here: `$LMDYNAMICS_HOME`, a checkout's `data/`, or the user's data folder."""
    if named := os.environ.get("LMDYNAMICS_HOME"):
        return Path(named).expanduser().absolute()
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
    return [*([Path(named).expanduser().absolute()] if named else []), home() / "fetched"]

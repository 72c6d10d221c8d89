"""Open a run, whatever it is: a folder, one of the runs folder by its name, a published suite."""

from pathlib import Path
from typing import Any

from lmdynamics.errors import UserError, did_you_mean, shortened
from lmdynamics.hub.pins import known_suites
from lmdynamics.hub.suites import open_suite
from lmdynamics.paths import SUITE, exists, runs_dir
from lmdynamics.runs.folders import find_folder
from lmdynamics.runs.run import Run, checkpoint_folders
from lmdynamics.runs.trained import open_folder


def run_names() -> list[str]:
    """Runs on this machine that have a checkpoint, by name; without those of which a name alone does not say enough."""
    if not runs_dir().is_dir():
        return []
    return sorted(folder.name for folder in runs_dir().iterdir() if folder.is_dir() and _opens(folder))


def _opens(folder: Path) -> bool:
    try:
        return bool(checkpoint_folders(folder))
    except UserError:
        return False


def open_run(where: str | Path, **options: Any) -> Run:
    """Open a run by name (under the runs folder), by folder, or a published suite (`hf://OWNER/NAME?steps=log:20`).

    `FOLDER#NAME` is one of several trajectories in a folder. `options` are for suites: `steps`, `revisions`,
    `keep_last`, `download`; see `lmdynamics.hub.suites.open_suite`. For a folder, only `revisions`.

    Raises UserError where there is none, or none with a checkpoint.
    """
    if str(where).startswith(SUITE):
        return open_suite(str(where), **options)
    revisions = options.pop("revisions", None)
    if options:
        raise UserError(f"{', '.join(options)}: only for published suites (hf://OWNER/NAME); {where} is none")
    folder, part = find_folder(str(where))
    if not (exists(folder) and folder.is_dir()):
        known = [*run_names(), *known_suites()]
        hint = did_you_mean(str(where), known) if known else ""
        raise UserError(f"there is no run {shortened(str(where))!r}{hint}; `lmdynamics train RECIPE` makes one")
    return open_folder(folder, part, revisions, str(where))

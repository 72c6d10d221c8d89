"""Runs that are trained here: from a recipe, or as branches of others."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmdynamics.devices import PRECISIONS, note_computed
from lmdynamics.errors import UserError
from lmdynamics.paths import runs_dir
from lmdynamics.progress import say_once
from lmdynamics.runs import faults
from lmdynamics.runs.branch import branch_folder, branched_recipe, plant
from lmdynamics.runs.build import build, name_on, run_name
from lmdynamics.runs.folders import read_folder, refuse_other_formats
from lmdynamics.runs.run import Run
from lmdynamics.training.recipes import load_recipe
from lmdynamics.training.state import Log


@dataclass(frozen=True)
class TrainedRun(Run):
    """A run with a recipe."""

    def branch(
        self, step: int, *, name: str | None = None, device: str | None = None, progress=None, **changes
    ) -> "Run":
        """Go on from `step` under a changed recipe: `run.branch(512, masking=0.3)`; see `lmdynamics.runs.branch`.

        Dotted settings go in as `**{"regularizer.form": "uniform"}`. Without changes, the parent again, bit for bit.
        """
        return branch(self, step, changes, name=name, device=device, progress=progress)


def train(
    recipe: str,
    profile: str = "default",
    seed: int = 0,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    name: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> Run:
    """The run that a recipe describes: trained now, gone on with, or opened if it is already complete.

    `name` is its folder under the runs folder; by default it tells profile, seed, overrides and kind of device apart.
    `device`: what trains it, such as `cpu`, `cuda:1` or `mps`. By default any device will do: a run that is there is
    opened or resumed whatever trained it, and a new one is trained on the accelerator, if there is one.
    Raises UserError if the folder holds a run of another recipe or kind of device, or the device is not there.
    """
    overrides = dict(overrides) if isinstance(overrides, Mapping) else list(overrides)
    made = load_recipe(recipe, profile, seed, overrides)
    folder = runs_dir() / (name or name_on(device, run_name(made, overrides)))
    build(made, folder, device=device, progress=progress)
    return open_folder(folder)


def branch(
    run: Run,
    step: int,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    name: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
    log: Callable[[Path], Log] = Log,
) -> Run:
    """The run that leaves `run` at `step` and goes on under changed settings; trained now, gone on with, or opened.

    `overrides` as for `train`: `masking`, `stages`, `lr`, `seed`, `steps`, …; settings of the corpus, the model and the
    objective cannot change. `name` is by default made from the parent's name, the step and the changes. `device` is
    by default of the kind that trained the parent. `log` as for `pretrain`.

    Raises
    ------
    UserError
        If `run` keeps no optimizer state at `step`, a change is not possible, nothing is left to train, or the folder
        of that name holds another run.
    """
    changed, changes = branched_recipe(run, step, overrides)
    folder, parent = branch_folder(run, step, changes, name, device)
    device = device or run.trained_on
    prepare = partial(plant, run, step, folder)
    build(changed, folder, device=device, progress=progress, parent=parent, prepare=prepare, log=log)
    return open_folder(folder)


def open_folder(folder: Path, part: str = "", revisions: str | None = None, address: str = "") -> Run:
    """The run in a folder, with what is known to be wrong with it said; see `open_run`. `address`: how it was named.

    Raises UserError where the folder has no checkpoint.
    """
    folder = folder.resolve()
    found = read_folder(folder, part, revisions)
    if not found.steps:
        raise UserError(
            f"{folder} has no checkpoints (step-000512/, checkpoint-500/ ...); "
            + (found.notes[0] if found.notes else "is training still at step 0?")
        )
    kind = TrainedRun if (folder / "run.json").exists() else Run
    run = kind(folder, part, revisions)
    if run.recipe:
        precision = PRECISIONS[run.recipe.training.precision]
        note_computed(run.trained_on or "unknown", precision, run.facts.get("device") or "unknown")
    refuse_other_formats(list(found.steps.values()))
    for note in found.notes:
        say_once(f"{run.name}: {note}")
    faults.say(run.name, run.known_faults, address or str(folder))
    return run

"""Runs that are trained here: made from a recipe, resumed where they were stopped, or branched from other runs.

A branch continues training from a checkpoint under a changed recipe. Weights and optimizer state come from the
checkpoint; data order, masks and dropout are functions of seed and step. So a branch without changes repeats its parent
bit for bit on the same device, and any difference is caused by the change. It is a run in a folder of its own, which
begins at the step it left.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from lmdynamics import files
from lmdynamics.devices import (
    PRECISIONS,
    default_device,
    device_kind,
    device_name,
    need_device,
    note_computed,
    trained_on,
)
from lmdynamics.environment import commit, versions
from lmdynamics.errors import UserError, shortened
from lmdynamics.paths import runs_dir
from lmdynamics.progress import print_once
from lmdynamics.runs import faults
from lmdynamics.runs.folders import read_folder, refuse_other_formats
from lmdynamics.runs.revision_rules import nearest
from lmdynamics.runs.run import Run
from lmdynamics.training import layout
from lmdynamics.training.recipes import Recipe, load_recipe, recipe_from_dict
from lmdynamics.training.state import Log


def run_name(recipe: Recipe | None, overrides: Mapping[str, Any] | Iterable[str] = ()) -> str:
    """`grammar-mlm`, `grammar-mlm-smoke`, `grammar-mlm-seed1`, `grammar-mlm-lr=0.002`; or only the end."""
    given = overrides.items() if isinstance(overrides, Mapping) else (str(item).split("=", 1) for item in overrides)
    parts = [] if recipe is None else [recipe.name]
    if recipe is not None:
        parts += [recipe.profile] if recipe.profile != "default" else []
        parts += [f"seed{recipe.seed}"] if recipe.seed else []
    for key, value in given:
        if callable(value):
            raise UserError(f"a run with a function as {key} needs a name of its own: give name=")
        text = re.sub(r"[^\w.+-]+", "_", Path(str(value)).name).strip("_")
        parts += [f"{key.strip()}={text or 'none'}"] if recipe is None or key.strip() != "seed" else []
    return folder_name("-".join(parts)) if recipe else "".join(f"-{part}" for part in parts)


def name_on(device: str | None, name: str, usual: str | None = "cpu") -> str:
    """A run's default name; with the kind of its device if that is not `usual`, or the name is another device's."""
    kind = device and device_kind(device)
    folder = runs_dir() / name
    taken = begun_on(folder) if layout.is_begun(folder) else usual
    return name if kind in (None, taken) else folder_name(f"{name}-{kind}")


def folder_name(name: str) -> str:
    """A name that a file system takes: where it would be too long, a hash stands for the rest."""
    short = name.encode()[:180].decode(errors="ignore")
    return name if len(name.encode()) <= 200 else f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def build(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | None = None,
    progress: bool | None = None,
    parent: Mapping[str, Any] | None = None,
    prepare: Callable[[], None] | None = None,
    log: Callable[[Path], Log] = Log,
) -> None:
    """Train `recipe` into `folder`, if it is not complete; other processes that want the same folder wait.

    A branch names its `parent`, and `prepare` puts into the folder what it starts from. `log` as for `pretrain`.
    """
    if is_complete(folder, recipe, device):
        return
    from lmdynamics.training.loop import pretrain

    device = device or begun_on(folder) or default_device()
    need_device(device)
    if lying := layout.foreign(folder):
        raise UserError(
            f"{folder} has no run.json, but {' and '.join(lying)}, which a training would write over; "
            "give this run another --name, or move them away"
        )
    with files.saving(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", 0)) == 0:
        with files.locked(folder / layout.LOCK, f"another process is training in {folder}; waiting for it"):
            if not is_complete(folder, recipe, device):
                layout.sweep(folder)
                begun = layout.is_begun(folder)
                if not begun and (folder / "run.json").exists():  # of a training that was killed
                    layout.forget(folder)
                try:
                    if not (folder / "run.json").exists():
                        facts = {"format": 1, "recipe": recipe.to_dict(), **_circumstances(device), "parent": parent}
                        files.write_json(folder / "run.json", facts)
                    if prepare and not begun:
                        prepare()
                    pretrain(recipe, folder, device=device, progress=progress, log=log)
                except BaseException:
                    if not layout.is_begun(folder):
                        (folder / layout.LOCK).unlink(missing_ok=True)
                        layout.forget(folder)
                    raise
    else:
        pretrain(recipe, folder, device=device, progress=False, log=log)


def begun_on(folder: Path) -> str | None:
    """The kind of device on which a run in a folder was begun; None if there is none, or it is not known."""
    path = folder / "run.json"
    return trained_on(files.read_json(path, "a run")) if path.exists() and layout.is_begun(folder) else None


def is_complete(folder: Path, recipe: Recipe, device: str | None = None) -> bool:
    """Whether the last checkpoint is there.

    Raises UserError if the folder holds a run of another recipe, or one of another kind of device than `device`. A
    folder where nothing was saved holds no run: a training that was killed at once leaves one.
    """
    kind = device and device_kind(device)
    path = folder / "run.json"
    facts = files.read_json(path, "a run") if path.exists() else None
    if facts is None or not layout.is_begun(folder):
        return False
    before = flat(recipe_from_dict(facts["recipe"]).to_dict())
    now = flat(recipe.to_dict())
    before.pop("checkpoints.save_seconds", None), now.pop("checkpoints.save_seconds", None)
    if before != now:
        key = next(k for k in sorted({*before, *now}) if before.get(k) != now.get(k))
        raise UserError(
            f"{folder} was trained with {key}={shortened(repr(before.get(key)))}, "
            f"now {shortened(repr(now.get(key)))} is asked for; "
            "give this run another --name, or delete that folder"
        )
    if kind not in (None, begun := begun_on(folder)):
        raise UserError(
            f"{folder} was trained on {begun or 'a device of unknown kind'}, now {kind} is asked for; "
            "give this run another --name, or delete that folder"
        )
    return layout.step_folder(folder / "checkpoints", recipe.training.steps).is_dir()


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def _circumstances(device: str) -> dict[str, Any]:
    """What a reader needs to make this run again: versions, commit, device."""
    import torch

    return {
        "versions": versions(),
        "git_commit": commit(),
        "device_kind": device_kind(device),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


FIXED = ("corpus.", "model.", "objective")  # what a checkpoint's weights are made for


def branch_folder(
    run: Run, step: int, changes: Mapping[str, Any], name: str | None = None, device: str | None = None
) -> tuple[Path, dict[str, Any]]:
    """Where a branch lies, and what it says of its parent; raises if another run is there."""
    own = name_on(device or run.trained_on, branch_name(run.name, step, changes), usual=run.trained_on)
    folder = runs_dir() / (name or own)
    weights = run[step].content_hash
    parent = {"run": run.name, "step": step, "weights": weights, "device_kind": run.trained_on, "changes": changes}
    found = Run(folder).parent if (folder / "run.json").exists() and layout.is_begun(folder) else parent
    if found is None or (found["run"], found["step"], found["weights"]) != (run.name, step, parent["weights"]):
        origin = f"is a branch of {found['run']} at step {found['step']}" if found else "is no branch"
        raise UserError(f"{folder} {origin}; give this branch another --name, or delete that folder")
    return folder, parent


def branched_recipe(
    run: Run, step: int, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a branch, and what differs from its parent's; raises as `branch` does."""
    if run.recipe is None:
        raise run.trained_elsewhere()
    checkpoint = run[step]
    if not checkpoint.has_optimizer_state:
        kept = [s for s in run.steps if run[s].has_optimizer_state]
        raise UserError(
            f"{run.name} keeps no optimizer state at step {step}, so it cannot go on from there; "
            + (f"the nearest steps with one are {nearest(kept, step)}" if kept else "train it with optimizer_state=all")
        )
    return changed_recipe(run.recipe, step, overrides)


def changed_recipe(
    recipe: Recipe, step: int, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> tuple[Recipe, dict[str, Any]]:
    """A recipe to go on with from `step` of another's run, and what differs; raises if a change is not possible."""
    changed = recipe_from_dict(recipe.to_dict(), overrides)
    before, after = flat(recipe.to_dict()), flat(changed.to_dict())
    changes = {key: after[key] for key in after if before.get(key) != after[key]}
    if fixed := next((key for key in changes if key.startswith(FIXED)), None):
        raise UserError(
            f"a branch cannot change {fixed}: the weights at step {step} are made for {before.get(fixed)!r}"
        )
    if changed.training.steps <= step:
        raise UserError(
            f"training ends at step {changed.training.steps}, so at step {step} nothing is left to do; "
            "branch earlier, or set a larger steps"
        )
    return changed, changes


def branch_name(parent: str, step: int, changes: Mapping[str, Any]) -> str:
    """`grammar-mlm@512-lr=0.001`: the parent, the step, and what is changed."""
    leaves = {key.rpartition(".")[2]: value for key, value in changes.items()}
    return folder_name(f"{parent}@{step}" + run_name(None, leaves))


def plant(run: Run, step: int, folder: Path) -> None:
    """Put what a branch starts from into its folder; the checkpoint comes last, since training goes on from it."""
    with files.saving(str(folder)):
        for shared in ("tokenizer", "held_out"):
            if (run.folder / shared).is_dir():
                with files.atomic_folder(folder / shared) as temporary:
                    shutil.copytree(run.folder / shared, temporary, dirs_exist_ok=True)
        with files.atomic_file(folder / "log.parquet") as temporary:
            run.log.filter(pl.col("step") < step).write_parquet(temporary)
        with files.atomic_folder(layout.step_folder(folder / "checkpoints", step)) as temporary:
            shutil.copytree(run[step].folder, temporary, dirs_exist_ok=True)


@dataclass(frozen=True)
class TrainedRun(Run):
    """A run with a recipe."""

    def branch(
        self, step: int, *, name: str | None = None, device: str | None = None, progress=None, **changes
    ) -> "Run":
        """Go on from `step` under a changed recipe: `run.branch(512, masking=0.3)`; see `lmdynamics.runs.trained`.

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

    Raises UserError if `run` keeps no optimizer state at `step`, a change is not possible, nothing is left to train, or
    the folder of that name holds another run.
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
        print_once(f"{run.name}: {note}")
    faults.say(run.name, run.known_faults, address or str(folder))
    return run

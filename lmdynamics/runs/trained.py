"""Runs that are trained by lmdynamics: from a recipe, resumed after a stop, or branched from other runs.

A branch continues training from a checkpoint under a changed recipe. Weights and optimizer state come from the
checkpoint; data order, masks and dropout are functions of seed and step. So a branch without changes repeats its parent
bit for bit on the same device, and any difference is caused by the change. It is a run in a folder of its own, which
begins at the branch step.
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
from lmdynamics.progress import print_message, print_once
from lmdynamics.runs import faults
from lmdynamics.runs.folders import read_folder, refuse_other_formats
from lmdynamics.runs.revision_rules import nearest
from lmdynamics.runs.run import Run
from lmdynamics.training import layout
from lmdynamics.training.recipes import Recipe, load_recipe, recipe_from_dict
from lmdynamics.training.state import Log


def run_name(recipe: Recipe | None, overrides: Mapping[str, Any] | Iterable[str] = ()) -> str:
    """`grammar-mlm`, `grammar-mlm-smoke`, `grammar-mlm-seed1`, `grammar-mlm-lr=0.002`; without a recipe, its end."""
    settings = overrides.items() if isinstance(overrides, Mapping) else (str(item).split("=", 1) for item in overrides)
    parts = [] if recipe is None else [recipe.name]
    if recipe is not None:
        parts += [recipe.profile] if recipe.profile != "default" else []
        parts += [f"seed{recipe.seed}"] if recipe.seed else []
    for key, value in settings:
        if callable(value):
            raise UserError(f"a run with a function as {key} needs a name of its own: set name=")
        text = re.sub(r"[^\w.+-]+", "_", Path(str(value)).name).strip("_")
        parts += [f"{key.strip()}={text or 'none'}"] if recipe is None or key.strip() != "seed" else []
    return folder_name("-".join(parts)) if recipe else "".join(f"-{part}" for part in parts)


def name_on(device: str | None, name: str, usual: str | None = "cpu") -> str:
    """A run's default name, plus the kind of `device` if it differs from that of an existing run of this name or,
    without one, from `usual`."""
    kind = device and device_kind(device)
    folder = runs_dir() / name
    expected = begun_on(folder) if layout.is_begun(folder) else usual
    return name if kind in (None, expected) else folder_name(f"{name}-{kind}")


def folder_name(name: str) -> str:
    """A valid file name: if the name is too long, a hash replaces its end."""
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
    """Train `recipe` into `folder`, if it is not complete; other processes wait for the folder.

    For a branch, `parent` is recorded, and `prepare` copies its start into the folder. `log` as for `pretrain`.
    """
    if is_complete(folder, recipe, device):
        return
    from lmdynamics.training.loop import pretrain

    device = device or begun_on(folder) or default_device()
    need_device(device)
    if existing := layout.foreign_names(folder):
        raise UserError(
            f"{folder} has no run.json, but {' and '.join(existing)}, which training would overwrite; "
            "give this run another --name, or move them away"
        )
    with files.saving(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", 0)) == 0:
        waiting = partial(print_message, f"another process is training in {folder}; waiting for it")
        with files.locked(folder / layout.LOCK, waiting):
            if not is_complete(folder, recipe, device):
                layout.remove_incomplete(folder)
                begun = layout.is_begun(folder)
                if not begun and (folder / "run.json").exists():  # left by a training that was killed
                    layout.remove_unsaved(folder)
                try:
                    if not (folder / "run.json").exists():
                        facts = {"format": 1, "recipe": recipe.to_dict(), **_environment(device), "parent": parent}
                        files.write_json(folder / "run.json", facts)
                    if prepare and not begun:
                        prepare()
                    pretrain(recipe, folder, device=device, progress=progress, log=log)
                except BaseException:
                    if not layout.is_begun(folder):
                        (folder / layout.LOCK).unlink(missing_ok=True)
                        layout.remove_unsaved(folder)
                    raise
    else:
        pretrain(recipe, folder, device=device, progress=False, log=log)


def begun_on(folder: Path) -> str | None:
    """The kind of device on which the run in a folder was begun; None if there is no run, or the kind is unknown."""
    path = folder / "run.json"
    return trained_on(files.read_json(path, "a run")) if path.exists() and layout.is_begun(folder) else None


def is_complete(folder: Path, recipe: Recipe, device: str | None = None) -> bool:
    """Whether the last checkpoint exists.

    Raises UserError if the folder holds a run of another recipe, of another version of the built-in language, or of
    another kind of device than `device`. A folder without a saved step holds no run: a training that was killed early
    leaves one.
    """
    kind = device and device_kind(device)
    path = folder / "run.json"
    facts = files.read_json(path, "a run") if path.exists() else None
    if facts is None or not layout.is_begun(folder):
        return False
    stored = recipe_from_dict(facts["recipe"])
    if recipe.corpus["kind"] == "grammar":
        stored.check_language(folder.name, folder)
    old = flat(stored.to_dict())
    new = flat(recipe.to_dict())
    old.pop("checkpoints.save_seconds", None), new.pop("checkpoints.save_seconds", None)
    if old != new:
        key = next(k for k in sorted({*old, *new}) if old.get(k) != new.get(k))
        raise UserError(
            f"{folder} was trained with {key}={shortened(repr(old.get(key)))}, "
            f"now {shortened(repr(new.get(key)))} is requested; "
            "give this run another --name, or delete that folder"
        )
    if kind not in (None, begun := begun_on(folder)):
        raise UserError(
            f"{folder} was trained on {begun or 'a device of unknown kind'}, now {kind} is requested; "
            "give this run another --name, or delete that folder"
        )
    return layout.step_folder(folder / "checkpoints", recipe.training.steps).is_dir()


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def _environment(device: str) -> dict[str, Any]:
    """What is needed to reproduce this run: versions, commit, device."""
    import torch

    return {
        "versions": versions(),
        "git_commit": commit(),
        "device_kind": device_kind(device),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


FIXED = ("corpus.", "model.", "objective")  # settings that a branch cannot change


def branch_folder(
    run: Run, step: int, changes: Mapping[str, Any], name: str | None = None, device: str | None = None
) -> tuple[Path, dict[str, Any]]:
    """The folder of a branch, and the facts of its parent; raises if the folder holds another run."""
    default = name_on(device or run.trained_on, branch_name(run.name, step, changes), usual=run.trained_on)
    folder = runs_dir() / (name or default)
    weights = run[step].content_hash
    parent = {"run": run.name, "step": step, "weights": weights, "device_kind": run.trained_on, "changes": changes}
    existing = parent
    if (folder / "run.json").exists() and layout.is_begun(folder):
        Run(folder).recipe.check_language(folder.name, folder)
        existing = Run(folder).parent
    if existing is None or (existing["run"], existing["step"], existing["weights"]) != (run.name, step, weights):
        origin = f"is a branch of {existing['run']} at step {existing['step']}" if existing else "is not a branch"
        raise UserError(f"{folder} {origin}; give this branch another --name, or delete that folder")
    return folder, parent


def branched_recipe(
    run: Run, step: int, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a branch, and its changes to the parent's; raises as `branch` does."""
    if run.recipe is None:
        raise run.no_recipe_error()
    run.recipe.check_language(run.name, run.folder)
    checkpoint = run[step]
    if not checkpoint.has_optimizer_state:
        saved = [s for s in run.steps if run[s].has_optimizer_state]
        raise UserError(
            f"{run.name} has no optimizer state at step {step}, so it cannot be branched there; "
            + (f"the nearest steps with it are {nearest(saved, step)}" if saved else "set optimizer_state=all")
        )
    return changed_recipe(run.recipe, step, overrides)


def changed_recipe(
    recipe: Recipe, step: int, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a branch at `step` of a run, and its changes; raises if a change is not possible."""
    changed = recipe_from_dict(recipe.to_dict(), overrides)
    before, after = flat(recipe.to_dict()), flat(changed.to_dict())
    changes = {key: after[key] for key in after if before.get(key) != after[key]}
    if fixed := next((key for key in changes if key.startswith(FIXED)), None):
        raise UserError(
            f"a branch cannot change {fixed}: the weights at step {step} were trained with {before.get(fixed)!r}"
        )
    if changed.training.steps <= step:
        raise UserError(
            f"training ends at step {changed.training.steps}, so at step {step} nothing is left to do; "
            "branch earlier, or set a larger steps"
        )
    return changed, changes


def branch_name(parent: str, step: int, changes: Mapping[str, Any]) -> str:
    """`grammar-mlm@512-lr=0.001`: the parent, the step and the changes."""
    leaves = {key.rpartition(".")[2]: value for key, value in changes.items()}
    return folder_name(f"{parent}@{step}" + run_name(None, leaves))


def prepare_branch(run: Run, step: int, folder: Path) -> None:
    """Copy the start of a branch into its folder; the checkpoint last, since training resumes from it."""
    with files.saving(str(folder)):
        for shared in ("tokenizer", "held_out"):
            if (run.folder / shared).is_dir():
                with files.atomic_folder(folder / shared) as temporary:
                    shutil.copytree(run.folder / shared, temporary, dirs_exist_ok=True)
        with files.atomic_file(folder / "log.parquet") as temporary:
            run.log.filter(pl.col("step") < step).write_parquet(temporary)
        with files.atomic_folder(layout.step_folder(folder / "checkpoints", step)) as temporary:
            shutil.copytree(run[step].folder, temporary, dirs_exist_ok=True)


@dataclass(frozen=True, repr=False)
class TrainedRun(Run):
    """A run with a recipe."""

    def branch(
        self, step: int, *, name: str | None = None, device: str | None = None, progress=None, **changes
    ) -> "Run":
        """Branch at `step` under a changed recipe: `run.branch(512, masking=0.3)`; see `lmdynamics.runs.trained`.

        Dotted settings: `**{"regularizer.form": "uniform"}`. Without changes it repeats the parent bit for bit.
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
    """Train the run of a recipe, resume it, or open it if it is complete.

    `name` is its folder under the runs folder; by default it has those of profile, seed, overrides
    and kind of device that are not the usual ones.
    `device`: such as `cpu`, `cuda:1` or `mps`. By default an existing run is opened or resumed whatever device trained
    it, and a new one is trained on the accelerator, if there is one.
    Raises UserError if the folder holds a run of another recipe or kind of device, or the device does not exist.
    """
    overrides = dict(overrides) if isinstance(overrides, Mapping) else list(overrides)
    loaded = load_recipe(recipe, profile, seed, overrides)
    folder = runs_dir() / (name or name_on(device, run_name(loaded, overrides)))
    build(loaded, folder, device=device, progress=progress)
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
    """Train the branch of `run` at `step` under changed settings, resume it, or open it if it is complete.

    `overrides` as for `train`: `masking`, `stages`, `lr`, `seed`, `steps`, …; settings of the corpus, the model and the
    objective cannot change. The default `name` has the parent's name, the step and the changes. `device` is
    by default of the kind that trained the parent. `log` as for `pretrain`.

    Raises UserError if `run` has no optimizer state at `step`, a change is not possible, nothing is left to train, or
    the folder of that name holds another run.
    """
    changed, changes = branched_recipe(run, step, overrides)
    folder, parent = branch_folder(run, step, changes, name, device)
    device = device or run.trained_on
    prepare = partial(prepare_branch, run, step, folder)
    build(changed, folder, device=device, progress=progress, parent=parent, prepare=prepare, log=log)
    return open_folder(folder)


def open_folder(folder: Path, part: str = "", revisions: str | None = None, address: str = "") -> Run:
    """The run in a folder, whose known faults are reported; see `open_run`. `address`: the name for that report.

    Raises UserError if the folder has no checkpoint.
    """
    folder = folder.resolve()
    content = read_folder(folder, part, revisions)
    if not content.steps:
        raise UserError(
            f"{folder} has no checkpoints (step-000512/, checkpoint-500/ ...); "
            + (content.notes[0] if content.notes else "is training still at step 0?")
        )
    kind = TrainedRun if (folder / "run.json").exists() else Run
    run = kind(folder, part, revisions)
    if run.recipe:
        precision = PRECISIONS[run.recipe.training.precision]
        note_computed(run.trained_on or "unknown", precision, run.facts.get("device") or "unknown")
    refuse_other_formats(list(content.steps.values()))
    for note in content.notes:
        print_once(f"{run.name}: {note}")
    faults.report_faults(run.name, run.known_faults, address or str(folder))
    return run

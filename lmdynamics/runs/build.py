"""Make a run from a recipe, or go on with one that was stopped."""

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lmdynamics.devices import default_device, device_kind, device_name, need_device, trained_on
from lmdynamics.environment import commit, versions
from lmdynamics.errors import UserError, shortened
from lmdynamics.paths import runs_dir
from lmdynamics.runs import store
from lmdynamics.runs.run import Run, open_run
from lmdynamics.training.recipes import Recipe, load_recipe, recipe_from_dict
from lmdynamics.training.state import Log


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
    return build(made, folder, device=device, progress=progress)


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
    taken = begun_on(folder) if store.is_begun(folder) else usual
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
) -> Run:
    """Train `recipe` into `folder`; other processes that want the same folder wait.

    A branch names its `parent`, and `prepare` puts into the folder what it starts from. `log` as for `pretrain`.
    """
    if is_complete(folder, recipe, device):
        return open_run(folder)
    from lmdynamics.training.loop import pretrain

    device = device or begun_on(folder) or default_device()
    need_device(device)
    if lying := store.foreign(folder):
        raise UserError(
            f"{folder} has no run.json, but {' and '.join(lying)}, which a training would write over; "
            "give this run another --name, or move them away"
        )
    with store.saving(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    if _is_main_process():
        with store.locked(folder, say=lambda line: print(f"lmdynamics: {line}", file=sys.stderr)):
            if not is_complete(folder, recipe, device):
                store.sweep(folder)
                begun = store.is_begun(folder)
                if not begun and (folder / "run.json").exists():  # of a training that was killed
                    store.forget(folder)
                try:
                    if not (folder / "run.json").exists():
                        facts = {"format": 1, "recipe": recipe.to_dict(), **_circumstances(device), "parent": parent}
                        store.write_json(folder / "run.json", facts)
                    if prepare and not begun:
                        prepare()
                    pretrain(recipe, folder, device=device, progress=progress, log=log)
                except BaseException:
                    if not store.is_begun(folder):
                        (folder / "run.lock").unlink(missing_ok=True)
                        store.forget(folder)
                    raise
    else:
        pretrain(recipe, folder, device=device, progress=False, log=log)
    return open_run(folder)


def begun_on(folder: Path) -> str | None:
    """The kind of device on which a run in a folder was begun; None if there is none, or it is not known."""
    path = folder / "run.json"
    return trained_on(store.read_json(path, "a run")) if path.exists() and store.is_begun(folder) else None


def is_complete(folder: Path, recipe: Recipe, device: str | None = None) -> bool:
    """Whether the last checkpoint is there.

    Raises UserError if the folder holds a run of another recipe, or one of another kind of device than `device`. A
    folder where nothing was saved holds no run: a training that was killed at once leaves one.
    """
    kind = device and device_kind(device)
    path = folder / "run.json"
    facts = store.read_json(path, "a run") if path.exists() else None
    if facts is None or not store.is_begun(folder):
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
    return store.step_folder(folder / "checkpoints", recipe.training.steps).is_dir()


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def _is_main_process() -> bool:
    import os

    return int(os.environ.get("RANK", 0)) == 0


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

"""Make a run from a recipe, or go on with one that was stopped."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lmdynamics import files
from lmdynamics.devices import default_device, device_kind, device_name, need_device, trained_on
from lmdynamics.environment import commit, versions
from lmdynamics.errors import UserError, shortened
from lmdynamics.paths import runs_dir
from lmdynamics.training import layout
from lmdynamics.training.recipes import Recipe, recipe_from_dict
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
    if _is_main_process():
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

"""Make a run from a recipe, or go on with one that was stopped."""

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

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

    `name` is its folder under the runs folder; by default it tells profile, seed and overrides apart.
    Raises UserError if the folder holds a run of another recipe.
    """
    overrides = dict(overrides) if isinstance(overrides, Mapping) else list(overrides)
    made = load_recipe(recipe, profile, seed, overrides)
    return build(made, runs_dir() / (name or run_name(made, overrides)), device=device, progress=progress)


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
    if is_complete(folder, recipe):
        return open_run(folder)
    from lmdynamics.training.loop import pretrain

    with store.saving(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    if _is_main_process():
        with store.locked(folder, say=lambda line: print(f"lmdynamics: {line}", file=sys.stderr)):
            if not is_complete(folder, recipe):
                store.sweep(folder)
                begun = store.is_begun(folder)
                if not begun and (folder / "run.json").exists():  # of a training that was killed
                    store.forget(folder)
                try:
                    if not (folder / "run.json").exists():
                        facts = {"format": 1, "recipe": recipe.to_dict(), **_circumstances(), "parent": parent}
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


def is_complete(folder: Path, recipe: Recipe) -> bool:
    """Whether the last checkpoint is there. Raises UserError if the folder holds a run of another recipe.

    A folder where nothing was saved holds no run: a training that was killed at once leaves one.
    """
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
    return store.step_folder(folder / "checkpoints", recipe.training.steps).is_dir()


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def _is_main_process() -> bool:
    import os

    return int(os.environ.get("RANK", 0)) == 0


def _circumstances() -> dict[str, Any]:
    """What a reader needs to make this run again: versions, commit, device."""
    import torch

    return {
        "versions": versions(),
        "git_commit": commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }

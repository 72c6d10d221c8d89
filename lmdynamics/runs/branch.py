"""Branch a run: continue training from one of its checkpoints under a changed recipe.

Weights and optimizer state come from the checkpoint; data order, masks and dropout are functions of seed and step. So
a branch without changes repeats its parent bit for bit on the same device, and any difference is caused by the change.
A branch is a run in a folder of its own, which begins at the step it left.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from lmdynamics import files
from lmdynamics.errors import UserError, shortened
from lmdynamics.paths import runs_dir
from lmdynamics.runs.build import flat, folder_name, name_on, run_name
from lmdynamics.runs.run import Run, checkpoint_folders
from lmdynamics.training import layout
from lmdynamics.training.recipes import Recipe, recipe_from_dict

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
        nearest = ", ".join(map(str, sorted(sorted(kept, key=lambda s: abs(s - step))[:3])))
        raise UserError(
            f"{run.name} keeps no optimizer state at step {step}, so it cannot go on from there; "
            + (f"the nearest steps with one are {nearest}" if kept else "train it with optimizer_state=all")
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


@dataclass(frozen=True)
class Cost:
    """What a branch will take, judged by its parent: steps, seconds (its pace), bytes on disk."""

    steps: int
    seconds: float | None  # None where the parent's log does not tell
    bytes: int

    def __str__(self) -> str:
        time = "an unknown time" if self.seconds is None else f"about {max(1, round(self.seconds)):,} s"
        return f"{self.steps:,} steps, {time} at the parent's pace, {self.bytes / 1e6:,.0f} MB"


def branch_cost(run: Run, step: int, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Cost:
    """What `branch` with the same arguments will cost; raises as it does."""
    changed, _ = branched_recipe(run, step, overrides)
    steps = changed.training.steps - step
    pace = run.log.select(pl.col("seconds").diff().median()).item() if len(run.log) > 1 else None
    sizes = [sum(file.stat().st_size for file in run[s].folder.iterdir()) for s in run.steps if s >= step]
    return Cost(steps, None if pace is None else pace * steps, sum(sizes))


def family(runs: Iterable[Run]) -> list[tuple[int, Run]]:
    """Runs with their generation (0, 1, …), each branch right below its parent, by the step it leaves at."""
    runs = {run.name: run for run in runs}
    children: dict[str | None, list[Run]] = {}
    for run in runs.values():
        parent = run.parent["run"] if run.parent and run.parent["run"] in runs else None
        children.setdefault(parent, []).append(run)

    def below(name: str | None, generation: int) -> list[tuple[int, Run]]:
        order = sorted(children.get(name, []), key=lambda run: (run.parent["step"] if name else 0, run.name))
        return [pair for run in order for pair in ((generation, run), *below(run.name, generation + 1))]

    return below(None, 0)


def history(run: Run) -> dict[int, Run]:
    """The checkpoints of a run and, before it was branched off, those of its parent: by step, the run to look in."""
    parent, before = run.parent, {}
    if parent and (runs_dir() / parent["run"]).is_dir():
        before = {step: of for step, of in history(Run(runs_dir() / parent["run"])).items() if step < parent["step"]}
    return before | dict.fromkeys(checkpoint_folders(run.folder), run)


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


def family_table(runs: Iterable[Run], labels: Mapping[str, str] | None = None) -> pl.DataFrame:
    """The family as rows for a chart: run (its label), generation, start and end step, parent (label), changes."""
    labels = labels or {}
    ordered = family(runs)
    known = {run.name for _, run in ordered}
    rows = [
        {
            "run": labels.get(run.name, run.name),
            "generation": generation,
            "start": run.steps[0],
            "end": run.steps[-1],
            "parent": labels.get(run.parent["run"], run.parent["run"])
            if run.parent and run.parent["run"] in known
            else None,
            "changes": ", ".join(_said(key, value) for key, value in run.parent["changes"].items())
            if run.parent
            else "",
        }
        for generation, run in ordered
    ]
    schema = {"run": pl.String, "generation": pl.Int64, "start": pl.Int64, "end": pl.Int64}
    return pl.DataFrame(rows, {**schema, "parent": pl.String, "changes": pl.String})


def _said(key: str, value: Any) -> str:
    """A change in few words: `λ = 0` where the penalty is switched off for good."""
    if key == "regularizer.stages" and len(value) < 2:
        return f"λ = {value[0][1]:g}" if value else "λ = 0"
    return f"{key.rpartition('.')[2]} = {shortened(str(value))}"

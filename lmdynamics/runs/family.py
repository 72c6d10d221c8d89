"""Branches of a run: their cost, which runs were branched from which, and the folders of their checkpoints."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from lmdynamics.errors import shortened
from lmdynamics.paths import runs_dir
from lmdynamics.runs.run import Run, checkpoint_folders
from lmdynamics.runs.trained import branched_recipe


@dataclass(frozen=True)
class Cost:
    """The cost of a branch, estimated from its parent: steps, seconds, bytes on disk."""

    steps: int
    seconds: float | None  # None if the parent's log has too few rows
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

    def descendants(name: str | None, generation: int) -> list[tuple[int, Run]]:
        order = sorted(children.get(name, []), key=lambda run: (run.parent["step"] if name else 0, run.name))
        return [pair for run in order for pair in ((generation, run), *descendants(run.name, generation + 1))]

    return descendants(None, 0)


def history(run: Run) -> dict[int, Run]:
    """The checkpoints of a run and, before its branch step, those of its parent: by step, the run that has it."""
    parent, inherited = run.parent, {}
    if parent and (runs_dir() / parent["run"]).is_dir():
        earlier = history(Run(runs_dir() / parent["run"])).items()
        inherited = {step: owner for step, owner in earlier if step < parent["step"]}
    return inherited | dict.fromkeys(checkpoint_folders(run.folder), run)


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
            "changes": ", ".join(_describe_change(key, value) for key, value in run.parent["changes"].items())
            if run.parent
            else "",
        }
        for generation, run in ordered
    ]
    schema = {"run": pl.String, "generation": pl.Int64, "start": pl.Int64, "end": pl.Int64}
    return pl.DataFrame(rows, {**schema, "parent": pl.String, "changes": pl.String})


def _describe_change(key: str, value: Any) -> str:
    """A change as a short text: `λ = 0` if the penalty is switched off for the rest of training."""
    if key == "regularizer.stages" and len(value) < 2:
        return f"λ = {value[0][1]:g}" if value else "λ = 0"
    return f"{key.rpartition('.')[2]} = {shortened(str(value))}"

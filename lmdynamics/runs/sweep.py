"""All runs of an experiment, made by one call: conditions × seeds, several at a time, each resumed where it stopped.

A plan is a TOML file in `data/sweeps` (or yours): a recipe, and named conditions, each a set of overrides. A condition
with `of` and `at` is a branch of another condition's run at that step.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from lmdynamics import files, jobs
from lmdynamics.devices import default_device, device_kind, need_device
from lmdynamics.errors import UserError, did_you_mean, one_line
from lmdynamics.paths import runs_dir
from lmdynamics.progress import bar
from lmdynamics.runs.folders import find_folder
from lmdynamics.runs.trained import branch, branch_name, changed_recipe, flat, name_on, open_folder, run_name, train
from lmdynamics.training import layout
from lmdynamics.training.recipes import Recipe, checkpoint_steps, load_recipe, parse_overrides

POLL = 0.5  # seconds between two looks at how far the runs are


@dataclass(frozen=True)
class Condition:
    """One way of training: overrides of the recipe; or a branch `at` a step of the condition `of`."""

    name: str
    set: Mapping[str, Any] = field(default_factory=dict)
    of: str | None = None
    at: float | None = None  # a step, or a share of training below 1; the nearest checkpoint is taken


@dataclass(frozen=True)
class Plan:
    """An experiment: a recipe under several conditions."""

    recipe: str
    conditions: tuple[Condition, ...]
    title: str = ""


def plan_names() -> list[str]:
    return files.shipped_tables("sweeps")


def read_plan(name: str) -> Plan:
    """A plan by name (`masking`, `syntax`) or from a TOML file.

    Raises UserError if there is none, a condition has settings a plan does not know, or it is a branch of nothing.
    """
    path = files.find_table("sweeps", name, "plan")
    table = files.read_toml(path, "a plan")
    try:
        recipe, conditions = table["recipe"], table["conditions"]
    except KeyError as missing:
        raise UserError(f"{path} has no {missing}; a plan names a recipe and its conditions") from None
    if not (isinstance(recipe, str) and isinstance(conditions, dict) and conditions):
        raise UserError(f"{path}: a plan names a recipe (in quotes) and its conditions, [conditions.NAME] each")
    made = tuple(
        _condition(f"{path}: condition {name!r}", name, given, conditions) for name, given in conditions.items()
    )
    return Plan(recipe, made, table.get("title", ""))


def _condition(where: str, name: str, given: Any, conditions: Mapping[str, Any]) -> Condition:
    if not (isinstance(given, dict) and isinstance(given.get("set", {}), dict)):
        raise UserError(f"{where} is {given!r}; write [conditions.NAME] and set.KEY = VALUE")
    if unknown := sorted(set(given) - {"set", "of", "at"}):
        raise UserError(f"{where} has no setting {unknown[0]!r}; it knows set, of and at")
    of, at = given.get("of"), given.get("at")
    if (of is None) != (at is None) or (of is not None and (of == name or of not in conditions)):
        raise UserError(f"{where} is a branch; name another condition (of) and a step (at)")
    if at is not None and (type(at) not in (int, float) or not at >= 0):
        raise UserError(f"{where} has at = {at!r}; give a step, or a share of training between 0 and 1")
    return Condition(name, flat(given.get("set", {})), of, at)


def sweep(
    plan: str | Plan,
    profile: str = "default",
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    only: Sequence[str] | None = None,
    workers: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> pl.DataFrame:
    """Train every condition of a plan with every seed: several at a time, those already there opened, one bar.

    Rows: `condition`, `seed`, `run` (a name for `open_run`), `error` (null where the run is complete). `workers`: runs
    at a time, by default one per core, with one thread each, or one per visible GPU. `device`: as for
    `train`. A run that fails does not stop the others. Ctrl-C saves what is running; the same call goes on.

    Raises UserError if plan, conditions (`only`) or overrides make no sense, two conditions come to the same run, or
    something is to be trained and the device is not there; nothing is trained then.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; at least 1 is needed")
    plan = read_plan(plan) if isinstance(plan, str) else plan
    known = [condition.name for condition in plan.conditions]
    for name in only or []:
        if name not in known:
            raise UserError(f"the plan has no condition {name!r}{did_you_mean(name, known)}")
    wanted = {*(only or known)}
    wanted |= {c.of for c in plan.conditions if c.name in wanted and c.of}
    overrides = parse_overrides(overrides)
    runs = [
        _job(plan, condition, profile, seed, overrides, device)
        for seed in seeds
        for condition in plan.conditions
        if condition.name in wanted
    ]
    made: dict[str, Job] = {}
    for job in runs:
        if (same := made.setdefault(job.run, job)) is not job:
            raise UserError(
                f"{same.condition!r}, seed {same.seed}, and {job.condition!r}, seed {job.seed}, are the same run, "
                f"{job.run}; change what is set, or name the conditions wanted (only)"
            )
    errors = _execute(runs, workers, device, progress)
    rows = [(job.condition, job.seed, job.run, errors.get(job.run)) for job in runs if job.condition in (only or known)]
    schema = {"condition": pl.String, "seed": pl.Int64, "run": pl.String, "error": pl.String}
    return pl.DataFrame(rows, schema, orient="row")


@dataclass(frozen=True)
class Job:
    """One run to be made; a branch waits for the run it leaves."""

    condition: str
    seed: int
    run: str
    steps: int  # at which it ends
    recipe: str
    profile: str
    overrides: Mapping[str, Any]
    parent: str | None = None
    at: int = 0


def _job(
    plan: Plan, condition: Condition, profile: str, seed: int, overrides: Mapping[str, Any], device: str | None = None
) -> Job:
    if condition.of is None:
        own = {**condition.set, **overrides}
        recipe = load_recipe(plan.recipe, profile, seed, own)
        name = name_on(device, run_name(recipe, own))
        return Job(condition.name, seed, name, recipe.training.steps, plan.recipe, profile, own)
    origin = next(c for c in plan.conditions if c.name == condition.of)
    if origin.of is not None:
        raise UserError(f"condition {condition.name!r} is a branch of a branch; name a condition that is trained whole")
    parent = _job(plan, origin, profile, seed, overrides, device)
    recipe = load_recipe(plan.recipe, profile, seed, parent.overrides)
    at = _step_near(recipe, condition.at)
    changed, changes = changed_recipe(recipe, at, condition.set)  # refuses before anything is trained
    kind = device and device_kind(device)  # its parent's, so that both differ in what is changed only
    name, steps = name_on(kind, branch_name(parent.run, at, changes), usual=kind), changed.training.steps
    return Job(condition.name, seed, name, steps, plan.recipe, profile, condition.set, parent.run, at)


def _step_near(recipe: Recipe, at: float) -> int:
    """The checkpoint that keeps optimizer state nearest to a step, or to a share of training."""
    total, keep = recipe.training.steps, recipe.checkpoints
    wanted = at * total if at < 1 else at
    if keep.optimizer_state == "none":
        raise UserError(f"{recipe.name} keeps no optimizer state, so it has no branches; set optimizer_state=all")
    steps = checkpoint_steps(total, keep.per_doubling if keep.optimizer_state == "all" else 1)
    return min(steps[:-1], key=lambda step: abs(step - wanted))


def _execute(runs: list[Job], workers: int | None, device: str | None, progress: bool | None) -> dict[str, str]:
    """Train the runs, a branch after the run it leaves; returns what went wrong, by run."""
    errors: dict[str, str] = {}
    waiting = []
    for job in runs:  # what is there already needs no process of its own
        if _progress(job) < job.steps:
            waiting.append(job)
            continue
        try:
            _make(job, device)
        except UserError as error:
            errors[job.run] = str(error)
    if not waiting:
        return errors
    kind = need_device(device or default_device())
    cores, gpus = jobs.available_cores(), jobs.visible_gpus() if kind == "cuda" else []
    if device and gpus and device != kind:  # one by number; its workers see no other
        gpus, device = [gpus[int(device.partition(":")[2])]], kind
    workers = workers or len(gpus) or (cores if kind == "cpu" else 1)

    running: dict[Future, Job] = {}
    with (
        bar(sum(job.steps for job in runs), f"{len(runs)} runs", progress, unit="step") as shown,
        jobs.Pool(workers, threads=max(1, cores // workers), gpus=gpus) as pool,
    ):
        try:
            while waiting or running:
                there = {job.run for job in runs} - {job.run for job in (*waiting, *running.values())}
                for job in [job for job in waiting if job.parent is None or job.parent in there]:
                    waiting.remove(job)
                    if job.parent in errors:
                        errors[job.run] = f"its parent {job.parent} failed: {errors[job.parent]}"
                    else:
                        running[pool.submit(_make, job, device)] = job
                for future in wait(running, POLL, FIRST_COMPLETED).done:
                    job = running.pop(future)
                    if fault := future.exception():
                        errors[job.run] = one_line(fault)
                shown.update(sum(map(_progress, runs)) - shown.n)
                shown.set_postfix_str(f"{len(waiting) + len(running)} to do", refresh=False)
        except KeyboardInterrupt:  # a run that is stopped saves where it is
            raise KeyboardInterrupt("stopped; what was trained is saved, and the same command goes on") from None
    return errors


def _make(job: Job, device: str | None) -> None:
    options = {"name": job.run, "device": device, "progress": False}
    if job.parent is None:
        train(job.recipe, job.profile, job.seed, job.overrides, **options)
    else:
        branch(open_folder(*find_folder(job.parent)), job.at, job.overrides, **options)


def _progress(job: Job) -> int:
    """How many of its steps a run is known to have made: saved ones."""
    return max(layout.saved_steps(runs_dir() / job.run), default=0)

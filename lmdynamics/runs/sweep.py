"""All runs of an experiment, trained by one call: conditions × seeds, several at a time; stopped runs are resumed.

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

POLL = 0.5  # seconds between two checks of the runs' progress


@dataclass(frozen=True)
class Condition:
    """One condition: overrides of the recipe; with `parent`, a branch of that condition's run `at` a step."""

    name: str
    set: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None
    at: float | None = None  # a step, or a share of training below 1; the nearest checkpoint is used


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

    Raises UserError if there is no such plan, a condition has an unknown setting, or a branch has no parent condition.
    """
    path = files.find_table("sweeps", name, "plan")
    table = files.read_toml(path, "a plan")
    try:
        recipe, conditions = table["recipe"], table["conditions"]
    except KeyError as missing:
        raise UserError(f"{path} has no {missing}; a plan names a recipe and its conditions") from None
    if not (isinstance(recipe, str) and isinstance(conditions, dict) and conditions):
        raise UserError(f"{path}: a plan names a recipe (in quotes) and its conditions, [conditions.NAME] each")
    read = tuple(
        _condition(f"{path}: condition {name!r}", name, settings, conditions) for name, settings in conditions.items()
    )
    return Plan(recipe, read, table.get("title", ""))


def _condition(label: str, name: str, settings: Any, conditions: Mapping[str, Any]) -> Condition:
    if not (isinstance(settings, dict) and isinstance(settings.get("set", {}), dict)):
        raise UserError(f"{label} is {settings!r}; write [conditions.NAME] and set.KEY = VALUE")
    if unknown := sorted(set(settings) - {"set", "of", "at"}):
        raise UserError(f"{label} has no setting {unknown[0]!r}; the settings are set, of and at")
    parent, at = settings.get("of"), settings.get("at")
    if (parent is None) != (at is None) or (parent is not None and (parent == name or parent not in conditions)):
        raise UserError(f"{label} is a branch; name another condition (of) and a step (at)")
    if at is not None and (type(at) not in (int, float) or not at >= 0):
        raise UserError(f"{label} has at = {at!r}; give a step, or a share of training between 0 and 1")
    return Condition(name, flat(settings.get("set", {})), parent, at)


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
    """Train every condition of a plan with every seed, several at a time; complete runs are not trained again.

    Rows: `condition`, `seed`, `run` (a name for `open_run`), `error` (null where the run is complete). `workers`: runs
    at a time, by default one per core, with one thread each, or one per visible GPU. `device`: as for
    `train`. A run that fails does not stop the others. Ctrl-C saves running trainings; the same call resumes them.

    Raises UserError, before anything is trained, if plan, conditions (`only`) or overrides are invalid, two conditions
    are the same run, or a run must be trained and the device is missing.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; at least 1 is needed")
    plan = read_plan(plan) if isinstance(plan, str) else plan
    known = [condition.name for condition in plan.conditions]
    for name in only or []:
        if name not in known:
            raise UserError(f"the plan has no condition {name!r}{did_you_mean(name, known)}")
    selected = {*(only or known)}
    selected |= {c.parent for c in plan.conditions if c.name in selected and c.parent}
    overrides = parse_overrides(overrides)
    runs = [
        _job(plan, condition, profile, seed, overrides, device)
        for seed in seeds
        for condition in plan.conditions
        if condition.name in selected
    ]
    jobs_by_run: dict[str, Job] = {}
    for job in runs:
        if (same := jobs_by_run.setdefault(job.run, job)) is not job:
            raise UserError(
                f"{same.condition!r}, seed {same.seed}, and {job.condition!r}, seed {job.seed}, are the same run, "
                f"{job.run}; change their settings, or select conditions (only)"
            )
    errors = _execute(runs, workers, device, progress)
    rows = [(job.condition, job.seed, job.run, errors.get(job.run)) for job in runs if job.condition in (only or known)]
    schema = {"condition": pl.String, "seed": pl.Int64, "run": pl.String, "error": pl.String}
    return pl.DataFrame(rows, schema, orient="row")


def parse_seeds(text: str) -> list[int]:
    """Seeds from a command line: `0,1,2`."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text!r}: give whole numbers separated by commas, such as 0,1,2") from None


@dataclass(frozen=True)
class Job:
    """One run to train; a branch waits for its parent."""

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
    if condition.parent is None:
        overrides = {**condition.set, **overrides}
        recipe = load_recipe(plan.recipe, profile, seed, overrides)
        name = name_on(device, run_name(recipe, overrides))
        return Job(condition.name, seed, name, recipe.training.steps, plan.recipe, profile, overrides)
    origin = next(c for c in plan.conditions if c.name == condition.parent)
    if origin.parent is not None:
        raise UserError(f"condition {condition.name!r} is a branch of a branch; name one that is not a branch")
    parent = _job(plan, origin, profile, seed, overrides, device)
    recipe = load_recipe(plan.recipe, profile, seed, parent.overrides)
    at = _step_near(recipe, condition.at)
    changed, changes = changed_recipe(recipe, at, condition.set)  # refuses before anything is trained
    kind = device and device_kind(device)  # its parent's, so that they differ only in the changes
    name, steps = name_on(kind, branch_name(parent.run, at, changes), usual=kind), changed.training.steps
    return Job(condition.name, seed, name, steps, plan.recipe, profile, condition.set, parent.run, at)


def _step_near(recipe: Recipe, at: float) -> int:
    """The checkpoint with optimizer state nearest to a step, or to a share of training."""
    total, saved = recipe.training.steps, recipe.checkpoints
    target = at * total if at < 1 else at
    if saved.optimizer_state == "none":
        raise UserError(f"{recipe.name} saves no optimizer state, so it cannot be branched; set optimizer_state=all")
    steps = checkpoint_steps(total, saved.per_doubling if saved.optimizer_state == "all" else 1)
    return min(steps[:-1], key=lambda step: abs(step - target))


def _execute(runs: list[Job], workers: int | None, device: str | None, progress: bool | None) -> dict[str, str]:
    """Train the runs, a branch after its parent; return the errors by run."""
    errors: dict[str, str] = {}
    waiting = []
    for job in runs:  # a complete run needs no process
        if _progress(job) < job.steps:
            waiting.append(job)
            continue
        try:
            _train(job, device)
        except UserError as error:
            errors[job.run] = str(error)
    if not waiting:
        return errors
    kind = need_device(device or default_device())
    cores, gpus = jobs.available_cores(), jobs.visible_gpus() if kind == "cuda" else []
    if device and gpus and device != kind:  # one GPU by number, the only one that workers see
        gpus, device = [gpus[int(device.partition(":")[2])]], kind
    workers = workers or len(gpus) or (cores if kind == "cpu" else 1)

    running: dict[Future, Job] = {}
    with (
        bar(sum(job.steps for job in runs), f"{len(runs)} runs", progress, unit="step") as progress_bar,
        jobs.Pool(workers, threads=max(1, cores // workers), gpus=gpus) as pool,
    ):
        try:
            while waiting or running:
                done = {job.run for job in runs} - {job.run for job in (*waiting, *running.values())}
                for job in [job for job in waiting if job.parent is None or job.parent in done]:
                    waiting.remove(job)
                    if job.parent in errors:
                        errors[job.run] = f"its parent {job.parent} failed: {errors[job.parent]}"
                    else:
                        running[pool.submit(_train, job, device)] = job
                for future in wait(running, POLL, FIRST_COMPLETED).done:
                    job = running.pop(future)
                    if error := future.exception():
                        errors[job.run] = one_line(error)
                progress_bar.update(sum(map(_progress, runs)) - progress_bar.n)
                progress_bar.set_postfix_str(f"{len(waiting) + len(running)} to do", refresh=False)
        except KeyboardInterrupt:  # a stopped run saves a checkpoint
            raise KeyboardInterrupt("stopped; the trained steps are saved, and the same command resumes") from None
    return errors


def _train(job: Job, device: str | None) -> None:
    options = {"name": job.run, "device": device, "progress": False}
    if job.parent is None:
        train(job.recipe, job.profile, job.seed, job.overrides, **options)
    else:
        branch(open_folder(*find_folder(job.parent)), job.at, job.overrides, **options)


def _progress(job: Job) -> int:
    """How many steps of a run are saved."""
    return max(layout.saved_steps(runs_dir() / job.run), default=0)

"""All runs of an experiment, made by one call: conditions × seeds, several at a time, each resumed where it stopped.

A plan is a TOML file in `data/sweeps` (or yours): a recipe, and named conditions, each a set of overrides. A condition
with `of` and `at` is a branch of another condition's run at that step.
"""

import os
import signal
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl

from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.paths import runs_dir, shipped
from lmdynamics.progress import bar
from lmdynamics.runs import store
from lmdynamics.runs.branch import branch
from lmdynamics.runs.build import run_name, train
from lmdynamics.runs.run import open_run
from lmdynamics.training.recipes import Recipe, checkpoint_steps, load_recipe, parse_overrides, recipe_from_dict

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
    return sorted(path.stem for path in shipped("sweeps").glob("*.toml"))


def read_plan(name: str) -> Plan:
    """A plan by name (`masking`, `syntax`) or from a TOML file.

    Raises
    ------
    UserError
        If there is none, a condition has settings a plan does not know, or it is a branch of nothing.
    """
    path = Path(name) if name.endswith(".toml") else shipped("sweeps") / f"{name}.toml"
    if not path.is_file():
        raise UserError(f"there is no plan {name!r}{did_you_mean(name, plan_names())}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        recipe, conditions = table["recipe"], table["conditions"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
        raise UserError(f"{path} is not a plan: {broken}") from None
    except KeyError as missing:
        raise UserError(f"{path} has no {missing}; a plan names a recipe and its conditions") from None
    made = []
    for condition, given in conditions.items():
        if unknown := sorted(set(given) - {"set", "of", "at"}):
            raise UserError(f"{path}: condition {condition!r} has no setting {unknown[0]!r}; it knows set, of and at")
        if (given.get("of") is None) != (given.get("at") is None) or given.get("of", condition) not in conditions:
            raise UserError(f"{path}: condition {condition!r} is a branch; name another condition (of) and a step (at)")
        made.append(Condition(condition, **given))
    return Plan(recipe, tuple(made), table.get("title", ""))


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
    at a time, by default one per core, with one thread each, or one per visible GPU. A run that fails does not stop
    the others. Ctrl-C saves what is running; the same call goes on.

    Raises
    ------
    UserError
        If plan, conditions (`only`) or overrides make no sense; nothing is trained then.
    """
    plan = read_plan(plan) if isinstance(plan, str) else plan
    known = [condition.name for condition in plan.conditions]
    for name in only or []:
        if name not in known:
            raise UserError(f"the plan has no condition {name!r}{did_you_mean(name, known)}")
    wanted = {*(only or known)}
    wanted |= {c.of for c in plan.conditions if c.name in wanted and c.of}
    overrides = parse_overrides(overrides)
    jobs = [
        _job(plan, condition, profile, seed, overrides)
        for seed in seeds
        for condition in plan.conditions
        if condition.name in wanted
    ]
    errors = _execute(jobs, workers, device, progress)
    rows = [(job.condition, job.seed, job.run, errors.get(job.run)) for job in jobs if job.condition in (only or known)]
    schema = {"condition": pl.String, "seed": pl.Int64, "run": pl.String, "error": pl.String}
    return pl.DataFrame(rows, schema, orient="row")


@dataclass(frozen=True)
class Job:
    """One run to be made; a branch waits for the run it leaves."""

    condition: str
    seed: int
    run: str
    steps: int  # that it trains
    recipe: str
    profile: str
    overrides: Mapping[str, Any]
    parent: str | None = None
    at: int = 0


def _job(plan: Plan, condition: Condition, profile: str, seed: int, overrides: Mapping[str, Any]) -> Job:
    if condition.of is None:
        own = {**condition.set, **overrides}
        recipe = load_recipe(plan.recipe, profile, seed, own)
        return Job(condition.name, seed, run_name(recipe, own), recipe.training.steps, plan.recipe, profile, own)
    origin = next(c for c in plan.conditions if c.name == condition.of)
    parent = _job(plan, origin, profile, seed, overrides)
    if parent.parent is not None:
        raise UserError(f"condition {condition.name!r} is a branch of a branch; name a condition that is trained whole")
    recipe = load_recipe(plan.recipe, profile, seed, parent.overrides)
    recipe_from_dict(recipe.to_dict(), condition.set)  # refuses what cannot be set before anything is trained
    at = _step_near(recipe, condition.at)
    name = f"{parent.run}@{at}{run_name(None, condition.set)}"
    return Job(condition.name, seed, name, parent.steps, plan.recipe, profile, condition.set, parent.run, at)


def _step_near(recipe: Recipe, at: float) -> int:
    """The checkpoint that keeps optimizer state nearest to a step, or to a share of training."""
    total, keep = recipe.training.steps, recipe.checkpoints
    wanted = at * total if at < 1 else at
    if keep.optimizer_state == "none":
        raise UserError(f"{recipe.name} keeps no optimizer state, so it has no branches; set optimizer_state=all")
    steps = checkpoint_steps(total, keep.per_doubling if keep.optimizer_state == "all" else 1)
    return min(steps[:-1], key=lambda step: abs(step - wanted))


def _execute(jobs: list[Job], workers: int | None, device: str | None, progress: bool | None) -> dict[str, str]:
    """Train the jobs, a branch after the run it leaves; returns what went wrong, by run."""
    import torch

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    workers = workers or gpus or os.cpu_count() or 1
    context = get_context("spawn")  # torch does not survive a fork
    devices = context.Queue()
    for worker in range(workers):
        devices.put(str(worker % gpus) if gpus else "")
    waiting, running, errors = list(jobs), {}, {}
    pool = ProcessPoolExecutor(workers, context, _start_worker, (devices, max(1, (os.cpu_count() or 1) // workers)))
    with bar(sum(job.steps for job in jobs), f"{len(jobs)} runs", progress, unit="step") as shown:
        try:
            while waiting or running:
                there = {job.run for job in jobs} - {job.run for job in (*waiting, *running.values())}
                for job in [job for job in waiting if job.parent is None or job.parent in there]:
                    waiting.remove(job)
                    if job.parent in errors:
                        errors[job.run] = f"its parent {job.parent} failed"
                    else:
                        running[pool.submit(_train, job, device)] = job
                done, _ = wait(running, POLL, FIRST_COMPLETED)
                for future in done:
                    if fault := _fault(future):
                        errors[running[future].run] = fault
                    del running[future]
                shown.update(sum(map(_progress, jobs)) - shown.n)
                shown.set_postfix_str(f"{len(waiting) + len(running)} to do", refresh=False)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)  # every run saves where it is
            raise KeyboardInterrupt("stopped; what was trained is saved, and the same command goes on") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return errors


def _start_worker(devices, threads: int) -> None:
    """One GPU or some threads for this process; Ctrl-C is for the run it trains, not for its waiting."""
    device = devices.get()
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _train(job: Job, device: str | None) -> None:
    options = {"name": job.run, "device": device, "progress": False}
    if job.parent is None:
        train(job.recipe, job.profile, job.seed, job.overrides, **options)
    else:
        branch(open_run(job.parent), job.at, job.overrides, **options)


def _fault(future: Future) -> str | None:
    """What went wrong, in one line; a stop by a person is no fault."""
    error = future.exception()
    if error is None or isinstance(error, KeyboardInterrupt):
        return None
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _progress(job: Job) -> int:
    """How many of its steps a run is known to have made: saved ones."""
    folder = runs_dir() / job.run
    saved = [*store.step_folders(folder / "checkpoints"), *store.step_folders(folder / "resume")]
    return max(saved, default=0)

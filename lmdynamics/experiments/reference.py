"""Reference results: experiments at a size that concludes, trained and measured once, and kept without weights.

`lmd.reference(NAME)` reads them from `data/reference`: `NAME.json` says how they were made, `NAME-TABLE.parquet` holds
the rows of all runs. `lmdynamics reference NAME` makes what is missing (`make reference`: all of them).
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from lmdynamics import files
from lmdynamics.devices import available_devices, device_kind, device_name
from lmdynamics.environment import commit, versions
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.experiments import tables
from lmdynamics.experiments.ladder import REFERENCE, ladder_runs
from lmdynamics.hub.suites import open_run
from lmdynamics.paths import shipped
from lmdynamics.progress import bar
from lmdynamics.runs.run import Run
from lmdynamics.runs.sweep import read_plan, sweep
from lmdynamics.training.recipes import load_recipe

Tables = dict[str, pl.DataFrame]


@dataclass(frozen=True)
class Experiment:
    """Runs of some plans, and what is kept of each.

    `plans`: names of sweeps, with the conditions to train (none: all). `measure` computes the tables of one run on a
    device. `version`: raise it when the tables of a run would change.
    """

    plans: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    measure: Callable[[Run, str], Tables]
    version: int = 1


EXPERIMENTS = {
    "syntax": Experiment({"syntax": ["base"]}, range(5), tables.syntax, version=3),
    "interventions": Experiment(
        {"syntax": [], "release": ["at 1.6 %", "at 13 %", "at 51 %"]}, range(3), tables.interventions
    ),
    "masking": Experiment({"masking": []}, range(5), tables.masking),
    "seeds": Experiment({"syntax": ["base"]}, range(16), tables.seeds),
    "ladder": Experiment({"reference-ladder": []}, range(3), tables.ladder),
}


@dataclass(frozen=True)
class Reference:
    """The measured runs of an experiment. `reference["pairs"]` is a table; each begins with `condition` and `seed`."""

    name: str
    folder: Path

    def __repr__(self) -> str:
        seeds = self.runs["seed"].n_unique()
        return f"Reference({self.name!r}: {self.runs['condition'].n_unique()} conditions, {seeds} seeds)"

    @cached_property
    def facts(self) -> list[dict[str, Any]]:
        """For each run: condition, seed, recipe, device, versions, commit, date, command."""
        return files.read_json(_index(self.folder, self.name), "reference results")["runs"]

    @property
    def runs(self) -> pl.DataFrame:
        """condition, seed, parameters, steps, device, date of each run."""
        columns = ("condition", "seed", "parameters", "steps", "device", "date")
        return pl.DataFrame([{name: facts[name] for name in columns} for facts in self.facts])

    @property
    def source(self) -> str:
        """One sentence: how many runs, where and when they were computed, and the command."""
        dates = sorted(facts["date"][:10] for facts in self.facts)
        devices = ", ".join(sorted({facts["device"] for facts in self.facts}))
        span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        seeds = sorted(set(self.runs["seed"]))
        counts = [_count(len(self.facts), "run"), _count(self.runs["condition"].n_unique(), "condition")]
        numbers = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        return (
            f"{counts[0]} ({counts[1]}, {numbers}), computed on {devices}, {span}: `lmdynamics reference {self.name}`."
        )

    def __getitem__(self, table: str) -> pl.DataFrame:
        path = _table(self.folder, self.name, table)
        if not path.exists():
            known = sorted(p.stem.removeprefix(f"{self.name}-") for p in self.folder.glob(f"{self.name}-*.parquet"))
            raise UserError(f"the reference results of {self.name} have no table {table!r}{did_you_mean(table, known)}")
        return pl.read_parquet(path, memory_map=False)


def reference(name: str, folder: Path | None = None) -> Reference:
    """The reference results of an experiment: syntax, interventions, masking, seeds or ladder.

    Raises UserError if there are none.
    """
    folder = folder or shipped("reference")
    if name not in EXPERIMENTS:
        raise UserError(f"there is no experiment {name!r}{did_you_mean(name, EXPERIMENTS)}")
    if not _index(folder, name).exists():
        raise UserError(f"{folder} has no results of {name}; `lmdynamics reference {name}` makes them")
    return Reference(name, folder)


def make_reference(
    name: str,
    folder: Path | None = None,
    *,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    profile: str = "default",
    device: str | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> Reference:
    """Train and measure the runs of an experiment that are missing in `folder`, and add them run by run.

    `seeds`, `only`: some of its seeds and conditions. First all runs are trained, then each is measured and added; an
    interrupted call resumes. Results of an earlier version of the experiment, or of another recipe, are replaced.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"there is no experiment {name!r}{did_you_mean(name, EXPERIMENTS)}")
    experiment, folder = EXPERIMENTS[name], folder or shipped("reference")
    conditions = {
        condition.name: plan
        for plan, chosen in experiment.plans.items()
        for condition in read_plan(plan).conditions
        if not chosen or condition.name in chosen
    }
    if unknown := [condition for condition in only if condition not in conditions]:
        raise UserError(f"{name} has no condition {unknown[0]!r}{did_you_mean(unknown[0], conditions)}")
    for plan in experiment.plans:
        language = load_recipe(read_plan(plan).recipe, profile).corpus.get("version")
        done = _done(folder, name, experiment.version, profile, language)
        missing: dict[tuple[int, ...], list[str]] = {}  # conditions by the seeds that they lack
        for condition in (condition for condition in only or conditions if conditions[condition] == plan):
            lacking = tuple(seed for seed in seeds or experiment.seeds if (condition, seed) not in done)
            missing.setdefault(lacking, []).append(condition)
        missing.pop((), None)
        for lacking, chosen in missing.items():
            swept = sweep(plan, profile, seeds=lacking, only=chosen, workers=workers, device=device, progress=progress)
            for condition, seed, run_name, error in swept.iter_rows():
                if error is not None:
                    raise UserError(f"{condition}, seed {seed}: {error}")
                if condition in chosen:  # and not the parent of a branch
                    run = open_run(run_name)
                    facts = _facts(name, experiment, run, condition, seed, profile, device or "cpu")
                    _add(folder, name, experiment.measure(run, device or "cpu"), facts)
                    print(f"{name}: {condition}, seed {seed} measured", file=sys.stderr)
    return reference(name, folder)


def measure_sweep(
    sweep_table: pl.DataFrame,
    measure: Callable[..., Tables],
    *,
    device: str = "cpu",
    progress: bool | None = None,
    **options: Any,
) -> Tables:
    """The tables of the runs of a sweep, in the shape of reference results.

    `measure`: such as `tables.masking`, with its `options`. Raises UserError if no run is complete.
    """
    complete = sweep_table.filter(pl.col("error").is_null())
    if complete.is_empty():
        first = f": {sweep_table['error'][0]}" if len(sweep_table) else ""
        raise UserError(f"none of the {len(sweep_table)} runs is complete{first}")
    parts: dict[str, list[pl.DataFrame]] = {}
    with bar(len(complete), "measuring", progress, unit="run") as meter:
        for condition, seed, name in complete.select("condition", "seed", "run").iter_rows():
            for table, frame in measure_run(open_run(name), measure, condition, seed, device, **options).items():
                parts.setdefault(table, []).append(frame)
            meter.update()
    return {table: pl.concat(frames) for table, frames in parts.items()}


def measure_run(
    run: Run, measure: Callable[..., Tables], condition: str, seed: int, device: str = "cpu", **options: Any
) -> Tables:
    """The tables of one run under a name, in the shape of reference results; see `measure_sweep`."""
    return {table: _labelled(frame, condition, seed) for table, frame in measure(run, device, **options).items()}


def ladder_tables(
    plan: str,
    profile: str = "default",
    seeds: Sequence[int] = (0,),
    changes=(),
    *,
    device: str = "cpu",
    progress: bool | None = None,
    **measured: Any,
) -> tuple[Mapping[str, pl.DataFrame], str]:
    """The tables of a ladder of sizes, and a sentence on where they come from.

    `plan`: `reference`, or a plan or suites as in `ladder_runs`, which are trained or downloaded and measured now.
    `measured`: of `tables.ladder`.
    """
    if plan == REFERENCE:
        results = reference("ladder")
        return results, results.source
    runs = ladder_runs(plan, profile, seeds, changes, device=device, progress=progress)
    names = ", ".join(runs.filter(pl.col("error").is_null())["run"])
    return measure_sweep(runs, tables.ladder, device=device, progress=progress, **measured), f"Measured now: {names}."


def _labelled(frame: pl.DataFrame, condition: str, seed: int) -> pl.DataFrame:
    return frame.select(pl.lit(condition).alias("condition"), pl.lit(seed, pl.Int64).alias("seed"), pl.all())


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def _index(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _table(folder: Path, name: str, table: str) -> Path:
    return folder / f"{name}-{table.replace(' ', '-')}.parquet"


def _read_facts(folder: Path, name: str) -> list[dict[str, Any]]:
    index = _index(folder, name)
    return files.read_json(index, "reference results")["runs"] if index.exists() else []


def _done(folder: Path, name: str, version: int, profile: str, language: int | None) -> set[tuple[str, int]]:
    """Condition and seed of the runs that need not be made again.

    `language`: the version of the built-in language; None for other text.
    """
    current = (facts for facts in _read_facts(folder, name) if facts["version"] == version)
    return {
        (facts["condition"], facts["seed"])
        for facts in current
        if facts["recipe"]["profile"] == profile and facts["recipe"]["corpus"].get("version") == language
    }


def _facts(
    name: str, experiment: Experiment, run: Run, condition: str, seed: int, profile: str, device: str
) -> dict[str, Any]:
    last = run[run.steps[-1]]
    kind = device_kind(device)
    return {
        "condition": condition,
        "seed": seed,
        "version": experiment.version,
        "parameters": sum(p.numel() for p in last.model().parameters()),
        "steps": run.steps[-1],
        "recipe": run.recipe.to_dict(),
        "parent": run.parent,
        "trained_on": run.trained_on,
        "device": device_name(device) if kind in available_devices() else kind,
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"lmdynamics reference {name}" + (f" --profile {profile}" if profile != "default" else ""),
    }


def _add(folder: Path, name: str, measured: Tables, facts: dict[str, Any]) -> None:
    """Add a run's tables in place of its earlier ones; the index last, so that a stopped call leaves a valid state."""
    folder.mkdir(parents=True, exist_ok=True)
    this = (pl.col("condition") == facts["condition"]) & (pl.col("seed") == facts["seed"])
    with files.locked(folder / f"{name}.lock"):
        for table, frame in measured.items():
            rows = _labelled(frame, facts["condition"], facts["seed"])
            rows = rows.with_columns(pl.selectors.float().cast(pl.Float32))
            path = _table(folder, name, table)
            if path.exists():
                earlier = pl.read_parquet(path, memory_map=False).filter(~this)
                rows = pl.concat([earlier, rows], how="vertical_relaxed")
            with files.atomic_file(path) as temporary:
                rows.sort("condition", "seed", maintain_order=True).write_parquet(
                    temporary, compression="zstd", compression_level=19
                )
        runs = [
            r for r in _read_facts(folder, name) if (r["condition"], r["seed"]) != (facts["condition"], facts["seed"])
        ]
        runs = sorted([*runs, facts], key=lambda r: (r["condition"], r["seed"]))
        text = json.dumps({"experiment": name, "runs": runs}, indent=1, ensure_ascii=False)
        files.write_text(_index(folder, name), text + "\n")

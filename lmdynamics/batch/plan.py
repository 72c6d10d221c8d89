"""The plan of a batch: notebooks × parameters, all checked before anything runs."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from lmdynamics.batch.cache_key import content_key
from lmdynamics.batch.parameters import PROFILES, Parameter, checked_value, notebook_parameters, parse_value
from lmdynamics.devices import device_kind
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.files import read_toml
from lmdynamics.paths import SUITE, runs_dir
from lmdynamics.runs.folders import find_folder
from lmdynamics.training.recipes import recipe_names

MAX_NAME_LENGTH = 100  # characters of an item's name, which is its folder's
LANGUAGE_PARAMETERS = ("treebank", "pairs")
BUILT_IN_LANGUAGE = "grammar"  # their value for the language of the built-in recipes


@dataclass(frozen=True)
class Job:
    """One notebook to execute: all its results are written to `folder`.

    `key` is a hash of everything that determines its results (`batch.cache_key`).
    """

    notebook: Path
    folder: Path
    parameters: dict[str, Any]
    key: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def executed(self) -> Path:
        """The path of the executed notebook."""
        return self.folder / self.notebook.name


@dataclass(frozen=True)
class Entry:
    """Some notebooks, the parameters of all of them, and the grid of values that each runs with."""

    notebooks: tuple[Path, ...]
    parameters: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]


def plan(
    notebooks: Sequence[Path] = (),
    parameters: Sequence[str] = (),
    profile: str | None = None,
    out: Path = Path("out"),
    grid: Sequence[str] = (),
    plan_file: Path | None = None,
) -> list[Job]:
    """The jobs of a batch, every path absolute: each notebook with each combination of the grid's values.

    Each notebook gets the named `parameters` ("name=value"), one value of each of `grid` ("name=value,value"), and,
    where its parameters cell has them, `interactive=False`, `output_dir` (its own folder under `out`) and `profile`.
    `plan_file` is TOML: tables `[[entry]]` with `notebooks` (paths relative to the file, `*` allowed), and optional
    `parameters` and `grid`; the arguments of this function override it.

    Raises UserError, before anything runs, for a wrong notebook, parameter name, value, plan or folder.
    """
    if not notebooks and plan_file is None:
        raise UserError("no notebook named; try `lmdynamics batch notebooks/00_start_here.ipynb`, or --plan FILE")
    if profile is not None and profile not in PROFILES:
        raise UserError(f"no profile {profile!r}{did_you_mean(profile, PROFILES)}")
    out = out.expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    entries = [Entry(tuple(notebooks), {}, {})] if notebooks else []
    entries += _read(plan_file) if plan_file is not None else []
    fixed, varied = _split(parameters, "-p name value"), _split(grid, "--grid name=value,value")
    if both := fixed.keys() & varied.keys():
        raise UserError(f"parameter {min(both)!r} is set with -p and with --grid; choose one")
    jobs: dict[str, Job] = {}
    for entry in entries:
        for path in entry.notebooks:
            for job in _notebook_jobs(path.expanduser().absolute(), entry, fixed, varied, profile, out):
                if job.name in jobs:
                    raise UserError(
                        f"{job.notebook} and {jobs[job.name].notebook} would both write to {job.folder}; rename one, "
                        "or put the parameter in which they differ into a grid"
                    )
                jobs[job.name] = job
    return list(jobs.values())


def _notebook_jobs(
    path: Path, entry: Entry, fixed: Mapping[str, str], varied: Mapping[str, str], profile: str | None, out: Path
) -> Iterator[Job]:
    """The jobs of one notebook, for each combination of values; `fixed` and `varied` are texts."""
    known = {parameter.name: parameter for parameter in notebook_parameters(path)}

    def parameter(name: str) -> Parameter:
        if not known:
            raise UserError(
                f"{path.name} has no cell tagged `parameters`, so {name!r} cannot be set; tag the cell that sets it "
                "(in JupyterLab: property inspector, cell tags)"
            )
        if name not in known:
            raise UserError(f"{path.name} has no parameter {name!r}{did_you_mean(name, known)}")
        return known[name]

    constants = {name: checked_value(path, parameter(name), value) for name, value in entry.parameters.items()}
    constants |= {name: parse_value(path, parameter(name), text) for name, text in fixed.items()}
    grid = {
        name: [checked_value(path, parameter(name), value) for value in values] for name, values in entry.grid.items()
    }
    # `1,2,3`, or, for values with commas in them, `[1,2];[3]`
    grid |= {
        name: [parse_value(path, parameter(name), text) for text in texts.split(";" if ";" in texts else ",")]
        for name, texts in varied.items()
    }
    for name in fixed:
        grid.pop(name, None)
    for name, values in grid.items():
        if len(set(map(repr, values))) < len(values):
            raise UserError(f"{path.name}: the grid has the same value of {name} twice: {', '.join(map(str, values))}")
    for values in product(*grid.values()):
        varying = dict(zip(grid, values, strict=True))
        settings = {**constants, **varying}
        device = settings.get("device", "cpu")
        suffix = {} if device_kind(device) == "cpu" else {"device": device}  # do not overwrite the CPU's results
        folder = out / _item_name(path.stem, {**varying, **suffix})
        if folder in path.parents:
            raise UserError(f"{path} is in {folder}, which this batch overwrites; name another folder with --out")
        automatic = {"interactive": False, "output_dir": str(folder), "profile": profile}
        settings |= {
            name: value
            for name, value in automatic.items()
            if name in known and name not in settings and value is not None
        }
        _refuse_built_in_language(path, known, settings)
        # values equal to the defaults are left out: such an item is compared with the defaults' baseline
        job = Job(path, folder, {n: v for n, v in settings.items() if n in automatic or v != known[n].default})
        yield replace(job, key=content_key(path, {name: each.default for name, each in known.items()} | job.parameters))


def _refuse_built_in_language(path: Path, known: Mapping[str, Parameter], settings: Mapping[str, Any]) -> None:
    """Refuse to measure a suite or folder of others' checkpoints on the built-in language, which they did not learn."""
    values = {name: settings.get(name, parameter.default) for name, parameter in known.items()}
    named = {name: value for name in ("run", "plan") if isinstance(value := values.get(name), str)}
    suite = next((value for value in named.values() if value.startswith(SUITE)), None)
    if suite is None and _is_trained_elsewhere(named.get("run", "")):
        suite = named["run"]
    if suite and (unset := [name for name in LANGUAGE_PARAMETERS if values.get(name) == BUILT_IN_LANGUAGE]):
        hints = "; ".join(f"{name}: {known[name].help}" for name in unset)
        raise UserError(
            f"{path.name}: {suite} did not learn the built-in language, so set {' and '.join(unset)} ({hints})"
        )


def _is_trained_elsewhere(name: str) -> bool:
    """Whether a value of `run` is a folder of checkpoints without a recipe; a recipe's name is trained or opened."""
    if name in recipe_names():
        return False
    folder, _ = find_folder(name)
    return os.path.isdir(folder) and folder != runs_dir() and not (folder / "run.json").exists()


def _item_name(stem: str, settings: Mapping[str, Any]) -> str:
    """A notebook and the grid's values, as the name of a folder: `02_sas_emergence--profile=smoke--seed=1`."""
    exact = "--".join([stem, *(f"{name}={value}" for name, value in sorted(settings.items()))])
    name = stem + re.sub(r"[^\w.,=+-]", "_", exact[len(stem) :])
    if name == exact and len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{name[: MAX_NAME_LENGTH - 9]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}" if settings else stem


def _split(parameters: Sequence[str], form: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for parameter in parameters:
        name, equals, text = parameter.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"parameter {parameter!r} is not of the form `{form}`")
        if name in texts:
            raise UserError(f"parameter {name!r} is set twice: {texts[name]!r} and {text!r}")
        texts[name] = text
    return texts


def _read(path: Path) -> list[Entry]:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise UserError(f"there is no plan {path}; --plan takes a TOML file")
    table = read_toml(path, "a plan")
    entries = table.get("entry")
    if not isinstance(entries, list) or not entries or set(table) != {"entry"}:
        raise UserError(f"{path}: a plan is one or more tables [[entry]] with notebooks, parameters and grid")
    return [_entry(f"{path}: entry {number}", entry, path.parent) for number, entry in enumerate(entries, 1)]


def _entry(label: str, entry: Any, base: Path) -> Entry:
    known = ("notebooks", "parameters", "grid")
    if unknown := sorted(set(entry) - set(known)):
        raise UserError(f"{label} has no setting {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    patterns, parameters, grid = entry.get("notebooks"), entry.get("parameters", {}), entry.get("grid", {})
    if not isinstance(patterns, list) or not all(isinstance(name, str) for name in patterns) or not patterns:
        raise UserError(f"{label}: notebooks should be a list of paths, such as ['notebooks/*.ipynb']")
    if not isinstance(parameters, dict) or not isinstance(grid, dict):
        raise UserError(f"{label}: parameters and grid are tables, such as {{ seed = [0, 1, 2] }}")
    if single := [name for name, values in grid.items() if not isinstance(values, list) or not values]:
        raise UserError(f"{label}: the grid's {single[0]} should be a list of values")
    paths: list[Path] = []
    for pattern in patterns:
        matches = sorted(glob.glob(str(base / pattern))) if "*" in pattern else [str(base / pattern)]
        if not matches:
            raise UserError(f"{label}: no notebook matches {pattern!r} in {base}")
        paths += map(Path, matches)
    return Entry(tuple(paths), parameters, grid)

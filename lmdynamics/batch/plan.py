"""What a batch will run, settled and checked before anything runs: notebooks × parameters."""

import glob
import hashlib
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
from lmdynamics.paths import SUITE

LONGEST = 100  # characters of an item's name, which is a folder's
BUILT_IN = "grammar"  # the language of the shipped recipes, as a value of
LANGUAGES = ("treebank", "pairs")  # these parameters


@dataclass(frozen=True)
class Job:
    """One notebook to execute: everything it makes goes into `folder`, and nothing else is touched.

    `key` is a hash of all that determines its results (`batch.cache_key`).
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
        """Where the executed notebook lies when it is done."""
        return self.folder / self.notebook.name


@dataclass(frozen=True)
class Entry:
    """Some notebooks, what all of them are given, and what each of them is given in turn."""

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
    `plan_file` is TOML: tables `[[entry]]` with `notebooks` (paths beside the file, `*` allowed), and perhaps
    `parameters` and `grid`; what is given here goes over it.

    Raises UserError for anything wrong with a notebook, a parameter's name or its value, the plan or the folder:
    nothing has run then.
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
    given, varied = _split(parameters, "-p name value"), _split(grid, "--grid name=value,value")
    if both := given.keys() & varied.keys():
        raise UserError(f"parameter {min(both)!r} is given with -p and with --grid; choose one")
    jobs: dict[str, Job] = {}
    for entry in entries:
        for path in entry.notebooks:
            for job in _of_notebook(path.expanduser().absolute(), entry, given, varied, profile, out):
                if job.name in jobs:
                    raise UserError(
                        f"{job.notebook} and {jobs[job.name].notebook} would both write to {job.folder}; rename one, "
                        "or put what differs between them into a grid"
                    )
                jobs[job.name] = job
    return list(jobs.values())


def _of_notebook(
    path: Path, entry: Entry, given: Mapping[str, str], varied: Mapping[str, str], profile: str | None, out: Path
) -> Iterator[Job]:
    """One notebook with each combination of values."""
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

    fixed = {name: checked_value(path, parameter(name), value) for name, value in entry.parameters.items()}
    fixed |= {name: parse_value(path, parameter(name), text) for name, text in given.items()}
    several = {
        name: [checked_value(path, parameter(name), value) for value in values] for name, values in entry.grid.items()
    }
    # `1,2,3`, or, for values with commas in them, `[1,2];[3]`
    several |= {
        name: [parse_value(path, parameter(name), text) for text in texts.split(";" if ";" in texts else ",")]
        for name, texts in varied.items()
    }
    for name in given:
        several.pop(name, None)
    for name, values in several.items():
        if len(set(map(repr, values))) < len(values):
            raise UserError(f"{path.name}: the grid gives {name} the same value twice: {', '.join(map(str, values))}")
    for values in product(*several.values()):
        chosen = dict(zip(several, values, strict=True))
        device = {**fixed, **chosen}.get("device", "cpu")
        own = {} if device_kind(device) == "cpu" else {"device": device}  # beside what a CPU has computed
        folder = out / _item_name(path.stem, {**chosen, **own})
        if folder in path.parents:
            raise UserError(f"{path} lies in {folder}, which this batch writes anew; name another folder with --out")
        automatic = {"interactive": False, "output_dir": str(folder), "profile": profile}
        settled = {**fixed, **chosen}
        settled |= {
            name: value
            for name, value in automatic.items()
            if name in known and name not in settled and value is not None
        }
        _refuse_built_in_language(path, known, settled)
        # what the notebook has anyway is not given: its results are those of its defaults, and are compared as such
        job = Job(path, folder, {n: v for n, v in settled.items() if n in automatic or v != known[n].default})
        yield replace(job, key=content_key(path, {name: each.default for name, each in known.items()} | job.parameters))


def _refuse_built_in_language(path: Path, known: Mapping[str, Parameter], settled: Mapping[str, Any]) -> None:
    """A published suite has not learnt it: without words of its own language nothing can be measured."""
    values = {name: settled.get(name, parameter.default) for name, parameter in known.items()}
    suite = next((v for n in ("run", "plan") if isinstance(v := values.get(n), str) and v.startswith(SUITE)), None)
    if suite and (lacking := [name for name in LANGUAGES if values.get(name) == BUILT_IN]):
        told = "; ".join(f"{name}: {known[name].help}" for name in lacking)
        raise UserError(
            f"{path.name}: {suite} did not learn the built-in language, so set {' and '.join(lacking)} ({told})"
        )


def _item_name(stem: str, chosen: Mapping[str, Any]) -> str:
    """A notebook and the grid's values, as the name of a folder: `02_sas_emergence--profile=smoke--seed=1`."""
    exact = "--".join([stem, *(f"{name}={value}" for name, value in sorted(chosen.items()))])
    name = stem + re.sub(r"[^\w.,=+-]", "_", exact[len(stem) :])
    if name == exact and len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}" if chosen else stem


def _split(parameters: Sequence[str], form: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for parameter in parameters:
        name, equals, text = parameter.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"parameter {parameter!r} is not of the form `{form}`")
        if name in given:
            raise UserError(f"parameter {name!r} is given twice: {given[name]!r} and {text!r}")
        given[name] = text
    return given


def _read(path: Path) -> list[Entry]:
    """The entries of a plan file."""
    path = path.expanduser().absolute()
    if not path.is_file():
        raise UserError(f"there is no plan {path}; --plan takes a TOML file")
    table = read_toml(path, "a plan")
    entries = table.get("entry")
    if not isinstance(entries, list) or not entries or set(table) != {"entry"}:
        raise UserError(f"{path}: a plan is one or more tables [[entry]] with notebooks, parameters and grid")
    return [_entry(f"{path}: entry {number}", entry, path.parent) for number, entry in enumerate(entries, 1)]


def _entry(where: str, entry: Any, beside: Path) -> Entry:
    known = ("notebooks", "parameters", "grid")
    if unknown := sorted(set(entry) - set(known)):
        raise UserError(f"{where} has no setting {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    named, parameters, grid = entry.get("notebooks"), entry.get("parameters", {}), entry.get("grid", {})
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named) or not named:
        raise UserError(f"{where}: notebooks should be a list of paths, such as ['notebooks/*.ipynb']")
    if not isinstance(parameters, dict) or not isinstance(grid, dict):
        raise UserError(f"{where}: parameters and grid are tables, such as {{ seed = [0, 1, 2] }}")
    if single := [name for name, values in grid.items() if not isinstance(values, list) or not values]:
        raise UserError(f"{where}: the grid's {single[0]} should be a list of values")
    found: list[Path] = []
    for name in named:
        matching = sorted(glob.glob(str(beside / name))) if "*" in name else [str(beside / name)]
        if not matching:
            raise UserError(f"{where}: no notebook matches {name!r} in {beside}")
        found += map(Path, matching)
    return Entry(tuple(found), parameters, grid)

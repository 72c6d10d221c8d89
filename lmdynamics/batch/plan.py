"""What a batch will run, settled and checked before anything runs.

papermill itself only warns about a parameter that a notebook does not have, and then runs with the defaults; here that
is an error, and so is a value of the wrong type.
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdynamics.errors import UserError, did_you_mean

PROFILES = ("smoke", "default", "full")
_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "tuple": tuple, "dict": dict}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Job:
    """One notebook to execute: everything it makes goes into `folder`, and nothing else is touched."""

    notebook: Path
    folder: Path
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        return self.notebook.stem

    @property
    def executed(self) -> Path:
        """Where the executed notebook lies when it is done."""
        return self.folder / self.notebook.name


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: type = default  # help`."""

    name: str
    type_name: str
    default: Any
    help: str


def plan(notebooks: Sequence[Path], parameters: Sequence[str], profile: str | None, out: Path) -> list[Job]:
    """The jobs of a batch, every path absolute.

    Each notebook gets the named `parameters` ("name=value"), and, where its parameters cell has them,
    `interactive=False`, `output_dir` (its own folder under `out`) and `profile`.

    Raises
    ------
    UserError
        For anything wrong with a notebook, a parameter's name or its value, or the folder: nothing has run then.
    """
    if not notebooks:
        raise UserError("no notebook named; try `lmdynamics batch notebooks/00_start_here.ipynb`")
    if profile is not None and profile not in PROFILES:
        raise UserError(f"no profile {profile!r}{did_you_mean(profile, PROFILES)}")
    out = out.expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    given = _split(parameters)
    jobs: dict[str, Job] = {}
    for path in notebooks:
        path = path.expanduser().absolute()
        known = {parameter.name: parameter for parameter in notebook_parameters(path)}
        values = {}
        for name, text in given.items():
            if name not in known:
                raise UserError(f"{path.name} has no parameter {name!r}{did_you_mean(name, known)}")
            values[name] = parse_value(path, known[name], text)
        job = Job(path, out / path.stem, values)
        if job.folder in path.parents:
            raise UserError(
                f"{path} lies in {job.folder}, which this batch writes anew; name another folder with --out"
            )
        if job.name in jobs:
            raise UserError(f"{path} and {jobs[job.name].notebook} would both write to {job.folder}; rename one")
        automatic = {"interactive": False, "output_dir": str(job.folder), "profile": profile}
        values |= {
            name: value
            for name, value in automatic.items()
            if name in known and name not in values and value is not None
        }
        jobs[job.name] = job
    return list(jobs.values())


def notebook_parameters(path: Path) -> list[Parameter]:
    """The parameters of a notebook, as papermill will see them.

    Raises
    ------
    UserError
        If there is no such file, it is not a notebook, or its parameters cell has a line that papermill would miss.
    """
    from papermill import inspect_notebook
    from papermill.iorw import load_notebook_node
    from papermill.utils import find_first_tagged_cell_index

    if path.is_file() and path.suffix != ".ipynb":
        raise UserError(f"{path} is not a Jupyter notebook: its name does not end in .ipynb")
    if not path.is_file():
        siblings = sorted(sibling.name for sibling in path.parent.glob("*.ipynb"))
        hint = did_you_mean(path.name, siblings) if siblings else f"; there are no notebooks in {path.parent}"
        raise UserError(f"no notebook {path}{hint}")
    try:
        notebook = load_notebook_node(str(path))
    except (ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is not a Jupyter notebook: {_first_line(error)}") from error
    cell = find_first_tagged_cell_index(notebook, "parameters")
    if cell < 0:
        return []
    seen = inspect_notebook(notebook)
    _refuse_lost(path, notebook.cells[cell].source, set(seen))
    return [
        Parameter(name, found["inferred_type_name"], _literal(found["default"]), found["help"])
        for name, found in seen.items()
    ]


def parse_value(path: Path, parameter: Parameter, text: str) -> Any:
    """`text` as a value of the parameter's type: its annotation's, or else its default's.

    Raises
    ------
    UserError
        If the text is not such a value.
    """
    kind, _, inner = parameter.type_name.partition("[")
    expected = _TYPES.get(kind, str if parameter.default is None else type(parameter.default))
    if expected is str:
        return text
    if expected is bool:
        value = _WORDS.get(text.lower(), text)
    else:
        value = _literal(text)
        if expected is float and type(value) is int:
            value = float(value)
    if type(value) is not expected or not _elements_fit(value, inner.rstrip("]")):
        wanted = parameter.type_name if kind in _TYPES else expected.__name__
        raise UserError(
            f"{path.name}: {parameter.name}={text} is not {_article(wanted)} (its default is {parameter.default!r})"
        )
    return value


def _split(parameters: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for parameter in parameters:
        name, equals, text = parameter.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"parameter {parameter!r} is not of the form `-p name value`")
        if name in given:
            raise UserError(f"parameter {name!r} is given twice: {given[name]!r} and {text!r}")
        given[name] = text
    return given


def _refuse_lost(path: Path, source: str, seen: set[str]) -> None:
    """Refuse a parameters cell that assigns names which papermill's inspector does not find (it reads line by line)."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise UserError(f"{path.name}: its parameters cell does not parse: {error.msg}, line {error.lineno}") from error
    targets = [
        target.id
        for statement in statements
        for target in (statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)])
        if isinstance(target, ast.Name)
    ]
    if lost := [name for name in targets if name not in seen]:
        raise UserError(
            f"{path.name}: papermill cannot see the parameter {lost[0]!r}; write it as `name: type = literal  # help` "
            "on one line, with a plain type and a single `=`"
        )


def _elements_fit(value: Any, inner: str) -> bool:
    element = _TYPES.get(inner.split(",")[0].strip())
    if element is None or not isinstance(value, (list, tuple)):
        return True
    return all(type(item) is element or (element is float and type(item) is int) for item in value)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _article(type_name: str) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(type_name, f"a {type_name}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

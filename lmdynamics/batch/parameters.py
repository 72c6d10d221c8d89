"""A notebook's parameters, as papermill will see them, and texts turned into their values.

papermill itself only warns about a parameter that a notebook does not have, and then runs with the defaults; here that
is an error, and so is a value of the wrong type or outside its range.
"""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdynamics.errors import UserError, did_you_mean, first_line, shortened

PROFILES = ("smoke", "default", "full")
NOT_SETTINGS = ("output_dir", "interactive")  # where and how the figures are shown, not what is measured
KERNEL = "python3"
_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "tuple": tuple, "dict": dict}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_RANGE = re.compile(rf"\bat least {_NUMBER}|\bbetween {_NUMBER} and {_NUMBER}")


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: type = default  # help`.

    A help text that says "at least 1" or "between 0 and 1" bounds the value.
    """

    name: str
    type_name: str
    default: Any
    help: str

    @property
    def bounds(self) -> tuple[float, float]:
        found = _RANGE.search(self.help)
        if found is None:
            return float("-inf"), float("inf")
        least, low, high = found.groups()
        return float(least or low), float(high or "inf")


def notebook_parameters(path: Path) -> list[Parameter]:
    """The parameters of a notebook, as papermill will see them.

    Raises UserError if there is no such file, it is not a notebook, or its parameters cell has a line that papermill
    would miss.
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
        raise UserError(f"{path} is not a Jupyter notebook: {first_line(error)}") from error
    cell = find_first_tagged_cell_index(notebook, "parameters")
    refuse_language(path)
    if cell < 0:
        return []
    # papermill looks for parameters by the kernel's language, and finds none where there is no kernel
    notebook.metadata["kernelspec"] = {"name": KERNEL, "display_name": "Python 3", "language": "python"}
    seen = inspect_notebook(notebook)
    _refuse_lost(path, notebook.cells[cell].source, set(seen))
    return [
        Parameter(name, found["inferred_type_name"], _literal(found["default"]), found["help"])
        for name, found in seen.items()
    ]


def refuse_language(path: Path) -> None:
    """Raises UserError for a notebook that is not in Python, or does not say what it is in."""
    kernel, language = _kernel(path)
    if language is None:
        raise UserError(
            f"{path.name} asks for the kernel {shortened(kernel)!r} and does not say its language; a batch runs "
            "Python: open the notebook, choose a Python kernel and save it"
        )
    if language != "python":
        raise UserError(f"{path.name} is in {shortened(language)} (kernel {shortened(kernel)!r}); a batch runs Python")


def remarks(path: Path) -> list[str]:
    """What a person should know of a notebook before it runs: how it differs from those of the series."""
    kernel, _ = _kernel(path)
    tags = [cell.get("metadata", {}).get("tags", ()) for cell in json.loads(path.read_text("utf-8"))["cells"]]
    found = []
    if not any("parameters" in each for each in tags):
        found.append("no cell is tagged `parameters`, so that it runs as it stands and its figures stay in it")
    if kernel and kernel != KERNEL:
        found.append(f"it asks for the kernel {shortened(kernel)!r}, and runs with the Python of lmdynamics instead")
    elif not kernel:
        found.append("it names no kernel, and runs with the Python of lmdynamics")
    return [f"{path.name}: {remark}" for remark in found]


def _kernel(path: Path) -> tuple[str, str | None]:
    """Name of the kernel that a notebook asks for, and its language; "" and None where it does not say."""
    metadata = json.loads(path.read_text("utf-8")).get("metadata", {})
    spec, info = metadata.get("kernelspec") or {}, metadata.get("language_info") or {}
    name, language = str(spec.get("name") or ""), spec.get("language") or info.get("name")
    known = "python" if re.match(r"(i?python|pypy)\d*($|\W)", name or "python", re.IGNORECASE) else None
    return name, str(language).lower() if language else known


def parse_value(path: Path, parameter: Parameter, text: str) -> Any:
    """`text` as a value of the parameter's type: its annotation's, or else its default's.

    Raises UserError if the text is not such a value, or the value lies outside its range.
    """
    expected, _ = _expected(parameter)
    if expected is str:
        return checked_value(path, parameter, text)
    value = _WORDS.get(text.lower(), text) if expected is bool else _literal(text)
    return checked_value(path, parameter, value, text)


def checked_value(path: Path, parameter: Parameter, value: Any, text: str | None = None) -> Any:
    """A value of the parameter's type and within its range; a whole number will do for a float.

    Raises UserError if it is not.
    """
    expected, inner = _expected(parameter)
    told = f"{path.name}: {parameter.name}={shortened(str(value if text is None else text))}"
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected or not _elements_fit(value, inner):
        wanted = parameter.type_name if parameter.type_name.partition("[")[0] in _TYPES else expected.__name__
        raise UserError(f"{told} is not {_article(wanted)} (its default is {parameter.default!r})")
    if parameter.name == "profile" and value not in PROFILES:
        raise UserError(f"{told}: there is no such profile{did_you_mean(value, PROFILES)}")
    low, high = parameter.bounds
    if expected in (int, float) and not low <= value <= high:
        wanted = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise UserError(f"{told} is out of range; it should be {wanted}")
    return value


def _expected(parameter: Parameter) -> tuple[type, str]:
    """The type of a parameter's values, and the name of the type inside a list's brackets."""
    kind, _, inner = parameter.type_name.partition("[")
    default = str if parameter.default is None else type(parameter.default)
    return _TYPES.get(kind, default), inner.rstrip("]")


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

"""A notebook's parameters as papermill reads them, and texts parsed into their values.

papermill only warns about a parameter that the notebook does not have, and runs with the defaults. Here that is an
error; so is a value of the wrong type or outside its range.
"""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdynamics.errors import UserError, did_you_mean, first_line, shortened

PROFILES = ("smoke", "default", "full")
DISPLAY_PARAMETERS = ("output_dir", "interactive")  # they do not change results
KERNEL = "python3"
_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "tuple": tuple, "dict": dict}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_RANGE = re.compile(rf"\bat least {_NUMBER}|\bbetween {_NUMBER} and {_NUMBER}")


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: type = default  # help`.

    "at least 1" or "between 0 and 1" in the help text bounds the value.
    """

    name: str
    type_name: str
    default: Any
    help: str

    @property
    def bounds(self) -> tuple[float, float]:
        match = _RANGE.search(self.help)
        if match is None:
            return float("-inf"), float("inf")
        minimum, low, high = match.groups()
        return float(minimum or low), float(high or "inf")


def notebook_parameters(path: Path) -> list[Parameter]:
    """The parameters of a notebook, as papermill reads them.

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
    inspected = inspect_notebook(notebook)
    _refuse_missed(path, notebook.cells[cell].source, set(inspected))
    return [
        Parameter(name, fields["inferred_type_name"], _literal(fields["default"]), fields["help"])
        for name, fields in inspected.items()
    ]


def refuse_language(path: Path) -> None:
    """Raises UserError for a notebook that is not in Python, or does not name its language."""
    kernel, language = _kernel(path)
    if language is None:
        raise UserError(
            f"{path.name} asks for the kernel {shortened(kernel)!r} and does not name its language; a batch runs "
            "Python: open the notebook, choose a Python kernel and save it"
        )
    if language != "python":
        raise UserError(f"{path.name} is in {shortened(language)} (kernel {shortened(kernel)!r}); a batch runs Python")


def remarks(path: Path) -> list[str]:
    """How a notebook differs from those of the series, for a person to read before it runs."""
    kernel, _ = _kernel(path)
    tags = [cell.get("metadata", {}).get("tags", ()) for cell in json.loads(path.read_text("utf-8"))["cells"]]
    texts = []
    if not any("parameters" in each for each in tags):
        texts.append("no cell is tagged `parameters`, so it runs unchanged and gets no output_dir for figures")
    if kernel and kernel != KERNEL:
        texts.append(f"it asks for the kernel {shortened(kernel)!r}, but runs with the Python of lmdynamics")
    elif not kernel:
        texts.append("it names no kernel, so it runs with the Python of lmdynamics")
    return [f"{path.name}: {text}" for text in texts]


def _kernel(path: Path) -> tuple[str, str | None]:
    """Name of the kernel that a notebook asks for, and its language; "" and None if it does not name them."""
    metadata = json.loads(path.read_text("utf-8")).get("metadata", {})
    spec, info = metadata.get("kernelspec") or {}, metadata.get("language_info") or {}
    name, language = str(spec.get("name") or ""), spec.get("language") or info.get("name")
    known = "python" if re.match(r"(i?python|pypy)\d*($|\W)", name or "python", re.IGNORECASE) else None
    return name, str(language).lower() if language else known


def parse_value(path: Path, parameter: Parameter, text: str) -> Any:
    """`text` as a value of the parameter's type: its annotation's, or else its default's.

    Raises UserError if the text is not such a value, or the value is outside its range.
    """
    expected, _ = _expected(parameter)
    if expected is str:
        return checked_value(path, parameter, text)
    value = _BOOLEANS.get(text.lower(), text) if expected is bool else _literal(text)
    return checked_value(path, parameter, value, text)


def checked_value(path: Path, parameter: Parameter, value: Any, text: str | None = None) -> Any:
    """A value of the parameter's type and within its range; an integer is accepted for a float.

    Raises UserError if it is not.
    """
    expected, inner = _expected(parameter)
    assignment = f"{path.name}: {parameter.name}={shortened(str(value if text is None else text))}"
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected or not _elements_fit(value, inner):
        kind = parameter.type_name if parameter.type_name.partition("[")[0] in _TYPES else expected.__name__
        raise UserError(f"{assignment} is not {_article(kind)} (its default is {parameter.default!r})")
    if parameter.name == "profile" and value not in PROFILES:
        raise UserError(f"{assignment}: there is no such profile{did_you_mean(value, PROFILES)}")
    low, high = parameter.bounds
    if expected in (int, float) and not low <= value <= high:
        expected_range = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise UserError(f"{assignment} is out of range; it should be {expected_range}")
    return value


def _expected(parameter: Parameter) -> tuple[type, str]:
    """The type of a parameter's values, and the name of the type inside a list's brackets."""
    kind, _, inner = parameter.type_name.partition("[")
    default = str if parameter.default is None else type(parameter.default)
    return _TYPES.get(kind, default), inner.rstrip("]")


def _refuse_missed(path: Path, source: str, names: set[str]) -> None:
    """Refuse a parameters cell that assigns other names than papermill, which reads line by line, has found in it."""
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
    if missed := [name for name in targets if name not in names]:
        raise UserError(
            f"{path.name}: papermill cannot read parameter {missed[0]!r}; write it as `name: type = literal  # help` "
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

"""A notebook as a reader would have it after editing its parameters cell."""

from pathlib import Path

import nbformat

from lmdynamics.batch.parameters import notebook_parameters, parse_value


def copy_with_parameters(notebook: Path, folder: Path, parameters: dict[str, str]) -> Path:
    """Copy `notebook` into `folder`, the named lines of its parameters cell rewritten with other values."""
    content = nbformat.read(notebook, as_version=4)
    parameter_by_name = {parameter.name: parameter for parameter in notebook_parameters(notebook)}
    for cell in content.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for name, text in parameters.items():
                value = parse_value(notebook, parameter_by_name[name], text)
                cell.source = "\n".join(
                    f"{name}: {parameter_by_name[name].type_name} = {value!r}" if line.startswith(f"{name}:") else line
                    for line in cell.source.splitlines()
                )
    copy = folder / notebook.name
    nbformat.write(content, copy)
    return copy

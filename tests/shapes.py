"""Checks tensor shapes while tests run: jaxtyping annotations are enforced, all other annotations are left alone.

pytest loads it through `--jaxtyping-packages` (pyproject.toml). Only tensor annotations are checked, because heavy
imports are lazy in much of the package: names that exist for type checkers alone cannot be resolved at run time, and
tests pass small stand-ins where a checkpoint or a run is expected.
"""

import inspect
import typing
from collections.abc import Callable

from beartype import beartype
from jaxtyping import AbstractArray


def names_a_tensor(hint: object) -> bool:
    """True for a jaxtyping annotation, alone or inside a union or a container."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(names_a_tensor(part) for part in typing.get_args(hint))


def typechecked(function: Callable) -> Callable:
    """`function`, checked by beartype against those of its annotations that name a tensor."""
    signature = inspect.signature(function)
    annotations = {name: p.annotation for name, p in signature.parameters.items() if names_a_tensor(p.annotation)}
    if names_a_tensor(signature.return_annotation):
        annotations["return"] = signature.return_annotation
    function.__annotations__ = annotations
    return beartype(function) if annotations else function

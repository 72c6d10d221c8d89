"""Devices: which are available, which one computes, and which computed the results of this process.

A device is named as torch names it, `cuda:1`; its kind is `cuda`. Results depend on the kind, not on the number.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lmdynamics.errors import UserError

KINDS = ("cpu", "cuda", "mps", "xpu")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}  # of recipes, and torch's names for them

Computed = tuple[str, str, str]  # kind of device, precision, name of the device

_computed: set[Computed] = set()


def device_kind(device: str) -> str:
    """The kind of a device: `cuda` for `cuda:1`. It may be absent from this machine.

    Raises UserError if torch does not know the device.
    """
    if device in KINDS:
        return device
    import torch

    try:
        kind = torch.device(str(device)).type
        torch.get_device_module(kind)
        return kind
    except RuntimeError:
        raise UserError(
            f"unknown device {str(device)!r}; choose {', '.join(KINDS)}, or one with its number: cuda:1"
        ) from None


def need_device(device: str) -> str:
    """The kind of a device that is on this machine. Raises UserError if it is not."""
    kind = device_kind(device)
    if kind == "cpu":
        return kind
    import torch

    number = torch.device(device).index or 0
    if number >= _count(kind):
        available = ", ".join(available_devices())
        raise UserError(
            f"device {str(device)!r} is not on this machine: torch {torch.__version__} finds {available}; choose one"
        )
    return kind


def available_devices() -> list[str]:
    """Every device that torch can use on this machine, the CPU first."""
    import torch

    current = torch.accelerator.current_accelerator(check_available=True)
    kinds = dict.fromkeys([*KINDS[1:], *([current.type] if current else [])])
    return ["cpu", *(f"{kind}:{number}" for kind in kinds for number in range(_count(kind)))]


def default_device() -> str:
    """The device of training by default: the accelerator, if there is one."""
    import torch

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on"):
        return "cpu"
    current = torch.accelerator.current_accelerator(check_available=True)
    return os.environ.get("ACCELERATE_TORCH_DEVICE") or (current.type if current else "cpu")


def device_name(device: str) -> str:
    """The product name of a device, if torch knows it; otherwise its kind."""
    import torch

    kind = device_kind(device)
    get_name = getattr(torch.get_device_module(kind), "get_device_name", None)
    return get_name(torch.device(device)) if get_name and _count(kind) > (torch.device(device).index or 0) else kind


def matmul_precision(kind: str) -> str:
    """`float32`, or the precision of float32 matrix products on this kind of device, such as `tf32`."""
    import torch

    backend = torch.backends.cuda if kind == "cuda" else torch.backends.mkldnn
    precision = backend.matmul.fp32_precision
    return "float32" if precision in ("none", "ieee") else precision


@lru_cache
def has_float64(device) -> bool:
    """Whether a device supports float64; Apple's does not."""
    import torch

    try:
        return torch.zeros((), device=device).double().dtype == torch.float64
    except (TypeError, RuntimeError):
        return False


def in_float64(tensor):
    """A tensor in float64; on the CPU if its device does not support float64."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).double()


def trained_on(facts: Mapping[str, Any]) -> str | None:
    """The kind of device that trained a run, from its `run.json`; None if unknown.

    Earlier versions wrote the name of an NVIDIA GPU, or `cpu` without one.
    """
    if "device_kind" in facts:
        return facts["device_kind"]
    only_cpu = all(name.startswith(("cpu", "cuda")) for name in available_devices())
    return "cpu" if facts.get("device") == "cpu" and only_cpu else None


def note_computed(kind: str, precision: str, name: str) -> None:
    """Remember a device and precision that computed a result of this process."""
    _computed.add((kind, precision, name))


def computed() -> list[Computed]:
    """All that `note_computed` has recorded since `forget_computed`."""
    return sorted(_computed)


def forget_computed() -> None:
    _computed.clear()


def _count(kind: str) -> int:
    import torch

    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0

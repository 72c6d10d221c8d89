"""Devices: which there are, which one computes, and which have computed what this process shows.

A device is named as torch names it, `cuda:1`; its kind is `cuda`. Results depend on the kind, not on the number.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lmdynamics.errors import UserError

KINDS = ("cpu", "cuda", "mps", "xpu")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}  # of recipes, by the names that torch has for them

Computed = tuple[str, str, str]  # kind of device, precision, name of the device

_computed: set[Computed] = set()


def device_kind(device: str) -> str:
    """The kind of a device: `cuda` for `cuda:1`. It need not be on this machine.

    Raises UserError where torch knows no such device.
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
            f"there is no device {str(device)!r}; choose {', '.join(KINDS)}, or one by number: cuda:1"
        ) from None


def need_device(device: str) -> str:
    """The kind of a device that is on this machine. Raises UserError where it is not."""
    kind = device_kind(device)
    if kind == "cpu":
        return kind
    import torch

    number = torch.device(device).index or 0
    if number >= _count(kind):
        here = ", ".join(devices_here())
        raise UserError(
            f"device {str(device)!r} is not on this machine: torch {torch.__version__} finds {here}; name one of these"
        )
    return kind


def devices_here() -> list[str]:
    """Every device that torch can use on this machine, the CPU first."""
    import torch

    current = torch.accelerator.current_accelerator(check_available=True)
    kinds = dict.fromkeys([*KINDS[1:], *([current.type] if current else [])])
    return ["cpu", *(f"{kind}:{number}" for kind in kinds for number in range(_count(kind)))]


def default_device() -> str:
    """Where training computes if nobody names a device: on the accelerator, if there is one."""
    import torch

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on"):
        return "cpu"
    current = torch.accelerator.current_accelerator(check_available=True)
    return os.environ.get("ACCELERATE_TORCH_DEVICE") or (current.type if current else "cpu")


def device_name(device: str) -> str:
    """What a device is called by its maker, where torch tells; otherwise its kind."""
    import torch

    kind = device_kind(device)
    tell = getattr(torch.get_device_module(kind), "get_device_name", None)
    return tell(torch.device(device)) if tell and _count(kind) > (torch.device(device).index or 0) else kind


def matmul_precision(kind: str) -> str:
    """`float32`, or the precision that products of float32 matrices have on this kind of device, such as `tf32`."""
    import torch

    backend = torch.backends.cuda if kind == "cuda" else torch.backends.mkldnn
    found = backend.matmul.fp32_precision
    return "float32" if found in ("none", "ieee") else found


@lru_cache
def has_float64(device) -> bool:
    """Whether a device computes in float64; Apple's does not."""
    import torch

    try:
        return torch.zeros((), device=device).double().dtype == torch.float64
    except (TypeError, RuntimeError):
        return False


def in_float64(tensor):
    """A tensor in float64; on the CPU where its device has no float64."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).double()


def trained_on(facts: Mapping[str, Any]) -> str | None:
    """The kind of device that trained a run, from what its `run.json` says; None if that is not known.

    Earlier versions wrote the name of the GPU wherever there was one, and `cpu` wherever there was none of NVIDIA's.
    """
    if "device_kind" in facts:
        return facts["device_kind"]
    only_cpu = all(name.startswith(("cpu", "cuda")) for name in devices_here())
    return "cpu" if facts.get("device") == "cpu" and only_cpu else None


def note_computed(kind: str, precision: str, name: str) -> None:
    """Remember what computed something that this process shows."""
    _computed.add((kind, precision, name))


def computed() -> list[Computed]:
    """What computed all that this process has shown since `forget_computed`."""
    return sorted(_computed)


def forget_computed() -> None:
    _computed.clear()


def _count(kind: str) -> int:
    import torch

    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0

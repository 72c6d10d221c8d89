"""A second device on any machine: tensors that say they are on `accel`, and refuse to be mixed with a CPU's.

Each holds a CPU tensor, on which everything is computed, so that results must equal the CPU's. Like a GPU it takes
single numbers (tensors without dimensions) from the CPU; like Apple's it need not have float64. Autocast does nothing
there. Once registered it stays so for the life of the process, so tests that use it run in a process of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "accel"
aten = torch.ops.aten
BETWEEN = {aten.copy_.default, aten._to_copy.default}  # may have tensors of both devices
ALIKE = {aten._fused_adamw_.default}  # takes no single numbers of the CPU either

computed: set[str] = set()  # the names of what was computed on it
_supports = {"it": False, "float64": True}


class _Module(_DummyBackendModule):
    """What torch asks of a backend, as `torch.accel`."""

    def is_available(self) -> bool:
        return _supports["it"]

    def get_device_name(self, device=None) -> str:
        return "a logical accelerator"

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device=None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device=None) -> None:
        torch.set_rng_state(state)


class Held(torch.Tensor):
    """A tensor on the accelerator."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=f"{NAME}:0"
        )

    def __init__(self, held: torch.Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.held = value.held

    def untyped_storage(self):
        return self.held.untyped_storage()

    def tolist(self):
        return self.held.tolist()

    def __repr__(self, **_) -> str:
        return f"Held({self.held!r})"


class _Factories(TorchDispatchMode):
    """Tensors that are made on the accelerator from nothing."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    flat, form = tree_flatten((args, kwargs))
    on_accelerator = [x for x in flat if isinstance(x, Held)]
    requested = kwargs.get("device")
    on_it = bool(on_accelerator) if requested is None else torch.device(requested).type == NAME
    if not on_accelerator and not on_it:
        return function(*args, **kwargs)
    on_cpu = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Held)]
    mixed = [x for x in on_cpu if on_accelerator and function not in BETWEEN and (x.dim() or function in ALIKE)]
    if mixed:
        raise RuntimeError(f"{function}: expected all tensors on one device, found {NAME} and {mixed[0].device}")
    computed.add(str(function))
    wrapped = {id(x.held): x for x in on_accelerator}
    args, kwargs = tree_unflatten([x.held if isinstance(x, Held) else x for x in flat], form)
    if requested is not None:
        kwargs = {**kwargs, "device": "cpu" if on_it else requested}
    if function is aten._efficientzerotensor.default:  # such zeros need a dispatch key that a wrapper lacks
        function = aten.zeros.default
    if function is aten.copy_.default and not isinstance(flat[0], Held):
        args[0].copy_(args[1])
        return flat[0]
    result = function(*args, **kwargs)
    if not on_it:
        return result.clone() if function is aten._to_copy.default else result

    def wrap(x):
        if not isinstance(x, torch.Tensor):
            return x
        if x.dtype == torch.float64 and not _supports["float64"]:
            raise TypeError(f"{function}: {NAME} has no float64")
        return wrapped[id(x)] if id(x) in wrapped else Held(x)

    return tree_map(wrap, result)


def _apply(module, function, recurse=True, own=torch.nn.Module._apply):
    """What `module.to(device)` is made of: parameters change in place, so that tied ones stay tied."""
    moves = not all(isinstance(p, Held) for p in module.parameters())
    torch.__future__.set_swap_module_params_on_conversion(moves)
    try:
        return own(module, function, recurse)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def register() -> None:
    """Make the device known to torch; before the first backward pass, which starts a thread for each device.

    Inference tensors cannot be wrapped, so from here on `inference_mode` means `no_grad`: to be called before modules
    are imported that use it as a decorator.
    """
    torch.inference_mode = torch.no_grad
    _setup_privateuseone_for_python_backend(NAME, _Module())

    @torch.library.impl("aten::empty_strided", "PrivateUse1")
    def empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
        return Held(torch.empty_strided(size, stride, dtype=dtype))

    @torch.library.impl("aten::_copy_from", "PrivateUse1")
    def copy_from(source, to, non_blocking=False):
        to.held.copy_(getattr(source, "held", source))
        return to


@contextmanager
def accelerator(float64: bool = True) -> Iterator[str]:
    """The device's name; it is on this machine inside the block only."""
    from lmdynamics.devices import has_float64

    before = dict(_supports)
    _supports.update(it=True, float64=float64)
    has_float64.cache_clear()
    try:
        with _Factories(), patch.object(torch.nn.Module, "_apply", _apply):
            yield NAME
    finally:
        _supports.update(before)
        has_float64.cache_clear()

"""What computed a result: versions, device, precision, memory; and arithmetic that repeats bit for bit."""

import os
import platform
import resource
import subprocess
import sys
import time
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

DETERMINISTIC = "LMDYNAMICS_DETERMINISTIC"  # set to 1, it makes GPUs repeat themselves; a CPU does so in any case
_STARTED = time.monotonic()


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, device kind and name, dtype, peak memory (MiB) of this process, and its age (s).

    What torch knows is asked only where torch has been imported.
    """
    unit = 2**20 if sys.platform == "darwin" else 2**10
    told = {
        **versions(),
        "commit": commit(),
        "device": device.partition(":")[0],
        "device_name": platform.processor() or platform.machine(),
        "dtype": "float32",
        "deterministic": device == "cpu" or bool(os.environ.get(DETERMINISTIC)),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit),
        "peak_gpu_mb": None,
        "seconds": round(time.monotonic() - _STARTED, 1),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        told["dtype"] = str(torch.get_default_dtype()).removeprefix("torch.")
        if told["device"] == "cuda" and torch.cuda.is_available():
            told["device_name"] = torch.cuda.get_device_name()
            told["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return told


def repeatable() -> None:
    """Let torch use only algorithms that repeat themselves, if `LMDYNAMICS_DETERMINISTIC` asks for it.

    An operation that has none raises a RuntimeError, which names it.
    """
    if os.environ.get(DETERMINISTIC):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        import torch

        torch.use_deterministic_algorithms(True)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    packages = ("lmdynamics", "torch", "transformers", "tokenizers", "accelerate", "numpy", "polars")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The commit of the checkout that this package lies in, with "+" if files differ from it; None without one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        named, changed = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return named.strip() + ("+" if changed.strip() else "")

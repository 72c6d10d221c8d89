"""What computed a result: versions, device, precision, memory; and arithmetic that repeats bit for bit."""

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

DETERMINISTIC = "LMDYNAMICS_DETERMINISTIC"  # set to 1, it makes GPUs repeat themselves; a CPU does so in any case
_STARTED = time.monotonic()


def environment(computed: Iterable[tuple[str, str, str]] = ()) -> dict[str, Any]:
    """Versions, kinds and names of the devices that computed, their precision, peak memory (MiB) of this process, and
    its age (s).

    `computed`: kind, precision and name of each device, as `devices.computed` gives them; several are joined by "+".
    Without any, it was the CPU. What torch knows is asked only where torch has been imported.
    """
    processor = platform.processor() or platform.machine()
    computed = list(computed) or [("cpu", "float32", "cpu")]
    kinds, precisions, names = (sorted(set(column)) for column in zip(*computed, strict=True))
    told = {
        **versions(),
        "commit": commit(),
        "device": "+".join(kinds),
        "device_name": ", ".join(processor if name == "cpu" else name for name in names),
        "dtype": "+".join(precisions),
        "deterministic": kinds == ["cpu"] or bool(os.environ.get(DETERMINISTIC)),
        "peak_mb": peak_mb(resource.RUSAGE_SELF),
        "peak_gpu_mb": None,
        "seconds": round(time.monotonic() - _STARTED, 1),
    }
    torch = sys.modules.get("torch")
    if torch is not None and "cuda" in kinds and torch.cuda.is_available():
        peaks = map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))
        told["peak_gpu_mb"] = round(max(peaks) / 2**20)
    return told


def peak_mb(whose: int) -> int:
    """Memory (MiB) of this process, or of the largest that it has started and that has ended; see `resource`."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, otherwise KiB
    return round(resource.getrusage(whose).ru_maxrss / unit)


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

"""The environment of a result (versions, device, precision, memory), and deterministic arithmetic."""

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

DETERMINISTIC = "LMDYNAMICS_DETERMINISTIC"  # 1: GPUs compute deterministically; a CPU always does
_STARTED = time.monotonic()


def environment(computed: Iterable[tuple[str, str, str]] = ()) -> dict[str, Any]:
    """Versions, kinds and names of the devices that computed, their precision, peak memory (MiB) of this process, and
    its age (s).

    `computed`: kind, precision and name of each device, as `devices.computed` returns them; several are joined by "+".
    If empty, the CPU computed. GPU memory is included only if torch has been imported.
    """
    processor = platform.processor() or platform.machine()
    computed = list(computed) or [("cpu", "float32", "cpu")]
    kinds, precisions, names = (sorted(set(column)) for column in zip(*computed, strict=True))
    facts = {
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
        facts["peak_gpu_mb"] = round(max(peaks) / 2**20)
    return facts


def peak_mb(who: int) -> int:
    """Peak memory (MiB) of this process, or of its largest finished child; `who`: as in `resource.getrusage`."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, otherwise KiB
    return round(resource.getrusage(who).ru_maxrss / unit)


def repeatable() -> None:
    """Let torch use only deterministic algorithms, if `LMDYNAMICS_DETERMINISTIC` is set.

    An operation without one raises a RuntimeError that names it.
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
    """The commit of the checkout of this package, with "+" if files differ from it; None outside a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        revision, changes = (
            subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
            for arguments in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.strip() + ("+" if changes.strip() else "")

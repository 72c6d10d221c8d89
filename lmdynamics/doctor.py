"""`lmdynamics doctor`: checks versions, devices, data folders and widgets on this machine."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from lmdynamics import paths
from lmdynamics.devices import available_devices, device_kind, device_name, has_float64
from lmdynamics.errors import UserError
from lmdynamics.jobs import available_cores

_LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "polars", "altair", "papermill", "jupyterlab")
_WIDGETS = {  # packages of an explorer, and their JupyterLab extension
    "ipywidgets": "@jupyter-widgets/jupyterlab-manager",
    "anywidget": "anywidget",
    "vl-convert-python": None,
}


def report() -> int:
    """Print one line per check, with `!` before a problem. Returns 1 if there are problems, else 0."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    problems = 0
    for title, findings in (
        ("versions", _versions()),
        ("devices", _devices()),
        ("data", _data()),
        ("widgets", _widgets()),
    ):
        console.print(f"[bold]{title}[/]")
        for ok, line in findings:
            problems += not ok
            console.print(f"  {' ' if ok else '!'} {line}", markup=False, style=None if ok else "yellow")
    return int(problems > 0)


def _versions() -> Iterator[tuple[bool, str]]:
    ok = sys.version_info >= (3, 11)
    yield ok, f"Python {platform.python_version()}" + ("" if ok else "; 3.11 or newer is needed")
    yield True, f"{platform.system()} {platform.release()}, {platform.machine()}"
    for name in ("lmdynamics", *_LIBRARIES):
        version = _version(name)
        yield version is not None, f"{name} {version}" if version else f"{name} is not installed; run `make setup`"


def _devices() -> Iterator[tuple[bool, str]]:
    try:
        import torch
    except ImportError as error:
        yield False, f"torch does not load: {error}"
        return
    yield True, f"cpu: {available_cores()} cores, torch uses {torch.get_num_threads()} threads; {_bf16_on_cpu()}"
    accelerators = available_devices()[1:]
    for device in accelerators:
        if device_kind(device) == "cuda":
            properties = torch.cuda.get_device_properties(device)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            yield True, f"{device}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"
        else:
            yield True, f"{device}: {device_name(device)}" + ("" if has_float64(device) else ", no float64")
    if not accelerators:
        yield True, "no GPU: the smoke and default profiles are made for this, the full profile is not"


def _bf16_on_cpu() -> str:
    import torch

    capabilities = torch.cpu.get_capabilities()
    fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16 in hardware" if fast else "bf16 works, but is slow here"


def _data() -> Iterator[tuple[bool, str]]:
    try:
        home, _ = paths.home(), paths.real_data_dirs()
    except UserError as error:
        yield False, str(error)
        return
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    writable = os.access(existing, os.W_OK)
    yield (
        writable,
        f"results: {home}" + ("" if writable else " (not writable; set LMDYNAMICS_HOME to a folder that is)"),
    )
    runs = paths.runs_dir()
    names = sorted(folder.name for folder in runs.glob("*") if (folder / "run.json").exists()) if runs.exists() else []
    yield True, f"runs: {', '.join(names) if names else 'none yet; `lmdynamics train grammar-mlm` makes one'}"
    yield True, f"cache: {_size(paths.cache_dir())} in {paths.cache_dir()}"
    data_folder = os.environ.get("LMDYNAMICS_DATA")
    if data_folder is None:
        yield True, "LMDYNAMICS_DATA is not set: real corpora come from `lmdynamics fetch NAME`"
    elif Path(data_folder).expanduser().is_dir():
        yield True, f"LMDYNAMICS_DATA: {Path(data_folder).expanduser().absolute()}"
    else:
        yield False, f"LMDYNAMICS_DATA is {data_folder}, and there is no such folder"
    fetched = home / "fetched"
    entries = fetched.iterdir() if fetched.is_dir() else ()
    names = sorted(path.name for path in entries if not path.name.startswith("."))
    yield True, f"fetched: {', '.join(names) or 'nothing'}"


def _widgets() -> Iterator[tuple[bool, str]]:
    extensions = _extensions()
    for name, extension in _WIDGETS.items():
        version = _version(name)
        if version is None:
            yield False, f"{name} is not installed; run `make setup`"
        elif extension is not None and extension not in extensions:
            yield False, f"{name} {version}, but JupyterLab does not find its extension {extension}; run `make setup`"
        elif extension is not None and not extensions[extension]:
            yield False, f"{name} {version}, but its extension is off: `jupyter labextension enable {extension}`"
        else:
            yield True, f"{name} {version}"
    try:
        import altair

        altair.JupyterChart.enable_offline()
        yield True, "live charts work without a network"
    except Exception as error:  # any error is reported
        yield False, f"live charts will not show: {type(error).__name__}: {error}"


def _extensions() -> dict[str, bool]:
    """JupyterLab's installed extensions by name, each with whether it is enabled."""
    from jupyter_core.paths import jupyter_path
    from jupyterlab_server.config import get_federated_extensions, get_page_config

    folders = jupyter_path("labextensions")
    disabled = get_page_config(folders).get("disabledExtensions", [])
    return {name: name not in disabled for name in get_federated_extensions(folders)}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _size(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    return f"{size / 2**20:.0f} MiB"

"""Download real corpora and verify them.

`data/sources.toml` lists, for each source, its licence and every file with its sha256 at a pinned commit.
"""

import ipaddress
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from lmdynamics import files, paths
from lmdynamics.downloads import ATTEMPTS, RETRIED, Failed, attempt, checked, count_new_bytes, receive
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.progress import bar

if TYPE_CHECKING:
    import httpx2


@dataclass(frozen=True)
class Source:
    """One corpus: title, licence, and its files as {path below `path` and `base`: sha256}."""

    name: str
    title: str
    licence: str
    homepage: str
    path: str  # local folder, below $LMDYNAMICS_DATA or the folder of fetched corpora
    base: str  # URL that the files' paths are appended to
    bytes: int  # of all files together
    files: dict[str, str] = field(repr=False, hash=False)

    def __post_init__(self):
        for path in (self.path, *self.files):
            if not is_safe(path):
                raise UserError(f"source {self.name} has the path {path!r}, which is outside its folder; correct it")


@cache
def sources() -> dict[str, Source]:
    """Every source in `data/sources.toml`, by name."""
    tables = tomllib.loads(paths.shipped("sources.toml").read_text(encoding="utf-8"))
    return {name: Source(name=name, **table) for name, table in tables.items()}


def locate(name: str) -> Path:
    """The folder of a source: under `$LMDYNAMICS_DATA`, or where `lmdynamics fetch` put it.

    Raises UserError if the name is unknown, or neither folder has the source.
    """
    for folder in paths.real_data_dirs():
        if (candidate := folder / _source(name).path).is_dir():
            return candidate
    raise UserError(f"{name} is not on this machine; run `lmdynamics fetch {name}` or set LMDYNAMICS_DATA")


def fetch(name: str, *, base: str | None = None, progress: bool | None = None) -> Path:
    """Download a source, unless it is complete already, and return its folder.

    Its title, licence and size are printed first, on standard error. `base` is a mirror to use instead of the
    source's own URL; the sha256 of each file is checked in any case. See `download`.
    """
    source = _source(name)
    folder = paths.home() / "fetched" / source.path
    print(f"{source.title}. Licence: {source.licence}. {source.homepage}", file=sys.stderr)
    print(f"{len(source.files)} files, {source.bytes / 1e6:.1f} MB", file=sys.stderr)
    return download(source, folder, base=base, progress=progress)


def download(source: Source, folder: Path, *, base: str | None = None, progress: bool | None = None) -> Path:
    """Download the source's files to `folder`, and check the sha256 of each.

    The folder appears only when it is complete. Files are first written to `FOLDER.part` beside it, where a later call,
    or the next attempt after a broken connection, resumes from the last byte. Of two processes, one waits.
    Plain http is refused, also after a redirect, except from this machine itself.

    Raises UserError if the server cannot be reached or refuses, a file is not the expected one, or the disk is full.
    """
    import httpx2

    base = (base or source.base).rstrip("/")
    partial_folder = folder.with_name(folder.name + ".part")
    client = httpx2.Client(headers={"User-Agent": "lmdynamics"}, event_hooks={"request": [_refuse_plain_http]})
    with files.saving(str(folder)), client, files.locked(folder.with_name(folder.name + ".lock")):
        if folder.is_dir() and all(_is_file(folder / path, sha256) for path, sha256 in source.files.items()):
            return folder
        if folder.is_dir() and not partial_folder.exists():
            folder.rename(partial_folder)  # intact files are not downloaded again
        with bar(source.bytes, source.name, progress, unit="B") as meter:
            meter.unit_scale = True
            for path, sha256 in source.files.items():
                target = partial_folder / path
                if _is_file(target, sha256):
                    meter.update(target.stat().st_size)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                _download_file(
                    client, f"{base}/{quote(path)}", target, sha256, source.bytes, count_new_bytes(meter.update)
                )
        partial_folder.rename(folder)
    return folder


def _download_file(
    client: "httpx2.Client", url: str, target: Path, sha256: str, max_bytes: int, on_progress: Callable[[int], object]
) -> None:
    """Download one file to `target`, with retries; it has at most `max_bytes` bytes."""
    part = target.with_name(target.name + ".part")

    def refusal(file: Path) -> str:
        return f"{url} has sha256 {files.sha256(file)}, expected {sha256}; it was deleted: the server has another file"

    def download_part() -> Path:
        return attempt(lambda: receive(client, url, part, max_bytes, on_progress), url, partial(_failed, url))

    checked(download_part, partial(_is_file, sha256=sha256), url, refusal).replace(target)


def _failed(url: str, error: Exception) -> Failed:
    from httpx2 import RequestError
    from huggingface_hub.errors import HfHubHTTPError

    response = error.response if isinstance(error, HfHubHTTPError) else None
    if response is not None:
        problem = f"the server answered {response.status_code} {response.reason_phrase}".strip()
        if not response.is_server_error and response.status_code not in RETRIED:
            raise UserError(f"{url}: {problem}; nothing was fetched for this file") from None
    elif isinstance(error, RequestError):
        problem = str(error) or type(error).__name__
    else:
        raise error
    advice = "the part received is kept, run the same command again to resume"
    return Failed(problem, UserError(f"{url}: {problem}, {ATTEMPTS} times; {advice}"), response)


def _refuse_plain_http(request: "httpx2.Request") -> None:
    url = urlsplit(str(request.url))
    if url.scheme != "https" and not (url.scheme == "http" and _is_this_machine(url.hostname or "")):
        raise UserError(f"{request.url} is not https; nothing is downloaded over an unencrypted connection")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _source(name: str) -> Source:
    if name not in sources():
        raise UserError(f"no source {name!r}{did_you_mean(name, sources())}")
    return sources()[name]


def is_safe(path: str) -> bool:
    """Whether a path stays below the folder it is joined to, on any system."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and not {"\\", "\0"} & set(path)


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and files.sha256(path) == sha256

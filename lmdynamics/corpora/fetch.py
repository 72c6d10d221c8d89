"""Real corpora: where they come from, and bringing them here whole.

`data/sources.toml` names, for each source, its licence and every file with its sha256 at a pinned commit.
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
    """One corpus: what it is, under which licence, and its files as {path below `path` and `base`: sha256}."""

    name: str
    title: str
    licence: str
    homepage: str
    path: str  # the folder it lies in here, below $LMDYNAMICS_DATA or among what was fetched
    base: str  # URL that the files' paths follow
    bytes: int  # of all files together
    files: dict[str, str] = field(repr=False, hash=False)

    def __post_init__(self):
        for path in (self.path, *self.files):
            if not is_safe(path):
                raise UserError(f"source {self.name} has the path {path!r}, which leads out of its folder; correct it")


@cache
def sources() -> dict[str, Source]:
    """Every source in `data/sources.toml`, by name."""
    tables = tomllib.loads(paths.shipped("sources.toml").read_text(encoding="utf-8"))
    return {name: Source(name=name, **table) for name, table in tables.items()}


def locate(name: str) -> Path:
    """The folder of a source: under `$LMDYNAMICS_DATA`, or where `lmdynamics fetch` put it.

    Raises UserError if the name is unknown, or the source is in neither place.
    """
    for folder in paths.real_data_dirs():
        if (place := folder / _named(name).path).is_dir():
            return place
    raise UserError(f"{name} is not on this machine; run `lmdynamics fetch {name}` or set LMDYNAMICS_DATA")


def fetch(name: str, *, base: str | None = None, progress: bool | None = None) -> Path:
    """Bring a source here and return its folder; at once if it is here whole.

    Its title, licence and size are printed first, on standard error. `base` is a mirror to use instead of the
    source's own URL: the sha256 of each file is checked all the same. See `download`.
    """
    source = _named(name)
    folder = paths.home() / "fetched" / source.path
    print(f"{source.title}. Licence: {source.licence}. {source.homepage}", file=sys.stderr)
    print(f"{len(source.files)} files, {source.bytes / 1e6:.1f} MB", file=sys.stderr)
    return download(source, folder, base=base, progress=progress)


def download(source: Source, folder: Path, *, base: str | None = None, progress: bool | None = None) -> Path:
    """Fill `folder` with the source's files, each checked against its sha256.

    The folder appears whole or not at all: files gather in `FOLDER.part` beside it, where a later call, or the next
    attempt after a broken connection, goes on from the byte where the last one stopped. Of two processes, one waits.
    Plain http is refused, also after a redirect, except from this machine itself.

    Raises UserError if the server cannot be reached or refuses, a file is not the expected one, or the disk is full.
    """
    import httpx2

    base = (base or source.base).rstrip("/")
    gathering = folder.with_name(folder.name + ".part")
    client = httpx2.Client(headers={"User-Agent": "lmdynamics"}, event_hooks={"request": [_refuse_plain_http]})
    with files.saving(str(folder)), client, files.locked(folder.with_name(folder.name + ".lock")):
        if folder.is_dir() and all(_is_file(folder / path, sha256) for path, sha256 in source.files.items()):
            return folder
        if folder.is_dir() and not gathering.exists():
            folder.rename(gathering)  # files that are as they should be need not come again
        with bar(source.bytes, source.name, progress, unit="B") as meter:
            meter.unit_scale = True
            for path, sha256 in source.files.items():
                target = gathering / path
                if _is_file(target, sha256):
                    meter.update(target.stat().st_size)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                on_position = count_new_bytes(meter.update)
                _download_file(client, f"{base}/{quote(path)}", target, sha256, source.bytes, on_position)
        gathering.rename(folder)
    return folder


def _download_file(
    client: "httpx2.Client", url: str, target: Path, sha256: str, most: int, reached: Callable[[int], object]
) -> None:
    """One file, attempt after attempt, to `target`; `most` bytes is more than it can be."""
    part = target.with_name(target.name + ".part")

    def refusal(wrong: Path) -> str:
        return (
            f"{url} has sha256 {files.sha256(wrong)}, expected {sha256}; it was thrown away: the file there is another"
        )

    def bring() -> Path:
        return attempt(lambda: receive(client, url, part, most, reached), url, partial(_failed, url))

    checked(bring, partial(_is_file, sha256=sha256), url, refusal).replace(target)


def _failed(url: str, error: Exception) -> Failed:
    from httpx2 import RequestError
    from huggingface_hub.errors import HfHubHTTPError

    answer = error.response if isinstance(error, HfHubHTTPError) else None
    if answer is not None:
        problem = f"the server answered {answer.status_code} {answer.reason_phrase}".strip()
        if not answer.is_server_error and answer.status_code not in RETRIED:
            raise UserError(f"{url}: {problem}; nothing was fetched for this file") from None
    elif isinstance(error, RequestError):
        problem = str(error) or type(error).__name__
    else:
        raise error
    kept = "what has arrived is kept, run the same again to go on"
    return Failed(problem, UserError(f"{url}: {problem}, {ATTEMPTS} times; {kept}"), answer)


def _refuse_plain_http(request: "httpx2.Request") -> None:
    url = urlsplit(str(request.url))
    if url.scheme != "https" and not (url.scheme == "http" and _is_this_machine(url.hostname or "")):
        raise UserError(f"{request.url} is not https; nothing is fetched over an open connection")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _named(name: str) -> Source:
    if name not in sources():
        raise UserError(f"no source {name!r}{did_you_mean(name, sources())}")
    return sources()[name]


def is_safe(path: str) -> bool:
    """Whether a path stays below the folder it is joined to, on any system."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and not {"\\", "\0"} & set(path)


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and files.sha256(path) == sha256

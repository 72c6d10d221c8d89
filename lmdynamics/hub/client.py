"""Requests to the hub through its own client: listings and single files; each error becomes one clear line.

`HF_ENDPOINT`, `HF_HOME` (or `HF_HUB_CACHE`), `HF_TOKEN` and `HF_HUB_OFFLINE` are read at each request, so that a
notebook may set them.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lmdynamics import downloads, files
from lmdynamics.errors import UserError, one_line, printable, shortened

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
OFFLINE_MESSAGE = "the hub is not asked while HF_HUB_OFFLINE is set"
Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at one commit. `sha256` is None outside large-file storage; `blob` is git's SHA-1."""

    path: str
    bytes: int
    sha256: str | None
    blob: str

    @property
    def identity(self) -> str:
        """Equal for equal content."""
        return self.sha256 or f"git-{self.blob}"

    def matches(self, path: Path) -> bool:
        """Whether a file on disk has this content."""
        if not path.is_file() or path.stat().st_size != self.bytes:
            return False
        with path.open("rb") as content:
            if self.sha256:
                return hashlib.file_digest(content, "sha256").hexdigest() == self.sha256
            head = hashlib.sha1(b"blob %d\0" % self.bytes, usedforsecurity=False)
            return hashlib.file_digest(content, lambda: head).hexdigest() == self.blob


def cache() -> Path:
    """The cache folder of the hub's client, which other programs share."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def token() -> str | None:
    return os.environ.get("HF_TOKEN") or None


def is_offline() -> bool:
    """Whether a variable forbids requests."""
    return any(os.environ.get(name, "0").lower() not in ("", "0", "false", "no", "off") for name in OFFLINE)


def api() -> "HfApi":
    from huggingface_hub import HfApi, get_session

    session = get_session()
    if session.timeout.read is None:  # the client's default is to wait forever
        session.timeout = downloads.TIMEOUT
    return HfApi(endpoint=endpoint(), token=token(), library_name="lmdynamics")


def references(repository: str) -> dict[str, str]:
    """Branches and tags of a repository with their commits."""
    refs = _request(lambda: api().list_repo_refs(repository), repository)
    return {ref.name: ref.target_commit for ref in [*refs.tags, *refs.branches]}


def repositories(pattern: str) -> list[str]:
    """Repositories whose name matches `OWNER/NAME` with stars."""
    from fnmatch import fnmatchcase

    owner, _, name = pattern.partition("/")
    search = max(name.split("*"), key=len).strip("-_.")
    models = _request(lambda: list(api().list_models(author=owner, search=search)), pattern)
    return sorted(model.id for model in models if fnmatchcase(model.id, pattern))


def commits(repository: str, branch: str) -> list[tuple[str, str]]:
    """Commits of a branch with their titles, the latest first."""
    listed = _request(lambda: api().list_repo_commits(repository, revision=branch), f"{repository} {branch}")
    return [(commit.commit_id, commit.title) for commit in listed]


def tree(repository: str, commit: str) -> list[RemoteFile]:
    """Every file at a commit: sizes and hashes, without a download."""
    listed = _request(
        lambda: list(api().list_repo_tree(repository, revision=commit, recursive=True)), f"{repository} {commit}"
    )
    return [
        RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in listed
        if hasattr(entry, "blob_id")
    ]


def download(repository: str, commit: str, file: RemoteFile, report: Callable[[int], object]) -> Path:
    """Download a file into the client's cache, and check its content. `report` is called with the bytes received.

    A broken download resumes, in a later call too; the client alone would start it again.

    Raises UserError if it cannot be downloaded, or twice does not match the listing.
    """
    from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    label, name = f"{repository} {file.path}", file.sha256 or file.blob
    source = {"revision": commit, "endpoint": endpoint()}
    expected = f"sha256 {file.sha256}" if file.sha256 else f"git object {file.blob}"
    refusal = (
        f"{label} should have {expected}; the server sent other content twice. "
        "It was deleted; try another mirror (HF_ENDPOINT), or later"
    )

    def fetch() -> Path:
        options = {**source, "cache_dir": cache(), "token": token()}
        return Path(_request(lambda: hf_hub_download(repository, file.path, **options), label))

    def receive() -> Path:
        # not the address of the redirect, which expires within the hour
        url = hf_hub_url(repository, file.path, **source)
        return _request(
            lambda: downloads.receive(get_session(), url, part, file.bytes, position, size=file.bytes, **_headers()),
            label,
        )

    with files.saving(f"{label} in {cache()}", "HF_HOME"):
        if not HASH.fullmatch(name) or file.bytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
            path = downloads.checked(fetch, file.matches, label, lambda _: refusal)
            report(file.bytes)  # the client shows its own progress
            return path
        folder = repo_folder_name(repo_id=repository, repo_type="model")
        blob, position = cache() / folder / "blobs" / name, downloads.count_new_bytes(report)
        part = blob.with_name(f"{name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(cache() / ".locks" / folder / f"{name}.part.lock"):
            if not file.matches(blob):
                blob.unlink(missing_ok=True)  # damaged
                downloads.checked(receive, file.matches, label, lambda _: refusal).replace(blob)
        path = fetch()  # finds the content, and links it under this commit
        return path if path.samefile(blob) else downloads.checked(fetch, file.matches, label, lambda _: refusal)


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(token=token(), library_name="lmdynamics")


def range_reader(repository: str, commit: str, file: RemoteFile) -> Callable[[int, int], bytes]:
    """A function of `start` and `size` that downloads these bytes of a file.

    Raises UserError if it fails, or the server does not send parts of files.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import hf_raise_for_status

    label = f"{repository} {file.path}"
    url = hf_hub_url(repository, file.path, revision=commit, endpoint=endpoint())
    forwarded: list[str] = []  # the address of the last redirect, which is valid for a short time

    def read(start: int, size: int) -> bytes:
        def ask() -> bytes:
            api()  # sets the timeout
            headers = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
            address = forwarded.pop() if forwarded else url
            headers |= _headers() if address == url else {}
            with get_session().stream("GET", address, headers=headers, follow_redirects=True) as answer:
                hf_raise_for_status(answer)
                if answer.status_code != 206:
                    raise UserError(f"{label}: the server sends whole files only; fetch them, and audit them here")
                content = answer.read()
            if len(content) != size:
                raise OSError(f"{len(content):,} bytes received instead of {size:,}")
            forwarded.append(str(answer.url))
            return content

        return _request(ask, label) if size else b""

    return read


class Unreachable(UserError):
    """The hub does not answer, or requests are forbidden."""


def _request(ask: Callable[[], Result], label: str) -> Result:
    """Send a request, and retry it after temporary errors.

    Raises UserError for other errors; Unreachable if there is no answer.
    """
    if is_offline():
        raise Unreachable(f"{label}: {OFFLINE_MESSAGE}")
    return downloads.attempt(ask, label, lambda error: _failed(error, label))


def _failed(error: Exception, label: str) -> downloads.Failed:
    """A temporary error with its message; any other error is raised."""
    from huggingface_hub import errors

    match error:
        case errors.OfflineModeIsEnabled():
            raise Unreachable(f"{label}: {OFFLINE_MESSAGE}") from None
        case errors.GatedRepoError():
            raise UserError(
                f"{label} is gated: accept its terms on its page on the hub, then set HF_TOKEN or run `hf auth login`"
            ) from None
        case errors.RepositoryNotFoundError():
            raise UserError(
                f"{label}: the hub has no such repository, or it is private; check OWNER/NAME, or set HF_TOKEN"
            ) from None
        case errors.RevisionNotFoundError():
            raise UserError(f"{label}: that commit no longer exists; `lmdynamics audit` lists what moved") from None
        case errors.RemoteEntryNotFoundError():
            raise UserError(f"{label}: that file no longer exists; `lmdynamics audit` lists what moved") from None
        case errors.HfHubHTTPError(response=answer):
            if answer.status_code == 401:
                raise UserError(f"{label}: the hub does not accept the token; check HF_TOKEN") from None
            problem = f"the hub answered {answer.status_code}"
            last = UserError(f"{label}: {problem}; received data is kept, run the same command again to resume")
            if answer.status_code not in downloads.RETRIED:
                raise last from None
            return downloads.Failed(problem, last, answer)
        case errors.LocalEntryNotFoundError():  # the client's error for: not in the cache, and no answer
            error = error.__cause__ or error
        case OSError(errno=number) if number in files.DISK:
            raise error
        case errors.HTTPError() | OSError():
            pass
        case RuntimeError() if "closed" in str(error):
            pass  # a thread without a connection closes the client that all threads share
        case _:
            raise error
    problem = shortened(printable(one_line(error)), 120)
    return downloads.Failed(problem, Unreachable(f"{label}: the hub cannot be reached ({problem})"))


def format_bytes(size: float) -> str:
    """A size with three digits: 12.3 MB, 4.56 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"

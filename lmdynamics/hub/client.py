"""The hub, as its own client asks it: what there is, and single files; what goes wrong becomes one clear line.

`HF_ENDPOINT`, `HF_HOME` (or `HF_HUB_CACHE`), `HF_TOKEN` and `HF_HUB_OFFLINE` are read when something is asked, so that
a notebook may set them.
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
NOT_ASKED = "the hub is not asked while HF_HUB_OFFLINE is set"
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at one commit. `sha256` where it lies in large-file storage, else `blob`, git's SHA-1."""

    path: str
    bytes: int
    sha256: str | None
    blob: str

    @property
    def identity(self) -> str:
        """The same for the same content."""
        return self.sha256 or f"git-{self.blob}"

    def is_at(self, path: Path) -> bool:
        """Whether a file on disk has this content."""
        if not path.is_file() or path.stat().st_size != self.bytes:
            return False
        with path.open("rb") as content:
            if self.sha256:
                return hashlib.file_digest(content, "sha256").hexdigest() == self.sha256
            head = hashlib.sha1(b"blob %d\0" % self.bytes, usedforsecurity=False)
            return hashlib.file_digest(content, lambda: head).hexdigest() == self.blob


def cache() -> Path:
    """Where the hub's client keeps files: shared with everything else that uses it."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def token() -> str | None:
    return os.environ.get("HF_TOKEN") or None


def is_offline() -> bool:
    """Whether a person has said that nothing may be asked."""
    return any(os.environ.get(name, "0").lower() not in ("", "0", "false", "no", "off") for name in OFFLINE)


def api() -> "HfApi":
    from huggingface_hub import HfApi, get_session

    session = get_session()
    if session.timeout.read is None:  # the client by itself would wait for ever
        session.timeout = downloads.TIMEOUT
    return HfApi(endpoint=endpoint(), token=token(), library_name="lmdynamics")


def references(repository: str) -> dict[str, str]:
    """Branches and tags of a repository with their commits."""
    refs = _asked(lambda: api().list_repo_refs(repository), repository)
    return {ref.name: ref.target_commit for ref in [*refs.tags, *refs.branches]}


def repositories(pattern: str) -> list[str]:
    """Repositories whose name fits `OWNER/NAME` with stars."""
    from fnmatch import fnmatchcase

    owner, _, name = pattern.partition("/")
    search = max(name.split("*"), key=len).strip("-_.")
    found = _asked(lambda: list(api().list_models(author=owner, search=search)), pattern)
    return sorted(model.id for model in found if fnmatchcase(model.id, pattern))


def commits(repository: str, branch: str) -> list[tuple[str, str]]:
    """Commits of a branch with their titles, the last one first."""
    found = _asked(lambda: api().list_repo_commits(repository, revision=branch), f"{repository} {branch}")
    return [(commit.commit_id, commit.title) for commit in found]


def tree(repository: str, commit: str) -> list[RemoteFile]:
    """Every file at a commit: sizes and hashes, without a download."""
    listed = _asked(
        lambda: list(api().list_repo_tree(repository, revision=commit, recursive=True)), f"{repository} {commit}"
    )
    return [
        RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in listed
        if hasattr(entry, "blob_id")
    ]


def download(repository: str, commit: str, file: RemoteFile, arrived: Callable[[int], object]) -> Path:
    """Bring a file into the client's cache, and check its content. `arrived` is told of bytes as they come.

    It is taken up where it broke, by a later call too; the client by itself would begin it anew.

    Raises UserError if it cannot be had, or is twice not what the listing says.
    """
    from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    what, name = f"{repository} {file.path}", file.sha256 or file.blob
    where = {"revision": commit, "endpoint": endpoint()}
    wanted = f"sha256 {file.sha256}" if file.sha256 else f"git object {file.blob}"
    refusal = (
        f"{what} should have {wanted}; twice something else came. "
        "Nothing of it was kept; try another mirror (HF_ENDPOINT), or later"
    )

    def bring() -> Path:
        options = {**where, "cache_dir": cache(), "token": token()}
        return Path(_asked(lambda: hf_hub_download(repository, file.path, **options), what))

    def receive() -> Path:
        # not from where it is forwarded to: that address ends within the hour
        url = hf_hub_url(repository, file.path, **where)
        return _asked(
            lambda: downloads.receive(get_session(), url, part, file.bytes, reached, size=file.bytes, **_headers()),
            what,
        )

    with files.saving(f"{what} in {cache()}", "HF_HOME"):
        if not HASH.fullmatch(name) or file.bytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
            path = downloads.checked(bring, file.is_at, what, lambda _: refusal)
            arrived(file.bytes)  # the client shows how far it is by itself
            return path
        folder = repo_folder_name(repo_id=repository, repo_type="model")
        blob, reached = cache() / folder / "blobs" / name, downloads.count_new_bytes(arrived)
        part = blob.with_name(f"{name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(cache() / ".locks" / folder / f"{name}.part.lock"):
            if not file.is_at(blob):
                blob.unlink(missing_ok=True)  # damaged
                downloads.checked(receive, file.is_at, what, lambda _: refusal).replace(blob)
        path = bring()  # finds the content, and puts it under this commit
        return path if path.samefile(blob) else downloads.checked(bring, file.is_at, what, lambda _: refusal)


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(token=token(), library_name="lmdynamics")


def range_reader(repository: str, commit: str, file: RemoteFile) -> Callable[[int, int], bytes]:
    """A function of `start` and `size` that brings these bytes of a file and nothing else of it.

    Raises UserError if they cannot be had, or the server sends no parts of files.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import hf_raise_for_status

    what = f"{repository} {file.path}"
    url = hf_hub_url(repository, file.path, revision=commit, endpoint=endpoint())
    forwarded: list[str] = []  # where the file's content lies, for the seconds that this takes

    def read(start: int, size: int) -> bytes:
        def ask() -> bytes:
            api()  # which sets how long to wait
            asked = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
            address = forwarded.pop() if forwarded else url
            asked |= _headers() if address == url else {}
            with get_session().stream("GET", address, headers=asked, follow_redirects=True) as answer:
                hf_raise_for_status(answer)
                if answer.status_code != 206:
                    raise UserError(f"{what}: the server sends whole files only; fetch them, and audit what is here")
                content = answer.read()
            if len(content) != size:
                raise OSError(f"{len(content):,} bytes came instead of {size:,}")
            forwarded.append(str(answer.url))
            return content

        return _asked(ask, what) if size else b""

    return read


class Unreachable(UserError):
    """The hub does not answer, or must not be asked."""


def _asked(ask: Callable[[], Thing], what: str) -> Thing:
    """Ask, and ask again where that may help.

    Raises UserError where it does not help; Unreachable where nothing answers.
    """
    if is_offline():
        raise Unreachable(f"{what}: {NOT_ASKED}")
    return downloads.attempt(ask, what, lambda error: _failed(error, what))


def _failed(error: Exception, what: str) -> downloads.Failed:
    """What an error means; one that does not go away by itself is raised."""
    from huggingface_hub import errors

    match error:
        case errors.OfflineModeIsEnabled():
            raise Unreachable(f"{what}: {NOT_ASKED}") from None
        case errors.GatedRepoError():
            raise UserError(
                f"{what} is gated: accept its terms on its page on the hub, then set HF_TOKEN or run `hf auth login`"
            ) from None
        case errors.RepositoryNotFoundError():
            raise UserError(
                f"{what}: the hub has no such repository, or it is private; check OWNER/NAME, or set HF_TOKEN"
            ) from None
        case errors.RevisionNotFoundError():
            raise UserError(f"{what}: that commit is not there any more; `lmdynamics audit` says what moved") from None
        case errors.RemoteEntryNotFoundError():
            raise UserError(f"{what}: that file is not there any more; `lmdynamics audit` says what moved") from None
        case errors.HfHubHTTPError(response=answer):
            if answer.status_code == 401:
                raise UserError(f"{what}: the hub does not accept the token it was given; check HF_TOKEN") from None
            problem = f"the hub answered {answer.status_code}"
            last = UserError(f"{what}: {problem}; what has arrived is kept, run the same again to go on")
            if answer.status_code not in downloads.RETRIED:
                raise last from None
            return downloads.Failed(problem, last, answer)
        case errors.LocalEntryNotFoundError():  # the client's word for: not here, and nobody answers
            error = error.__cause__ or error
        case OSError(errno=number) if number in files.DISK:
            raise error
        case errors.HTTPError() | OSError():
            pass
        case RuntimeError() if "closed" in str(error):
            pass  # a thread that finds no connection closes the client that all of them share
        case _:
            raise error
    problem = shortened(printable(one_line(error)), 120)
    return downloads.Failed(problem, Unreachable(f"{what}: the hub cannot be reached ({problem})"))


def told_bytes(size: float) -> str:
    """12.3 MB, 4.56 GB: three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"

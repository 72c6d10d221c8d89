"""The hub, as its own client asks it: what there is, and single files; what goes wrong becomes one clear line.

`HF_ENDPOINT`, `HF_HOME` (or `HF_HUB_CACHE`), `HF_TOKEN` and `HF_HUB_OFFLINE` are read when something is asked, so that
a notebook may set them.
"""

import errno
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lmdynamics import files
from lmdynamics.errors import UserError, printable, shortened
from lmdynamics.progress import say

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ATTEMPTS = 4  # on top of those that the client makes by itself, which are not for all it asks
FIRST_PAUSE = 1.0  # seconds before the second attempt, doubling after that
LONGEST_PAUSE = 60.0
TIMEOUT = 30.0  # seconds without a byte
RETRIED = (408, 429, 500, 502, 503, 504)
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
SHA256 = re.compile("[0-9a-f]{64}")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


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


def is_offline() -> bool:
    """Whether a person has said that nothing may be asked."""
    return any(os.environ.get(name, "0").lower() not in ("", "0", "false", "no", "off") for name in OFFLINE)


def api() -> "HfApi":
    from huggingface_hub import HfApi, get_session

    session = get_session()
    if session.timeout.read is None:  # the client by itself would wait for ever
        session.timeout = TIMEOUT
    return HfApi(endpoint=endpoint(), token=os.environ.get("HF_TOKEN"), library_name="lmdynamics")


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

    What is large is taken up where it broke, by a later call too; the client by itself would begin it anew.

    Raises UserError if it cannot be had, or is twice not what the listing says.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.file_download import repo_folder_name

    what = f"{repository} {file.path}"
    asked = {"revision": commit, "cache_dir": cache(), "endpoint": endpoint(), "token": os.environ.get("HF_TOKEN")}
    counting = _counting(arrived)

    def bring() -> Path:
        return Path(hf_hub_download(repository, file.path, **asked, tqdm_class=counting))

    if SHA256.fullmatch(file.sha256 or "") and file.bytes <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        folder = repo_folder_name(repo_id=repository, repo_type="model")
        blob = cache() / folder / "blobs" / file.sha256
        part, lock = blob.with_name(f"{blob.name}.part"), cache() / ".locks" / folder / f"{file.sha256}.part.lock"
        with files.saving(what):
            for parent in (part.parent, lock.parent):
                parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not file.is_at(blob):
                blob.unlink(missing_ok=True)  # damaged
                arrived(part.stat().st_size if part.exists() else 0)
                _checked(lambda: _go_on(part, repository, commit, file, counting), file, what)
                part.replace(blob)
        path = Path(_asked(bring, what))  # finds the content, and puts it under this commit
        return path if path.samefile(blob) else _checked(bring, file, what)
    return _checked(bring, file, what)


def range_reader(repository: str, commit: str, file: RemoteFile) -> Callable[[int, int], bytes]:
    """A function of `start` and `size` that brings these bytes of a file and nothing else of it.

    Raises UserError if they cannot be had, or the server sends no parts of files.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    what = f"{repository} {file.path}"
    url = hf_hub_url(repository, file.path, revision=commit, endpoint=endpoint())
    token = build_hf_headers(token=os.environ.get("HF_TOKEN"), library_name="lmdynamics")
    forwarded: list[str] = []  # where the file's content lies, for the seconds that this takes

    def read(start: int, size: int) -> bytes:
        def ask() -> bytes:
            api()  # which sets how long to wait
            asked = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
            address = forwarded.pop() if forwarded else url
            asked |= token if address == url else {}
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


def _go_on(part: Path, repository: str, commit: str, file: RemoteFile, counting: type) -> Path:
    """Bring the rest of a file of which a part may be here."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=os.environ.get("HF_TOKEN"), library_name="lmdynamics")
    headers["Accept-Encoding"] = "identity"  # ranges are of the file, not of what it is compressed to
    # not where it is forwarded to: that address ends within the hour
    url = hf_hub_url(repository, file.path, revision=commit, endpoint=endpoint())
    with part.open("ab") as content:
        here = content.tell()
        if here > file.bytes:
            content.truncate(here := 0)
        http_get(url, content, resume_size=here, headers=headers, expected_size=file.bytes, tqdm_class=counting)
    return part


def _checked(bring: Callable[[], Path], file: RemoteFile, what: str) -> Path:
    """What was brought, if it has the content that is listed; otherwise it is thrown away and brought once more."""
    for _ in range(2):
        path = _asked(bring, what)
        if file.is_at(path):
            return path
        path.resolve().unlink(missing_ok=True)  # the blob, which other commits may share
        path.unlink(missing_ok=True)
        say(f"{what} is not what its listing says; it was thrown away")
    raise UserError(
        f"{what} should have {_told(file)}; twice something else came. "
        "Nothing of it was kept; try another mirror (HF_ENDPOINT), or later"
    )


def _counting(arrived: Callable[[int], object]) -> type:
    """What the client takes for a progress bar of one file."""
    from tqdm import tqdm

    class Counting(tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            arrived(int(n or 0))

    return Counting


class Unreachable(UserError):
    """The hub does not answer, or must not be asked."""


def _told(file: RemoteFile) -> str:
    return f"sha256 {file.sha256}" if file.sha256 else f"git object {file.blob}"


def _asked(ask: Callable[[], Any], what: str) -> Any:
    """Ask, and ask again after a pause where that may help; each time it is said.

    Raises UserError where it does not help; Unreachable where nothing answers.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if is_offline():
        raise Unreachable(f"{what}: the hub is not asked while HF_HUB_OFFLINE is set")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except OfflineModeIsEnabled:
            raise Unreachable(f"{what}: the hub is not asked while HF_HUB_OFFLINE is set") from None
        except GatedRepoError:
            raise UserError(
                f"{what} is gated: accept its terms on its page on the hub, then set HF_TOKEN or run `hf auth login`"
            ) from None
        except RepositoryNotFoundError:
            raise UserError(
                f"{what}: the hub has no such repository, or it is private; check OWNER/NAME, or set HF_TOKEN"
            ) from None
        except RevisionNotFoundError:
            raise UserError(f"{what}: that commit is not there any more; `lmdynamics audit` says what moved") from None
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            if status == 401:
                raise UserError(f"{what}: the hub does not accept the token it was given; check HF_TOKEN") from None
            problem = f"the hub answered {status}"
            if status not in RETRIED or attempt == ATTEMPTS:
                raise UserError(f"{what}: {problem}; what has arrived is kept, run the same again to go on") from None
            pause = _pause(attempt, error.response)
        except LocalEntryNotFoundError as error:  # the client's word for: not here, and nobody answers
            problem, pause = _short(error.__cause__ or error), _pause(attempt)
        except EntryNotFoundError:
            raise UserError(f"{what}: that file is not there any more; `lmdynamics audit` says what moved") from None
        except (HTTPError, OSError, RuntimeError) as error:
            # a thread that finds no connection closes the client that all of them share
            if isinstance(error, RuntimeError) and "closed" not in str(error):
                raise
            if getattr(error, "errno", None) in DISK:
                raise UserError(f"{what}: {os.strerror(error.errno).lower()} in {cache()}; free some space") from None
            problem, pause = _short(error), _pause(attempt)
        if attempt == ATTEMPTS:
            raise Unreachable(f"{what}: the hub cannot be reached ({problem})")
        say(f"{what}: {problem}; trying again in {pause:.0f} s ({attempt} of {ATTEMPTS - 1})")
        sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _pause(attempt: int, response: Any = None) -> float:
    """Seconds before the next attempt: what the hub asks for, or twice as long each time."""
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked) if asked.isdigit() else FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)


def _short(error: BaseException) -> str:
    return shortened(printable(" ".join(f"{type(error).__name__}: {error}".split())), 120)


def told_bytes(size: float) -> str:
    """12.3 MB, 4.56 GB: three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"

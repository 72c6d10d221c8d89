"""Downloads for corpora and suites: resumed, checked when complete, and retried after a pause."""

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from lmdynamics.errors import UserError
from lmdynamics.progress import print_message

if TYPE_CHECKING:
    import httpx2

ATTEMPTS = 5
FIRST_PAUSE = 1.0  # seconds before the second attempt, doubling after that
LONGEST_PAUSE = 60.0
TIMEOUT = 30.0  # seconds without a byte
RETRIED = (408, 429, 500, 502, 503, 504)  # temporary statuses of a server
Thing = TypeVar("Thing")


class Failed(Exception):
    """A temporary failure: the problem in words, and the error to raise after the last attempt."""

    def __init__(self, problem: str, last: UserError, response: "httpx2.Response | None" = None):
        super().__init__(problem)
        self.last = last
        retry_after = response.headers.get("Retry-After", "") if response is not None else ""
        self.pause = float(retry_after) if retry_after.isdigit() else None


def attempt(request: Callable[[], Thing], label: str, explain: Callable[[Exception], Failed]) -> Thing:
    """The result of `request`, retried after temporary failures; each failure is printed.

    `explain` raises a permanent error, and returns a temporary one as `Failed`.
    """
    for number in range(1, ATTEMPTS + 1):
        try:
            return request()
        except Exception as error:
            failed = explain(error)
        if number == ATTEMPTS:
            raise failed.last
        pause = min(FIRST_PAUSE * 2 ** (number - 1) if failed.pause is None else failed.pause, LONGEST_PAUSE)
        print_message(f"{label}: {failed}; trying again in {pause:.0f} s ({number} of {ATTEMPTS - 1})")
        sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def checked(download: Callable[[], Path], is_right: Callable[[Path], bool], label: str, explain: Callable[[Path], str]):
    """A downloaded file, if its content is right; otherwise it is deleted and downloaded once more.

    Raises UserError with `explain` of the second file if it is wrong too.
    """
    for number in range(2):
        path = download()
        if is_right(path):
            return path
        fault = explain(path) if number else ""
        path.resolve().unlink(missing_ok=True)  # the target of a link, which other files may share
        path.unlink(missing_ok=True)
        if not fault:
            print_message(f"{label} differs from its listing; it was deleted")
    raise UserError(fault)


def count_new_bytes(on_bytes: Callable[[int], object]) -> Callable[[int], None]:
    """A function of the position in a file, which calls `on_bytes` with the number of new bytes."""
    reported = 0

    def report_position(position: int) -> None:
        nonlocal reported
        on_bytes(position - reported)
        reported = position

    return report_position


def receive(
    client: "httpx2.Client",
    url: str,
    part: Path,
    max_bytes: int,
    on_position: Callable[[int], object],
    *,
    size: int | None = None,
    **headers: str,
) -> Path:
    """Append the missing bytes of a file to `part`, or write it anew if the server sends no ranges.

    A connection that breaks, or ends before `size` bytes if that is known, is resumed as long as each one adds bytes.
    `on_position`: called with each position.

    Raises UserError after more than `max_bytes` bytes, and the client's errors.
    """
    import httpx2

    while True:
        offset = part.stat().st_size if part.exists() else 0
        try:
            start = offset if offset <= max_bytes else 0
            complete = _receive(client, url, part, start, max_bytes, on_position, headers)
            if complete or size is None or part.stat().st_size >= size:
                return part
            raise httpx2.RemoteProtocolError("the response ended before the file was complete")
        except httpx2.TransportError:
            if not part.exists() or part.stat().st_size <= offset:
                raise
            sleep(FIRST_PAUSE)


def _receive(client, url: str, part: Path, offset: int, max_bytes: int, on_position, headers: dict[str, str]) -> bool:
    """Whether the server reports that nothing is left to send."""
    from huggingface_hub.utils import hf_raise_for_status

    # With compressed transfer the bytes of a partial file would not match the server's ranges.
    headers = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={offset}-"} if offset else {})}
    with client.stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as response:
        if response.status_code == 416 and offset:  # no bytes beyond these: the file is complete, or another one
            on_position(offset)
            return True
        hf_raise_for_status(response)
        content_range = response.headers.get("Content-Range", "")
        resumes = response.status_code == 206 and content_range.startswith(f"bytes {offset}-")
        size = offset if resumes else 0
        on_position(size)
        with part.open("ab" if resumes else "wb") as file:
            for chunk in response.iter_bytes():
                if (size := size + len(chunk)) > max_bytes:
                    raise UserError(f"{url} is larger than {max_bytes:,} bytes; this is another file")
                file.write(chunk)
                on_position(size)
    return False

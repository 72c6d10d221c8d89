"""Downloads for corpora and suites: resumed where they stopped, checked when whole, tried again after a pause."""

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from lmdynamics.errors import UserError
from lmdynamics.progress import say

if TYPE_CHECKING:
    import httpx2

ATTEMPTS = 5
FIRST_PAUSE = 1.0  # seconds before the second attempt, doubling after that
LONGEST_PAUSE = 60.0
TIMEOUT = 30.0  # seconds without a byte
RETRIED = (408, 429, 500, 502, 503, 504)  # statuses of a server that may answer otherwise later
Thing = TypeVar("Thing")


class Failed(Exception):
    """A failure that may not occur again: the problem in words, and the error to raise when attempts are used up."""

    def __init__(self, problem: str, last: UserError, response: "httpx2.Response | None" = None):
        super().__init__(problem)
        self.last = last
        asked = response.headers.get("Retry-After", "") if response is not None else ""
        self.pause = float(asked) if asked.isdigit() else None


def attempt(ask: Callable[[], Thing], what: str, explain: Callable[[Exception], Failed]) -> Thing:
    """The result of `ask`, tried again where that may help; each failure is printed.

    `explain` raises an error that another attempt cannot help against, and returns any other as `Failed`.
    """
    for number in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except Exception as error:
            failed = explain(error)
        if number == ATTEMPTS:
            raise failed.last
        pause = min(FIRST_PAUSE * 2 ** (number - 1) if failed.pause is None else failed.pause, LONGEST_PAUSE)
        say(f"{what}: {failed}; trying again in {pause:.0f} s ({number} of {ATTEMPTS - 1})")
        sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def checked(bring: Callable[[], Path], is_right: Callable[[Path], bool], what: str, refusal: Callable[[Path], str]):
    """A file that was brought, if its content is right; otherwise it is deleted and brought once more.

    Raises UserError with the `refusal` of the second file if that is wrong, too.
    """
    for number in range(2):
        path = bring()
        if is_right(path):
            return path
        wrong = refusal(path) if number else ""
        path.resolve().unlink(missing_ok=True)  # what a link points to, which others may share
        path.unlink(missing_ok=True)
        if not wrong:
            say(f"{what} is not what its listing says; it was thrown away")
    raise UserError(wrong)


def by_position(arrived: Callable[[int], object]) -> Callable[[int], None]:
    """Tell `arrived` the bytes of a file that are new each time that a position in it is reported."""
    reported = 0

    def reached(position: int) -> None:
        nonlocal reported
        arrived(position - reported)
        reported = position

    return reached


def receive(
    client: "httpx2.Client",
    url: str,
    part: Path,
    most: int,
    reached: Callable[[int], object],
    *,
    size: int | None = None,
    **headers: str,
) -> Path:
    """Append the rest of a file to `part`, or write it anew if the server sends no ranges.

    A connection that breaks, or ends before `size` bytes where that is known, is resumed as long as each one brings
    something. `reached`: called with each position.

    Raises UserError if more than `most` bytes come, and the client's errors.
    """
    import httpx2

    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            whole = _receive(client, url, part, have if have <= most else 0, most, reached, headers)
            if whole or size is None or part.stat().st_size >= size:
                return part
            raise httpx2.RemoteProtocolError("the answer ended before the file did")
        except httpx2.TransportError:
            if not part.exists() or part.stat().st_size <= have:
                raise
            sleep(FIRST_PAUSE)


def _receive(client, url: str, part: Path, have: int, most: int, reached, headers: dict[str, str]) -> bool:
    """Whether the server says that nothing is left to send."""
    from huggingface_hub.utils import hf_raise_for_status

    # Compressed transfer would make the bytes of a partial file and the server's ranges two different things.
    headers = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with client.stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as response:
        if response.status_code == 416 and have:  # nothing beyond what is here: it is whole, or not this file's
            reached(have)
            return True
        hf_raise_for_status(response)
        goes_on = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        size = have if goes_on else 0
        reached(size)
        with part.open("ab" if goes_on else "wb") as file:
            for chunk in response.iter_bytes():
                if (size := size + len(chunk)) > most:
                    raise UserError(f"{url} is larger than {most:,} bytes; it is another file")
                file.write(chunk)
                reached(size)
    return False

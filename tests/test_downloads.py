"""Receiving a file from servers that send parts of it, end early or have nothing more; the content is checked above."""

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from lmdynamics import downloads

CONTENT = bytes(range(100))
URL = "https://example.org/file"


@pytest.fixture
def requested(monkeypatch):
    """The ranges that were requested; there are no pauses."""
    monkeypatch.setattr(downloads, "sleep", lambda _: None)
    return []


def client(requested, limit: int = 100, ranges: bool = True) -> httpx2.Client:
    """A server that sends at most so many bytes in one answer, without saying that it has more."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        requested.append(request.headers.get("Range"))
        start = int(requested[-1].removeprefix("bytes=").rstrip("-")) if requested[-1] and ranges else 0
        if start >= len(CONTENT):
            return httpx2.Response(416)
        part = CONTENT[start : start + limit]
        if requested[-1] is None or not ranges:
            return httpx2.Response(200, content=part)
        span = {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(CONTENT)}"}
        return httpx2.Response(206, content=part, headers=span)

    return httpx2.Client(transport=httpx2.MockTransport(answer))


def test_an_answer_that_ends_early_is_resumed(tmp_path, requested):
    positions = []
    part = downloads.receive(client(requested, limit=40), URL, tmp_path / "part", 100, positions.append, size=100)
    assert part.read_bytes() == CONTENT
    assert requested == [None, "bytes=40-", "bytes=80-"]
    assert positions[-1] == 100


def test_one_that_never_brings_more_is_an_error_and_what_came_is_kept(tmp_path, requested):
    with pytest.raises(httpx2.TransportError, match="ended before the file was complete"):
        downloads.receive(
            client(requested, limit=40, ranges=False), URL, tmp_path / "part", 100, lambda _: None, size=100
        )
    assert (tmp_path / "part").read_bytes() == CONTENT[:40]


def test_a_part_that_is_whole_is_taken_and_counted(tmp_path, requested):
    (tmp_path / "part").write_bytes(CONTENT)
    positions = []
    downloads.receive(client(requested), URL, tmp_path / "part", 100, positions.append, size=100)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert (requested, positions) == (["bytes=100-"], [100])


def test_a_server_that_has_nothing_at_all_is_an_error(tmp_path, requested):
    empty_server = httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(416)))
    with pytest.raises(HfHubHTTPError):
        downloads.receive(empty_server, URL, tmp_path / "part", 100, lambda _: None)
    assert not (tmp_path / "part").exists()

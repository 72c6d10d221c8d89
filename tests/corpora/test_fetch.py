"""Fetching, against a server on this machine that knows ranges, cuts connections, redirects and lies."""

import hashlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lmdynamics import downloads
from lmdynamics.corpora import fetch as fetch_module
from lmdynamics.corpora.fetch import Source, download, fetch, locate, sources
from tests.conftest import refuses

CONTENT = {"a.txt": b"first " * 5_000, "inner/b: c's.md": b"second\n" * 100, "empty.txt": b""}


class Server(ThreadingHTTPServer):
    """Serves `content`. `cuts`: after how many bytes to break off, one per request, then no more."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cuts, self.answers, self.requests = dict(content), [], [], []
        self.knows_ranges = True

    def handle_error(self, *_):
        """A client that hung up is part of some tests."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/pinned"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name, given_range = unquote(self.path).removeprefix("/pinned/"), self.headers["Range"]
        self.server.requests.append((name, given_range))
        if self.server.answers:
            status, headers = self.server.answers.pop(0)
            return self.answer(status, {**headers, "Content-Length": "0"})
        if name not in self.server.content:
            return self.answer(404, {"Content-Length": "0"})
        content = self.server.content[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", given_range)[1]) if given_range and self.server.knows_ranges else 0
        if start and start >= len(content):
            return self.answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
        headers = {"Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if start else 200, headers)
        limit = self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(content[start:] if limit is None else content[start : start + limit])
        self.close_connection = limit is not None
        return None

    def answer(self, status, headers):
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def _no_waiting_and_no_proxy(monkeypatch):
    monkeypatch.setattr(downloads, "FIRST_PAUSE", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with Server(CONTENT) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def source_of(content, base, **changes):
    files = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    size = sum(map(len, content.values()))
    about = {"name": "made", "title": "Made up", "licence": "CC0", "homepage": "https://example.org"}
    about |= {"path": "text/made"}
    return Source(**{**about, "base": base, "bytes": size, "files": files, **changes})


@pytest.fixture
def source(server):
    return source_of(CONTENT, server.url)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "fetched" / "made"


def is_whole(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == CONTENT


refusal = partial(refuses, ".")


def test_all_files_come_and_nothing_else_is_left(server, source, folder):
    assert download(source, folder) == folder
    assert is_whole(folder)
    assert {path.name for path in folder.parent.iterdir()} == {"made", "made.lock"}


def test_complete_files_are_not_fetched_again(server, source, folder):
    download(source, folder)
    server.requests.clear()
    download(source, folder)
    assert server.requests == []


def test_a_broken_download_resumes(server, source, folder):
    server.cuts = [10_000, 5_000]
    download(source, folder)
    assert is_whole(folder)
    ranges = [given_range for name, given_range in server.requests if name == "a.txt"]
    assert ranges == [None, "bytes=10000-", "bytes=15000-"]


def test_when_it_keeps_breaking_what_arrived_is_kept_for_the_next_call(server, source, folder):
    server.cuts = [5_000] + [0] * downloads.ATTEMPTS
    message = refusal(download, source, folder)
    assert "5 times; the part received is kept, run the same command again" in message
    assert "5 times" in refusal(download, source_of(CONTENT, "http://127.0.0.1:9"), folder)  # where none answers
    assert not folder.exists()
    server.requests.clear()
    download(source, folder)
    assert is_whole(folder)
    assert server.requests[0] == ("a.txt", "bytes=5000-")


def test_a_server_that_knows_no_ranges_sends_all_again(server, source, folder):
    server.knows_ranges = False
    server.cuts = [10_000]
    download(source, folder)
    assert is_whole(folder)


def test_a_partial_file_of_something_else_is_thrown_away(server, source, folder):
    part = folder.with_name("made.part") / "a.txt.part"
    part.parent.mkdir(parents=True)
    for wrong in (b"other " * 1_000, b"longer " * 10_000):
        part.write_bytes(wrong)
        download(source, folder)
        assert is_whole(folder)
        folder.rename(part.parent)
        (part.parent / "a.txt").unlink()


def test_a_wrong_hash_is_refused_and_nothing_appears(server, source, folder):
    server.content["a.txt"] = b"another"
    message = refusal(download, source, folder)
    assert f"expected {source.files['a.txt']}" in message
    assert not folder.exists()
    assert not list(folder.parent.rglob("a.txt*"))


def test_more_bytes_than_the_source_has_are_not_taken(server, source, folder):
    server.content["a.txt"] = b"x" * 10_000_000
    assert "this is another file" in refusal(download, source, folder)
    assert not folder.exists()


@pytest.mark.parametrize("file", ["a.txt", "inner/b: c's.md"])
def test_a_damaged_or_missing_file_is_fetched_again_and_the_others_are_not(server, source, folder, file):
    download(source, folder)
    for damage in (lambda path: path.write_bytes(b"damaged"), Path.unlink):
        damage(folder / file)
        server.requests.clear()
        download(source, folder)
        assert is_whole(folder)
        assert server.requests == [(file, None)]


def test_what_the_server_does_not_have_is_reported_at_once(server, source, folder):
    del server.content["a.txt"]
    assert "a.txt: the server answered 404 Not Found" in refusal(download, source, folder)
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, source, folder):
    server.answers = [(503, {}), (500, {})]
    download(source, folder)
    assert is_whole(folder)


@pytest.mark.parametrize("base", ["http://example.org/x", "ftp://127.0.0.1/x", "http://127.0.0.1.example.org/x"])
def test_only_https_or_this_machine(source, folder, base):
    assert "is not https" in refusal(download, source, folder, base=base)


def test_a_redirect_to_plain_http_is_refused(server, source, folder):
    server.answers = [(302, {"Location": "http://example.org/a.txt"})]
    assert "http://example.org/a.txt is not https" in refusal(download, source, folder)


def test_a_redirect_is_followed(server, source, folder):
    server.answers = [(302, {"Location": f"{server.url}/a.txt"})]
    download(source, folder)
    assert is_whole(folder)


def test_two_at_once_fetch_it_once(server, source, folder):
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: download(source, folder), range(2))) == [folder, folder]
    assert is_whole(folder)
    assert len(server.requests) == len(CONTENT)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "", "a\0b", "."])
def test_paths_that_lead_out_are_refused(path):
    assert "is outside its folder" in refusal(source_of, {path: b""}, "https://example.org")
    assert "is outside its folder" in refusal(source_of, {}, "https://example.org", path=path)


@given(st.text(alphabet="./\\ab", max_size=8))
def test_a_path_taken_for_safe_stays_inside(path):
    if fetch_module.is_safe(path):
        inside = Path("/top/folder")
        assert inside in (inside / path).resolve().parents


class TestNames:
    @pytest.fixture(autouse=True)
    def _own_home(self, monkeypatch, tmp_path):
        monkeypatch.setenv("LMDYNAMICS_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("LMDYNAMICS_DATA", raising=False)

    @pytest.fixture
    def known(self, source, monkeypatch):
        monkeypatch.setattr(fetch_module, "sources", lambda: {"made": source})

    def test_what_is_fetched_is_located(self, known, server, tmp_path, capsys):
        assert "run `lmdynamics fetch made` or set LMDYNAMICS_DATA" in refusal(locate, "made")
        assert fetch("made") == locate("made") == tmp_path / "home" / "fetched" / "text" / "made"
        printed = capsys.readouterr().err
        assert "Licence: CC0" in printed
        assert "3 files, 0.0 MB" in printed

    def test_half_a_source_is_not_located(self, known, server):
        server.content.pop("empty.txt")
        refusal(fetch, "made")
        assert "is not on this machine" in refusal(locate, "made")

    def test_own_data_come_first(self, known, server, tmp_path, monkeypatch):
        fetch("made")
        own_folder = tmp_path / "own" / "text" / "made"
        own_folder.mkdir(parents=True)
        monkeypatch.setenv("LMDYNAMICS_DATA", str(tmp_path / "own"))
        assert locate("made") == own_folder

    def test_a_mirror_is_checked_all_the_same(self, server, monkeypatch):
        unreachable = source_of(CONTENT, "https://nowhere.invalid")
        monkeypatch.setattr(fetch_module, "sources", lambda: {"made": unreachable})
        assert is_whole(fetch("made", base=server.url + "/"))

    def test_unknown_names_are_refused(self):
        assert "did you mean 'zorro'" in refusal(fetch, "zoro")
        assert "did you mean 'zorro'" in refusal(locate, "zoro")

    def test_the_command_line_lists_and_fetches(self, known, server, tmp_path):
        from lmdynamics.cli import app

        assert "CC0" in CliRunner().invoke(app, ["fetch"]).stdout
        result = CliRunner().invoke(app, ["fetch", "made"])
        assert result.exit_code == 0
        assert Path(result.stdout.splitlines()[-1]) == locate("made")


def test_every_source_is_pinned_checked_and_licensed():
    assert {"books", "ewt", "childes", "atis", "pud", "blimp", "zorro"} <= sources().keys()
    for source in sources().values():
        assert re.match(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}(/|$)", source.base)
        assert source.files
        assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in source.files.values())
        assert source.licence
        assert source.bytes > 0
        assert source.homepage.removeprefix("https://github.com") in source.base


@pytest.mark.parametrize("name", sources())
def test_the_table_is_right_about_the_real_files(real_data, server, tmp_path, monkeypatch, name):
    """What lies under LMDYNAMICS_DATA, served here, passes every check of its source."""
    monkeypatch.setenv("LMDYNAMICS_HOME", str(tmp_path))
    source = sources()[name]
    server.content = {path: (real_data / source.path / path).read_bytes() for path in source.files}
    assert sum(map(len, server.content.values())) == source.bytes
    folder = fetch(name, base=server.url)
    assert folder == tmp_path / "fetched" / source.path
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == source.files.keys()

"""The Hugging Face hub on loopback: repositories with their history, what its client asks for, and faults on demand.

Large files go the way they go on the hub: /resolve/ redirects to a CDN of another origin, which is told no token.
There are no Xet headers, so files come over plain HTTP.
"""

import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".h5", ".pt", ".msgpack", ".ckpt")  # kept in LFS, as .gitattributes says on the hub
AGENTS = "/api/agent-harnesses"


@dataclass(frozen=True)
class File:
    """A file of a commit. `make` gives its content when it is asked for; None where it is declared only."""

    size: int
    sha256: str
    oid: str  # git's name for it: of its content, or of the pointer to it if it is large
    pointer: int = 0  # the pointer's size; 0 if there is none because git holds the content itself
    make: Callable[[], bytes] | None = field(default=None, compare=False)

    @cached_property
    def content(self) -> bytes:
        if self.make is None:
            raise Refused(501, "", "this file is declared by size and sha256 only; it has no content here")
        return self.make()


def declared(size: int, sha256: str, make: Callable[[], bytes] | None = None) -> File:
    """A file in LFS whose content is made when first asked for, or never."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return File(size, sha256, _blob(pointer), len(pointer), make)


def _in_memory(path: str, content: bytes) -> File:
    sha256 = hashlib.sha256(content).hexdigest()
    if path.endswith(LARGE):
        return declared(len(content), sha256, lambda: content)
    return File(len(content), sha256, _blob(content), make=lambda: content)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


@dataclass(frozen=True, eq=False)
class Commit:
    """All files of a repository at one time."""

    sha: str
    files: Mapping[str, File]
    title: str
    parent: "Commit | None" = field(repr=False)

    def history(self) -> "list[Commit]":
        """This commit and those before it, the first last."""
        return [self, *(self.parent.history() if self.parent else [])]


@dataclass
class Repository:
    """A model on the hub: commits, and the branches and tags that point at them."""

    name: str
    gated: bool = False
    readers: set[str] = field(default_factory=set)  # who may read it if it is gated
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, files: Mapping[str, File | bytes], branch: str = "main", title: str = "") -> Commit:
        """Make these the files of a branch, as a commit after its last."""
        parent = self.branches.get(branch)
        stored = {
            path: content if isinstance(content, File) else _in_memory(path, content) for path, content in files.items()
        }
        parts = [self.name, branch, title, parent.sha if parent else "", *(f"{p} {f.oid}" for p, f in stored.items())]
        sha = hashlib.sha1("\n".join([*parts, str(len(self.commits))]).encode()).hexdigest()
        self.commits[sha] = self.branches[branch] = Commit(sha, stored, title or f"{branch} contents", parent)
        return self.commits[sha]

    def move(self, branch: str, to: Commit) -> None:
        self.branches[branch] = to

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a sha names."""
        for revisions in (self.branches, self.tags, self.commits):
            if commit := revisions.get(revision):
                return commit
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class Refused(Exception):
    """No for an answer."""

    def __init__(self, status: int, code: str, message: str, **headers: str):
        super().__init__(message)
        self.answer = json_answer({"error": message}, status)
        self.answer.headers.update({"X-Error-Message": message}, **headers)
        if code:
            self.answer.headers["X-Error-Code"] = code


@dataclass
class Answer:
    """What goes back, and how the connection behaves while it does."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None  # bytes of the body after which the connection ends


def json_answer(data, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(data).encode())


@dataclass
class Request:
    """A request as it came in, and what was planned as its answer: status, and bytes of the body."""

    origin: str  # hub or cdn
    method: str
    target: str  # as sent: still quoted, with its query
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def segments(self) -> list[str]:
        return [unquote(segment) for segment in urlsplit(self.target).path.split("/")[1:]]

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    def __str__(self) -> str:
        return f"{self.method} {unquote(self.target)}"


@dataclass
class Fault:
    change: Callable[[Answer], Answer]
    match: str
    times: int | None  # None: always


class Hub:
    """Repositories behind a loopback address, `url`, while it is started (`with Hub() as hub`)."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, str] = {}  # whose token it is
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        self._ports = {"hub": 0, "cdn": 0}
        self._servers: list[_Server] = []

    def repository(self, name: str) -> Repository:
        """The repository of that name, made if there is none."""
        return self.repositories.setdefault(name, Repository(name))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['hub']}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self._ports['cdn']}"

    def start(self) -> "Hub":
        """Listen; after a stop, where it listened before."""
        for origin, port in self._ports.items():
            server = _Server(self, origin, port)
            self._ports[origin] = server.server_address[1]
            self._servers.append(server)
            server.thread.start()
        return self

    def stop(self) -> None:
        """Refuse connections and end those there are."""
        for server in self._servers:
            server.shutdown()
            server.end_connections()
            server.server_close()
            server.thread.join()
        self._servers.clear()

    def __enter__(self) -> "Hub":
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()
        if self.errors:
            raise ExceptionGroup("the stand-in hub failed", self.errors)

    def requests_matching(self, match: str = "") -> list[Request]:
        """Requests whose `METHOD path?query` holds a match."""
        return [request for request in self.requests if re.search(match, str(request))]

    @property
    def downloads(self) -> list[str]:
        """Paths whose content was asked for, large ones by their path on the CDN."""
        return [
            request.path
            for request in self.requests_matching(r"^GET ")
            if request.origin == "cdn" or (request.segments[2:3] == ["resolve"] and request.status // 100 == 2)
        ]

    # Faults meet requests whose `METHOD path?query` holds a match: the next `times` of them, one fault after the other
    # in the order they were set; a fault whose `times` is None meets all of them, whatever else does

    def change(self, change: Callable[[Answer], Answer], match: str = "", times: int | None = 1) -> None:
        """Put another answer in an answer's place."""
        self.faults.append(Fault(change, match, times))

    def fail(self, status: int, match: str = "", times: int | None = 1, retry_after: int | None = None) -> None:
        """Refuse with a status."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.change(lambda _: Refused(status, "", f"refused with {status}", **headers).answer, match, times)

    def cut(self, after: int, match: str = "", times: int | None = 1) -> None:
        """End the connection after some bytes of the body."""
        self.change(lambda answer: replace(answer, cut=after), match, times)

    def alter(self, change: Callable[[bytes], bytes], match: str = "", times: int | None = 1) -> None:
        """Send other content; Content-Length says what is sent."""
        self.change(lambda answer: replace(answer, body=change(answer.body)), match, times)

    def edit(self, change: Callable, match: str = "", times: int | None = 1) -> None:
        """Send other JSON by any change of what was decoded."""
        self.alter(lambda body: json.dumps(change(json.loads(body))).encode(), match, times)

    def answer(self, request: Request) -> Answer:
        """The answer to a request, faults and all; the request is recorded with it.

        Except the one that the client makes for itself, once a day in any process: whether it serves an agent.
        """
        if request.path == AGENTS:
            return Refused(404, "", "there is no such list here").answer
        try:
            answer = self._answer(request)
        except Refused as refused:
            answer = refused.answer
        except Exception as broken:
            self.errors.append(broken)
            answer = Refused(500, "", f"the stand-in failed: {type(broken).__name__}").answer
        with self._lock:
            for fault in self._due(request):
                answer = fault.change(answer)
            answer = _ranged(answer, request.range)
            request.status = answer.status
            request.sent = 0 if request.method == "HEAD" else len(answer.body[: answer.cut])
            self.requests.append(request)
        return answer

    def _due(self, request: Request) -> list[Fault]:
        matching = [fault for fault in self.faults if fault.times != 0 and re.search(fault.match, str(request))]
        counted = [fault for fault in matching if fault.times is not None][:1]
        for fault in counted:
            fault.times -= 1
        return [fault for fault in matching if fault.times is None] + counted

    def _answer(self, request: Request) -> Answer:
        if request.origin == "cdn":
            return self._stored(*request.segments)
        if request.token is not None and request.token not in self.tokens:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        user = self.tokens.get(request.token)
        match request.segments:
            case ["api", "models"]:
                return json_answer(self._search(request))
            case ["api", "models", owner, name, *rest]:
                return json_answer(self._about(self._visible(f"{owner}/{name}", user), rest))
            case [owner, name, "resolve", revision, *path]:
                repository = self._visible(f"{owner}/{name}", user)
                if repository.gated and user not in repository.readers:
                    restricted = f"Access to model {repository.name} is restricted."
                    raise Refused(401 if user is None else 403, "GatedRepo", restricted)
                return self._resolved(repository, repository.at(revision), "/".join(path))
        raise Refused(404, "", f"the stand-in does not know {request}")

    def _visible(self, name: str, user: str | None) -> Repository:
        if repository := self.repositories.get(name):
            return repository
        if user is None:  # it might be private, so the hub does not say that there is none
            raise Refused(401, "RepoNotFound", "Invalid username or password.")
        raise Refused(404, "RepoNotFound", "Repository not found")

    def _about(self, repository: Repository, question: list[str]) -> dict | list[dict]:
        match question:
            case ["revision", revision]:
                return {"id": repository.name, "sha": repository.at(revision).sha, "siblings": []}
            case ["refs"]:
                branches = [_ref(name, "heads", commit) for name, commit in repository.branches.items()]
                tags = [_ref(name, "tags", commit) for name, commit in repository.tags.items()]
                return {"branches": branches, "converts": [], "tags": tags, "pullRequests": []}
            case ["commits", revision]:
                facts = {"message": "", "date": "2023-01-01T00:00:00.000Z", "authors": [{"user": "somebody"}]}
                return [{"id": c.sha, "title": c.title, **facts} for c in repository.at(revision).history()]
            case ["tree", revision]:
                return _tree(repository.at(revision))
        raise Refused(404, "", f"the stand-in does not know {question}")

    def _search(self, request: Request) -> list[dict]:
        author, words = request.query.get("author"), request.query.get("search", "").lower()
        names = [name for name in self.repositories if author in (None, name.partition("/")[0])]
        return [{"id": name} for name in names if words in name.lower()]

    def _resolved(self, repository: Repository, commit: Commit, path: str) -> Answer:
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found", **headers)
        file = commit.files[path]
        if not file.pointer:
            headers |= {"ETag": f'"{file.oid}"', "Content-Type": "text/plain; charset=utf-8"}
            return Answer(200, headers, file.content)
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
        headers["Location"] = f"{self.cdn}/{quote(repository.name)}/{file.sha256}/{quote(path)}"
        return Answer(302, headers, b"Found. Redirecting")

    def _stored(self, owner: str, name: str, sha256: str, *_: str) -> Answer:
        """Content from the CDN, which asks nobody's name: whoever was sent there may have it."""
        for commit in self.repositories[f"{owner}/{name}"].commits.values():
            for file in commit.files.values():
                if file.sha256 == sha256:
                    headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
                    return Answer(200, headers, file.content)
        raise Refused(403, "", "AccessDenied")


def spoilt(content: bytes) -> bytes:
    """As many bytes, not the same (for `Hub.alter`)."""
    return bytes([content[0] ^ 0xFF]) + content[1:]


def _ref(name: str, kind: str, commit: Commit) -> dict:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit.sha}


def _tree(commit: Commit) -> list[dict]:
    """Every file, and the folders that they lie in."""
    entries = {}
    for path, file in commit.files.items():
        if folder := path.rpartition("/")[0]:
            entries[folder] = {"type": "directory", "oid": _blob(folder.encode()), "size": 0, "path": folder}
        entries[path] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.pointer:
            entries[path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer}
    return list(entries.values())


def _ranged(answer: Answer, range_header: str | None) -> Answer:
    """The part of an answer that a Range header asks for."""
    bounds = re.fullmatch(r"bytes=(\d+)-(\d*)", range_header or "")
    if not bounds or answer.status != 200 or "Accept-Ranges" not in answer.headers:
        return answer
    size, start = len(answer.body), int(bounds[1])
    end = min(int(bounds[2] or size), size - 1)
    if start > end:
        refusal = {**answer.headers, "Content-Range": f"bytes */{size}"}
        return replace(answer, status=416, headers=refusal, body=b"")
    headers = {**answer.headers, "Content-Range": f"bytes {start}-{end}/{size}"}
    return replace(answer, status=206, headers=headers, body=answer.body[start : end + 1])


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    request_queue_size = 64

    def __init__(self, hub: Hub, origin: str, port: int):
        super().__init__(("127.0.0.1", port), _Handler)
        self.hub, self.origin = hub, origin
        self.connections: set[socket.socket] = set()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), name=f"{origin} on loopback")

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own looks the host name up, which can take seconds
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):  # it has just ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        broken = sys.exception()
        if not isinstance(broken, ConnectionError):  # those are a client that did not wait for the end
            self.hub.errors.append(broken)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        request = Request(self.server.origin, self.command, self.path, self.headers.get("Range"), token)
        answer = self.server.hub.answer(request)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: answer.cut])
        if answer.cut is not None:
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass

"""The stand-in is asked by the real client, so that what the client does by itself is on record here."""

import hashlib
import http.client
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hub.server import Hub, declared, large, spoilt, without_lfs

NAME = "someone/model"
WEIGHTS = bytes(range(256)) * 40
FILES = {
    "config.json": b'{"model_type": "bert"}\n',
    "model.safetensors": WEIGHTS,
    "onnx/model.bin": b"onnx",
    "onnx/deep/notes.txt": b"notes",
}


@pytest.fixture
def repository(hub):
    made = hub.repository(NAME)
    made.commit(FILES)
    return made


@pytest.fixture
def api(hub, repository) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def fetch(hub, repository, tmp_path):
    """Download a file into a cache of the test's own."""

    def download(filename: str = "model.safetensors", revision: str = "main", **options) -> Path:
        told = {"cache_dir": tmp_path / "cache", "endpoint": hub.url, "token": False, **options}
        return Path(hf_hub_download(NAME, filename, revision=revision, **told))

    return download


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.incomplete*")]


# Listings


def test_refs_are_branches_and_tags_with_their_commits(api, repository):
    first = repository.branches["main"]
    second = repository.commit(FILES, branch="step1")
    repository.tags["v1"] = first
    refs = api.list_repo_refs(NAME)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first.sha, "step1": second.sha}
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [("v1", "refs/tags/v1", first.sha)]
    assert first.sha != second.sha
    assert len(first.sha) == 40


def test_a_tree_tells_size_and_sha256_of_large_files(api):
    listed = {entry.path: entry for entry in api.list_repo_tree(NAME, recursive=True)}
    assert set(listed) == {*FILES, "onnx", "onnx/deep"}
    assert {path: listed[path].size for path in FILES} == {path: len(content) for path, content in FILES.items()}
    assert listed["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert listed["model.safetensors"].lfs.size == len(WEIGHTS)
    assert listed["config.json"].lfs is None


def test_git_names_a_file_as_git_does(api):
    listed = {entry.path: entry for entry in api.list_repo_tree(NAME, recursive=True)}
    git = subprocess.run(["git", "hash-object", "--stdin"], input=FILES["config.json"], capture_output=True, check=True)
    assert listed["config.json"].blob_id == git.stdout.decode().strip()


def test_a_folder_can_be_listed_by_itself(api):
    assert [entry.path for entry in api.list_repo_tree(NAME)] == ["config.json", "model.safetensors", "onnx"]
    assert [entry.path for entry in api.list_repo_tree(NAME, "onnx")] == ["onnx/model.bin", "onnx/deep"]
    assert [entry.path for entry in api.list_repo_tree(NAME, "onnx/deep")] == ["onnx/deep/notes.txt"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(NAME, "nowhere"))


def test_a_long_listing_comes_in_pages(api, hub):
    at_once = api.list_repo_files(NAME)
    hub.page = 2
    assert api.list_repo_files(NAME) == at_once == list(FILES)
    assert len(hub.asked("/tree/")) == 1 + 3


def test_what_is_known_of_a_model_agrees_with_its_tree(api, repository):
    told = api.repo_info(NAME, files_metadata=True)
    assert told.sha == repository.branches["main"].sha
    assert told.author == "someone"
    assert told.gated is False
    assert {file.rfilename: file.size for file in told.siblings} == {path: len(FILES[path]) for path in FILES}
    (weights,) = [file for file in told.siblings if file.rfilename == "model.safetensors"]
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert [file.size for file in api.model_info(NAME).siblings] == [None] * len(FILES)
    (entry,) = api.get_paths_info(NAME, ["model.safetensors"])
    assert entry.lfs.sha256 == weights.lfs.sha256


def test_commits_are_told_from_the_last(api, repository):
    later = repository.commit({**FILES, "config.json": b"{}"}, title="other settings")
    commits = api.list_repo_commits(NAME)
    assert [commit.commit_id for commit in commits] == [commit.sha for commit in later.history()]
    assert commits[0].title == "other settings"
    assert api.model_info(NAME, revision=later.parent.sha).sha == later.parent.sha


def test_models_are_found_by_owner_and_words(api, hub):
    for name in ("google/multiberts-seed_0-step_0k", "google/multiberts-seed_1-step_0k", "google/other"):
        hub.repository(name).commit(FILES)
    hub.repository("google/multiberts-kept-back", private=True).commit(FILES)
    found = [model.id for model in api.list_models(author="google", search="MultiBERTs")]
    assert found == ["google/multiberts-seed_0-step_0k", "google/multiberts-seed_1-step_0k"]
    hub.page = 1
    assert [model.id for model in api.list_models(author="google", search="multiberts", limit=2)] == found


def test_a_suite_of_any_length_is_declared_without_content(api, hub, fetch, repository):
    for step in range(154):
        sha256 = hashlib.sha256(str(step).encode()).hexdigest()
        repository.commit({"model.safetensors": declared(10**9, sha256)}, branch=f"step{step}")
    branches = [ref.name for ref in api.list_repo_refs(NAME).branches if ref.name != "main"]
    trees = [list(api.list_repo_tree(NAME, revision=branch)) for branch in branches]
    assert len({entry.lfs.sha256 for (entry,) in trees}) == len(branches) == 154
    assert hub.downloads == []
    with pytest.raises(HfHubHTTPError, match="declared by size and sha256 only"):
        fetch(revision="step7")


# Downloads


def test_what_is_downloaded_is_what_was_committed(fetch):
    for path, content in FILES.items():
        assert fetch(path).read_bytes() == content


def test_weights_come_from_the_cdn_and_config_from_the_hub(fetch, hub):
    fetch("config.json")
    fetch("model.safetensors")
    assert [(request.method, request.origin, request.status) for request in hub.requests] == [
        ("HEAD", "hub", 200),
        ("GET", "hub", 200),
        ("HEAD", "hub", 302),
        ("GET", "cdn", 200),
    ]
    assert [Path(path).name for path in hub.downloads] == ["config.json", "model.safetensors"]
    assert [request.sent for request in hub.asked("^GET")] == [len(FILES["config.json"]), len(WEIGHTS)]
    assert all("hf_hub" in request.user_agent for request in hub.requests)


def test_a_plain_get_of_weights_is_redirected(hub, repository):
    with httpx2.Client(follow_redirects=True) as client:
        assert client.get(hf_hub_url(NAME, "model.safetensors", endpoint=hub.url)).content == WEIGHTS


def test_nothing_is_downloaded_twice(fetch, hub, repository):
    first = fetch()
    assert fetch() == first
    assert len(hub.downloads) == 1
    asked = len(hub.requests)
    assert fetch(revision=repository.branches["main"].sha) == first  # a commit does not change, so nobody is asked
    assert len(hub.requests) == asked


def test_the_head_of_a_file_tells_its_sha256_and_commit(hub, repository):
    told = get_hf_file_metadata(hf_hub_url(NAME, "model.safetensors", endpoint=hub.url), token=False)
    assert (told.etag, told.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert told.commit_hash == repository.branches["main"].sha
    assert told.location.startswith(hub.cdn)
    assert told.xet_file_data is None


def test_a_whole_snapshot(hub, repository, tmp_path):
    folder = Path(snapshot_download(NAME, cache_dir=tmp_path, endpoint=hub.url, token=False, ignore_patterns="onnx/*"))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_a_process_started_from_here_knows_the_hub(hub, repository, tmp_path):
    told = f"from huggingface_hub import hf_hub_download as get; print(get({NAME!r}, 'config.json'))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).read_bytes() == FILES["config.json"]
    assert len(hub.downloads) == 1


# Parts of files, and connections


@pytest.fixture(scope="module")
def standing():
    """A hub for many small questions, with a connection to its CDN."""
    with Hub() as hub:
        hub.repository(NAME).commit(FILES)
        connection = http.client.HTTPConnection(urlsplit(hub.cdn).netloc)
        yield hub, connection, f"/{NAME}/{hashlib.sha256(WEIGHTS).hexdigest()}/model.safetensors"
        connection.close()


@given(start=st.integers(0, 12_000), length=st.one_of(st.none(), st.integers(1, 12_000)))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_range_is_that_slice(standing, start, length):
    _, connection, path = standing
    last = "" if length is None else start + length - 1
    connection.request("GET", path, headers={"Range": f"bytes={start}-{last}"})
    answer = connection.getresponse()
    content = answer.read()
    if start >= len(WEIGHTS):
        assert (answer.status, content) == (416, b"")
        assert answer.headers["Content-Range"] == f"bytes */{len(WEIGHTS)}"
    else:
        assert answer.status == 206
        assert content == WEIGHTS[start:][:length]
        assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(content) - 1}/{len(WEIGHTS)}"


def test_the_end_of_a_file_can_be_asked_for(standing):
    _, connection, path = standing
    connection.request("GET", path, headers={"Range": "bytes=-5"})
    assert connection.getresponse().read() == WEIGHTS[-5:]


def test_one_connection_serves_many_requests(hub, repository):
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc)
    sockets = set()
    for method, path in [("HEAD", "config.json"), ("GET", "nothing"), ("HEAD", "nothing"), ("GET", "config.json")]:
        connection.request(method, f"/{NAME}/resolve/main/{path}")
        content = connection.getresponse().read()
        sockets.add(connection.sock)
    assert content == FILES["config.json"]
    assert len(sockets) == 1
    connection.close()


def test_a_failure_of_the_stand_in_is_not_passed_over(repository, hub):
    repository.branches["main"] = "no commit"
    with pytest.raises(HfHubHTTPError, match="the stand-in failed"):
        HfApi(endpoint=hub.url, token=False).model_info(NAME)
    assert len(hub.errors) == 1
    hub.errors.clear()


# Refusals


@pytest.mark.parametrize("token", [False, "of-ann"])
def test_what_is_not_there_is_refused_by_name(api, hub, fetch, token):
    hub.tokens["of-ann"] = "ann"
    with pytest.raises(RevisionNotFoundError):
        fetch(revision="step7", token=token)
    with pytest.raises(EntryNotFoundError):
        fetch("nothing.json", token=token)
    with pytest.raises(RepositoryNotFoundError) as refused:
        api.list_repo_refs("someone/nothing", token=token)
    assert refused.value.response.status_code == (404 if token else 401)
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree(NAME, revision="step7", token=token))


def test_a_gated_model_is_listed_for_all_and_read_by_its_readers(api, hub, repository, fetch):
    hub.tokens |= {"of-ann": "ann", "of-bob": "bob"}
    repository.gated, repository.readers = True, {"ann"}
    assert api.model_info(NAME).gated == "auto"
    assert api.list_repo_files(NAME) == list(FILES)
    for token, status in [(False, 401), ("of-bob", 403)]:
        with pytest.raises(GatedRepoError) as refused:
            fetch(token=token)
        assert refused.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            api.auth_check(NAME, token=token)
    assert fetch(token="of-ann").read_bytes() == WEIGHTS
    api.auth_check(NAME, token="of-ann")


def test_a_token_is_for_the_hub_alone(hub, repository, fetch):
    hub.tokens["of-ann"] = "ann"
    fetch(token="of-ann")
    assert [(request.origin, request.token, request.authorised) for request in hub.requests] == [
        ("hub", "of-ann", True),
        ("cdn", None, False),
    ]


def test_a_private_model_is_as_if_it_were_not(api, hub, repository, fetch):
    hub.tokens |= {"of-ann": "ann", "of-bob": "bob"}
    repository.private, repository.readers = True, {"ann"}
    for token in (False, "of-bob"):
        with pytest.raises(RepositoryNotFoundError):
            fetch(token=token)
    assert fetch(token="of-ann").read_bytes() == WEIGHTS


def test_a_token_says_whose_it_is(api, hub):
    hub.tokens["of-ann"] = "ann"
    assert api.whoami(token="of-ann")["name"] == "ann"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="made-up")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api.model_info(NAME, token="made-up")


# What the client does when things go wrong: tries again


def test_listings_of_pages_are_tried_six_times(api, hub, naps):
    hub.fail(503, "/tree/", times=5)
    assert api.list_repo_files(NAME) == list(FILES)
    assert naps == [1, 2, 4, 8, 8]
    hub.fail(503, "/tree/", times=6)
    with pytest.raises(HfHubHTTPError, match="503"):
        api.list_repo_files(NAME)
    assert len(hub.asked("/tree/")) == 12


@pytest.mark.parametrize("status", [429, 503])
def test_the_client_waits_as_long_as_it_is_told_and_a_second(api, hub, naps, status):
    hub.fail(status, "/tree/", retry_after=300)
    assert api.list_repo_files(NAME) == list(FILES)
    assert naps == [301]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_refs_infos_and_names_are_asked_for_once(api, hub, naps, status):
    hub.tokens["of-ann"] = "ann"
    hub.fail(status, times=None)
    questions = (api.list_repo_refs, api.model_info, api.auth_check, lambda _: api.whoami(token="of-ann"))
    for number, question in enumerate(questions, start=1):
        with pytest.raises(HfHubHTTPError):
            question(NAME)
        assert len(hub.requests) == number
    assert naps == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_head_of_a_download_is_tried_once_and_then_six_times(fetch, hub, naps, status):
    hub.fail(status, "^HEAD", times=6)
    assert fetch().read_bytes() == WEIGHTS
    assert naps == [1, 2, 4, 8, 8]
    assert len(hub.asked("^HEAD")) == 7


def test_a_hub_that_stays_down_is_reported_as_a_file_that_is_not_here(fetch, hub, naps):
    hub.fail(500, "^HEAD", times=None)
    with pytest.raises(LocalEntryNotFoundError) as missing:
        fetch()
    assert missing.value.__cause__.response.status_code == 500
    assert len(hub.requests) == 7


def test_content_is_tried_again_when_there_is_a_rush_but_not_when_the_cdn_fails(fetch, hub, naps):
    hub.fail(429, "^GET")
    assert fetch().read_bytes() == WEIGHTS
    assert naps == [1]
    for status in (500, 503):
        hub.fail(status, "^GET")
        with pytest.raises(HfHubHTTPError, match=str(status)):
            fetch("onnx/model.bin")
    assert naps == [1]


def test_no_answer_at_all_ends_a_download_and_not_a_listing(api, fetch, hub, naps):
    hub.hang_up("/tree/")
    assert api.list_repo_files(NAME) == list(FILES)
    hub.hang_up("^HEAD")
    with pytest.raises(httpx2.RemoteProtocolError):
        fetch()
    hub.hang_up("/refs")
    with pytest.raises(httpx2.RemoteProtocolError):
        api.list_repo_refs(NAME)


def test_a_slow_head_is_waited_for_the_second_time(fetch, hub, naps):
    hub.delay(0.3, "^HEAD")
    assert fetch(etag_timeout=0.05).read_bytes() == WEIGHTS
    assert len(hub.asked("^HEAD")) == 2


def test_content_that_does_not_begin_to_come_is_asked_for_again(fetch, hub, naps, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)  # ten seconds by itself
    hub.delay(0.3, "^GET")
    assert fetch().read_bytes() == WEIGHTS
    assert naps == [1]


def test_refs_are_waited_for_without_end(api, hub):
    hub.delay(0.3, "/refs")
    assert api.list_repo_refs(NAME).branches
    assert get_session().timeout == httpx2.Timeout(None)


# Cut short


def test_a_cut_download_goes_on_where_it_was_cut(fetch, hub, naps, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000)
    hub.cut(2_500, "^GET.*safetensors")
    hub.cut(1_500, "^GET.*safetensors")  # of what was left
    assert fetch().read_bytes() == WEIGHTS
    assert [request.range for request in hub.asked("^GET")] == [None, "bytes=2000-", "bytes=3000-"]
    assert [request.status for request in hub.asked("^GET")] == [200, 206, 206]
    assert naps == [1, 1]


def test_less_than_a_chunk_of_ten_megabytes_is_thrown_away(fetch, hub, naps):
    hub.cut(2_500, "^GET")
    assert fetch().read_bytes() == WEIGHTS
    assert [request.range for request in hub.asked("^GET")] == [None, None]


def test_a_download_that_never_arrives_is_given_up_and_leaves_nothing(fetch, hub, naps, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000)
    hub.cut(2_500, "^GET")
    hub.cut(0, "^GET", times=5)
    with pytest.raises(httpx2.RemoteProtocolError):
        fetch()
    assert [request.range for request in hub.asked("^GET")] == [None, *["bytes=2000-"] * 5]
    assert left_over(tmp_path) == []
    assert fetch().read_bytes() == WEIGHTS  # from the beginning: nothing is kept from call to call
    assert hub.requests[-1].range is None


def test_a_connection_that_is_reset_is_not_tried_again(fetch, hub, naps, tmp_path):
    hub.cut(2_500, "^GET", reset=True)
    with pytest.raises(httpx2.ReadError):
        fetch()
    assert len(hub.asked("^GET")) == 1
    assert left_over(tmp_path) == []


def test_a_server_that_knows_no_ranges_sends_all_again(fetch, hub, naps, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000)
    hub.cut(2_500, "^GET")
    hub.label({"Accept-Ranges": None}, "^GET", times=None)
    assert fetch().read_bytes() == WEIGHTS
    assert [request.status for request in hub.asked("^GET")] == [200, 200]


# Content that is not what was listed


def test_the_client_does_not_look_whether_content_is_what_was_listed(fetch, hub):
    hub.alter(spoilt, "^GET")
    got = fetch().read_bytes()
    assert len(got) == len(WEIGHTS)
    assert got != WEIGHTS
    assert fetch().read_bytes() == got  # and it stays in the cache, under the right sha256


def test_the_client_does_look_whether_all_of_it_came(fetch, hub, tmp_path):
    hub.alter(lambda content: content[:-10], "^GET")
    with pytest.raises(OSError, match="Consistency check failed"):
        fetch()
    assert left_over(tmp_path) == []


def test_a_branch_that_moves_after_it_was_listed_gives_other_files(api, fetch, hub, repository):
    listed = repository.branches["main"]
    other = repository.commit({"model.safetensors": large(b"another step")}, branch="aside")
    hub.then(lambda: repository.move("main", other), "/tree/main")
    (entry,) = [entry for entry in api.list_repo_tree(NAME) if entry.path == "model.safetensors"]
    got = hashlib.sha256(fetch().read_bytes()).hexdigest()
    assert got != entry.lfs.sha256
    assert fetch(revision=listed.sha).read_bytes() == WEIGHTS  # a commit stays what it was


def test_a_listing_may_not_know_which_files_are_large(api, hub):
    hub.edit(without_lfs, "/tree/")
    assert {entry.lfs for entry in api.list_repo_tree(NAME) if entry.path.endswith("safetensors")} == {None}


# Names that lead out of the folder


@pytest.mark.parametrize("path", ["../../evil.py", "/evil.py", "onnx/../../evil.py", "C:\\evil.py"])
def test_names_that_lead_out_are_listed_and_not_downloaded(api, fetch, hub, repository, tmp_path, path):
    repository.commit({**FILES, path: b"evil"})
    assert path in api.list_repo_files(NAME)
    asked = len(hub.requests)
    with pytest.raises(ValueError, match="Invalid filename"):
        fetch(path)
    assert len(hub.requests) == asked
    with pytest.raises(ValueError, match="Invalid filename"):
        snapshot_download(NAME, cache_dir=tmp_path / "whole", endpoint=hub.url, token=False)
    assert not list(tmp_path.rglob("evil.py"))


def test_the_client_believes_an_etag_that_leads_out(fetch, hub, tmp_path):
    """The blob's place in the cache is the ETag as it was sent, so a hub, if not a model, can choose it."""
    hub.label({"X-Linked-ETag": '"../../../elsewhere"'}, "^HEAD")
    fetch()
    assert (tmp_path / "elsewhere").read_bytes() == WEIGHTS


# No network


def test_without_a_network_there_is_what_was_downloaded(api, fetch, hub, naps):
    kept = fetch("config.json")
    hub.stop()
    assert fetch("config.json") == kept
    with pytest.raises(LocalEntryNotFoundError):
        fetch()
    assert naps == [1, 2, 4, 8, 8]
    with pytest.raises(httpx2.ConnectError):
        api.list_repo_refs(NAME)
    hub.start()
    assert fetch().read_bytes() == WEIGHTS


def test_offline_nobody_is_asked(api, fetch, hub, monkeypatch):
    kept = fetch("config.json")
    asked = len(hub.requests)
    assert fetch("config.json", local_files_only=True) == kept
    with pytest.raises(LocalEntryNotFoundError):
        fetch(local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("config.json") == kept
    with pytest.raises(OfflineModeIsEnabled):
        api.list_repo_refs(NAME)
    assert len(hub.requests) == asked

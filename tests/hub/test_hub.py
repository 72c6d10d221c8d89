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
    hf_hub_download,
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

from tests.hub.server import Hub, spoilt

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


def test_a_long_listing_comes_in_pages(api, hub):
    at_once = api.list_repo_files(NAME)
    hub.page = 2
    assert api.list_repo_files(NAME) == at_once == list(FILES)
    assert len(hub.asked("/tree/")) == 1 + 3


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
    assert fetch(token="of-ann").read_bytes() == WEIGHTS


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


# What the client leaves to us: to try again, to keep a part, to look at the content


@pytest.mark.parametrize("status", [429, 500, 503])
def test_refs_infos_and_names_are_asked_for_once(api, hub, naps, status):
    hub.fail(status, times=None)
    questions = (api.list_repo_refs, api.model_info)
    for number, question in enumerate(questions, start=1):
        with pytest.raises(HfHubHTTPError):
            question(NAME)
        assert len(hub.requests) == number
    assert naps == []


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


def test_the_client_does_not_look_whether_content_is_what_was_listed(fetch, hub):
    hub.alter(spoilt, "^GET")
    got = fetch().read_bytes()
    assert len(got) == len(WEIGHTS)
    assert got != WEIGHTS
    assert fetch().read_bytes() == got  # and it stays in the cache, under the right sha256


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

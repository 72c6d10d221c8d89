"""What the hub's real client does by itself and what it leaves to us, as recorded by the stand-in."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.server import spoilt

NAME = "someone/model"
WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b'{"model_type": "bert"}\n', "model.safetensors": WEIGHTS, "onnx/model.bin": b"onnx"}


@pytest.fixture
def repository(hub):
    created = hub.repository(NAME)
    created.commit(FILES)
    return created


@pytest.fixture
def api(hub, repository) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def fetch(hub, repository, tmp_path):
    """Download a file into a cache of the test's own."""

    def download(filename: str = "model.safetensors", revision: str = "main", **options) -> Path:
        arguments = {"cache_dir": tmp_path / "cache", "endpoint": hub.url, "token": False, **options}
        return Path(hf_hub_download(NAME, filename, revision=revision, **arguments))

    return download


def test_a_tree_names_files_as_git_does_and_large_ones_by_sha256(api):
    listed = {entry.path: entry for entry in api.list_repo_tree(NAME, recursive=True)}
    assert set(listed) == {*FILES, "onnx"}
    assert listed["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert listed["config.json"].lfs is None
    git = subprocess.run(["git", "hash-object", "--stdin"], input=FILES["config.json"], capture_output=True, check=True)
    assert listed["config.json"].blob_id == git.stdout.decode().strip()


def test_a_failure_of_the_stand_in_is_not_passed_over(repository, hub):
    repository.branches["main"] = "no commit"
    with pytest.raises(HfHubHTTPError, match="the stand-in failed"):
        HfApi(endpoint=hub.url, token=False).model_info(NAME, revision="main")
    assert len(hub.errors) == 1
    hub.errors.clear()


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


@pytest.mark.parametrize("status", [429, 500, 503])
def test_refs_are_asked_for_once(api, hub, naps, status):
    hub.fail(status, times=None)
    with pytest.raises(HfHubHTTPError):
        api.list_repo_refs(NAME)
    assert len(hub.requests) == 1
    assert naps == []


def test_the_client_does_not_look_whether_content_is_what_was_listed(fetch, hub):
    hub.alter(spoilt, "^GET")
    content = fetch().read_bytes()
    assert len(content) == len(WEIGHTS)
    assert content != WEIGHTS
    assert fetch().read_bytes() == content  # and it stays in the cache, under the right sha256

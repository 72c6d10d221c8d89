"""What every test may use: real data if present, a data folder for each test, tiny models."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.hub.server import Hub

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))

# No deadlines: a slow or busy machine must not fail a test.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Under nohup, and in a shell's background jobs, SIGINT is ignored, and so it is in all processes started from here;
# the tests of Ctrl-C send it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def real_data() -> Path:
    """The folder of real corpora."""
    folder = os.environ.get("LMDYNAMICS_DATA")
    if not folder:
        pytest.skip("needs real data: set LMDYNAMICS_DATA to its folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch, request) -> Path:
    """Runs and caches of a test go to a folder of its own, never to the person's."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("LMDYNAMICS_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def smoke_series(tmp_path_factory, worker_id) -> tuple[subprocess.CompletedProcess, Path, Path]:
    """The whole series at profile smoke in one batch, all computed: its result, its folder and its data folder.

    Made once for all of a test run's processes. Without real corpora, because pages show more where there are some.
    """
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent
    out, result_file = root / "series" / "out", root / "series" / "result.json"
    command = [sys.executable, "-m", "lmdynamics.cli", "batch", *map(str, NOTEBOOKS), "--profile", "smoke", "--fresh"]
    environment = {name: value for name, value in os.environ.items() if name != "LMDYNAMICS_DATA"}
    environment["LMDYNAMICS_HOME"] = str(root / "series" / "home")
    with FileLock(root / "series.lock"):
        if not result_file.exists():
            result = subprocess.run([*command, "--out", str(out)], env=environment, capture_output=True, text=True)
            result_file.write_text(json.dumps([result.args, result.returncode, result.stdout, result.stderr]))
    (home,) = out.glob("home-*")
    return subprocess.CompletedProcess(*json.loads(result_file.read_text())), out, home


TINY = {
    "corpus.sentences": 400,
    "corpus.held_out": 40,
    "model.hidden_size": 16,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 32,
    "training.steps": 12,
    "training.batch_size": 8,
    "training.lr": 2e-3,
    "training.warmup_steps": 2,
    "checkpoints.per_doubling": 1,
}


def trained(recipe, folder: Path):
    """The run of a recipe, built in a given folder."""
    from lmdynamics.runs.trained import build, open_folder

    build(recipe, folder, progress=False)
    return open_folder(folder)


@pytest.fixture
def tiny_run(home):
    """A finished run of twelve steps of a two-layer model on the built-in language."""
    from lmdynamics.runs.trained import train

    return train("grammar-mlm", overrides=TINY, name="tiny", progress=False)


@pytest.fixture
def tiny_checkpoint(tiny_run):
    return tiny_run[12]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command line in this process: (exit status, standard output, standard error)."""

    from lmdynamics import cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lmdynamics", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit_info.value.code or 0), out, err

    return run


@pytest.fixture
def hub(tmp_path_factory, monkeypatch) -> Iterator[Hub]:
    """The Hugging Face hub on loopback; its client knows no other, here or in a process started from here.

    In this process the client has read its environment already, so its constants are set besides.
    """
    from huggingface_hub import close_session, constants

    home = tmp_path_factory.mktemp("hugging-face")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        for name, value in {**variables, "no_proxy": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HOME", str(home))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
        close_session()  # it may have been opened with another environment
        yield hub
        close_session()


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """The seconds that the hub's client would have slept between tries; it sleeps none."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    slept: list[float] = []
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=slept.append))
    return slept


def refused(result: tuple[int, str, str], *words: str) -> bool:
    status, _, err = result
    lines = err.strip().splitlines()
    return status == 2 and len(lines) == 1 and lines[0].startswith("lmdynamics: ") and all(w in err for w in words)


def refuses(match: str, call: Callable, /, *arguments, **options) -> str:
    """The call raises a UserError of one line in which `match`, a regular expression, is found; gives its message."""
    from lmdynamics.errors import UserError

    with pytest.raises(UserError, match=match) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)

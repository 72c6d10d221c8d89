"""What every test may use: real data if there is any, a house of its own, tiny models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def real_data() -> Path:
    """The folder of real corpora."""
    where = os.environ.get("LMDYNAMICS_DATA")
    if not where:
        pytest.skip("needs real data: set LMDYNAMICS_DATA to its folder")
    return Path(where)


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch, request) -> Path:
    """Runs and caches of a test go to a folder of its own, never to the person's."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("LMDYNAMICS_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def smoke_series(tmp_path_factory, worker_id) -> tuple[subprocess.CompletedProcess, Path, Path]:
    """The whole series at profile smoke in one batch, all of it made anew: its result, folder, and the house it made.

    Made once for all of a test run's processes. Without real corpora, because pages show more where there are some.
    """
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent
    out, told = root / "series" / "out", root / "series" / "told.json"
    command = [sys.executable, "-m", "lmdynamics.cli", "batch", *map(str, NOTEBOOKS), "--profile", "smoke", "--fresh"]
    environment = {name: value for name, value in os.environ.items() if name != "LMDYNAMICS_DATA"}
    environment["LMDYNAMICS_HOME"] = str(root / "series" / "home")
    with FileLock(root / "series.lock"):
        if not told.exists():
            done = subprocess.run([*command, "--out", str(out)], env=environment, capture_output=True, text=True)
            told.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
    (home,) = out.glob("home-*")
    return subprocess.CompletedProcess(*json.loads(told.read_text())), out, home


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


@pytest.fixture
def tiny_run(home):
    """A finished run of twelve steps of a two-layer model on the built-in language."""
    from lmdynamics.runs.build import train

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
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def refused(result: tuple[int, str, str], *words: str) -> bool:
    status, _, err = result
    lines = err.strip().splitlines()
    return status == 2 and len(lines) == 1 and lines[0].startswith("lmdynamics: ") and all(w in err for w in words)

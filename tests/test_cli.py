"""The command line as a person meets it: results on standard output, mistakes in one line, exit status."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from lmdynamics import cli
from tests.conftest import TINY, refused

OVERRIDES = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


def test_train_list_show_verify(call):
    status, out, _ = call("train", "grammar-mlm", *OVERRIDES, "--name", "mine")
    assert status == 0
    assert "6 checkpoints up to step 12" in out
    assert "mine" in call("runs", "list")[1]
    assert json.loads(call("runs", "show", "mine")[1])["recipe"]["training"]["steps"] == 12
    assert "18 files in 6 checkpoints are intact" in call("runs", "verify", "mine")[1]


def test_mistakes_are_one_line(call, tiny_run, home):
    assert refused(call("train", "grammer-mlm"), "no recipe 'grammer-mlm'", "did you mean 'grammar-mlm'")
    assert refused(call("train", "grammar-mlm", "--set", "lr=x"), "lr is float")
    assert refused(call("train", "grammar-mlm", "--profile", "huge"), "no profile 'huge'")
    assert refused(call("runs", "show", "tinny"), "no run 'tinny'", "did you mean 'tiny'")
    assert refused(call("train", "grammar-mlm", *OVERRIDES, "--set", "lr=0.5", "--name", "tiny"), "was trained with")
    assert refused(call("fetch", "boks"), "boks")
    weights = tiny_run[8].folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert refused(call("runs", "verify", "tiny"), "was cut short")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("latin1.txt", "caf\u00e9 ".encode("latin-1") * 50, ("latin1.txt", "UTF-8")),
        ("empty.txt", b"", ("empty.txt",)),
    ],
)
def test_bad_books_are_one_line(call, tmp_path, name, content, words):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / name).write_bytes(content)
    arguments = ("train", "english-mlm", "--profile", "smoke", "--set", f"source={tmp_path / 'books'}", "--name", "bad")
    assert refused(call(*arguments), *words)
    shutil.rmtree(tmp_path / "books")
    (tmp_path / "books").mkdir()
    assert refused(call(*arguments), "books")


def test_rows_longer_than_the_model_are_refused(call):
    arguments = ("train", "grammar-mlm", *OVERRIDES, "--set", "max_position_embeddings=8", "--name", "short")
    assert refused(call(*arguments), "the model takes at most 8", "--set model.max_position_embeddings=")


def test_help_is_quick_and_loads_nothing_heavy():
    code = "import sys, lmdynamics.cli; print(sorted({'torch', 'transformers', 'altair'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_parameters_as_papermill_writes_them():
    assert cli._join_parameters(["batch", "-p", "run", "x", "-p", "a=b", "--out", "d"]) == [
        "batch", "-p", "run=x", "-p", "a=b", "--out", "d",
    ]  # fmt: skip


def test_the_console_script_exits_with_two():
    env = {**os.environ, "LMDYNAMICS_HOME": os.devnull}
    result = subprocess.run(
        [sys.executable, "-m", "lmdynamics.cli", "runs", "show", "x"], capture_output=True, text=True, env=env
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr

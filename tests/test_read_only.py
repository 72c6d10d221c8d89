"""A home that cannot be written, or is no folder: reading works, what is computed is returned, and a line says so."""

import subprocess

import pytest

import lmdynamics as lmd
from lmdynamics import paths
from lmdynamics.corpora.text import COMPLETE, load_or_build
from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import HeldOutLoss
from lmdynamics.runs.background import training_of
from tests.conftest import TINY, refused
from tests.hub import suites

LINE = "lmdynamics: results cannot be saved in {}: read-only file system; set LMDYNAMICS_HOME to another folder\n"


@pytest.fixture
def read_only(home, monkeypatch):
    """Call it, and the home is mounted read-only, as it stands, until the test ends."""
    monkeypatch.setattr(paths, "_reported", set())
    mounted = []

    def now() -> None:
        for options in (["--bind", str(home)], ["-o", "remount,bind,ro"]):
            command = ["mount", *options, str(home)]
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip("needs the right to mount a folder read-only")
            mounted.append(home)

    yield now
    if mounted:
        subprocess.run(["umount", str(home)], check=True)


def test_a_trace_is_returned_and_that_it_is_not_kept_is_reported_once(tiny_run, home, read_only, capsys):
    measurement = HeldOutLoss(tiny_run.held_out())
    lmd.trace(tiny_run, measurement, steps=[4], progress=False)
    read_only()
    run = lmd.open_run("tiny")
    losses = [lmd.trace(run, measurement, steps=[4, 8, 12], progress=False) for _ in range(2)]
    assert losses[0].equals(losses[1])
    assert losses[0].equals(lmd.trace(run, measurement, steps=[4, 8, 12], progress=False, cache=False))
    assert capsys.readouterr().err == LINE.format(home / "cache" / "traces")


def test_a_corpus_is_built_for_this_process(home, read_only, capsys):
    def build(place):
        TokenRows.from_rows([[1, 2], [3]]).save(place)
        (place / COMPLETE).write_text("{}")

    read_only()
    place = home / "cache" / "corpora" / "some"
    assert [row.tolist() for row in load_or_build(place, TokenRows.load, build)] == [[1, 2], [3]]
    assert not place.exists()
    assert capsys.readouterr().err == LINE.format(place.parent)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_suite_opens_pinned_before_or_not(hub, home, read_only, capsys, pinned):
    suites.pythia(hub)
    if pinned:
        lmd.open_run("hf://EleutherAI/pythia-14m")
    read_only()
    run = lmd.open_run("hf://EleutherAI/pythia-14m")
    assert run.steps == list(suites.SHORT)
    assert "cannot be saved in" in capsys.readouterr().err
    assert (home / "suites").exists() == pinned


def test_what_is_complete_is_opened_and_what_is_not_is_refused_in_one_line(call, tiny_run, read_only):
    read_only()
    assert lmd.train("grammar-mlm", overrides=TINY, name="tiny", progress=False).steps[-1] == 12
    assert training_of("grammar-mlm", overrides=TINY, name="other").state == "ready"
    assert "tiny" in call("runs", "list")[1]
    result = call("train", "grammar-mlm", "--profile", "smoke", "--name", "more")
    assert refused(result, "could not save", "read-only file system", "set LMDYNAMICS_HOME to a folder you can")


@pytest.mark.parametrize("variable", ["LMDYNAMICS_HOME", "LMDYNAMICS_DATA"])
@pytest.mark.parametrize(
    ("name", "message"), [("file", "is a file, not a folder"), ("x" * 10_000, "File name too long")]
)
def test_a_home_that_is_no_folder_is_one_line(call, tmp_path, monkeypatch, variable, name, message):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv(variable, str(tmp_path / name))
    commands = ["train grammar-mlm --profile smoke", "runs list", "sweep masking", "doctor", "fetch books"]
    for command in commands if variable == "LMDYNAMICS_HOME" else ["doctor"]:
        status, out, err = call(*command.split())
        assert status in (1, 2), command
        assert message in out + err, command
        assert len(err.splitlines()) <= 1, command
        assert len(err) < 400, command
    with pytest.raises(UserError, match=variable):
        paths.real_data_dirs()

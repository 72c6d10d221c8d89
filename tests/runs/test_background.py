"""Training in a process of its own: it is controlled and watched, and however it ends, nothing is lost."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pytest
import torch

from lmdynamics import files
from lmdynamics.hub.suites import open_run
from lmdynamics.runs import background, live
from lmdynamics.runs.background import SavedRun, branch_of, training_of
from lmdynamics.runs.live import LIVE, LiveLog, read_live
from lmdynamics.runs.trained import train
from lmdynamics.training import layout
from tests.conftest import TINY, refuses
from tests.runs.trainings import LONG, ended, wait_for


@pytest.fixture(autouse=True)
def nothing_left():
    """Whatever a test does, no process and no thread of its outlives it."""
    with ended():
        yield


def underway(training) -> bool:
    assert training.state in ("starting", "training"), training.error
    return len(training.log()) > 0


def weights(run, step: int) -> dict:
    return run[step].model().state_dict()


# live rows ------------------------------------------------------------------------------------------------------------


def add(log: LiveLog, *steps: int, loss: float = 0.1) -> None:
    for step in steps:
        log.add(step, torch.tensor(loss), 1e-3, 0.15, 100, step / 3)


def test_live_rows_are_what_the_log_will_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "WRITE_INTERVAL", 0)
    log = LiveLog(tmp_path / "log.parquet")
    assert read_live(tmp_path).is_empty()
    add(log, 0, 1, 2)
    live_rows = read_live(tmp_path)
    log.write()
    assert (tmp_path / LIVE).read_bytes() == b""
    assert live_rows.equals(read_live(tmp_path))
    assert live_rows.equals(pl.read_parquet(tmp_path / "log.parquet"))
    add(log, 3)
    assert read_live(tmp_path)["step"].to_list() == [0, 1, 2, 3]
    assert read_live(tmp_path)["tokens"].to_list() == [100, 200, 300, 400]


def test_losses_that_are_no_numbers_or_missing_are_read_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "WRITE_INTERVAL", 0)
    log = LiveLog(tmp_path / "log.parquet")
    for step, loss in enumerate((float("nan"), float("inf"), None)):
        penalty = torch.tensor(0.25) if step else None
        log.add(step, None if loss is None else torch.tensor(loss), 1e-3, None, 10, 0.5, penalty)
    live_rows = read_live(tmp_path)
    assert live_rows["loss"][0] != live_rows["loss"][0]
    assert live_rows["loss"].to_list()[1:] == [float("inf"), None]
    assert live_rows["penalty"].to_list() == [None, 0.25, 0.25]
    assert live_rows["masking_rate"].null_count() == 3
    log.write()
    assert read_live(tmp_path).equals(live_rows)


def test_half_a_line_is_left_for_later(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "WRITE_INTERVAL", 0)
    log = LiveLog(tmp_path / "log.parquet")
    add(log, 0, 1)
    content = (tmp_path / LIVE).read_bytes()
    for length in range(len(content)):
        (tmp_path / LIVE).write_bytes(content[:length])
        assert read_live(tmp_path)["step"].to_list() == [0, 1][: content[:length].count(b"\n")]


def test_rows_are_written_now_and_then(tmp_path):
    log = LiveLog(tmp_path / "log.parquet")
    add(log, *range(1000))
    assert len(read_live(tmp_path)) == 1  # a thousand steps in far less than WRITE_INTERVAL


def test_a_log_that_is_being_saved_is_read_whole(tmp_path, monkeypatch):
    """A reader never sees a gap, nor half a file, whatever the writer is at."""
    monkeypatch.setattr(live, "WRITE_INTERVAL", 0)
    done = threading.Event()

    def write() -> None:
        log = LiveLog(tmp_path / "log.parquet")
        for step in range(400):
            add(log, step)
            if step % 3 == 0:
                log.write()
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    last = 0
    while not done.is_set():
        steps = read_live(tmp_path)["step"].to_list()
        assert steps == list(range(len(steps)))
        assert len(steps) >= last
        last = len(steps)
    writer.join()
    assert len(read_live(tmp_path)) == 400


# training -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pause_and_resume_give_the_weights_of_an_uninterrupted_run():
    training = training_of("grammar-mlm", overrides=LONG, name="live")
    assert training.state == "ready"
    training.start()
    wait_for(lambda: underway(training))
    training.pause()
    assert training.wait(60) == "paused"
    at = training.saved
    assert 0 < at < 800
    assert len(training.log()) == at
    process = training._process.pid
    training.start()
    wait_for(lambda: len(training.log()) > at)
    assert training._process.pid == process
    training.stop()
    assert training.wait(60) == "stopped"
    assert training._process is None
    training.start()
    assert training.wait(120) == "done", training.error
    uninterrupted, resumed = train("grammar-mlm", overrides=LONG, name="whole", progress=False), open_run("live")
    assert resumed.steps == uninterrupted.steps
    for name, value in weights(uninterrupted, 800).items():
        assert torch.equal(value, weights(resumed, 800)[name]), name
    assert resumed.log.drop("seconds").equals(uninterrupted.log.drop("seconds"))
    assert not (resumed.folder / LIVE).exists()
    training.start()  # nothing left to do
    assert training.state == "done"


def test_it_takes_one_thread_unless_it_is_set_otherwise(monkeypatch):
    """Two trainings with two threads each on two cores would slow each other tenfold."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    training = training_of("grammar-mlm", overrides=TINY, name="live")
    training.start()
    assert training.wait(60) == "done", training.error
    run = open_run("live")
    assert run.facts["threads"] == 1
    assert branch_of(run, 8, ["lr=0.01"]).job.threads == 1
    run.facts["threads"] = 5  # a branch repeats its parent bit for bit
    assert branch_of(run, 8, ["lr=0.02"]).job.threads == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert training.job.threads == 3


@pytest.mark.slow
def test_a_killed_process_is_reported_in_one_line_and_resumed():
    training = training_of("grammar-mlm", overrides=LONG, name="live")
    training.start()
    wait_for(lambda: underway(training) and training.saved >= 16)
    os.kill(training._process.pid, signal.SIGKILL)
    assert training.wait(60) == "failed"
    assert "the training process ended (signal 9)" in training.error
    assert "is saved; start it again to resume from there" in training.error
    assert "\n" not in training.error
    training.start()
    assert training.error == ""
    assert training.wait(120) == "done", training.error
    assert open_run("live").log["step"].to_list() == list(range(800))


@pytest.mark.slow
def test_the_same_run_is_attached_to_and_another_recipe_refused():
    training = training_of("grammar-mlm", overrides=LONG, name="live")
    training.start()
    assert training_of("grammar-mlm", overrides=LONG, name="live") is training
    refuses("give this another name|--name", training_of, "grammar-mlm", overrides={**LONG, "lr": 0.5}, name="live")
    process = training._process.pid
    training.start()
    assert training._process.pid == process


def test_a_run_that_another_process_trains_is_watched_and_not_begun_twice():
    training = training_of("grammar-mlm", overrides=LONG, name="live")
    with files.locked(training.folder / layout.LOCK):
        assert training.state == "elsewhere"
        training.start()
        assert training._process is None
    assert training.state == "ready"


def test_what_goes_wrong_in_the_process_is_one_line():
    training = training_of("grammar-mlm", overrides={**TINY, "stages": 1.0, "trees": "/nowhere.conllu"}, name="bad")
    training.start()
    assert training.wait(60) == "failed"
    assert "nowhere.conllu" in training.error
    assert "\n" not in training.error
    assert not training.folder.exists()
    training_of("grammar-mlm", overrides=TINY, name="bad")  # the corrected settings may have the name


@pytest.mark.slow
def test_stopping_before_anything_was_made():
    training = training_of("grammar-mlm", overrides=LONG, name="live")
    training.start()
    training.stop()
    assert training.wait(60) in ("ready", "stopped")
    assert training.error == ""


@pytest.mark.slow
def test_a_branch_leaves_where_the_run_was_paused():
    training = training_of("grammar-mlm", overrides=LONG, name="live")
    training.start()
    wait_for(lambda: underway(training) and len(training.log()) > 70)
    training.pause()
    assert training.wait(60) == "paused"
    at = training.saved
    leaving = branch_of(SavedRun(training.folder), at, ["lr=0.01", f"steps={at + 20}"])
    leaving.start()
    assert leaving.wait(120) == "done", leaving.error
    branch = open_run(leaving.folder)
    assert branch.parent["step"] == at == branch.steps[0]
    assert branch.log["step"].to_list() == list(range(at + 20))
    assert branch.recipe.training.lr == 0.01
    assert training.state == "paused"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lrr=1"], "no setting 'lrr'"),
        (["hidden_size=32"], "a branch cannot change model.hidden_size"),
        (["steps=2"], "nothing is left to do"),
        (["lr"], "lr"),
    ],
)
def test_bad_changes_are_refused_before_anything_is_trained(tiny_run, overrides, message):
    refuses(message, branch_of, tiny_run, 8, overrides)
    assert not background._trainings


def test_a_branch_is_refused_where_another_run_lies(tiny_run):
    refuses("tiny is not a branch; give this branch another --name", branch_of, tiny_run, 8, ["lr=0.01"], name="tiny")
    assert not background._trainings


# the end of who started it --------------------------------------------------------------------------------------------

KERNEL = """
import time
from lmdynamics.runs.background import training_of
training = training_of("grammar-mlm", overrides={overrides!r}, name="live")
training.start()
while len(training.log()) < 80:
    assert training.state in ("starting", "training"), training.error
    time.sleep(0.02)
print(training._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_when_the_kernel_is_killed_its_training_saves_and_ends(tmp_path, home):
    overrides = {**LONG, "steps": 20_000}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KERNEL.format(overrides=overrides)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        child = int(process.stdout.readline())
        live_rows = len(read_live(home / "runs" / "live"))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        wait_for(lambda: not Path(f"/proc/{child}").exists())
    finally:
        process.kill()
        process.communicate()
    training = training_of("grammar-mlm", overrides=overrides, name="live")
    assert training.state == "stopped"
    assert live_rows <= training.saved < 20_000
    assert len(training.log()) == training.saved
    at = layout.step_folder(training.folder / "resume", training.saved)
    assert layout.check_hashes(
        at if at.exists() else layout.step_folder(training.folder / "checkpoints", training.saved)
    )

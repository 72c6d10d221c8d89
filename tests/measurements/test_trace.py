"""Tracing: columns, cache, damage, interruption, executors, cache keys."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
import torch

import lmdynamics as lmd
from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.measurements.syntax import UAS, HeadScores
from lmdynamics.measurements.trace import Measurement, trace, trace_all
from tests.measurements.conftest import StandInRun, random_treebank


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LMDYNAMICS_HOME", str(tmp_path))
    return tmp_path


@dataclass(frozen=True)
class Counted(Measurement):
    """Step times `factor`; remembers at which steps it was called."""

    factor: int = 2
    called: ClassVar[list[int]] = []

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        self.called.append(checkpoint.step)
        return pl.DataFrame({"value": [self.factor * checkpoint.step, -checkpoint.step]})


@pytest.fixture(autouse=True)
def _forget_calls():
    Counted.called.clear()


RUN = StandInRun((0, 1, 2, 4))


def files(home: Path) -> list[Path]:
    return sorted((home / "cache" / "traces").rglob("*.parquet"))


def test_step_comes_first_and_results_are_kept(home):
    first = trace(RUN, Counted())
    assert dict(first.schema) == {"step": pl.Int64, "value": pl.Int64}
    assert first.rows() == [(0, 0), (0, 0), (1, 2), (1, -1), (2, 4), (2, -2), (4, 8), (4, -4)]
    assert len(files(home)) == 4
    assert trace(RUN, Counted()).equals(first)
    assert Counted.called == [0, 1, 2, 4]
    assert trace(RUN, Counted(), steps=[2, 1]).equals(first.filter(pl.col("step").is_in([1, 2])))
    trace(RUN, Counted(factor=3), steps=[4])
    assert Counted.called == [0, 1, 2, 4, 4]


def test_without_cache_nothing_is_read_or_written(home):
    trace(RUN, Counted(), cache=False)
    trace(RUN, Counted(), cache=False)
    assert Counted.called == 2 * [0, 1, 2, 4]
    assert not files(home)


@pytest.mark.parametrize("damage", ["cut", "empty", "nonsense", "one byte"])
def test_a_damaged_file_is_made_again(home, damage):
    full = trace(RUN, Counted())
    for path in files(home):
        content = bytearray(path.read_bytes())
        if damage == "one byte":
            content[len(content) // 4] ^= 1
        path.write_bytes({"cut": content[:-20], "empty": b"", "nonsense": b"PAR1 no PAR1"}.get(damage, content))
    assert trace(RUN, Counted()).equals(full)
    assert trace(RUN, Counted()).equals(full)


def test_a_file_with_another_number_is_made_again(home):
    full = trace(RUN, Counted())
    for path in files(home):
        frame, metadata = pl.read_parquet(path), pl.read_parquet_metadata(path)
        stored = {name: value for name, value in metadata.items() if name != "ARROW:schema"}
        frame.with_columns(pl.col("value") + 1).write_parquet(path, metadata=stored)
    assert trace(RUN, Counted()).equals(full)


def test_an_error_keeps_what_was_done():
    class Failing(Counted):
        def __call__(self, checkpoint, device="cpu"):
            if checkpoint.step == 2:
                raise KeyboardInterrupt
            return super().__call__(checkpoint, device)

    with pytest.raises(KeyboardInterrupt):
        trace(RUN, Failing())
    Counted.called.clear()
    with pytest.raises(KeyboardInterrupt):
        trace(RUN, Failing())
    assert Counted.called == []


def test_executor_gives_the_same_rows_and_keeps_them(home):
    expected = trace(RUN, Counted(), cache=False)
    with ThreadPoolExecutor(2) as executor:
        assert trace(RUN, Counted(), executor=executor).equals(expected)
    assert len(files(home)) == 4


def test_processes_give_the_same_rows_as_this_one(treebank):
    measurements = {"heads": HeadScores(treebank, min_count=5), "uas": UAS(treebank, min_count=5)}
    run = StandInRun((0, 1))
    serial = trace_all(run, measurements, cache=False)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        parallel = trace_all(run, measurements, executor=executor)
    assert list(parallel) == ["heads", "uas"]
    for name, frame in serial.items():
        assert parallel[name].equals(frame)


def test_only_what_is_missing_is_computed():
    trace(RUN, Counted(), steps=[1])
    Counted.called.clear()
    both = trace_all(RUN, {"two": Counted(), "three": Counted(factor=3)})
    assert Counted.called == [0, 0, 1, 2, 2, 4, 4]
    assert both["three"].filter(step=4)["value"].to_list() == [12, -4]


def test_no_steps_no_rows():
    assert trace(StandInRun(()), Counted()).is_empty()


def test_keys_differ_by_parameters_data_and_versions(treebank):
    class Newer(Counted):
        version = 2

    Newer.__name__ = "Counted"
    other_treebank = random_treebank(60, seed=1)
    keys = [
        Counted().key(),
        Counted(3).key(),
        Newer().key(),
        UAS(treebank).key(),
        UAS(treebank, seed=1).key(),
        UAS(other_treebank).key(),
        HeadScores(treebank).key(),
    ]
    assert len(set(keys)) == len(keys)
    assert UAS(random_treebank(60, seed=0)).key() == UAS(treebank).key()
    assert all(len(key) == 16 for key in keys)


def test_a_field_without_fingerprint_is_refused():
    @dataclass(frozen=True)
    class Bad(Measurement):
        data: np.ndarray

    with pytest.raises(TypeError, match="field of type ndarray, which has no fingerprint"):
        Bad(np.zeros(3)).key()
    assert len(TokenRows.from_rows([[1, 2]]).fingerprint) == 16


SCRIPT = """
import sys
from lmdynamics.measurements.syntax import UAS, HeadScores
from lmdynamics.measurements.trace import trace_all
from tests.measurements.conftest import StandInRun, random_treebank
import torch
torch.set_num_threads(1)
trees = random_treebank(60, seed=0)
trace_all(StandInRun(tuple(range(40))), {"heads": HeadScores(trees, 5), "uas": UAS(trees, 5)}, progress=False)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_same_rows(home, treebank):
    """SIGKILL at random moments (LMDYNAMICS_KILLS of them), each time gone on with."""
    moments, kills = random.Random(0), int(os.environ.get("LMDYNAMICS_KILLS", 3))
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONPATH": os.getcwd()})
        target = len(files(home)) + moments.randrange(1, 2 + 30 // kills)
        while len(files(home)) < target and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finished = len(files(home))
    measurements = {"heads": HeadScores(treebank, 5), "uas": UAS(treebank, 5)}
    run = StandInRun(tuple(range(40)))
    resumed, straight = trace_all(run, measurements), trace_all(run, measurements, cache=False)
    assert 0 < finished < 80
    for name, frame in straight.items():
        assert resumed[name].equals(frame)


def test_the_example_in_contributing_measures_what_a_loop_does(tiny_run):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    namespace = {"dataclass": dataclass, "Measurement": lmd.Measurement, "TokenRows": TokenRows}
    namespace |= {"pl": pl, "np": np, "torch": torch}
    exec(code, namespace)
    run, blocks = tiny_run, tiny_run.held_out()
    result = lmd.trace(run, namespace["AttentionEntropy"](blocks), steps=run.steps[-1:], progress=False)
    model, sums, tokens = run[run.steps[-1]].model(attention="eager"), {}, 0
    for row in blocks:
        attentions = model(torch.tensor(row.tolist())[None], output_attentions=True).attentions
        tokens += len(row)
        for layer, attention in enumerate(attentions):
            for head in range(attention.shape[1]):
                for query in attention[0, head].tolist():
                    entropy = -sum(weight * math.log(weight) for weight in query if weight > 0)
                    sums[layer, head] = sums.get((layer, head), 0.0) + entropy
    assert dict(
        zip(zip(result["layer"], result["head"], strict=True), result["entropy"], strict=True)
    ) == pytest.approx({key: total / tokens for key, total in sums.items()}, abs=1e-5)

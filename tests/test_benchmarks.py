"""Benchmarks run to their end at a small size, so that no change of the package breaks them unnoticed."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def last_line(monkeypatch, capsys):
    """Runs a benchmark, and returns the last line that it prints."""

    def run(name, arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments.split()])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()[-1]

    return run


def test_masking(last_line):
    assert last_line("masking", "--batches 2 --rounds 1").startswith("packed in blocks of 64: ")


def test_regularizer(last_line):
    assert last_line("regularizer", "--steps 1 --rounds 1").startswith("penalty (uniform) against sdpa without: ratio ")


def test_both_ways_of_scoring_heads_agree(last_line, real_data):
    line = last_line("head_scores", "--sentences 20 --repeats 1 --layers 2 --vocabulary 200")
    assert line.startswith("counts that differ between the two: 0 of ")

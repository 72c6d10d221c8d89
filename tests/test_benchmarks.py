"""Benchmarks run to their end at a small size, so that no change of the package breaks them unnoticed."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def last_line(name, arguments):
    """The last line that a benchmark prints; in a process of its own, because some replace functions of the package."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments.split()]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


def test_masking():
    assert last_line("masking", "--batches 2 --rounds 1").startswith("packed in blocks of 64: ")


def test_regularizer():
    assert last_line("regularizer", "--steps 1 --rounds 1").startswith("penalty (uniform) against sdpa without: ratio ")


def test_both_ways_of_scoring_heads_agree(real_data):
    line = last_line("head_scores", "--sentences 20 --repeats 1 --layers 2 --vocabulary 200")
    assert line.startswith("counts that differ between the two: 0 of ")

"""What computed a result is recorded; a variable requests arithmetic that repeats."""

import json
import re
import subprocess
import sys

import torch

from lmdynamics.environment import DETERMINISTIC, commit, environment, repeatable, versions


def test_an_environment_can_be_written_down():
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__
    assert (facts["device"], facts["dtype"], facts["deterministic"]) == ("cpu", "float32", True)
    assert facts["peak_mb"] > 50
    several = environment([("cuda", "bfloat16", "NVIDIA H100"), ("cpu", "float32", "cpu"), ("cuda", "float32", "x")])
    assert (several["device"], several["dtype"], several["deterministic"]) == ("cpu+cuda", "bfloat16+float32", False)
    assert several["device_name"] == f"NVIDIA H100, {facts['device_name']}, x"


def test_the_commit_is_that_of_this_checkout():
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert commit() is None or re.fullmatch(r"[0-9a-f]{12}\+?", commit())
    assert commit() is None or head.startswith(commit().rstrip("+"))


def test_versions_do_not_import_torch():
    code = "import sys; from lmdynamics.environment import environment; environment(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert {"python", "lmdynamics", "torch", "transformers"} <= versions().keys()


def test_repeatable_arithmetic_is_asked_for_by_a_variable(monkeypatch):
    monkeypatch.delenv(DETERMINISTIC, raising=False)
    repeatable()
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(DETERMINISTIC, "1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    try:
        repeatable()
        assert torch.are_deterministic_algorithms_enabled()
        assert environment([("cuda", "float32", "x")])["deterministic"] is True
    finally:
        torch.use_deterministic_algorithms(False)

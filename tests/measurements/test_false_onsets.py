"""Models that were never trained have learnt nothing; `benchmarks/false_onsets.py` tries fifty runs of them."""

import pytest

from benchmarks.false_onsets import KINDS, claims, untrained_run


@pytest.mark.parametrize("first_step_zero", [False, True], ids=["without step 0", "with step 0"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_run_has_no_onset(tmp_path, kind, first_step_zero):
    run = untrained_run(tmp_path / "run", kind, first_step_zero, redrawn=True, seed=1)
    assert run.steps == [0] * first_step_zero + [500, 1000, 1500, 2000, 2500]
    assert claims(run, sentences=120, min_count=30, pairs_per_paradigm=20, seed=1) == []

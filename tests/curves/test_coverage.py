"""Intervals hold the truth about as often as they claim; `benchmarks/coverage.py` draws more."""

import pytest

from benchmarks.coverage import CLAIMS, coverage


@pytest.mark.parametrize("name", CLAIMS)
def test_intervals_cover_what_they_claim(name):
    covered, given = coverage(CLAIMS[name], draws=80)
    assert given == 0 or covered >= 0.875  # 95 % less three standard errors

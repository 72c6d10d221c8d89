"""Intervals hold the truth about as often as they claim; `benchmarks/coverage.py` draws more."""

import pytest

from benchmarks.coverage import CLAIMS, MISSES, TOO_SMALL, coverage


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CLAIMS if name != TOO_SMALL])
def test_intervals_cover_what_they_claim(name):
    covered, given = coverage(CLAIMS[name], draws=80)
    # 95 % less three standard errors, or hardly any interval
    assert given == 0 or covered >= 0.875 or (1 - covered) * given <= MISSES * 80

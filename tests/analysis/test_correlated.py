import numpy as np
import pytest
from scipy.signal import lfilter

from lmdynamics.analysis.loss_curves import blocks_of, correlation_time, wild_draws

X = np.linspace(4.6, 11, 400)


def persistent(rho: float, seed: int, n: int = 400):
    return lfilter([np.sqrt(1 - rho**2)], [1, -rho], np.random.default_rng(seed).standard_normal(n))


@pytest.mark.parametrize(("rho", "expected"), [(0.0, 1.0), (0.5, 3.0), (0.8, 9.0)])
def test_correlation_time_of_a_known_process(rho, expected):
    found = np.median([correlation_time(persistent(rho, seed, 4_000)) for seed in range(20)])
    assert found == pytest.approx(expected, rel=0.25)


def test_nothing_is_correlated_with_nothing():
    assert correlation_time(np.zeros(10)) == 1.0


def test_blocks_are_counted_in_points_where_noise_is_independent():
    starts, independent = blocks_of(X, persistent(0, 0))
    assert np.diff(starts).tolist() == [7] * (len(starts) - 1)  # the cube root of 400
    assert independent == pytest.approx(400, rel=0.6)


def test_blocks_are_counted_in_log_steps_where_it_is_not():
    crowded = np.log(np.arange(101, 3_001.0))  # most points at the end
    slow = np.sin(3 * crowded)
    starts, independent = blocks_of(crowded, slow)
    widths = np.diff(crowded[starts])
    assert widths == pytest.approx(np.full(len(widths), widths.mean()), rel=0.1)
    assert independent < 20


def test_draws_keep_the_size_of_noise_where_it_is():
    """Residuals large at first and small later stay so: nothing is shuffled along the curve."""
    residuals = np.where(np.arange(400) < 200, 1.0, 0.01) * persistent(0, 1)
    columns = np.stack([np.ones(400), X], axis=1)
    drawn = wild_draws(X, residuals, blocks_of(X, residuals)[0], columns, 300, seed=0)
    assert drawn.shape == (300, 400)
    assert drawn[:, :200].std() > 30 * drawn[:, 200:].std()
    assert abs(drawn.mean()) < 0.05


def test_draws_are_the_seeds_doing():
    residuals, columns = persistent(0, 1), np.ones((400, 1))
    starts, _ = blocks_of(X, residuals)
    first, same, other = (wild_draws(X, residuals, starts, columns, 5, seed) for seed in (0, 0, 1))
    assert (first == same).all()
    assert (first != other).any()

import numpy as np
import pytest
from scipy.optimize import least_squares

from lmdynamics.analysis.broken_power_law import _linear_and_gradient, fit, jacobian, scanned_gain

from .frames import BREAK, C0, C1, WIDTH, B, broken, noisy, spaced

STEPS = spaced()
X = np.log(STEPS)


def log_loss(*seeds: int, sd: float = 0.02, **shape):
    return np.log(np.stack([noisy(STEPS, sd, seed, **shape) for seed in seeds]))


def test_an_exact_curve_gives_back_its_parameters():
    fitted = fit(X, np.log(broken(STEPS))[None], 1)
    assert np.exp(fitted.log_b[0]) == pytest.approx(B, rel=1e-6)
    assert fitted.rates[0] == pytest.approx([C0, C1], abs=1e-7)
    assert np.exp(fitted.breaks[0, 0]) == pytest.approx(BREAK, rel=1e-6)
    assert fitted.widths[0, 0] == pytest.approx(WIDTH, rel=1e-5)
    assert fitted(X)[0] == pytest.approx(np.log(broken(STEPS)), abs=1e-9)


def test_no_break_is_the_straight_line_of_least_squares():
    y = log_loss(0)
    fitted, (slope, intercept) = fit(X, y, 0), np.polyfit(X, y[0], 1)
    assert (fitted.log_b[0], fitted.rates[0, 0]) == pytest.approx((intercept, -slope))


@pytest.mark.parametrize("breaks", [1, 2])
def test_scipy_finds_nothing_better_from_many_places(breaks):
    y = log_loss(3)[0]
    fitted = fit(X, y[None], breaks)

    def residuals(p):
        c, d, f = p[1 : 2 + breaks], p[2 + breaks : 2 + 2 * breaks], np.exp(p[2 + 2 * breaks :])
        bent = sum(c[1 + i] * f[i] * np.logaddexp(0, (X - d[i]) / f[i]) for i in range(breaks))
        return y - (p[0] - c[0] * X - bent)

    random, costs = np.random.default_rng(0), []
    for _ in range(15):
        places = np.sort(random.uniform(X[0], X[-1], breaks))
        start = [3.0, 0.2, *[-0.1] * breaks, *places, *random.uniform(-3, 0.5, breaks)]
        low = [-np.inf] * (2 + breaks) + [X[0]] * breaks + [np.log(0.01)] * breaks
        high = [np.inf] * (2 + breaks) + [X[-1]] * breaks + [np.log(3)] * breaks
        costs.append(2 * least_squares(residuals, start, bounds=(low, high)).cost)
    assert fitted.rss[0] <= min(costs) * (1 + 1e-6)


def test_every_random_start_ends_at_the_same_fit():
    y, random = log_loss(1), np.random.default_rng(0)
    starts = random.uniform(X[0], X[-1], (20, 1)), np.exp(random.uniform(np.log(0.02), np.log(2), (20, 1)))
    fitted, best = fit(X, np.repeat(y, 20, axis=0), 1, starts), fit(X, y, 1)
    assert fitted.rss == pytest.approx(np.full(20, best.rss[0]), rel=1e-8)
    assert fitted.breaks[:, 0] == pytest.approx(np.full(20, best.breaks[0, 0]), abs=1e-4)


def test_curves_fitted_together_are_fitted_as_if_alone():
    y = log_loss(0, 1, 2)
    joint_fit = fit(X, y, 1)
    for i in range(3):
        single_fit = fit(X, y[i : i + 1], 1)
        assert single_fit.rss[0] == pytest.approx(joint_fit.rss[i])
        assert single_fit.breaks[0] == pytest.approx(joint_fit.breaks[i], abs=1e-5)


def test_more_breaks_never_fit_worse():
    y = log_loss(*range(8), sd=0.05)
    none, one, two = (fit(X, y, breaks).rss for breaks in (0, 1, 2))
    assert (one <= none * (1 + 1e-9)).all()
    assert (two <= one * (1 + 1e-9)).all()


def test_two_breaks_are_found_in_order():
    twice = broken(STEPS) * (1 + (STEPS / 20_000) ** (1 / 0.1)) ** (-0.3 * 0.1)
    fitted = fit(X, np.log(twice)[None], 2)
    assert np.exp(fitted.breaks[0]) == pytest.approx([BREAK, 20_000], rel=1e-3)
    assert fitted.rates.cumsum(1)[0] == pytest.approx([C0, C0 + C1, C0 + C1 + 0.3], abs=1e-4)


def test_a_break_may_be_held_where_it_is():
    at, width = np.log([[1_000.0]]), np.array([[0.5]])
    fixed_fit = fit(X, log_loss(0), 1, (at, width), fixed=True)
    assert fixed_fit.breaks == pytest.approx(at)
    assert fixed_fit.rss[0] > fit(X, log_loss(0), 1).rss[0]


def test_gradients_equal_differences():
    y, place, nudge = log_loss(0), np.array([[7.5, np.log(0.4)]]), 1e-6
    slope = _linear_and_gradient(X, y, place)[1][0]
    for i, direction in enumerate(np.eye(2)):
        forward, backward = (_linear_and_gradient(X, y, place + sign * nudge * direction)[0].rss[0] for sign in (1, -1))
        assert slope[i] == pytest.approx((forward - backward) / (4 * nudge), rel=1e-4)


def test_slopes_are_how_the_fit_moves():
    fitted = fit(X, log_loss(0), 1)
    columns = jacobian(X, fitted)
    assert columns.shape == (len(X), 5)
    moved = type(fitted)(fitted.log_b, fitted.rates, fitted.breaks + 1e-6, fitted.widths, fitted.rss)
    assert (moved(X) - fitted(X))[0] / 1e-6 == pytest.approx(columns[:, 3], abs=1e-6)


def test_a_scan_takes_away_less_than_the_fit_and_nearly_as_much():
    y = log_loss(0, 1)
    full = fit(X, y, 0).rss - fit(X, y, 1).rss
    assert (scanned_gain(X, y) <= full * (1 + 1e-9)).all()
    assert (scanned_gain(X, y) > 0.99 * full).all()


def test_a_hundred_thousand_points_take_no_more_memory_than_themselves():
    x = np.log(np.arange(101, 100_101))
    fitted = fit(x, np.log(broken(np.exp(x)))[None], 1)
    assert np.exp(fitted.breaks[0, 0]) == pytest.approx(BREAK, rel=1e-4)

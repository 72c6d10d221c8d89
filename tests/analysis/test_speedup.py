"""Speed-ups: known parameters are recovered, equal runs give 1, worse runs give none."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from lmdynamics.analysis.speedup import LearningCurve, fit_curve, speedup
from lmdynamics.errors import UserError
from tests.conftest import refuses

STEPS = np.array([0, *np.unique(np.geomspace(10, 4000, 24).astype(int))], float)
GOOD = LearningCurve(0.95, 0.45, 1 / 1500, 1.2)
BEST_OF_LOWER = LearningCurve(0.80, 0.30, 1 / 1500, 1.2)


def frame(curve, noise=0.0, faster=1.0, seed=0, steps=STEPS):
    scores = curve(steps * faster) + noise * np.random.default_rng(seed).normal(size=len(steps))
    return pl.DataFrame({"step": steps.astype(int), "accuracy": scores})


def seeds(curve, n=4, noise=0.01, faster=1.0, first=0):
    return pl.concat(
        frame(curve, noise, faster, first + seed).with_columns(seed=pl.lit(seed, pl.Int64)) for seed in range(n)
    )


@settings(max_examples=20)
@given(st.floats(0.2, 0.9), st.floats(0.1, 0.5), st.floats(50, 2500), st.floats(0.4, 3))
def test_known_parameters_are_recovered(c1, c2, place, c4):
    truth = LearningCurve(c1, c2, 1 / place, c4)
    result = fit_curve(STEPS, truth(STEPS))
    assert result(STEPS) == pytest.approx(truth(STEPS), abs=1e-5 * c2)
    assert result.step_at(c1 - 0.3 * c2) == pytest.approx(truth.step_at(c1 - 0.3 * c2), rel=0.01)


@given(st.floats(0.51, 0.94))
def test_the_step_at_a_score_is_where_the_curve_has_it(score):
    assert GOOD(np.array([GOOD.step_at(score)]))[0] == pytest.approx(score)


def test_scores_outside_the_curve():
    assert GOOD.step_at(0.4) == 0.0
    assert GOOD.step_at(0.95) == GOOD.step_at(1.0) == float("inf")
    assert LearningCurve(0.5, 0.0, 1.0, 1.0).step_at(0.6) == float("inf")


def test_the_paper_s_figure_by_arithmetic():
    steps = np.arange(0, 70_001, 1_000).astype(float)
    baseline = LearningCurve(84.0, 30.0, 1 / 15_000, 0.7)
    result = speedup(frame(baseline, steps=steps), frame(baseline, faster=70 / 37, steps=steps), resamples=0)
    assert result.step == pytest.approx(37_000, rel=1e-3)
    assert f"{result.value:.2f}" == "1.89"
    assert (result.low, result.high, result.reached) == (None, None, True)
    assert str(result) == "speed-up 1.89"
    assert "at step 37,0" in result.reason


@pytest.mark.parametrize("best", ["fitted", "observed"])
def test_a_run_is_no_faster_than_itself(best):
    result = speedup(frame(GOOD), frame(GOOD), best=best, resamples=0)
    assert result.value == pytest.approx(1, rel=1e-3)
    assert "beyond" not in result.reason


@pytest.mark.parametrize("factor", [1.0, 1.6])
def test_intervals_hold_the_truth_nine_times_in_ten(factor):
    slow = LearningCurve(0.95, 0.45, 1 / 3000, 1.0)
    result = [
        speedup(frame(slow, 0.005, seed=2 * i), frame(slow, 0.005, factor, seed=2 * i + 1), resamples=100)
        for i in range(20)
    ]
    assert np.mean([row.value for row in result]) == pytest.approx(factor, abs=0.05)
    assert sum((row.low or 0) < factor < row.high for row in result) >= 18


def test_a_faster_run_has_a_bounded_interval_around_the_truth():
    slow = LearningCurve(0.95, 0.45, 1 / 3000, 1.0)
    result = speedup(frame(slow, 0.005), frame(slow, 0.005, faster=1.6, seed=1))
    assert result.low < 1.6 < result.high
    assert result.high - result.low < 0.8
    assert result.share >= 0.975
    assert str(result) == f"speed-up {result.value:.2f} [{result.low:.2f}, {result.high:.2f}]"
    assert result == speedup(frame(slow, 0.005), frame(slow, 0.005, faster=1.6, seed=1))


def test_a_worse_run_never_reaches_the_baseline():
    result = speedup(frame(GOOD, 0.005), frame(BEST_OF_LOWER, 0.005, seed=1))
    assert (result.reached, result.value, result.low, result.high, result.step) == (False, None, None, None, None)
    assert result.reason.startswith("never reached: the scheduled fit tends to 0.")
    assert str(result).startswith("no speed-up to report: never reached")
    assert result.share == 0


def test_when_some_resamples_never_get_there_the_interval_is_open():
    plateau = LearningCurve(0.95, 0.45, 1 / 600, 1.5)
    result = speedup(frame(plateau, 0.01), frame(plateau, 0.01, faster=1.5, seed=3))
    assert result.reached
    assert 0 < result.share < 0.975
    assert result.low is None
    assert result.high > result.value
    assert "never reach it, so the interval is open below" in result.reason
    assert "[open, " in str(result)


def test_a_slower_run_that_would_get_there_is_read_beyond_its_last_step():
    slow = LearningCurve(0.95, 0.45, 1 / 3000, 1.0)
    result = speedup(frame(slow), frame(slow, faster=0.7), resamples=0)
    assert result.value == pytest.approx(0.7, rel=0.01)
    assert "(beyond its last checkpoint, 4,000)" in result.reason
    assert not speedup(frame(slow), frame(slow, faster=0.4), resamples=0).reached


def test_a_run_above_the_best_from_its_start_is_timed_by_its_first_step():
    result = speedup(frame(BEST_OF_LOWER), frame(LearningCurve(0.95, 0.1, 1 / 1500, 1.2)), resamples=0)
    assert result.step == 10
    assert result.value == 400


def test_seeds_are_the_units_where_they_are_given():
    slow = LearningCurve(0.95, 0.45, 1 / 3000, 1.0)
    result = speedup(seeds(slow), seeds(slow, faster=1.6, first=10), unit="seed")
    assert result.low < 1.6 < result.high
    alike = speedup(seeds(slow, noise=0), seeds(slow, noise=0, faster=1.6), unit="seed")
    assert alike.high - alike.low < 0.01


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_interval_over_seeds_is_students_on_the_log_speed_up(n):
    slow = LearningCurve(0.95, 0.45, 1 / 3000, 1.0)
    faster = 1.6 * np.exp(0.02 * np.random.default_rng(n).normal(size=n))
    scheduled = [frame(slow, faster=by).with_columns(seed=pl.lit(seed, pl.Int64)) for seed, by in enumerate(faster)]
    result = speedup(seeds(slow, n, noise=0), pl.concat(scheduled), unit="seed")
    middle = np.log(faster).mean()
    reach = student.ppf(0.975, n - 1) * np.log(faster).std(ddof=1) / np.sqrt(n)
    assert np.log([result.low, result.value, result.high]) == pytest.approx(
        [middle - reach, middle, middle + reach], abs=0.05 * reach
    )


def test_frames_of_different_seeds_add_their_variances():
    slow = LearningCurve(0.95, 0.45, 1 / 3000, 1.0)
    base, scheduled = (
        pl.concat(frame(slow, faster=by * np.exp(e)).with_columns(seed=pl.lit(first + k)) for k, e in enumerate(off))
        for by, first, off in ((1.0, 0, (-0.02, 0.0, 0.02)), (1.6, 10, (-0.03, 0.0, 0.03)))
    )
    result = speedup(base, scheduled, unit="seed", level=0.9)
    variances = np.array([0.02**2, 0.03**2]) / 3
    reach = student.ppf(0.975, variances.sum() ** 2 / (variances**2 / 2).sum()) * np.sqrt(variances.sum())
    assert np.log(result.high / result.value) == pytest.approx(reach, rel=0.05)
    assert np.log(result.value / result.low) == pytest.approx(reach, rel=0.05)


def test_frames_of_different_seeds_equal_a_loop_that_leaves_one_out():
    slow, fast = LearningCurve(0.95, 0.45, 1 / 3000, 1.0), LearningCurve(1.1, 0.7, 1 / 1500, 0.8)
    base = seeds(slow, n=2)
    scheduled = seeds(fast, n=4, first=10).with_columns(pl.col("seed") + 10)
    options = {"unit": "seed", "level": 0.9}
    result = speedup(base, scheduled, **options)
    without = [
        [speedup(base.filter(pl.col("seed") != seed), scheduled, **options).value for seed in range(2)],
        [speedup(base, scheduled.filter(pl.col("seed") != seed), **options).value for seed in range(10, 14)],
    ]
    variances = np.array([(len(values) - 1) * np.log(values).var() for values in without])
    degrees = variances.sum() ** 2 / (variances**2 / [1, 3]).sum()
    reach = student.ppf(0.975, degrees) * np.sqrt(variances.sum())
    bounds = np.log(result.value) + reach * np.array([-1, 1])
    assert np.log([result.low, result.high]) == pytest.approx(bounds, rel=0.02)


def test_the_reason_of_a_clear_result_says_where_the_best_is_reached_and_no_more():
    result = speedup(seeds(GOOD, noise=0), seeds(GOOD, noise=0, faster=2.0), unit="seed")
    expected = f"the scheduled fit reaches {result.target:.3f}, the best of the baseline's 4,000 steps, at step 2,000"
    assert result.reason == expected


def test_a_speed_up_that_rests_on_one_seed_has_no_interval():
    tops = [(seed, LearningCurve(top, top - 0.5, 1 / 900, 1.2)) for seed, top in enumerate([0.95, 0.95, 1.2])]
    scheduled = pl.concat(frame(curve).with_columns(seed=pl.lit(seed, pl.Int64)) for seed, curve in tops)
    base = LearningCurve(1.0, 0.5, 1 / 1500, 1.2)
    result = speedup(seeds(base, 3, noise=0), scheduled, unit="seed")
    assert result.value is not None
    assert (result.low, result.high) == (None, None)
    assert result.share == pytest.approx(2 / 3)
    assert "33% of the curves with one seed left out never reach it, so no interval is given" in result.reason


def test_one_unit_has_no_interval():
    one_seed = seeds(GOOD, n=1)
    result = speedup(one_seed, seeds(GOOD, n=1, faster=1.3), unit="seed", level=0.9)
    assert result.value is not None
    assert (result.low, result.high) == (None, None)


def test_rows_of_one_step_are_averaged_without_units():
    both = seeds(GOOD, noise=0.01)
    mean = both.group_by("step").agg(pl.col("accuracy").mean())
    assert speedup(both, both, resamples=0).target == pytest.approx(speedup(mean, mean, resamples=0).target)


def test_resamples_are_fitted_as_well_as_the_scores_themselves():
    from lmdynamics.analysis.speedup import _fit_all

    scores = np.stack([frame(GOOD, 0.01, seed=seed)["accuracy"].to_numpy() for seed in range(10)])
    for row, (c1, c2, c3, c4) in zip(scores, _fit_all(STEPS, scores), strict=True):
        quick = LearningCurve(c1, c2, np.exp(c3), np.exp(c4))
        errors = [((curve(STEPS) - row) ** 2).sum() for curve in (quick, fit_curve(STEPS, row))]
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_bad_input_is_refused():
    good = frame(GOOD)
    refuses("baseline needs the columns step, f1; f1 not among them", speedup, good, good, value="f1")
    refuses("scheduled has 4 step", speedup, good, good.head(4))
    with pytest.raises(UserError, match="'accuracy' has no number at step 10"):
        speedup(good, good.with_columns(accuracy=pl.when(pl.col("step") == 10).then(None).otherwise("accuracy")))
    refuses("the baseline's score does not rise", speedup, good.with_columns(accuracy=pl.lit(0.5)), good)
    refuses("every checkpoint needs each seed once", speedup, seeds(GOOD), seeds(GOOD).slice(1), unit="seed")
    refuses("best is 'highest'", speedup, good, good, best="highest")


@pytest.mark.parametrize("level", [0.3, 0.5, 0.9])
def test_a_share_of_the_way_counts_the_baselines_own_steps(level):
    steps = np.arange(0, 4001, 100)
    base, fast, low = (top * (1 - np.exp(-rate * steps / 1000)) for rate, top in ((1, 1.0), (2, 1.0), (2, 0.96)))
    frames = [pl.DataFrame({"step": steps, "accuracy": scores}) for scores in (base, fast, low)]
    assert speedup(frames[0], frames[1], level=level).value == pytest.approx(2, rel=0.02)
    assert speedup(frames[0], frames[0], level=level).value == pytest.approx(1, rel=0.01)
    assert speedup(frames[0], frames[2]).value is None  # ends just below the baseline's best, though it is faster
    assert 1.3 < speedup(frames[0], frames[2], level=level).value < 2


@pytest.mark.parametrize("level", [0.0, 1.5])
def test_a_level_that_is_no_share_is_refused(level):
    frame = pl.DataFrame({"step": range(10), "accuracy": [float(i) for i in range(10)]})
    refuses("expected a share of the way", speedup, frame, frame, level=level)

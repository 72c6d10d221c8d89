"""Means, intervals, tests and effect sizes over seeds, against scipy's and formulas written out."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmdynamics.analysis.statistics import compare_to_baseline, hochberg, mean_over_seeds, noncentrality, small_sample
from lmdynamics.errors import UserError
from tests.conftest import refuses


def scores(**conditions):
    rows = [(name, seed, score) for name, values in conditions.items() for seed, score in enumerate(values)]
    return pl.DataFrame(rows, schema=["condition", "seed", "score"], orient="row")


BASE, HIGHER, LOWER = [83.5, 83.9, 84.1], [85.0, 85.3, 85.9], [80.0, 80.4, 81.1]


def test_the_mean_s_interval_is_scipy_s():
    row = mean_over_seeds(scores(a=BASE), "condition", "score").row(0, named=True)
    low, high = stats.t.interval(0.95, 2, np.mean(BASE), stats.sem(BASE))
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))
    assert (row["mean"], row["sd"], row["n"]) == (pytest.approx(np.mean(BASE)), pytest.approx(np.std(BASE, ddof=1)), 3)


def test_one_seed_has_no_interval():
    frame = mean_over_seeds(scores(a=BASE, b=[1.0]), ["condition"], "score")
    assert frame.row(1) == ("b", 1.0, None, None, 1, None)
    assert frame["low"].null_count() == 1


def test_trials_of_one_seed_are_no_seeds():
    trials = pl.concat([scores(a=BASE).with_columns(pl.col("score") + shift) for shift in (-1.0, 0.0, 1.0)])
    assert mean_over_seeds(trials, "condition", "score").equals(mean_over_seeds(scores(a=BASE), "condition", "score"))


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("paired", [True, False])
def test_the_test_is_scipy_s(paired, higher_is_better):
    options = {"higher_is_better": higher_is_better, "paired": paired}
    row = compare_to_baseline(scores(base=BASE, new=HIGHER), "base", **options).row(0, named=True)
    side = "greater" if higher_is_better else "less"
    if paired:
        one_sided, two_sided = stats.ttest_rel(HIGHER, BASE, alternative=side), stats.ttest_rel(HIGHER, BASE)
    else:
        one_sided = stats.ttest_ind(HIGHER, BASE, equal_var=False, alternative=side)
        two_sided = stats.ttest_ind(HIGHER, BASE, equal_var=False)
    interval = two_sided.confidence_interval(0.95)
    assert row["p"] == pytest.approx(one_sided.pvalue)
    assert (row["low"], row["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert row["difference"] == pytest.approx(np.mean(HIGHER) - np.mean(BASE))
    assert row["verdict"] == ("better" if higher_is_better else "worse")


def test_verdicts_of_a_better_a_worse_and_an_equal_condition():
    equal = [83.6, 83.8, 84.2]
    frame = compare_to_baseline(scores(up=HIGHER, base=BASE, down=LOWER, same=equal), "base")
    assert frame.select("condition", "verdict").rows() == [("up", "better"), ("down", "worse"), ("same", "undecided")]
    p = frame["p"].to_numpy()
    assert frame["p_hochberg"].to_list() == pytest.approx(np.minimum(hochberg(p), hochberg(1 - p)).tolist())
    assert frame.filter(condition="down")["p_hochberg"][0] < 0.05, "a verdict and its p agree"
    assert (frame["p_hochberg"].to_numpy() >= np.minimum(p, 1 - p)).all()


def test_hochberg_as_statsmodels_has_it():
    p = np.array([0.011, 0.02, 0.04, 0.03, 0.8])
    assert hochberg(p) == pytest.approx([0.055, 0.08, 0.08, 0.08, 0.8])  # multipletests(p, method="simes-hochberg")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_hochberg_rejects_what_the_step_up_procedure_does(p, level):
    p, m = np.array(p), len(p)
    ordered = sorted(p)
    passing = [k for k in range(1, m + 1) if ordered[k - 1] <= level / (m - k + 1)]
    largest = ordered[max(passing) - 1] if passing else -1.0
    adjusted = hochberg(p)
    sure = np.abs(adjusted - level) > 1e-9
    assert ((adjusted <= level) == (p <= largest))[sure].all()


def test_hedges_g_written_out():
    row = compare_to_baseline(scores(base=BASE, new=HIGHER), "base").row(0, named=True)
    pooled = np.sqrt((np.var(BASE, ddof=1) + np.var(HIGHER, ddof=1)) / 2)
    d = (np.mean(HIGHER) - np.mean(BASE)) / pooled
    assert row["g"] == pytest.approx(d * 0.797885, rel=1e-5)  # J at 4 degrees of freedom; 1 - 3 / (4 * 4 - 1) = .80
    assert row["g_low"] < d < row["g_high"]
    assert small_sample(1000) == pytest.approx(1 - 3 / 3999, rel=1e-5)


@pytest.mark.parametrize("t", [-3.0, 0.0, 1.5, 6.0])
@pytest.mark.parametrize("df", [2, 4, 20])
def test_the_effect_s_interval_is_that_of_the_noncentral_t(t, df):
    low, high = noncentrality(t, df)
    assert stats.nct.cdf(t, df, low) == pytest.approx(0.975, abs=1e-4)
    assert stats.nct.cdf(t, df, high) == pytest.approx(0.025, abs=1e-4)


def test_seeds_that_agree_closely_have_an_effect_of_finite_size():
    frame = compare_to_baseline(scores(base=[1.0, 1.0001], new=[2.0, 2.0001]), "base")
    assert np.isfinite(frame.select("g", "g_low", "g_high").row(0)).all()


@given(st.permutations(range(3)), st.floats(-50, 50))
def test_order_and_origin_do_not_matter(order, origin):
    frame = scores(base=BASE, new=HIGHER)
    moved = pl.concat([frame.filter(seed=s) for s in order]).with_columns(pl.col("score") + origin)
    columns = ["difference", "low", "high", "p", "g", "g_low", "g_high"]
    original, transformed = (compare_to_baseline(f, "base").select(columns).row(0) for f in (frame, moved))
    assert original == pytest.approx(transformed, rel=1e-6)


def test_one_seed_is_no_test_and_does_not_count_among_them():
    expected = compare_to_baseline(scores(base=BASE, new=HIGHER), "base")
    frame = compare_to_baseline(scores(base=BASE, one=[99.0], new=HIGHER), "base")
    assert frame.row(0) == ("one", 1, 3, 99 - np.mean(BASE), *[None] * 7, "one seed: undecided")
    assert frame.row(1) == expected.row(0)
    baseline_of_one = compare_to_baseline(scores(base=[1.0], new=HIGHER), "base")
    assert baseline_of_one["verdict"].to_list() == ["one seed: undecided"]


def test_no_spread_is_no_test():
    frame = compare_to_baseline(scores(base=[0.5, 0.5, 0.5], new=[0.7, 0.7, 0.7]), "base")
    assert frame["verdict"].to_list() == ["no spread between seeds: undecided"]
    assert frame["p"].to_list() == [None]
    shifted = compare_to_baseline(scores(base=BASE, new=[b + 0.1 for b in BASE]), "base", paired=True)
    assert shifted["verdict"].to_list() == ["no spread between seeds: undecided"]


def test_bad_input_is_refused():
    frame = scores(base=BASE, new=HIGHER)
    refuses("no condition 'bas'; did you mean 'base'?", compare_to_baseline, frame, "bas")
    refuses("there is no other condition", compare_to_baseline, scores(base=BASE), "base")
    with pytest.raises(UserError, match=r"no number for condition new, seed 1 \(1 row\(s\)"):
        compare_to_baseline(scores(base=BASE, new=[1.0, float("nan"), 2.0]), "base")
    refuses("no number for condition base, seed 0", mean_over_seeds, scores(base=[None, 1.0]), "condition", "score")
    with pytest.raises(UserError, match="'new' has the seeds 0, 1, the baseline 0, 1, 2"):
        compare_to_baseline(scores(base=BASE, new=HIGHER[:2]), "base", paired=True)
    refuses("seed not among them", mean_over_seeds, frame.drop("seed"), "condition", "score")

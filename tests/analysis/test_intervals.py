"""Intervals against naive loops, and how often they hold the truth (benchmarks/coverage.py draws more)."""

import numpy as np
import polars as pl
import pytest

from benchmarks.coverage import CLAIMS, MISSES, TOO_SMALL, coverage
from lmdynamics.analysis.intervals import bootstrap_levels, resample_counts, with_interval
from lmdynamics.analysis.onsets import local_derivative
from lmdynamics.analysis.syntax import accuracy_by_step, average_accuracy, judged_right, uas_by_step
from lmdynamics.experiments.comparison import summarise
from lmdynamics.measurements.losses import PairAccuracy
from tests.analysis.frames import STEPS, pairs_trace, sigmoid, uas_trace
from tests.conftest import refuses


def test_uas_is_the_share_of_arcs_not_the_mean_of_sentences():
    counts = {"arcs": [1, 9], "correct": [1, 0]}
    trace = pl.DataFrame({"step": [5, 5], "sentence": [0, 1], "source": "per_relation", **counts})
    assert uas_by_step(trace)["uas"].to_list() == [0.1]


def test_what_chosen_heads_could_reach_goes_along():
    trace = uas_trace({"per_relation": 0.4}, sentences=50, steps=[1, 2]).with_columns(reachable=pl.col("arcs") - 2)
    curve, arcs = uas_by_step(trace), trace.filter(step=1)["arcs"].sum()
    assert curve["reachable"].to_list() == pytest.approx([(arcs - 100) / arcs] * 2)
    assert curve.drop("reachable").equals(uas_by_step(trace.drop("reachable")))


def test_the_uas_interval_covers_the_truth():
    curve = uas_by_step(uas_trace({"per_relation": 0.4, "shuffled": 0.1}, steps=STEPS[:20]))
    truth = pl.when(pl.col("source") == "per_relation").then(0.4).otherwise(0.1)
    covered = curve.select(((pl.col("low") <= truth) & (truth <= pl.col("high"))).mean()).item()
    assert covered >= 0.8
    assert (curve["high"] - curve["low"]).max() < 0.06


def test_wilson_interval_by_its_definition():
    curve = accuracy_by_step(pairs_trace({"near": 0.8}, pairs=50, steps=[1]))
    p, low, high = curve.select("accuracy", "low", "high").row(0)
    for edge in (low, high):  # each edge is the proportion whose own standard error reaches p
        assert abs(p - edge) == pytest.approx(1.959964 * np.sqrt(edge * (1 - edge) / 50))


def test_intervals_stay_inside_zero_and_one():
    curve = accuracy_by_step(pairs_trace({"all": 1.0, "none": 0.0}, pairs=10, steps=[1]))
    assert curve["low"].min() >= -1e-12
    assert curve["high"].max() <= 1 + 1e-12
    assert curve.filter(pl.col("paradigm") == "all")["low"].item() < 1


def test_resamples_draw_as_many_as_there_are():
    counts = resample_counts(30, 200, seed=1)
    assert (counts.sum(1) == 30).all()
    assert counts.mean(0) == pytest.approx(np.ones(30), abs=0.3)
    assert not np.array_equal(counts, resample_counts(30, 200, seed=2))


def test_no_rows_is_refused():
    refuses("no rows", uas_by_step, uas_trace({"per_relation": 0.5}, sentences=2).clear())


def test_slope_and_curvature_are_exact_on_a_parabola_with_uneven_steps():
    x = np.log([1, 2, 4, 8, 10, 12, 15, 20, 40, 60, 75, 100])
    slope, curvature = (local_derivative(x, np.log(2), order) @ (3 * x**2 - x + 2) for order in (1, 2))
    assert np.isnan(curvature[[0, 1, -2, -1]]).all()
    assert slope[2:-2] == pytest.approx((6 * x - 1)[2:-2])
    assert curvature[2:-2] == pytest.approx(np.full(len(x) - 4, 6.0))


def test_curvature_of_a_line_is_zero_and_peaks_where_a_rise_begins():
    x = np.log(STEPS[1:])
    curvature = local_derivative(x, np.log(2), 2)
    assert curvature[2:-2] @ x == pytest.approx(np.zeros(len(x) - 4), abs=1e-9)
    bend = np.nanargmax(curvature @ sigmoid(STEPS[1:], 0, 1, 300, sharpness=4))
    assert 150 <= STEPS[1:][bend] <= 300


def test_paradigms_count_alike_in_the_average_and_narrow_its_interval():
    few, many = pairs_trace({"few": 0.5}, pairs=40, steps=[1, 9]), pairs_trace({"many": 1.0}, pairs=400, steps=[1, 9])
    accuracy = accuracy_by_step(pl.concat([few, many.with_columns(pl.col("pair") + 40)]))
    average = average_accuracy(accuracy)
    assert average["step"].to_list() == [1, 9]
    assert average["pairs"].to_list() == [440, 440]
    parts = accuracy.filter(step=9).sort("paradigm")
    row = average.row(1, named=True)
    assert row["accuracy"] == pytest.approx(parts["accuracy"].mean())
    below, above = parts["accuracy"] - parts["low"], parts["high"] - parts["accuracy"]
    assert row["accuracy"] - row["low"] == pytest.approx(np.sqrt((below**2).sum()) / 2)
    assert row["high"] - row["accuracy"] == pytest.approx(np.sqrt((above**2).sum()) / 2)
    assert above[1] == pytest.approx(0, abs=1e-9)  # all of many are right: their interval reaches down only
    assert below[1] > 0.001


def test_one_number_has_one_interval_wherever_it_is_shown():
    trace = pairs_trace({"near": 0.9, "far": 1.0}, pairs=20, steps=[1, 9])
    average = average_accuracy(accuracy_by_step(trace))
    assert judged_right(trace).filter(paradigm="all paradigms").equals(average)
    summary = summarise(PairAccuracy(None), trace)
    assert summary.select("low", "high").equals(average.select("low", "high"))
    assert (average["low"] < average["high"]).all()


def test_a_bootstrap_of_few_units_takes_wider_percentiles_and_below_six_none():
    assert [bootstrap_levels(n) for n in (1, 3, 5)] == [None] * 3
    low, high = bootstrap_levels(8)
    # Phi(-2.36462 * sqrt(8 / 7)), Student's t with 7 degrees of freedom
    assert (low, high) == pytest.approx((0.57375, 100 - 0.57375), abs=1e-3)
    assert bootstrap_levels(10_000) == pytest.approx((2.5, 97.5), abs=0.01)


def test_uas_of_a_few_sentences_has_no_interval():
    trace = uas_trace({"per_relation": [0.4, 0.6]}, sentences=5, steps=[1, 9])
    table = uas_by_step(trace)
    assert table["uas"].null_count() == 0
    assert table.select("low", "high").null_count().row(0) == (2, 2)


@pytest.mark.parametrize(
    ("bounds", "text"),
    [((0.4, 0.6), "0.50 [0.40, 0.60]"), ((0.5, 0.5), "0.50"), ((None, 0.6), "0.50"), (None, "0.50")],
)
def test_an_interval_of_no_width_is_not_shown_as_one(bounds, text):
    assert with_interval(0.5, bounds, ".2f") == text


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CLAIMS if name != TOO_SMALL])
def test_intervals_cover_what_they_claim(name):
    covered, intervals = coverage(CLAIMS[name], draws=80)
    # 95 % less three standard errors, or hardly any interval
    assert intervals == 0 or covered >= 0.875 or (1 - covered) * intervals <= MISSES * 80

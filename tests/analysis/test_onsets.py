"""Onsets: against curves whose onset is known, against curves that have none, and against bad traces."""

import time

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.onsets import (
    Onset,
    capabilities_onset,
    first_run,
    in_order,
    order_of_onsets,
    rise_window,
    structure_onset,
)
from lmdynamics.errors import UserError
from tests.analysis.frames import STEPS, pairs_trace, sigmoid, uas_trace
from tests.conftest import refuses

RISE = sigmoid(STEPS, 0.19, 0.75, 300)


def structure(attention, shuffled=0.15, **options):
    return structure_onset(uas_trace({"per_relation": attention, "shuffled": shuffled, "offset": 0.44}), **options)


def test_a_rise_is_dated_where_it_leaves_the_margin():
    onset = structure(RISE)
    crossing = next(step for step, value in zip(STEPS, RISE, strict=True) if value > 0.29)
    assert onset.low <= crossing <= onset.high
    assert abs(STEPS.index(onset.step) - STEPS.index(crossing)) <= 1
    assert onset.low <= onset.step <= onset.high
    assert onset.control_step is None
    assert onset.share == 1.0
    assert "shuffled" in onset.reason
    assert f"{onset.step:,}" in str(onset)


def test_acceleration_is_where_the_curve_bends_upward():
    onset = structure(RISE)
    exact = np.log(300) - np.log(2 + np.sqrt(3)) / 6  # where a logistic curve's second derivative peaks
    assert abs(np.log(onset.acceleration_step) - exact) < np.log(1.6)
    assert onset.acceleration_low <= onset.acceleration_step <= onset.acceleration_high


def test_recovering_from_a_dip_is_no_acceleration():
    dip = RISE.copy()
    dip[8:10] -= 0.15
    assert structure(dip).acceleration_step >= 150


def test_the_offset_baseline_is_passed_later_than_the_shuffled_control():
    passed = structure(RISE, control="offset", margin=0.0)
    assert passed.step > structure(RISE).step
    assert (passed.name, structure(RISE).name) == ("structure beyond position", "structure")


def test_a_run_that_ends_below_the_offset_baseline_has_structure_but_never_passes_it():
    english = sigmoid(STEPS, 0.19, 0.42, 800)
    assert structure(english).step is not None
    never = structure(english, control="offset", margin=0.0)
    assert never.step is None
    assert "never" in never.reason


@pytest.mark.parametrize("seed", range(5))
def test_an_untrained_model_has_no_onset(seed):
    """Its heads follow trees better than shuffled trees from the start; that gap is not an onset."""
    trace = uas_trace({"per_relation": 0.24, "shuffled": 0.15}, sentences=60, seed=seed)
    onset = structure_onset(trace, seed=seed)
    assert onset.step is None
    assert onset.low is None
    assert onset.acceleration_step is None


def test_the_control_moving_too_is_refused():
    onset = structure(RISE, shuffled=sigmoid(STEPS, 0.15, 0.55, 330))
    assert onset.step is None
    assert onset.control_step is not None
    assert "too" in onset.reason


def test_what_value_and_control_share_is_no_onset():
    """Heads soon find the words that head others, in shuffled trees too; syntax comes later and beyond it."""
    shared = sigmoid(STEPS, 0, 0.12, 40)
    onset = structure(RISE + shared, shuffled=0.15 + shared)
    assert onset.low <= structure(RISE).step <= onset.high
    assert structure(0.2 + shared, shuffled=0.15 + shared).step is None


def test_a_falling_curve_has_no_onset():
    assert structure(sigmoid(STEPS, 0.6, 0.2, 300)).step is None


def test_a_spike_shorter_than_k_is_no_onset():
    spike = np.full(len(STEPS), 0.2)
    spike[10:12] = 0.6
    assert structure(spike).step is None
    assert structure(spike, k=2).step == STEPS[10]


def test_too_little_data_for_a_bounded_interval_is_no_onset():
    few = uas_trace({"per_relation": sigmoid(STEPS, 0.2, 0.32, 300), "shuffled": 0.2}, sentences=25)
    onset = structure_onset(few)
    assert onset.step is None
    assert onset.share < 0.975


def test_one_checkpoint_is_too_few():
    onset = structure_onset(uas_trace({"per_relation": [0.7], "shuffled": [0.1]}, steps=[1000]))
    assert onset.step is None
    assert "too few" in onset.reason


LATE = [500, 1000, 1500, 2000, 2500]


@pytest.mark.parametrize("seed", range(3))
def test_a_run_without_step_0_that_is_above_from_the_start_has_no_dated_onset(seed):
    """Heads of an untrained causal model find more arcs of true trees than of shuffled ones."""
    onset = structure_onset(uas_trace({"per_relation": 0.3, "shuffled": 0.1}, steps=LATE, seed=seed))
    assert (onset.step, onset.low, onset.high, onset.at_or_before) == (None, None, None, None)
    assert str(onset).startswith("structure: no onset (already 0.")
    assert "at step 500, the first checkpoint; without step 0 an untrained model may be as far above" in onset.reason
    assert "an onset would be at or before that step" in onset.reason
    judged = capabilities_onset(pairs_trace({"near": 0.7}, steps=LATE, seed=seed))
    assert judged.step is None
    assert "above chance at step 500, the first checkpoint" in judged.reason


def test_a_run_that_begins_in_the_middle_of_a_rise_says_at_or_before():
    late = STEPS[13:]  # from step 244 on, where a third of the rise is made
    onset = structure_onset(uas_trace({"per_relation": RISE[13:], "shuffled": 0.15}, steps=late))
    assert onset.step is None
    assert onset.low is None
    assert late[0] < onset.at_or_before <= 381
    assert str(onset).startswith(f"structure onset at or before step {onset.at_or_before:,}, not dated (already")
    dated = structure_onset(uas_trace({"per_relation": RISE, "shuffled": 0.15}))
    assert dated.step <= onset.at_or_before
    assert f"at or before step {onset.at_or_before:,}, not dated" in in_order(onset, dated)


def test_a_run_that_begins_late_but_before_the_rise_is_dated():
    late = STEPS[5:]
    onset = structure_onset(uas_trace({"per_relation": RISE[5:], "shuffled": 0.15}, steps=late))
    assert onset.low <= structure(RISE).step <= onset.high


@pytest.mark.parametrize("rise", [150, 300, 900])
def test_no_interval_is_narrower_than_the_gap_between_two_checkpoints(rise):
    onset = structure(sigmoid(STEPS, 0.1, 0.9, rise, sharpness=40), shuffled=0.1)
    assert onset.low < onset.step <= onset.high
    assert STEPS.index(onset.low) <= STEPS.index(onset.step) - 1
    assert onset.acceleration_low < onset.acceleration_step < onset.acceleration_high


def test_without_resamples_there_is_no_interval_and_that_is_reported():
    onset = structure(RISE, resamples=0)
    assert onset.low is None
    assert str(onset) == f"structure onset at step {onset.step:,}, no interval"


def test_same_seed_same_onset():
    assert structure(RISE, seed=3) == structure(RISE, seed=3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.drop("arcs"), "arcs"),
        (lambda f: f.filter(pl.col("source") != "shuffled"), "no source 'shuffled'"),
        (lambda f: f.filter((pl.col("step") != 64) | (pl.col("sentence") > 3)), "needs each sentence"),
        (lambda f: f.filter((pl.col("step") != 64) | (pl.col("source") != "shuffled")), "different steps"),
        (lambda f: f.with_columns(pl.when(pl.col("step") < 100).then(pl.col("correct"))), "no number at step 100"),
        (lambda f: f.clear(), "no rows"),
    ],
)
def test_a_spoilt_trace_is_refused_with_one_line(spoil, message):
    trace = uas_trace({"per_relation": RISE, "shuffled": 0.15}, sentences=20)
    refuses(message, structure_onset, spoil(trace))


def test_capabilities_break_after_chance():
    onset = capabilities_onset(
        pairs_trace({"near": sigmoid(STEPS, 0.5, 1, 900), "far": sigmoid(STEPS, 0.48, 0.9, 1100)})
    )
    assert 500 < onset.low <= onset.step <= onset.high < 1200
    assert onset.control_step is None


def test_pairs_at_chance_have_no_onset():
    assert capabilities_onset(pairs_trace({"near": 0.5, "far": 0.5})).step is None


def test_an_untrained_preference_is_not_a_capability():
    """Word length or frequency can decide pairs before anything is learnt."""
    assert capabilities_onset(pairs_trace({"near": 0.62})).step is None


def test_exchanged_labels_show_no_onset():
    trace = pairs_trace({"near": sigmoid(STEPS, 0.5, 1, 400)})
    exchanged = trace.with_columns(pl.col("correct") ^ (pl.col("pair") % 2 == 0))
    assert capabilities_onset(exchanged).step is None


def test_one_paradigm_can_be_asked_for():
    trace = pairs_trace({"near": sigmoid(STEPS, 0.5, 1, 200), "far": 0.5})
    assert capabilities_onset(trace, paradigms=["near"]).step < 300
    assert capabilities_onset(trace, paradigms=["far"]).step is None
    refuses("'nowhere'", capabilities_onset, trace, paradigms=["nowhere"])


def test_scores_that_are_not_numbers_are_refused():
    trace = pairs_trace({"near": 0.5}, pairs=10)
    with pytest.raises(UserError, match="step 931"):
        capabilities_onset(trace.with_columns(pl.when(pl.col("step") < 900).then("good").otherwise(float("nan"))))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_first_run_equals_a_loop(k):
    above = np.random.default_rng(k).random((40, 12)) < 0.6
    runs, first = first_run(above, k)
    for row, is_found, index in zip(above, runs, first, strict=True):
        starts = [i for i in range(12 - k + 1) if all(row[i : i + k])]
        assert is_found == bool(starts)
        assert not starts or index == starts[0]


def test_five_hundred_resamples_of_a_long_trace_take_under_a_second():
    steps = [0, *np.unique(np.geomspace(1, 100_000, 80).astype(int))[:59].tolist()]
    trace = uas_trace({"per_relation": sigmoid(steps, 0.2, 0.7, 500), "shuffled": 0.15}, sentences=1000, steps=steps)
    started = time.process_time()
    structure_onset(trace)
    assert time.process_time() - started < 1.5  # CPU seconds, on a busy machine


def onset(name, step, low, high):
    return Onset(name, step, low, high, step, low, high, None, "because", 1.0)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (onset("structure", 100, 90, 110), onset("capabilities", 300, 250, 350), "Structure comes first"),
        (onset("structure", 400, 390, 410), onset("capabilities", 300, 250, 350), "Capabilities comes first"),
        (onset("structure", 260, 240, 270), onset("capabilities", 300, 250, 350), "overlap, so neither"),
        (onset("structure", 260, 240, 250), onset("capabilities", 300, 250, 350), "overlap, so neither"),
        (onset("structure", None, None, None), onset("capabilities", 300, 250, 350), "no structure onset"),
        (onset("structure", 100, None, None), onset("capabilities", 300, 250, 350), "there are no intervals"),
    ],
)
def test_order_is_claimed_only_where_intervals_part(first, second, message):
    assert message in in_order(first, second)


def test_the_window_of_a_rise_is_its_steep_part():
    steps = [0, 1, 2, 4, 8, 16, 32]
    assert rise_window(steps, [0.2, 0.19, 0.2, 0.22, 0.35, 0.42, 0.43]) == (4, 16)
    assert rise_window(steps, [0.2, 0.1, 0.2, 0.1, 0.1, 0.2, 0.1]) is None
    assert rise_window([0, 5], [0.1, 0.9]) == (0, 5)
    refuses("numbers", rise_window, steps, [float("nan")] * 7)


def test_the_description_names_interval_reason_and_bend():
    text = onset("structure", 1000, 900, 1100).describe()
    assert (
        text == "structure onset at step 1,000 [900, 1,100]; largest acceleration at step 1,000 [900, 1,100]\n  because"
    )
    assert structure(0.2).describe().startswith("structure: no onset (never more than 0.1 above the shuffled control")


def test_the_order_is_stated_for_both_controls_of_structure():
    structure_first = onset("structure", 256, 181, 256)
    beyond = onset("structure beyond position", 1625, 1149, 1825)
    capabilities = onset("capabilities", 1825, 1448, 2048)
    sources = {"step": 256, "source": ["per_relation", "offset", "shuffled"], "uas": [0.33, 0.58, 0.15]}
    assert order_of_onsets(structure_first, beyond, capabilities, pl.DataFrame(sources)) == (
        "Beyond shuffled trees: Structure comes first, and the intervals do not overlap: structure [181, 256], "
        "capabilities [1,448, 2,048]. At step 256 heads find 33% of the arcs, less than position alone 58%.",
        "Beyond position: The intervals overlap, so neither comes first: structure beyond position [1,149, 1,825], "
        "capabilities [1,448, 2,048].",
    )
    never = structure(0.2)
    assert order_of_onsets(never, never, capabilities, pl.DataFrame(sources))[0] == (
        "Beyond shuffled trees: The order is undefined: no structure onset."
    )

"""Preparation against a naive loop, jumps that were put in, and the bootstrap of residuals."""

import numpy as np
import polars as pl
import pytest
from scipy.signal import lfilter

from lmdynamics.analysis.deceleration import fit_deceleration
from lmdynamics.analysis.loss_curves import (
    correlation_time,
    find_jumps,
    prepare,
    residual_blocks,
    wild_draws,
    without_jumps,
)
from tests.conftest import refuses

from .frames import BREAK, broken, noisy, spaced


def naive_log_average(loss):
    """The published preprocessing, step by step: `loss[j]` is the loss at step j."""
    points = []
    for j in range(1, len(loss)):
        spacing = 10 ** min(int(np.floor(np.log10(j))) - 1, 3) if j >= 10 else 1
        if j % spacing == 0 or j == len(loss) - 1:
            points.append((j, loss[int(j // 1.2) : j + 1].mean()))
    return points


@pytest.mark.parametrize("last", [300, 1_234, 20_007])
def test_log_average_equals_the_published_loop(last):
    loss = np.random.default_rng(0).uniform(2, 8, last + 1)
    step, smoothed = prepare(np.arange(last + 1), loss, "log-average", skip_steps=100)
    expected = [(j, value) for j, value in naive_log_average(loss) if j > 100]
    assert step.tolist() == [j for j, _ in expected]
    # the loop starts at the window's step 0 as well, which has no place on a log axis: none of these windows has it
    assert smoothed == pytest.approx([value for _, value in expected])


def test_a_log_with_gaps_is_thinned_to_the_first_step_after_each_multiple():
    step, _ = prepare([7, 105, 109, 112, 118, 131], [5.0, 4, 4, 4, 4, 3], "log-average", skip_steps=0)
    assert step.tolist() == [7, 105, 112, 131]  # 118 stands in the same ten as 112


def test_medians_of_a_power_law_lie_on_it():
    t = np.arange(1, 50_001)
    step, loss = prepare(t, 20 * t**-0.2, "log-median", skip_steps=100)
    assert loss == pytest.approx(20 * step**-0.2, rel=1e-3)
    assert (np.diff(step) > 0).all()
    assert len(step) < 200


def test_nothing_is_smoothed_unless_asked():
    step, loss = prepare([50, 100, 101, 500], [4.0, 3, 2, 1])
    assert (step.tolist(), loss.tolist()) == ([101, 500], [2, 1])
    assert prepare([0, 1, 2], [9.0, 8, 7], skip_steps=0)[0].tolist() == [1, 2]  # step 0 has no place on a log axis


@pytest.mark.parametrize("smoothing", ["none", "log-average", "log-median"])
@pytest.mark.parametrize("steps", [[], [0, 1]])
def test_nothing_may_be_left(steps, smoothing):
    assert [len(each) for each in prepare(steps, [9.0, 8][: len(steps)], smoothing, skip_steps=100)] == [0, 0]


@pytest.mark.parametrize(
    ("step", "loss", "message"),
    [
        ([1, 1], [2.0, 2], "do not increase strictly"),
        ([2, 1], [2.0, 2], "do not increase strictly"),
        ([1, float("nan")], [2.0, 2], "do not increase strictly"),
        ([1, 2], [2.0, 0], "not a positive number"),
        ([1, 2], [2.0, float("inf")], "not a positive number"),
        ([1, 2, 3], [2.0, 2], "3 steps and 2 losses"),
    ],
)
def test_bad_rows_are_refused(step, loss, message):
    refuses(message, prepare, step, loss)


def test_unknown_smoothing():
    refuses("log-averag.*did you mean.*log-average", prepare, [1], [1.0], "log-averag")


STEPS = np.arange(10, 10_001, 10.0)


def scaled(loss, place: int, factor: float):
    """The losses before a place, multiplied."""
    changed = loss.copy()
    changed[:place] *= factor
    return changed


@pytest.mark.parametrize("factor", [8, 1.443, 1.2, 1 / 8])
@pytest.mark.parametrize("place", [40, 200, 900])
def test_a_change_of_scale_is_found_at_its_step_with_its_size(factor, place):
    for seed in range(3):
        loss = scaled(noisy(STEPS, 0.02, seed), place, factor)
        (jump,) = find_jumps(STEPS, loss)
        assert (jump.before, jump.after) == (STEPS[place - 1], STEPS[place])
        assert jump.factor == pytest.approx(1 / factor, rel=0.05)
        assert np.log(without_jumps(STEPS, loss, [jump]) / noisy(STEPS, 0.02, seed)) == pytest.approx(0, abs=0.05)


def test_two_changes_are_found_one_after_the_other():
    loss = scaled(scaled(noisy(STEPS, 0.02, 0), 600, 2), 200, 3)
    first, second = find_jumps(STEPS, loss)
    assert (first.before, second.before) == (STEPS[199], STEPS[599])
    assert (first.factor, second.factor) == (pytest.approx(1 / 3, rel=0.05), pytest.approx(1 / 2, rel=0.05))


def test_words_for_a_person():
    (jump,) = find_jumps(STEPS, scaled(noisy(STEPS, 0.001, 0), 200, 8))
    assert str(jump) == "falls by a factor of 8 between steps 2,000 and 2,010"
    (jump,) = find_jumps(STEPS, scaled(noisy(STEPS, 0.001, 0), 200, 1 / 8))
    assert str(jump) == "rises by a factor of 8 between steps 2,000 and 2,010"


def continuous(kind: str, seed: int):
    """Curves that fall fast, or change their rate, or have a spike, but no change of scale."""
    loss, random = noisy(STEPS, 0.02, seed), np.random.default_rng(seed)
    if kind == "a steep descent":
        loss *= 1 + 1.5 / (1 + np.exp((STEPS - 3_000) / 30))
    elif kind == "a drop of the learning rate":
        loss *= 1 + 0.05 * np.exp(-np.maximum(STEPS - 3_000, 0) / 20) * (STEPS > 0)
    elif kind == "a spike":
        loss[300] *= 5
    elif kind == "a spike that takes time to go":
        loss *= 1 + 0.5 * np.exp(-np.maximum(STEPS - 3_000, 0) / 200) * (STEPS >= 3_000)
    elif kind == "heavy tails":
        loss = broken(STEPS) * np.exp(0.02 * random.standard_t(2, len(STEPS)))
    elif kind == "an early plateau":
        loss = np.minimum(loss, 6.0)
    return loss


KINDS = ["none", "a steep descent", "a drop of the learning rate", "a spike", "heavy tails", "an early plateau"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_continuous_is_no_jump(kind):
    assert sum(bool(find_jumps(STEPS, continuous(kind, seed))) for seed in range(20)) == 0


def test_a_spike_that_takes_time_to_go_is_no_change_of_scale():
    """The level does jump; but a curve on one scale from there on does not describe it better."""
    curves = [continuous("a spike that takes time to go", seed) for seed in range(3)]
    verdicts = {fit_deceleration(STEPS, loss, resamples=0).verdict for loss in curves}
    assert "jump in scale" not in verdicts


@pytest.mark.parametrize("points", [0, 1, 5, 11])
def test_short_and_empty_curves_have_no_jump(points):
    assert find_jumps(STEPS[:points], scaled(broken(STEPS[:points]), points // 2, 3)) == []


@pytest.mark.parametrize("smoothing", ["none", "log-average", "log-median"])
@pytest.mark.parametrize("factor", [8, 1.443])
def test_a_curve_with_a_jump_does_not_decelerate_and_says_why(factor, smoothing):
    """As where a loss was multiplied by accumulation steps, or the unit changes from bits to nats."""
    result = fit_deceleration(STEPS, scaled(noisy(STEPS, 0.02, 1), 200, factor), smoothing=smoothing)
    assert result.verdict == "jump in scale"
    assert f"falls by a factor of {factor:.1f}" in result.reason
    assert "between steps 2,000 and 2,010" in result.reason
    assert result.intervals == {}
    assert result.jumps[0].factor == pytest.approx(1 / factor, rel=0.03)
    assert result.to_dict()["jumps"][0]["after"] == 2_010
    assert str(result).startswith("jump in scale: the loss falls")


def test_a_jump_in_steps_that_are_skipped_is_no_matter():
    loss = scaled(noisy(STEPS, 0.02, 1), 20, 8)
    assert fit_deceleration(STEPS, loss, skip_steps=200, resamples=0).verdict == "decelerates"


def test_a_sharp_drop_that_is_no_single_jump_is_the_verdict_and_not_a_footnote():
    steps = spaced(300)
    loss = broken(steps, d=20_000.0) * np.where(steps < 3_000, 1.15, np.where(steps < 3_200, 1.07, 1.0)) * np.exp(
        0.002 * np.random.default_rng(0).standard_normal(len(steps))
    )  # fmt: skip
    result = fit_deceleration(steps, loss)
    assert result.verdict == "sudden drop"
    assert "a sudden drop by a factor of 1." in result.reason
    assert result.intervals == {}


def test_real_curves_have_no_jump(real_data):
    """1,592 of them: where the learning rate drops, the loss falls by two per cent between neighbours."""
    from lmdynamics.experiments.reading import read_curves

    folder = real_data / "trajectories"
    files = [folder / "zsl" / "smoothed_loss.csv", *sorted((folder / "multi-power-law").glob("*.csv"))]
    files += [*sorted((folder / "olmo-ladder").glob("*.csv")), folder / "modded-nanogpt" / "val_loss_all_runs.csv"]
    curves = [read_curves(file).frame for file in files]
    scores = pl.read_csv(folder / "pythia" / "zero_shot_by_step.csv").filter(metric="ppl").filter(pl.col("step") > 0)
    curves.append(scores.sort("step").select(pl.col("model").alias("curve"), "step", loss=pl.col("value").log()))
    flagged, looked = [], 0
    for frame in curves:
        for (name,), rows in frame.filter(pl.col("step") > 0).group_by("curve"):
            looked += 1
            if detected := find_jumps(rows["step"].to_numpy().astype(float), rows["loss"].to_numpy()):
                flagged.append((name, detected))
    assert looked == 1_592
    assert flagged == []


def test_the_break_is_found_where_it_is_once_the_jump_is_taken_out():
    loss = scaled(noisy(STEPS, 0.01, 0), 100, 8)
    result = fit_deceleration(STEPS, without_jumps(STEPS, loss, find_jumps(STEPS, loss)))
    low, high = result.intervals["step_at_break"]
    assert low < BREAK < high


def test_the_search_ends_where_windows_correct_each_other():
    """Of this noise one window finds a jump of 11 % at a place, and the next one takes it back."""
    steps = np.unique(np.geomspace(101, 60_000, 150).round())
    rng = np.random.default_rng([0, 34])
    loss = (
        20
        * steps**-0.2
        * (1 + (steps / 3_000) ** (1 / 0.3)) ** (0.17 * 0.3)
        * np.exp(0.01 * rng.normal(size=len(steps)))
    )
    before = rng.integers(10, len(steps) - 10)
    loss[:before] *= 8
    largest = max(find_jumps(steps, loss), key=lambda jump: abs(np.log(jump.factor)))
    assert largest.before == steps[before - 1]
    assert 1 / largest.factor == pytest.approx(8, rel=0.15)


X = np.linspace(4.6, 11, 400)


def persistent(rho: float, seed: int, n: int = 400):
    return lfilter([np.sqrt(1 - rho**2)], [1, -rho], np.random.default_rng(seed).standard_normal(n))


@pytest.mark.parametrize(("rho", "expected"), [(0.0, 1.0), (0.5, 3.0), (0.8, 9.0)])
def test_correlation_time_of_a_known_process(rho, expected):
    detected = np.median([correlation_time(persistent(rho, seed, 4_000)) for seed in range(20)])
    assert detected == pytest.approx(expected, rel=0.25)


def test_nothing_is_correlated_with_nothing():
    assert correlation_time(np.zeros(10)) == 1.0


def test_blocks_are_counted_in_points_where_noise_is_independent():
    starts, independent = residual_blocks(X, persistent(0, 0))
    assert np.diff(starts).tolist() == [7] * (len(starts) - 1)  # the cube root of 400
    assert independent == pytest.approx(400, rel=0.6)


def test_blocks_are_counted_in_log_steps_where_it_is_not():
    crowded = np.log(np.arange(101, 3_001.0))  # most points at the end
    slow = np.sin(3 * crowded)
    starts, independent = residual_blocks(crowded, slow)
    widths = np.diff(crowded[starts])
    assert widths == pytest.approx(np.full(len(widths), widths.mean()), rel=0.1)
    assert independent < 20


def test_draws_keep_the_size_of_noise_where_it_is():
    """Residuals large at first and small later stay so: nothing is shuffled along the curve."""
    residuals = np.where(np.arange(400) < 200, 1.0, 0.01) * persistent(0, 1)
    columns = np.stack([np.ones(400), X], axis=1)
    draws = wild_draws(X, residuals, residual_blocks(X, residuals)[0], columns, 300, seed=0)
    assert draws.shape == (300, 400)
    assert draws[:, :200].std() > 30 * draws[:, 200:].std()
    assert abs(draws.mean()) < 0.05

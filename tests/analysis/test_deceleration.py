import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdynamics.analysis.deceleration import VERDICTS, fit_deceleration
from lmdynamics.errors import UserError
from lmdynamics.paths import shipped

from .frames import BREAK, C0, TRUTH, B, broken, noisy, spaced

STEPS = spaced()


def test_an_exact_curve_gives_back_what_it_was_made_of():
    result = fit_deceleration(STEPS, broken(STEPS))
    for name, value in TRUTH.items():
        assert getattr(result, name) == pytest.approx(value, rel=1e-5)
    assert result.loss_at_break == pytest.approx(result.b * result.step_at_break**-result.c0)
    assert result.rate_after_break == pytest.approx(result.c0 + result.c1)
    assert result.rsle < 1e-8
    assert (result.intervals, result.headline) == ({}, "decelerates (no noise, as if computed from a formula)")
    assert result.predict(STEPS.tolist()) == pytest.approx(broken(STEPS))
    assert result.predict(5_000.0) == pytest.approx(broken(5_000.0))
    assert result.final_loss(1e6) == pytest.approx(broken(1e6), rel=1e-3)  # far from the break, which it takes as sharp


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """30 draws here; the whole count stands in the benchmark."""
    hits = dict.fromkeys(TRUTH, 0)
    for seed in range(30):
        result = fit_deceleration(STEPS, noisy(STEPS, 0.01, seed))
        assert result.verdict == "decelerates"
        for name, value in TRUTH.items():
            low, high = result.intervals[name]
            assert low < getattr(result, name) < high
            hits[name] += low <= value <= high
    assert min(hits.values()) >= 25


@pytest.mark.parametrize("points", [20, 150])
def test_one_power_law_has_no_break(points):
    steps = spaced(points)
    verdicts = [fit_deceleration(steps, noisy(steps, 0.02, seed, c1=0.0), resamples=0).verdict for seed in range(40)]
    assert verdicts.count("no break") >= 38


def test_noise_that_dies_away_is_no_break():
    """Averages over few steps at first are noisier than those over many later: no reason to see a break there."""
    steps, random = np.arange(1, 20_001.0), np.random.default_rng(0)
    verdicts = []
    for _ in range(20):
        loss = B * steps**-C0 * np.exp(0.05 * random.standard_normal(len(steps)))
        verdicts.append(fit_deceleration(steps, loss, smoothing="log-median", resamples=0).verdict)
    assert verdicts.count("no break") >= 19


def test_exact_power_laws_have_no_break_either():
    assert fit_deceleration(STEPS, B * STEPS**-C0).verdict == "no break"
    assert fit_deceleration(STEPS, np.full(len(STEPS), 3.0)).verdict == "no break"


def test_a_rate_that_rises_is_called_so():
    result = fit_deceleration(STEPS, noisy(STEPS, 0.005, 0, c1=0.2))
    assert result.verdict == "accelerates"
    assert "rises" in result.reason


def test_a_break_at_the_edge_is_called_so():
    result = fit_deceleration(STEPS, noisy(STEPS, 0.002, 0, d=50_000.0, c1=-0.5, f=0.05))
    assert result.verdict == "break at the edge"
    assert "last tenth" in result.reason


def test_two_breaks_do_not_fit_better_where_there_is_one():
    gains = [fit_deceleration(STEPS, noisy(STEPS, 0.01, seed), resamples=0).delta_aic_two_breaks for seed in range(10)]
    assert np.median(gains) < 0
    assert max(gains) < 10


def test_more_noise_makes_wider_intervals():
    widths = []
    for sd in (0.003, 0.01, 0.03):
        low, high = fit_deceleration(STEPS, noisy(STEPS, sd, 1)).intervals["step_at_break"]
        widths.append(np.log(high / low))
    assert widths == sorted(widths)


@settings(max_examples=25)
@given(st.floats(0.1, 100), st.floats(0.2, 5), st.integers(0, 50))
def test_units_of_loss_and_step_change_nothing_else(scale, stretch, seed):
    """Bits for nats move the loss at the break; tokens for steps move its place; the verdict and rates stay."""
    loss = noisy(STEPS, 0.01, seed)
    original = fit_deceleration(STEPS, loss, resamples=0, skip_steps=0)
    scaled = fit_deceleration(STEPS * stretch, loss * scale, resamples=0, skip_steps=0)
    assert scaled.verdict == original.verdict
    assert scaled.loss_at_break == pytest.approx(original.loss_at_break * scale, rel=1e-4)
    assert scaled.step_at_break == pytest.approx(original.step_at_break * stretch, rel=1e-3)
    assert scaled.rate_after_break == pytest.approx(original.rate_after_break, abs=1e-4)


def test_the_seed_decides_the_resamples():
    loss = noisy(STEPS, 0.02, 0)
    intervals, repeated, other_seed = (fit_deceleration(STEPS, loss, seed=seed).intervals for seed in (0, 0, 1))
    assert intervals == repeated != other_seed


def test_twenty_starts_agree():
    loss, random = noisy(STEPS, 0.02, 0), np.random.default_rng(0)
    best = fit_deceleration(STEPS, loss, resamples=0)
    for _ in range(20):
        start = float(np.exp(random.uniform(*np.log(STEPS[[0, -1]])))), float(random.uniform(0.05, 1.5))
        refit = fit_deceleration(STEPS, loss, resamples=0, start=start)
        assert refit.step_at_break == pytest.approx(best.step_at_break, rel=1e-4)
        assert refit.rsle == pytest.approx(best.rsle, rel=1e-9)


def test_too_few_points():
    with pytest.raises(UserError, match="9 points are left of 10 after step 100; a break needs at least 12"):
        fit_deceleration(np.arange(100, 1100, 100), np.linspace(5, 4, 10))


@pytest.mark.parametrize(("later", "verdict"), [(0.1, "decelerates"), (0.4, "accelerates")])
def test_the_verdict_carries_that_two_breaks_fit_better(later, verdict):
    curve = broken(STEPS) * (1 + (STEPS / 20_000) ** (1 / 0.1)) ** (-later * 0.1)
    result = fit_deceleration(STEPS, curve * np.exp(0.002 * np.random.default_rng(0).standard_normal(len(STEPS))))
    assert result.verdict == verdict
    assert result.headline == f"{verdict} (two breaks fit better)"
    assert str(result).startswith(f"{verdict} (two breaks fit better): L_d")
    assert "two breaks fit better" in result.reason
    assert result.delta_aic_two_breaks > 10
    if verdict == "accelerates":
        assert result.steps_of_two_breaks == pytest.approx((BREAK, 20_000), rel=0.1)


def test_a_break_that_may_lie_nearly_anywhere_is_not_located():
    steps, random = spaced(40), np.random.default_rng(3)
    loss = 20 * steps**-0.2 * (1 + (steps / 3_000) ** (1 / 3.0)) ** (0.17 * 3.0)
    result = fit_deceleration(steps, loss * np.exp(0.004 * random.standard_normal(len(steps))))
    low, high = result.intervals["step_at_break"]
    assert np.log(high / low) > 0.5 * np.log(steps[-1] / steps[0])
    assert result.verdict == result.headline == "break not located"
    assert result.reason.startswith(f"the break may lie anywhere from step {low:,.0f} to {high:,.0f}, over ")


def test_no_break_has_no_interval():
    result = fit_deceleration(STEPS, noisy(STEPS, 0.02, 0, c1=0.0))
    assert (result.verdict, result.intervals) == ("no break", {})
    assert "L_d" not in str(result)


def test_words_for_a_person():
    result = fit_deceleration(STEPS, noisy(STEPS, 0.01, 0))
    assert str(result).startswith("decelerates: L_d 4.0")
    assert "[" in str(result)
    assert result.verdict in VERDICTS
    names = {"verdict", "rate_before_break", "intervals", "rsle", "b", "c0", "c1", "log_d1", "f1"}
    assert set(result.to_dict()) >= names
    assert "[" not in str(fit_deceleration(STEPS, noisy(STEPS, 0.01, 0), resamples=0))


# the published fits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["14M", "37M", "144M", "285M", "OLMo-1B"])
def test_the_published_table_from_the_published_curves(model, real_data):
    """Every number within one unit of its last printed digit.

    Two lie just beyond rounding, within what the authors' optimiser leaves open (scipy's `curve_fit` from two starts
    differs by as much): b of 144M, 20.3055 for 20.306, and of OLMo-1B, 25.9683 for 25.969. Steps are printed cut.
    """
    curve = pl.read_csv(real_data / "trajectories/zsl/smoothed_loss.csv").filter(pl.col("model") == model)
    printed = pl.read_csv(shipped("published") / "zsl_bnsl_fits.csv").row(
        by_predicate=pl.col("model") == model, named=True
    )
    result = fit_deceleration(curve["step"], curve["loss"], resamples=0)
    assert result.verdict == "decelerates"
    digits = {"c0": 4, "c1": 4, "log_d1": 3, "f1": 3, "rsle": 4, "b": 3}
    for name, places in digits.items():
        assert getattr(result, name) == pytest.approx(printed[name], abs=0.51 / 10**places + 5e-4 * (name == "b")), name
    assert result.loss_at_break == pytest.approx(printed["L_d"], abs=0.0051)
    assert int(result.step_at_break) == printed["t_d"]
    assert result.rate_after_break == pytest.approx(printed["r_d"], abs=0.51e-4)
    assert result.final_loss(curve["step"][-1]) == pytest.approx(printed["L_T_predicted"], abs=0.00051)

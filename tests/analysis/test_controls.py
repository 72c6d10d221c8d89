"""Controls: a curve without its break, and what a power law would have claimed of the rest."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.fits import claims, fit_curves, straightened
from lmdynamics.errors import UserError

from .broken import broken, noisy, spaced

STEPS = spaced()


def frame(curves: dict) -> pl.DataFrame:
    parts = [pl.DataFrame({"curve": [k] * len(v), "step": STEPS[: len(v)], "loss": v}) for k, v in curves.items()]
    return pl.concat(parts)


MANY = frame({f"c{seed}": noisy(STEPS, 0.02, seed) for seed in range(20)})


def apart(curves: pl.DataFrame, name: str) -> np.ndarray:
    """Log losses less a straight line in log step."""
    of = curves.filter(pl.col("curve") == name)
    x, y = np.log(of["step"].to_numpy()), np.log(of["loss"].to_numpy())
    return y - np.polyval(np.polyfit(x, y, 1), x)


def test_what_breaks_does_not_once_it_is_straightened():
    assert {made.verdict for made in fit_curves(MANY, resamples=0).values()} == {"decelerates"}
    straight = straightened(MANY)
    assert straight.select("curve", "step").equals(MANY.select("curve", "step"))
    verdicts = [made.verdict for made in fit_curves(straight, resamples=0).values()]
    assert verdicts.count("no break") >= 17


def test_the_noise_is_as_large_as_the_curves_own_and_lies_about_its_power_law():
    straight = straightened(MANY)
    sizes = [apart(straight, f"c{seed}").std() for seed in range(20)]
    assert np.median(sizes) == pytest.approx(0.02, rel=0.15)
    assert max(sizes) < 0.03
    for name in ("c0", "c7"):
        x = np.log(STEPS)
        own, made = (
            np.polyfit(x, np.log(curves.filter(pl.col("curve") == name)["loss"].to_numpy()), 1)
            for curves in (MANY, straight)
        )
        assert made[0] == pytest.approx(own[0], abs=0.01)


def test_a_curve_without_noise_becomes_its_power_law():
    exact = straightened(frame({"a": broken(STEPS)}))
    line = np.polyval(np.polyfit(np.log(STEPS), np.log(broken(STEPS)), 1), np.log(STEPS))
    assert np.log(exact["loss"].to_numpy()) == pytest.approx(line, abs=1e-6)


def test_the_seed_decides_and_no_two_curves_share_their_noise():
    one, same, other = (straightened(MANY, seed=seed) for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one.equals(other)
    twice = straightened(frame({"a": noisy(STEPS, 0.02, 0), "b": noisy(STEPS, 0.02, 0)}))
    assert not np.allclose(apart(twice, "a"), apart(twice, "b"))


def test_steps_that_a_fit_skips_have_no_noise():
    straight = straightened(MANY.filter(pl.col("curve") == "c0"), skip_steps=1_000)
    before = straight.filter(pl.col("step") <= 1_000)
    assert apart(before, "c0") == pytest.approx(0, abs=1e-9)
    assert apart(straight, "c0").std() > 0.01


def test_a_raw_curve_stays_raw():
    """Fitted to medians, noisy as it was logged, and at every step it was logged at."""
    steps = np.arange(1.0, 5_001)
    raw = pl.DataFrame({"curve": "a", "step": steps, "loss": noisy(steps, 0.05, 0)})
    straight = straightened(raw, smoothing="log-median")
    assert straight["step"].equals(raw["step"])
    later = straight.filter(pl.col("step") > 100)
    assert np.diff(np.log(later["loss"].to_numpy())).std() == pytest.approx(0.05 * np.sqrt(2), rel=0.1)
    (made,) = fit_curves(straight, smoothing="log-median", resamples=0).values()
    assert made.verdict == "no break"


def test_curves_too_short_are_left_out_and_refused_alone():
    short = frame({"short": broken(STEPS)[:6]})
    both = pl.concat([short, frame({"a": noisy(STEPS, 0.02, 0)})])
    assert straightened(both)["curve"].unique().to_list() == ["a"]
    assert claims(both, 0.1, 100)["curve"].unique().to_list() == ["a"]
    with pytest.raises(UserError, match="no curve has 12 points after step 100: log more often, or skip fewer steps"):
        straightened(short)
    with pytest.raises(UserError, match="no curve has 2 points in its first 0% after step 100; give a larger share"):
        claims(both, 0.0, 100)


def test_a_power_law_claims_from_the_first_part_what_one_break_sees_whole():
    exact = frame({"a": broken(STEPS)})
    said = claims(exact, 0.01, 100)
    assert said.select("curve", "method").unique(maintain_order=True).rows() == [
        ("a", "one power law"),
        ("a", "one break"),
    ]
    law, bent = (said.filter(pl.col("method") == way) for way in ("one power law", "one break"))
    assert bent["loss"].to_numpy() == pytest.approx(broken(STEPS), rel=1e-5)
    seen = STEPS[-1] >= 100 * STEPS
    x = np.log(STEPS)
    line = np.polyval(np.polyfit(x[seen], np.log(broken(STEPS))[seen], 1), x)
    assert np.log(law["loss"].to_numpy()) == pytest.approx(line, abs=1e-9)
    assert law["loss"][-1] < 0.7 * broken(STEPS[-1])  # it knows nothing of the break


def test_steps_skipped_are_in_no_claim():
    said = claims(frame({"a": broken(STEPS)}), 0.1, 400)
    assert said["step"].min() == pytest.approx(STEPS[STEPS > 400][0])

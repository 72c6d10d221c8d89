"""Tables of fits, sensitivity and controls: each number is a fit of one curve; a failed fit stops no other."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.deceleration import Deceleration, fit_deceleration
from lmdynamics.analysis.fits import (
    FIT_PARAMETERS,
    FITTED,
    break_profile,
    claims,
    fit_curves,
    fits_table,
    null_curves,
    sensitivity,
)
from lmdynamics.analysis.loss_curves import SMOOTHINGS
from lmdynamics.errors import UserError
from tests.analysis.frames import BREAK, broken, noisy, spaced
from tests.conftest import refuses

STEPS = spaced()


def frame(**curves) -> pl.DataFrame:
    """Each curve by its name: losses at the first of STEPS, or (steps, losses)."""
    columns = {name: c if isinstance(c, tuple) else (STEPS[: len(c)], c) for name, c in curves.items()}
    return pl.concat(pl.DataFrame({"curve": [k] * len(s), "step": s, "loss": loss}) for k, (s, loss) in columns.items())


THREE = frame(
    late=noisy(STEPS, 0.01, 0, d=9_000.0), short=noisy(STEPS, 0.01, 1)[:5], early=noisy(STEPS, 0.01, 2, d=1_500.0)
)


# many curves --------------------------------------------------------------------------------------------------------


def test_fits_keep_the_order_of_their_curves_and_a_bad_curve_stops_no_other_fit():
    fits = fit_curves(THREE, resamples=20, seed=3)
    assert list(fits) == ["late", "short", "early"]
    assert isinstance(fits["short"], UserError)
    assert "5 points are left of 5" in str(fits["short"])
    for name, seed, d in (("late", 0, 9_000.0), ("early", 2, 1_500.0)):
        single_fit = fit_deceleration(STEPS, noisy(STEPS, 0.01, seed, d=d), resamples=20, seed=3)
        assert fits[name] == single_fit


@pytest.mark.parametrize("spoilt", ["goes back", "nan", "zero"])
def test_a_series_that_is_no_curve_has_a_reason(spoilt):
    step, loss = STEPS.copy(), broken(STEPS)
    if spoilt == "goes back":
        step[7] = step[3]
    else:
        loss[7] = {"nan": np.nan, "zero": 0.0}[spoilt]
    fits = fit_curves(frame(good=broken(STEPS), bad=(step, loss)), resamples=0)
    assert isinstance(fits["good"], Deceleration)
    assert ("steps do not increase strictly" if spoilt == "goes back" else "not a positive number") in str(fits["bad"])


@pytest.mark.slow
def test_processes_change_no_number():
    steps = spaced(24)
    curves = frame(**{f"c{i}": (steps, noisy(steps, 0.01, i)) for i in range(44)}, short=(steps[:3], steps[:3]))
    one_worker, two_workers = (fit_curves(curves, resamples=5, workers=workers) for workers in (1, 2))
    assert list(one_worker) == list(two_workers) == curves["curve"].unique(maintain_order=True).to_list()
    assert str(one_worker.pop("short")) == str(two_workers.pop("short"))
    assert one_worker == two_workers


def test_curves_called_by_a_number_are_called_by_its_text():
    numbered = frame(a=broken(STEPS)).with_columns(curve=pl.lit(7))
    assert fits_table(fit_curves(numbered, resamples=0))["curve"].to_list() == ["7"]


def test_what_is_no_fault_of_a_curve_is_refused():
    refuses("fitting curves needs the columns curve, step, loss; loss not among them", fit_curves, THREE.drop("loss"))
    refuses("there are no curves to fit; the frame has no rows", fit_curves, THREE.clear())
    refuses("workers is 0; at least 1 is needed", fit_curves, THREE, workers=0)
    refuses("no smoothing 'log-mean'; did you mean 'log-median'", fit_curves, THREE, smoothing="log-mean")


# the table ----------------------------------------------------------------------------------------------------------


def test_a_row_holds_the_fields_of_its_fit():
    fits = fit_curves(THREE, resamples=20)
    table = fits_table(fits)
    assert table["curve"].to_list() == ["late", "short", "early"]
    row, result = table.row(0, named=True), fits["late"]
    for name in (*FITTED, *FIT_PARAMETERS, "points", "first_step", "last_step", "verdict", "caveat", "reason"):
        assert row[name] == getattr(result, name), name
    assert all((row[f"{name}_low"], row[f"{name}_high"]) == result.intervals[name] for name in FITTED)


def test_a_curve_without_a_fit_has_a_row_of_nulls_and_why():
    row = fits_table(fit_curves(THREE, resamples=0)).row(1, named=True)
    assert (row["curve"], row["verdict"]) == ("short", "not fitted")
    assert "a break needs at least 12" in row["reason"]
    assert {value for name, value in row.items() if name not in ("curve", "verdict", "caveat", "reason")} == {None}


def test_the_schema_is_the_same_whatever_was_fitted():
    fits = fit_curves(THREE, resamples=0)
    schema = fits_table({}).schema
    assert fits_table({}).is_empty()
    for subset in (fits, {"short": fits["short"]}, {"late": fits["late"]}):
        assert fits_table(subset).schema == schema
    assert {name for name, kind in schema.items() if kind == pl.String} == {"curve", "verdict", "caveat", "reason"}
    assert fits_table(fits)["step_at_break_low"].null_count() == 3  # no resamples, no intervals


# one curve, many ways -----------------------------------------------------------------------------------------------


def test_sensitivity_is_a_fit_for_each_preparation():
    steps = np.arange(5.0, 20_001, 5)
    loss = noisy(steps, 0.05, 0)
    table = sensitivity(steps, loss, skips=(100, 400), resamples=0)
    assert table.select("smoothing", "skip_steps").rows() == [(way, skip) for way in SMOOTHINGS for skip in (100, 400)]
    assert table.drop("smoothing", "skip_steps").schema == fits_table({}).drop("curve").schema
    for row in table.iter_rows(named=True):
        single_fit = fit_deceleration(
            steps, loss, smoothing=row["smoothing"], skip_steps=row["skip_steps"], resamples=0
        )
        assert (row["step_at_break"], row["points"]) == (single_fit.step_at_break, single_fit.points)
        assert row["first_step"] > row["skip_steps"]
    assert ((table["step_at_break"] / BREAK).log().abs() < np.log(1.2)).all()


def test_a_preparation_that_leaves_too_little_is_reported_beside_the_others():
    table = sensitivity(STEPS, broken(STEPS), smoothings=("none",), skips=(100, 50_000), resamples=0)
    assert table["verdict"].to_list() == ["decelerates", "not fitted"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sd", [0.003, 0.03])
def test_the_profile_is_never_below_the_best_fit_and_comes_near_it(seed, sd):
    loss = noisy(STEPS, sd, seed)
    best = fit_deceleration(STEPS, loss, resamples=0)
    profile = break_profile(STEPS, loss)
    assert len(profile) == 80
    assert (profile["rsle"] >= best.rsle * (1 - 1e-9)).all()
    minimum = profile.row(profile["rsle"].arg_min(), named=True)
    assert minimum["rsle"] == pytest.approx(best.rsle, rel=0.05)
    assert minimum["step_at_break"] == pytest.approx(best.step_at_break, rel=0.15)


def test_each_row_of_a_profile_is_a_fit_of_its_own():
    """Its numbers belong together, and no other line with this break and width comes nearer to the curve."""
    loss = noisy(STEPS, 0.01, 0)
    profile = break_profile(STEPS, loss, places=9)
    spacing = np.diff(np.log(profile["step_at_break"].to_numpy()))
    assert spacing == pytest.approx(np.log(STEPS[-1] / STEPS[0]) / 10)
    for row in profile.iter_rows(named=True):
        assert row["loss_at_break"] == pytest.approx(row["b"] * row["step_at_break"] ** -row["c0"])
        assert row["rate_after_break"] == pytest.approx(row["c0"] + row["c1"])
        assert row["rate_before_break"] == row["c0"]
        assert row["log_d1"] == pytest.approx(np.log(row["step_at_break"]))
        x, f = np.log(STEPS), row["f1"]
        soft = (
            f * np.log1p((STEPS / row["step_at_break"]) ** (1 / f))
            if f > 0.05
            else f * np.logaddexp(0, (x - row["log_d1"]) / f)
        )
        columns = np.stack([np.ones(len(x)), -x, -soft], axis=1)
        linear = np.linalg.lstsq(columns, np.log(loss), rcond=None)[0]
        assert linear == pytest.approx([np.log(row["b"]), row["c0"], row["c1"]], rel=1e-4, abs=1e-6)
        assert row["rsle"] == pytest.approx(np.sqrt(np.mean((np.log(loss) - columns @ linear) ** 2)), rel=1e-6)


def test_a_profile_needs_points():
    with pytest.raises(UserError, match="3 points are left after step 55000; a break needs more: skip fewer steps"):
        break_profile(STEPS, broken(STEPS), skip_steps=55_000)


MANY = frame(**{f"c{seed}": noisy(STEPS, 0.02, seed) for seed in range(20)})


def deviations(curves: pl.DataFrame, name: str) -> np.ndarray:
    """Log losses less a straight line in log step."""
    subset = curves.filter(pl.col("curve") == name)
    x, y = np.log(subset["step"].to_numpy()), np.log(subset["loss"].to_numpy())
    return y - np.polyval(np.polyfit(x, y, 1), x)


def test_a_straightened_curve_has_no_break():
    assert {result.verdict for result in fit_curves(MANY, resamples=0).values()} == {"decelerates"}
    straight = null_curves(MANY)
    assert straight.select("curve", "step").equals(MANY.select("curve", "step"))
    verdicts = [result.verdict for result in fit_curves(straight, resamples=0).values()]
    assert verdicts.count("no break") >= 17


def test_the_noise_is_as_large_as_the_curves_own_and_lies_about_its_power_law():
    straight = null_curves(MANY)
    sizes = [deviations(straight, f"c{seed}").std() for seed in range(20)]
    assert np.median(sizes) == pytest.approx(0.02, rel=0.15)
    assert max(sizes) < 0.03
    for name in ("c0", "c7"):
        x = np.log(STEPS)
        expected, result = (
            np.polyfit(x, np.log(curves.filter(pl.col("curve") == name)["loss"].to_numpy()), 1)
            for curves in (MANY, straight)
        )
        assert result[0] == pytest.approx(expected[0], abs=0.01)


def test_a_curve_without_noise_becomes_its_power_law():
    exact = null_curves(frame(a=broken(STEPS)))
    line = np.polyval(np.polyfit(np.log(STEPS), np.log(broken(STEPS)), 1), np.log(STEPS))
    assert np.log(exact["loss"].to_numpy()) == pytest.approx(line, abs=1e-6)


def test_the_seed_decides_and_no_two_curves_share_their_noise():
    curves, repeated, other_seed = (null_curves(MANY, seed=seed) for seed in (0, 0, 1))
    assert curves.equals(repeated)
    assert not curves.equals(other_seed)
    twice = null_curves(frame(a=noisy(STEPS, 0.02, 0), b=noisy(STEPS, 0.02, 0)))
    assert not np.allclose(deviations(twice, "a"), deviations(twice, "b"))


def test_steps_that_a_fit_skips_have_no_noise():
    straight = null_curves(MANY.filter(pl.col("curve") == "c0"), skip_steps=1_000)
    skipped = straight.filter(pl.col("step") <= 1_000)
    assert deviations(skipped, "c0") == pytest.approx(0, abs=1e-9)
    assert deviations(straight, "c0").std() > 0.01


def test_a_raw_curve_stays_raw():
    """Fitted to medians, noisy as it was logged, and at every step it was logged at."""
    steps = np.arange(1.0, 5_001)
    raw = pl.DataFrame({"curve": "a", "step": steps, "loss": noisy(steps, 0.05, 0)})
    straight = null_curves(raw, smoothing="log-median")
    assert straight["step"].equals(raw["step"])
    later = straight.filter(pl.col("step") > 100)
    assert np.diff(np.log(later["loss"].to_numpy())).std() == pytest.approx(0.05 * np.sqrt(2), rel=0.1)
    (result,) = fit_curves(straight, smoothing="log-median", resamples=0).values()
    assert result.verdict == "no break"


def test_curves_too_short_are_left_out_and_refused_alone():
    short = frame(short=broken(STEPS)[:6])
    both = pl.concat([short, frame(a=noisy(STEPS, 0.02, 0))])
    assert null_curves(both)["curve"].unique().to_list() == ["a"]
    assert claims(both, 0.1, 100)["curve"].unique().to_list() == ["a"]
    refuses("no curve has 12 points after step 100: log more often, or skip fewer", null_curves, short)
    refuses("no curve has 2 points in its first 0% after step 100; give a larger share", claims, both, 0.0, 100)


def test_a_power_law_of_the_first_part_differs_from_one_break_over_the_whole_curve():
    exact = frame(a=broken(STEPS))
    lines = claims(exact, 0.01, 100)
    assert lines.select("curve", "method").unique(maintain_order=True).rows() == [
        ("a", "one power law"),
        ("a", "one break"),
    ]
    law, bent = (lines.filter(pl.col("method") == way) for way in ("one power law", "one break"))
    assert bent["loss"].to_numpy() == pytest.approx(broken(STEPS), rel=1e-5)
    early = STEPS[-1] >= 100 * STEPS
    x = np.log(STEPS)
    line = np.polyval(np.polyfit(x[early], np.log(broken(STEPS))[early], 1), x)
    assert np.log(law["loss"].to_numpy()) == pytest.approx(line, abs=1e-9)
    assert law["loss"][-1] < 0.7 * broken(STEPS[-1])  # it knows nothing of the break


def test_steps_skipped_are_in_no_claim():
    lines = claims(frame(a=broken(STEPS)), 0.1, 400)
    assert lines["step"].min() == pytest.approx(STEPS[STEPS > 400][0])

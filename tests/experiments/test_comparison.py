"""Runs side by side, and tables of a sweep: the numbers are those of the measurements and of the tests."""

import numpy as np
import polars as pl
import pytest

import lmdynamics as lmd
from benchmarks.coverage import false_claims
from lmdynamics.errors import UserError
from lmdynamics.experiments.comparison import (
    default_measurements,
    gains_by_paradigm,
    probe_scores,
    speedups,
    summarise,
)
from lmdynamics.measurements.complexity import WeightNorm
from lmdynamics.measurements.losses import HeldOutLoss
from tests.conftest import refuses


def test_a_branch_beside_its_parent(tiny_run):
    branch = tiny_run.branch(4, lr=0.02)
    measurements = default_measurements(tiny_run, sentences=60, pairs=10, min_count=10)
    table = lmd.compare_runs(tiny_run, branch, measurements=measurements, progress=False)
    assert table["step"].unique().sort().to_list() == branch.steps
    assert table["measure"].unique(maintain_order=True).to_list() == ["held-out loss", "UAS", "agreement"]
    assert table.filter(pl.col("step") == 4, pl.col("run") == branch.name)["difference"].to_list() == [0, 0, 0]
    direct = {run.name: HeldOutLoss(tiny_run.held_out())(run[12])["loss"][0] for run in (tiny_run, branch)}
    last = table.filter(pl.col("step") == 12, pl.col("measure") == "held-out loss")
    assert dict(last.select("run", "value").iter_rows()) == pytest.approx(direct)
    assert last["difference"].to_list()[0] is None
    assert last["difference"].to_list()[1] == pytest.approx(direct[branch.name] - direct[tiny_run.name])
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_loss_interval_is_two_standard_errors(tiny_run):
    measurement = HeldOutLoss(tiny_run.held_out())
    frame = lmd.trace(tiny_run, measurement, steps=[12], progress=False)
    (row,) = summarise(measurement, frame).iter_rows(named=True)
    assert row["high"] - row["value"] == pytest.approx(1.96 * frame["stderr"][0])


def test_what_cannot_be_compared(tiny_run):
    refuses("needs two runs or more; given: 1", lmd.compare_runs, tiny_run)
    with pytest.raises(UserError, match="cannot summarise 'norm', a WeightNorm"):
        lmd.compare_runs(tiny_run, tiny_run.branch(4), measurements={"norm": WeightNorm()}, progress=False)


def test_five_null_claims_are_seldom_reproduced():
    assert false_claims(np.random.default_rng(0), trials=150) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def learning(rate: float, top: float = 1.0) -> list[tuple[int, float]]:
    return [(step, top * (1 - np.exp(-rate * step / 1000))) for step in range(0, 4001, 250)]


def curves(**conditions: list[tuple[int, float]]) -> pl.DataFrame:
    rows = [(name, 0, step, "pairs", value) for name, points in conditions.items() for step, value in points]
    return pl.DataFrame(rows, ["condition", "seed", "step", "measure", "value"], orient="row")


def test_twice_as_fast_is_a_speed_up_of_two():
    result = speedups(curves(base=learning(1), quick=learning(2), low=learning(1, 0.5)), "pairs", "base")
    assert result.by_condition["quick"].value == pytest.approx(2, rel=0.02)
    assert result.by_condition["low"].value is None
    assert result.reached["condition"].to_list() == ["quick", "low"]
    assert result.fits["condition"].unique(maintain_order=True).to_list() == ["base", "quick", "low"]
    assert result.points["condition"].unique(maintain_order=True).to_list() == ["base", "quick", "low"]
    assert [frame.is_empty() for frame in result.frames] == [False] * 3


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_speed_up_from_one_seed_has_no_interval(seeds):
    rng = np.random.default_rng(0)
    parts = [curves(base=learning(1 + 0.05 * rng.normal()), quick=learning(2)) for _ in range(seeds)]
    frame = pl.concat(part.with_columns(seed=pl.lit(seed)) for seed, part in enumerate(parts))
    fit = speedups(frame, "pairs", "base").by_condition["quick"]
    assert fit.value == pytest.approx(2, rel=0.2)
    assert (fit.low is None, fit.high is None) == (seeds == 1,) * 2
    assert ("one seed, so there is no interval" in fit.reason) == (seeds == 1)


def test_a_flat_baseline_has_no_speed_ups_and_says_why():
    result = speedups(curves(base=[(step, 0.5) for step in range(0, 4001, 250)], quick=learning(2)), "pairs", "base")
    assert result.by_condition == {}
    assert "no target to reach earlier" in result.refused


def test_gains_are_against_the_baseline_of_the_same_seed():
    rows = [
        (condition, seed, paradigm, pair, pair < right)
        for condition, seed, paradigm, right in [
            ("base", 0, "a", 5), ("base", 1, "a", 7), ("new", 0, "a", 8), ("new", 1, "a", 7), ("base", 0, "b", 2),
            ("base", 1, "b", 2), ("new", 0, "b", 1), ("new", 1, "b", 4),
        ]
        for pair in range(10)
    ]  # fmt: skip
    judged = pl.DataFrame(rows, ["condition", "seed", "paradigm", "pair", "correct"], orient="row")
    gains = gains_by_paradigm(judged, "base")
    assert {(p, s): pytest.approx(d) for p, _, s, d in gains.rows()} == {
        ("a", 0): 0.3, ("a", 1): 0.0, ("b", 0): -0.1, ("b", 1): 0.2,
    }  # fmt: skip
    refuses("no condition 'bass'", gains_by_paradigm, judged, "bass")


def test_trials_of_a_probe_are_averaged_and_the_majority_set_apart():
    rows = [
        ("base", 0, "polarity", source, split, accuracy)
        for source, split, accuracy in [
            ("fine-tuned", "dev", 0.1), ("fine-tuned", "test", 0.6), ("fine-tuned", "test", 0.8),
            ("majority", "test", 0.5),
        ]
    ]  # fmt: skip
    tuned = pl.DataFrame(rows, ["condition", "seed", "task", "source", "split", "score"], orient="row")
    scores, chance = probe_scores(tuned)
    assert scores.rows() == [("base", 0, "polarity", pytest.approx(0.7))]
    assert chance == {"polarity": 0.5}

"""Runs side by side, and tables of a sweep: the numbers are those of the measurements and of the tests."""

import numpy as np
import polars as pl
import pytest

import lmdynamics as lmd
from benchmarks.coverage import false_claims
from lmdynamics.analysis.statistics import hochberg
from lmdynamics.errors import UserError
from lmdynamics.experiments.comparison import (
    Claim,
    against_baseline,
    at_the_end,
    default_measurements,
    gains_by_paradigm,
    judge,
    probe_scores,
    speedups,
    summarise,
    summarise_conditions,
    trace_conditions,
)
from lmdynamics.measurements.complexity import WeightNorm
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy
from lmdynamics.measurements.trace import Measurement
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
    refuses(r"1 run\(s\) cannot be compared", lmd.compare_runs, tiny_run)
    with pytest.raises(UserError, match="cannot summarise 'norm', a WeightNorm"):
        lmd.compare_runs(tiny_run, tiny_run.branch(4), measurements={"norm": WeightNorm()}, progress=False)


def test_a_sweep_is_measured_run_by_run(tiny_run):
    branch = tiny_run.branch(4, lr=0.02)
    rows = [
        ("base", 0, tiny_run.name, None),
        ("faster", 0, branch.name, None),
        ("broken", 0, "nowhere", "no such thing"),
    ]
    runs = pl.DataFrame(rows, schema=["condition", "seed", "run", "error"], orient="row")
    measurements = {"loss": HeldOutLoss(tiny_run.held_out())}
    traces = trace_conditions(runs, measurements, steps=lambda run: run.steps[-2:], progress=False)
    table = summarise_conditions(measurements, traces)
    assert table.select("condition", "step").rows() == [("base", 8), ("base", 12), ("faster", 8), ("faster", 12)]
    assert at_the_end(table)["value"].to_list() == [
        measurements["loss"](run[12])["loss"][0] for run in (tiny_run, branch)
    ]
    with pytest.raises(UserError, match="none of the 1 runs is complete; the first error: no such thing"):
        trace_conditions(runs.tail(1), measurements)


MEASUREMENTS = {"held-out loss": HeldOutLoss, "pairs": PairAccuracy}


def final(seeds: int = 3, **means: float) -> pl.DataFrame:
    """`condition__measure=mean`, spread by a hundredth over seeds."""
    rows = [
        (
            name.split("__")[0],
            seed,
            name.split("__")[1].replace("_", " ").replace("held out", "held-out"),
            mean + 0.01 * seed,
        )
        for name, mean in means.items()
        for seed in range(seeds)
    ]
    return pl.DataFrame(rows, ["condition", "seed", "measure", "value"], orient="row")


def test_a_lower_loss_and_a_higher_accuracy_are_better():
    rows = final(base__held_out_loss=2.0, new__held_out_loss=1.5, base__pairs=0.5, new__pairs=0.9)
    table = against_baseline(rows, "base", MEASUREMENTS)
    assert table.select("measure", "condition", "verdict").rows() == [
        ("held-out loss", "base", None),
        ("held-out loss", "new", "better"),
        ("pairs", "base", None),
        ("pairs", "new", "better"),
    ]
    assert table["mean"].to_list() == pytest.approx([2.01, 1.51, 0.51, 0.91])
    assert table["difference"].to_list()[1::2] == pytest.approx([-0.5, 0.4])
    assert table["n"].to_list() == [3] * 4


@pytest.mark.parametrize(
    ("value", "seeds", "verdict"),
    [
        (0.9, 3, "reproduced"),
        (0.1, 3, "not reproduced"),
        (0.502, 3, "undecided at this size"),
        (0.9, 1, "undecided at this size"),
    ],
)
def test_a_claim_is_judged_by_a_test_and_one_seed_never_decides(value, seeds, verdict):
    rows = final(seeds, base__pairs=0.5, new__pairs=value)
    (row,) = judge([Claim("new beats base", "pairs", "new", "base")], rows, MEASUREMENTS).iter_rows(named=True)
    assert row["verdict"] == verdict
    assert row["difference"] == pytest.approx(value - 0.5)
    assert (row["low"] is None) == (seeds == 1)


class Perplexing(Measurement):
    """A user's own measure, called whatever they like."""

    higher_is_better = False


def test_the_measurement_declares_its_direction_whatever_it_is_called():
    rows = final(base__loss=2.0, new__loss=1.5)
    claim = Claim("new has the lower loss", "loss", "new", "base")
    assert against_baseline(rows, "base", {"loss": Perplexing()})["verdict"].to_list() == [None, "better"]
    assert judge([claim], rows, {"loss": Perplexing()})["verdict"].to_list() == ["reproduced"]


@pytest.mark.parametrize("measurements", [{}, {"loss": Measurement()}])
def test_without_a_direction_nothing_is_better_or_worse(measurements):
    rows = final(base__loss=2.0, new__loss=1.5)
    (row,) = against_baseline(rows, "base", measurements).filter(condition="new").to_dicts()
    assert row["verdict"] == "no direction declared: neither better nor worse"
    assert (row["difference"], row["p_hochberg"]) == (pytest.approx(-0.5), None)
    (row,) = judge([Claim("it falls", "loss", "new", "base")], rows, measurements).to_dicts()
    assert row["verdict"] == "no direction declared: neither better nor worse"
    assert row["high"] < 0


def test_p_values_are_corrected_for_all_tests_of_a_table_and_for_all_claims():
    random = np.random.default_rng(0)
    cells = [(c, seed, m) for c in ("base", "a", "b") for m in MEASUREMENTS for seed in range(3)]
    rows = pl.DataFrame(cells, ["condition", "seed", "measure"], orient="row")
    rows = rows.with_columns(value=random.normal(size=len(rows)))
    table = against_baseline(rows, "base", MEASUREMENTS).drop_nulls("p_hochberg")
    claims = [Claim(f"{c} {m}", m, c, "base") for m in MEASUREMENTS for c in ("a", "b")]
    judged = judge(claims, rows, MEASUREMENTS)
    expected = hochberg(judged["p"].to_numpy())
    assert judged["p_hochberg"].to_list() == pytest.approx(expected.tolist())
    assert sorted(table["p_hochberg"]) == pytest.approx(sorted(expected))


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

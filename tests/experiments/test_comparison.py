"""Runs side by side: the numbers are those of the measurements, the differences those of the numbers."""

import polars as pl
import pytest

import lmdynamics as lmd
from lmdynamics.errors import UserError
from lmdynamics.experiments.comparison import (
    at_the_end,
    default_measurements,
    summarise,
    summarise_conditions,
    trace_conditions,
)
from lmdynamics.measurements.complexity import WeightNorm
from lmdynamics.measurements.losses import HeldOutLoss


def test_a_branch_beside_its_parent(tiny_run):
    other = tiny_run.branch(4, lr=0.02)
    measurements = default_measurements(tiny_run, sentences=60, pairs=10, min_count=10)
    table = lmd.compare_runs(tiny_run, other, measurements=measurements, progress=False)
    assert table["step"].unique().sort().to_list() == other.steps
    assert table["measure"].unique(maintain_order=True).to_list() == ["held-out loss", "UAS", "agreement"]
    assert table.filter(pl.col("step") == 4, pl.col("run") == other.name)["difference"].to_list() == [0, 0, 0]
    direct = {run.name: HeldOutLoss(tiny_run.held_out())(run[12])["loss"][0] for run in (tiny_run, other)}
    last = table.filter(pl.col("step") == 12, pl.col("measure") == "held-out loss")
    assert dict(last.select("run", "value").iter_rows()) == pytest.approx(direct)
    assert last["difference"].to_list()[0] is None
    assert last["difference"].to_list()[1] == pytest.approx(direct[other.name] - direct[tiny_run.name])
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_loss_interval_is_two_standard_errors(tiny_run):
    measurement = HeldOutLoss(tiny_run.held_out())
    frame = lmd.trace(tiny_run, measurement, steps=[12], progress=False)
    (row,) = summarise(measurement, frame).iter_rows(named=True)
    assert row["high"] - row["value"] == pytest.approx(1.96 * frame["stderr"][0])


def test_what_cannot_be_compared(tiny_run):
    with pytest.raises(UserError, match=r"1 run\(s\) cannot be compared"):
        lmd.compare_runs(tiny_run)
    with pytest.raises(UserError, match="has no one number for 'norm', a WeightNorm"):
        lmd.compare_runs(tiny_run, tiny_run.branch(4), measurements={"norm": WeightNorm()}, progress=False)


def test_a_sweep_is_measured_run_by_run(tiny_run):
    other = tiny_run.branch(4, lr=0.02)
    rows = [
        ("base", 0, tiny_run.name, None),
        ("faster", 0, other.name, None),
        ("broken", 0, "nowhere", "no such thing"),
    ]
    made = pl.DataFrame(rows, schema=["condition", "seed", "run", "error"], orient="row")
    measurements = {"loss": HeldOutLoss(tiny_run.held_out())}
    traces = trace_conditions(made, measurements, steps=lambda run: run.steps[-2:], progress=False)
    table = summarise_conditions(measurements, traces)
    assert table.select("condition", "step").rows() == [("base", 8), ("base", 12), ("faster", 8), ("faster", 12)]
    assert at_the_end(table)["value"].to_list() == [
        measurements["loss"](run[12])["loss"][0] for run in (tiny_run, other)
    ]
    with pytest.raises(UserError, match="none of the 1 runs is complete; the first fault: no such thing"):
        trace_conditions(made.tail(1), measurements)

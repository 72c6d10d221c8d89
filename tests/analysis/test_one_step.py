"""One step over several batches: means and Student's intervals against loops."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from lmdynamics.analysis.gradients import against_random, each_batch, over_batches
from lmdynamics.errors import UserError
from tests.analysis.changes import stepped


@pytest.fixture
def changes() -> pl.DataFrame:
    return stepped(np.random.default_rng(0))


def of_batch(frame) -> dict[str, float]:
    x, y = (frame[name].cast(pl.Float64).to_numpy() for name in ("first_order", "change"))
    return {
        "interference": 1 - abs(y.sum()) / np.abs(y).sum(),
        "magnitude": np.abs(y).mean(),
        "mean_change": y.mean(),
        "first_order_interference": 1 - abs(x.sum()) / np.abs(x).sum(),
        "slope": np.polyfit(x, y, 1)[0],
        "correlation": np.corrcoef(x, y)[0, 1],
    }


def test_equals_a_loop_over_batches(changes):
    table = over_batches(changes)
    assert table.select("step", "split", "direction").rows() == [
        (step, "held out", direction) for step in (4, 8) for direction in ("update", "random")
    ]
    for row in table.iter_rows(named=True):
        of = changes.filter((pl.col("step") == row["step"]) & (pl.col("direction") == row["direction"]))
        each = [of_batch(frame) for _, frame in of.group_by("batch")]
        for name in each[0]:
            values = [batch[name] for batch in each]
            assert row[name] == pytest.approx(np.mean(values), rel=1e-6)
            if name in ("slope", "correlation"):
                continue
            low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
            if name != "mean_change":
                low, high = max(low, 0), min(high, 1 if "interference" in name else np.inf)
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high), rel=1e-6)
        assert (row["tokens"], row["batches"]) == (len(of), 3)


def test_within_a_batch_the_identity_holds(changes):
    each = each_batch(changes)
    np.testing.assert_allclose(each["magnitude"] * (1 - each["interference"]), each["mean_change"].abs(), rtol=1e-6)
    assert len(each) == 12


def test_one_batch_has_no_interval_and_no_change_no_interference(changes):
    table = over_batches(changes.filter(pl.col("batch") == 0))
    assert table["batches"].to_list() == [1] * 4
    assert table["interference"].null_count() == 0
    for name in table.columns:
        if name.endswith(("_low", "_high")):
            assert table[name].null_count() == 4
    still = over_batches(changes.with_columns(change=pl.lit(0.0), first_order=pl.lit(0.5)))
    assert still["interference"].null_count() == still["slope"].null_count() == still["correlation"].null_count() == 4
    assert still["magnitude"].to_list() == [0] * 4
    assert still["first_order_interference"].to_list() == [0] * 4


def test_the_update_beside_a_random_step_equals_paired_t_tests(changes):
    table = against_random(changes)
    assert table.select("step", "quantity").rows() == [
        (step, quantity) for step in (4, 8) for quantity in ("interference", "magnitude", "mean_change")
    ]
    each = each_batch(changes)
    for row in table.iter_rows(named=True):
        of = each.filter(pl.col("step") == row["step"]).sort("batch")
        a, b = (of.filter(pl.col("direction") == d)[row["quantity"]].to_numpy() for d in ("update", "random"))
        bounds = stats.ttest_rel(a, b).confidence_interval()
        assert (row["update"], row["random"], row["batches"]) == (pytest.approx(a.mean()), pytest.approx(b.mean()), 3)
        assert row["difference"] == pytest.approx(a.mean() - b.mean())
        assert (row["low"], row["high"]) == pytest.approx((bounds.low, bounds.high))


def test_an_update_alone_has_no_control(changes):
    with pytest.raises(UserError, match="no batch was stepped on in both directions"):
        against_random(changes.filter(pl.col("direction") == "update"))
    with pytest.raises(UserError, match="first_order not among them"):
        over_batches(changes.drop("first_order"))
    broken = changes.with_columns(change=pl.when(pl.col("batch") == 2).then(float("inf")).otherwise("change"))
    with pytest.raises(UserError, match="'change' has no number at step 4, batch 2"):
        over_batches(broken)

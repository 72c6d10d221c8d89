"""Dissent, opposition and single steps against naive loops."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from lmdynamics.analysis.gradients import (
    COSINES,
    MEANS,
    against_random,
    dissent_by_group,
    each_batch,
    opposition_table,
    over_batches,
    towards_total,
)
from lmdynamics.analysis.intervals import bootstrap_levels, resample_counts
from lmdynamics.errors import UserError
from tests.analysis.frames import stepped
from tests.conftest import refuses

KINDS = pl.Enum(["frequent", "rare"])
GROUPS = pl.DataFrame(
    {"token": range(6), "group": ["rare", "frequent"] * 3}, schema={"token": pl.Int32, "group": KINDS}
)


@pytest.fixture
def frame() -> pl.DataFrame:
    """A trace of `Dissent` at two steps; some tokens have no cosine."""
    rng = np.random.default_rng(0)
    parts = []
    for step in (64, 8):
        n = 120
        columns = {"step": step, "row": np.repeat(np.arange(12), 10), "position": np.tile(np.arange(10), 12)}
        columns |= {"token": rng.integers(0, 6, n)}
        columns |= {name: rng.uniform(-1, 1, n) for name in COSINES} | {name: rng.uniform(0, 2, n) for name in MEANS}
        parts.append(pl.DataFrame(columns, schema_overrides=dict.fromkeys(("row", "position", "token"), pl.Int32)))
    table = pl.concat(parts).with_columns(pl.col(*COSINES, *MEANS).cast(pl.Float32))
    return table.with_columns(dissent=pl.when(pl.col("position") != 3).then("dissent"))


def test_equals_a_loop_over_resamples(frame):
    table = dissent_by_group(frame, GROUPS, resamples=25, seed=2)
    assert table.select("step", "group").rows() == [(s, g) for s in (64, 8) for g in ("frequent", "rare")]
    counts = resample_counts(12, 25, 2).astype(float)
    for row in table.iter_rows(named=True):
        subset = frame.filter((pl.col("step") == row["step"]) & (pl.col("token") % 2 == (row["group"] == "frequent")))
        assert row["tokens"] == len(subset)
        for name in (*COSINES, *MEANS):
            defined = subset.drop_nulls(name)
            values, rows = defined[name].cast(pl.Float64).to_numpy(), defined["row"].to_numpy()
            assert row[name] == pytest.approx(values.mean())
            if name in COSINES:
                resampled_means = [(times[rows] * values).sum() / times[rows].sum() for times in counts]
                assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(
                    tuple(np.percentile(resampled_means, bootstrap_levels(12)))
                )


def test_columns_and_a_group_of_all(frame):
    table = dissent_by_group(frame, None)
    cosines = [f"{name}{end}" for name in COSINES for end in ("", "_low", "_high")]
    moved = ["change", "change_low", "change_high"]
    assert table.columns == ["step", "group", *cosines, *MEANS, *moved, "tokens"]
    assert table["group"].to_list() == ["all", "all"]
    parts = dissent_by_group(frame, GROUPS)
    assert parts["tokens"].sum() == table["tokens"].sum() == len(frame)


def test_a_group_without_a_cosine_has_none_and_one_row_no_interval(frame):
    table = dissent_by_group(frame.filter(pl.col("position") == 3), None)
    assert table["dissent"].null_count() == table["dissent_low"].null_count() == 2
    assert table["cos_hidden_attractive"].null_count() == 0
    one_row = dissent_by_group(frame.filter(pl.col("row") == 4), None)
    assert one_row["dissent"].null_count() == 0
    assert one_row["dissent_low"].null_count() == 2


def test_what_cannot_be_grouped_is_refused(frame):
    refuses("dissent not among them", dissent_by_group, frame.drop("dissent"), GROUPS)
    refuses("there are no rows", dissent_by_group, frame.clear(), GROUPS)
    refuses("token 1 has several groups", dissent_by_group, frame, pl.concat([GROUPS, GROUPS[1:2]]))


def test_the_change_since_half_the_step_equals_a_loop_over_resamples(frame):
    doubled = frame.with_columns(step=pl.when(pl.col("step") == 8).then(32).otherwise("step"))
    table = dissent_by_group(doubled, GROUPS, resamples=25, seed=2)
    assert table.filter(step=32).select("change", "change_low", "change_high").null_count().row(0) == (2, 2, 2)
    counts = resample_counts(12, 25, 2).astype(float)
    for row in table.filter(step=64).iter_rows(named=True):
        sums = []
        for step in (32, 64):
            subset = doubled.filter((pl.col("token") % 2 == (row["group"] == "frequent")) & (pl.col("step") == step))
            defined = subset.drop_nulls("dissent")
            values, rows = defined["dissent"].cast(pl.Float64).to_numpy(), defined["row"].to_numpy()
            sums.append([(times[rows] * values).sum() / times[rows].sum() for times in [np.ones(12), *counts]])
        change = np.subtract(*sums[::-1])
        assert row["change"] == pytest.approx(change[0])
        assert (row["change_low"], row["change_high"]) == pytest.approx(
            tuple(np.percentile(change[1:], bootstrap_levels(12)))
        )


def ends(change: tuple) -> dict:
    """The verdict of a curve whose dissent has changed by (value, low, high) from step 512 to 1,024."""
    numbers = dict(zip(("change", "change_low", "change_high"), change, strict=True))
    row = {"curve": "a", "group": "all", "step": 1024, "dissent": -0.5, "dissent_low": -0.6, "dissent_high": -0.4}
    schema = dict.fromkeys(numbers, pl.Float64)
    table = pl.DataFrame([row | numbers], schema_overrides=schema).with_columns(dissent_control=pl.lit(-0.1))
    return towards_total(table).row(0, named=True)


@pytest.mark.parametrize(
    ("change", "verdict", "message"),
    [
        ((-0.05, -0.07, -0.03), "deepens", "deepens since step 512 (-0.05 [-0.07, -0.03])"),
        ((0.05, 0.03, 0.07), "eases", "eases since step 512 (+0.05 [+0.03, +0.07])"),
        ((-0.05, -0.11, 0.01), "undecided", "does not clearly move since step 512 (-0.05 [-0.11, +0.01])"),
        ((-0.4, None, None), "undecided", "does not clearly move since step 512 (-0.40)"),  # one row: nothing is known
    ],
)
def test_which_way_dissent_goes_is_reported_where_its_change_is_clear(change, verdict, message):
    row = ends(change)
    assert (row["step"], row["verdict"]) == (1024, verdict)
    assert f", {message}; control -0.10" in row["sentence"]


def test_a_change_on_the_same_text_is_clear_where_two_intervals_overlap():
    """Texts differ far more than a text changes: the paired change is known, though the two intervals overlap."""
    rng = np.random.default_rng(0)
    level = rng.uniform(-0.8, -0.2, 60)
    parts = []
    for step, moved in ((512, 0.0), (1024, -0.05)):
        columns = {"step": step, "row": range(60), "position": 0, "token": 0, "curve": "a"}
        columns |= dict.fromkeys((*COSINES, *MEANS), 0.0) | {"dissent": level + moved + 0.01 * rng.normal(size=60)}
        parts.append(pl.DataFrame(columns))
    table = dissent_by_group(pl.concat(parts), None, by=["curve", "step"])
    before, after = table.sort("step").to_dicts()
    assert after["dissent_high"] > before["dissent_low"]
    assert towards_total(table)["verdict"].to_list() == ["deepens"]


def test_without_half_the_step_there_is_nothing_to_compare(frame):
    table = towards_total(dissent_by_group(frame.with_columns(curve=pl.lit("a")), GROUPS, by=["curve", "step"]))
    assert table["change"].null_count() == len(table) == 2
    assert table["verdict"].to_list() == ["undecided"] * 2
    assert "since" not in table["sentence"][0]


def trace(vectors: np.ndarray, step: int = 1, part: str = "all") -> pl.DataFrame:
    """What `Opposition` gives for rows with these gradients."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    a, b = np.triu_indices(len(vectors))
    frame = {"step": step, "part": part, "a": a, "b": b, "cosine": (unit[a] * unit[b]).sum(1)}
    return pl.DataFrame(frame, schema_overrides={"a": pl.Int32, "b": pl.Int32})


def test_opposition_equals_a_loop_over_resamples():
    random = np.random.default_rng(0)
    frame = pl.concat([trace(random.normal(size=(7, 4)), step, part) for step in (2, 1) for part in ("all", "head")])
    table = opposition_table(frame, resamples=40, seed=3)
    assert table.select("step", "part").rows() == [(2, "all"), (2, "head"), (1, "all"), (1, "head")]
    counts = resample_counts(7, 40, 3)
    for row in table.iter_rows(named=True):
        pairs = frame.filter(
            pl.col("step") == row["step"], pl.col("part") == row["part"], pl.col("a") != pl.col("b")
        ).select("a", "b", "cosine").rows()  # fmt: skip
        assert row["pairs"] == len(pairs) == 21
        for name, value in (("cosine", lambda c: c), ("negative", lambda c: c < 0)):
            assert row[name] == pytest.approx(np.mean([value(c) for _, _, c in pairs]))
            resampled_means = [
                sum(times[a] * times[b] * value(c) for a, b, c in pairs) / sum(times[a] * times[b] for a, b, _ in pairs)
                for times in counts
            ]
            bounds = row[f"{name}_low"], row[f"{name}_high"]
            assert bounds == pytest.approx(tuple(np.percentile(resampled_means, bootstrap_levels(7))))


def test_intervals_hold_the_mean_of_many_rows():
    """Gradients with a common part; the mean cosine of all rows there could be, in some 95 % of draws of 30."""
    random = np.random.default_rng(1)

    def rows(n: int) -> np.ndarray:
        return random.normal(size=(n, 20)) + 0.4

    true_mean = opposition_table(trace(rows(1500)), resamples=2)["cosine"].item()
    tables = [opposition_table(trace(rows(30)), resamples=300, seed=i) for i in range(150)]
    coverage = np.mean([t["cosine_low"].item() <= true_mean <= t["cosine_high"].item() for t in tables])
    assert 0.88 <= coverage <= 0.99


def test_edges():
    refuses("cosine not among them", opposition_table, pl.DataFrame({"step": [1], "part": ["all"], "a": [0], "b": [1]}))
    refuses("no two different rows", opposition_table, trace(np.ones((1, 3))))


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
        subset = changes.filter((pl.col("step") == row["step"]) & (pl.col("direction") == row["direction"]))
        each = [of_batch(frame) for _, frame in subset.group_by("batch")]
        for name in each[0]:
            values = [batch[name] for batch in each]
            assert row[name] == pytest.approx(np.mean(values), rel=1e-6)
            if name in ("slope", "correlation"):
                continue
            low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
            if name != "mean_change":
                low, high = max(low, 0), min(high, 1 if "interference" in name else np.inf)
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high), rel=1e-6)
        assert (row["tokens"], row["batches"]) == (len(subset), 3)


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


@pytest.mark.parametrize("batches", [2, 3])
def test_the_update_beside_a_random_step_equals_paired_t_tests(changes, batches):
    changes = changes.filter(pl.col("batch") < batches)
    table = against_random(changes)
    assert table.select("step", "quantity").rows() == [
        (step, quantity) for step in (4, 8) for quantity in ("interference", "magnitude", "mean_change")
    ]
    each = each_batch(changes)
    for row in table.iter_rows(named=True):
        subset = each.filter(pl.col("step") == row["step"]).sort("batch")
        a, b = (subset.filter(pl.col("direction") == d)[row["quantity"]].to_numpy() for d in ("update", "random"))
        bounds = stats.ttest_rel(a, b).confidence_interval()
        assert (row["update"], row["random"]) == pytest.approx((a.mean(), b.mean()))
        assert row["batches"] == batches
        assert row["difference"] == pytest.approx(a.mean() - b.mean())
        assert (row["low"], row["high"]) == pytest.approx((bounds.low, bounds.high))


def test_an_update_alone_has_no_control(changes):
    with pytest.raises(UserError, match="no batch has both directions"):
        against_random(changes.filter(pl.col("direction") == "update"))
    refuses("first_order not among them", over_batches, changes.drop("first_order"))
    broken = changes.with_columns(change=pl.when(pl.col("batch") == 2).then(float("inf")).otherwise("change"))
    refuses("'change' has no number at step 4, batch 2", over_batches, broken)

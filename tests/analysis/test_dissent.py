"""Dissent by group of tokens, against a loop over tokens."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.gradients import COSINES, MEANS, dissent_by_group, towards_total
from lmdynamics.analysis.intervals import bootstrap_levels, resample_counts
from lmdynamics.errors import UserError

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
    whole = pl.concat(parts).with_columns(pl.col(*COSINES, *MEANS).cast(pl.Float32))
    return whole.with_columns(dissent=pl.when(pl.col("position") != 3).then("dissent"))


def test_equals_a_loop_over_resamples(frame):
    table = dissent_by_group(frame, GROUPS, resamples=25, seed=2)
    assert table.select("step", "group").rows() == [(s, g) for s in (64, 8) for g in ("frequent", "rare")]
    counts = resample_counts(12, 25, 2).astype(float)
    for row in table.iter_rows(named=True):
        of = frame.filter((pl.col("step") == row["step"]) & (pl.col("token") % 2 == (row["group"] == "frequent")))
        assert row["tokens"] == len(of)
        for name in (*COSINES, *MEANS):
            there = of.drop_nulls(name)
            values, rows = there[name].cast(pl.Float64).to_numpy(), there["row"].to_numpy()
            assert row[name] == pytest.approx(values.mean())
            if name in COSINES:
                drawn = [(times[rows] * values).sum() / times[rows].sum() for times in counts]
                assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(
                    tuple(np.percentile(drawn, bootstrap_levels(12)))
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
    one = dissent_by_group(frame.filter(pl.col("row") == 4), None)
    assert one["dissent"].null_count() == 0
    assert one["dissent_low"].null_count() == 2


def test_what_cannot_be_grouped_is_refused(frame):
    with pytest.raises(UserError, match="dissent not among them"):
        dissent_by_group(frame.drop("dissent"), GROUPS)
    with pytest.raises(UserError, match="there are no rows"):
        dissent_by_group(frame.clear(), GROUPS)
    with pytest.raises(UserError, match="token 1 has several groups"):
        dissent_by_group(frame, pl.concat([GROUPS, GROUPS[1:2]]))


def test_the_change_since_half_the_step_equals_a_loop_over_resamples(frame):
    doubled = frame.with_columns(step=pl.when(pl.col("step") == 8).then(32).otherwise("step"))
    table = dissent_by_group(doubled, GROUPS, resamples=25, seed=2)
    assert table.filter(step=32).select("change", "change_low", "change_high").null_count().row(0) == (2, 2, 2)
    counts = resample_counts(12, 25, 2).astype(float)
    for row in table.filter(step=64).iter_rows(named=True):
        sums = []
        for step in (32, 64):
            of = doubled.filter((pl.col("token") % 2 == (row["group"] == "frequent")) & (pl.col("step") == step))
            there = of.drop_nulls("dissent")
            values, rows = there["dissent"].cast(pl.Float64).to_numpy(), there["row"].to_numpy()
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
    ("change", "verdict", "says"),
    [
        ((-0.05, -0.07, -0.03), "deepens", "deepens since step 512 (-0.05 [-0.07, -0.03])"),
        ((0.05, 0.03, 0.07), "eases", "eases since step 512 (+0.05 [+0.03, +0.07])"),
        ((-0.05, -0.11, 0.01), "undecided", "does not clearly move since step 512 (-0.05 [-0.11, +0.01])"),
        ((-0.4, None, None), "undecided", "does not clearly move since step 512 (-0.40)"),  # one row: nothing is known
    ],
)
def test_which_way_dissent_goes_is_said_where_its_change_is_clear(change, verdict, says):
    row = ends(change)
    assert (row["step"], row["verdict"]) == (1024, verdict)
    assert f", {says}; control -0.10" in row["sentence"]


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
    found = towards_total(dissent_by_group(frame.with_columns(curve=pl.lit("a")), GROUPS, by=["curve", "step"]))
    assert found["change"].null_count() == len(found) == 2
    assert found["verdict"].to_list() == ["undecided"] * 2
    assert "since" not in found["sentence"][0]

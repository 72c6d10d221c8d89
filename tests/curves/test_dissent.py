"""Dissent by group of tokens, against a loop over tokens."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.curves.dissent import COSINES, MEANS, dissent_by_group, towards_total
from lmdynamics.curves.intervals import resample_counts
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
                    tuple(np.percentile(drawn, [2.5, 97.5]))
                )


def test_columns_and_a_group_of_all(frame):
    table = dissent_by_group(frame, None)
    cosines = [f"{name}{end}" for name in COSINES for end in ("", "_low", "_high")]
    assert table.columns == ["step", "group", *cosines, *MEANS, "tokens"]
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


def ends(before: tuple, last: tuple) -> dict:
    """The verdict of a curve whose dissent is (value, low, high) at steps 512 and 1,024."""
    rows = [
        {"curve": "a", "group": "all", "step": step, "dissent": d, "dissent_low": low, "dissent_high": high}
        for step, (d, low, high) in ((512, before), (1024, last))
    ]
    schema = dict.fromkeys(("dissent", "dissent_low", "dissent_high"), pl.Float64)
    table = pl.DataFrame(rows, schema_overrides=schema).with_columns(dissent_control=pl.lit(-0.1))
    return towards_total(table).row(0, named=True)


@pytest.mark.parametrize(
    ("before", "last", "verdict"),
    [
        ((-0.5, -0.52, -0.48), (-0.6, -0.62, -0.58), "deepens"),
        ((-0.6, -0.62, -0.58), (-0.5, -0.52, -0.48), "eases"),
        ((-0.5, -0.56, -0.44), (-0.55, -0.6, -0.5), "steady"),
        ((-0.5, None, None), (-0.9, None, None), "steady"),  # one row of text: nothing is known
    ],
)
def test_which_way_dissent_goes_is_said_where_intervals_lie_apart(before, last, verdict):
    row = ends(before, last)
    assert (row["step"], row["before"], row["verdict"]) == (1024, before[0], verdict)
    assert f"{verdict} since step 512; control -0.10" in row["sentence"]


def test_without_half_the_step_there_is_nothing_to_compare(frame):
    found = towards_total(dissent_by_group(frame.with_columns(curve=pl.lit("a")), GROUPS, by=["curve", "step"]))
    assert found["before"].null_count() == len(found) == 2
    assert found["verdict"].to_list() == ["steady"] * 2
    assert "since" not in found["sentence"][0]

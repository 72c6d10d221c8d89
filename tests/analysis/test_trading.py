"""Whose loss was traded for whose: sums over groups against loops, and that they add up to the whole."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.intervals import bootstrap_levels, resample_counts
from lmdynamics.analysis.zero_sum import interference_table, token_names, traded, winners_and_losers
from lmdynamics.corpora.blocks import Blocks, frequency_groups, group_names
from lmdynamics.errors import UserError
from tests.analysis.changes import drawn_changes
from tests.measurements.conftest import wordpiece

GROUPS = pl.DataFrame({"token": range(9), "group": ["noun", "verb", "det"] * 3})  # tokens 9 to 11 have none


@pytest.fixture
def changes() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.concat([drawn_changes(rng, mean, rows=15, step=step) for step, mean in ((8, -0.3), (2, 0.1))])


def test_equals_a_loop_over_resamples(changes):
    table = traded(changes, GROUPS, resamples=30, seed=5)
    assert table.select("step", "group").rows() == [
        (step, group) for step in (8, 2) for group in ("det", "noun", "other", "verb")
    ]
    name_of = dict(GROUPS.iter_rows())
    counts = resample_counts(15, 30, 5).astype(float)
    for row in table.iter_rows(named=True):
        of = changes.filter(pl.col("step") == row["step"])
        tokens = [
            (r, x, name_of.get(token, "other") == row["group"])
            for r, token, x in of.select("row", "token", "change").rows()
        ]
        expected = {name: [] for name in ("gained", "lost", "net", "interference")}
        for times in (np.ones(15), *counts):
            n = sum(times[r] for r, _, _ in tokens)
            gained = sum(-x * times[r] for r, x, mine in tokens if mine and x < 0)
            lost = sum(x * times[r] for r, x, mine in tokens if mine and x > 0)
            expected["gained"].append(gained / n)
            expected["lost"].append(lost / n)
            expected["net"].append((lost - gained) / n)
            expected["interference"].append(1 - np.sign(row["net"]) * (lost - gained) / (gained + lost))
        for name, (value, *drawn) in expected.items():
            low, high = np.percentile(drawn, bootstrap_levels(15))
            most = 1 if name == "interference" else np.inf
            assert row[name] == pytest.approx(value)
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((min(low, most), min(high, most)))
        assert row["tokens"] == sum(mine for *_, mine in tokens)


def test_groups_add_up_to_the_whole(changes):
    whole = interference_table(changes)
    summed = (
        traded(changes, GROUPS)
        .group_by("step", maintain_order=True)
        .agg(pl.col("net", "gained", "lost", "tokens").sum())
    )
    np.testing.assert_allclose(summed["net"], whole["mean_change"])
    np.testing.assert_allclose(summed["gained"] + summed["lost"], whole["magnitude"])
    assert summed["tokens"].to_list() == whole["tokens"].to_list()
    alone = traded(changes, None)
    assert alone["group"].to_list() == ["all", "all"]
    for name in ("", "_low", "_high"):
        np.testing.assert_allclose(alone[f"net{name}"], whole[f"mean_change{name}"])
        np.testing.assert_allclose(alone[f"interference{name}"], whole[f"interference{name}"])


def test_groups_by_place_and_by_token_agree(changes):
    by_place = changes.select("row", "position").unique().with_columns(group=pl.lit("odd"))
    with pytest.raises(UserError, match="row 0, position 1 has several groups"):
        traded(changes, pl.concat([by_place.sort("row", "position").head(1), by_place]))
    one = changes.filter(pl.col("step") == 8)
    placed = one.join(GROUPS, on="token").select("row", "position", "group")
    assert traded(one, placed).equals(traded(one, GROUPS))


def test_frequency_groups_keep_their_order(changes):
    blocks = Blocks.from_rows([[token] * 2**token for token in range(12)])
    groups = frequency_groups(blocks, 12, bins=(4, 100))
    table = traded(changes, groups)
    assert table["group"].to_list() == group_names((4, 100)) * 2
    partly = traded(changes, groups.head(9))
    assert partly["group"].cast(pl.String).to_list() == ["1 in 4–100", "rarer than 1 in 100", "other"] * 2


def test_groups_in_which_nothing_moves_have_no_interference(changes):
    still = changes.with_columns(change=pl.when(pl.col("token") < 9).then(0.0).otherwise("change"))
    table = traded(still, GROUPS).filter(pl.col("group") == "noun")
    assert table.select("gained", "lost", "net", "net_high").rows() == [(0, 0, 0, 0)] * 2
    assert table["interference"].to_list() == table["interference_low"].to_list() == [None, None]


def test_what_are_no_groups_is_refused(changes):
    with pytest.raises(UserError, match="group not among them"):
        traded(changes, pl.DataFrame({"token": [1]}))
    with pytest.raises(UserError, match="token not among them"):
        traded(changes, pl.DataFrame({"row": [1], "group": ["x"]}))
    with pytest.raises(UserError, match="no token of the text has a group"):
        traded(changes, pl.DataFrame({"token": [99], "group": ["x"]}))
    with pytest.raises(UserError, match="change not among them"):
        traded(changes.drop("change"), GROUPS)


def test_winners_and_losers_equal_a_loop_over_tokens(changes):
    found = winners_and_losers(changes, n=3, at_least=5, by=["step"])
    expected = []
    for step in (8, 2):
        of = {}
        for token, x in changes.filter(pl.col("step") == step).select("token", "change").iter_rows():
            of.setdefault(token, []).append(x)
        means = sorted((np.mean(values), token) for token, values in of.items() if len(values) >= 5)
        chosen = [("winner", m, t) for m, t in means[:3] if m < 0] + [
            ("loser", m, t) for m, t in means[:-4:-1] if m > 0
        ]
        expected += [(step, k, t, m, np.std(of[t], ddof=1) / len(of[t]) ** 0.5, len(of[t])) for k, m, t in chosen]
    assert found.columns == ["step", "kind", "token", "change", "stderr", "count"]
    assert found.select("step", "kind", "token", "count").rows() == [(s, k, t, n) for s, k, t, _, _, n in expected]
    np.testing.assert_allclose(found.select("change", "stderr"), [each[3:5] for each in expected])


def test_rare_tokens_do_not_win(changes):
    one = changes.filter(pl.col("step") == 8)
    rare = one.head(3).with_columns(token=pl.lit(77, pl.Int32), change=pl.lit(-9.0))
    both = pl.concat([one, rare])
    assert 77 not in winners_and_losers(both)["token"]
    assert winners_and_losers(both, at_least=3)["token"][0] == 77
    with pytest.raises(UserError, match="no token occurs 999 times"):
        winners_and_losers(one, at_least=999)


def test_nobody_loses_where_all_gain(changes):
    found = winners_and_losers(changes.with_columns(change=-pl.col("change").abs()))
    assert found["kind"].unique().to_list() == ["winner"]
    assert found["change"].is_sorted()


def test_tokens_are_named_as_the_tokenizer_writes_them():
    frame = token_names(pl.DataFrame({"kind": ["winner"] * 2, "token": [6, 18], "change": [1.0, 2.0]}), wordpiece())
    assert frame.columns == ["kind", "token", "form", "change"]
    assert frame["form"].to_list() == ["dog", "##able"]

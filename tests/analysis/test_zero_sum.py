"""Interference and trades against naive loops."""

from time import perf_counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdynamics.analysis.intervals import bootstrap_levels, resample_counts
from lmdynamics.analysis.zero_sum import (
    between_runs,
    change_bins,
    changes_between,
    doublings,
    interference_table,
    token_names,
    traded,
    winners_and_losers,
)
from lmdynamics.corpora.tokens import TokenRows, frequency_groups, group_names
from lmdynamics.errors import UserError
from tests.analysis.frames import TOKENS, drawn_changes, losses
from tests.conftest import refuses
from tests.measurements.conftest import wordpiece

THREE = ("interference", "magnitude", "mean_change")


def naive(changes) -> tuple[float, float, float]:
    values = list(changes)
    net, size = sum(values), sum(map(abs, values))
    return 1 - abs(net) / size, size / len(values), net / len(values)


def test_doublings_equal_a_loop_over_tokens():
    trace = losses(np.random.default_rng(0), [0, 1, 2, 3, 4, 6, 8, 100]).sample(fraction=1, shuffle=True, seed=1)
    result = doublings(trace)
    loss_of = {(s, r, p): (token, loss) for s, r, p, token, loss in trace.iter_rows()}
    expected = [
        (t, 2 * t, r, p, loss_of[t, r, p][0], loss_of[t, r, p][1], loss_of[2 * t, r, p][1] - loss_of[t, r, p][1])
        for t in (1, 2, 3, 4)
        for r in range(6)
        for p in range(1, 6)
    ]
    assert result.drop("change").rows() == [each[:6] for each in expected]
    np.testing.assert_allclose(result["change"], [each[6] for each in expected], atol=1e-12)
    numbers = {"loss": pl.Float64, "change": pl.Float64}
    assert dict(result.schema) == {"step": pl.Int64, "until": pl.Int64} | TOKENS | numbers


def test_between_runs_is_the_other_s_loss_less_this_one_s():
    rng = np.random.default_rng(0)
    losses_a, losses_b = losses(rng, [1, 2, 4]), losses(rng, [2, 4, 8])
    result = between_runs(losses_a, losses_b)
    assert result.select("step", "until").unique().sort("step").rows() == [(2, 2), (4, 4)]
    at = pl.col("step") == 4
    expected = losses_b.filter(at)["loss"].cast(pl.Float64) - losses_a.filter(at)["loss"].cast(pl.Float64)
    assert result.filter(at)["change"].equals(expected, check_names=False)


def test_the_table_equals_a_loop_over_resamples():
    rng = np.random.default_rng(1)
    changes = pl.concat([drawn_changes(rng, mean, rows=12, step=step) for step, mean in ((4, -0.4), (2, 0.02))])
    table = interference_table(changes, resamples=40, seed=3)
    assert table.select("step", "until").rows() == [(4, 8), (2, 4)]  # in the order they come
    counts = resample_counts(12, 40, 3)
    for row in table.iter_rows(named=True):
        subset = changes.filter(pl.col("step") == row["step"])
        by_row = {r: frame["change"].to_list() for (r,), frame in subset.group_by("row")}
        assert tuple(row[name] for name in THREE) == pytest.approx(naive(subset["change"]))
        resampled = []
        for times in counts:
            values = [x for r, n in enumerate(times) for x in by_row[r] * int(n)]
            net, size = sum(values), sum(map(abs, values))
            resampled.append((1 - np.sign(row["mean_change"]) * net / size, size / len(values), net / len(values)))
        low, high = np.percentile(resampled, bootstrap_levels(12), axis=0)
        low[0], high[0] = min(low[0], 1), min(high[0], 1)
        assert [row[f"{name}_low"] for name in THREE] == pytest.approx(low)
        assert [row[f"{name}_high"] for name in THREE] == pytest.approx(high)
        assert (row["tokens"], row["rows"]) == (len(subset), 12)


finite = st.floats(-5, 5).map(lambda x: round(x, 3))
texts = st.lists(st.lists(finite, min_size=1, max_size=5), min_size=1, max_size=8)


def of_rows(values, step=1) -> pl.DataFrame:
    flat = [(step, 2 * step, r, p, 3, 1.0, x) for r, row in enumerate(values) for p, x in enumerate(row)]
    return pl.DataFrame(flat, ["step", "until", "row", "position", "token", "loss", "change"], orient="row")


@settings(max_examples=50)
@given(texts, st.floats(0.01, 100))
def test_the_table_keeps_the_identity_and_is_invariant(values, scale):
    row = interference_table(of_rows(values), resamples=20).row(0, named=True)
    if not any(map(any, values)):
        result = [row[name] for name in ("interference", "interference_low", "magnitude", "mean_change")]
        assert result == [None, None, 0, 0]
        return
    assert 0 <= row["interference"] <= 1
    assert abs(row["mean_change"]) == pytest.approx(row["magnitude"] * (1 - row["interference"]), rel=1e-6, abs=1e-12)
    scaled = interference_table(of_rows([[-scale * x for x in r] for r in values]), resamples=20).row(0, named=True)
    for name in ("interference", "interference_low", "interference_high"):
        if row[name] is None or row["mean_change"] == 0:  # no direction to keep
            continue
        assert scaled[name] == pytest.approx(row[name], abs=1e-6)


def test_one_row_of_text_and_no_resamples_give_no_interval():
    one_row = interference_table(of_rows([[1.0, -2.0]])).row(0, named=True)
    assert (one_row["interference"], one_row["rows"], one_row["tokens"]) == (pytest.approx(2 / 3), 1, 2)
    no_resamples = interference_table(of_rows([[1.0], [-2.0]]), resamples=0).row(0, named=True)
    for row in (one_row, no_resamples):
        assert all(row[f"{name}_{end}"] is None for name in THREE for end in ("low", "high"))


def test_mirrored_changes_have_an_interval_up_to_1():
    rng = np.random.default_rng(0)
    noise = [list(rng.standard_normal(4)) for _ in range(20)]
    row = interference_table(of_rows(noise + [[-x for x in r] for r in noise])).row(0, named=True)
    assert row["interference"] == pytest.approx(1)
    assert row["interference_high"] == 1
    assert row["interference_low"] < 0.95


@pytest.mark.parametrize("mean", [-0.6, -0.2, -0.03, 0.0])
def test_95_percent_intervals_cover_the_population(mean):
    rng = np.random.default_rng(7)
    population = interference_table(drawn_changes(rng, mean, rows=20_000), resamples=0).row(0, named=True)
    magnitude = population["magnitude"]
    truth = {"interference": 1 - abs(mean) / magnitude, "magnitude": magnitude, "mean_change": mean}
    draws = pl.concat([drawn_changes(rng, mean).with_columns(draw=pl.lit(i)) for i in range(200)])
    table = interference_table(draws, ["draw"])
    for name in THREE:
        inside = ((table[f"{name}_low"] <= truth[name] + 1e-12) & (truth[name] - 1e-12 <= table[f"{name}_high"])).mean()
        assert 0.9 <= inside <= 0.99, name


def test_what_cannot_be_compared_is_refused():
    trace = losses(np.random.default_rng(0), [1, 3, 7])
    refuses("none of the steps 1, 3, 7 is twice another", doublings, trace)
    refuses("no losses at step 2; measured steps: 1, 3, 7", changes_between, trace, [(1, 2)])
    refuses("step not among them", doublings, trace.drop("step"))
    refuses("loss not among them", changes_between, trace.drop("loss"), [(1, 3)])
    other_tokens = trace.with_columns(token=pl.when(pl.col("step") == 3).then(pl.col("token") + 1).otherwise("token"))
    refuses("steps 1 and 3 were not measured on the same tokens", changes_between, other_tokens, [(1, 3)])
    diverged = trace.with_columns(loss=pl.when(pl.col("step") == 7).then(float("nan")).otherwise("loss"))
    refuses(r"'loss' has no number at step 7, row 0 \(30 row\(s\) in all\)", changes_between, diverged, [(1, 3)])
    with pytest.raises(UserError, match="have no measured step in common"):
        between_runs(trace.filter(pl.col("step") == 1), trace.filter(pl.col("step") == 3))
    refuses("until not among them", interference_table, of_rows([[1.0]]).drop("until"))
    refuses("there are no rows", interference_table, of_rows([[1.0]]).clear())


def test_a_ladder_takes_well_under_a_second():
    """Twelve doublings of four runs, 600 rows of text, 500 resamples."""
    ladder = pl.DataFrame({"curve": list("abcd")}).join(pl.DataFrame({"step": [2**k for k in range(12)]}), how="cross")
    changes = drawn_changes(np.random.default_rng(0), -0.3, rows=600).drop("step", "until").join(ladder, how="cross")
    changes, took = changes.with_columns(until=2 * pl.col("step")), []
    for _ in range(3):
        start = perf_counter()
        interference_table(changes, ["curve", "step", "until"])
        took.append(perf_counter() - start)
    assert min(took) < 1


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
        subset = changes.filter(pl.col("step") == row["step"])
        tokens = [
            (r, x, name_of.get(token, "other") == row["group"])
            for r, token, x in subset.select("row", "token", "change").rows()
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
        for name, (value, *resampled) in expected.items():
            low, high = np.percentile(resampled, bootstrap_levels(15))
            upper_limit = 1 if name == "interference" else np.inf
            assert row[name] == pytest.approx(value)
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(
                (min(low, upper_limit), min(high, upper_limit))
            )
        assert row["tokens"] == sum(mine for *_, mine in tokens)


def test_groups_add_up_to_the_whole(changes):
    total = interference_table(changes)
    summed = (
        traded(changes, GROUPS)
        .group_by("step", maintain_order=True)
        .agg(pl.col("net", "gained", "lost", "tokens").sum())
    )
    np.testing.assert_allclose(summed["net"], total["mean_change"])
    np.testing.assert_allclose(summed["gained"] + summed["lost"], total["magnitude"])
    assert summed["tokens"].to_list() == total["tokens"].to_list()
    ungrouped = traded(changes, None)
    assert ungrouped["group"].to_list() == ["all", "all"]
    for name in ("", "_low", "_high"):
        np.testing.assert_allclose(ungrouped[f"net{name}"], total[f"mean_change{name}"])
        np.testing.assert_allclose(ungrouped[f"interference{name}"], total[f"interference{name}"])


def test_groups_by_place_and_by_token_agree(changes):
    by_place = changes.select("row", "position").unique().with_columns(group=pl.lit("odd"))
    with pytest.raises(UserError, match="row 0, position 1 has several groups"):
        traded(changes, pl.concat([by_place.sort("row", "position").head(1), by_place]))
    one_step = changes.filter(pl.col("step") == 8)
    placed = one_step.join(GROUPS, on="token").select("row", "position", "group")
    assert traded(one_step, placed).equals(traded(one_step, GROUPS))


def test_frequency_groups_keep_their_order(changes):
    blocks = TokenRows.from_rows([[token] * 2**token for token in range(12)])
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
    refuses("group not among them", traded, changes, pl.DataFrame({"token": [1]}))
    refuses("token not among them", traded, changes, pl.DataFrame({"row": [1], "group": ["x"]}))
    refuses("no token of the text has a group", traded, changes, pl.DataFrame({"token": [99], "group": ["x"]}))
    refuses("change not among them", traded, changes.drop("change"), GROUPS)


def test_bins_hold_each_change_once(changes):
    bins = change_bins(changes, ["step"])
    assert bins["low"].min() == -bins["high"].max() == -changes["change"].abs().max()
    for step, part in changes.group_by("step"):
        of_step, values = bins.filter(pl.col("step") == step[0]), part["change"].to_list()
        for row in of_step.iter_rows(named=True):
            is_last = row["high"] == bins["high"].max()
            inside = [v for v in values if row["low"] <= v and (v < row["high"] or is_last)]
            assert (row["tokens"], row["share"]) == (len(inside), pytest.approx(len(inside) / len(values)))
            assert row["side"] == ("fell" if row["high"] <= 0 else "rose")
        assert of_step["tokens"].sum() == len(values)


def test_winners_and_losers_equal_a_loop_over_tokens(changes):
    result = winners_and_losers(changes, n=3, min_count=5, by=["step"])
    expected = []
    for step in (8, 2):
        changes_of = {}
        for token, x in changes.filter(pl.col("step") == step).select("token", "change").iter_rows():
            changes_of.setdefault(token, []).append(x)
        means = sorted((np.mean(values), token) for token, values in changes_of.items() if len(values) >= 5)
        chosen = [("winner", m, t) for m, t in means[:3] if m < 0] + [
            ("loser", m, t) for m, t in means[:-4:-1] if m > 0
        ]
        stderr = {
            t: np.std(values, ddof=1) / len(values) ** 0.5 for t, values in changes_of.items() if len(values) >= 5
        }
        expected += [(step, k, t, m, stderr[t], len(changes_of[t])) for k, m, t in chosen]
    assert result.columns == ["step", "kind", "token", "change", "stderr", "count"]
    assert result.select("step", "kind", "token", "count").rows() == [(s, k, t, n) for s, k, t, _, _, n in expected]
    np.testing.assert_allclose(result.select("change", "stderr"), [each[3:5] for each in expected])


def test_rare_tokens_do_not_win(changes):
    one_step = changes.filter(pl.col("step") == 8)
    rare = one_step.head(3).with_columns(token=pl.lit(77, pl.Int32), change=pl.lit(-9.0))
    joined = pl.concat([one_step, rare])
    assert 77 not in winners_and_losers(joined)["token"]
    assert winners_and_losers(joined, min_count=3)["token"][0] == 77
    refuses("no token occurs 999 times", winners_and_losers, one_step, min_count=999)


def test_nobody_loses_where_all_gain(changes):
    result = winners_and_losers(changes.with_columns(change=-pl.col("change").abs()))
    assert result["kind"].unique().to_list() == ["winner"]
    assert result["change"].is_sorted()


def test_tokens_are_named_as_the_tokenizer_writes_them():
    frame = token_names(pl.DataFrame({"kind": ["winner"] * 2, "token": [6, 18], "change": [1.0, 2.0]}), wordpiece())
    assert frame.columns == ["kind", "token", "form", "change"]
    assert frame["form"].to_list() == ["dog", "##able"]

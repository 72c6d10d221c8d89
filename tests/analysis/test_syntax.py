"""The race of minimal pairs, against loops over pairs."""

import math
from fractions import Fraction
from statistics import fmean, variance

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmdynamics.analysis.syntax import ALL_PARADIGMS, accuracy_by_step, judged_right, leads_from, pair_race
from tests.analysis.frames import pairs_trace
from tests.conftest import refuses

SCORE = st.floats(-60, 0, allow_subnormal=False)


@st.composite
def traces(draw, fewest: int = 2) -> pl.DataFrame:
    """A trace of `PairAccuracy`: some paradigms of some pairs at some steps, in any order."""
    sizes = draw(st.lists(st.integers(fewest, 5), min_size=1, max_size=3))
    steps = draw(st.lists(st.integers(0, 4000), min_size=1, max_size=4, unique=True))
    kinds = [f"kind {i}" for i, size in enumerate(sizes) for _ in range(size)]
    rows = [(step, kind, pair, *draw(st.tuples(SCORE, SCORE))) for step in steps for pair, kind in enumerate(kinds)]
    frame = pl.DataFrame(draw(st.permutations(rows)), ["step", "paradigm", "pair", "good", "bad"], orient="row")
    return frame.with_columns(correct=pl.col("good") > pl.col("bad"))


def naive(trace: pl.DataFrame, step: int, score: str) -> tuple[float, float]:
    """Mean over paradigms of the mean over pairs, and how far its interval reaches, one pair at a time."""
    means, errors, freedom = [], [], []
    for paradigm in trace["paradigm"].unique():
        values = [
            row["good"] - row["bad"] if score == "difference" else row[score]
            for row in trace.iter_rows(named=True)
            if (row["step"], row["paradigm"]) == (step, paradigm)
        ]
        means.append(fmean(values))
        errors.append(variance(values) / len(values))
        freedom.append(len(values) - 1)
    total = sum(errors)
    if total == 0:
        return fmean(means), 0.0
    df = Fraction(total) ** 2 / sum(Fraction(error) ** 2 / f for error, f in zip(errors, freedom, strict=True))
    return fmean(means), stats.t.ppf(0.975, float(df)) * math.sqrt(total) / len(means)


@given(traces())
def test_equals_a_loop_over_pairs(trace):
    race = pair_race(trace)
    assert race["step"].to_list() == [step for step in sorted(trace["step"].unique()) for _ in range(3)]
    assert race["pairs"].unique().to_list() == [trace["pair"].n_unique()]
    for row in race.iter_rows(named=True):
        mean, reach = naive(trace, row["step"], row["score"])
        assert row["value"] == pytest.approx(mean)
        assert (row["low"], row["high"]) == pytest.approx((mean - reach, mean + reach), abs=1e-6)


@given(traces(fewest=1))
def test_the_difference_is_that_of_the_means_and_one_pair_has_no_interval(trace):
    for paradigm in (None, "kind 0"):
        race = pair_race(trace, paradigm)
        good, bad, lead = (race.filter(score=score) for score in ("good", "bad", "difference"))
        assert lead["value"].to_list() == pytest.approx((good["value"] - bad["value"]).to_list(), abs=1e-9)
        subset = trace if paradigm is None else trace.filter(paradigm=paradigm)
        one_pair = subset.group_by("paradigm").agg(pl.col("pair").n_unique())["pair"].min() == 1
        assert race["low"].is_null().all() == race["high"].is_null().all() == one_pair


@given(traces(fewest=1), st.booleans())
def test_the_lead_equals_a_loop_from_the_end(trace, single):
    race = pair_race(trace, "kind 0", 0) if single else pair_race(trace)
    step, count = None, 0
    lead = race.filter(score="difference").sort("step", descending=True)
    for row in lead.iter_rows(named=True):
        if not (row["value"] if row["low"] is None else row["low"]) > 0:
            break
        step, count = row["step"], count + 1
    assert leads_from(race, k=1) == step
    assert leads_from(race) == (step if count >= 3 or count == len(lead) else None)


def test_a_single_pair_is_its_own_numbers():
    trace = pairs_trace({"near": 0.6, "far": 0.5}, pairs=4, steps=[0, 8])
    race = pair_race(trace, "far", 5)
    pair_rows = trace.filter(pair=5).sort("step")
    for score in ("good", "bad"):
        assert race.filter(score=score)["value"].to_list() == pair_rows[score].to_list()
    assert race.select("low", "high").null_count().row(0) == (len(race),) * 2
    assert race.select("paradigm", "pair", "pairs").unique().rows() == [("far", 5, 1)]


def test_paradigms_count_alike_however_many_pairs_they_have():
    few = pl.DataFrame({"pair": [0, 1], "paradigm": "few", "good": [-1.0, -3.0], "bad": -4.0})
    many = pl.DataFrame({"pair": range(2, 42), "paradigm": "many", "good": -6.0, "bad": -4.0})
    race = pair_race(pl.concat([few, many]).with_columns(step=1))
    assert race["paradigm"].unique().to_list() == [ALL_PARADIGMS]
    assert race.filter(score="difference")["value"].item() == pytest.approx((2 + -2) / 2)
    assert pair_race(few.with_columns(step=1))["paradigm"].unique().to_list() == ["few"]


def test_the_interval_is_over_pairs_and_pairing_makes_it_narrow():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        length = rng.normal(-40, 10, 30)
        columns = {"step": 1, "paradigm": "near", "pair": range(30), "bad": length}
        race = pair_race(pl.DataFrame(columns | {"good": length + rng.normal(0.5, 1, 30)}))
        lead, good = (race.filter(score=score).row(0, named=True) for score in ("difference", "good"))
        covered.append(lead["low"] <= 0.5 <= lead["high"])
        assert lead["high"] - lead["low"] < (good["high"] - good["low"]) / 4
    assert 0.91 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("spread", [0.0, 1e-100])  # whose square squared is nothing
def test_hardly_any_spread_leaves_the_interval_finite(spread):
    columns = {"step": 1, "paradigm": "near", "pair": [0, 1], "good": [0.0, -spread], "bad": -1.0}
    race = pair_race(pl.DataFrame(columns))
    assert race.select("low", "high").to_numpy() == pytest.approx(race["value"].to_numpy()[:, None].repeat(2, 1))


def lead(low: list[float | None], value: list[float]) -> pl.DataFrame:
    columns = {"step": [0, 1, 2, 4], "score": "difference", "value": value, "low": low}
    return pl.DataFrame(columns, schema_overrides={"value": pl.Float64, "low": pl.Float64}, strict=False)


@pytest.mark.parametrize(
    ("low", "value", "since"),
    [
        ([-1, 0.1, 0.2, 0.3], [0, 1, 1, 1], 1),
        ([0.1, -0.1, 0.2, 0.3], [1, 1, 1, 1], None),  # ahead at the last two only
        ([0.1, 0.1, 0.2, 0.0], [1, 1, 1, 1], None),
        ([0.1, 0.1, 0.2, 0.3], [1, 1, 1, 1], 0),
        ([None] * 4, [-1, 1, -1, 1], None),
        ([None] * 4, [-1, 1, 1, 1], 1),
    ],
)
def test_it_leads_only_where_it_stays_ahead(low, value, since):
    assert leads_from(lead(low, value)) == since


def test_judged_right_is_accuracy_with_their_mean_in_front():
    """Of the mean's interval see `test_intervals.py`."""
    trace = pairs_trace({"near": 0.9, "far": 0.4}, pairs=50, steps=[1, 9])
    table, accuracy = judged_right(trace), accuracy_by_step(trace)
    assert table.filter(pl.col("paradigm") != ALL_PARADIGMS).equals(accuracy)
    assert table["paradigm"].to_list()[:2] == [ALL_PARADIGMS] * 2
    assert judged_right(pairs_trace({"near": 0.5}, steps=[1]))["paradigm"].to_list() == ["near"]


TRACE = pairs_trace({"near": 0.6, "far": 0.5}, pairs=3, steps=[0, 8])


@pytest.mark.parametrize(
    ("trace", "chosen", "message"),
    [
        (TRACE.drop("bad"), {}, "needs the columns"),
        (TRACE, {"paradigm": "nearr"}, "no paradigm 'nearr'; did you mean 'near'"),
        (TRACE, {"paradigm": "near", "pair": 5}, "no pair 5 in near"),
        (TRACE, {"pair": 77}, "no pair 77$"),
        (TRACE.with_columns(good=pl.lit(float("nan"))), {}, "no number at step 0"),
        (TRACE.head(-1), {}, "every checkpoint needs each pair once"),
        (TRACE.clear(), {}, "no rows"),
    ],
)
def test_what_cannot_be_raced_is_reported(trace, chosen, message):
    refuses(message, pair_race, trace, **chosen)

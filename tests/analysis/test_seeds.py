"""One group of seeds or two, against planted groups and simulated ones; divergences by group, and their changes."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.analysis.seeds import (
    MIN_SEEDS,
    changes,
    detectable,
    divergence_by_group,
    groups_by_step,
    one_or_two,
    peak_of_the_others,
    spans,
)
from tests.conftest import refuses

NOBODY = pl.DataFrame(schema={"seed": pl.Int64, "start": pl.Int64, "end": pl.Int64})


def planted(n, distance, seed, smaller=0.5):
    random = np.random.default_rng(seed)
    return random.normal(size=n) + distance * (np.arange(n) < round(smaller * n))


def test_the_cut_is_where_the_parts_differ_most():
    """Against every cut with three seeds or more on each side, one by one."""
    for seed in range(20):
        x = np.sort(planted(11, 2.0, seed))
        gains = {}
        for k in range(3, 9):
            within = ((x[:k] - x[:k].mean()) ** 2).sum() + ((x[k:] - x[k:].mean()) ** 2).sum()
            gains[k] = -within
        k = max(gains, key=gains.get)
        groups = one_or_two(np.random.default_rng(seed).permutation(x))
        assert groups.sizes == (k, 11 - k)
        assert (groups.low, groups.high) == pytest.approx((x[:k].mean(), x[k:].mean()))
        assert (groups.mean, groups.spread) == pytest.approx((x.mean(), x.std(ddof=1)))


def test_one_group_is_called_two_in_a_twentieth_of_all_cases():
    p = np.array([one_or_two(planted(16, 0, seed)).p for seed in range(200)])
    assert 0.01 <= (p < 0.05).mean() <= 0.1
    assert 0.4 <= (p < 0.5).mean() <= 0.6


@pytest.mark.parametrize(("n", "smaller"), [(10, 0.5), (16, 0.5), (16, 0.25)])
def test_what_is_said_to_be_found_is_found_and_less_is_not(n, smaller):
    distance = detectable(n, smaller)

    def found(d):
        return np.mean([one_or_two(planted(n, d, seed, smaller)).verdict == "two groups" for seed in range(150)])

    assert found(distance) >= 0.68
    assert found(distance - 1.5) < 0.68
    assert found(1.0) < 0.15


def test_several_tests_are_corrected_in_the_verdict_and_in_what_can_be_found():
    x = planted(16, 4.5, 3)
    one, three = one_or_two(x), one_or_two(x, tests=3)
    assert three.p == pytest.approx(3 * one.p)
    assert three.found > one.found == detectable(16)
    p = np.array([one_or_two(planted(16, 0, seed), tests=3).p for seed in range(300)])
    assert (p < 0.05).mean() <= 0.04
    assert p.max() == 1


def test_more_seeds_find_closer_groups():
    assert np.isinf(detectable(5))
    assert detectable(10) > detectable(16) > detectable(40)
    assert detectable(16, 0.25) >= detectable(16)


def test_few_seeds_or_equal_ones_are_undecided():
    for values in (planted(MIN_SEEDS - 1, 20, 0), [3.0] * 12, [1.0]):
        groups = one_or_two(values)
        assert (groups.p, groups.verdict, groups.low, groups.high) == (None, "undecided", None, None)
        assert groups.found == np.inf
    refuses("no numbers", one_or_two, [1.0, np.nan] * 5)
    refuses("0 values", one_or_two, [])


def test_a_few_outliers_are_no_group():
    assert one_or_two([*planted(14, 0, 1), 30.0, 31.0]).verdict == "undecided"


def test_onsets_at_few_checkpoints_are_no_groups_by_themselves():
    """Seeds of one normal group lie on three or four checkpoints, with gaps between them."""
    grid = np.log(64) + np.log(2) / 6 * np.arange(40)
    calls = []
    for seed in range(100):
        x = np.random.default_rng(seed).normal(6.0, 0.1, 16)
        calls.append(one_or_two(grid[np.searchsorted(grid, x)], grid).verdict == "two groups")
    assert np.mean(calls) <= 0.1
    two = grid[np.searchsorted(grid, 6.0 + 0.1 * planted(16, 8, 0))]
    assert one_or_two(two, grid).verdict == "two groups"


@given(st.integers(0, 100), st.floats(0.1, 10), st.floats(-5, 5))
def test_scale_and_place_do_not_matter(seed, scale, place):
    x = planted(9, 3, seed)
    assert one_or_two(x).p == pytest.approx(one_or_two(scale * x + place).p, abs=1e-3)


def tokens(steps=(0, 8), rows=10, seed=0):
    random = np.random.default_rng(seed)
    keys = [(step, row, token) for step in steps for row in range(rows) for token in (1, 1, 2)]
    frame = pl.DataFrame(keys, ["step", "row", "token"], orient="row")
    frame = frame.with_columns(loss=pl.Series(random.random(len(keys))), seeds=pl.Series(random.random(len(keys))))
    return frame.with_columns(half=pl.when(pl.col("step") > 0).then("seeds"))


def test_means_by_group_are_those_of_a_loop():
    frame = tokens()
    groups = pl.DataFrame({"token": [1, 2], "group": ["often", "rare"]})
    table = divergence_by_group(frame, groups)
    for step in (0, 8):
        for token, group in ((1, "often"), (2, "rare")):
            for name in ("loss", "seeds", "half"):
                values = [
                    row[name] for row in frame.iter_rows(named=True) if (row["step"], row["token"]) == (step, token)
                ]
                (row,) = table.filter(step=step, group=group, compared=name).to_dicts() or [None]
                if name == "half" and step == 0:
                    continue
                assert row["value"] == pytest.approx(np.mean(values))
                assert row["low"] < row["value"] < row["high"]
                assert row["tokens"] == len(values)
    assert table.filter(step=0, compared="half").is_empty(), "step 0 has no earlier step"
    every = divergence_by_group(frame)
    assert every["group"].unique().to_list() == ["all"]
    assert divergence_by_group(tokens(rows=3))["low"].null_count() == 6 - 1, "three rows of text have no interval"


STEPS = [0, 64, 128, 256, 512, 1024, 2048]


def pairs(bump, noise=0.02, n=5, slope=0.0):
    random = np.random.default_rng(0)
    rows = [
        (2 * i, step, 0.2 + bump * (step == 256) + slope * STEPS.index(step) + noise * random.normal())
        for i in range(n)
        for step in STEPS
    ]
    return pl.DataFrame(rows, ["seed", "step", "value"], orient="row")


def test_a_planted_rise_and_fall_is_found_and_a_flat_curve_is_undecided():
    found = {row["what"]: row for row in changes(pairs(0.5), NOBODY).to_dicts()}
    assert found["up to the peak"]["verdict"] == "rises"
    assert found["up to the peak"]["mean"] == pytest.approx(0.5, abs=0.05)
    assert found["after the peak"]["verdict"] == "falls"
    assert found["the last doubling"]["verdict"] == "undecided"
    assert found["from the first step to the last"]["verdict"] == "undecided"
    risen = changes(pairs(0.0, slope=0.1), NOBODY).filter(what="from the first step to the last").row(0, named=True)
    assert (risen["verdict"], risen["mean"]) == ("rises", pytest.approx(0.6, abs=0.05))
    windows = pl.DataFrame({"seed": [0, 2, 4, 6, 8], "start": [60] * 5, "end": [270] * 5})
    rising = changes(pairs(0.5), windows).filter(what="while UAS rises").row(0, named=True)
    assert (rising["verdict"], rising["n"]) == ("rises", 5)
    assert {row["verdict"] for row in changes(pairs(0.0), windows).to_dicts()} == {"undecided"}


def test_noise_has_no_peak_of_its_own():
    """The largest of a pair's own values would be above its neighbours; that of the other pairs is not."""
    calls = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        rows = [(2 * i, step, random.normal()) for i in range(6) for step in STEPS]
        table = changes(pl.DataFrame(rows, ["seed", "step", "value"], orient="row"), NOBODY)
        calls += [row["verdict"] != "undecided" for row in table.to_dicts() if "peak" in row["what"]]
    assert np.mean(calls) <= 0.06


def test_one_pair_has_no_peak_and_no_verdict():
    one = pairs(0.5, n=1)
    assert peak_of_the_others(one).is_empty()
    windows = pl.DataFrame({"seed": [0], "start": [64], "end": [256]})
    assert [what for what in spans(one, windows)["what"] if "peak" in what] == []
    for row in changes(one, windows).to_dicts():
        assert (row["verdict"], row["low"]) == ("undecided", None)


def test_accuracies_are_tested_while_they_rise():
    random = np.random.default_rng(0)
    rows = []
    for seed in range(16):
        early = seed < 8
        for step, value in ((0, 0.5), (8, 0.5), (16, 0.95 if early else 0.55), (32, 0.95), (64, 0.95)):
            rows.append((seed, step, value + 0.01 * random.normal()))
    table = groups_by_step(pl.DataFrame(rows, ["seed", "step", "value"], orient="row"))
    (row,) = table.to_dicts()
    assert row["step"] == 16
    assert (row["low"], row["high"]) == pytest.approx((0.55, 0.95), abs=0.02)
    assert row["p_hochberg"] < 0.01
    few = groups_by_step(pl.DataFrame(rows, ["seed", "step", "value"], orient="row").filter(pl.col("seed") < 4))
    assert few["p_hochberg"].null_count() == len(few)

"""Learning times of tokens: planted times, a loop over checkpoints, and worlds in which each verdict must fall."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from lmdynamics.analysis.learning_times import (
    SUDDEN,
    TOGETHER,
    UNDECIDED,
    fall_density,
    falling,
    kinds_of_tokens,
    learning_tests,
    learning_times,
    time_correlation,
    token_paths,
    with_verdicts,
)
from tests.analysis.frames import CHECKPOINTS, sigmoids, token_curves
from tests.conftest import refuses

TOKENS = 400


def draw(seed: int = 0, lowest: float = 24, highest: float = 700) -> tuple[np.ndarray, np.ndarray]:
    """Times that are spread evenly in log2(step), and falls."""
    rng = np.random.default_rng(seed)
    return 2 ** rng.uniform(np.log2(lowest), np.log2(highest), TOKENS), rng.uniform(2, 7, TOKENS)


def verdicts_of(curves) -> dict[tuple[str, str], dict]:
    table = with_verdicts(learning_tests(token_paths(token_curves(curves))))
    return {(row["measure"], row["control"]): row for row in table.to_dicts()}


def loop_time(losses) -> float:
    """The step at which the isotonic fit of one token's losses has lost half of its fall, checkpoint by checkpoint."""
    fitted = isotonic_regression(losses, increasing=False).x
    half = (losses[0] + np.mean(losses[-3:])) / 2
    for k in range(1, len(losses)):
        if fitted[k] <= half:
            before, after = (np.log2(max(CHECKPOINTS[i], 0.5)) for i in (k - 1, k))
            share = (fitted[k - 1] - half) / (fitted[k - 1] - fitted[k])
            return 2 ** (before + share * (after - before))
    raise AssertionError("the fit ends below the half")


@given(st.lists(st.lists(st.floats(0, 12), min_size=7, max_size=7), min_size=1, max_size=5))
def test_the_falling_curve_is_the_isotonic_regression(losses):
    fitted = falling(np.array(losses))
    for own, row in zip(fitted, losses, strict=True):
        assert own == pytest.approx(isotonic_regression(row, increasing=False).x, abs=1e-9)


def test_times_equal_a_loop_over_tokens():
    times, falls = draw()
    curves = sigmoids(times, np.full(TOKENS, 1.5), falls, noise=0.4)
    table = learning_times(token_paths(token_curves(curves)))
    learnt = table.with_row_index().drop_nulls("step")
    assert len(learnt) > 0.9 * TOKENS
    for index, step in learnt.select("index", "step").iter_rows():
        assert step == pytest.approx(loop_time(curves[index]))
    assert table["fall"].to_numpy() == pytest.approx(curves[:, 0] - curves[:, -3:].mean(1))
    assert (
        table.filter(pl.col("kind") != "learnt").select("step", "low", "high", "width").null_count().row(0)
        == (TOKENS - len(learnt),) * 4
    )


@pytest.mark.parametrize("width", [0.3, 1.5, 3.0])
def test_planted_times_are_within_their_intervals(width):
    times, falls = draw()
    table = learning_times(token_paths(token_curves(sigmoids(times, np.full(TOKENS, width), falls, noise=0.3))))
    clean = sigmoids(times, np.full(TOKENS, width), falls)  # within the run, a late fall is not complete
    table = table.with_columns(truth=pl.Series([loop_time(losses) for losses in clean])).drop_nulls("step")
    assert table.select(pl.col("truth").is_between("low", "high").mean()).item() >= 0.95
    assert table.select((pl.col("step") / pl.col("truth")).log(2).abs().median()).item() < 0.3
    assert table["width"].median() == pytest.approx(width, abs=0.5)
    without_noise = learning_times(token_paths(token_curves(sigmoids(times, np.full(TOKENS, 0.3), falls))))
    errors = np.abs(np.log2(without_noise["step"].to_numpy() / times))
    assert errors.max() < 1.01  # no more than the time between two checkpoints


def test_tokens_that_do_not_fall_are_counted():
    flat, rising = np.full(19, 8.0), np.linspace(8, 11, 19)
    again = np.concatenate([np.linspace(8, 2, 10), np.linspace(2.5, 7.5, 9)])
    curves = np.stack([*[flat] * 3, *[rising] * 5, *[again] * 2, *sigmoids([64] * 10, [1.0] * 10, [5.0] * 10)])
    paths = token_paths(token_curves(curves, per_row=2))
    counts = kinds_of_tokens(paths)
    assert counts.select("kind", "tokens").rows() == [("learnt", 10), ("not learnt", 8), ("unlearnt again", 2)]
    assert counts["share"].sum() == pytest.approx(1)
    assert counts["share"][1] < 0 < counts["share"][2]
    table = learning_times(paths)
    assert table["kind"].to_list() == ["not learnt"] * 8 + ["unlearnt again"] * 2 + ["learnt"] * 10
    density = fall_density(paths)  # what is not learnt is in the loss curve and not in the times
    falls = density.with_columns(
        sum=pl.col("fall") * (pl.col("until").log(2) - pl.col("step").cast(pl.Float64).clip(0.5).log(2))
    )
    by_account = dict(falls.group_by("account").agg(pl.col("sum").sum()).iter_rows())
    assert by_account["mean loss"] == pytest.approx((curves[:, 0] - curves[:, -1]).mean())
    assert by_account["times of tokens"] == pytest.approx(table.filter(kind="learnt")["fall"].sum() / len(curves))


def test_tokens_that_fall_together_have_no_times_of_their_own():
    """The null: each token is the mean curve, scaled, with noise. A verdict at 95 % may be wrong now and then."""
    wrong = 0
    for seed in range(4):
        _, falls = draw(seed)
        noise = 0.4 * np.random.default_rng(10 + seed).normal(size=(TOKENS, len(CHECKPOINTS)))
        results = verdicts_of(8 - falls[:, None] * (8 - sigmoids([100.0], [3.0], [1.0])) + noise)
        for measure in ("spread", "width", "overlap"):
            row = results[measure, TOGETHER]
            assert row["value"] == pytest.approx(row["expected"], rel=0.3)
            wrong += row["verdict"] != UNDECIDED
        assert results["width", SUDDEN]["verdict"] == "a token's fall is not sudden"
    assert wrong <= 2  # of 12


def test_tokens_that_fall_suddenly_at_their_own_times():
    """The other account in its purest form: the mean curve is as broad as before."""
    times, falls = draw()
    results = verdicts_of(sigmoids(times, np.full(TOKENS, 0.05), falls, noise=0.3))
    assert results["spread", TOGETHER]["verdict"] == "tokens have times of their own"
    assert results["spread", TOGETHER]["value"] == pytest.approx(np.log2(700 / 24) / 2, abs=0.3)
    assert results["width", TOGETHER]["verdict"] == "a token falls faster than the mean"
    assert results["width", SUDDEN]["verdict"] in (UNDECIDED, "a token's fall is as sudden as a step")
    assert results["overlap", TOGETHER]["verdict"] == "own times explain more than one time"
    assert results["overlap", TOGETHER]["value"] > 0.9
    assert results["time", "none"]["verdict"] == ""


def test_broad_falls_at_their_own_times_are_between_both():
    times, falls = draw()
    results = verdicts_of(sigmoids(times, np.full(TOKENS, 2.0), falls, noise=0.3))
    assert results["spread", TOGETHER]["difference_low"] > 0
    assert results["width", TOGETHER]["difference_high"] < 0
    assert results["width", SUDDEN]["difference_low"] > 0
    assert results["overlap, smeared", TOGETHER]["value"] > max(0.9, results["overlap", TOGETHER]["value"])


def test_times_correlate_between_runs_only_for_the_same_tokens():
    times, falls = draw()
    runs = [
        learning_times(token_paths(token_curves(sigmoids(times, np.full(TOKENS, 1.0), falls, noise=0.3, seed=seed))))
        for seed in range(3)
    ]
    both = pl.concat(table.with_columns(run=pl.lit(seed)) for seed, table in enumerate(runs))
    table = time_correlation(both)
    assert table["compared"].to_list() == ["same token", "same word elsewhere", "any token"]
    same, elsewhere, shuffled = table.to_dicts()
    pair = runs[0].join(runs[1], on=["row", "position"], suffix="_other").drop_nulls(["step", "step_other"])
    first = time_correlation(both.filter(pl.col("run") < 2)).row(0, named=True)
    assert first["correlation"] == pytest.approx(np.corrcoef(np.log(pair["step"]), np.log(pair["step_other"]))[0, 1])
    assert (first["tokens"], first["pairs"], same["pairs"]) == (len(pair), 1, 3)
    assert 0.9 < same["correlation_low"] < same["correlation"] < same["correlation_high"]
    for control in (elsewhere, shuffled):  # words are planted without a time of their own
        assert control["correlation_low"] < 0 < control["correlation_high"]
    alone = time_correlation(both.filter(run=0))
    assert (len(alone), alone.columns) == (0, table.columns)


def test_few_rows_of_text_have_no_interval_and_no_verdict():
    times, falls = draw()
    curves = sigmoids(times, np.full(TOKENS, 1.0), falls, noise=0.3)[:60]
    table = with_verdicts(learning_tests(token_paths(token_curves(curves))))
    assert table["value_low"].null_count() == len(table)
    assert set(table["verdict"]) == {"", UNDECIDED}


def test_text_of_which_nothing_is_learnt_has_no_numbers():
    paths = token_paths(token_curves(np.full((160, 19), 8.0)))
    table = with_verdicts(learning_tests(paths))
    assert table.filter(pl.col("measure") == "spread")["value"].to_list() == [None]
    assert set(table["verdict"]) == {"", UNDECIDED}
    assert fall_density(paths)["fall"].abs().max() == 0
    assert kinds_of_tokens(paths)["share"].null_count() == 3


def test_what_cannot_be_measured_is_refused():
    losses = token_curves(sigmoids([64] * 40, [1.0] * 40, [5.0] * 40))
    refuses("at least 4 checkpoints, these losses have 1", token_paths, losses.filter(step=64))
    refuses("token not among them", token_paths, losses.drop("token"))
    refuses("other tokens", token_paths, losses.filter((pl.col("step") > 0) | (pl.col("row") > 0)))
    refuses("learning times: 'loss' has no number", token_paths, losses.with_columns(loss=pl.lit(np.nan)))

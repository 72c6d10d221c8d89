"""Learning times of a ladder: means over the seeds of each size, and where falls are counted from."""

import polars as pl
import pytest

from lmdynamics.analysis.learning_times import fall_density, learning_tests, token_paths
from lmdynamics.analysis.statistics import mean_over_seeds
from lmdynamics.experiments.learning import learning, learning_from
from tests.conftest import refuses
from tests.explorers.made import ladder_tokens

TOKENS = ladder_tokens()


def one_run(size: str, seed: int):
    return token_paths(TOKENS.filter(condition=size, seed=seed).rename({"text": "token"}))


def test_a_size_with_two_runs_has_means_over_seeds_and_another_its_own_intervals():
    result = learning(TOKENS)
    per_run = pl.concat(learning_tests(one_run("small", seed)).with_columns(seed=pl.lit(seed)) for seed in (0, 1))
    own = mean_over_seeds(per_run, ["measure", "control"], "value")
    means = result.tests.filter(size="small")
    assert means["value"].to_list()[1:] == pytest.approx(own["mean"].to_list()[1:])
    assert means["value_high"].to_list()[1:] == pytest.approx(own["high"].to_list()[1:])
    steps = per_run.filter(measure="time")["value"]
    assert means["value"][0] == pytest.approx((steps[0] * steps[1]) ** 0.5)  # steps are averaged on a logarithmic scale
    alone = result.density.filter(size="large").drop("size", "runs")
    assert alone.equals(fall_density(one_run("large", 0)).select(alone.columns))
    assert dict(result.tests.select("size", "runs").unique().iter_rows()) == {"small": 2, "large": 1}
    assert result.correlation["size"].unique().to_list() == ["small"]
    assert result.kinds.filter(kind="learnt")["tokens"].to_list() == [48] * 3


def test_falls_after_the_unigram_phase_begin_where_every_run_of_a_size_has_left_it():
    fits = pl.DataFrame({"size": ["small", "small", "large"], "ends": [12, 40, None]})
    results = learning_from(TOKENS, fits)
    assert list(results) == ["from the start", "after the unigram phase"]
    later = results["after the unigram phase"].density
    assert later["size"].unique().to_list() == ["small"]  # the other never leaves it
    assert later["step"].min() == 45
    assert results["from the start"].density["step"].min() == 0


def test_too_few_checkpoints_are_left_out_or_refused():
    fits = pl.DataFrame({"size": ["small", "large"], "ends": [1448, 1448]})
    assert list(learning_from(TOKENS, fits)) == ["from the start"]
    assert learning_from(TOKENS.filter(pl.col("step") < 4), fits) == {}
    refuses("at least 4 checkpoints", learning, TOKENS.filter(pl.col("step") < 4))
    refuses("there are no rows", learning, TOKENS.clear())


def test_published_suites_have_no_seed():
    suite = TOKENS.filter(condition="large").with_columns(seed=pl.lit(None, pl.Int64))
    result = learning(suite)
    assert result.times["seed"].null_count() == 48
    assert result.tests["runs"].unique().to_list() == [1]

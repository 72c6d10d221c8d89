"""The explorer of learning times: which tokens it lists where, their context, and what it refuses."""

import polars as pl

from lmdynamics.explorers.learning_times import LearningTimesExplorer
from tests.conftest import refuses
from tests.explorers.made import WORDS, learning_results


def test_each_token_is_listed_at_its_time_and_only_there():
    explorer = LearningTimesExplorer(learning_results(), size="small")
    learnt = explorer.learnt
    assert len(learnt) == 48
    for step, place in zip(explorer.choices("step", explorer.now), explorer.moving().places, strict=True):
        until = explorer.results["from the start"].density.filter(size="small", step=step)["until"][0]
        there = learnt.filter(pl.col("step") >= step, pl.col("step") < until)
        assert place.name == f"{step:,} → {until:,}"
        assert place.details.count("<tr") == (min(10, len(there)) + 1 if len(there) else 0)
        assert (f"Tokens: {len(there)} learnt" in place.details) == (len(there) > 0)
    tables = explorer.tables()
    assert len(tables["learnt_tokens"]) == 48


def test_tokens_stand_in_their_context_with_their_times_in_other_runs():
    explorer = LearningTimesExplorer(learning_results(), size="small")
    second = explorer.learnt.filter(row=0, position=3).row(0, named=True)
    assert second["context"] == "the <b>dog</b> ‹runs› near &amp; house"
    other = explorer.results["from the start"].times.filter(size="small", seed=1, row=0, position=3)["step"]
    assert second["other_runs"] == other.to_list()
    assert LearningTimesExplorer(learning_results(), size="large").learnt["other_runs"].null_count() == 48
    details = "".join(place.details for place in explorer.moving().places)
    assert "&lt;b&gt;dog&lt;/b&gt;" in details
    assert "&amp;amp;" in details
    assert not any(word in details for word in WORDS if "<" in word)


def test_the_slider_begins_where_most_is_learnt():
    explorer = LearningTimesExplorer(learning_results())
    falls = explorer.results["from the start"].density.filter(size="small", account="times of tokens")
    assert explorer.now["step"] == falls.sort("fall")["step"][-1]
    assert list(explorer.choices("counted", {})) == ["from the start", "after the unigram phase"]


def test_without_results_there_is_nothing_to_explore():
    refuses("measure at four checkpoints or more", LearningTimesExplorer, {})
    refuses("there is no size 'larg'; did you mean 'large'", LearningTimesExplorer, learning_results(), size="larg")

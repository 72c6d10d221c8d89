"""The minimal-pair explorer: its words and tables against the races, pairs of many, sentences are text."""

import polars as pl
import pytest

from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import ALL_PARADIGMS, judged_right, pair_race
from lmdynamics.corpora.minimal_pairs import SCHEMA, MinimalPairs
from lmdynamics.errors import UserError
from lmdynamics.explorers.explorer import ALL
from lmdynamics.explorers.pairs import LISTED, MEAN, PairExplorer, mark_differences
from tests.analysis.frames import pairs_trace
from tests.charts.specs import mark_layers, rows_of
from tests.explorers.made import offered

STEPS = [0, 1, 2, 4, 8, 16]
CURVES = {"near_verb": [0.5, 0.5, 0.6, 0.8, 0.9, 1.0], "far": 0.6}
TRACE = pairs_trace(CURVES, pairs=20, steps=STEPS)
ONSET = Onset("capabilities", 4, 2, 8, None, None, None, None, "found")


def pairs_of(trace: pl.DataFrame, end: str = ".") -> MinimalPairs:
    """Texts for the pairs of a trace; the good one ends in -s."""
    frame = trace.select("paradigm", "pair").unique(maintain_order=True)
    frame = frame.with_columns(
        good=pl.format("the dog {} sleeps {}", "pair", pl.lit(end)),
        bad=pl.format("the dog {} sleep {}", "pair", pl.lit(end)),
    )
    return MinimalPairs("some pairs", frame.cast(SCHEMA), True)


PAIRS = pairs_of(TRACE)


@pytest.fixture
def explorer():
    return PairExplorer(TRACE, PAIRS)


def place(explorer, step):
    return explorer.moving().places[list(explorer.choices("step", explorer.now)).index(step)]


def test_it_starts_at_the_last_step_with_the_average_over_paradigms(explorer):
    assert explorer.state() == {"run": "the run", "paradigm": ALL, "pair": MEAN, "step": 16}
    assert explorer.rows.equals(pair_race(TRACE))
    row = judged_right(TRACE).filter(step=4, paradigm=ALL_PARADIGMS).row(0, named=True)
    lead = pair_race(TRACE).filter(step=4, score="difference").row(0, named=True)
    text = place(explorer, 4).text
    assert f"{row['accuracy']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of 40 pairs (mean over 2 paradigms)" in text
    assert f"difference {lead['value']:+.2f} [{lead['low']:+.2f}".replace("-", "−") in text
    assert ">for example<" in place(explorer, 4).details


def test_a_paradigm_is_ringed_and_one_pair_is_reported_with_both_sentences_and_no_interval(explorer):
    explorer.restore({"paradigm": "far", "pair": 27, "step": 2})
    assert explorer.rows.equals(pair_race(TRACE, "far", 27))
    race, dots = explorer.moving().chart.to_dict()["hconcat"]
    assert mark_layers(race, "area") == []
    assert "27" in " ".join(race["title"]["subtitle"])
    assert mark_layers(dots, "point")[1]["transform"][-1]["filter"]["equal"] == "far"
    text = place(explorer, 2).text
    row = TRACE.filter(pair=27, step=2).row(0, named=True)
    expected = f"“the dog 27 sleeps .” {row['good']:.1f} nats, “the dog 27 sleep .” {row['bad']:.1f} nats"
    assert expected.replace("-", "−") in text
    assert f"{'right' if row['correct'] else 'wrong'} (one pair, no interval)" in text
    assert "[" not in text


def test_the_page_carries_the_chosen_race_only(explorer):
    explorer.restore({"paradigm": "far"})
    spec = explorer.moving().chart.to_dict()
    rows = [row for line in mark_layers(spec, "line") for row in rows_of(spec, line)]
    assert {row["paradigm"] for row in rows} == {"far"}
    assert len(rows) == 3 * len(STEPS)


def test_a_pair_is_offered_by_its_good_sentence_and_not_all_of_many():
    trace = pairs_trace({"only": 0.5}, pairs=80, steps=STEPS)
    explorer = PairExplorer(trace, pairs_of(trace, end="and " * 30))
    explorer.widget  # noqa: B018
    labels, numbers = zip(*explorer.lists["pair"].options, strict=True)
    assert numbers == (MEAN, *range(LISTED))
    assert labels[0] == "all 80 (mean)"
    assert labels[8].startswith("the dog 7 sleeps and")
    assert max(map(len, labels)) < 75
    explorer.restore({"pair": 77})
    assert explorer.lists["pair"].options[-1][1] == explorer.lists["pair"].value == 77
    assert "the dog 77" in place(explorer, 4).details


def test_one_paradigm_has_no_list_and_no_second_view():
    trace = TRACE.filter(paradigm="far")
    explorer = PairExplorer(trace, PAIRS, step=4)
    assert list(explorer.tables()) == ["pair_race"]
    assert "hconcat" not in explorer.moving().chart.to_dict()
    assert explorer.state()["paradigm"] == "far"
    assert offered(explorer) == ["pair"]
    row = judged_right(trace).filter(step=4).row(0, named=True)
    expected = f"Judged right: {row['accuracy']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of 20 pairs."
    assert expected in place(explorer, 4).text


def test_runs_have_steps_and_onsets_of_their_own():
    other_trace = pairs_trace({"near_verb": 0.5, "far": 0.9}, pairs=20, steps=[0, 8, 64], seed=1)
    explorer = PairExplorer({"a": TRACE, "b": other_trace}, PAIRS, run="a", step=4, onset=ONSET)
    title = explorer.moving().chart.to_dict()["hconcat"][0]["title"]
    assert "run a" in str(title)
    assert "capabilities onset" in str(title)
    explorer.restore({"run": "b"})
    assert explorer.now["step"] == 8
    assert explorer.rows.equals(pair_race(other_trace))
    assert place(explorer, 8).text.startswith("b, step 8: ")
    assert "onset" not in str(explorer.moving().chart.to_dict()["hconcat"][0]["title"])
    assert PairExplorer({"a": TRACE, "b": other_trace}, PAIRS, run="b", onset={"b": ONSET}).onsets == {"b": ONSET}


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("the dog sleeps .", "the dog sleep .", (["sleeps"], ["sleep"])),
        ("no one has ever left", "one has ever left", (["no"], [])),
        ("who saw what", "what saw who", (["saw what"], ["what saw"])),
        ("the same", "the same", ([], [])),
        ("<b>x</b> $y$ 1", "<i> $y$ 2", (["&lt;b&gt;x&lt;/b&gt;", "1"], ["&lt;i&gt;", "2"])),
    ],
)
def test_words_that_differ_are_marked(good, bad, words):
    for html, expected in zip(mark_differences(good, bad), words, strict=True):
        parts = html.split("</b>")
        assert [part.partition("underline'>")[2] for part in parts[:-1]] == expected


def test_sentences_and_names_are_text_never_html():
    trace = TRACE.filter(paradigm="far").with_columns(paradigm=pl.lit("<img src=x>"))
    under = PairExplorer({"<i>a": trace, "b": trace}, pairs_of(trace, end="<script>$x$"), pair=25).moving().places[0]
    assert "<script>" not in under.details
    assert "&lt;script&gt;$x$" in under.details
    assert "mathjax_ignore tex2jax_ignore" in under.details
    assert under.details.count("<b ") == 2


@pytest.mark.parametrize(
    ("trace", "options", "says"),
    [
        (TRACE.drop("good"), {}, "needs the columns"),
        (TRACE.clear(), {}, "no rows"),
        ({}, {}, "no runs"),
        (TRACE.with_columns(pl.col("pair") + 1), {}, "2 of 40 judged pairs are not among some pairs"),
        ({"a": TRACE, "b": TRACE.filter(paradigm="far")}, {}, "b was judged on other pairs than a"),
        (TRACE.with_columns(bad=pl.lit(float("nan"))), {}, "no number at step 0"),
        (TRACE, {"step": 3}, "step 3 was not measured; measured: 0, 1"),
        (TRACE, {"run": "b"}, "no run 'b'"),
        (TRACE, {"paradigm": "near"}, "no paradigm 'near'"),
        (TRACE, {"pair": 99}, "no pair 99 in this trace"),
        (TRACE, {"paradigm": "far", "pair": 3}, "no pair 3 in far"),
    ],
)
def test_what_cannot_be_explored_is_reported(trace, options, says):
    with pytest.raises(UserError, match=says):
        PairExplorer(trace, PAIRS, **options)

"""The minimal-pair explorer: one slider moves both views, pickers redraw them, sentences are text."""

import polars as pl
import pytest

from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import WHOLE, judged_right, pair_race
from lmdynamics.corpora.gold import SCHEMA, MinimalPairs
from lmdynamics.errors import UserError
from lmdynamics.explorers.pairs import ALL, EVERY, OFFERED, PairExplorer, marked
from tests.analysis.frames import pairs_trace
from tests.charts.specs import found, rows_of

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


def params(explorer) -> list[dict]:
    return [view._params for view in explorer.views.widget.children]


def test_it_starts_at_the_last_step_with_the_average_over_paradigms(explorer):
    assert explorer.state() == {"run": "the run", "paradigm": ALL, "pair": EVERY, "step": 16}
    assert explorer.rows.equals(pair_race(TRACE))
    assert explorer.paradigm.options[0][1] == ALL
    assert explorer.pair.disabled
    row = judged_right(TRACE).filter(step=16, paradigm=WHOLE).row(0, named=True)
    assert f"{row['accuracy']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of 40 pairs" in explorer.said.value
    assert "mean over 2 paradigms" in explorer.said.value


def test_the_slider_moves_both_views_and_redraws_none(explorer):
    specs = [view.spec for view in explorer.views.widget.children]
    explorer.checkpoint.slider.value = 4
    assert params(explorer) == [{"pairs_step": 4.0}] * 2
    assert all(view.spec is spec for view, spec in zip(explorer.views.widget.children, specs, strict=True))
    lead = pair_race(TRACE).filter(step=4, score="difference").row(0, named=True)
    assert f"difference {lead['value']:+.2f} [{lead['low']:+.2f}".replace("-", "−") in explorer.said.value


def test_a_click_on_the_chart_goes_to_the_checkpoint_there(explorer):
    view = explorer.views.widget.children[0]
    view._vl_selections = {"jump_1": {"value": {"x": [3.6]}, "store": []}}
    assert explorer.checkpoint.step == 4
    assert params(explorer) == [{"pairs_step": 4.0}] * 2


def test_pickers_redraw_and_a_paradigm_begins_with_all_of_its_pairs(explorer):
    explorer.paradigm.value = "far"
    assert explorer.rows.equals(pair_race(TRACE, "far"))
    explorer.pair.value = 27
    assert explorer.rows.equals(pair_race(TRACE, "far", 27))
    view, dots = explorer.views.widget.children
    assert found(view.spec, "area") == []
    assert "27" in " ".join(view.spec["title"]["subtitle"])
    assert found(dots.spec, "point")[1]["transform"][-1]["filter"]["equal"] == "far"
    explorer.paradigm.value = "near_verb"
    assert explorer.pair.value == EVERY
    assert explorer.rows.equals(pair_race(TRACE, "near_verb"))
    assert explorer.checkpoint.step == 16


def test_one_pair_is_told_with_both_sentences_and_no_interval(explorer):
    explorer.restore({"paradigm": "far", "pair": 27, "step": 2})
    said = explorer.linked().places[2].said
    row = TRACE.filter(pair=27, step=2).row(0, named=True)
    assert (
        f"“the dog 27 sleeps .” {row['good']:.1f} nats, “the dog 27 sleep .” {row['bad']:.1f} nats".replace("-", "−")
        in said
    )
    assert f"{'right' if row['correct'] else 'wrong'} (one pair, no interval)" in said
    assert "[" not in said


def test_a_pair_is_offered_by_its_good_sentence_and_not_all_of_many():
    trace = pairs_trace({"only": 0.5}, pairs=80, steps=STEPS)
    explorer = PairExplorer(trace, pairs_of(trace, end="and " * 30))
    labels, numbers = zip(*explorer.pair.options, strict=True)
    assert numbers == (EVERY, *range(OFFERED))
    assert labels[0] == "all 80 (mean)"
    assert labels[8].startswith("the dog 7 sleeps and")
    assert max(map(len, labels)) < 75
    explorer.restore({"pair": 77})
    assert explorer.pair.options[-1][1] == explorer.pair.value == 77
    assert "the dog 77" in explorer.text.value


def test_one_paradigm_has_no_picker_and_no_second_view(tmp_path):
    trace = TRACE.filter(paradigm="far")
    explorer = PairExplorer(trace, PAIRS, step=4)
    assert list(explorer.stills()) == list(explorer.tables()) == ["pair_race"]
    assert explorer.state()["paradigm"] == "far"
    assert len(explorer.widget.children[0].children) == 1
    assert not explorer.pair.disabled
    row = judged_right(trace).filter(step=4).row(0, named=True)
    assert (
        f"Judged right: {row['accuracy']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of 20 pairs." in explorer.said.value
    )


def test_runs_have_steps_and_onsets_of_their_own():
    other = pairs_trace({"near_verb": 0.5, "far": 0.9}, pairs=20, steps=[0, 8, 64], seed=1)
    explorer = PairExplorer({"a": TRACE, "b": other}, PAIRS, run="a", step=4, onset=ONSET)
    assert "capabilities onset" in str(explorer.views.widget.children[0].spec["title"])
    explorer.run.value = "b"
    assert explorer.checkpoint.steps == [0, 8, 64]
    assert explorer.checkpoint.step == 8
    assert explorer.rows.equals(pair_race(other))
    assert params(explorer) == [{"pairs_step": 8.0}] * 2
    assert explorer.said.value.count("b, step 8: ") == 1
    title = str(explorer.views.widget.children[0].spec["title"])
    assert "run b" in title
    assert "onset" not in title
    assert explorer.restore({"run": "a"}).checkpoint.step == 8
    assert PairExplorer({"a": TRACE, "b": other}, PAIRS, run="b", onset={"b": ONSET}).onsets == {"b": ONSET}


def test_the_page_carries_the_chosen_race_only(explorer):
    explorer.restore({"paradigm": "far"})
    spec = explorer.linked().views["pair_race"].to_dict()
    rows = [row for line in found(spec, "line") for row in rows_of(spec, line)]
    assert {row["paradigm"] for row in rows} == {"far"}
    assert len(rows) == 3 * len(STEPS)
    assert [place.at for place in explorer.linked().places] == STEPS
    assert explorer.linked().places[-1].under == explorer.text.value


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
    for html, expected in zip(marked(good, bad), words, strict=True):
        parts = html.split("</b>")
        assert [part.partition("underline'>")[2] for part in parts[:-1]] == expected


def test_sentences_and_names_are_text_never_html():
    trace = TRACE.filter(paradigm="far").with_columns(paradigm=pl.lit("<img src=x>"))
    pairs = pairs_of(trace, end="<script>$x$")
    explorer = PairExplorer({"<i>a": trace, "b": trace}, pairs, pair=25)
    for shown in (explorer.said.value, explorer.text.value):
        assert "<script>" not in shown
        assert "<i>" not in shown
        assert "&lt;script&gt;$x$" in shown
        assert "mathjax_ignore tex2jax_ignore" in shown
    assert explorer.text.value.count("<b ") == 2


def test_the_still_explorer_is_two_figures(explorer, tmp_path):
    explorer.show(str(tmp_path), interactive=False)
    assert {path.name for path in tmp_path.iterdir()} == {"pair_race.svg", "pair_paradigms.svg"}
    assert "step 16" in (tmp_path / "pair_paradigms.svg").read_text(encoding="utf-8")


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
def test_what_cannot_be_explored_is_said(trace, options, says):
    with pytest.raises(UserError, match=says):
        PairExplorer(trace, PAIRS, **options)

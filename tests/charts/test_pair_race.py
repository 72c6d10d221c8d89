"""The race of minimal pairs as figures: what is drawn, what the title claims, what follows the cursor."""

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import accuracy_by_step, judged_right, pair_race
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.pair_race import pairs_at_step, paradigm_label
from lmdynamics.errors import UserError
from tests.analysis.frames import STEPS, pairs_trace, sigmoid
from tests.charts.specs import at_step, mark_layers, rows_of, spec_and_svg, title_text

TRACE = pairs_trace({"near_verb": sigmoid(STEPS, 0.5, 1.0, 100), "far": sigmoid(STEPS, 0.5, 0.6, 900)}, pairs=40)
ONSET = Onset("capabilities", 125, 100, 156, None, None, None, None, "found")
CURSOR = Cursor(STEPS)
HERE = STEPS[20]


def followed(chart):
    return at_step(chart, CURSOR, HERE)


EVERY = {
    "average": lambda: charts.pair_race(pair_race(TRACE)),
    "paradigm": lambda: charts.pair_race(pair_race(TRACE, "near_verb"), step=64, onset=ONSET, caption="run a"),
    "pair": lambda: followed(charts.pair_race(pair_race(TRACE, "far", 41), CURSOR, caption="good: “a”\nbad: “b”")),
    "paradigms": lambda: followed(pairs_at_step(accuracy_by_step(TRACE), CURSOR, "far")),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_draws_and_says_what_it_shows(name):
    _, svg = spec_and_svg(EVERY[name]())
    assert "nats" in svg or name == "paradigms"


def test_two_lines_above_and_their_difference_below_are_as_given():
    race = pair_race(TRACE, "near_verb")
    spec = charts.pair_race(race).to_dict()
    heights = [
        [row["value"] for row in rows_of(spec, line)]
        for panel in spec["vconcat"]
        for line in mark_layers(panel, "line")
    ]
    assert heights == [race.filter(score=score)["value"].to_list() for score in ("good", "bad", "difference")]
    marks = [line["mark"] for line in mark_layers(spec, "line")]
    assert len({(mark["color"], str(mark["strokeDash"])) for mark in marks}) == 3
    assert marks[0]["strokeDash"] != marks[1]["strokeDash"]
    zero = [rule for rule in mark_layers(spec["vconcat"][1], "rule") if rows_of(spec, rule) == [{"value": 0}]]
    assert len(zero) == 1


def test_bands_are_those_of_the_frame_and_one_pair_has_none():
    race = pair_race(TRACE)
    spec = charts.pair_race(race).to_dict()
    bands = [[(row["low"], row["high"]) for row in rows_of(spec, area)] for area in mark_layers(spec, "area")]
    assert bands == [race.filter(score=score).select("low", "high").rows() for score in ("good", "bad", "difference")]
    assert "bands: 95 % over 80 pairs" in " ".join(spec["title"]["subtitle"])
    one_pair = EVERY["pair"]().to_dict()
    assert mark_layers(one_pair, "area") == []
    assert "one pair, no interval" in " ".join(one_pair["title"]["subtitle"])
    assert one_pair["title"]["subtitle"][:2] == ["good: “a”", "bad: “b”"]


def scored(lead: list[float], spread: float = 0.1) -> pl.DataFrame:
    """A race of one paradigm whose difference is as given, ± `spread`."""
    steps = [0, 16, 256, 1024]
    parts = [
        pl.DataFrame({"step": steps, "score": score, "value": value})
        for score, value in (("good", [-20 + each for each in lead]), ("bad", [-20.0] * 4), ("difference", lead))
    ]
    ends = {"low": pl.col("value") - spread, "high": pl.col("value") + spread}
    return pl.concat(parts).with_columns(
        **ends, paradigm=pl.lit("agreement"), pair=pl.lit(None, pl.Int64), pairs=pl.lit(9)
    )


@pytest.mark.parametrize(
    ("lead", "title"),
    [
        (
            [0.0, -0.5, 1.0, 2.3],
            "agreement: the good sentence leads from step 256 on only, too late to say that it stays ahead",
        ),
        (
            [0.0, 0.5, 1.0, 0.101],
            "agreement: the good sentence leads from step 16 on (not yet at 0), by 0.1 nats at the end",
        ),
        ([1.0, 0.5, 1.0, 2.3], "agreement: the good sentence leads at every checkpoint, by 2.3 nats at the end"),
        (
            [1.0, 0.5, 1.0, 0.04],
            "agreement: the good sentence never leads for good; good − bad is +0.04 [−0.06, +0.14] nats at the end",
        ),
    ],
)
def test_the_title_says_since_when_the_good_sentence_leads(lead, title):
    chart = charts.pair_race(scored(lead))
    assert title_text(chart) == title
    assert title in chart.to_dict()["description"]


def test_the_cursor_moves_both_panels_and_strips_lie_over_each():
    spec = charts.pair_race(pair_race(TRACE), CURSOR).to_dict()
    for panel in spec["vconcat"]:
        assert f"max({CURSOR.name}, 0.5)" in str(panel)
        (over,) = mark_layers(panel, "rect")
        assert [row["i"] for row in rows_of(spec, over)] == list(range(len(STEPS)))
    (number,) = mark_layers(spec, "text")
    assert number["encoding"]["text"]["field"] == "step"
    still = charts.pair_race(pair_race(TRACE), step=64).to_dict()
    assert "params" not in still
    assert not mark_layers(still, "rect")
    assert "max(64, 0.5)" in str(still)
    assert "max(2274, 0.5)" in str(charts.pair_race(pair_race(TRACE)).to_dict())


def test_an_onset_stands_behind_both_panels_and_in_the_caption():
    spec = EVERY["paradigm"]().to_dict()
    assert len(mark_layers(spec, "rect")) == 2
    assert "vertical band: capabilities onset, step 125" in " ".join(spec["title"]["subtitle"])
    none = Onset("capabilities", None, None, None, None, None, None, None, "never")
    without = charts.pair_race(pair_race(TRACE), onset=none).to_dict()
    assert mark_layers(without, "rect") == []
    assert "onset" not in str(without["title"])


def test_paradigms_stand_by_their_last_accuracy_and_follow_the_cursor():
    accuracy = accuracy_by_step(TRACE)
    spec = pairs_at_step(accuracy, CURSOR, "near_verb").to_dict()
    dots, ring = mark_layers(spec, "point")
    assert dots["encoding"]["y"]["sort"] == ["near verb", "far"]
    assert len(rows_of(spec, dots)) == len(accuracy)
    for layer in (dots, mark_layers(spec, "rule")[1]):
        assert layer["transform"] == [{"filter": f"datum.step == {CURSOR.name}"}]
    assert ring["transform"][-1] == {"filter": {"equal": "near_verb", "field": "paradigm"}}
    (chance,) = [rule for rule in mark_layers(spec, "rule") if rows_of(spec, rule) == [{"accuracy": 0.5}]]
    assert chance["mark"]["strokeDash"]
    for text in (f"step {HERE:,}", "near verb"):
        assert text in charts.to_svg(followed(pairs_at_step(accuracy, CURSOR)))
    assert "ring" not in str(pairs_at_step(accuracy, CURSOR).to_dict()["title"])


def test_a_paradigm_is_described_by_kind_and_case():
    assert paradigm_label("filler-gap-wh_question_subject") == "filler-gap: wh question subject"
    assert paradigm_label("agreement_no_attractor") == "agreement no attractor"


def test_many_paradigms_are_drawn_closer():
    many = judged_right(pairs_trace({f"kind {i}": 0.5 for i in range(67)}, pairs=3, steps=[0, 1]))
    assert pairs_at_step(many, CURSOR).to_dict()["height"] < 1000


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda: charts.pair_race(scored([1.0] * 4).drop("low")), "needs the columns"),
        (lambda: charts.pair_race(scored([1.0] * 4).clear()), "no rows"),
        (lambda: pairs_at_step(accuracy_by_step(TRACE).drop("high"), CURSOR), "needs the columns"),
        (lambda: pairs_at_step(accuracy_by_step(TRACE).clear(), CURSOR), "no rows"),
    ],
)
def test_what_cannot_be_drawn_is_reported(draw, says):
    with pytest.raises(UserError, match=says):
        draw()

"""Head maps, relations over training, arcs of one sentence: as specifications and as pictures."""

from xml.etree import ElementTree

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.analysis.intervals import wilson
from lmdynamics.analysis.syntax import DIRECTIONS, describe_relation, head_history, predicted_heads
from lmdynamics.charts.arcs import BASE, CORRECT, INCORRECT, UNKNOWN, arc_levels, moving_arcs
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.heads import layer_head_map, moving_head_map
from lmdynamics.errors import UserError
from tests.analysis.frames import STEPS
from tests.charts.frames import HEADS, RELATIONS, WORDS, attention, best_heads, head_scores
from tests.charts.specs import at_step

CURSOR = Cursor(STEPS)


def rows_of(spec, column):
    return [row for dataset in spec["datasets"].values() for row in dataset if column in row]


def elements(svg, tag):
    """The elements of a picture that tell what they show."""
    with_tag = ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    return [element for element in with_tag if element.get("aria-label")]


def labels(svg, kind):
    """What each mark of a kind tells: its fields and their values."""
    tag = "text" if kind == "text" else "path"
    marks = [each for each in elements(svg, tag) if each.get("aria-roledescription").startswith(kind)]
    return [dict(part.split(": ", 1) for part in mark.get("aria-label").split("; ")) for mark in marks]


def arcs_of(svg):
    """The arcs of a sentence, without those of the gold tree."""
    return [arc for arc in labels(svg, "line") if "verdict" in arc]


def test_a_map_has_one_cell_per_head_and_outlines_the_best():
    spec = charts.layer_head_map(head_scores(), "nsubj", offset=0.4).to_dict()
    cells = rows_of(spec, "accuracy")
    assert len(cells) == 12
    best = [cell for cell in cells if cell["best"]]
    assert [(cell["layer"], cell["head"]) for cell in best] == [(1, 2)]
    assert best[0]["low"] < best[0]["accuracy"] < best[0]["high"]
    assert "best fixed offset: 40%" in spec["title"]["subtitle"]
    assert {cell["step"] for cell in cells} == {STEPS[-1]}


def test_what_a_causal_head_cannot_see_is_reported():
    sides = pl.when(pl.col("direction") == DIRECTIONS[0]).then(0.25).otherwise(0.75)
    for reachable, causal in ((sides, True), (pl.lit(1.0), False)):
        scores = head_scores().with_columns(reachable=reachable)
        best = best_heads().with_columns(reachable=reachable)
        head_map, table = (
            chart.to_dict() for chart in (layer_head_map(scores, "nsubj"), charts.heads_by_relation(best))
        )
        words = "it can find 25% of the arcs read dependent→head, 75% of the arcs read head→dependent"
        assert (words in " ".join(head_map["title"]["subtitle"])) == (words in head_map["description"]) == causal
        assert (
            ("attends to the left only" in str(table["title"]))
            == ("'field': 'reachable'" in str(table["layer"]))
            == causal
        )
    assert layer_head_map(scores, "nsubj").to_dict() == layer_head_map(head_scores(), "nsubj").to_dict()


@pytest.mark.parametrize(("step", "relation"), [(64, "det"), (STEPS[-1], "nsubj")])
def test_a_moving_map_equals_the_map_of_each_relation_and_step(step, relation):
    """Its cells, the outlined one among them, as a picture tells them, and the head that is marked."""
    chart = moving_head_map(head_scores(), CURSOR, {"det": 0.4, "nsubj": 0.25})
    signals = {"relation": relation, "layer": 2, "head": 1}
    moving = charts.to_svg(at_step(chart, CURSOR, step, **signals))
    still = charts.to_svg(layer_head_map(head_scores(), relation, step))
    tiles = [{key: row[key] for key in ("layer", "head", "direction", "accuracy")} for row in labels(moving, "rect")]
    assert tiles == [{key: row[key] for key in tiles[0]} for row in labels(still, "rect")]
    assert len(tiles) == 12 + 1
    assert f"Which heads follow {relation}, step {step:,}" in moving
    assert f"best fixed offset: {'40%' if relation == 'det' else '25%'}" in moving
    (dot,) = labels(moving, "point")
    assert (dot["layer"], dot["head"]) == ("2", "1")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_moving_arcs_equal_the_arcs_of_each_head_and_step(direction):
    frame = attention(steps=STEPS)
    other_layer = frame.with_columns(layer=pl.lit(0, pl.Int64), weight=pl.col("weight").reverse().over("step", "query"))
    parts = [
        predicted_heads(pl.concat([frame, other_layer]), each).with_columns(direction=pl.lit(each))
        for each in DIRECTIONS
    ]
    moving = moving_arcs(WORDS, pl.concat(parts), HEADS, RELATIONS, CURSOR)
    for layer, step in ((1, 64), (1, 745), (0, 745)):
        signals = {"layer": layer, "head": 2, "direction": direction, "relation": "nsubj"}
        moved = charts.to_svg(at_step(moving, CURSOR, step, **signals))
        predicted = predicted_heads(frame if layer else other_layer, direction).filter(step=step)
        still = charts.to_svg(charts.sentence_arcs(WORDS, predicted, HEADS, RELATIONS, "nsubj", direction=direction))
        assert arcs_of(moved) == arcs_of(still)
        assert f"Layer {layer}, head 2, read {direction}, at step {step}" in moved
        assert moved.count('font-weight="bold"') == still.count('font-weight="bold"')


def test_a_map_of_what_was_not_measured_is_refused():
    with pytest.raises(UserError, match="'iobj'; measured: det, nsubj"):
        charts.layer_head_map(head_scores(), "iobj")
    with pytest.raises(UserError, match="step 7 was not measured"):
        charts.layer_head_map(head_scores(), "det", step=7)


def test_relations_are_ordered_by_frequency_and_dots_need_the_interval():
    spec = charts.heads_by_relation(best_heads()).to_dict()
    cells = rows_of(spec, "above")
    assert len(cells) == 2 * len(STEPS)
    assert all(cell["above"] == (cell["low"] > 0.4) for cell in cells)
    assert "nsubj 1-2" in spec["description"]


def test_head_history_reports_when_a_relation_appears():
    best = best_heads().with_columns(head=pl.when(pl.col("step") < 300).then(0).otherwise("head"))
    history = head_history(best)
    nsubj = history.row(by_predicate=pl.col("relation") == "nsubj", named=True)
    assert (nsubj["head"], nsubj["since"]) == ("1-2", 305)
    assert nsubj["low"] < nsubj["accuracy"] < nsubj["high"]
    of_nsubj = best.filter(pl.col("relation") == "nsubj").sort("step")
    bounded = of_nsubj.select("step", low=wilson(pl.col("accuracy"), pl.col("count"))[0])
    clear = bounded.filter(pl.col("low") > 0.4)["step"].to_list()
    assert nsubj["appears"] == clear[0]
    assert nsubj["not_yet"] == max(step for step in STEPS if step < clear[0])
    assert nsubj["first_head"] == ("1-0" if clear[0] < 300 else "1-2")
    description = describe_relation(history, "nsubj")
    assert description.startswith(
        f"nsubj appears at step {clear[0]:,} (not yet at {nsubj['not_yet']:,}), first in head 1-"
    )
    assert "the best fixed offset 40.0%" in description
    dip = pl.when(pl.col("step") == clear[-2]).then(0.1).otherwise("accuracy")  # what is lost again has not appeared
    at_the_last = head_history(best.with_columns(accuracy=dip))
    assert at_the_last["appears"].to_list() == [None] * 2
    assert at_the_last["undated"].to_list() == [clear[-1]] * 2
    assert describe_relation(at_the_last, "nsubj").startswith(
        f"nsubj is above the offset only from step {clear[-1]:,}, too late to date it: at the end head 1-2"
    )
    never = head_history(best.with_columns(offset=pl.lit(0.99)))
    assert never["appears"].to_list() == [None, None]
    assert describe_relation(never, "nsubj").startswith("nsubj has not appeared to stay: at the end head 1-2 ")


@pytest.mark.parametrize(("first", "says"), [(0, "nothing appears"), (305, "it appeared at or before step 305, or")])
def test_what_is_there_at_the_first_checkpoint_does_not_appear(first, says):
    """An untrained causal model may find more arcs of a relation than its best fixed offset does."""
    best = best_heads().with_columns(accuracy=pl.lit(0.9), offset=pl.lit(0.4)).filter(pl.col("step") >= first)
    history = head_history(best)
    assert history.select("appears", "not_yet", "first_head").null_count().row(0) == (2, 2, 2)
    assert history["undated"].to_list() == [first, first]
    assert describe_relation(history, "nsubj").startswith(f"nsubj is above the offset at every checkpoint: {says}")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_predicted_heads_equal_a_loop(direction):
    frame = attention(steps=[0, 512])
    predictions = predicted_heads(frame, direction)
    for step in (0, 512):
        weight = {(r["query"], r["key"]): r["weight"] for r in frame.filter(pl.col("step") == step).to_dicts()}
        for word in range(len(WORDS)):
            candidates = [j for j in range(len(WORDS)) if j != word]
            towards = [weight[(word, j) if direction == DIRECTIONS[0] else (j, word)] for j in candidates]
            row = predictions.row(by_predicate=(pl.col("step") == step) & (pl.col("word") == word), named=True)
            assert row["predicted"] == candidates[towards.index(max(towards))]
            assert row["weight"] == max(towards)


def test_a_word_that_sees_none_has_no_arc():
    """The first word of a causal model, read as dependent→head, and the last, read the other way."""
    causal = attention().with_columns(weight=pl.when(pl.col("key") < pl.col("query")).then("weight").otherwise(0.0))
    for direction, blind in zip(DIRECTIONS, (0, len(WORDS) - 1), strict=True):
        predictions = predicted_heads(causal, direction)
        assert set(range(len(WORDS))) - set(predictions["word"]) == {blind}
        later = pl.max_horizontal("word", "predicted") == pl.col("word" if direction == DIRECTIONS[0] else "predicted")
        assert predictions.select(later.all()).item()
        charts.sentence_arcs(WORDS, predictions.filter(step=STEPS[-1]), HEADS, RELATIONS, direction=direction).to_dict()


def test_arcs_are_distinguished_by_the_gold_tree():
    predicted = predicted_heads(attention(steps=[512])).drop("step")
    chart = charts.sentence_arcs(WORDS, predicted, HEADS, RELATIONS, "nsubj")
    svg = charts.to_svg(chart)
    verdicts = [CORRECT if head >= 0 else INCORRECT for head in HEADS]
    assert [arc["verdict"] for arc in arcs_of(svg)] == verdicts
    assert "10 of 10 arcs" in chart.to_dict()["description"]
    bold = {element.text for element in elements(svg, "text") if element.get("font-weight") == "bold"}
    assert {"nsubj", WORDS[HEADS.index(-1)]} <= bold  # the relation looked at, and the root
    assert not bold & (set(RELATIONS) - {"nsubj"})


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_dot_stands_at_the_word_attended_to(direction):
    predicted = predicted_heads(attention(steps=[512]), direction).drop("step")
    svg = charts.to_svg(charts.sentence_arcs(WORDS, predicted, HEADS, RELATIONS, direction=direction))
    middle = [float(element.get("transform")[10:].split(",")[0]) for element in elements(svg, "text")][-len(WORDS) :]
    onward = direction == DIRECTIONS[0]
    expected = predicted.select(*(("word", "predicted") if onward else ("predicted", "word"))).rows()
    dots = labels(svg, "point")
    assert [(dot["from"], dot["to"]) for dot in dots] == [(WORDS[a], WORDS[b]) for a, b in expected]
    assert all(abs(float(dot["x"]) - middle[b]) < 8 for dot, (_, b) in zip(dots, expected, strict=True))


def test_words_keep_their_places_for_every_head():
    low, high = (
        pl.DataFrame({"word": range(11), "predicted": predicted, "weight": 0.5})
        for predicted in ([(i + 1) % 11 for i in range(11)], [10 - i if i != 5 else 0 for i in range(11)])
    )
    specs = [charts.sentence_arcs(WORDS, frame).to_dict() for frame in (low, high)]
    assert specs[0]["height"] == specs[1]["height"]
    assert all(max(row["rise"] for row in rows_of(spec, "rise")) + BASE <= spec["height"] for spec in specs)


def test_arcs_without_a_tree_claim_nothing():
    chart = charts.sentence_arcs(WORDS, predicted_heads(attention(steps=[512])).drop("step"))
    assert {arc["verdict"] for arc in arcs_of(charts.to_svg(chart))} == {UNKNOWN}
    assert "gold" not in chart.to_dict()["description"]


def test_words_are_data_and_nothing_else():
    words = ["<script>alert(1)</script>", "\" onload='x'", "datum.step"]
    predicted = pl.DataFrame({"word": [0, 1, 2], "predicted": [1, 2, 0], "weight": [0.5, 0.5, 0.5]})
    svg = charts.to_svg(charts.sentence_arcs(words, predicted, [1, -1, 1], ["<b>", "root", "x"]))
    assert "<script" not in svg
    assert "<b>" not in svg
    assert "&lt;script&gt;" in svg


def test_arcs_nest_without_meeting():
    pairs = [(0, 2), (1, 2), (2, 10), (6, 2), (3, 6), (4, 6), (5, 6), (9, 6), (7, 9), (8, 9)]
    levels = dict(zip(pairs, arc_levels(pairs), strict=True))
    for a, high in levels.items():
        for b, low in levels.items():
            inside = min(a) <= min(b) and max(b) <= max(a) and a != b
            assert not inside or high > low


@pytest.mark.parametrize("words", [["alone"], ["two", "words"], ["word"] * 60])
def test_sentences_of_any_length_draw(words):
    count = len(words)
    predicted = pl.DataFrame(
        {"word": list(range(count)), "predicted": [(i + 1) % count if count > 1 else -1 for i in range(count)]}
    ).with_columns(weight=pl.lit(0.3))
    heads = [-1] + [0] * (count - 1)
    assert "<svg" in charts.to_svg(charts.sentence_arcs(words, predicted, heads, ["x"] * count))


def test_attention_of_another_sentence_is_refused():
    predicted = predicted_heads(attention(steps=[512]))
    with pytest.raises(UserError, match="no words"):
        charts.sentence_arcs([], predicted)
    with pytest.raises(UserError, match="one of each per word"):
        charts.sentence_arcs(WORDS, predicted, HEADS[:-1], RELATIONS)
    with pytest.raises(UserError, match="more words"):
        charts.sentence_arcs(WORDS[:3], predicted)

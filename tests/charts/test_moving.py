"""Views that one slider moves: at every place the same on a page as in a still, and nothing lost on the way there."""

import json
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import altair as alt
import polars as pl
import pytest
import vl_convert
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdynamics import charts
from lmdynamics.charts.axes import SLIDER, Cursor, nearest, on_step_axis, step_axis, step_number, strips
from lmdynamics.charts.moving import Place, by_place, compact, in_column, in_row, picker, slider, with_slider
from lmdynamics.charts.text import Value
from lmdynamics.charts.theme import figure
from lmdynamics.html import MOVING

STEPS = [0, 1, 4, 64]
LOSS = pl.DataFrame({"step": STEPS, "loss": [3.14159, 2.25, 1.5, 1.0]})
FINITE = st.floats(-1e12, 1e12)


def moving(start=4):
    """A loss curve with its value at the cursor, in words that another signal chooses."""
    cursor, data, x = Cursor(STEPS), on_step_axis(LOSS), step_axis(STEPS)
    here = alt.Chart(data).transform_filter(f"datum.step == {cursor.name}").mark_text()
    layers = [step_number(cursor, x), here.encode(x, alt.Text("loss:Q", format=".2f")), strips(data, x, cursor)]
    told = [Value("word"), " at step ", cursor.number]
    chart = figure(alt.layer(*layers), told, "", "A loss curve with a line at one checkpoint.")
    places = [Place(f"{step}", f"Step {step}.") for step in STEPS]
    return with_slider(chart, cursor, start, places, picker("word", "word", ["Loss", "Verlust"], "Loss"))


def at(whole, **values):
    """The same with other values of its signals."""
    signals = [{**signal, "value": values.get(signal["name"], signal["value"])} for signal in whole.signals]
    return replace(whole, signals=signals)


def texts(svg):
    return [text for text in ElementTree.fromstring(svg).itertext() if text.strip()]


def on_the_page(whole):
    """The picture that `moving.js` makes of the content: Vega's view of the patched specification."""
    spec = json.loads(json.dumps(whole.content()))["spec"]
    for key, columns in spec["datasets"].items():
        spec["datasets"][key] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    vega = vl_convert.vegalite_to_vega(spec)
    for change in spec["usermeta"]["embedOptions"]["patch"]:
        assert (change["op"], change["path"]) == ("add", "/signals/0")
        vega["signals"].insert(0, change["value"])
    return vl_convert.vega_to_svg(vega)


def evaluated(expression, **values):
    """The value of a Vega expression."""
    signals = [{"name": name, "value": value} for name, value in values.items()]
    mark = {"type": "text", "encode": {"update": {"text": {"signal": "'' + result"}}}}
    signals.append({"name": "result", "update": expression})
    (text,) = texts(vl_convert.vega_to_svg({"signals": signals, "marks": [mark]}))
    return json.loads(text)


@pytest.mark.parametrize(("place", "step", "loss"), [(0, 0, "3.14"), (3, 64, "1.00")])
def test_a_still_and_the_page_show_what_the_signals_say(place, step, loss):
    whole = at(moving(), at=place, word="Verlust")
    still = texts(charts.to_svg(whole.still()))
    assert {loss, f"Verlust at step {step}"} <= set(still)
    assert sorted(texts(on_the_page(whole))) == sorted(still)


def test_a_still_starts_where_it_was_asked_to_or_at_the_nearest_place():
    assert at(moving(0), at=3).still().to_dict() == moving(64).still().to_dict() == moving(60).still().to_dict()
    assert moving(0).still().to_dict() != moving(64).still().to_dict()


def test_an_output_is_json_of_columns_and_says_in_words_what_it_is():
    bundle = moving()._repr_mimebundle_()
    content = json.loads(json.dumps(bundle[MOVING]))
    assert content["places"][1] == {"name": "1", "said": "Step 1.", "under": ""}
    (columns,) = (data for data in content["spec"]["datasets"].values() if "i" in data)
    assert (columns["step"], columns["loss"], columns["i"]) == (STEPS, [3.142, 2.25, 1.5, 1], [0, 1, 2, 3])
    assert "slider over 4 places" in bundle["text/plain"]


def test_playing_continues_to_the_last_place_and_begins_again_from_there():
    here, play = slider("checkpoint", 4, 3)
    assert (here["name"], here["value"]) == (SLIDER, 3)
    assert {name: here["bind"][name] for name in ("input", "min", "max", "step")} == {
        "input": "range", "min": 0, "max": 3, "step": 1,
    }  # fmt: skip
    (ticked,) = (move for move in here["on"] if "timer" in str(move["events"]))
    (ended,) = play["on"]
    assert evaluated(ticked["update"], at=2, play=False) == 2
    visited, place, playing = [], 3, True
    while playing:
        place = evaluated(ticked["update"], at=place, play=playing)
        playing = evaluated(ended["update"], at=place, play=playing)
        visited.append(place)
    assert visited == [0, 1, 2, 3]


def test_figures_together_keep_their_dress_and_their_words():
    one, other = (figure(alt.Chart(LOSS).mark_point().encode(x="loss"), name, "", f"{name}.") for name in ("A", "B"))
    spec = in_column(in_row(one, other), one).to_dict()
    assert spec["description"] == "A. B. A."
    assert spec["config"] == one.to_dict()["config"]
    assert "config" not in str(spec["vconcat"])
    alt.VConcatChart.validate(spec)


def test_figures_together_keep_the_data_and_the_parameters_of_each():
    whole = in_column(in_row(moving(0).chart, moving(64).chart), moving(1).chart)
    spec = whole.to_dict()
    assert [param["name"] for param in spec["params"]] == ["cursor_steps", "cursor_step"]
    assert spec["datasets"] == moving().chart.to_dict()["datasets"]
    drawn = texts(charts.to_svg(at(replace(moving(), chart=whole), at=3).still()))
    assert drawn.count("1.00") == drawn.count("Loss at step 64") == 3


def test_two_figures_with_different_values_of_one_parameter_are_refused():
    one, other = (figure(alt.Chart(LOSS).mark_point().encode(x="loss"), name, "", f"{name}.") for name in ("A", "B"))
    views = [with_slider(one, Cursor(STEPS), 0, []).chart, with_slider(other, Cursor([0, 9]), 0, []).chart]
    with pytest.raises(ValueError, match="same name with different values"):
        in_row(*views)


# strips over a panel --------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=20), st.sets(st.integers(0, 10**6), min_size=1, max_size=9))
def test_strips_tile_the_axis_and_lead_to_the_nearest_place(measured, places):
    steps, cursor, x = sorted(measured), Cursor(sorted(places)), step_axis(measured)
    frame = on_step_axis(pl.DataFrame({"step": steps}))
    rows = strips(frame, x, cursor).data.to_dicts()
    assert [row["step"] for row in rows] == steps
    assert [rows[0]["from"], rows[-1]["to"]] == x.to_dict()["scale"]["domain"]
    assert all(one["to"] == other["from"] for one, other in pairwise(rows))
    assert all(row["from"] < row["x"] < row["to"] for row in rows)
    assert [cursor.steps[row["i"]] for row in rows] == [nearest(cursor.steps, step) for step in steps]


def test_several_rows_of_a_step_share_its_strip():
    frame = on_step_axis(pl.DataFrame({"step": [1, 1, 8, 8], "name": ["a", "b", "a", "b"]}))
    rows = strips(frame, step_axis([1, 8]), Cursor([1, 8])).data
    assert rows.select("from", "to").n_unique() == 2
    assert (rows["from"] < rows["to"]).all()


@pytest.mark.parametrize(("step", "found"), [(0, 0), (0.5, 0), (0.8, 1), (3, 4), (6, 8), (22, 8), (23, 64), (1e9, 512)])
def test_nearest_is_so_on_a_logarithmic_axis(step, found):
    steps = [0, 1, 2, 4, 8, 64, 512]
    assert nearest(steps, step) == found
    assert steps[Cursor(steps).place(step)] == found


# data of every place --------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first call of polars takes long on a busy machine
@given(st.dictionaries(st.tuples(st.integers(0, 3), st.sampled_from("ab")), st.integers(0, 9), max_size=8))
def test_by_place_equals_a_loop(values):
    schema = {"step": pl.Int64, "name": pl.String, "value": pl.Int64}
    frame = pl.DataFrame([(step, name, value) for (step, name), value in values.items()], schema, orient="row")
    names = dict.fromkeys(name for _, name in values)
    expected = [(name, [values.get((step, name)) for step in range(4)]) for name in names]
    assert by_place(frame, ["name"], ["value"], range(4)).rows() == expected


def test_rows_become_columns_and_come_back():
    rows = [{"step": 4, "word": "a", "x": 0.25}, {"step": 8, "word": "</script>", "x": None}]
    spec = compact({"mark": "bar", "datasets": {"d": rows}})
    columns = spec["datasets"]["d"]
    assert spec["mark"] == "bar"
    assert [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] == rows


@given(st.lists(FINITE | st.none(), max_size=20))
def test_numbers_keep_four_digits_alone_and_in_arrays(values):
    rows = [{"x": value, "x_at": [value]} for value in values]
    kept = compact({"datasets": {"d": rows}})["datasets"]["d"]
    assert [short for (short,) in kept.get("x_at", [])] == kept.get("x", [])
    for value, short in zip(values, kept.get("x", []), strict=True):
        assert value == short if not value else abs(short - value) <= 0.0006 * abs(value)


@given(st.integers(0, 10**9))
def test_whole_numbers_stay_whole(step):
    assert compact({"datasets": {"d": [{"x": float(step)}]}})["datasets"]["d"]["x"] == [step]

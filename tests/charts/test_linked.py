"""Views that need no kernel: nothing is lost on the way to a page but digits that no pixel shows."""

import json

import altair as alt
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.charts.linked import Linked, Place, compact
from lmdynamics.html import LINKED

FINITE = st.floats(-1e12, 1e12)


def test_rows_become_columns_and_come_back():
    rows = [{"step": 4, "word": "a", "x": 0.25}, {"step": 8, "word": "</script>", "x": None}]
    spec = compact({"mark": "bar", "datasets": {"d": rows}})
    columns = spec["datasets"]["d"]
    assert spec["mark"] == "bar"
    assert [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] == rows


@given(st.lists(FINITE | st.none(), max_size=20))
def test_numbers_keep_four_digits(values):
    kept = compact({"datasets": {"d": [{"x": value} for value in values]}})["datasets"]["d"].get("x", [])
    for value, short in zip(values, kept, strict=True):
        assert value == short if not value else abs(short - value) <= 0.0006 * abs(value)


@given(st.integers(0, 10**9))
def test_whole_numbers_stay_whole(step):
    assert compact({"datasets": {"d": [{"x": float(step)}]}})["datasets"]["d"]["x"] == [step]


def test_an_output_is_json_and_says_in_words_what_it_is():
    cursor = alt.param(name="at_step", value=2)
    chart = alt.Chart(pl.DataFrame({"x": [1.0, 2.0]})).mark_point().encode(x="x").add_params(cursor)
    linked = Linked(
        "checkpoint", [Place("1", {"at_step": 1}), Place("2", {"at_step": 2}, "Two.")], 1, {"points": chart}
    )
    bundle = linked._repr_mimebundle_()
    content = json.loads(json.dumps(bundle[LINKED]))
    assert content["places"][1] == {
        "name": "2", "values": {"at_step": 2}, "said": "Two.", "at": None, "under": ""
    }  # fmt: skip
    assert [view["name"] for view in content["views"]] == ["points"]
    assert "slider over 2 places" in bundle["text/plain"]

"""A chart whose parameters hold what Python says, whatever a page reports back."""

import altair as alt
import pytest

from lmdynamics.explorers.live import LiveChart


def chart(value=1):
    cursor = alt.param(name="cursor", value=value)
    points = alt.Chart(alt.Data(values=[{"a": 1}, {"a": 2}])).mark_point().encode(x="a:Q")
    return points.transform_filter("datum.a == cursor").add_params(cursor)


@pytest.fixture
def live():
    return LiveChart(chart(), cursor=1)


def test_a_new_value_goes_out_and_the_specification_does_not(live):
    before = live.widget.spec
    sent = []
    live.widget.observe(lambda change: sent.append(change["name"]), names=["_params", "spec"])
    live.set(cursor=2)
    assert live.widget._params == {"cursor": 2.0}
    assert sent == ["_params"]
    assert live.widget.spec is before


def test_a_page_that_reports_its_start_value_is_told_the_present_one(live):
    live.set(cursor=2)
    live.widget._params = {"cursor": 1.0}  # what a reloaded page sends
    assert live.widget._params == {"cursor": 2.0}
    assert live.widget.params.cursor == 2.0


def test_another_chart_keeps_the_value(live):
    live.set(cursor=2)
    live.redraw(chart(2))
    assert live.widget.spec["params"][0]["value"] == 2
    live.set(cursor=1)
    assert live.widget.params.cursor == 1.0

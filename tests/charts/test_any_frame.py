"""Any frame with steps and a value: what is drawn from it, and what it does not tell."""

from html import escape

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.analysis.onsets import Onset
from lmdynamics.errors import UserError
from tests.charts.specs import mark_layers, rows_of, spec_and_svg

TRACE = pl.DataFrame({"step": [0, 4, 64], "loss": [6.0, 4.0, 2.0], "tokens": [90, 90, 90], "stderr": [0.1, 0.05, 0.5]})
HEADS = pl.DataFrame(
    {"step": [1, 1, 8, 8], "layer": [0, 1, 0, 1], "relation": ["nsubj"] * 4, "accuracy": [0.1, 0.2, 0.3, 0.9]}
)


def test_a_trace_is_a_curve_with_its_interval():
    onset = Onset("structure", 4, 1, 64, None, None, None, None, "found")
    spec, svg = spec_and_svg(charts.lines(TRACE, onsets=[onset]))
    (band,), (line,) = mark_layers(spec, "area"), mark_layers(spec, "line")
    rows = rows_of(spec, band)
    assert [row["value"] for row in rows_of(spec, line)] == [6.0, 4.0, 2.0]
    assert [row["high"] - row["value"] for row in rows] == pytest.approx([1.959964 * s for s in (0.1, 0.05, 0.5)])
    assert [row["value"] - row["low"] for row in rows] == pytest.approx([1.959964 * s for s in (0.1, 0.05, 0.5)])
    assert "structure 4" in svg
    assert "band: 95 % interval" in svg
    assert "6 at step 0, 2 at step 64" in spec["description"]


def test_columns_of_text_make_the_curves_and_others_when_they_are_named():
    frame = pl.concat([TRACE.with_columns(run=pl.lit(run), split=pl.lit("dev")) for run in ("a", "b")])
    assert "a, dev" in spec_and_svg(charts.lines(frame))[1]
    by_layer, svg = spec_and_svg(charts.lines(HEADS, by=["relation", "layer"], percent=True, title="Two layers"))
    assert {row["curve"] for row in rows_of(by_layer, mark_layers(by_layer, "line")[0])} == {"nsubj, 0", "nsubj, 1"}
    assert "no interval" in svg
    assert by_layer["title"]["text"] == ["Two layers"]


def test_rows_without_a_number_are_left_out_and_counted():
    holes = TRACE.drop("stderr").with_columns(loss=pl.Series([6.0, float("nan"), None]))
    spec, svg = spec_and_svg(charts.lines(holes))
    assert [row["value"] for row in rows_of(spec, mark_layers(spec, "line")[0])] == [6.0]
    assert "2 of 3 rows have no number" in svg


@pytest.mark.parametrize("name", ["x", "curve", "eval.loss", "eval[0]", "eval:loss", "it's", "<b>", "value"])
def test_a_column_may_have_any_name(name):
    spec, svg = spec_and_svg(charts.lines(TRACE.rename({"loss": name})))
    assert [row["value"] for row in rows_of(spec, mark_layers(spec, "line")[0])] == [6.0, 4.0, 2.0]
    assert escape(f"{name} over training", quote=False) in svg


def test_an_interval_is_of_the_values_that_have_one():
    some = TRACE.with_columns(stderr=pl.Series([0.1, None, float("nan")]))
    assert "band: 95 % interval, where one was given" in spec_and_svg(charts.lines(some))[1]
    none = TRACE.with_columns(low=pl.lit(float("nan")), high=pl.lit(None, pl.Float64))
    assert "no interval" in spec_and_svg(charts.lines(none))[1]
    assert "no interval" in spec_and_svg(charts.lines(TRACE, "tokens"))[1]  # the standard error is the loss's


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (TRACE.drop("step"), {}, "step"),
        (TRACE.with_columns(perplexity=pl.col("loss").exp()), {}, "Name it with value=, one of: loss, perplexity"),
        (TRACE, {"value": "lose"}, "lose"),
        (TRACE, {"by": "run"}, "run"),
        (HEADS, {"value": "relation"}, "holds no numbers"),
        (TRACE.with_columns(step=pl.Series([0, None, 4])), {}, "'step' has no number"),
        (TRACE.with_columns(step=pl.Series(["a", "b", "c"])), {}, "'step' holds no numbers"),
        (TRACE.with_columns(kinds=pl.Series([["a"], ["b"], ["c"]])), {"by": "kinds"}, "holds lists"),
        (pl.DataFrame({"step": [1, 2], "n": [3, 4], "m": [3, 4]}), {}, "Name it with value=, one of: n, m"),
        (HEADS, {}, "nsubj has several rows at step 1; name the columns of a curve with by=, such as by=['relation', "),
        (TRACE.with_columns(loss=pl.lit(None, pl.Float64)), {}, "no row has a number in 'loss'"),
        (pl.DataFrame({"step": [1] * 9, "loss": [1.0] * 9, "run": list("abcdefghi")}), {}, "9 curves, and only 8 col"),
    ],
)
def test_what_a_frame_does_not_tell_is_asked_for(frame, options, message):
    with pytest.raises(UserError) as refusal:
        charts.lines(frame, **options)
    assert message in str(refusal.value)

"""Size as figures: exponents with their intervals, gains that add up, predictions that are or are not close."""

import numpy as np
import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.analysis.fits import power_laws, predict_early, split_gains
from lmdynamics.errors import UserError
from tests.charts.losses import points
from tests.charts.specs import spec_and_svg, title_text

SIZES = {"1M": 1e6, "10M": 1e7, "100M": 1e8}


def sizes(**changes):
    n = np.array(list(SIZES.values()))
    frame = pl.DataFrame(
        {
            "size": list(SIZES),
            "parameters": n,
            "loss_at_break": 12 * n**-0.08 * [1, 1.01, 1],
            "loss_at_break_low": 11 * n**-0.08,
            "loss_at_break_high": 13 * n**-0.08,
            "rate_after_break": 1e-3 * n**0.2 * [1, 0.99, 1],
            "step_at_break": [5e3, 4e3, 4e3],
            "final_loss": 11 * n**-0.1 * [1, 0.99, 1],
            "last_step": [1e5] * 3,
        }
    )
    return frame.with_columns(**changes)


def laws(frame=None):
    return power_laws(sizes() if frame is None else frame)


def early(errors):
    """`errors`: of one break, by share; last loss seen is always 5 % above."""
    rows = [("a", share, "one break", error) for share, error in errors.items()]
    rows += [("a", share, "last loss seen", np.log(1.05)) for share in errors]
    return pl.DataFrame(rows, ["curve", "share", "method", "error"], orient="row")


@pytest.mark.parametrize(
    "chart",
    [
        lambda: charts.size_trends(sizes(), laws(), sizes()),
        lambda: charts.gain_parts(split_gains(sizes())),
        lambda: charts.early_prediction(predict_early(points(), [0.2, 0.5])),
    ],
)
def test_every_figure_draws_and_says_what_it_shows(chart):
    spec_and_svg(chart())


def test_two_sizes_are_reported_without_an_interval():
    two = sizes().filter(pl.col("parameters") <= sizes()["parameters"].unique().sort()[1])
    chart = charts.size_trends(two, laws(pl.concat([two, two])))
    assert "lower loss" not in title_text(chart)
    assert "Too few sizes" in title_text(chart)
    heads = [" ".join(panel["title"]["text"]) for panel in chart.to_dict()["hconcat"]]
    assert all("too few sizes for an interval" in head for head in heads)


def test_three_panels_each_with_its_exponent():
    chart = charts.size_trends(sizes(), laws())
    spec = chart.to_dict()
    heads = [" ".join(panel["title"]["text"]) for panel in spec["hconcat"]]
    assert [head.split(" [")[0] for head in heads] == ["exponent −0.08", "exponent 0.20", "exponent −0.10"]
    assert title_text(chart).endswith("faster fall after it, lower final loss")
    assert "rule" in str(spec["hconcat"][0]["layer"])  # the only quantity with intervals
    assert "rule" not in str(spec["hconcat"][1]["layer"])


def test_a_trend_whose_interval_holds_zero_is_not_claimed():
    flat = sizes(rate_after_break=pl.Series([0.02, 0.03, 0.021]))
    assert "fall after it: undecided over 3 sizes" in title_text(charts.size_trends(flat, laws(flat)))


def test_a_rate_below_zero_is_left_out_and_counted():
    odd = sizes(rate_after_break=pl.Series([-0.01, 0.02, 0.03]))
    chart = charts.size_trends(odd, laws(odd))
    assert "1 value missing or not above 0 left out" in str(chart.to_dict()["title"]["subtitle"])
    assert "fall after it not known" in title_text(chart)
    none = sizes(rate_after_break=pl.Series([-0.01, -0.02, -0.03]))
    assert "<svg" in charts.to_svg(charts.size_trends(none, laws(none)))


def test_an_interval_below_zero_ends_at_the_panel():
    wide = sizes(rate_after_break_low=pl.lit(-0.02), rate_after_break_high=pl.lit(0.5))
    spec = charts.size_trends(wide, laws()).to_dict()
    panel = spec["hconcat"][1]
    domain = next(layer for layer in panel["layer"] if layer["mark"]["type"] == "point")["encoding"]["y"]["scale"][
        "domain"
    ]
    rule = next(layer for layer in panel["layer"] if layer["mark"]["type"] == "rule")
    rows = spec["datasets"][rule["data"]["name"]]
    assert all(domain[0] <= row["low"] <= row["high"] <= domain[1] for row in rows)


def test_gains_are_reported_from_the_smallest_to_the_largest():
    parts = split_gains(sizes())
    total = np.log(sizes()["final_loss"][0] / sizes()["final_loss"][2])
    assert title_text(charts.gain_parts(parts)).startswith(f"From 1M to 100M log loss falls by {total:.2f}: ")


def test_two_sources_have_a_panel_each():
    parts = split_gains(sizes())
    both = pl.concat([parts.with_columns(source=pl.lit(name)) for name in ("ours", "published")])
    spec = charts.gain_parts(both).to_dict()
    assert spec["facet"]["row"]["field"] == "source"
    assert title_text(charts.gain_parts(both)).startswith("ours: from 1M")
    assert any(line.startswith("published: from 1M") for line in spec["title"]["subtitle"])


def test_early_predictions_say_from_when_they_are_close():
    text = title_text(charts.early_prediction(early({0.1: 0.1, 0.3: 0.015, 0.5: 0.01})))
    assert text == (
        "From 30 % of training on, one break is within 2 % of the final loss for the curve; "
        "the last loss seen is off by up to 5.0 % there"
    )


def test_early_predictions_that_are_never_close_for_good_say_so():
    text = title_text(charts.early_prediction(early({0.1: 0.01, 0.5: np.log(1.04)})))
    assert text.startswith("Even from 50 % of training, one break is off by up to 4.0 %")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: charts.size_trends(sizes().drop("final_loss"), laws()), "needs the columns"),
        (lambda: charts.size_trends(sizes().clear(), laws()), "no rows"),
        (lambda: charts.size_trends(sizes(), laws(), pl.DataFrame({"parameters": [1]})), "published needs the columns"),
        (lambda: charts.gain_parts(pl.DataFrame({"part": ["L_d"]})), "needs the columns"),
        (lambda: charts.gain_parts(split_gains(sizes()).clear()), "no rows"),
        (lambda: charts.gain_parts(split_gains(sizes()).with_columns(part=pl.lit("x"))), "there is no part 'x'"),
        (lambda: charts.early_prediction(early({0.1: np.nan}).head(1)), "no curve could be predicted"),
        (lambda: charts.early_prediction(early({0.1: 0.1}).tail(1)), "no rows of the method 'one break'"),
    ],
)
def test_what_cannot_be_drawn_is_reported(draw, message):
    with pytest.raises(UserError, match=message):
        draw()

"""A record over batches: the title says what happened, the picture shows where it may lie."""

from datetime import datetime

import polars as pl
import pytest

from lmdynamics.charts import record_trend, to_svg
from lmdynamics.charts.theme import VERMILION
from lmdynamics.errors import UserError


def frame(*values, **columns) -> pl.DataFrame:
    rows = {
        "batch": [f"night{day}" for day in range(1, len(values) + 1)],
        "ended": [datetime(2026, 11, day, 4) for day in range(1, len(values) + 1)],
        "item": ["02_sas"] * len(values),
        "record": ["uas"] * len(values),
        "value": values,
    }
    return pl.DataFrame(rows, schema_overrides={"value": pl.Float64}).with_columns(
        **{name: pl.lit(value) for name, value in columns.items()}
    )


def accepted(*values):
    return frame(*values, baseline=0.6, tolerance=0.05)


def title(chart):
    return " ".join(chart.to_dict()["title"]["text"])


def caption(chart):
    return " ".join(chart.to_dict()["title"]["subtitle"])


def marks(chart):
    return [layer["mark"]["type"] for layer in chart.to_dict()["layer"]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (frame(0.61), "uas 0.61 over 1 batch"),
        (frame(0.61, 0.5, 0.22), "uas 0.61 → 0.22 over 3 batches"),
        (accepted(0.61, 0.65), "uas 0.61 → 0.65 over 2 batches, all within 0.60 ± 0.05"),
        (accepted(0.61, 0.2, 0.62), "uas 0.61 → 0.62 over 3 batches, now within 0.60 ± 0.05"),
        (accepted(0.2, 0.6, 0.3, 0.4), "uas 0.20 → 0.40 over 4 batches, outside 0.60 ± 0.05 since 2026-11-03"),
        (accepted(0.2, 0.3), "uas 0.20 → 0.30 over 2 batches, outside 0.60 ± 0.05 since 2026-11-01"),
    ],
)
def test_the_title_says_what_happened(data, expected):
    chart = record_trend(data)
    assert title(chart) == expected
    assert expected in chart.to_dict()["description"].replace("Uas", "uas")
    assert title(record_trend(data.reverse())) == expected  # time counts, not the order of rows


def test_the_unit_is_on_the_axis_and_in_the_title():
    chart = record_trend(frame(5.2, 5.3, unit="nats"))
    assert title(chart) == "uas 5.20 → 5.30 nats over 2 batches"
    assert {layer["encoding"]["y"]["title"] for layer in chart.to_dict()["layer"]} == {"uas (nats)"}


def test_only_what_is_there_is_drawn():
    assert marks(record_trend(frame(0.6, 0.5))) == ["line", "point"]
    assert marks(record_trend(frame(0.6, 0.5, low=0.4, high=0.7))) == ["rule", "line", "point"]
    assert marks(record_trend(frame(0.6, 0.5, baseline=0.6))) == ["rule", "line", "point"]
    assert marks(record_trend(accepted(0.6, 0.5))) == ["rect", "rule", "line", "point"]
    renewed = pl.concat([accepted(0.6, 0.5), accepted(0.6).with_columns(baseline=pl.lit(0.7))])
    assert marks(record_trend(renewed)) == ["area", "line", "line", "point"]
    assert "no intervals" in caption(record_trend(accepted(0.6)))
    assert "vertical lines: 95 %" in caption(record_trend(frame(0.6, low=0.4, high=0.7)))


def test_the_band_is_the_tolerance_and_its_edge_is_inside():
    rows = max(record_trend(accepted(0.65, 0.66)).to_dict()["datasets"].values(), key=len)
    assert [(row["floor"], row["ceiling"]) for row in rows] == [pytest.approx((0.55, 0.65))] * 2
    assert [row["outside"] for row in rows] == [False, True]


def test_it_can_be_drawn_and_what_is_outside_has_a_colour():
    assert VERMILION.lower() in to_svg(record_trend(accepted(0.6, 0.2))).lower()
    assert VERMILION.lower() not in to_svg(record_trend(accepted(0.6, 0.61))).lower()


def test_batches_without_a_number_are_counted():
    chart = record_trend(frame(0.6, None, float("nan"), 0.5))
    assert title(chart) == "uas 0.60 → 0.50 over 2 batches"
    assert "2 rows without a number left out" in caption(chart)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (frame(0.6).drop("ended"), "needs the columns"),
        (frame(0.6).with_columns(ended=pl.lit("2026")), "expected a datetime"),
        (frame(0.6).clear(), "none of 0 rows"),
        (frame(None), "none of 1 rows"),
        (pl.concat([frame(0.6), frame(0.6).with_columns(record=pl.lit("b"))]), "2 different values of record; filter"),
        (pl.concat([frame(0.6), frame(0.6).with_columns(item=pl.lit("b"))]), "2 different values of item; filter"),
    ],
)
def test_what_cannot_be_drawn_is_refused(data, message):
    with pytest.raises(UserError, match=message) as refusal:
        record_trend(data)
    assert "\n" not in str(refusal.value)

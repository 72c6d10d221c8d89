"""Cosines between gradients as figures: what counts as a pair, what the titles claim, what is refused."""

import json
import re

import altair as alt
import polars as pl
import pytest
import vl_convert

from lmdynamics import charts
from lmdynamics.analysis.gradients import opposition_table
from lmdynamics.charts.theme import specification
from lmdynamics.errors import UserError
from tests.charts import interference_frames as frames
from tests.charts.specs import mark_layers, rows_of, spec_and_svg, title_text

EVERY = {
    "map": lambda: charts.opposition_map(frames.opposition()),
    "distribution": lambda: charts.cosine_distribution(frames.opposition(), opposition_table(frames.opposition())),
    "distribution without intervals": lambda: charts.cosine_distribution(frames.opposition()),
    "gram": lambda: charts.gram(frames.opposition()),
    "groups": lambda: charts.group_opposition(frames.group_opposition()),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_draws_and_says_what_it_shows(name):
    spec_and_svg(EVERY[name]())


def test_a_row_does_not_count_against_itself():
    spec = charts.opposition_map(frames.opposition()).to_dict()
    cells = rows_of(spec, mark_layers(spec, "rect")[0])
    assert len(cells) == (len(frames.PARTS) + 1) * len(frames.STEPS)
    apart = frames.opposition().filter(
        (pl.col("a") != pl.col("b")) & (pl.col("part") == "head") & (pl.col("step") == 1)
    )
    cell = next(cell for cell in cells if (cell["part"], cell["step"]) == ("head", 1))
    assert cell["mean"] == pytest.approx(apart["cosine"].mean())
    assert cell["negative"] == (apart["cosine"] < 0).mean()
    assert cell["pairs"] == 12 * 11 // 2


def test_colours_are_centred_at_zero():
    spec = charts.opposition_map(frames.opposition()).to_dict()
    low, middle, high = mark_layers(spec, "rect")[0]["encoding"]["color"]["scale"]["domain"]
    assert middle == 0
    assert low == -high


def test_the_title_names_the_part_with_the_least_cosine_and_claims_no_more():
    title = title_text(charts.opposition_map(frames.opposition()))
    assert title.startswith("At step 1,024 the mean cosine is least in head: mean cosine ")
    assert title.endswith(" negative, no interval")
    none = frames.opposition().with_columns(cosine=pl.lit(-0.001))
    assert title_text(charts.opposition_map(none)) == (
        "At step 1,024 the mean cosine is least in all: mean cosine +0.00, 100% negative, no interval"
    )


def test_bands_are_quantiles_of_the_pairs():
    spec = charts.cosine_distribution(frames.opposition(), part="layer 1").to_dict()
    row = next(row for row in rows_of(spec, mark_layers(spec, "line")[0]) if row["step"] == 64)
    pairs = frames.opposition().filter(
        (pl.col("a") < pl.col("b")) & (pl.col("part") == "layer 1") & (pl.col("step") == 64)
    )
    assert row["median"] == pytest.approx(pairs["cosine"].median())
    assert row["q05"] <= row["q25"] <= row["median"] <= row["q75"] <= row["q95"]
    assert "in layer 1" in title_text(charts.cosine_distribution(frames.opposition(), part="layer 1"))


def test_the_share_below_zero_has_the_interval_of_the_table():
    frame = frames.opposition()
    table = opposition_table(frame, resamples=100)
    chart = charts.cosine_distribution(frame, table, part="head").to_dict()
    (band,) = mark_layers(chart["vconcat"][1], "area", chart.get("data"))
    band_by_step = {row["step"]: (row["low"], row["high"]) for row in rows_of(chart, band)}
    of_head = table.filter(pl.col("part") == "head").select("step", "negative_low", "negative_high")
    assert band_by_step == {step: pytest.approx(ends) for step, *ends in of_head.iter_rows()}
    top = mark_layers(chart["vconcat"][1], "line")[0]["encoding"]["y"]["scale"]["domain"][1]
    assert top > of_head["negative_high"].max()
    assert "share below zero: 95 % interval, over rows of text" in chart["title"]["subtitle"]
    low, high = of_head.row(-1)[1:]
    assert f"negative (95 % interval {low:.0%} to {high:.0%})" in chart["description"]


def test_where_there_is_no_interval_that_is_reported():
    frame = frames.opposition()
    none = opposition_table(frame).with_columns(negative_low=pl.lit(None, pl.Float64))
    for chart in (charts.cosine_distribution(frame), charts.cosine_distribution(frame, none)):
        spec = chart.to_dict()
        assert not mark_layers(spec["vconcat"][1], "area")
        assert "share below zero: no interval" in spec["title"]["subtitle"]
        assert "negative (no interval)" in spec["description"]
    assert "no interval" in charts.group_opposition(frames.group_opposition()).to_dict()["title"]["subtitle"][-1]


def test_a_gram_matrix_is_whole_and_symmetric():
    spec = charts.gram(frames.opposition(), 64).to_dict()
    cells = {(cell["a"], cell["b"]): cell["cosine"] for cell in rows_of(spec, mark_layers(spec, "rect")[0])}
    assert len(cells) == 144
    assert all(cells[b, a] == value for (a, b), value in cells.items())
    assert "At step 64" in title_text(charts.gram(frames.opposition(), 64))


def test_a_groups_name_may_hold_anything():
    name = "'\"</text> \\ rarer than 1 in 10,000"
    renamed = frames.group_opposition().with_columns(pl.col("a", "b").replace("rare", name))
    svg = charts.to_svg(charts.group_opposition(renamed))
    assert "undefined" not in svg
    assert "'\"&lt;/text&gt; \\" in svg.replace("&quot;", '"').replace("&#39;", "'")


def luminance(red, green, blue):
    """Relative luminance of a colour from 0 to 255 (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red / 255, green / 255, blue / 255)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_numbers_can_be_read_on_every_tile():
    names = [f"group {i:02}" for i in range(41)]
    rows = [("group 00", name, (i - 20) / 20 * 0.5) for i, name in enumerate(names) if i]
    frame = pl.DataFrame(rows, ["a", "b", "cosine"], orient="row").with_columns(step=1, part=pl.lit("all"))
    spec = specification(charts.group_opposition(frame))  # the shipped pictures have no labels of marks
    svg = vl_convert.vegalite_to_svg(json.dumps(spec), vl_version=alt.SCHEMA_VERSION[1:].rpartition(".")[0])
    tiles = re.findall(r'cosine: ([^"]*)" [^>]*rect mark"[^>]* fill="rgb\((\d+), (\d+), (\d+)\)"', svg)
    inks = dict(re.findall(r'cosine: ([^"]*)" [^>]*text mark"[^>]* fill="#(\w{6})"', svg))
    assert len(inks) == 40
    for cosine, *tile in tiles:
        ink = luminance(*bytes.fromhex(inks[cosine]))
        lighter, darker = sorted((luminance(*map(int, tile)), ink), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, cosine


def test_many_rows_are_cut_and_reported():
    spec = charts.gram(frames.opposition(rows=80, steps=(1,)), 1).to_dict()
    assert len(rows_of(spec, mark_layers(spec, "rect")[0])) == 64 * 64
    assert "the first 64 rows" in str(spec["title"]["subtitle"])
    assert "one row" in title_text(charts.gram(frames.opposition(rows=1, steps=(1,))))


def test_groups_name_the_pair_that_is_most_opposed():
    chart = charts.group_opposition(frames.group_opposition())
    assert title_text(chart) == "At step 1,024 the cosine is least between “rare” and “frequent”: −0.40, no interval"
    spec = chart.to_dict()
    assert len(rows_of(spec, mark_layers(spec, "rect")[0])) == 16
    assert mark_layers(spec, "rect")[0]["encoding"]["x"]["sort"] == frames.GROUPS
    backwards = charts.group_opposition(frames.group_opposition(), groups=frames.GROUPS[::-1]).to_dict()
    assert mark_layers(backwards, "rect")[0]["encoding"]["y"]["sort"] == frames.GROUPS[::-1]
    one = frames.group_opposition().filter(pl.col("a") == "frequent")
    assert "Opposition between groups" in title_text(charts.group_opposition(one))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: charts.opposition_map(frames.opposition().drop("cosine")), "needs the columns"),
        (lambda: charts.opposition_map(frames.opposition().filter(pl.col("a") == pl.col("b"))), "two rows or more"),
        (lambda: charts.cosine_distribution(frames.opposition(), part="layer 9"), "no part 'layer 9'; parts: all, emb"),
        (lambda: charts.cosine_distribution(frames.opposition().clear()), "no cosines"),
        (lambda: charts.cosine_distribution(frames.opposition(), frames.opposition()), "shares of cosines over"),
        (lambda: charts.gram(frames.opposition(), 3), "step 3 was not measured; measured: 1, 2"),
        (lambda: charts.gram(frames.opposition().clear()), "parts: none"),
        (lambda: charts.group_opposition(frames.group_opposition().drop("a")), "needs the columns"),
        (lambda: charts.group_opposition(frames.group_opposition().clear()), "no part 'all'"),
    ],
)
def test_what_cannot_be_drawn_is_reported(draw, message):
    with pytest.raises(UserError, match=message):
        draw()

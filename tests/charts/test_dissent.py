"""Dissent as figures: groups, curves, published readings, and the plane that follows a step."""

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.charts.axes import Cursor
from lmdynamics.errors import UserError
from tests.charts import interference_frames as frames
from tests.charts.specs import at_step, mark_layers, rows_of, spec_and_svg, title_text

ONE = frames.dissent(("17k",)).drop("curve")
READINGS = {"14M ≈ −.97": -0.97, "1B ≈ −.31": -0.31}
EVERY = {
    "over training": lambda: charts.dissent_over_training(frames.dissent(), published=READINGS),
    "one curve": lambda: charts.dissent_over_training(ONE),
    "plane": lambda: charts.dissent_plane(frames.dissent(), 64),
    "one plane": lambda: charts.dissent_plane(ONE),
    "norms": lambda: charts.norms_over_training(frames.dissent()),
    "norms of one": lambda: charts.norms_over_training(ONE),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_draws_and_says_what_it_shows(name):
    spec_and_svg(EVERY[name]())


def test_a_panel_per_curve_on_one_scale_from_total_dissent():
    spec = EVERY["over training"]().to_dict()
    assert [panel["title"]["text"] for panel in spec["hconcat"]] == ["17k", "260k"]
    domains = [mark_layers(panel, "line")[0]["encoding"]["y"]["scale"]["domain"] for panel in spec["hconcat"]]
    assert domains[0] == domains[1]
    assert domains[0][0] == -1
    assert "title" not in EVERY["one curve"]().to_dict()["hconcat"][0]


def test_four_curves_stand_two_in_a_row():
    four = frames.dissent(("17k", "43k", "115k", "260k"))
    for chart in (charts.dissent_over_training(four, published=READINGS), charts.dissent_plane(four)):
        spec = chart.to_dict()
        assert (len(spec["concat"]), spec["columns"]) == (4, 2)
        assert "<svg" in charts.to_svg(chart)
    assert charts.norms_over_training(four).to_dict()["columns"] == 4


def test_a_group_keeps_its_colour_where_others_are_left_out():
    all_colours = mark_layers(EVERY["one curve"]().to_dict(), "line")[0]["encoding"]["color"]["scale"]
    common = ONE.filter(pl.col("group").is_in(["common", "frequent"]))
    for chart in (charts.dissent_over_training, charts.dissent_plane, charts.norms_over_training):
        part = mark_layers(chart(common, groups=frames.GROUPS).to_dict(), "line")[0]["encoding"]["color"]["scale"]
        assert part["domain"] == ["common", "frequent"]
        assert part["range"] == all_colours["range"][2:]


def test_groups_may_be_an_enumeration():
    ordered = ONE.with_columns(pl.col("group").cast(pl.Enum(frames.GROUPS)))
    assert charts.dissent_plane(ordered).to_dict()["title"] == charts.dissent_plane(ONE).to_dict()["title"]


def test_the_title_names_who_goes_furthest():
    last = frames.dissent().filter(pl.col("step") == 1024).sort("dissent")
    far, near = last.row(0, named=True), last.row(-1, named=True)
    assert title_text(EVERY["over training"]()) == (
        f"Dissent at the end: from {near['dissent']:.2f} (260k, frequent) to {far['dissent']:.2f} (17k, rare)"
    ).replace("-", "−")


def test_published_readings_are_lines_that_the_caption_explains():
    spec = EVERY["over training"]().to_dict()
    rule = mark_layers(spec["hconcat"][0], "rule")[0]
    assert [row["dissent"] for row in rows_of(spec, rule)] == list(READINGS.values())
    assert not mark_layers(spec["hconcat"][0], "text")
    assert sum(len(rows_of(spec, text)) for text in mark_layers(spec["hconcat"][1], "text")) == 2
    assert "poster" in str(spec["title"]["subtitle"])


def test_without_intervals_there_are_no_bands():
    bare = ONE.with_columns(dissent_low=pl.lit(None, pl.Float64))
    assert not mark_layers(charts.dissent_over_training(bare).to_dict(), "area")
    assert not mark_layers(charts.dissent_over_training(ONE.drop("dissent_low", "dissent_high")).to_dict(), "area")


def test_the_control_is_dotted_where_there_is_one():
    spec = charts.dissent_over_training(ONE).to_dict()
    dotted = [layer for layer in mark_layers(spec, "line") if "strokeDash" in layer["mark"]]
    assert [layer["encoding"]["y"]["field"] for layer in dotted] == ["dissent_control"]
    assert "another position" in str(spec["title"]["subtitle"])
    bare = charts.dissent_over_training(ONE.drop("dissent_control")).to_dict()
    assert not any("strokeDash" in layer["mark"] for layer in mark_layers(bare, "line"))


def test_the_plane_follows_its_parameter():
    cursor = Cursor([0, *frames.STEPS])
    chart = charts.dissent_plane(frames.dissent(), cursor=cursor)
    spec = chart.to_dict()
    large = [layer for layer in mark_layers(spec, "point") if layer["mark"]["size"] > 100]
    assert len(large) == 2
    assert all(layer["transform"] == [{"filter": "datum.step == cursor_step"}] for layer in large)
    assert "step 64" in charts.to_svg(at_step(chart, cursor, 64))
    assert "step 64" in charts.to_svg(charts.dissent_plane(frames.dissent(), 64))
    assert {row["step"] for row in rows_of(spec, large[0])} == {0, *frames.STEPS}


def test_the_planes_four_quarters_say_what_a_step_does():
    spec = EVERY["one plane"]().to_dict()
    texts = {tuple(layer["mark"]["text"]): rows_of(spec, layer)[0] for layer in mark_layers(spec, "text")}
    both = texts["both shorten h",]
    assert both["cos_hidden_attractive"] > 0
    assert both["cos_hidden_repulsive"] > 0
    assert len(texts) == 4


def test_small_planes_say_it_in_their_caption():
    """In three panels of one row, the texts would lie under the lines."""
    three = frames.dissent(("17k", "43k", "115k"))
    spec = charts.dissent_plane(three, cursor=Cursor([0, *frames.STEPS])).to_dict()
    assert not mark_layers(spec, "text")
    assert "left of 0 attraction lengthens h" in " ".join(spec["title"]["subtitle"])


def test_norms_have_a_row_each_and_a_column_per_curve():
    spec = EVERY["norms"]().to_dict()
    assert len(spec["concat"]) == 6
    assert spec["columns"] == 2
    zero = ONE.with_columns(norm_repulsive=pl.lit(0.0))
    assert "<svg" in charts.to_svg(charts.norms_over_training(zero))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: charts.dissent_over_training(ONE.drop("dissent")), "needs the columns"),
        (lambda: charts.dissent_over_training(ONE.clear()), "none of 0 rows"),
        (lambda: charts.dissent_plane(ONE, 7), "step 7 was not measured; measured: 0, 1"),
        (lambda: charts.dissent_plane(ONE.clear()), "none of 0 rows"),
        (lambda: charts.norms_over_training(ONE.drop("norm_hidden")), "needs the columns"),
    ],
)
def test_what_cannot_be_drawn_is_reported(draw, message):
    with pytest.raises(UserError, match=message):
        draw()

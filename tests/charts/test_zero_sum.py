"""Interference as figures: what is drawn of which frame, what the titles claim, what is refused."""

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.charts.trades import clipped, spread
from lmdynamics.charts.zero_sum import MEASURES
from lmdynamics.errors import UserError
from lmdynamics.paths import shipped
from tests.charts import interference_frames as frames
from tests.charts.specs import mark_layers, rows_of, spec_and_svg, title_text

PUBLISHED = pl.read_csv(shipped("published") / "zsl_curves.csv")


EVERY = {
    "over training": lambda: charts.interference_over_training(frames.table(), frames.breaks(), PUBLISHED),
    "one curve": lambda: charts.interference_over_training(frames.table(("17k",))),
    "one step": lambda: charts.step_interference(frames.over_batches()),
    "first order": lambda: charts.first_order_against_measured(frames.one_step()),
    "traded": lambda: charts.traded(frames.traded()),
    "coefficients": lambda: charts.coefficients_over_training(frames.coefficients()),
    "layers": lambda: charts.coefficients_by_layer(frames.coefficients()),
    "extremes": lambda: charts.winners_and_losers(frames.extremes()),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_draws_and_says_what_it_shows(name):
    spec_and_svg(EVERY[name]())


def test_three_panels_hold_the_three_measures_as_given():
    table = frames.table(("17k",))
    spec = charts.interference_over_training(table).to_dict()
    assert len(spec["vconcat"]) == 3
    for panel, name in zip(spec["vconcat"], MEASURES, strict=True):
        line = mark_layers(panel, "line")[0]
        values = [row["value"] for row in rows_of(spec, line)]
        assert values == pytest.approx(table[name].abs().to_list())


def test_the_title_says_how_far_interference_rises():
    table = frames.table()
    d = table["interference"]
    ends = table.filter(pl.col("step") == 1024)["interference"]
    assert title_text(charts.interference_over_training(table)) == (
        f"Destructive interference rises from {d.min():.2f} at its lowest to {ends.min():.2f}–{ends.max():.2f} "
        "over the last doubling, for all 4 curves"
    )
    falling = table.with_columns(interference=1 - pl.col("interference"))
    assert "rises" not in title_text(charts.interference_over_training(falling))
    wide = table.with_columns(interference_low=pl.lit(0.0), interference_high=pl.lit(1.0))
    assert "rises" not in title_text(charts.interference_over_training(wide))  # every interval holds every value


def test_published_curves_stand_beside_on_the_same_scales():
    spec = charts.interference_over_training(frames.table(), published=PUBLISHED).to_dict()
    assert spec["columns"] == 2
    pairs = zip(spec["concat"][::2], spec["concat"][1::2], strict=True)
    for ours, theirs in pairs:
        domains = [mark_layers(panel, "line")[0]["encoding"]["y"]["scale"]["domain"] for panel in (ours, theirs)]
        assert domains[0] == domains[1]
    rows = rows_of(spec, mark_layers(spec, "line")[1])
    published = PUBLISHED.filter((pl.col("interval") == "doubling") & (pl.col("metric") == "interference"))
    assert sorted(row["value"] for row in rows) == sorted(published["value"])


def test_breaks_stand_in_the_colours_of_their_curves_and_close_ones_share_a_label():
    far = pl.DataFrame({"curve": ["17k", "43k", "unknown", "115k"], "step_at_break": [100.0, 600.0, 50.0, None]})
    spec = charts.interference_over_training(frames.table(), far).to_dict()
    rules = mark_layers(spec["vconcat"][0], "rule")
    assert [(row["curve"], row["x"]) for row in rows_of(spec, rules[0])] == [("17k", 100.0), ("43k", 600.0)]
    assert rules[0]["encoding"]["color"]["field"] == "curve"
    assert len(rows_of(spec, mark_layers(spec["vconcat"][0], "text")[0])) == 2
    near = charts.interference_over_training(frames.table(), frames.breaks()).to_dict()
    assert len(rows_of(near, mark_layers(near["vconcat"][0], "text")[0])) == 1
    assert not mark_layers(charts.interference_over_training(frames.table(), far.clear()).to_dict(), "rule")


def test_curves_of_one_size_share_a_colour():
    table = frames.table(("17k seed 0", "17k seed 1", "43k seed 0")).with_columns(size=pl.col("curve").str.slice(0, 3))
    spec = charts.interference_over_training(table, frames.breaks(("17k seed 0",))).to_dict()
    line = mark_layers(spec, "line")[0]
    assert line["encoding"]["color"]["field"] == "size"
    assert line["encoding"]["color"]["scale"]["domain"] == ["17k", "43k"]
    assert line["encoding"]["detail"]["field"] == "curve"
    assert "<svg" in charts.to_svg(charts.interference_over_training(table))


def test_without_intervals_there_are_no_bands():
    bare = frames.table(("17k",)).select("curve", "step", "interference", "magnitude", "mean_change")
    spec = charts.interference_over_training(bare).to_dict()
    assert not mark_layers(spec, "area")
    nulls = frames.over_batches().with_columns(
        pl.lit(None, pl.Float64).alias(f"{name}_{end}") for name in MEASURES for end in ("low", "high")
    )
    spec = charts.step_interference(nulls).to_dict()
    assert not mark_layers(spec, "area")
    assert "one batch: no interval" in spec["title"]["subtitle"][0]


def test_an_interval_over_zero_reaches_down_to_the_axis_and_a_rise_is_hollow():
    table = frames.table(("17k",)).with_columns(
        mean_change=pl.when(pl.col("step") == 512).then(0.05).otherwise("mean_change"),
        mean_change_low=pl.lit(-0.4),
        mean_change_high=pl.lit(0.1),
    )
    spec = charts.interference_over_training(table).to_dict()
    panel = spec["vconcat"][2]
    area = mark_layers(panel, "area")[0]
    domain = area["encoding"]["y"]["scale"]["domain"]
    assert {row["low"] for row in rows_of(spec, area)} == {domain[0]}
    assert {row["high"] for row in rows_of(spec, area)} == {0.4}
    assert [layer["mark"]["filled"] for layer in mark_layers(panel, "point")] == [True, False]
    assert "hollow: the loss rose" in " ".join(spec["title"]["subtitle"])


def test_one_step_names_both_splits_and_the_control():
    spec = charts.step_interference(frames.over_batches()).to_dict()
    line = mark_layers(spec, "line")[0]
    names = line["encoding"]["color"]["scale"]["domain"]
    assert names == [
        "the batch stepped on", "held out", "a random direction, on that batch", "a random direction, held out"
    ]  # fmt: skip
    assert line["encoding"]["strokeDash"]["field"] == "series"
    assert {row["series"] for row in rows_of(spec, line)} == set(names)


def test_a_scatter_shows_at_most_so_many_tokens_and_its_slope_is_that_of_all():
    big = frames.one_step(steps=(64,), rows=60, batches=2, length=20)
    chart = charts.first_order_against_measured(big)
    spec = chart.to_dict()
    assert [len(rows_of(spec, layer)) for layer in mark_layers(spec, "point")] == [600, 600]
    assert spec == charts.first_order_against_measured(big).to_dict()
    subset = big.filter((pl.col("split") == "stepped") & (pl.col("direction") == "update"))
    slope = subset.select(pl.cov("first_order", "change") / pl.col("first_order").var()).item()
    r = subset.select(pl.corr("first_order", "change")).item()
    head = spec["concat"][0]["title"]
    assert head["subtitle"] == f"slope {slope:.2f}, r {r:.3f}"
    held_out = charts.first_order_against_measured(big.filter(pl.col("split") == "held out")).to_dict()
    assert [len(rows_of(held_out, layer)) for layer in mark_layers(held_out, "point")] == [1200]


def test_four_steps_are_chosen_evenly_unless_named():
    assert spread(frames.STEPS, 4) == [1, 8, 128, 1024]
    assert spread([0, 1, 2], 4) == [0, 1, 2]
    assert spread([0, *frames.STEPS], 4)[0] == 1
    heads = charts.first_order_against_measured(frames.one_step(), [2, 16]).to_dict()["concat"]
    assert [panel["title"]["text"] for panel in heads] == ["step 2", "step 16"] * 2
    uneven = frames.one_step().filter((pl.col("split") == "stepped") | (pl.col("step") > 2))
    heads = charts.first_order_against_measured(uneven, [2, 16]).to_dict()["concat"]
    assert [panel["title"]["subtitle"] == "no tokens" for panel in heads] == [False, False, True, False]


def test_where_nothing_varies_there_is_no_line():
    still = frames.one_step().with_columns(change=pl.when(pl.col("step") > 4).then("change").otherwise(0.0))
    panels = charts.first_order_against_measured(still, [2, 16]).to_dict()["concat"]
    assert panels[0]["title"]["subtitle"] == "no line: nothing varies"
    assert "nan" not in title_text(charts.first_order_against_measured(still, [2]))


def test_bars_go_both_ways_and_the_title_says_how_much_was_undone():
    table = frames.traded()
    spec = charts.traded(table).to_dict()
    assert [panel["title"]["text"] for panel in spec["hconcat"]] == ["step 64 → 128", "step 1,024 → 2,048"]
    rows = rows_of(spec, mark_layers(spec["hconcat"][1], "bar")[0])
    assert all(row["away"] == -row["gained"] and row["lost"] >= 0 for row in rows)
    last = table.filter(pl.col("step") == 1024)
    share = last["lost"].sum() / last["gained"].sum()
    assert f"{share:.0%} of it undone by losses that rose" in title_text(charts.traded(table))
    one_step = charts.traded(table.filter(pl.col("step") == 64).drop("step", "net_low", "net_high")).to_dict()
    assert "title" not in one_step["hconcat"][0]
    assert len(charts.traded(frames.traded((1, 2, 4, 8, 16, 32))).to_dict()["hconcat"]) == 4


def test_coefficients_are_means_over_batches_and_1_minus_d_is_among_them():
    frame = frames.coefficients()
    spec = charts.coefficients_over_training(frame).to_dict()
    rows = [row for row in rows_of(spec, mark_layers(spec, "line")[0]) if row["name"] == "kept" and row["step"] == 64]
    at_step = frame.filter((pl.col("level") == "all") & (pl.col("step") == 64))
    assert rows[0]["value"] == pytest.approx((1 - at_step["interference"]).mean())
    assert rows[0]["low"] == pytest.approx((1 - at_step["interference"]).min())


def test_a_layer_map_has_a_tile_for_each_part_and_step():
    for coefficient in ("C_g", "C_ug", "C_uG", "interference"):
        spec = charts.coefficients_by_layer(frames.coefficients(), coefficient).to_dict()
        assert len(rows_of(spec, mark_layers(spec, "rect")[0])) == len(frames.PARTS) * len(frames.STEPS)
        assert spec["title"]["subtitle"] == ["mean over batches; no interval"]
    one_batch = charts.coefficients_by_layer(frames.coefficients().filter(pl.col("batch") == 0)).to_dict()
    assert one_batch["title"]["subtitle"] == ["one batch; no interval"]
    assert title_text(charts.coefficients_by_layer(frames.coefficients())).startswith(
        "C_g by layer: at the last step from"
    )


def test_tokens_are_text_and_distinguished():
    names = {0: " the", 1: "</text><script>alert(1)</script>", 2: "\u202e\x00", 3: "x" * 300, 4: "the", 5: "the"}
    chart = charts.winners_and_losers(frames.extremes(), lambda token: names.get(token, f"t{token}"))
    spec, svg = chart.to_dict(), charts.to_svg(chart)
    labels = [row["label"] for row in rows_of(spec, mark_layers(spec, "bar")[0])]
    assert labels[:3] == ["·the", "</text><s…ript>", "\\u202e\\x00"]
    assert labels[4:6] == ["the (4)", "the (5)"]
    assert max(map(len, labels)) < 30
    assert "<script" not in svg
    assert title_text(chart) == "“·the” gained most (−0.90 nats), “t100” lost most (+0.70 nats)"
    extremes = frames.extremes(1).with_columns(form=pl.Series(["a", ""]))
    assert "“∅” lost most" in title_text(charts.winners_and_losers(extremes))
    assert [clipped(text) for text in ("\n", "Ġthe", "▁the", " a b")] == ["\\n", "·the", "·the", "·a·b"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: charts.interference_over_training(frames.table().drop("magnitude")), "needs the columns"),
        (lambda: charts.interference_over_training(frames.table().clear()), "none of 0 rows has a number"),
        (lambda: charts.interference_over_training(frames.table(), frames.breaks().drop("curve")), "breaks needs"),
        (lambda: charts.interference_over_training(frames.table(), published=PUBLISHED.clear()), "no rows"),
        (
            lambda: charts.interference_over_training(frames.table(), published=PUBLISHED.drop("model")),
            "published needs",
        ),
        (lambda: charts.step_interference(frames.over_batches().drop("split")), "needs the columns"),
        (
            lambda: charts.step_interference(frames.over_batches().with_columns(split=pl.lit("x"))),
            "there is no x / upd",
        ),
        (lambda: charts.step_interference(frames.over_batches().clear()), "none of 0 rows"),
        (
            lambda: charts.first_order_against_measured(frames.one_step(), [7]),
            "step 7 was not measured; measured: 1, 2",
        ),
        (lambda: charts.first_order_against_measured(frames.one_step().clear()), "no token has a change"),
        (lambda: charts.traded(frames.traded().clear()), "no rows"),
        (lambda: charts.traded(frames.traded().drop("net")), "needs the columns"),
        (lambda: charts.coefficients_over_training(frames.coefficients().clear()), "no coefficient"),
        (lambda: charts.coefficients_by_layer(frames.coefficients(), level="module"), "levels: all, layer"),
        (lambda: charts.coefficients_by_layer(frames.coefficients(), "C_x"), "C_x not among them"),
        (lambda: charts.winners_and_losers(frames.extremes().clear()), "min_count"),
    ],
)
def test_what_cannot_be_drawn_is_reported(draw, message):
    with pytest.raises(UserError, match=message):
        draw()

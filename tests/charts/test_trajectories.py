"""Curves over training, tested as specifications: what is drawn, from which rows, and what is said about it."""

import json

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.analysis.intervals import loss_by_bin
from lmdynamics.analysis.onsets import Onset, structure_onset
from lmdynamics.analysis.precursors import precursor_curves, precursor_onsets, resampled
from lmdynamics.analysis.syntax import accuracy_by_step, uas_by_step
from lmdynamics.charts.axes import STEP_ZERO, onset_bands, step_axis, step_ticks
from lmdynamics.charts.theme import BLUE, GREY, ONSETS, ORANGE, SOURCES, STILL_TEXT
from lmdynamics.errors import UserError
from tests.analysis.frames import STEPS, pairs_trace, precursor_rows, sigmoid, uas_trace
from tests.charts.specs import spec_and_svg

STRUCTURE = Onset("structure", 300, 250, 400, 200, 150, 250, None, "because", 1.0)
CAPABILITIES = Onset("capabilities", 900, 800, 1000, 700, 600, 800, None, "because", 1.0)
NONE = Onset("structure", None, None, None, None, None, None, None, "never", 0.0)


def log(steps=2000):
    step = list(range(1, steps + 1))
    return pl.DataFrame({"step": step, "loss": [6 - 3 * s / steps for s in step]})


def held_out():
    return pl.DataFrame({"step": STEPS, "loss": sigmoid(STEPS, 6, 2.3, 300), "stderr": 0.02, "tokens": 900})


def every_chart():
    uas = uas_by_step(uas_trace(dict.fromkeys(SOURCES, 0.3), sentences=30))
    pairs = accuracy_by_step(pairs_trace({"near": 0.6, "far": 0.5}, pairs=30))
    dimension = pl.DataFrame({"step": STEPS, "dimension": sigmoid(STEPS, 3, 12, 300), "points": 500})
    fisher = pl.DataFrame({"step": STEPS, "trace": sigmoid(STEPS, 10, 900, 300), "stderr": 2.0, "examples": 50})
    return {
        "loss": charts.loss_over_training(log(), held_out(), [STRUCTURE, CAPABILITIES]),
        "uas": charts.uas_over_training(uas, STRUCTURE),
        "pairs": charts.pair_accuracy_over_training(pairs, CAPABILITIES),
        "complexity": charts.complexity_over_training(dimension, None, fisher, [STRUCTURE]),
        "precursors": precursors(),
    }


def precursors(rows=None):
    data = resampled(precursor_rows() if rows is None else rows)
    others = {"structure": STRUCTURE, "capabilities": CAPABILITIES}
    return charts.precursors_over_training(precursor_curves(data), precursor_onsets(data) | others)


@pytest.mark.parametrize("name", ["loss", "uas", "pairs", "complexity", "precursors"])
def test_every_figure_says_what_it_shows_and_draws(name):
    spec, svg = spec_and_svg(every_chart()[name])
    assert "log" in str(spec)
    assert all(line in svg for line in spec["title"]["text"])
    assert "onset at step" in spec["description"]


def rows_of(spec):
    return [row for dataset in spec["datasets"].values() for row in dataset]


def test_step_zero_stands_left_of_one_and_is_labelled_0():
    spec = charts.loss_over_training(log(10), held_out()).to_dict()
    zero = [row["x"] for row in rows_of(spec) if row["step"] == 0]
    assert zero == [STEP_ZERO]
    axis = step_axis([0, 1, 10]).to_dict()
    assert axis["axis"]["values"] == [0.5, 1, 3, 10]
    assert "'0'" in axis["axis"]["labelExpr"]
    assert axis["scale"]["domain"][0] < STEP_ZERO


@pytest.mark.parametrize(
    ("steps", "ticks"),
    [
        ([0], [0.5]),
        ([20_000, 2_000_000], [30_000, 100_000, 300_000, 1_000_000]),
        ([], [1]),
        ([4_000, 9_000], [4_000, 5_000, 6_000, 8_000]),
        ([125_000, 250_000], [150_000, 200_000, 250_000]),
        ([0, 5_000, 6_000], [0.5, 5_000, 5_200, 5_400, 5_600, 5_800, 6_000]),
        ([0, 1, 2], [0.5, 1, 2]),
        ([700], [700]),
    ],
)
def test_ticks_fit_whatever_steps_there_are(steps, ticks):
    assert step_ticks(steps) == ticks
    assert len(step_ticks(steps, sparse=True)) >= min(2, len(set(steps)))
    assert step_axis(steps).to_dict()["scale"]["domain"][0] > 0


def test_a_long_log_becomes_few_rows_that_keep_its_mean():
    thin = loss_by_bin(log(50_000))
    assert len(thin) < 250
    assert thin["low"].max() <= 6
    assert (thin["low"] <= thin["loss"]).all()
    assert thin["loss"][-1] == pytest.approx(3, abs=0.1)


def test_a_diverged_log_still_draws_what_was_finite():
    broken = log(100).with_columns(pl.when(pl.col("step") < 50).then("loss").otherwise(float("nan")))
    assert loss_by_bin(broken)["step"].max() < 50


def test_an_onset_is_a_band_from_low_to_high_and_a_line():
    rect, rule, text = (layer.to_dict() for layer in onset_bands([STRUCTURE], step_axis(STEPS)))
    values = rect["data"]["values"][0]
    assert (values["from"], values["x"], values["to"]) == (250, 300, 400)
    assert rect["mark"]["type"] == "rect"
    assert rule["mark"]["color"] == ONSETS["structure"]
    assert text["data"]["values"][0]["label"] == "structure 300"


def test_no_onset_draws_no_band():
    assert onset_bands([NONE], step_axis(STEPS)) == []
    assert "no onset" in charts.loss_over_training(log(), None, [NONE]).to_dict()["description"]


def test_both_structure_onsets_are_drawn_and_one_without_a_date_is_reported():
    beyond = Onset("structure beyond position", 900, 800, 1000, None, None, None, None, "because", 1.0)
    spec = charts.uas_over_training(
        uas_by_step(uas_trace(dict.fromkeys(SOURCES, 0.3), sentences=30)), [STRUCTURE, beyond]
    ).to_dict()
    labels = [
        row["label"] for layer in spec["layer"] for row in layer.get("data", {}).get("values", []) if "label" in row
    ]
    assert set(labels) == {"structure 300", "structure beyond position 900"}
    late = Onset("structure", *[None] * 7, "already above", 1.0, 1500)
    spec = charts.uas_over_training(uas_by_step(uas_trace(dict.fromkeys(SOURCES, 0.3), sentences=30)), late).to_dict()
    assert "structure onset at or before step 1,500, not dated (already above)" in spec["title"]["subtitle"]
    assert "Structure onset at or before step 1,500" in spec["description"]


def test_a_band_that_begins_at_step_0_begins_there():
    early = Onset("structure", 1, 0, 2, None, None, None, None, "because", 1.0)
    (values,) = {
        tuple(layer.to_dict()["data"]["values"][0].items()) for layer in onset_bands([early], step_axis(STEPS))
    }
    assert (dict(values)["from"], dict(values)["to"]) == (0.5, 2)


def test_uas_shows_its_controls_and_the_biased_variant_thinner():
    spec = every_chart()["uas"].to_dict()
    line = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "line")
    colours = dict(zip(*(line["encoding"]["color"]["scale"][k] for k in ("domain", "range")), strict=True))
    assert colours[SOURCES["per_relation"][0]] == BLUE
    assert colours[SOURCES["shuffled"][0]] == ORANGE
    assert colours[SOURCES["offset"][0]] == GREY
    widths = dict(zip(*(line["encoding"]["strokeWidth"]["scale"][k] for k in ("domain", "range")), strict=True))
    assert widths[SOURCES["per_relation_same"][0]] < widths[SOURCES["per_relation"][0]]
    dashes = dict(zip(*(line["encoding"]["strokeDash"]["scale"][k] for k in ("domain", "range")), strict=True))
    assert dashes[SOURCES["offset"][0]] != [1, 0]
    assert sum(layer["mark"]["type"] == "area" for layer in spec["layer"]) == 2


def test_pairs_have_a_panel_each_and_chance_dashed():
    spec = every_chart()["pairs"].to_dict()
    assert spec["facet"]["field"] == "panel"
    dashed = [layer for layer in spec["spec"]["layer"] if layer["mark"].get("strokeDash")]
    assert dashed[0]["encoding"]["y"]["field"] == "chance"
    one_panel = charts.pair_accuracy_over_training(accuracy_by_step(pairs_trace({"only": 0.7}, pairs=20))).to_dict()
    assert "facet" not in one_panel


def test_colours_read_on_white_and_on_black():
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for min_contrast, colours in ((4, [STILL_TEXT]), (2, [BLUE, ORANGE, GREY, *ONSETS.values()])):
        for colour in colours:
            assert min(1.05 / (luminance(colour) + 0.05), (luminance(colour) + 0.05) / 0.055) > min_contrast


def test_a_frame_of_another_kind_is_refused():
    with pytest.raises(UserError, match="needs the columns"):
        charts.uas_over_training(log())
    with pytest.raises(UserError, match="needs the columns"):
        charts.pair_accuracy_over_training(held_out())


def test_a_real_onset_reaches_the_figure():
    trace = uas_trace({"per_relation": sigmoid(STEPS, 0.2, 0.7, 300), "shuffled": 0.15}, sentences=100)
    onset = structure_onset(trace)
    assert str(onset).capitalize() in charts.uas_over_training(uas_by_step(trace), onset).to_dict()["description"]


def test_uas_of_a_causal_model_says_what_its_heads_could_reach():
    curve = uas_by_step(uas_trace(dict.fromkeys(SOURCES, 0.3), sentences=30))
    shuffled, late = pl.col("source") == "shuffled", pl.col("step") >= 100
    causal = curve.with_columns(reachable=pl.when(shuffled).then(0.5).when(late).then(0.7).otherwise(0.6))
    log = pl.DataFrame({"step": STEPS, "loss": [4.0] * len(STEPS)})
    for chart in (charts.uas_over_training, lambda frame: charts.loss_and_uas(log, frame)):
        causal_subtitle, plain_subtitle = (
            " ".join(chart(frame).to_dict()["title"]["subtitle"]) for frame in (causal, curve)
        )
        assert "60% to 70% of the arcs, 50%" in causal_subtitle
        assert "attends to the left" in causal_subtitle
        assert "attends to the left" not in plain_subtitle
        all_within_reach = " ".join(chart(curve.with_columns(reachable=1.0)).to_dict()["title"]["subtitle"])
        assert "attends to the left" not in all_within_reach


def test_a_run_without_a_log_has_no_key_to_one():
    empty = log(3).clear()
    spec = json.dumps(charts.loss_over_training(empty, held_out()).to_dict())
    assert "held out" in spec
    assert "atches" not in spec


def test_what_precedes_the_drop_is_in_the_title_and_the_drop_in_every_panel():
    spec = precursors().to_dict()
    title = " ".join(spec["title"]["text"])
    assert "repetition, parallel states, parallel states within rows" in title
    caption = " ".join(spec["title"]["subtitle"])
    assert "after: attention, attention beyond other heads, structure, capabilities" in caption
    assert "undated: repetition beyond frequency" in caption
    assert len(spec["vconcat"]) == 4
    labels = []
    for number, layered in enumerate(spec["vconcat"]):
        rules = [layer for layer in layered["layer"] if layer["mark"]["type"] == "rule"]
        assert GREY in [rule["mark"]["color"] for rule in rules]
        values = [row for layer in layered["layer"] for row in layer.get("data", {}).get("values", [])]
        labels.append({row["label"].rsplit(" ", 1)[0] for row in values} - ({"loss drop"} if number else set()))
    assert labels[0] == {"loss drop", "structure", "capabilities"}
    assert labels[1:] == [
        {"repetition"},
        {"parallel states", "parallel states within rows"},
        {"attention", "attention beyond other heads"},
    ]


def test_without_a_drop_or_attention_the_rest_is_drawn():
    rows = precursor_rows().drop("distance", "distance_other").with_columns(loss=pl.lit(6.0))
    spec = precursors(rows).to_dict()
    assert spec["title"]["text"] == ["No loss drop is dated"]
    assert "never more than 0.1 above zero" in " ".join(spec["title"]["subtitle"])
    assert len(spec["vconcat"]) == 3
    with pytest.raises(UserError, match="no loss drop"):
        charts.precursors_over_training(precursor_curves(resampled(rows)), {})


def test_two_onsets_at_one_step_have_labels_at_two_heights():
    twin = Onset("capabilities", 300, 250, 400, None, None, None, None, "because", 1.0)
    texts = [layer.to_dict() for layer in onset_bands([STRUCTURE, twin], step_axis(STEPS))]
    heights = [layer["encoding"]["y"]["value"] for layer in texts if layer["mark"]["type"] == "text"]
    assert heights == [0, -13]

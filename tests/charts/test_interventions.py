"""Conditions compared: over training, at the end, per paradigm, over a setting; schedules and families of runs."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.analysis.statistics import mean_over_seeds
from lmdynamics.charts.theme import CONDITIONS, condition_colours
from lmdynamics.errors import UserError
from tests.analysis.frames import sigmoid
from tests.charts.specs import rows_of, spec_and_svg

NAMES = ["base", "SAS−", "SAS+"]
STEPS = [0, 1, 4, 16, 64, 256, 1024, 4000]
UAS, LOSS = "UAS (share of arcs found)", "held-out loss (nats per masked token)"
LATE = 64  # the step at which "released" leaves
ZORRO = "agreement_subject_verb-across_relative_clause"


def over_training(names=(*NAMES, "released"), seeds=3):
    rows = [
        (name, seed, step, float(sigmoid(step, 0.2, 0.4 + 0.1 * i, 200)) + 0.01 * seed)
        for i, name in enumerate(names)
        for seed in range(seeds)
        for step in STEPS
        if name != "released" or step >= LATE
    ]
    return pl.DataFrame(rows, schema=["condition", "seed", "step", "value"], orient="row")


def final(seeds=3, measures=(UAS, LOSS)):
    rows = [(m, c, s, 0.5 + 0.1 * i + 0.01 * s) for m in measures for i, c in enumerate(NAMES) for s in range(seeds)]
    return pl.DataFrame(rows, schema=["measure", "condition", "seed", "value"], orient="row")


def final_chart(frame, **options):
    return charts.final_by_condition(
        frame, mean_over_seeds(frame, ["measure", "condition"], "value"), "base", **options
    )


def rates(steps=1000):
    rate_by_name = {
        "constant 30 %": lambda u: 0.3,
        "step 30 → 15 %": lambda u: 0.3 if u < 0.5 else 0.15,
        "linear 30 → 15 %": lambda u: 0.3 - 0.15 * u,
    }
    rows = [(name, step, rate(step / steps)) for name, rate in rate_by_name.items() for step in range(steps + 1)]
    return pl.DataFrame(rows, schema=["condition", "step", "rate"], orient="row")


def speedups(**changes):
    rows = {
        "condition": ["linear", "constant 30 %", "step"],
        "value": [1.89, None, 1.2],
        "low": [1.4, None, None],
        "high": [2.6, None, 1.5],
        "step": [2116.0, None, 3333.0],
        "target": [0.7, 0.7, 0.7],
    }
    return pl.DataFrame(rows | changes)


def speedup_chart(rows=None, **options):
    names = ["base", "linear", "constant 30 %", "step"]
    grid = np.linspace(0, 4000, 9)
    fits = [(name, float(t), 0.71 - 0.2 * np.exp(-t / (700 + 300 * i))) for i, name in enumerate(names) for t in grid]
    fits = pl.DataFrame(fits, schema=["condition", "step", "value"], orient="row")
    points = fits.join(pl.DataFrame({"seed": [0, 1]}), how="cross")
    rows = speedups() if rows is None else rows
    return charts.speedup_curves(points, fits, rows, "base", "score (accuracy)", percent=True, **options)


def gains(paradigms=(ZORRO, "filler-gap-wh_question_object", "irregular-verb"), names=NAMES[1:], seeds=3):
    rows = [
        (paradigm, name, seed, 0.01 * (i - j) + 0.001 * seed)
        for i, paradigm in enumerate(paradigms)
        for j, name in enumerate(names)
        for seed in range(seeds)
    ]
    return pl.DataFrame(rows, schema=["paradigm", "condition", "seed", "difference"], orient="row")


def family(**changes):
    rows = {
        "run": ["base", "early", "late", "late again"],
        "generation": [0, 1, 1, 2],
        "start": [0, 64, 512, 1024],
        "end": [4000, 4000, 4000, 5000],
        "parent": [None, "base", "base", "late"],
        "changes": ["", "lr = 0.001", "", "steps = 5000"],
    }
    return pl.DataFrame(rows | changes)


def settings(seeds=3):
    rows = [(f"λ = {x}", s, m, x + 0.01 * s) for m in (UAS, LOSS) for x in (1, 0, 0.1) for s in range(seeds)]
    return pl.DataFrame(rows, schema=["condition", "seed", "measure", "value"], orient="row")


EVERY = {
    "rates": lambda: charts.masking_rates(rates()),
    "one measure": lambda: charts.conditions_over_training(
        over_training(), UAS, percent=True, controls={"chance": 0.5}
    ),
    "panels": lambda: charts.conditions_panels(
        pl.concat(over_training().with_columns(measure=pl.lit(name)) for name in (LOSS, UAS)), percent=[UAS]
    ),
    "final": lambda: final_chart(final(), percent=[UAS]),
    "final, one seed": lambda: final_chart(final(seeds=1)),
    "speed-up": speedup_chart,
    "gain": lambda: charts.gain_by_paradigm(gains(), "base"),
    "family": lambda: charts.family_tree(family()),
    "settings": lambda: charts.value_over_parameter(settings(), "strength λ", baseline="λ = 0"),
    "one of each": lambda: charts.conditions_over_training(over_training(["base"], seeds=1), UAS),
}


def panels_of(spec):
    return next((spec[key] for key in ("vconcat", "hconcat", "concat") if key in spec), [spec])


def layers_of(spec, mark):
    return [layer for panel in panels_of(spec) for layer in panel["layer"] if kind(layer) == mark]


def kind(layer):
    return layer["mark"] if isinstance(layer["mark"], str) else layer["mark"]["type"]


def colours_of(encoding):
    scale = encoding["color"]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_says_what_it_shows_and_draws(name):
    spec_and_svg(EVERY[name]())


def test_a_condition_keeps_its_colour_where_others_are_absent():
    colours = condition_colours(["SAS+"], NAMES)
    assert colours == {"SAS+": condition_colours(NAMES)["SAS+"]}
    spec = charts.conditions_over_training(over_training(["SAS+"]), UAS, conditions=NAMES).to_dict()
    assert colours_of(layers_of(spec, "line")[0]["encoding"]) == colours
    assert condition_colours(["b", "a", "b"]) == dict(zip("ba", CONDITIONS, strict=False))


def test_nine_conditions_are_too_many_and_an_unknown_one_is_named():
    names = [f"c{i}" for i in range(9)]
    with pytest.raises(UserError, match="9 conditions, and only 8 distinguishable colours; choose fewer"):
        charts.conditions_over_training(over_training(names, seeds=1), UAS)
    with pytest.raises(UserError, match=r"'SAS\+', conditions= names only base"):
        charts.gain_by_paradigm(gains(names=["SAS+"]), conditions=["base"])


def test_every_seed_is_a_line_and_the_mean_is_thick():
    spec = EVERY["one measure"]().to_dict()
    thin, thick = layers_of(spec, "line")
    assert thin["encoding"]["detail"]["field"] == "seed"
    assert thin["mark"]["strokeWidth"] < thick["mark"]["strokeWidth"]
    assert len(rows_of(spec, thin)) == len(over_training())
    mean = over_training().group_by("condition", "step").agg(pl.col("value").mean())
    by_hand = {(condition, step): value for condition, step, value in mean.iter_rows()}
    for row in rows_of(spec, thick):
        assert row["value"] == pytest.approx(by_hand[row["condition"], row["step"]])
    assert "thin: each of 3 seeds; thick: their mean" in spec["title"]["subtitle"][-1]
    assert " ".join(spec["title"]["text"]) == "UAS (share of arcs found) at the end: 41.0% (base) to 71.0% (released)"


def test_a_branch_starts_with_a_dot_where_it_leaves():
    spec = EVERY["one measure"]().to_dict()
    dots = [row for layer in layers_of(spec, "point") if layer["mark"]["size"] > 50 for row in rows_of(spec, layer)]
    assert [(row["condition"], row["step"]) for row in dots] == [("released", LATE)]
    assert "dot: where a branch leaves" in spec["title"]["subtitle"][-1]
    without = charts.conditions_over_training(over_training(NAMES), UAS).to_dict()
    assert all(layer["mark"]["size"] < 50 for layer in layers_of(without, "point"))


def test_the_control_is_dashed_and_named():
    spec = EVERY["one measure"]().to_dict()
    (rule,) = layers_of(spec, "rule")
    assert rule["mark"]["strokeDash"]
    assert rows_of(spec, rule) == [{"name": "chance", "value": 0.5}]
    assert "Chance: 50.0%" in spec["description"]
    with pytest.raises(UserError, match=r"a control for 'uas'; measures: UAS"):
        charts.conditions_panels(over_training().with_columns(measure=pl.lit(UAS)), controls={"uas": {"chance": 0.5}})


def test_a_mean_needs_every_seed_and_the_caption_counts_what_is_missing():
    without_score = (pl.col("condition") == "base") & (pl.col("step") == 256) & (pl.col("seed") == 1)
    frame = over_training().with_columns(value=pl.when(without_score).then(float("nan")).otherwise("value"))
    spec = charts.conditions_over_training(frame, UAS).to_dict()
    thin, thick = layers_of(spec, "line")
    assert sum(row["value"] is None for row in rows_of(spec, thin)) == 1
    missing = [(row["condition"], row["step"]) for row in rows_of(spec, thick) if row["value"] is None]
    assert missing == [("base", 256)]
    assert spec["title"]["subtitle"][-1].endswith("1 value missing")


def test_intervals_of_single_seeds_are_drawn():
    frame = over_training(seeds=1).with_columns(low=pl.col("value") - 0.1, high=pl.col("value") + 0.1)
    spec = charts.conditions_over_training(frame, UAS).to_dict()
    (rule,) = layers_of(spec, "rule")
    assert rule["encoding"]["y"]["field"] == "low"
    assert rule["encoding"]["y2"]["field"] == "high"
    assert "one seed each" in spec["title"]["subtitle"][-1]


def test_panels_share_steps_and_colours_and_have_their_own_formats():
    spec = EVERY["panels"]().to_dict()
    upper, lower = (panel["layer"][0]["encoding"] for panel in spec["vconcat"])
    assert upper["x"]["scale"] == lower["x"]["scale"]
    assert (upper["x"]["title"], lower["x"]["title"]) == (None, "training step (log scale)")
    assert upper["color"] == lower["color"]
    assert upper["y"]["title"] == ["held-out loss", "(nats per", "masked token)"]
    assert (upper["y"]["axis"]["format"], lower["y"]["axis"]["format"]) == (",.4~g", "%")


def test_a_whole_training_log_is_too_much():
    log = pl.DataFrame({"condition": "base", "seed": 0, "step": range(6000), "value": 1.0})
    with pytest.raises(UserError, match="6,000 rows, a panel holds 5,000; average .*loss_by_bin"):
        charts.conditions_over_training(log, UAS)


def test_the_end_shows_seeds_mean_interval_and_baseline():
    spec = EVERY["final"]().to_dict()
    for panel, measure in zip(spec["concat"], (UAS, LOSS), strict=True):
        reference, bar, tick, dots = panel["layer"]
        assert [row["condition"] for row in rows_of(spec, reference)] == ["base"]
        assert reference["mark"]["strokeDash"]
        assert (bar["encoding"]["x"]["field"], bar["encoding"]["x2"]["field"]) == ("low", "high")
        assert tick["encoding"]["x"]["field"] == "mean"
        assert len(rows_of(spec, dots)) == 9
        assert {row["measure"] for row in rows_of(spec, dots)} == {measure}
    first, second = (panel["layer"][-1]["encoding"] for panel in spec["concat"])
    assert first["y"]["axis"]["labels"]
    assert not second["y"]["axis"]["labels"]
    assert first["x"]["axis"]["format"] == "%"
    assert "UAS (share of arcs found), base: 51.0% (95 % 48.5% to 53.5%)" in spec["description"]


def test_one_seed_has_no_interval_and_says_so():
    spec = EVERY["final, one seed"]().to_dict()
    assert "one seed each: no interval" in spec["title"]["subtitle"][-1]
    assert "95 %" not in spec["description"]


def test_an_unknown_baseline_is_refused():
    frame = final()
    means = mean_over_seeds(frame, ["measure", "condition"], "value")
    with pytest.raises(UserError, match=r"no baseline 'none'; conditions: base, SAS−, SAS\+"):
        charts.final_by_condition(frame, means, "none")
    with pytest.raises(UserError, match="no baseline 'none'; settings: λ = 1, λ = 0, λ = 0.1"):
        charts.value_over_parameter(settings(), "λ", baseline="none")


def test_settings_stand_in_their_order_with_seeds_and_means():
    spec = EVERY["settings"]().to_dict()
    dots = layers_of(spec, "point")[0]
    assert dots["encoding"]["x"]["sort"] == ["λ = 1", "λ = 0", "λ = 0.1"]
    assert len(rows_of(spec, dots)) == 9
    means = {row["condition"]: row["value"] for row in rows_of(spec, layers_of(spec, "line")[0])}
    assert means["λ = 0.1"] == pytest.approx(0.11)
    assert [row["condition"] for row in rows_of(spec, layers_of(spec, "rule")[0])] == ["λ = 0"]
    order = ["λ = 0", "λ = 0.1", "λ = 1"]
    ordered = charts.value_over_parameter(settings(), "λ", conditions=order).to_dict()
    assert layers_of(ordered, "point")[0]["encoding"]["x"]["sort"] == order
    with pytest.raises(UserError, match="'λ = 1' is not among conditions="):
        charts.value_over_parameter(settings(), "λ", conditions=order[:2])


def test_gains_are_in_points_with_whole_names_and_a_zero_line():
    spec = EVERY["gain"]().to_dict()
    zero, dots, ticks = spec["hconcat"][0]["layer"]
    assert zero["data"]["values"] == [{"value": 0}]
    axis = dots["encoding"]["y"]
    assert axis["sort"] == [
        "irregular: verb",
        "filler-gap: wh question object",
        "agreement subject verb: across relative clause",
    ]
    assert axis["axis"]["labelLimit"] == 0
    assert len(rows_of(spec, dots)) == 9
    mean = {row["name"]: row["value"] for row in rows_of(spec, ticks)}
    assert mean["irregular: verb"] == pytest.approx(2.1)
    assert spec["hconcat"][0]["title"]["subtitle"] == "+1.1, 3 of 3 up"
    scales = [panel["layer"][1]["encoding"]["x"]["scale"] for panel in spec["hconcat"]]
    assert scales[0] == scales[1]


def test_many_paradigms_stand_denser_and_the_baselines_own_rows_are_left_out():
    few, many = (charts.gain_by_paradigm(gains([f"p{i}" for i in range(n)], NAMES), "base").to_dict() for n in (3, 23))
    assert [len(spec["hconcat"]) for spec in (few, many)] == [2, 2]
    assert many["hconcat"][0]["height"] / 23 < few["hconcat"][0]["height"] / 3


def test_schedules_that_coincide_differ_in_width_and_dash():
    spec = EVERY["rates"]().to_dict()
    encoding = spec["layer"][0]["encoding"]
    widths, dashes = (encoding[channel]["scale"]["range"] for channel in ("strokeWidth", "strokeDash"))
    assert widths == sorted(widths, reverse=True)
    assert len({*map(tuple, dashes)}) == 3
    assert [layer["transform"][0]["filter"]["equal"] for layer in spec["layer"]] == encoding["color"]["scale"]["domain"]
    assert encoding["x"]["scale"]["domain"] == [0, 1000]
    assert "type" not in encoding["x"]["scale"]
    assert "15.0%" not in " ".join(spec["title"]["text"])
    assert "22.5% to 30.0%" in " ".join(spec["title"]["text"])


def test_a_long_schedule_becomes_few_rows_and_keeps_its_jump():
    spec = charts.masking_rates(rates(50_000)).to_dict()
    rows = rows_of(spec, spec["layer"][0] if "data" in spec["layer"][0] else spec)
    assert len(rows) < 800
    step = [row for row in rows if row["condition"] == "step 30 → 15 %"]
    (jump,) = [(a, b) for a, b in pairwise(step) if a["rate"] != b["rate"]]
    assert [row["step"] for row in jump] == [24_999, 25_000]
    assert step[-1]["step"] == 50_000


def test_a_speed_up_stands_beside_its_marker():
    spec = EVERY["speed-up"]().to_dict()
    texts = {row["label"]: row.get("x") for layer in layers_of(spec, "text") for row in rows_of(spec, layer)}
    assert texts["linear: 1.9× [1.4, 2.6]"] == 2116
    assert texts["step: 1.2× [open, 1.5]"] == 3333
    assert "constant 30 %: never reached" in texts
    assert "best of base: 70.0%" in texts
    markers = [rows_of(spec, layer)[0] for layer in layers_of(spec, "point") if layer["mark"]["size"] > 50]
    assert [(row["x"], row["value"]) for row in markers] == [(2116, 0.7), (3333, 0.7)]
    assert "Largest speed-up over base: 1.9× [1.4, 2.6], linear; 1 of 3 never" in " ".join(spec["title"]["text"])


def test_a_speed_up_beyond_the_last_checkpoint_widens_the_axis():
    spec = speedup_chart(speedups(step=[6000.0, None, 3333.0], value=[0.7, None, 1.2])).to_dict()
    assert layers_of(spec, "line")[0]["encoding"]["x"]["scale"]["domain"] == [0, 6000]


def test_where_none_reaches_the_best_the_title_says_so():
    nulls = dict.fromkeys(["value", "low", "high", "step"], [None] * 3)
    spec = speedup_chart(speedups(**nulls)).to_dict()
    assert spec["title"]["text"] == ["No schedule reaches the best of base"]


def test_speed_ups_over_two_baselines_are_refused():
    with pytest.raises(UserError, match="must share one target"):
        speedup_chart(speedups(target=[0.7, 0.7, 0.8]))
    with pytest.raises(UserError, match="no scores of 'cosine'; conditions: base, linear"):
        speedup_chart(speedups(condition=["linear", "cosine", "step"]))


def test_branches_hang_from_their_parents_the_last_to_leave_first():
    spec = EVERY["family"]().to_dict()
    line = layers_of(spec, "line")[0]
    assert line["encoding"]["y"]["scale"]["domain"] == ["base", "late", "late again", "early"]
    links = {row["run"]: (row["parent"], row["step"]) for row in rows_of(spec, layers_of(spec, "rule")[0])}
    assert links == {"early": ("base", 64), "late": ("base", 512), "late again": ("late", 1024)}
    texts = {row["run"]: row["text"] for row in rows_of(spec, layers_of(spec, "text")[0])}
    assert texts["early"] == "64: lr = 0.001"
    assert texts["late"] == "512: nothing changed"
    assert spec["title"]["text"] == ["3 branches leave at steps 64 to 1,024"]


def test_a_run_without_branches_is_a_family():
    spec = charts.family_tree(family().head(1)).to_dict()
    assert spec["title"]["text"] == ["1 run, no branches"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parent": [None, "gone", "base", "late"]}, "'early' branches off 'gone', which is not among them"),
        ({"run": ["base", "base", "late", "late again"]}, "'base' occurs twice"),
        ({"parent": [None, "base", "late again", "late"]}, "'late' is its own ancestor"),
    ],
)
def test_what_is_no_tree_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        charts.family_tree(family(**changes))


@pytest.mark.parametrize(
    "draw",
    [
        charts.masking_rates,
        lambda frame: charts.conditions_over_training(frame, UAS),
        charts.conditions_panels,
        lambda frame: charts.final_by_condition(frame, frame),
        lambda frame: charts.final_by_condition(final(), frame),
        lambda frame: charts.speedup_curves(frame, frame, frame, "base", UAS),
        charts.gain_by_paradigm,
        charts.family_tree,
        lambda frame: charts.value_over_parameter(frame, "λ"),
    ],
)
def test_a_frame_of_another_kind_is_refused(draw):
    with pytest.raises(UserError, match="needs? the columns"):
        draw(pl.DataFrame({"number": [1]}))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: charts.masking_rates(rates().clear()),
        lambda: charts.conditions_over_training(over_training().clear(), UAS),
        lambda: charts.conditions_over_training(over_training().with_columns(value=pl.lit(None)), UAS),
        lambda: charts.value_over_parameter(settings().clear(), "λ"),
        lambda: charts.gain_by_paradigm(gains().clear()),
        lambda: charts.family_tree(family().clear()),
        lambda: speedup_chart(speedups().clear()),
    ],
)
def test_a_frame_without_numbers_is_refused(draw):
    with pytest.raises(UserError, match="no rows|rows has a number|rows must share"):
        draw()

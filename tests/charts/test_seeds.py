"""Seeds beside each other: divergences over training and by group, and a dot for each seed."""

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.errors import UserError
from tests.charts.specs import mark_layers, rows_of, spec_and_svg

PANELS = {"divergence (nats)": ["another seed", "itself at half the step"], "for scale (nats)": ["loss"]}
COMPARED = [name for names in PANELS.values() for name in names]
LONG = "structure beyond position"


def over_training(bounded=True):
    rows = [
        (name, step, 0.1 * (i + 1) * step**0.2, 0.08 * (i + 1) * step**0.2, 0.13 * (i + 1) * step**0.2)
        for i, name in enumerate(COMPARED)
        for step in (0, 1, 8, 64, 512, 4000)
        if step or i != 1
    ]
    frame = pl.DataFrame(rows, ["compared", "step", "value", "low", "high"], orient="row")
    return frame if bounded else frame.with_columns(pl.lit(None, pl.Float64).alias(name) for name in ("low", "high"))


def by_group(bounded=True):
    groups = ["acl", "nsubj", "rarer than 1 in 10,000", "punct"]
    rows = [
        (group, name, 0.8 / (i + 1) * k, 0.7 / (i + 1) * k, 0.9 / (i + 1) * k)
        for i, group in enumerate(groups)
        for name, k in (("another seed", 1), ("itself at half the step", 1.5), ("loss", 3))
    ]
    frame = pl.DataFrame(rows, ["group", "compared", "value", "low", "high"], orient="row")
    return frame if bounded else frame.with_columns(pl.lit(None, pl.Float64).alias(name) for name in ("low", "high"))


def onsets():
    steps = {"structure": [181, 181, 203, 228], LONG: [1448, 1448, 1448, None], "capabilities": [None] * 4}
    rows = [(name, seed, step, 190.0, 1500.0) for name, of in steps.items() for seed, step in enumerate(of)]
    rows = [(*row[:3], *((None, None) if row[0] == "capabilities" else row[3:])) for row in rows]
    return pl.DataFrame(
        rows, {"name": pl.String, "seed": pl.Int64, "step": pl.Int64, "low": float, "high": float}, orient="row"
    )


def accuracies():
    rows = [
        (f"step {step:,}", seed, 0.5 + 0.0001 * step + 0.03 * seed) for step in (64, 512, 4000) for seed in range(5)
    ]
    return pl.DataFrame(rows, ["name", "seed", "value"], orient="row")


def grouped(frame):
    return charts.divergence_of_groups(frame, *PANELS["divergence (nats)"], "Seeds disagree most on acl")


EVERY = {
    "divergence": lambda: charts.divergence_panels(over_training(), PANELS, "Two seeds differ by 0.31 nats"),
    "divergence, one pair": lambda: charts.divergence_panels(over_training(False), PANELS, "One pair", "rows of text"),
    "groups": lambda: grouped(by_group()),
    "groups, one pair": lambda: grouped(by_group(False)),
    "onsets": lambda: charts.seeds_in_rows(onsets(), "No onset has two groups", "onset: training step (log scale)"),
    "accuracy": lambda: charts.seeds_in_rows(accuracies(), "One group", "share of pairs judged right", percent=True),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_says_what_it_shows_and_draws(name):
    spec_and_svg(EVERY[name]())


def test_groups_are_ordered_by_the_divergence_of_seeds_and_the_loss_is_left_out():
    chart = grouped(by_group().sample(fraction=1, shuffle=True, seed=1))
    assert chart.to_dict()["layer"][0]["encoding"]["y"]["sort"] == ["acl", "nsubj", "rarer than 1 in 10,000", "punct"]
    spec = chart.to_dict()
    assert {row["compared"] for row in rows_of(spec, mark_layers(spec, "point")[0])} == {
        "another seed",
        "itself at half the step",
    }
    assert "acl: 0.80 [0.70, 0.90]" in chart.description
    assert "no intervals" in str(grouped(by_group(False)).title.subtitle)


def test_seeds_at_one_place_are_stacked_around_the_row():
    chart = EVERY["onsets"]()
    spec = chart.to_dict()
    dots = rows_of(spec, mark_layers(spec, "point")[0])
    by_place = {}
    for row in dots:
        by_place.setdefault((row["name"], row["step"]), []).append(row["shift"])
    assert by_place["structure", 181] == [-2.5, 2.5]
    assert by_place["structure", 228] == [0]
    assert by_place[LONG, 1448] == [-5, 0, 5]
    assert len(dots) == 7
    assert "5 values missing" in str(chart.title.subtitle)


def test_nothing_to_draw_is_refused():
    with pytest.raises(UserError, match="no seed has a value"):
        charts.seeds_in_rows(onsets().filter(name="capabilities"), "", "")
    with pytest.raises(UserError, match="nothing was compared"):
        charts.divergence_panels(over_training(), {"x": ["another run"]}, "")
    with pytest.raises(UserError, match="no row is compared with 'another run'"):
        charts.divergence_of_groups(by_group(), "another run", "its past", "")

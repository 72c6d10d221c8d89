"""The density of learning times as a figure: its curves, what its title claims, what is refused."""

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.charts.learning_times import NAMES
from lmdynamics.experiments.learning import Learning
from tests.charts.specs import mark_layers, rows_of, spec_and_svg, title_text
from tests.conftest import refuses
from tests.explorers.made import learning_results


def results(size: str = "small") -> tuple[pl.DataFrame, pl.DataFrame]:
    chosen: Learning = learning_results()["from the start"]
    return chosen.density.filter(size=size), chosen.tests.filter(size=size)


EVERY = {
    "two seeds": lambda: charts.learning_density(*results()),
    "one seed": lambda: charts.learning_density(*results("large")),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_draws_and_says_what_it_shows(name):
    spec_and_svg(EVERY[name]())


def test_three_curves_are_drawn_as_given_between_checkpoints():
    density, tests = results()
    spec = charts.learning_density(density, tests).to_dict()
    line = mark_layers(spec, "line")[0]
    assert line["encoding"]["color"]["scale"]["domain"] == list(NAMES.values())
    rows = rows_of(spec, line)
    assert len(rows) == len(density)
    for row in rows:
        account = next(name for name, label in NAMES.items() if label == row["name"])
        assert row["fall"] == density.filter(account=account, step=row["step"])["fall"][0]
        assert max(row["step"], 0.5) < row["x"] < row["until"]


def test_the_title_has_both_overlaps_with_their_intervals():
    density, tests = results()
    row = tests.filter(measure="overlap").row(0, named=True)
    title = title_text(charts.learning_density(density, tests))
    for name in ("value", "expected"):
        assert f"to {row[name]:.0%} [{row[f'{name}_low']:.0%}, {row[f'{name}_high']:.0%}]".replace("-", "−") in title
    captions = {size: str(charts.learning_density(*results(size)).to_dict()["title"]) for size in ("small", "large")}
    assert "95 % over 2 seeds" in captions["small"]
    assert "95 % over rows of text" in captions["large"]
    bare = density.with_columns(pl.lit(None, pl.Float64).alias(name) for name in ("fall_low", "fall_high"))
    assert "no intervals" in str(charts.learning_density(bare, tests).to_dict()["title"])


def test_nothing_to_draw_is_refused():
    density, tests = results()
    refuses("learning times: no rows", charts.learning_density, density.clear(), tests)
    refuses("until not among them", charts.learning_density, density.drop("until"), tests)

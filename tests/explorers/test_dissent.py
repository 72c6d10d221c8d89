"""The dissent explorer: what it starts with, its words and numbers against the table, what it refuses."""

import polars as pl
import pytest

from lmdynamics.errors import UserError
from lmdynamics.explorers.dissent import DissentExplorer
from tests.charts import interference_frames as frames
from tests.charts.specs import mark_layers
from tests.explorers.made import offered


@pytest.fixture
def explorer():
    return DissentExplorer(frames.dissent(), published={"14M": -0.97})


def colours(explorer):
    return mark_layers(explorer.moving().chart.to_dict(), "line")[0]["encoding"]["color"]["scale"]


def test_it_starts_at_the_last_step_with_all_curves_and_groups(explorer):
    assert explorer.state() == {"curve": "", "group": "", "step": 1024}
    assert explorer.rows.equals(frames.dissent())


def test_words_and_numbers_at_a_place_are_those_of_the_table(explorer):
    place = explorer.moving().places[list(explorer.choices("step", explorer.now)).index(64)]
    rows = frames.dissent().filter(step=64)
    assert place.details.count("<tr ") == 1 + rows["group"].n_unique()
    assert place.details.count("<th") == 1 + rows["curve"].n_unique()
    for value in rows["dissent"]:
        assert f"{value:.2f}".replace("-", "−") in place.details
    ends = (f"{value:.2f} [".replace("-", "−") for value in (rows["dissent"].min(), rows["dissent"].max()))
    assert place.text.startswith("Step 64: dissent ")
    assert all(end in place.text for end in ends)
    explorer.restore({"curve": "17k", "group": "rare"})
    sentence = explorer.moving().places[-1].text
    assert sentence.startswith("Step 1,024: dissent ")
    assert sentence.endswith("(17k, rare).")
    assert len(sentence) < 80


def test_one_curve_has_both_cosines_and_more_than_two_have_no_table(explorer):
    details = explorer.restore({"curve": "17k"}).moving().places[-1].details
    assert details.count("<th") == 4
    curves = pl.concat([frames.dissent(), frames.dissent(("17k",)).with_columns(curve=pl.lit("third"))])
    assert {place.details for place in DissentExplorer(curves).moving().places} == {""}


def test_groups_keep_their_colours(explorer):
    all_colours = colours(explorer)
    explorer.restore({"curve": "260k", "group": "common"})
    assert explorer.rows.equals(frames.dissent().filter(curve="260k", group="common"))
    assert colours(explorer) == {"domain": ["common"], "range": [all_colours["range"][2]]}


def test_a_curve_that_was_not_measured_there_is_shown_at_its_nearest_step():
    table = frames.dissent().filter((pl.col("curve") == "260k") | (pl.col("step") <= 64))
    assert DissentExplorer(table).restore({"curve": "17k"}).now["step"] == 64


def test_one_curve_without_a_name_has_no_list():
    explorer = DissentExplorer(frames.dissent(("17k",)).drop("curve"), group="rare", step=8)
    assert offered(explorer) == ["group"]
    assert explorer.rows["group"].unique().to_list() == ["rare"]


def test_names_are_text_never_html():
    renamed = frames.dissent().with_columns(group=pl.lit("<img src=x>"), dissent_low=pl.lit(None, pl.Float64))
    place = DissentExplorer(renamed.unique(["curve", "step"], maintain_order=True)).moving().places[-1]
    assert "<img" not in place.details
    assert "&lt;img" in place.details


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (frames.dissent().drop("dissent"), {}, "needs the columns"),
        (frames.dissent().clear(), {}, "no rows"),
        (frames.dissent(), {"step": 3}, "step 3 was not measured; measured: 0, 1"),
        (frames.dissent(), {"curve": "17kk"}, "did you mean '17k'"),
        (frames.dissent(), {"group": "comon"}, "did you mean 'common'"),
    ],
)
def test_what_cannot_be_explored_is_reported(table, options, message):
    with pytest.raises(UserError, match=message):
        DissentExplorer(table, **options)

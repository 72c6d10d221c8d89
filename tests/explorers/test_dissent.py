"""The dissent explorer: one slider moves both views, pickers redraw them, names are text."""

import polars as pl
import pytest

from lmdynamics.errors import UserError
from lmdynamics.explorers.dissent import DissentExplorer
from tests.charts import interference_frames as frames
from tests.charts.specs import found


@pytest.fixture
def explorer():
    return DissentExplorer(frames.dissent(), published={"14M": -0.97})


def test_it_starts_at_the_last_step_with_all_curves_and_groups(explorer):
    assert explorer.checkpoint.slider.value == 1024
    assert explorer.rows.equals(frames.dissent())
    assert "17k" in explorer.said.value
    assert explorer.said.value.count("<tr>") == 1 + 2 * len(frames.GROUPS)


def test_the_slider_moves_both_views_and_redraws_none(explorer):
    specs = [view.spec for view in explorer.views.widget.children]
    explorer.checkpoint.slider.value = 64
    assert [view._params for view in explorer.views.widget.children] == [{"plane_step": 64.0}] * 2
    assert all(view.spec is spec for view, spec in zip(explorer.views.widget.children, specs, strict=True))
    row = frames.dissent().filter(step=64, curve="17k", group="rare").row(0, named=True)
    assert f"{row['dissent']:.2f}".replace("-", "−") in explorer.said.value


def test_each_view_is_sent_only_parameters_that_it_has(explorer):
    for view in explorer.views.widget.children:
        assert set(view._params) == {param["name"] for param in view.spec["params"] if "select" not in param}


def test_pickers_redraw_and_groups_keep_their_colours(explorer):
    plane = explorer.views.widget.children[0]
    whole = found(plane.spec, "line")[0]["encoding"]["color"]["scale"]
    explorer.curve.value = "260k"
    explorer.group.value = "common"
    assert explorer.rows["curve"].unique().to_list() == ["260k"]
    scale = found(plane.spec, "line")[0]["encoding"]["color"]["scale"]
    assert scale == {"domain": ["common"], "range": [whole["range"][2]]}
    explorer.group.value = explorer.curve.value = ""
    assert explorer.rows.equals(frames.dissent())


def test_a_curve_that_was_not_measured_there_is_shown_at_its_nearest_step():
    table = frames.dissent().filter((pl.col("curve") == "260k") | (pl.col("step") <= 64))
    explorer = DissentExplorer(table)
    explorer.curve.value = "17k"
    assert explorer.views.widget.children[0]._params == {"plane_step": 64.0}
    assert explorer.said.value.count("<tr>") == 1 + len(frames.GROUPS)


def test_one_curve_without_a_name_has_no_picker():
    explorer = DissentExplorer(frames.dissent(("17k",)).drop("curve"), group="rare", step=8)
    assert len(explorer.widget.children[0].children) == 1
    assert explorer.rows["group"].unique().to_list() == ["rare"]
    assert explorer.said.value.count("<tr>") == 2


def test_names_are_text_never_html():
    named = frames.dissent().with_columns(group=pl.lit("<img src=x>"), dissent_low=pl.lit(None, pl.Float64))
    said = DissentExplorer(named.unique(["curve", "step"], maintain_order=True)).said.value
    assert "<img" not in said
    assert "&lt;img" in said


def test_the_still_explorer_is_two_figures(explorer, tmp_path):
    explorer.show(str(tmp_path), interactive=False)
    assert {path.name for path in tmp_path.iterdir()} == {"dissent_plane.svg", "dissent_over_training.svg"}
    assert "step 1,024" in (tmp_path / "dissent_plane.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        (frames.dissent().drop("dissent"), {}, "needs the columns"),
        (frames.dissent().clear(), {}, "no rows"),
        (frames.dissent(), {"step": 3}, "step 3 was not measured; measured: 0, 1"),
        (frames.dissent(), {"curve": "17kk"}, "did you mean '17k'"),
        (frames.dissent(), {"group": "comon"}, "did you mean 'common'"),
    ],
)
def test_what_cannot_be_explored_is_said(table, options, said):
    with pytest.raises(UserError, match=said):
        DissentExplorer(table, **options)

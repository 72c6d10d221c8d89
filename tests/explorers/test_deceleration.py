"""A break dragged by hand: what follows the slider, what is fitted once, what cannot be fitted."""

import polars as pl
import pytest

from lmdynamics.analysis.fits import break_profile
from lmdynamics.errors import UserError
from lmdynamics.explorers import deceleration
from lmdynamics.explorers.deceleration import DecelerationExplorer
from tests.charts.losses import curve, points


@pytest.fixture
def explorer():
    return DecelerationExplorer(points(), curve="small")


def test_the_break_starts_aside_of_the_best(explorer):
    best = explorer.best.step_at_break
    assert explorer.hand["step_at_break"] == pytest.approx(best / 3, rel=0.1)
    assert explorer.hand["rsle"] > 1.2 * explorer.best.rsle


def test_dragging_sends_numbers_and_fits_nothing(explorer, monkeypatch):
    monkeypatch.setattr(deceleration, "fit_deceleration", None)
    monkeypatch.setattr(deceleration, "break_profile", None)
    by_hand, profile = (view for view in explorer.views.widget.children)
    specs = by_hand.spec, profile.spec
    explorer.place.value = 60
    assert (by_hand.spec, profile.spec) == specs
    rows = points().filter(pl.col("curve") == "small")
    row = break_profile(rows["step"].to_numpy(), rows["loss"].to_numpy()).row(60, named=True)
    assert profile._params == {"hand_step": row["step_at_break"], "hand_rsle": row["rsle"]}
    assert by_hand._params["hand_loss"] == row["loss_at_break"]
    assert f"{row['loss_at_break']:.3f}" in explorer.said.value


def test_each_view_is_sent_only_parameters_that_it_has(explorer):
    for view in explorer.views.widget.children:
        assert set(view._params) == {param["name"] for param in view.spec["params"] if "select" not in param}


def test_another_curve_is_drawn_and_another_preparation_keeps_the_break(explorer):
    explorer.curve.value = "large"
    assert "'large with a break" in str(explorer.views.widget.children[0].spec["title"])
    assert explorer.hand["step_at_break"] == pytest.approx(explorer.best.step_at_break / 3, rel=0.1)
    explorer.place.value = 50
    before = explorer.hand["step_at_break"]
    explorer.skip.value = 200.0
    assert explorer.hand["step_at_break"] == pytest.approx(before, rel=0.1)
    assert explorer.best.first_step > 200


def test_a_curve_seen_before_is_not_fitted_again(explorer, monkeypatch):
    explorer.curve.value = "large"
    monkeypatch.setattr(deceleration, "fit_deceleration", None)
    explorer.curve.value = "small"
    assert "decelerates" in explorer.said.value


def test_a_curve_that_cannot_be_fitted_says_so_and_the_next_one_is_drawn():
    short = curve("few").tail(5)
    explorer = DecelerationExplorer(pl.concat([short, points()]))
    assert "few: 5 points are left" in explorer.said.value
    assert explorer.place.disabled
    assert explorer.views.widget.children == ()
    assert explorer.hand is None
    explorer.curve.value = "small"
    assert len(explorer.views.widget.children) == 2
    assert not explorer.place.disabled
    explorer.curve.value = "few"
    assert explorer.views.widget.children == ()
    with pytest.raises(UserError, match="5 points are left"):
        explorer.show(interactive=False)


def test_names_are_text_never_html():
    named = curve("<img src=x>").tail(5)
    said = DecelerationExplorer(named).said.value
    assert "<img" not in said
    assert "&lt;img" in said


def test_the_still_explorer_is_two_figures(explorer, tmp_path):
    explorer.show(str(tmp_path), interactive=False)
    assert {path.name for path in tmp_path.iterdir()} == {"break_by_hand.svg", "break_profile.svg"}


@pytest.mark.parametrize(
    ("frame", "options", "said"),
    [
        (points().drop("loss"), {}, "needs the columns"),
        (points().clear(), {}, "no curves to explore"),
        (points(), {"curve": "smal"}, "did you mean 'small'"),
        (points(), {"smoothing": "mean"}, "there is no smoothing 'mean'"),
    ],
)
def test_what_cannot_be_explored_is_said(frame, options, said):
    with pytest.raises(UserError, match=said):
        DecelerationExplorer(frame, **options)

"""A break put by hand: where it starts, its numbers against the profile, what is fitted once, what cannot be fitted."""

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.analysis.fits import break_profile
from lmdynamics.errors import UserError
from lmdynamics.explorers import deceleration
from lmdynamics.explorers.deceleration import DecelerationExplorer
from tests.charts.losses import curve, points

FEW = curve("few").tail(5)


@pytest.fixture
def explorer():
    explorer = DecelerationExplorer(points(), curve="small")
    explorer.widget  # noqa: B018
    return explorer


def move(explorer, place):
    explorer.views.values = {"at": place}


def test_the_break_starts_aside_of_the_best(explorer):
    best = explorer.best.step_at_break
    assert explorer.chosen["step_at_break"] == pytest.approx(best / 3, rel=0.1)
    assert explorer.chosen["rsle"] > 1.2 * explorer.best.rsle


def test_moving_the_break_looks_its_numbers_up_and_fits_nothing(explorer, monkeypatch):
    monkeypatch.setattr(deceleration, "fit_deceleration", None)
    monkeypatch.setattr(deceleration, "break_profile", None)
    rows = points().filter(pl.col("curve") == "small")
    row = break_profile(rows["step"].to_numpy(), rows["loss"].to_numpy()).row(60, named=True)
    move(explorer, 60)
    assert explorer.chosen == row
    place, best = explorer.moving().places[60], explorer.best
    assert place.text == (
        f"Break at step {row['step_at_break']:,.0f}: loss {row['loss_at_break']:.3f}, RMS error of log loss "
        f"{row['rsle']:.3g}; with the best break, at step {best.step_at_break:,.0f}, {best.rsle:.3g}."
    )
    assert f">{row['rsle']:.4f}<" in place.details
    assert "decelerates: at step" in place.details
    assert f"{row['step_at_break']:,.0f}: rate" in charts.to_svg(explorer.moving().still())


def test_another_curve_starts_anew_and_another_preparation_keeps_the_break(explorer, monkeypatch):
    explorer.lists["curve"].value = "large"
    assert "'large with" in str(explorer.views.content["spec"]["vconcat"][0]["title"])
    assert explorer.chosen["step_at_break"] == pytest.approx(explorer.best.step_at_break / 3, rel=0.1)
    move(explorer, 50)
    before = explorer.chosen["step_at_break"]
    explorer.lists["skip_steps"].value = 200.0
    assert explorer.chosen["step_at_break"] == pytest.approx(before, rel=0.1)
    assert explorer.best.first_step > 200
    monkeypatch.setattr(deceleration, "fit_deceleration", None)
    explorer.restore({"curve": "small", "skip_steps": 100.0})  # seen before, so not fitted again


def test_a_curve_that_cannot_be_fitted_says_so_and_the_next_one_is_drawn(tmp_path):
    explorer = DecelerationExplorer(pl.concat([FEW, points()]))
    explorer.widget  # noqa: B018
    (place,) = explorer.views.content["places"]
    assert place["said"].startswith("few: 5 points are left")
    assert (explorer.chosen, explorer.best) == (None, None)
    assert explorer.restore(explorer.state()).state()["curve"] == "few"
    explorer.saving.folder.value = str(tmp_path)
    explorer.saving.save.click()
    assert explorer.saving.message.value.startswith("5 points are left")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="5 points are left"):
        explorer.show(interactive=False)
    explorer.lists["curve"].value = "small"
    assert explorer.chosen["step_at_break"] == pytest.approx(explorer.best.step_at_break / 3, rel=0.1)
    assert explorer.views.values["at"] == list(explorer.choices("break_step", explorer.now)).index(
        explorer.now["break_step"]
    )
    explorer.lists["curve"].value = "few"
    assert explorer.views.content["places"] == [place]


def test_a_name_is_shown_as_text_and_never_as_html():
    (place,) = DecelerationExplorer(FEW.with_columns(curve=pl.lit("<img src=x>"))).moving().places
    assert place.text.startswith("<img src=x>: 5 points are left")  # which a page sets as text
    assert place.details == ""


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (points().drop("loss"), {}, "needs the columns"),
        (points().clear(), {}, "no curves to explore"),
        (points(), {"curve": "smal"}, "did you mean 'small'"),
        (points(), {"smoothing": "mean"}, "there is no smoothing 'mean'"),
    ],
)
def test_what_cannot_be_explored_is_reported(frame, options, message):
    with pytest.raises(UserError, match=message):
        DecelerationExplorer(frame, **options)

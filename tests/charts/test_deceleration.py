"""Breaks as figures: what is drawn for which verdict, that the drawn line is the fit, what the title claims."""

import numpy as np
import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.analysis.fits import fits_table, fitted_line
from lmdynamics.charts.axes import Cursor, log_ticks
from lmdynamics.charts.deceleration import manual_parameters
from lmdynamics.errors import UserError
from tests.charts.losses import curve, fit_of, fits, loss, points, profile
from tests.charts.specs import at_step, rows_of, spec_and_svg


def marks(spec):
    return [layer["mark"]["type"] for layer in spec["layer"]]


def claims(name="small", early_share=0.02):
    steps = points().filter(pl.col("curve") == name)["step"]
    straight = 20.0 * steps.to_numpy() ** -0.2
    both = {"one power law": straight, "one break": loss(steps.to_numpy())}
    return pl.concat([pl.DataFrame({"curve": name, "step": steps, "loss": y, "method": m}) for m, y in both.items()])


CURSOR = Cursor(profile()["step_at_break"].to_list())


def by_hand(chart, step=1000):
    return at_step(chart.add_params(*manual_parameters(profile())), CURSOR, step)


def every_chart():
    best = fit_of("small")
    return {
        "many": charts.deceleration(points(), fits()),
        "one": charts.deceleration(points(), fits(), curves=["small"]),
        "profile": by_hand(charts.break_profile(profile(), best["step_at_break"], CURSOR)),
        "by hand": by_hand(charts.manual_break(points().filter(pl.col("curve") == "small"), best, CURSOR)),
        "claim": charts.power_law_claim(points(), claims(), curve="small", share=0.02),
    }


@pytest.mark.parametrize("name", ["many", "one", "profile", "by hand", "claim"])
def test_every_figure_draws_and_says_what_it_shows(name):
    spec_and_svg(every_chart()[name])


def title(rows, **options):
    return " ".join(charts.deceleration(points(), rows, **options).to_dict()["title"]["text"])


def test_the_title_counts_the_curves_that_decelerate_and_says_how_far_their_intervals_reach():
    two = [fit_of(name) for name in ("small", "large")]
    low, high = min(row["step_at_break_low"] for row in two), max(row["step_at_break_high"] for row in two)
    assert title(fits()) == f"2 of 3 curves decelerate, between steps {low:,.0f} and {high:,.0f} (95 % intervals)"
    ends = sorted(row["step_at_break"] for row in two)
    bare = fits().with_columns(pl.lit(None, pl.Float64).alias("step_at_break_low"))
    assert title(bare) == (
        f"2 of 3 curves decelerate; fitted steps {ends[0]:,.0f} to {ends[1]:,.0f}, without intervals"
    )


def test_a_title_says_no_more_than_the_intervals():
    """As of four short curves whose breaks, fitted at steps 59 to 71, may lie anywhere from 21 to 1,023."""
    not_located = fits().with_columns(verdict=pl.lit("break not located"))
    assert title(not_located) == "None of 3 curves decelerates at a known step; the break of 3 is not located"
    assert title(not_located, curves=["small"]) == "small: break not located"
    one = pl.when(pl.col("curve") == "small").then(pl.lit("break not located")).otherwise("verdict")
    large = fit_of("large")
    assert title(fits().with_columns(verdict=one)) == (
        f"1 of 3 curves decelerates, between steps {large['step_at_break_low']:,.0f} and "
        f"{large['step_at_break_high']:,.0f} (95 % intervals); the break of 1 is not located"
    )
    spec = charts.deceleration(points(), not_located, curves=["small"]).to_dict()
    assert marks(spec) == ["point", "line"]  # and no place is marked


def test_a_title_carries_the_caveat_of_the_verdict():
    doubted = fits().with_columns(caveat=pl.lit("two breaks fit better"))
    assert title(doubted).endswith("; two breaks fit better (2 of 2)")
    assert title(doubted, curves=["small"]).endswith(" (two breaks fit better)")
    assert title(fits().with_columns(verdict=pl.lit("jump in scale")), curves=["small"]) == "small: jump in scale"


def test_an_interval_of_zero_width_is_not_shown():
    flat = fits().with_columns(step_at_break_low="step_at_break", step_at_break_high="step_at_break")
    assert "[" not in title(flat, curves=["small"])
    assert "without intervals" in title(flat)


def test_the_line_is_the_fit_and_its_ends_lie_on_the_two_power_laws():
    row = fit_of("small")
    line = fitted_line(row, 110, 60_000)
    x = np.log(line["x"].to_numpy())
    expected = np.exp(
        np.log(row["b"]) - row["c0"] * x - row["c1"] * row["f1"] * np.logaddexp(0, (x - row["log_d1"]) / row["f1"])
    )
    assert line["loss"].to_numpy() == pytest.approx(expected)
    far = fitted_line(row, 1e9, 1e10)
    sharp = row["loss_at_break"] * (far["x"][-1] / row["step_at_break"]) ** -row["rate_after_break"]
    assert far["loss"][-1] == pytest.approx(sharp, rel=1e-6)


def test_one_curve_has_a_band_and_many_have_bars():
    charts_ = every_chart()
    one, many = charts_["one"].to_dict(), charts_["many"].to_dict()
    assert "rect" in marks(one)
    assert "rule" not in marks(one)
    assert "rule" in marks(many)
    assert "rect" not in marks(many)
    rule = next(layer for layer in many["layer"] if layer["mark"]["type"] == "rule")
    assert {row["curve"] for row in rows_of(many, rule)} == {"small", "large"}


def test_a_curve_without_a_break_has_no_break_marks():
    spec = charts.deceleration(points(), fits(), curves=["straight"]).to_dict()
    assert marks(spec) == ["point", "line"]
    assert spec["title"]["text"] == ["straight: no break"]
    caption = " ".join(spec["title"]["subtitle"])
    assert "AIC" in caption or "resamples" in caption
    first, last = rows_of(spec, spec["layer"][1])
    assert np.log(last["loss"] / first["loss"]) / np.log(last["x"] / first["x"]) == pytest.approx(-0.2, abs=0.003)
    assert "line: fit with one power law" in caption
    assert "line: fit with one smooth break or one power law" in " ".join(
        every_chart()["many"].to_dict()["title"]["subtitle"]
    )


def test_a_curve_that_could_not_be_fitted_is_still_drawn():
    failed = fits_table({"small": UserError("3 points are left")})
    spec = charts.deceleration(points(), failed, curves=["small"]).to_dict()
    assert marks(spec) == ["point"]
    assert spec["title"]["text"] == ["small: not fitted"]
    assert "3 points are left" in spec["description"]


def test_fits_without_resamples_have_no_interval():
    bare = fits().with_columns(pl.lit(None, pl.Float64).alias("step_at_break_low"))
    spec = charts.deceleration(points(), bare, curves=["small"]).to_dict()
    assert "rect" not in marks(spec)
    assert "[" not in spec["title"]["text"][0]


def test_long_curves_are_thinned_and_keep_their_ends():
    steps = np.arange(101, 40_101)
    long = pl.DataFrame({"curve": "small", "step": steps, "loss": loss(steps)})
    spec = charts.deceleration(long, fits()).to_dict()
    rows = rows_of(spec, next(layer for layer in spec["layer"] if layer["mark"]["type"] == "point"))
    assert 100 < len(rows) <= 300
    assert rows[-1]["x"] == 40_100


def test_curves_are_chosen_and_coloured_in_the_order_asked_for():
    spec = charts.deceleration(points(), fits(), curves=["large", "small"]).to_dict()
    assert spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == ["large", "small"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(2.8, 11, [3, 4, 5, 6, 8, 10]), (3.4, 3.9, [3.4, 3.5, 3.6, 3.7, 3.8, 3.9])]
)
def test_ticks_are_round_and_few(low, high, ticks):
    assert log_ticks(low, high) == ticks


def test_a_profile_says_how_much_worse_the_chosen_break_is():
    best = fit_of("small")["step_at_break"]
    row = min(profile().to_dicts(), key=lambda row: abs(np.log(row["step_at_break"] / 1000)))
    svg = charts.to_svg(by_hand(charts.break_profile(profile(), best, CURSOR)))
    assert f"A break at step {row['step_at_break']:,.0f} leaves" in svg
    assert f"times the least error, at {best:,.0f}" in svg
    plain = charts.break_profile(profile(), best).to_dict()
    assert plain["title"]["text"] == [f"The error is least with the break at step {best:,.0f}"]
    assert "params" not in plain


def test_a_name_with_quotes_and_tags_is_text():
    renamed = curve("small").with_columns(curve=pl.lit("it's <b>\\ small"))
    svg = charts.to_svg(by_hand(charts.manual_break(renamed, fit_of("small"), CURSOR)))
    assert "it's &lt;b&gt;\\ small with a break put at step" in svg


def test_the_claim_names_the_claimed_and_the_true_loss():
    spec = every_chart()["claim"].to_dict()
    title = " ".join(spec["title"]["text"])
    end = claims().filter(pl.col("method") == "one power law")["loss"][-1]
    assert title.startswith(
        f"One power law through the first 2 % of training claims a final loss of {end:.2f} for small"
    )
    assert title.endswith("too low")
    assert f"measured: {points().filter(pl.col('curve') == 'small')['loss'][-1]:.2f}" in str(spec)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: charts.deceleration(points().drop("loss"), fits()), "points needs the columns"),
        (lambda: charts.deceleration(points(), fits().drop("f1")), "fits needs the columns"),
        (lambda: charts.deceleration(points(), fits().head(1)), "there is no fit of 'large'"),
        (lambda: charts.deceleration(points(), fits(), curves=["tiny"]), "no points of the curve 'tiny'"),
        (lambda: charts.deceleration(points(), fits(), curves=[]), "there is no curve"),
        (lambda: charts.deceleration(points(), fits(), curves=[f"{i}" for i in range(9)]), "choose fewer"),
        (lambda: charts.break_profile(profile().drop("rsle"), 100), "break profile needs the columns"),
        (lambda: charts.break_profile(profile().clear(), 100), "no rows"),
        (lambda: charts.power_law_claim(points(), claims().head(5), curve="small"), "has no 'one break'"),
    ],
)
def test_what_cannot_be_drawn_is_reported(draw, message):
    with pytest.raises(UserError, match=message):
        draw()

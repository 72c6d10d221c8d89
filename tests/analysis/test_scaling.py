"""Fits against size: exponents, how gains are split, and what could have been predicted."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress

from lmdynamics.analysis.fits import QUANTITIES, power_laws, predict_early, split_gains
from lmdynamics.errors import UserError
from lmdynamics.experiments.ladder import published_fits
from tests.conftest import refuses

from .frames import broken, noisy, spaced

SIZES = np.array([14e6, 37e6, 78e6, 144e6])


def fits(**changes) -> pl.DataFrame:
    """Four sizes whose every quantity is an exact power of size."""
    columns = {
        "size": [f"{size / 1e6:.0f}M" for size in SIZES],
        "parameters": SIZES.astype(int),
        "loss_at_break": 20 * SIZES**-0.1,
        "rate_after_break": 1e-4 * SIZES**0.3,
        "step_at_break": np.full(4, 5_000.0),
        "last_step": np.full(4, 100_000.0),
        "final_loss": 18 * SIZES**-0.1,
    }
    return pl.DataFrame({**columns, **changes})


# powers of size -----------------------------------------------------------------------------------------------------


def test_exact_powers_are_found():
    laws = power_laws(fits())
    assert laws["quantity"].to_list() == list(QUANTITIES)
    assert laws["exponent"].to_list() == pytest.approx([-0.1, 0.3, 0.0, -0.1], abs=1e-12)
    assert laws["a"].to_list() == pytest.approx([20, 1e-4, 5_000, 18])
    assert laws["curves"].to_list() == [4] * 4


def test_noisy_powers_as_by_polyfit_and_linregress():
    random = np.random.default_rng(0)
    loss = 20 * SIZES**-0.1 * np.exp(0.05 * random.standard_normal(4))
    (law,) = power_laws(fits(loss_at_break=loss), ["loss_at_break"]).to_dicts()
    x, y = np.log(SIZES), np.log(loss)
    slope, level = np.polyfit(x, y, 1)
    assert (law["exponent"], law["a"]) == pytest.approx((slope, np.exp(level)))
    assert law["p"] == pytest.approx(linregress(x, y).pvalue)
    errors = y - slope * x - level
    reach = 4.302652729911275 * np.sqrt(errors @ errors / 2 / ((x - x.mean()) ** 2).sum())  # Student's t, 2 d.o.f.
    assert (law["low"], law["high"]) == pytest.approx((slope - reach, slope + reach))


@given(st.floats(-2, 2), st.floats(1e-3, 1e3), st.floats(0.01, 100))
def test_the_unit_of_a_quantity_moves_its_factor_alone(exponent, a, unit):
    law, scaled_law = (
        power_laws(fits(final_loss=k * a * SIZES**exponent), ["final_loss"]).row(0, named=True) for k in (1, unit)
    )
    assert law["exponent"] == pytest.approx(exponent, abs=1e-9)
    assert scaled_law["exponent"] == pytest.approx(law["exponent"], abs=1e-9)
    assert scaled_law["a"] == pytest.approx(unit * law["a"], rel=1e-6)


def test_what_cannot_be_a_power_is_left_out_and_too_few_give_nulls():
    partial = fits(rate_after_break=[0.01, -0.02, None, 0.03], step_at_break=[1.0, 2.0, 4.0, np.nan])
    laws = {row.pop("quantity"): row for row in power_laws(partial).to_dicts()}
    empty = dict.fromkeys(("a", "exponent", "low", "high", "p"))
    assert laws["rate_after_break"] == {**empty, "curves": 2, "sizes": 2}
    assert laws["step_at_break"]["curves"] == 3
    assert laws["step_at_break"]["exponent"] is not None
    one_size = power_laws(fits(parameters=[7, 7, 7, 7]))
    assert one_size["exponent"].null_count() == len(one_size) == 4
    assert one_size.schema == power_laws(fits()).schema == power_laws(fits().clear()).schema


def test_seeds_are_averaged_and_are_no_further_sizes():
    random = np.random.default_rng(1)
    means = 20 * SIZES**-0.1 * np.exp(0.05 * random.standard_normal(4))
    spread = np.exp([-0.01, 0.0, 0.01])
    seeds = pl.concat([fits(loss_at_break=means * by) for by in spread])
    (law,), (law_of_means,) = (
        power_laws(table, ["loss_at_break"]).to_dicts() for table in (seeds, fits(loss_at_break=means))
    )
    assert (law.pop("curves"), law_of_means.pop("curves")) == (12, 4)
    assert law.pop("quantity") == law_of_means.pop("quantity")
    assert law == pytest.approx(law_of_means)


def test_two_sizes_have_an_exponent_without_an_interval():
    two = fits().filter(pl.col("parameters") < 40e6)
    (law,) = power_laws(pl.concat([two, two]), ["loss_at_break"]).to_dicts()
    assert law["exponent"] == pytest.approx(-0.1)
    assert [law[name] for name in ("low", "high", "p", "curves", "sizes")] == [None, None, None, 4, 2]


def test_power_laws_need_parameters():
    with pytest.raises(UserError, match="power laws over sizes needs the columns .*; parameters not among them"):
        power_laws(fits().drop("parameters"))


def test_in_the_published_table_size_lowers_the_loss_at_the_break_and_raises_the_rate_after_it():
    laws = {row["quantity"]: row for row in power_laws(published_fits()).to_dicts()}
    assert laws["loss_at_break"]["high"] < 0 < laws["rate_after_break"]["low"]
    assert laws["loss_at_break"]["curves"] == 8
    assert laws["loss_at_break"]["exponent"] == pytest.approx(-0.063, abs=0.01)


# whose gain is whose ------------------------------------------------------------------------------------------------

ladders = st.lists(
    st.tuples(st.floats(0.5, 8), st.floats(-0.05, 0.3), st.floats(200, 50_000), st.floats(0.5, 8)),
    min_size=2,
    max_size=5,
)


@given(ladders)
def test_the_parts_add_up_to_the_measured_gain(rows):
    loss, rate, step, final = map(list, zip(*rows, strict=True))
    table = pl.DataFrame(
        {
            "size": [f"s{i}" for i in range(len(rows))],
            "parameters": [10 * (i + 1) for i in range(len(rows))],
            "loss_at_break": loss,
            "rate_after_break": rate,
            "step_at_break": step,
            "last_step": [60_000.0] * len(rows),
            "final_loss": final,
        }
    )
    gains = split_gains(table.reverse())  # the order of rows is nothing
    assert gains["part"].to_list() == ["L_d", "r_d", "t_d", "not explained"] * (len(rows) - 1)
    for i, (_, pair) in enumerate(gains.group_by("smaller", "larger", maintain_order=True)):
        assert (pair["smaller"][0], pair["larger"][0]) == (f"s{i}", f"s{i + 1}")
        assert pair["gain"].sum() == pytest.approx(np.log(final[i] / final[i + 1]), abs=1e-12)
        # what the fits foretell is explained, and nothing else
        predicted = [np.log(loss[k]) + rate[k] * np.log(step[k] / 60_000) for k in (i, i + 1)]
        assert pair["gain"][:3].sum() == pytest.approx(predicted[0] - predicted[1], abs=1e-9)


@pytest.mark.parametrize(
    ("name", "values", "part"),
    [
        ("loss_at_break", [4.0, 3.5, 3.0, 2.5], "L_d"),
        ("rate_after_break", [0.01, 0.02, 0.03, 0.04], "r_d"),
        ("step_at_break", [5_000.0, 4_000.0, 3_000.0, 2_000.0], "t_d"),
        ("final_loss", [3.0, 2.9, 2.8, 2.7], "not explained"),
    ],
)
def test_where_one_thing_changes_it_has_the_whole_gain(name, values, part):
    unchanged = {"loss_at_break": [4.0] * 4, "rate_after_break": [0.02] * 4, "final_loss": [3.0] * 4}
    gains = split_gains(fits(**{**unchanged, name: values}))
    moved = gains.filter(pl.col("part") == part, pl.col("gain") > 0)
    assert len(moved) == 3
    still = gains.filter(~pl.col("part").is_in([part, "not explained"]))
    assert still["gain"].abs().max() == pytest.approx(0, abs=1e-12)


def test_sizes_that_ended_elsewhere_are_refused():
    with pytest.raises(UserError, match="end between steps 50,000 and 100,000; gains are compared at one step"):
        split_gains(fits(last_step=[50_000.0, 1e5, 1e5, 1e5]))
    assert len(split_gains(fits(last_step=[99_000.0, 1e5, 1e5, 1e5]))) == 12  # a log that ends some steps early


def test_sizes_that_lack_a_number_are_refused():
    refuses("OLMo-1B has no last_step; .* leave it out", split_gains, published_fits())
    published = published_fits().filter(pl.col("last_step").is_not_null())
    assert len(split_gains(published)) == 4 * 5


# predicted ----------------------------------------------------------------------------------------------------------


def curve(loss, steps, name="a") -> pl.DataFrame:
    return pl.DataFrame({"curve": [name] * len(steps), "step": steps, "loss": loss})


def test_after_an_exact_break_one_break_is_right_and_one_power_law_expects_too_much():
    steps = spaced()
    early = predict_early(curve(broken(steps), steps), shares=(0.3, 0.5))
    assert early["method"].to_list() == ["one break", "one power law", "last loss seen"] * 2
    assert early["truth"].to_list() == pytest.approx([broken(steps[-1])] * 6)
    for share in (0.3, 0.5):
        at = early.filter(pl.col("share") == share)
        error = dict(at.select("method", "error").iter_rows())
        assert error["one break"] == pytest.approx(0, abs=1e-4)
        assert error["one power law"] < -0.01
        last = broken(steps[steps <= share * steps[-1]][-1])
        assert error["last loss seen"] == pytest.approx(np.log(last / broken(steps[-1])))
        assert error["last loss seen"] > 0.01
        assert at["verdict"].unique().to_list() == ["decelerates"]
    assert (early["error"] - (early["predicted"] / early["truth"]).log()).abs().max() < 1e-12


def test_on_a_power_law_its_control_is_right():
    steps = spaced()
    early = predict_early(curve(broken(steps, c1=0.0), steps), shares=(0.1,))
    assert early.filter(pl.col("method") == "one power law")["error"][0] == pytest.approx(0, abs=1e-9)
    assert early["verdict"][0] == "no break"


def test_predictions_use_no_later_points():
    steps = spaced()
    loss = noisy(steps, 0.01, 0)
    later = np.where(steps > 0.4 * steps[-1], 3 * loss, loss)
    original, changed = (predict_early(curve(each, steps), shares=(0.2, 0.4)) for each in (loss, later))
    assert original["predicted"].to_list() == changed["predicted"].to_list()
    assert original["truth"][0] * 3 == pytest.approx(changed["truth"][0])


def test_shares_and_curves_with_too_few_points_are_left_out():
    steps = spaced(30)
    both = pl.concat([curve(broken(steps), steps), curve(broken(steps)[:11], steps[:11], "short")])
    early = predict_early(both, shares=(0.001, 0.01, 0.5))
    assert early.select("curve", "share").unique().rows() == [("a", 0.5)]
    none = predict_early(both, shares=(0.001,))
    assert none.is_empty()
    assert none.schema == early.schema

"""A law that made a curve forecasts it best; the table and its sentence say no more than the curves support."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.laws import CONTROL, LAWS, contest, contest_table, verdict, with_floor
from lmdynamics.errors import UserError

STEPS = np.unique(np.geomspace(10, 20_000, 400).round())
MADE = {
    "one power law": lambda t: 9 * t**-0.12,
    "power law with a floor": lambda t: 2.2 + 14 * t**-0.45,
    "one break": lambda t: 12 * t**-0.2 * (1 + (t / 300) ** 4) ** (0.15 / 4),
    "two breaks": lambda t: 12 * t**-0.2 * (1 + (t / 60) ** 6) ** (0.17 / 6) * (1 + (t / 900) ** 6) ** (-0.1 / 6),
}


def curves(law: str, number: int = 8, noise: float = 0.002) -> pl.DataFrame:
    random = np.random.default_rng(0)
    losses = [MADE[law](STEPS) * np.exp(random.normal(0, noise, len(STEPS))) for _ in range(number)]
    return pl.concat(
        pl.DataFrame({"curve": f"{law} {i}", "step": STEPS, "loss": loss}) for i, loss in enumerate(losses)
    )


@pytest.mark.parametrize("law", MADE)
def test_the_law_that_made_a_curve_forecasts_it(law):
    rows = contest(curves(law), skip_steps=0, progress=False)
    assert set(rows["law"]) == {*LAWS, CONTROL}
    table = contest_table(rows)
    error = dict(table.select("law", "error").iter_rows())
    assert error[law] < 0.02
    assert error[law] < error[CONTROL] / 4
    aic = dict(table.select("law", "aic").iter_rows())
    assert aic[law] < 12, "and it is among the best of the whole curve"
    assert aic[CONTROL] is None


def test_a_floor_is_found():
    x = np.log(STEPS)
    law = with_floor(x, np.log(MADE["power law with a floor"](STEPS)))
    assert np.exp(law(np.array([60.0])))[0] == pytest.approx(2.2, abs=0.01), "after e to the 60th steps only it is left"
    straight = with_floor(x, np.log(MADE["one power law"](STEPS)))
    assert straight(x) == pytest.approx(np.log(MADE["one power law"](STEPS)), abs=2e-3)


def test_a_sentence_says_no_more_than_the_intervals():
    decided = contest_table(contest(curves("power law with a floor", 12), skip_steps=0, progress=False))
    assert verdict(decided).startswith("of 12 curves, power law with a floor has the smallest median error: 0.")
    few = verdict(contest_table(contest(curves("one break", 3), skip_steps=0, progress=False)))
    assert "(no interval below 6 curves)" in few
    law, rival = [*LAWS][:2]
    rows = [
        {"curve": str(i), "law": name, "error": size, "rmse": size, "aic": 0.0}
        for i in range(10)
        for name, size in ((law, 0.010 + 0.02 * (i % 2)), (rival, 0.031 - 0.02 * (i % 2)), (CONTROL, 0.2))
    ]
    assert f"whether it is better than {rival} is undecided" in verdict(contest_table(pl.DataFrame(rows)))
    flat = contest_table(pl.DataFrame(rows[:6]).with_columns(error=pl.when(law=CONTROL).then(0.001).otherwise("error")))
    assert verdict(flat).endswith("last loss seen 0.1%, so no law beats it")
    better = contest_table(pl.DataFrame(rows).with_columns(error=pl.when(law=CONTROL).then(0.001).otherwise("error")))
    assert f"better than {rival} or {CONTROL} is undecided" in verdict(better)
    assert better.filter(law=law)["worse"][0] == 0, "laws are compared with the best law, and not with the control"


def test_curves_with_too_few_points_are_left_out():
    short = pl.DataFrame({"curve": "short", "step": STEPS[:20], "loss": MADE["one power law"](STEPS[:20])})
    assert set(contest(pl.concat([curves("one break", 2), short]), skip_steps=0, progress=False)["curve"]) == {
        "one break 0",
        "one break 1",
    }
    with pytest.raises(UserError, match="no curve has 12 points in its first 25% and after it"):
        contest(short, skip_steps=0)
    with pytest.raises(UserError, match="share is 1; it must be between 0 and 1"):
        contest(short, 1)


def test_the_command_compares_laws(tmp_path, call):
    curves("one break", 2).write_csv(tmp_path / "two.csv")
    status, out, err = call("fit", tmp_path / "two.csv", "--laws", "--skip-steps", "0", "--workers", "1")
    assert status == 0, err
    assert "Forecasts from the first 25% of each curve" in out
    assert "of 2 curves, one break has the smallest median error" in out
    status, _, err = call("fit", tmp_path / "two.csv", "--laws", "--json")
    assert (status, "leave out --json and --plot" in err) == (2, True)

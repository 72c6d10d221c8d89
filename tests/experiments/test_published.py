"""The published table and curves: what is printed, what it describes, and which of the two is shown."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.deceleration import Deceleration, fit_deceleration
from lmdynamics.analysis.fits import fit_curves, fits_table
from lmdynamics.errors import UserError
from lmdynamics.experiments.ladder import (
    LAST_STEP,
    drawn_from,
    published_curves,
    published_fits,
    published_interference,
)
from tests.analysis.frames import noisy, spaced

PARAMETERS = {
    **{f"{size}M": size * 10**6 for size in (14, 37, 78, 144, 285, 472)},
    **{f"OLMo-{size}B": size * 10**9 for size in (1, 7)},
}


def test_the_table_has_eight_models_by_size():
    table = published_fits()
    assert dict(table.select("size", "parameters").iter_rows()) == PARAMETERS
    assert table["curve"].equals(table["size"], check_names=False)
    assert table["verdict"].unique().to_list() == ["decelerates"]
    row = table.row(by_predicate=pl.col("size") == "14M", named=True)
    assert (row["loss_at_break"], row["step_at_break"], row["rate_after_break"]) == (4.05, 5877.0, 0.0125)
    assert (row["rate_before_break"], row["final_loss"], row["last_step"]) == (0.1745, 3.877, LAST_STEP)


def test_it_has_the_columns_of_fits_and_no_intervals():
    table, schema = published_fits(), fits_table({}).schema
    assert {name: table.schema[name] for name in schema} == dict(schema)
    assert all(table[name].null_count() == 8 for name in table.columns if name.endswith(("_low", "_high")))
    assert table.filter(pl.col("last_step").is_null())["size"].to_list() == ["OLMo-1B", "OLMo-7B"]


def test_its_numbers_belong_together():
    """L_d = b d^-c0 and r_d = c0 + c1, as far as printed digits go."""
    for row in published_fits().iter_rows(named=True):
        assert row["loss_at_break"] == pytest.approx(row["b"] * np.exp(-row["c0"] * row["log_d1"]), abs=0.02)
        assert row["rate_after_break"] == pytest.approx(row["c0"] + row["c1"], abs=1.5e-4)
        assert row["step_at_break"] == pytest.approx(np.exp(row["log_d1"]), rel=2e-3)


def test_a_curve_is_drawn_as_its_fit_foretells_it():
    steps = spaced(60)
    made = fit_deceleration(steps, noisy(steps, 0.01, 0), resamples=0)
    drawn = drawn_from(fits_table({"a": made, "b": made}), np.array([50.0, 3_000.0, 1e6]))
    assert drawn["curve"].to_list() == ["a"] * 3 + ["b"] * 3
    assert drawn["loss"].to_list() == pytest.approx(made.predict([50.0, 3_000.0, 1e6]).tolist() * 2)
    with pytest.raises(
        UserError, match="drawing fits needs the columns curve, b, c0, c1, log_d1, f1; b not among them"
    ):
        drawn_from(published_fits().drop("b"), steps)


def test_without_the_authors_curves_those_of_the_table_are_drawn_and_said(monkeypatch):
    monkeypatch.delenv("LMDYNAMICS_DATA", raising=False)
    curves, what, real = published_curves()
    assert not real
    assert what.startswith("Drawn from the eight printed fits, not measured: fitting them checks the fitter and is no")
    assert curves["curve"].unique(maintain_order=True).to_list() == list(PARAMETERS)
    assert (curves["step"].min(), curves["step"].max()) == (110, LAST_STEP)
    again = fit_curves(curves, resamples=0)
    for row in published_fits().iter_rows(named=True):
        made = again[row["curve"]]
        assert isinstance(made, Deceleration)
        assert made.headline == "decelerates (no noise, as if drawn from a formula)"
        assert made.rate_after_break == pytest.approx(row["c0"] + row["c1"], abs=1e-5)
        assert made.f1 == pytest.approx(row["f1"], rel=1e-3)


def test_the_authors_curves_are_taken_from_whichever_folder_has_them(monkeypatch, tmp_path, home):
    steps = spaced(20)
    one = pl.DataFrame({"model": ["9M"] * len(steps), "step": steps.astype(int), "loss": noisy(steps, 0.01, 0)})
    mine = pl.concat([one, one.with_columns(model=pl.lit("8M"))])
    monkeypatch.setenv("LMDYNAMICS_DATA", str(tmp_path))
    for folder in (home / "fetched", tmp_path):
        where = folder / "trajectories" / "zsl"
        where.mkdir(parents=True)
        mine.write_csv(where / "smoothed_loss.csv")
        curves, what, real = published_curves()
        assert real
        assert what == "The authors' smoothed losses of 9M, 8M."
        assert curves["loss"].to_list() == pytest.approx(mine["loss"].to_list())
        (where / "smoothed_loss.csv").unlink()


def test_the_authors_own_curves(real_data):
    curves, what, real = published_curves()
    assert real
    names = curves["curve"].unique(maintain_order=True).to_list()
    assert names == ["14M", "37M", "144M", "285M", "OLMo-1B"]
    assert what == f"The authors' smoothed losses of {', '.join(names)}."
    ends = dict(curves.group_by("curve").agg(pl.col("loss").last()).iter_rows())
    measured = dict(published_fits().select("size", "final_loss").iter_rows())
    assert all(ends[name] == pytest.approx(measured[name], abs=6e-4) for name in names[:4])


def test_published_interference_rises_and_keeps_the_identity():
    """|ΔL| = M (1 - D), to the precision of a drawing."""
    table = published_interference()
    kinds = {"model": pl.String, "parameters": pl.Int64, "step": pl.Int64, "value": pl.Float64}
    assert dict(table.schema) == dict.fromkeys(["metric", "interval", "split"], pl.String) | kinds
    assert dict(table.select("model", "parameters").iter_rows()) == {
        name: n for name, n in PARAMETERS.items() if "OLMo" not in name
    }
    over = table.filter((pl.col("interval") == "doubling") & (pl.col("step") >= 64))
    wide = over.pivot("metric", index=["model", "step"], values="value")
    product = wide["magnitude"] * (1 - wide["interference"])
    np.testing.assert_allclose(product, wide["abs_mean_change"], rtol=0.1, atol=0.005)
    for _, frame in wide.sort("step").group_by("model"):
        assert frame.filter(pl.col("step") == 131_072)["interference"].item() > 0.9
        assert frame.filter(pl.col("step") == 2_048)["interference"].item() < 0.7

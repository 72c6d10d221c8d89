"""A ladder of sizes and what was published of one: which of their breaks was found, what may be said of size."""

import re
from collections import Counter
from math import log
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.analysis.deceleration import Deceleration, fit_deceleration
from lmdynamics.analysis.fits import fit_curves, fits_table
from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.errors import UserError
from lmdynamics.experiments import ladder, tables
from lmdynamics.experiments.ladder import (
    LAST_STEP,
    across_breaks,
    as_published,
    by_curve,
    curves_from_fits,
    doubling_steps,
    fits_after_phase,
    ladder_curves,
    null_fits_after_phase,
    published_curves,
    published_fits,
    published_interference,
    run_and_control,
    unigram_entropy,
    unigram_phase_ends,
    which_break,
)
from lmdynamics.experiments.reference import measure_sweep
from lmdynamics.hub.suites import open_run
from lmdynamics.measurements.losses import HeldOutLoss
from lmdynamics.runs.sweep import Condition, Plan, sweep
from tests.analysis.frames import noisy, spaced
from tests.conftest import TINY, refuses

WIDTHS = ("model.hidden_size", "model.intermediate_size")
FEW = {**{key: value for key, value in TINY.items() if key not in WIDTHS}, "training.steps": 6}

# frequencies --------------------------------------------------------------------------------------------------------

rows = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=8)


@given(rows, st.sampled_from([None, (0, 2, 3)]))
def test_unigram_entropy_equals_a_count_by_hand(rows, special):
    """A causal model predicts all tokens but a row's first, a masked one all that are not special."""
    predicted = [t for row in rows for t in (row[1:] if special is None else row) if t not in (special or ())]
    if predicted:
        shares = [count / len(predicted) for count in Counter(predicted).values()]
        expected = -sum(share * log(share) for share in shares)
        assert unigram_entropy(TokenRows.from_rows(rows), special) == pytest.approx(expected, abs=1e-12)


# runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_measured_and_what_failed_is_left_out(home):
    small, wide = (dict(zip(WIDTHS, sizes, strict=True)) for sizes in ((16, 32), (32, 48)))
    short = {**small, "model.max_position_embeddings": 8}
    plan = Plan("grammar-ladder", (Condition("wide", wide), Condition("small", small), Condition("failed", short)))
    sweep_table = sweep(plan, "smoke", (0,), {**FEW, "model.num_key_value_heads": 2}, workers=1, progress=False)
    assert sweep_table["error"].is_null().to_list() == [True, True, False]
    only = ["loss", "interference", "dissent", "tokens"]
    results = measure_sweep(sweep_table, tables.ladder, sentences=40, only=only)
    curves, runs = ladder_curves(results)

    assert curves.schema == {"curve": pl.String, "step": pl.Int64, "loss": pl.Float64}
    assert runs.select("curve", "size", "seed").rows() == [
        ("small seed 0", "small", 0),
        ("wide seed 0", "wide", 0),
    ]
    assert curves["curve"].unique(maintain_order=True).to_list() == runs["curve"].to_list(), "the smallest first"
    assert by_curve(results["interference"]).select("curve", "step").rows() == [
        (f"{size} seed 0", s) for size in ("wide", "small") for s in (1, 2)
    ]
    names = dict(sweep_table.select("condition", "run").iter_rows())
    for row in runs.iter_rows(named=True):
        run = open_run(names[row["size"]])
        assert doubling_steps(run) == [1, 2, 4]
        subset = curves.filter(pl.col("curve") == row["curve"])
        assert subset["loss"].to_list() == run.log["loss"].to_list()
        assert subset["step"].to_list() == run.log["step"].to_list()
        assert row["parameters"] == sum(p.numel() for p in run[6].model().parameters())
        assert row["unigram_entropy"] == unigram_entropy(run.held_out())
        held_out = run.held_out()
        some = held_out.take(np.linspace(0, len(held_out) - 1, min(40, len(held_out))).round().astype(int))
        (end,) = HeldOutLoss(some)(run[6]).to_dicts()
        assert (row["final_loss"], row["stderr"]) == pytest.approx((end["loss"], end["stderr"]))
        losses = results["loss"].filter(condition=row["size"])
        assert losses["step"].to_list() == run.steps
        tokens = results["tokens"].filter(condition=row["size"], step=6)
        assert tokens["row"].n_unique() == min(16, len(held_out))
        assert tokens["text"].null_count() == 0
    assert runs["parameters"][0] < runs["parameters"][1]
    assert {*results["dissent"]["group"]} > {"all"}
    assert unigram_phase_ends(curves, runs)["curve"].to_list() == runs["curve"].to_list()
    ends = measure_sweep(sweep_table, tables.at_the_end, measurements={"end": HeldOutLoss(some)})["end"]
    assert ends.select("condition", "step").rows() == [("wide", 6), ("small", 6)]
    failed = sweep_table.filter(condition="failed")
    refuses("none of the 1 runs is complete: .*the model takes at most 8", measure_sweep, failed, tables.ladder)
    refuses("none of the 0 runs is complete$", measure_sweep, failed.clear(), tables.ladder)


@pytest.mark.parametrize(
    ("steps", "doubled"),
    [
        ([0, 1, 2, 4, 6], [1, 2, 4]),
        ([0, 1, 2, 512, 1000, 2000, 143_000], [1, 2, 1000, 2000]),
        ([0, 1000, 3000], [1000, 3000]),
    ],
)
def test_doublings_are_looked_for_beyond_powers_of_two(steps, doubled):
    assert doubling_steps(SimpleNamespace(steps=steps)) == doubled


def test_a_run_without_a_log_is_refused(tiny_run):
    (tiny_run.folder / "log.parquet").unlink()
    refuses("has no loss log; train it with `lmdynamics sweep`", tables.ladder, tiny_run, "cpu")


def test_suites_have_no_seed_in_the_name_of_their_curve():
    table = pl.DataFrame({"condition": ["a/b", "1M"], "seed": [None, 3], "loss": [1.0, 2.0]})
    assert by_curve(table).rows() == [("a/b", "a/b", None, 1.0), ("1M seed 3", "1M", 3, 2.0)]


def test_the_control_of_a_run_has_the_next_seed(monkeypatch):
    """The first size of the plan, or of `grammar-ladder` beside reference results."""
    calls = []

    def swept(plan, profile, seeds, changes, *, only):
        calls.append((plan, profile, seeds, changes, only))
        return pl.DataFrame({"condition": only * 2, "seed": seeds, "run": ["one", "other"], "error": [None, errors]})

    monkeypatch.setattr(ladder, "sweep", swept)
    monkeypatch.setattr(ladder, "open_run", lambda name: name)
    errors = None
    assert run_and_control("reference", "", "smoke", 4, {"steps": 8}) == ("one", "other")
    assert run_and_control("english-ladder", "0.84M") == ("one", "other")
    assert calls == [
        ("grammar-ladder", "smoke", (4, 5), {"steps": 8}, ["0.09M"]),
        ("english-ladder", "default", (0, 1), (), ["0.84M"]),
    ]
    errors = "the disk is full"
    refuses("0.09M: the disk is full", run_and_control, "reference")


@pytest.mark.parametrize(
    ("plan", "size", "expected"),
    [("hf://a hf://b", "", "a b"), ("hf://a hf://b", "b", "b b"), ("hf://a", "", "a a")],
)
def test_the_control_of_a_suite_is_the_next_one(monkeypatch, plan, size, expected):
    monkeypatch.setattr(ladder, "open_run", lambda address: SimpleNamespace(name=address.removeprefix("hf://")))
    assert " ".join(run.name for run in run_and_control(plan, size)) == expected
    refuses("size is 'c', which is not among these suites", run_and_control, plan, "c")


# which break --------------------------------------------------------------------------------------------------------


def test_a_phase_ends_where_the_averaged_loss_falls_below_the_entropy():
    steps = np.arange(1, 2_001)
    curves = pl.concat(
        [
            pl.DataFrame({"curve": "falls", "step": steps, "loss": np.where(steps < 500, 5.0, 3.0)}),
            pl.DataFrame({"curve": "never", "step": steps, "loss": 5.0}),
            pl.DataFrame({"curve": "at once", "step": steps, "loss": 3.0}),
            # one lucky batch is no end
            pl.DataFrame({"curve": "lucky", "step": steps, "loss": np.where(steps == 400, 0.1, 5.0)}),
        ]
    )
    runs = pl.DataFrame({"curve": ["falls", "never", "at once", "lucky", "absent"], "unigram_entropy": 4.0})
    shuffled = curves.sample(fraction=1, shuffle=True, seed=0)
    ends = unigram_phase_ends(shuffled, runs)
    assert ends.schema == {"curve": pl.String, "ends": pl.Int64}
    phases = dict(ends.iter_rows())
    # the mean over the last sixth of all steps is below 4 once more than half of them lie after step 500
    assert phases.pop("falls") == pytest.approx(545, abs=10)
    assert phases == {"never": None, "at once": 1.0, "lucky": None, "absent": None}
    with pytest.raises(UserError, match="the unigram phase needs the columns curve, unigram_entropy"):
        unigram_phase_ends(curves, runs.drop("unigram_entropy"))


@pytest.mark.parametrize(
    ("verdict", "at", "ends", "which"),
    [
        ("decelerates", 1_000.0, 1_000, "end of the unigram phase"),
        ("decelerates", 1_499.0, 1_000, "end of the unigram phase"),
        ("decelerates", 1_501.0, 1_000, "after it"),
        ("break at the edge", 667.0, 1_000, "end of the unigram phase"),
        ("accelerates", 666.0, 1_000, "before it"),
        ("decelerates", 1_000.0, None, "before it"),
        ("no break", 1_000.0, 1_000, "none"),
        ("not fitted", None, 1_000, "none"),
    ],
)
def test_a_break_is_reported_by_its_distance_from_the_end_of_that_phase(verdict, at, ends, which):
    unbroken = {"curve": "other", "verdict": "no break", "step_at_break": 9.0}
    fits = pl.DataFrame([{"curve": "a", "verdict": verdict, "step_at_break": at}, unbroken])
    phases = pl.DataFrame({"curve": ["other", "a"], "ends": [5, ends]}, {"curve": pl.String, "ends": pl.Int64})
    table = which_break(fits, phases)
    assert table["curve"].to_list() == ["a", "other"]
    assert table.columns == [*fits.columns, "ends", "which"]
    assert table["which"].to_list() == [which, "none"]


def test_fits_begin_where_the_unigram_phase_ends():
    steps = np.arange(1, 4_001)
    broken = 6 * (steps / 40) ** -0.3 * (1 + (steps / 600) ** 4) ** (0.25 / 4)
    noise = np.random.default_rng(0).normal(0, 0.02, len(steps))
    curves = pl.concat(
        pl.DataFrame({"curve": name, "step": steps, "loss": loss})
        for name, loss in (("a", broken + noise), ("never", np.full(len(steps), 9.0)))
    )
    about = {"curve": ["a", "never"], "size": ["1M", "2M"], "parameters": [10**6, 2 * 10**6], "unigram_entropy": 6.0}
    row, never = fits_after_phase(curves, pl.DataFrame(about)).iter_rows(named=True)
    assert row["curve"] == "a"
    assert row["size"] == "1M"
    assert row["verdict"] == "decelerates"
    assert row["which"] == "after it"
    assert 40 <= row["first_step"] <= row["ends"] + 2
    assert row["step_at_break"] == pytest.approx(600, rel=0.3)
    assert (never["verdict"], never["which"]) == ("not fitted", "none")
    assert never["reason"] == "the loss never falls below the unigram entropy"


def test_a_break_without_an_interval_is_not_located_and_its_control_has_no_break():
    steps = np.arange(1, 8_001)
    bent = 5.9 * (steps / 60) ** -0.1 * ((1 + (steps / 900) ** 4) / 2) ** (0.08 / 4)
    dropped = bent * np.where(steps > 300, 0.95, 1)
    noise = np.random.default_rng(0).normal(0, 0.02, len(steps))
    losses = pl.concat(
        pl.DataFrame({"curve": [name] * len(steps), "step": steps, "loss": loss + noise})
        for name, loss in (("bent", bent), ("dropped", dropped))
    )
    about = {"curve": ["bent", "dropped"], "size": ["1M", "2M"], "parameters": [10**6, 2 * 10**6]}
    runs = pl.DataFrame(about | {"unigram_entropy": 6.0})
    located, unknown = fits_after_phase(losses, runs).iter_rows(named=True)
    assert located["verdict"] == "decelerates"
    assert located["step_at_break_low"] < located["step_at_break"] < located["step_at_break_high"]
    assert "sudden drop by" in unknown["caveat"]
    assert (unknown["verdict"], unknown["which"]) == ("break not located", "none")
    assert unknown["reason"].endswith("; no interval")
    assert null_fits_after_phase(losses, runs)["verdict"].to_list() == ["no break", "no break"]
    for short in (losses.filter(pl.col("step") < 60), losses.filter(pl.col("step") < 20)):
        assert null_fits_after_phase(short, runs).is_empty(), "too few points to make a curve of"


def test_interference_is_compared_across_each_runs_own_break():
    starts = [1, 2, 4, 8, 16]
    rows = [(f"{seed}", "1M", seed, t, 2 * t, 0.1 * i) for seed in (0, 1, 2) for i, t in enumerate(starts)]
    interference = pl.DataFrame(rows, ["curve", "size", "seed", "step", "until", "interference"], orient="row")
    found = {"step_at_break": [4.0, 8.5, 4.0], "which": ["after it", "after it", "none"]}
    breaks = pl.DataFrame({"curve": ["0", "1", "2"], "parameters": 9, **found})
    table = across_breaks(interference, breaks)
    assert table["seed"].to_list() == [0, 1], "the fit of the third claims no break"
    first, second = table.iter_rows(named=True)
    assert (first["before"], first["after"]) == pytest.approx((0.05, 0.3))
    assert (second["before"], second["after"]) == pytest.approx((0.1, 0.4)), "8 → 16 contains its break"
    assert second["difference"] == pytest.approx(0.3)


# sizes --------------------------------------------------------------------------------------------------------------


def fits(loss, rate, verdict="decelerates") -> pl.DataFrame:
    sizes = [10**6 * 2**k for k in range(len(loss))]
    return pl.DataFrame({"parameters": sizes, "verdict": verdict, "loss_at_break": loss, "rate_after_break": rate})


def test_the_published_table_is_as_published():
    sentence = as_published(published_fits())
    assert sentence.count("as published") == 2
    assert "not as" not in sentence
    assert "L_d ∝ N^-0.06" in sentence
    assert sentence.endswith("(8 of 8 curves decelerate).")


@pytest.mark.parametrize(
    ("loss", "rate", "sentence"),
    [
        (
            [3.0, 3.3, 3.6, 4.0],
            [0.04, 0.03, 0.02, 0.01],
            r"rises with size, not as published; r_d .* falls with size, not as published \(4 of 4",
        ),
        (
            [3.0, 3.3, 3.1, 2.9],
            [0.01, 0.02, 0.04, 0.08],
            r"undecided whether it changes with size; r_d .*N\^1.000 \[1.000, 1.000\]: rises with size, as published",
        ),
        ([4.0, 3.5, 3.0, 2.5], [-0.01, 0.02, -0.02, 0.01], "; r_d is positive in 2 curves only, of 2 sizes"),
    ],
)
def test_what_size_does_to_loss_and_rate_is_reported(loss, rate, sentence):
    assert re.search(sentence, as_published(fits(loss, rate)))


@pytest.mark.parametrize(
    ("verdicts", "counted"),
    [
        (["decelerates", "no break", "no break", "no break"], "1 of 4 curves decelerate, at 1 size"),
        (["decelerates", "decelerates", "no break", "not fitted"], "2 of 4 curves decelerate, at 2 sizes"),
        (["accelerates"] * 4, "0 of 4 curves decelerate, at 0 sizes"),
    ],
)
def test_where_few_decelerate_there_is_nothing_to_compare(verdicts, counted):
    table = fits([4.0, 3.5, 3.0, 2.5], [0.01, 0.02, 0.03, 0.04]).with_columns(verdict=pl.Series(verdicts))
    assert as_published(table) == f"{counted}: too few to compare L_d and r_d over sizes."


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


def test_a_curve_is_computed_as_its_fit_predicts():
    steps = spaced(60)
    fit = fit_deceleration(steps, noisy(steps, 0.01, 0), resamples=0)
    curves = curves_from_fits(fits_table({"a": fit, "b": fit}), np.array([50.0, 3_000.0, 1e6]))
    assert curves["curve"].to_list() == ["a"] * 3 + ["b"] * 3
    assert curves["loss"].to_list() == pytest.approx(fit.predict([50.0, 3_000.0, 1e6]).tolist() * 2)
    words = "drawing fits needs the columns curve, b, c0, c1, log_d1, f1; b not among them"
    refuses(words, curves_from_fits, published_fits().drop("b"), steps)


def test_without_the_authors_curves_those_of_the_table_are_drawn_and_reported(monkeypatch):
    monkeypatch.delenv("LMDYNAMICS_DATA", raising=False)
    curves, description, real = published_curves()
    assert not real
    assert description.startswith("Computed from the eight published fits, not measured: fitting them only checks")
    assert curves["curve"].unique(maintain_order=True).to_list() == list(PARAMETERS)
    assert (curves["step"].min(), curves["step"].max()) == (110, LAST_STEP)
    refitted = fit_curves(curves, resamples=0)
    for row in published_fits().iter_rows(named=True):
        result = refitted[row["curve"]]
        assert isinstance(result, Deceleration)
        assert result.headline == "decelerates (no noise, as if computed from a formula)"
        assert result.rate_after_break == pytest.approx(row["c0"] + row["c1"], abs=1e-5)
        assert result.f1 == pytest.approx(row["f1"], rel=1e-3)


def test_the_authors_curves_are_taken_from_whichever_folder_has_them(monkeypatch, tmp_path, home):
    steps = spaced(20)
    model_curve = pl.DataFrame({"model": ["9M"] * len(steps), "step": steps.astype(int), "loss": noisy(steps, 0.01, 0)})
    mine = pl.concat([model_curve, model_curve.with_columns(model=pl.lit("8M"))])
    monkeypatch.setenv("LMDYNAMICS_DATA", str(tmp_path))
    for folder in (home / "fetched", tmp_path):
        data_folder = folder / "trajectories" / "zsl"
        data_folder.mkdir(parents=True)
        mine.write_csv(data_folder / "smoothed_loss.csv")
        curves, description, real = published_curves()
        assert real
        assert description == "The authors' smoothed losses of 9M, 8M."
        assert curves["loss"].to_list() == pytest.approx(mine["loss"].to_list())
        (data_folder / "smoothed_loss.csv").unlink()


def test_the_authors_own_curves(real_data):
    curves, description, real = published_curves()
    assert real
    names = curves["curve"].unique(maintain_order=True).to_list()
    assert names == ["14M", "37M", "144M", "285M", "OLMo-1B"]
    assert description == f"The authors' smoothed losses of {', '.join(names)}."
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

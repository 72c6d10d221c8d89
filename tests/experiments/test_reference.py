"""Reference results: made run by run, resumed, replaced when they are out of date, and read without weights."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import lmdynamics as lmd
from lmdynamics.analysis.precursors import precursor_onsets, resampled
from lmdynamics.experiments import reference as module
from lmdynamics.experiments.findings import (
    describe_precursors,
    later,
    loss_drop,
    mean_step,
    onset_table,
    order_over_seeds,
    pair_curves,
    precursors_over_seeds,
    uas_curves,
)
from lmdynamics.experiments.ladder import tree_rows
from lmdynamics.experiments.reference import EXPERIMENTS, Experiment, make_reference
from lmdynamics.measurements.divergence import SEEDS, divergence
from lmdynamics.measurements.losses import HeldOutLoss
from lmdynamics.runs.sweep import read_plan
from lmdynamics.runs.trained import train
from tests.analysis.frames import precursor_rows
from tests.conftest import TINY, refuses


@pytest.fixture(autouse=True)
def trained_here(monkeypatch):
    """Runs of twelve steps, trained in this process: the sweep itself is tested elsewhere."""

    def sweep(plan, profile, seeds, only, **options):
        conditions = [condition for condition in read_plan(plan).conditions if condition.name in only]
        rows = []
        for seed in seeds:
            for condition in conditions:
                name = f"{condition.name}, {seed}"
                train("grammar-mlm", profile, seed, TINY | condition.set, name=name, progress=False)
                rows.append((condition.name, seed, name, None))
        return pl.DataFrame(rows, ["condition", "seed", "run", "error"], orient="row")

    monkeypatch.setattr(module, "sweep", sweep)


@pytest.fixture
def measured(monkeypatch) -> list[tuple[str, int]]:
    """An experiment "tiny" of two conditions; the list grows with each run that is measured."""
    calls = []

    def measure(run, device):
        calls.append((run.name, run.recipe.seed))
        loss = lmd.trace(run, HeldOutLoss(run.held_out()), steps=run.steps[-2:], progress=False)
        return {"loss": loss, "log": run.log.select("step", "loss")}

    tiny = Experiment({"masking": ["constant 15 %", "constant 30 %"]}, (0, 1), measure)
    monkeypatch.setitem(EXPERIMENTS, "tiny", tiny)
    return calls


def make(folder, **options):
    return make_reference("tiny", folder, profile="smoke", progress=False, **options)


def test_the_tables_are_the_measurements_of_every_run(measured, tmp_path, capsys):
    results = make(tmp_path)
    assert len(measured) == 4
    assert results.runs.select("condition", "seed").rows() == [
        (condition, seed) for condition in ("constant 15 %", "constant 30 %") for seed in (0, 1)
    ]
    run = lmd.open_run("constant 30 %, 1")
    direct = lmd.trace(run, HeldOutLoss(run.held_out()), steps=run.steps[-2:], progress=False)
    kept = results["loss"].filter(condition="constant 30 %", seed=1)
    assert kept["step"].to_list() == direct["step"].to_list()
    assert kept["loss"].to_list() == pytest.approx(direct["loss"].to_list(), rel=1e-6)
    assert results["log"].filter(condition="constant 15 %", seed=0).height == 12
    facts = json.loads((tmp_path / "tiny.json").read_text())["runs"][3]
    assert facts["recipe"]["training"]["masking"] == "constant-0.3"
    assert facts["steps"] == 12
    assert facts["trained_on"] == "cpu"
    assert facts["versions"]["torch"]
    assert "4 runs (2 conditions, seeds 0, 1), computed on cpu" in results.source
    assert "`lmdynamics reference tiny`" in results.source

    make(tmp_path)
    assert len(measured) == 4, "a second call measured again"
    (tmp_path / "tiny.json").write_text((tmp_path / "tiny.json").read_text().replace('"seed": 1', '"seed": 7'))
    make(tmp_path, seeds=[1], only=["constant 15 %"])
    assert measured[4:] == [("constant 15 %, 1", 1)], "only the run that was asked for and is missing"


def test_only_what_is_missing_is_trained(measured, tmp_path, monkeypatch):
    make(tmp_path, only=["constant 15 %"])
    make(tmp_path, only=["constant 30 %"], seeds=[0])
    trained, sweep = [], module.sweep
    monkeypatch.setattr(module, "sweep", lambda *a, **options: trained.append(options) or sweep(*a, **options))
    make(tmp_path)
    assert [(options["seeds"], options["only"]) for options in trained] == [((1,), ["constant 30 %"])]


def test_an_experiment_that_changed_is_made_anew(measured, tmp_path, monkeypatch):
    make(tmp_path, seeds=[0])
    before = len(measured)
    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(EXPERIMENTS["tiny"], version=2))
    results = make(tmp_path, seeds=[0])
    assert len(measured) == 2 * before
    assert len(results.runs) == before
    assert results["loss"].height == 2 * before, "rows of the earlier version are gone"


def test_results_of_another_version_of_the_language_are_made_anew(measured, tmp_path):
    make(tmp_path, seeds=[0])
    before = len(measured)
    index = tmp_path / "tiny.json"
    facts = json.loads(index.read_text())
    facts["runs"][0]["recipe"]["corpus"]["version"] = 1
    index.write_text(json.dumps(facts))
    make(tmp_path, seeds=[0])
    assert len(measured) == before + 1


def test_a_run_that_was_stopped_while_measuring_is_made_again(measured, tmp_path, monkeypatch):
    stopped = EXPERIMENTS["tiny"].measure

    def stop(run, device):
        if len(measured) == 1:
            raise KeyboardInterrupt
        return stopped(run, device)

    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(EXPERIMENTS["tiny"], measure=stop))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, seeds=[0])
    assert len(lmd.reference("tiny", tmp_path).runs) == 1
    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(EXPERIMENTS["tiny"], measure=stopped))
    assert len(make(tmp_path, seeds=[0]).runs) == 2
    assert len(measured) == 2


def test_what_does_not_exist_is_named(measured, tmp_path, call):
    refuses("no experiment 'sintax'; did you mean 'syntax'", lmd.reference, "sintax")
    refuses("no results of tiny; `lmdynamics reference tiny` makes them", lmd.reference, "tiny", tmp_path)
    refuses("tiny has no condition 'constant 20 %'", make, tmp_path, only=["constant 20 %"])
    results = make(tmp_path, seeds=[0], only=["constant 15 %"])
    refuses("the reference results of tiny have no table 'los'; did you mean 'loss'", results.__getitem__, "los")
    status, _, error = call("reference", "tiny", "--seeds", "x")
    assert status == 2
    assert "give whole numbers" in error


def test_the_command_prints_what_was_made(measured, tmp_path, call):
    arguments = ("--out", str(tmp_path), "--profile", "smoke", "--seeds", "0", "--only", "constant 15 %")
    status, printed, error = call("reference", "tiny", *arguments)
    assert status == 0, error
    assert "1 run (1 condition, seed 0), computed on cpu" in printed


@pytest.mark.parametrize("name", ["syntax", "interventions", "masking"])
def test_an_experiment_on_the_built_in_language(name, tmp_path):
    only = {"syntax": "base", "interventions": "base", "masking": "constant 30 %"}[name]
    results = make_reference(name, tmp_path, profile="smoke", seeds=[0], only=[only], progress=False)
    pairs = results["pairs"]
    assert {"condition", "seed", "step", "paradigm", "pair", "correct"} <= {*pairs.columns}
    assert results["loss"]["step"].max() == 12
    if name == "masking":
        assert sorted(results["loss"]["rate"].unique()) == pytest.approx([0.05, 0.15, 0.3, 0.5])
    else:
        single = {"single_head", "single_offset", "single_shuffled"} if name == "syntax" else set()
        assert {*results["uas"]["source"]} == {"per_relation", "offset", "shuffled"} | single
    if name == "syntax":
        measured = results["precursors"]
        assert set(measured["step"]) == set(results["loss"]["step"])
        assert measured.filter(step=12)["distance"].to_list() == [0.0] * measured["group"].n_unique()
        assert measured["unigram"].n_unique() == 1
    sizes = sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    assert sizes < 500_000


def test_seeds_are_compared_in_pairs_that_share_no_run(tmp_path, monkeypatch):
    """The second of a pair has curves and onsets, and its divergence is that of the first."""

    def train_tiny(recipe, profile, seed, **options):
        return train(recipe, profile, seed, TINY, name=f"base, {seed}", **options)

    monkeypatch.setattr(module.tables, "train", train_tiny)
    results = make_reference("seeds", tmp_path, profile="smoke", seeds=[0, 1], progress=False)
    assert sorted(results["curves"]["seed"].unique()) == sorted(results["onsets"]["seed"].unique()) == [0, 1]
    measures = {"loss (nats)", "UAS", "UAS, offset", "UAS, shuffled", "agreement", "agreement_no_attractor"}
    assert measures <= {*results["curves"]["measure"]}
    pairs = results["divergence"]
    assert pairs["seed"].unique().to_list() == [0]
    assert {*pairs["by"]} == {"all", "frequency", "relation"}
    one, other = (lmd.open_run(f"base, {seed}") for seed in (0, 1))
    rows, _ = tree_rows(one, one.treebank("grammar", 1_000))
    direct = divergence(one[12], {SEEDS: other[12]}, rows)
    (kept,) = pairs.filter(step=12, by="all", compared=SEEDS).to_dicts()
    assert kept["value"] == pytest.approx(direct[SEEDS].mean(), rel=1e-5)
    assert kept["tokens"] == len(direct)


def planted_runs(onset_steps, control=0.2):
    """UAS and pairs of runs whose heads and judgements rise at known steps, one row a sentence and pair."""
    steps = [0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    uas, pairs = [], []
    for seed, (structure, beyond, grammar) in enumerate(onset_steps):
        for step in steps:
            found = 0.9 if step >= beyond else 0.4 if step >= structure else control
            for sentence in range(40):
                for source, share in (("per_relation", found), ("offset", 0.6), ("shuffled", control)):
                    uas.append(("base", seed, step, sentence, source, 10, round(10 * share)))
            right = 38 if step >= grammar else 20
            pairs += [("base", seed, step, "p", pair, pair < right, False) for pair in range(40)]
    columns = ["condition", "seed", "step", "sentence", "source", "arcs", "correct"]
    judged = ["condition", "seed", "step", "paradigm", "pair", "correct", "tie"]
    return pl.DataFrame(uas, columns, orient="row"), pl.DataFrame(pairs, judged, orient="row")


def test_onsets_over_seeds_are_those_that_were_planted():
    uas, pairs = planted_runs([(32, 128, 256), (64, 256, 512), (32, 128, 256)])
    onsets = onset_table(uas, pairs)
    assert onsets.filter(onset="structure")["step"].to_list() == [32, 64, 32]
    assert onsets.filter(onset="structure beyond position")["step"].to_list() == [128, 256, 128]
    assert onsets.filter(onset="capabilities")["step"].to_list() == [256, 512, 256]
    mean = {row["onset"]: row for row in mean_step(onsets).iter_rows(named=True)}
    assert mean["structure"]["step"] == pytest.approx((32 * 64 * 32) ** (1 / 3))
    assert mean["structure"]["low"] < 32 < 64 < mean["structure"]["high"]
    ratio = later(onsets, "structure beyond position", "capabilities")
    assert (ratio["mean"], ratio["low"], ratio["high"], ratio["n"]) == pytest.approx((2, 2, 2, 3))


def test_a_run_without_an_onset_is_counted_but_not_averaged():
    uas, pairs = planted_runs([(32, 128, 256), (32, 4096, 256)])
    mean = {row["onset"]: row for row in mean_step(onset_table(uas, pairs)).iter_rows(named=True)}
    assert (mean["structure beyond position"]["n"], mean["structure beyond position"]["runs"]) == (1, 2)
    assert mean["structure beyond position"]["step"] == pytest.approx(128)
    assert mean["structure beyond position"]["low"] is None, "one run has no interval"
    nobody = onset_table(*planted_runs([(4096, 4096, 4096)]))
    assert mean_step(nobody)["step"].to_list() == [None, None, None]
    assert later(nobody, "structure", "capabilities")["n"] == 0


def test_what_precedes_the_drop_over_seeds():
    uas, pairs = planted_runs([(32, 128, 256), (32, 128, 512), (64, 128, 256)])
    runs = [precursor_rows(drop=drop, seed=seed) for seed, drop in enumerate((280, 300, 320))]
    base = pl.lit("base").alias("condition")
    measured = pl.concat(
        rows.select(base, pl.lit(seed, pl.Int64).alias("seed"), pl.all()) for seed, rows in enumerate(runs)
    )
    table = precursors_over_seeds({"uas": uas, "pairs": pairs, "precursors": measured})
    order = dict(table.select("onset", "order").iter_rows())
    assert {name for name, when in order.items() if when == "before"} >= {"repetition", "parallel states within rows"}
    assert order["attention"] == "after"
    assert (order["loss drop"], order["repetition beyond frequency"]) == (None, "undecided")
    rows = {row["onset"]: row for row in table.iter_rows(named=True)}
    dated = [precursor_onsets(resampled(run)) for run in runs]
    ratios = [onsets["loss drop"].step / onsets["repetition"].step for onsets in dated]
    assert rows["repetition"]["times_earlier"] == pytest.approx(np.prod(ratios) ** (1 / 3))
    text = describe_precursors(table)
    assert "means over 3 seeds: loss drop (" in text
    assert "After it: attention (" in text
    assert "In no run: repetition beyond frequency." in text
    results = {"uas": uas, "pairs": pairs, "precursors": measured}
    one = precursors_over_seeds({name: frame.filter(seed=0) for name, frame in results.items()})
    assert set(one["order"].drop_nulls()) == {"undecided"}, "one run decides nothing"
    never = measured.with_columns(loss=pl.lit(6.0))
    nothing = precursors_over_seeds({"uas": uas, "pairs": pairs, "precursors": never})
    assert describe_precursors(nothing) == "No loss drop is dated; runs: 3."


def test_the_order_over_seeds_is_corrected_for_the_number_of_onsets():
    """One of nine onsets is a little earlier in three runs: alone its interval decides, beside eight others not."""
    steps = {"drop": [256, 256, 256], "early": [128, 160, 140]}
    steps |= {f"at the drop {index}": [200 + 10 * index, 256, 300] for index in range(8)}
    rows = [(name, seed, step) for name, of_seeds in steps.items() for seed, step in enumerate(of_seeds)]
    onsets = pl.DataFrame(rows, ["onset", "seed", "step"], orient="row")
    alone = order_over_seeds(onsets.filter(pl.col("onset").is_in(["drop", "early"])), "drop").rows(named=True)[1]
    among = order_over_seeds(onsets, "drop").filter(onset="early").row(0, named=True)
    assert alone["earlier_low"] > 1
    assert alone["order"] == "before"
    assert among == alone | {"order": "undecided"}


def test_curves_and_the_fall_of_the_loss():
    uas, pairs = planted_runs([(32, 128, 256)])
    curves = uas_curves(uas)
    assert curves.filter(source="per_relation", step=64)["value"].to_list() == pytest.approx([0.4])
    assert pair_curves(pairs).filter(step=512)["value"].to_list() == pytest.approx([38 / 40])
    steps = sorted(uas["step"].unique())
    losses = dict(zip(steps, [5.0, 4.9, 4.5, 4.0, 3.5, 2.5, 2.4, 2.3, 2.2, 2.0], strict=True))
    loss = pl.DataFrame({"condition": "base", "seed": 0, "step": steps, "loss": [losses[s] for s in steps]})
    (row,) = loss_drop(loss, uas).iter_rows(named=True)
    assert (row["start"], row["end"]) == (16, 128)  # UAS .2 up to step 16, .9 from 128 on
    assert row["drop"] == pytest.approx(4.5 - 2.5)
    assert row["share"] == pytest.approx(2 / 3)


def test_every_shipped_result_has_its_facts():
    folder = module.shipped("reference")
    for index in sorted(folder.glob("*.json")):
        results = lmd.reference(index.stem)
        known = results.runs.select("condition", "seed")
        for table in sorted(folder.glob(f"{index.stem}-*.parquet")):
            rows = pl.read_parquet(table).select("condition", "seed").unique().rows()
            of_pairs = table.name == "seeds-divergence.parquet"  # whose first seed is even
            expected = known.filter(pl.col("seed") % 2 == 0) if of_pairs else known
            assert sorted(rows) == sorted(expected.rows()), table.name
            assert table.stat().st_size < 1_500_000, table.name

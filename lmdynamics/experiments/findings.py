"""What the reference results show: numbers over seeds with their intervals, and sentences that say no more than these.

The seed is the unit. Steps and their ratios are averaged on a logarithmic scale. Intervals are Student's, 95 %, over
seeds; with one seed there are none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.analysis.onsets import Onset, capabilities_onset, rise_window, structure_onset
from lmdynamics.analysis.precursors import DROP, precursor_onsets, resampled
from lmdynamics.analysis.statistics import compare_to_baseline, decide, mean_over_seeds
from lmdynamics.analysis.syntax import accuracy_by_step, average_accuracy
from lmdynamics.paths import shipped


def by_run(frame: pl.DataFrame, summary: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """`summary` of the rows of each condition and seed, with these columns first."""
    parts = [
        summary(rows.drop("condition", "seed")).select(
            pl.lit(condition).alias("condition"), pl.lit(seed, pl.Int64).alias("seed"), pl.all()
        )
        for (condition, seed), rows in frame.group_by("condition", "seed", maintain_order=True)
    ]
    return pl.concat(parts)


def uas_curves(uas: pl.DataFrame) -> pl.DataFrame:
    """UAS of each run: condition, seed, source, step, value."""
    need_columns(uas, ["condition", "seed", "source", "step", "arcs", "correct"], "UAS over runs")
    sums = uas.group_by("condition", "seed", "source", "step", maintain_order=True).agg(pl.col("arcs", "correct").sum())
    return sums.select("condition", "seed", "source", "step", value=pl.col("correct") / pl.col("arcs"))


def pair_curves(pairs: pl.DataFrame) -> pl.DataFrame:
    """Share of pairs judged right, averaged over paradigms: condition, seed, step, value, low, high."""
    average = by_run(pairs, lambda rows: average_accuracy(accuracy_by_step(rows)))
    return average.select("condition", "seed", "step", "low", "high", value="accuracy")


def onset_table(uas: pl.DataFrame, pairs: pl.DataFrame, margin: float = 0.1) -> pl.DataFrame:
    """The three onsets of each run: condition, seed, onset, step, low, high (over sentences or pairs); null: no onset.

    `structure` is dated against shuffled trees, `structure beyond position` against the best fixed offset.
    """
    onsets = {}
    for (condition, seed), frame in uas.group_by("condition", "seed", maintain_order=True):
        judged = pairs.filter(pl.col("condition") == condition, pl.col("seed") == seed)
        onsets[condition, seed] = (
            structure_onset(frame, margin=margin),
            structure_onset(frame, control="offset", margin=0.0),
            capabilities_onset(judged, margin=margin),
        )
    return _onset_rows(onsets)


def _onset_rows(onsets: Mapping[tuple[str, int], Iterable[Onset]]) -> pl.DataFrame:
    """Onsets by condition and seed as rows: condition, seed, onset, step, low, high."""
    rows = [(*run, o.name, o.step, o.low, o.high) for run, of_run in onsets.items() for o in of_run]
    integers = dict.fromkeys(("step", "low", "high"), pl.Int64)
    return pl.DataFrame(rows, {"condition": pl.String, "seed": pl.Int64, "onset": pl.String, **integers}, orient="row")


def precursors_over_seeds(results: Mapping[str, pl.DataFrame], margin: float = 0.1) -> pl.DataFrame:
    """Which onsets come before the loss drop, over the seeds of reference results with the table `precursors`.

    Rows: `onset`, `step` (geometric mean), `low`, `high`, `n` (runs with this onset), `runs`, and those of
    `order_over_seeds`.
    """
    dated = {
        run: precursor_onsets(resampled(rows.drop("condition", "seed")), margin).values()
        for run, rows in results["precursors"].group_by("condition", "seed", maintain_order=True)
    }
    onsets = pl.concat([_onset_rows(dated), onset_table(results["uas"], results["pairs"], margin)])
    return mean_step(onsets).join(order_over_seeds(onsets, DROP), on="onset", maintain_order="left")


def order_over_seeds(onsets: pl.DataFrame, reference: str) -> pl.DataFrame:
    """Which onsets of an `onset_table` come before the onset `reference` of the same run, over seeds.

    Rows: `onset`; `times_earlier` (mean ratio of steps), `earlier_low`, `earlier_high`; `order`: before or after if
    that interval excludes 1 and a paired test agrees, corrected for the number of onsets (see `contrasts`).
    """
    logs = onsets.drop_nulls("step").select(
        "seed", condition="onset", measure=pl.lit("step"), value=pl.col("step").log()
    )
    logs = logs.filter(pl.col("seed").is_in(logs.filter(condition=reference)["seed"].implode()))
    names = onsets.filter(pl.col("onset") != reference)["onset"].unique(maintain_order=True)
    tested = [(name, reference, "step") for name in names if name in logs["condition"]]
    rows = contrasts(logs, tested, {"step": True}).to_dicts() if tested else []  # better: at a later step
    orders = {"better": "after", "worse": "before"}
    ratios = {
        row["condition"]: [
            *(None if row[key] is None else float(np.exp(-row[key])) for key in ("difference", "high", "low")),
            orders.get(row["verdict"], "undecided"),
        ]
        for row in rows
    }
    unknown = [None, None, None, "undecided"]
    numbers = dict.fromkeys(("times_earlier", "earlier_low", "earlier_high"), pl.Float64)
    table = [(reference, *[None] * 4), *((name, *ratios.get(name, unknown)) for name in names)]
    return pl.DataFrame(table, {"onset": pl.String, **numbers, "order": pl.String}, orient="row")


def mean_step(onsets: pl.DataFrame) -> pl.DataFrame:
    """Each onset over seeds: onset, step (geometric mean), low, high, n (runs with this onset), runs."""
    rows = []
    for (name,), frame in onsets.group_by("onset", maintain_order=True):
        dated = frame.drop_nulls("step").with_columns(log=pl.col("step").log())
        mean = mean_over_seeds(dated, "onset", "log").row(0, named=True) if len(dated) else {}
        steps = [None if mean.get(key) is None else float(np.exp(mean[key])) for key in ("mean", "low", "high")]
        rows.append((name, *steps, len(dated), len(frame)))
    numbers = dict.fromkeys(("step", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, {"onset": pl.String, **numbers, "n": pl.Int64, "runs": pl.Int64}, orient="row")


def later(onsets: pl.DataFrame, first: str, second: str) -> dict[str, float | int | None]:
    """How many times later `second` comes than `first`: mean ratio of steps over seeds with both, low, high, n."""
    steps = onsets.pivot("onset", index="seed", values="step").drop_nulls([first, second])
    if steps.is_empty():
        return {"mean": None, "low": None, "high": None, "n": 0}
    logs = steps.select("seed", pl.lit("ratio").alias("what"), log=(pl.col(second) / pl.col(first)).log())
    row = mean_over_seeds(logs, "what", "log").row(0, named=True)
    return {key: None if row[key] is None else float(np.exp(row[key])) for key in ("mean", "low", "high")} | {
        "n": row["n"]
    }


def describe_precursors(table: pl.DataFrame) -> str:
    """What comes before the loss drop, after it, or cannot be told: sentences on a table of `precursors_over_seeds`."""

    def with_step(row: Mapping) -> str:
        step = with_interval(row["step"], (row["low"], row["high"]), ",.0f")
        return f"{row['onset']} ({step}" + (f", {row['n']} of {row['runs']} runs)" if row["n"] < row["runs"] else ")")

    rows = table.rows(named=True)
    drop = next(row for row in rows if row["onset"] == DROP)
    if not drop["n"]:
        return f"No loss drop is dated; runs: {drop['runs']}."
    sentences = [f"Steps, means over {drop['runs']} seeds: {with_step(drop)}."]
    for order in ("before", "after", "undecided"):
        names = [with_step(row) for row in rows if row["order"] == order and row["n"]]
        sentences += [f"{order.capitalize()}{' it' * (order != 'undecided')}: {', '.join(names)}."] if names else []
    undated = [row["onset"] for row in rows if not row["n"]]
    return " ".join(sentences + ([f"In no run: {', '.join(undated)}."] if undated else []))


def loss_drop(loss: pl.DataFrame, uas: pl.DataFrame) -> pl.DataFrame:
    """For each run the fall of the held-out loss while UAS goes from a tenth to nine tenths of its rise.

    condition, seed, start, end (steps), drop (nats), share (of the whole fall).
    """
    curves = uas_curves(uas.filter(pl.col("source") == "per_relation"))
    rows = []
    for (condition, seed), frame in curves.group_by("condition", "seed", maintain_order=True):
        frame = frame.sort("step")
        window = rise_window(frame["step"].to_list(), frame["value"].to_list())
        this = loss.filter(pl.col("condition") == condition, pl.col("seed") == seed).sort("step")
        at = dict(this.select("step", "loss").iter_rows())
        if window is not None:
            drop, fall = at[window[0]] - at[window[1]], this["loss"][0] - this["loss"].min()
            rows.append((condition, seed, *window, drop, drop / fall))
    schema = {"condition": pl.String, "seed": pl.Int64, "start": pl.Int64, "end": pl.Int64}
    return pl.DataFrame(rows, schema | {"drop": pl.Float64, "share": pl.Float64}, orient="row")


def published_sas(condition: str = "base") -> tuple[pl.DataFrame, dict[str, int], float]:
    """Published results of Chen et al. 2023: curves of loss, UAS and BLiMP (measure, condition, seed, step, value), the
    steps marked as onsets, by name, and the UAS of the best fixed offset.

    UAS there is of one head for all relations.
    """
    names = {"loss": "loss (nats per token)", "uas": SINGLE_HEAD, "blimp": "BLiMP"}
    curves = pl.read_csv(shipped("published") / "sas_curves.csv").filter(pl.col("condition") == condition)
    measure = pl.col("metric").replace_strict(names, return_dtype=pl.String)
    onsets = pl.read_csv(shipped("published") / "sas_onsets.csv").filter(pl.col("condition") == condition)
    marks = dict(onsets.select("onset", "marked_step").iter_rows())
    offset = pl.read_csv(shipped("published") / "sas_seeds_at_100k.csv")["uas_best_fixed_offset"].mean()
    columns = [measure.alias("measure"), pl.lit("BERT-base").alias("condition"), "step", "value"]
    return curves.select(*columns, seed=pl.lit(0, pl.Int64)), marks, offset


def differences(final: pl.DataFrame, baseline: str) -> pl.DataFrame:
    """Each run less the baseline's run of the same seed: condition, seed, measure, value.

    The same seed has the same first weights and the same order of the data, so the difference leaves these out.
    """
    need_columns(final, ["condition", "seed", "measure", "value"], "differences from the baseline")
    base = final.filter(pl.col("condition") == baseline).select("seed", "measure", base="value")
    rest = final.filter(pl.col("condition") != baseline).join(base, on=["seed", "measure"], maintain_order="left")
    rest = rest.drop_nulls("base")  # seeds without a baseline: results are made run by run
    return rest.select("condition", "seed", "measure", value=pl.col("value") - pl.col("base"))


def last_values(curves: pl.DataFrame) -> pl.DataFrame:
    """The last value of each curve: condition, seed, measure, value."""
    last = curves.filter(pl.col("step") == pl.col("step").max().over("condition", "seed", "measure"))
    return last.select("condition", "seed", "measure", "value")


def over_seeds(table: pl.DataFrame, by: Sequence[str], values: Sequence[str]) -> pl.DataFrame:
    """Means over seeds: *by, and of each value VALUE, VALUE_low, VALUE_high, over seeds.

    If no combination has two seeds, the intervals are those of the rows, if they have some.
    """
    if table.is_empty() or table.group_by(by).len()["len"].max() == 1:
        bounds = [f"{value}{end}" for value in values for end in ("_low", "_high")]
        given = table.with_columns(pl.lit(None, pl.Float64).alias(name) for name in bounds if name not in table.columns)
        return given.select(*by, *(f"{value}{end}" for value in values for end in ("", "_low", "_high")))
    joined = table.select(by).unique(maintain_order=True)
    for value in values:
        mean = mean_over_seeds(table.drop_nulls(value), list(by), value)
        columns = {value: "mean", f"{value}_low": "low", f"{value}_high": "high"}
        joined = joined.join(mean.select(*by, **columns), on=list(by), how="left", maintain_order="left")
    return joined


def contrasts(
    final: pl.DataFrame, comparisons: Sequence[tuple[str, str, str]], higher_is_better: Mapping[str, bool]
) -> pl.DataFrame:
    """Paired tests over seeds, corrected for the number of `comparisons` (Hochberg): (condition, baseline, measure).

    measure, condition, baseline, difference, low, high, n, p, p_hochberg, verdict (better, worse or undecided); see
    `compare_to_baseline`. There is a verdict only where the 95 % interval excludes zero, too: the corrected test is
    one-sided, so alone it can call a condition better whose interval includes no difference. Seeds that only one of
    the two conditions has are left out.
    """
    tables = [
        compare_to_baseline(
            _shared_seeds(final.filter(pl.col("condition").is_in([condition, baseline]), measure=measure)),
            baseline,
            value="value",
            higher_is_better=higher_is_better[measure],
            paired=True,
        ).with_columns(baseline=pl.lit(baseline), measure=pl.lit(measure))
        for condition, baseline, measure in comparisons
    ]
    excluded = (pl.col("low") > 0) | (pl.col("high") < 0)
    open_question = pl.col("verdict").is_in(["better", "worse"]) & ~excluded
    verdict = pl.when(open_question).then(pl.lit("undecided")).otherwise("verdict").alias("verdict")
    columns = ["measure", "condition", "baseline", "difference", "low", "high", "n", "p", "p_hochberg"]
    return decide(pl.concat(tables)).select(*columns, verdict)


def _shared_seeds(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of seeds that every condition has."""
    return rows.filter(pl.col("condition").n_unique().over("seed") == pl.col("condition").n_unique())


AGREEMENT = "agreement"  # share of pairs judged right
HELD_OUT_LOSS = "loss (nats)"
SINGLE_HEAD = "UAS, one head"  # one layer, head and direction for all words
MARGIN = "agreement margin (nats)"  # by how much the right sentence is likelier: it has no ceiling
# whether higher is better
MASKING_MEASURES = {"loss at 5 %": False, "loss at 15 %": False, "loss at 30 %": False, "loss at 50 %": False}
MASKING_MEASURES |= {MARGIN: True, AGREEMENT: True}


def masking_curves(results: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Loss at four masking rates, margin and accuracy of agreement: measure, condition, seed, step, value."""
    rate = pl.format("loss at {} %", (pl.col("rate") * 100).round().cast(pl.Int64))
    columns = ["measure", "condition", "seed", "step", "value"]
    loss = results["loss"].with_columns(measure=rate, value=pl.col("loss"))
    margin = (
        results["margin"].group_by("condition", "seed", "step", maintain_order=True).agg(value=pl.col("margin").mean())
    )
    pairs = pair_curves(results["pairs"])
    parts = [loss, margin.with_columns(measure=pl.lit(MARGIN)), pairs.with_columns(measure=pl.lit(AGREEMENT))]
    return pl.concat(part.select(columns).cast({"value": pl.Float64}) for part in parts)


def syntax_curves(results: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Loss, UAS and agreement of all runs: measure, condition, seed, step, value. UAS is per relation and, if it was
    measured, also of one head for all words."""
    columns = ["measure", "condition", "seed", "step", "value"]
    loss = results["loss"].with_columns(measure=pl.lit(HELD_OUT_LOSS), value=pl.col("loss"))
    every = uas_curves(results["uas"])
    heads = [
        every.filter(source=source).with_columns(measure=pl.lit(measure))
        for source, measure in (("per_relation", "UAS"), ("single_head", SINGLE_HEAD))
    ]
    pairs = pair_curves(results["pairs"]).with_columns(measure=pl.lit(AGREEMENT))
    return pl.concat(part.select(columns).cast({"value": pl.Float64}) for part in (loss, *heads, pairs))


SYNTAX_MEASURES = {AGREEMENT: True, "UAS": True, HELD_OUT_LOSS: False}  # whether higher is better
INTERVENTIONS = {  # a condition of the plans `syntax` and `release`: its name on the page
    "base": "base",
    "SAS−": "suppressed",
    "SAS− on shuffled trees": "on shuffled trees",
    "at 1.6 %": "released at 1.6 %",
    "released": "released at 3 %",
    "at 13 %": "released at 13 %",
    "at 51 %": "released at 51 %",
    "SAS+": "promoted",
}


def name_interventions(curves: pl.DataFrame) -> pl.DataFrame:
    """Conditions by what was done, in a fixed order; others keep their names and come last."""
    known = [
        *INTERVENTIONS,
        *(name for name in curves["condition"].unique(maintain_order=True) if name not in INTERVENTIONS),
    ]
    place = pl.col("condition").replace_strict(known, range(len(known)), return_dtype=pl.Int64)
    return curves.sort(place, maintain_order=True).with_columns(pl.col("condition").replace(INTERVENTIONS))

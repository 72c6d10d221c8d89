"""What is kept of each run of the reference experiments: small tables, without weights and with little text."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from lmdynamics.analysis.gradients import dissent_by_group, over_batches
from lmdynamics.analysis.precursors import precursor_table
from lmdynamics.analysis.seeds import divergence_by_group
from lmdynamics.analysis.syntax import accuracy_by_step
from lmdynamics.analysis.zero_sum import doublings, interference_table
from lmdynamics.corpora.tokens import TokenRows, frequency_groups
from lmdynamics.errors import UserError
from lmdynamics.experiments.findings import onset_table, syntax_curves, uas_curves
from lmdynamics.experiments.ladder import doubling_steps, tree_rows, unigram_entropy
from lmdynamics.measurements.dissent import Dissent
from lmdynamics.measurements.divergence import divergence_over_training
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy, TokenLosses
from lmdynamics.measurements.optimizer_step import OneStep
from lmdynamics.measurements.precursors import AttentionDistance, Repetition, StateCosine
from lmdynamics.measurements.syntax import SOURCES, UAS, HeadScores, best_heads_and_offset
from lmdynamics.measurements.trace import Measurement, trace, trace_all
from lmdynamics.progress import print_once
from lmdynamics.runs.run import Run
from lmdynamics.runs.trained import train

MIN_COUNT = 100  # relations rarer than this are left out
RATES = (0.05, 0.15, 0.3, 0.5)  # masking rates at which masked models are evaluated


def every(run: Run, n: int) -> list[int]:
    """Every n-th checkpoint, the first and the last."""
    return sorted({*run.steps[::n], run.steps[-1]})


def syntax(run: Run, device: str) -> dict[str, pl.DataFrame]:
    """Of a masked model of the built-in language: `loss`, `uas` (by sentence), `heads` (the best of each relation with
    its best fixed offset), `pairs` (by pair)."""
    trees = run.treebank("grammar", 1_000)
    measurements = {
        "loss": HeldOutLoss(run.held_out()),
        "uas": UAS(trees, MIN_COUNT),
        "heads": HeadScores(trees, MIN_COUNT),
        "pairs": PairAccuracy(run.pairs("grammar", 200)),
    }
    tables = _trace(run, measurements, every(run, 1), device)
    tables["heads"] = best_heads_and_offset(tables["heads"], trees, MIN_COUNT)
    tables["precursors"] = _small(precursors(run, device, run.held_out()))
    return tables | {"uas": _small(tables["uas"].filter(pl.col("source") != "per_relation_same")), **_pairs(tables)}


def precursors(
    run: Run, device: str, rows: TokenRows, steps: Sequence[int] | None = None, progress: bool | None = False
) -> pl.DataFrame:
    """What may precede a drop of the loss, on 1,000 of the rows, evenly spread: the frame of `precursor_table`, and the
    `unigram` entropy of the rows (nats). Of a model without attention weights it has no attention."""
    some, last = rows.take(_spread(len(rows), 1_000)), run[run.steps[-1]]
    measurements = {"repetition": Repetition(some), "cosines": StateCosine(some)}
    options = {"steps": steps, "device": device, "progress": progress}
    traces = trace_all(run, measurements, **options)
    try:
        distances = trace(run, AttentionDistance(some, last), **options)
    except UserError as refused:
        print_once(f"without attention: {refused}")
        distances = None
    special = None if last.objective == "clm" else last.tokenizer.all_special_ids
    table = precursor_table(traces["repetition"], traces["cosines"], distances)
    return table.with_columns(unigram=pl.lit(unigram_entropy(some, special)))


def interventions(
    run: Run, device: str, sentences: int = 500, min_count: int = MIN_COUNT, per_paradigm: int = 200
) -> dict[str, pl.DataFrame]:
    """`loss`, `uas` (by sentence) and `pairs` (by pair) at every third checkpoint."""
    measurements = {
        "loss": HeldOutLoss(run.held_out()),
        "uas": UAS(run.treebank("grammar", sentences), min_count),
        "pairs": PairAccuracy(run.pairs("grammar", per_paradigm)),
    }
    tables = _trace(run, measurements, every(run, 3), device)
    by_relation = tables["uas"].filter(pl.col("source").is_in(SOURCES["per_relation"]))
    return tables | {"uas": _small(by_relation), **_pairs(tables)}


def masking(run: Run, device: str, pairs: str = "grammar", per_paradigm: int = 300) -> dict[str, pl.DataFrame]:
    """`loss` at four masking rates, `pairs` (by pair) and `margin` (by paradigm), at every third checkpoint.

    The margin is by how much the right sentence of a pair is likelier (nats, mean over pairs). It has no ceiling.
    """
    rows = run.held_out()
    measurements: dict[str, Measurement] = {f"{rate}": HeldOutLoss(rows, rate) for rate in RATES}
    measurements["pairs"] = PairAccuracy(run.pairs(pairs, per_paradigm))
    tables = _trace(run, measurements, every(run, 3), device)
    losses = [tables[f"{rate}"].with_columns(rate=pl.lit(rate)) for rate in RATES]
    margin = (pl.col("good") - pl.col("bad")).alias("margin")
    margins = tables["pairs"].group_by("step", "paradigm", maintain_order=True).agg(margin.mean())
    return {"loss": pl.concat(losses), "margin": margins, **_pairs(tables)}


def seeds(run: Run, device: str, sentences: int = 1_000, min_count: int = MIN_COUNT) -> dict[str, pl.DataFrame]:
    """Of a run of a recipe without changes, on the built-in language: `onsets` with their intervals, and `curves` of
    loss, UAS with its controls, and agreement (all pairs, and each paradigm) at every checkpoint.

    Of a run with an even seed also `divergence` from that with the next seed, which is trained if it is not there: by
    frequency and by relation, at every second checkpoint. So no two of these pairs share a run.
    """
    trees = run.treebank("grammar", sentences)
    measurements = {
        "loss": HeldOutLoss(run.held_out()),
        "uas": UAS(trees, min_count),
        "pairs": PairAccuracy(run.pairs("grammar", 200)),
    }
    traces = _trace(run, measurements, every(run, 1), device)
    one = {"condition": pl.lit(""), "seed": pl.lit(0, pl.Int64)}  # as in the frames of several runs
    labelled = {name: frame.with_columns(**one) for name, frame in traces.items()}
    controls = uas_curves(labelled["uas"]).filter(pl.col("source").is_in(["offset", "shuffled"]))
    by_paradigm = accuracy_by_step(traces["pairs"]).select("step", measure="paradigm", value="accuracy")
    curves = [
        syntax_curves(labelled).select("step", "measure", "value"),
        controls.select("step", pl.format("UAS, {}", "source").alias("measure"), "value"),
        by_paradigm.select("step", pl.col("measure").cast(pl.String), pl.col("value").cast(pl.Float64)),
    ]
    onsets = onset_table(labelled["uas"], labelled["pairs"]).drop("condition", "seed")
    kept = {"onsets": onsets, "curves": pl.concat(curves)}
    if run.recipe.seed % 2:
        return kept
    other = train(run.recipe.name, run.recipe.profile, run.recipe.seed + 1, device=device, progress=False)
    rows, labels = tree_rows(run, trees)
    frame = divergence_over_training(run, other, rows, every(run, 2), device=device, progress=False)
    frequencies = frequency_groups(run.held_out(), len(run[run.steps[-1]].tokenizer))
    groupings = {"all": None, "frequency": frequencies, "relation": labels.rename({"relation": "group"})}
    means = [
        divergence_by_group(frame, groups, resamples=2).select(pl.lit(by).alias("by"), pl.exclude("low", "high"))
        for by, groups in groupings.items()
    ]
    return kept | {"divergence": pl.concat(means)}


LADDER = ("loss", "interference", "one step", "dissent", "tokens")


def ladder(
    run: Run, device: str, treebank: str = "grammar", sentences: int = 1_000, only: Sequence[str] = LADDER
) -> dict[str, pl.DataFrame]:
    """Of a causal model: `log` (training loss of every step, later of ten at a time), `runs` (parameters, final loss,
    unigram entropy of the held-out rows), and those of these tables that are in `only`: `loss` at every checkpoint,
    `interference` over doublings, `one step` of the optimizer, `dissent` by frequency, `tokens`: losses of 16 rows at
    every second checkpoint (nats, to two decimals), with their text.

    All are measured on as many held-out rows as `sentences`, evenly spread, or on fewer. A published suite has no log
    and no held-out rows: its losses are of sentences of `treebank`.
    """
    published = run.recipe is None
    if not published and not len(run.log):
        raise UserError(f"{run.folder} has no loss log; train it with `lmdynamics sweep`")
    rows = run.held_out(run.treebank(treebank, sentences) if published else None)
    some, few = (rows.take(_spread(len(rows), n)) for n in (sentences, 16))
    last = run[run.steps[-1]]
    loss_steps = run.steps if published or "loss" in only else run.steps[-1:]
    loss = _trace(run, {"loss": HeldOutLoss(some)}, loss_steps, device)["loss"]
    log = loss.filter(pl.col("step") > 0) if published else run.log
    end = loss.row(-1, named=True)
    special = None if last.objective == "clm" else last.tokenizer.all_special_ids
    about = {
        "parameters": sum(p.numel() for p in last.model().parameters()),
        "unigram_entropy": unigram_entropy(rows, special),
        "final_loss": end["loss"],
        "stderr": end["stderr"],
    }
    numbers = dict.fromkeys(("unigram_entropy", "final_loss", "stderr"), pl.Float64)
    tables = {
        "log": _thinned(log),
        "runs": pl.DataFrame([about], {"parameters": pl.Int64, **numbers}),
        "loss": loss,
    }
    tokenizer, steps = last.tokenizer, doubling_steps(run)
    if "interference" in only:
        losses = _trace(run, {"losses": TokenLosses(some)}, steps, device)["losses"]
        tables["interference"] = interference_table(doublings(losses), ["step", "until"])
    if "one step" in only and (with_state := [step for step in steps if run[step].has_optimizer_state]):
        first = some.take(range(min(228, len(some))))  # four batches of 32, and 100 held out
        one_step = _trace(run, {"one step": OneStep(first, 4)}, with_state, device)["one step"]
        tables["one step"] = over_batches(one_step)
    if "dissent" in only:
        measured = _trace(run, {"dissent": Dissent(some.take(_spread(len(some), 200)))}, steps, device)["dissent"]
        by = [dissent_by_group(measured, groups) for groups in (frequency_groups(rows, len(tokenizer)), None)]
        tables["dissent"] = pl.concat(frame.with_columns(pl.col("group").cast(pl.String)) for frame in by)
    if "tokens" in only:
        tokens = _trace(run, {"tokens": TokenLosses(few)}, every(run, 2), device)["tokens"]
        texts = pl.Series("text", tokenizer.convert_ids_to_tokens(tokens["token"].to_list()))
        tables["tokens"] = tokens.with_columns(texts, pl.col("loss").round(2)).drop("token")  # a third of the size
    return {name: table for name, table in tables.items() if name in ("log", "runs", *only)}


def _thinned(log: pl.DataFrame) -> pl.DataFrame:
    """Losses of all steps up to 1,000, and means of ten steps after that, at the middle one."""
    block = pl.when(pl.col("step") <= 1_000).then("step").otherwise((pl.col("step") - 1) // 10 * 10 + 5)
    means = log.select(block.cast(pl.Int32).alias("step"), "loss").drop_nulls("loss")
    return means.group_by("step", maintain_order=True).agg(pl.col("loss").mean())


def at_the_end(run: Run, device: str, measurements: Mapping[str, Measurement]) -> dict[str, pl.DataFrame]:
    """Any measurements of the last checkpoint."""
    return _trace(run, measurements, run.steps[-1:], device)


def _trace(run: Run, measurements: Mapping[str, Measurement], steps: list[int], device: str) -> dict[str, pl.DataFrame]:
    return trace_all(run, measurements, steps=steps, device=device, progress=False)


def _spread(count: int, n: int) -> np.ndarray:
    """`n` row numbers, evenly spread."""
    return np.linspace(0, count - 1, min(n, count)).round().astype(int)


def _small(frame: pl.DataFrame) -> pl.DataFrame:
    """Counts in small types."""
    integers = [name for name, kind in frame.schema.items() if kind.is_integer() and name != "step"]
    return frame.with_columns(pl.col(integers).cast(pl.Int32))


def _pairs(tables: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Judgements of pairs without their scores."""
    return {"pairs": tables["pairs"].select("step", "paradigm", pl.col("pair").cast(pl.Int32), "correct", "tie")}

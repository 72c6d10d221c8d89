"""What is kept of each run of the reference experiments: small tables, without weights and with little text."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from lmdynamics.analysis.gradients import dissent_by_group, over_batches
from lmdynamics.analysis.zero_sum import doublings, interference_table
from lmdynamics.corpora.tokens import frequency_groups
from lmdynamics.experiments.ladder import doubling_steps, unigram_entropy
from lmdynamics.measurements.dissent import Dissent
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy, TokenLosses
from lmdynamics.measurements.optimizer_step import OneStep
from lmdynamics.measurements.syntax import UAS, HeadScores, best_heads_and_offset
from lmdynamics.measurements.trace import Measurement, trace_all
from lmdynamics.runs.run import Run

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
    return tables | {"uas": _small(tables["uas"].filter(pl.col("source") != "attention_same")), **_pairs(tables)}


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
    return tables | {"uas": _small(tables["uas"].filter(pl.col("source") != "attention_same")), **_pairs(tables)}


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


def ladder(run: Run, device: str) -> dict[str, pl.DataFrame]:
    """Of a causal model: `log` (training loss of every step), `loss`, `runs` (unigram entropy of the held-out rows),
    `interference` over doublings, `one step` of the optimizer, `dissent` by frequency, and `tokens`: losses of a few
    rows at each doubling, with their text."""
    rows = run.held_out()
    tokenizer = run[run.steps[0]].tokenizer
    some, few = (rows.take(_spread(len(rows), n)) for n in (1_000, 10))
    steps = doubling_steps(run)
    with_state = [step for step in steps if run[step].has_optimizer_state]
    loss = _trace(run, {"loss": HeldOutLoss(rows)}, every(run, 1), device)["loss"]
    doubled = _trace(run, {"losses": TokenLosses(some), "dissent": Dissent(some.take(range(200)))}, steps, device)
    changes = doublings(doubled["losses"])
    groups = frequency_groups(rows, len(tokenizer))
    one_step = _trace(run, {"one step": OneStep(some.take(range(100)), 4)}, with_state, device)["one step"]
    tokens = _trace(run, {"tokens": TokenLosses(few)}, steps, device)["tokens"]
    texts = pl.Series("text", tokenizer.convert_ids_to_tokens(tokens["token"].to_list()))
    entropy = unigram_entropy(rows, None)
    return {
        "log": run.log.select(pl.col("step").cast(pl.Int32), "loss"),
        "loss": loss,
        "runs": pl.DataFrame({"unigram_entropy": [entropy], "held_out_tokens": [len(rows.ids)]}),
        "interference": interference_table(changes, ["step", "until"]),
        "one step": over_batches(one_step),
        "dissent": dissent_by_group(doubled["dissent"], groups, by=["step"]).with_columns(
            pl.col("group").cast(pl.String)
        ),
        "tokens": tokens.with_columns(texts).drop("token"),
    }


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

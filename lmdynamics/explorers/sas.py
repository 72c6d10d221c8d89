"""Syntactic attention structure, to steer through: run, checkpoint, relation, head, sentence; all views linked."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import altair as alt
import ipywidgets as widgets
import numpy as np
import polars as pl
import traitlets

from lmdynamics import charts
from lmdynamics.analysis.intervals import loss_by_bin, wilson
from lmdynamics.analysis.onsets import Onset, structure_onset
from lmdynamics.analysis.syntax import DIRECTIONS, predicted_heads, uas_by_step
from lmdynamics.charts.linked import Linked, Place
from lmdynamics.corpora.gold import Sentence, Treebank
from lmdynamics.errors import UserError
from lmdynamics.explorers.checkpoints import CheckpointSlider
from lmdynamics.explorers.explorer import Explorer
from lmdynamics.explorers.sas_controls import CURSOR, Controls
from lmdynamics.explorers.saving import check_among, restored
from lmdynamics.measurements.inputs import offset_baseline
from lmdynamics.measurements.syntax import UAS, HeadScores, WordAttention, best_heads_and_offset
from lmdynamics.measurements.trace import trace, trace_all
from lmdynamics.runs.run import Run

SENTENCES = 40  # offered from the treebank


class State(traitlets.HasTraits):
    """What is looked at. Every control writes here, every view reads from here."""

    run = traitlets.Int()  # which of the runs
    step = traitlets.Int()
    relation = traitlets.Unicode()
    layer = traitlets.Int()
    head = traitlets.Int()
    direction = traitlets.Unicode(DIRECTIONS[0])
    words = traitlets.Tuple()
    runs = traitlets.Tuple()  # what the runs are called


@dataclass(frozen=True)
class Measured:
    """One run's traces, as the views need them."""

    run: Run
    scores: pl.DataFrame
    best: pl.DataFrame  # best head per step and relation, beside the best fixed offset
    curve: pl.DataFrame  # UAS with intervals
    onset: Onset
    offsets: dict[str, float]

    @cached_property
    def relations(self) -> list[str]:
        """Relations by frequency; those that UAS leaves out come last."""
        counts = self.best.group_by("relation").agg(pl.col("count").max())
        counts = counts.with_columns(aside=pl.col("relation").is_in(["root", "punct"]))
        return counts.sort("aside", "count", "relation", descending=[False, True, False])["relation"].to_list()

    @cached_property
    def losses(self) -> dict[int, float]:
        """Training loss around each checkpoint (nats per token), where there is a log."""
        binned = loss_by_bin(self.run.log) if len(self.run.log) else self.run.log
        if binned.is_empty():
            return {}
        return dict(zip(self.run.steps, np.interp(self.run.steps, binned["step"], binned["loss"]), strict=True))

    def best_head(self, relation: str) -> tuple[int, int, str]:
        """Layer, head and direction that follow `relation` best at the last checkpoint."""
        row = self.best.filter(pl.col("relation") == relation).sort("step").row(-1, named=True)
        return row["layer"], row["head"], row["direction"]


class SasExplorer(Explorer):
    """Scrub through checkpoints and ask which head follows which relation, in numbers and in a sentence.

    Everything shown comes from `UAS`, `HeadScores` and `WordAttention`, traced on `runs` (and kept in the cache).
    `step`, `relation`, `sentence` (words) choose where to start: by default the last checkpoint, the most frequent
    relation with its best head, and a sentence of the treebank that has it.

    Raises
    ------
    UserError
        If there is no run, no relation frequent enough, or a start value that was not measured.
    """

    def __init__(
        self,
        runs: Run | Sequence[Run],
        treebank: Treebank,
        *,
        min_count: int = 100,
        margin: float = 0.1,
        seed: int = 0,
        device: str = "cpu",
        step: int | None = None,
        relation: str | None = None,
        sentence: Sequence[str] | None = None,
        progress: bool | None = None,
    ):
        self.runs = [runs] if isinstance(runs, Run) else list(runs)
        if not self.runs:
            raise UserError("an explorer needs at least one run; open one with lmd.open_run")
        self.treebank, self.min_count, self.margin, self.seed, self.device = treebank, min_count, margin, seed, device
        self._measured: dict[int, Measured] = {}
        self._attention: dict[tuple, pl.DataFrame] = {}
        self.progress = progress
        names = [run.name for run in self.runs]
        unique = [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
        self.now = State(runs=tuple(unique))
        first = self.measured
        relation = relation or first.relations[0]
        if relation not in first.relations:
            raise UserError(f"no scores for the relation {relation!r}; measured: {', '.join(first.relations)}")
        step = first.run.steps[-1] if step is None else step
        first.run[step]  # a step without a checkpoint is refused there
        layer, head, direction = first.best_head(relation)
        words = tuple(sentence) if sentence else self.sentences(relation)[0].words
        self.now.set_trait("relation", relation)
        for name, value in {"step": step, "layer": layer, "head": head, "direction": direction, "words": words}.items():
            self.now.set_trait(name, value)

    @property
    def measured(self) -> Measured:
        """The traces of the run that is looked at, measured on first use."""
        return self.measure(self.now.run)

    def knows(self, index: int, words: tuple[str, ...]) -> bool:
        """Whether a run is measured and a sentence read by it, so that looking at them computes nothing."""
        return index in self._measured and (index, words, None) in self._attention

    def measure(self, index: int, executor: Executor | None = None) -> Measured:
        """The traces of one of the runs, measured on first use, perhaps elsewhere."""
        if index not in self._measured:
            run = self.runs[index]
            what = {"uas": UAS(self.treebank, self.min_count, self.seed)}
            what["heads"] = HeadScores(self.treebank, self.min_count, self.seed)
            progress = self.progress if executor is None else False
            traces = trace_all(run, what, executor=executor, device=self.device, progress=progress)
            baseline = offset_baseline(self.treebank, self.min_count, self.seed).filter(pl.col("split") == "all")
            self._measured[index] = Measured(
                run,
                traces["heads"],
                best_heads_and_offset(traces["heads"], self.treebank, self.min_count, self.seed),
                uas_by_step(traces["uas"]),
                structure_onset(traces["uas"], margin=self.margin, seed=self.seed),
                dict(baseline.select("relation", "accuracy").iter_rows()),
            )
        return self._measured[index]

    def sentences(self, relation: str | None = None) -> list[Sentence]:
        """Sentences of the treebank that fit on a screen, those with `relation` first."""
        fitting = [sentence for sentence in self.treebank if 4 <= len(sentence) <= 16] or list(self.treebank)
        fitting.sort(key=lambda sentence: relation not in sentence.relations)  # stable: otherwise in their order
        return fitting[:SENTENCES]

    def curves(self, cursor: alt.Parameter | None = None) -> alt.VConcatChart:
        """Loss, UAS and the relation's best head, with a line at the checkpoint."""
        seen = self.measured
        log = seen.run.log
        if log.is_empty():
            log = pl.DataFrame({"step": seen.run.steps}).with_columns(loss=pl.lit(None, pl.Float64))
        best = seen.best.filter(pl.col("relation") == self.now.relation)
        return charts.loss_and_uas(log, seen.curve, seen.onset, self.now.step, cursor, best)

    def head_map(self, cursor: alt.Parameter | None = None, chosen=None) -> alt.LayerChart:
        """Every head's accuracy on the relation at the checkpoint."""
        seen, state = self.measured, self.now
        chosen = chosen or (state.layer, state.head)
        offset = seen.offsets.get(state.relation)
        return charts.layer_head_map(seen.scores, state.relation, state.step, offset, cursor=cursor, chosen=chosen)

    def arcs(self, cursor: alt.Parameter | None = None) -> alt.LayerChart:
        """What the chosen head makes of the sentence, over its gold tree if the treebank has one."""
        state = self.now
        predicted = predicted_heads(self.attention(), state.direction).filter(
            (pl.col("layer") == state.layer) & (pl.col("head") == state.head)
        )
        where = f"layer {state.layer}, head {state.head}, read {state.direction}"
        if cursor is None:
            predicted = predicted.filter(pl.col("step") == state.step).drop("step")
            where += f", step {state.step:,}"
        gold = next((sentence for sentence in self.treebank if sentence.words == state.words), None)
        tree = (gold.heads, gold.relations, state.relation) if gold else (None, None, None)
        return charts.sentence_arcs(state.words, predicted, *tree, cursor, where, state.direction)

    def attention(self) -> pl.DataFrame:
        """Attention within the sentence at every checkpoint of the run, or, while it is being read, at this one."""
        now = self.now
        here = (now.run, now.words, now.step)
        known = self.knows(now.run, now.words) or here not in self._attention
        return self.read(now.run, now.words) if known else self._attention[here]

    def read(
        self, index: int, words: tuple[str, ...], executor: Executor | None = None, step: int | None = None
    ) -> pl.DataFrame:
        """Attention within a sentence at every checkpoint of one of the runs, or at one `step`."""
        key = (index, words, step)
        if key not in self._attention:
            steps = None if step is None else [step]
            self._attention[key] = trace(
                self.runs[index], WordAttention(words), steps=steps, executor=executor, device=self.device,
                progress=False,
            )  # fmt: skip
        return self._attention[key]

    def state(self) -> dict[str, str | int | list[str]]:
        now = self.now
        place = {name: getattr(now, name) for name in ("step", "relation", "layer", "head", "direction")}
        return {"run": now.runs[now.run], **place, "sentence": list(now.words)}

    def restore(self, state: Mapping[str, Any]) -> "SasExplorer":
        wanted = restored(state, self.state())
        check_among("run", wanted["run"], self.now.runs)
        index, words = self.now.runs.index(wanted["run"]), tuple(wanted["sentence"])
        if not words or not all(isinstance(word, str) and word for word in words):
            raise UserError("the state's sentence should be a list of words, such as ['the', 'dog', 'sleeps']")
        seen = self.measure(index)
        check_among("step", wanted["step"], seen.run.steps)
        check_among("relation", wanted["relation"], seen.relations)
        check_among("direction", wanted["direction"], DIRECTIONS)
        for name in ("layer", "head"):
            check_among(name, wanted[name], seen.scores[name].unique().sort().to_list())
        self.read(index, words)  # a sentence that the model cannot read is refused there
        if "controls" in self.__dict__:
            self.controls.put(index, words)
        else:
            self.now.run, self.now.words = index, words
        for name in ("relation", "layer", "head", "direction", "step"):  # a relation brings its best head: it is first
            self.now.set_trait(name, wanted[name])
        return self

    def tables(self) -> dict[str, pl.DataFrame]:
        seen, state = self.measured, self.now
        loss = seen.run.log.select("step", curve=pl.lit("loss"), value="loss") if len(seen.run.log) else None
        uas = seen.curve.select("step", curve="uas, " + pl.col("source"), value="uas", low="low", high="high")
        here = {"relation": state.relation, "step": state.step, "split": "all"}
        heads = predicted_heads(self.attention(), state.direction)
        arcs = heads.filter(layer=state.layer, head=state.head, step=state.step)
        low, high = wilson(pl.col("accuracy"), pl.col("count"))
        best = seen.best.filter(pl.col("relation") == state.relation)
        best = best.select("step", curve=pl.lit("best head, ") + "relation", value="accuracy", low=low, high=high)
        curves = [uas, best] if loss is None else [loss, uas, best]
        return {
            "explorer_curves": pl.concat(curves, how="diagonal_relaxed"),
            "explorer_heads": seen.scores.filter(**here),
            "explorer_arcs": arcs.with_columns(text=pl.col("word").replace_strict(dict(enumerate(state.words)))),
        }

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        return {"explorer_curves": self.curves(), "explorer_heads": self.head_map(), "explorer_arcs": self.arcs()}

    def linked(self) -> Linked:
        seen, state = self.measured, self.now
        cursor = alt.param(name=CURSOR, value=state.step)
        views = {
            "explorer_curves": self.curves(cursor),
            # a description that names one step would soon be wrong; `said` tells what is seen at each
            "explorer_heads": self.head_map(cursor).properties(
                description=f"Accuracy of each attention head on the relation {state.relation} at one checkpoint."
            ),
            "explorer_arcs": self.arcs(cursor),
        }
        steps, said = seen.run.steps, self._said()
        places = [Place(f"{step:,}", {CURSOR: step}, said.get(step, ""), step) for step in steps]
        return Linked("checkpoint at step", places, steps.index(state.step), views)

    def _said(self) -> dict[int, str]:
        """What curves and map show at each step, in words."""
        seen, relation = self.measured, self.now.relation
        mapped = seen.scores.filter(pl.col("relation") == relation, pl.col("split") == "all", pl.col("count") > 0)
        best = mapped.sort("accuracy", descending=True).group_by("step", maintain_order=True).first()
        found = seen.curve.filter(pl.col("source") == "attention").select("step", "uas")
        return {
            row["step"]: f"Step {row['step']:,}: heads find {row['uas']:.0%} of all arcs; {relation} is followed best "
            f"in layer {row['layer']}, head {row['head']} ({row['accuracy']:.0%})."
            for row in best.join(found, on="step").iter_rows(named=True)
        }

    @cached_property
    def controls(self) -> Controls:
        """The controls, bound to the state, with the views that follow them."""
        return Controls(self)

    @property
    def checkpoint(self) -> CheckpointSlider:
        return self.controls.checkpoint

    @property
    def widget(self) -> widgets.Widget:
        """Controls and linked views. Made once; showing it twice shows the same state twice."""
        return self.controls.box

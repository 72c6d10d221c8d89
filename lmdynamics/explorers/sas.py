"""Explore syntactic attention structure: run, checkpoint, relation, head and sentence, in linked views."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import ipywidgets as widgets
import numpy as np
import polars as pl

from lmdynamics.analysis.intervals import loss_by_bin, with_interval, with_wilson
from lmdynamics.analysis.onsets import Onset, structure_onset
from lmdynamics.analysis.syntax import DIRECTIONS, describe_relation, head_history, predicted_heads, uas_by_step
from lmdynamics.charts.arcs import moving_arcs
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.heads import head_click, loss_and_uas, moving_head_map
from lmdynamics.charts.moving import Moving, Place, VegaLite, in_column, in_row, picker, with_slider
from lmdynamics.charts.theme import Chart
from lmdynamics.corpora.treebanks import Sentence, Treebank
from lmdynamics.errors import UserError
from lmdynamics.explorers.computing import Computing
from lmdynamics.explorers.explorer import Explorer, State, sentence_box, step_options
from lmdynamics.explorers.saving import complete_state
from lmdynamics.measurements.inputs import offset_baseline, unknown_words
from lmdynamics.measurements.syntax import UAS, HeadScores, WordAttention, best_heads_and_offset
from lmdynamics.measurements.trace import trace, trace_all
from lmdynamics.runs.run import Run

SENTENCES = 40  # of the treebank, in the list


@dataclass(frozen=True)
class Measured:
    """One run's traces, prepared for the views."""

    run: Run
    scores: pl.DataFrame
    best: pl.DataFrame  # best head per step and relation, with the best fixed offset
    curve: pl.DataFrame  # UAS with intervals
    onset: Onset
    offsets: dict[str, float]

    @cached_property
    def relations(self) -> list[str]:
        """Relations by frequency; those that UAS leaves out are last."""
        counts = self.best.group_by("relation").agg(pl.col("count").max())
        counts = counts.with_columns(aside=pl.col("relation").is_in(["root", "punct"]))
        return counts.sort("aside", "count", "relation", descending=[False, True, False])["relation"].to_list()

    @cached_property
    def losses(self) -> dict[int, float]:
        """Training loss around each checkpoint (nats per token), if there is a log."""
        binned = loss_by_bin(self.run.log) if len(self.run.log) else self.run.log
        if binned.is_empty():
            return {}
        return dict(zip(self.run.steps, np.interp(self.run.steps, binned["step"], binned["loss"]), strict=True))

    @cached_property
    def best_heads(self) -> dict[str, tuple[int, int, str]]:
        """Layer, head and direction that follow each relation best at the last checkpoint."""
        rows = self.best.sort("step", "relation").group_by("relation", maintain_order=True).last()
        return {row["relation"]: (row["layer"], row["head"], row["direction"]) for row in rows.to_dicts()}

    @cached_property
    def history(self) -> dict[str, str]:
        """When each relation appeared, in a sentence."""
        appearances = head_history(self.best)
        return {name: describe_relation(appearances, name) for name in self.relations}

    @cached_property
    def views(self) -> VegaLite:
        """The views that are the same for every sentence."""
        cursor, log = Cursor(self.run.steps), self.run.log
        if log.is_empty():
            log = pl.DataFrame({"step": self.run.steps}).with_columns(loss=pl.lit(None, pl.Float64))
        return in_row(
            loss_and_uas(log, self.curve, self.onset, cursor=cursor, best=self.best),
            moving_head_map(self.scores, cursor, self.offsets),
        )


class SasExplorer(Explorer):
    """Move through checkpoints and see which head follows which relation, in numbers and in a sentence.

    Everything shown comes from `UAS`, `HeadScores` and `WordAttention`, traced on `runs` (and cached). `step`,
    `relation`, `sentence` (words) are the initial selection: by default the last checkpoint, the most frequent
    relation with its best head, and a sentence of the treebank that has it.

    Raises
    ------
    UserError
        If there is no run, no relation frequent enough, or an initial value that was not measured.
    """

    signals: ClassVar = ("relation", "layer", "head", "direction")
    pickers: ClassVar = {"run": "run", "sentence": "sentence"}

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
        self.names = [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
        self.custom: tuple[str, ...] = tuple(sentence or ())
        first = self.measure(0)
        if relation is not None and relation not in first.relations:
            raise UserError(f"no scores for the relation {relation!r}; measured: {', '.join(first.relations)}")
        if step is not None:
            self.runs[0][step]  # raises if the step has no checkpoint
        self.start(
            run=None, relation=relation, layer=None, head=None, direction=None, sentence=self.custom or None, step=step
        )
        self.custom = self.now["sentence"]  # stays in the list when another relation changes it

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        if entry == "run":
            return {name: name for name in self.names}
        measured = self.measure(self.names.index(now["run"]))
        if entry == "step":
            return step_options(measured.run.steps)
        if entry == "relation":
            return {name: name for name in measured.relations}
        if entry == "sentence":
            offered = [sentence.words for sentence in self.sentences(now["relation"])]
            offered = [self.custom, *offered] if self.custom and self.custom not in offered else offered
            return {words: " ".join(words) for words in dict.fromkeys(offered)}
        options = DIRECTIONS if entry == "direction" else measured.scores[entry].unique().sort().to_list()
        best = measured.best_heads[now["relation"]][self.signals.index(entry) - 1]
        return {v: str(v) for v in sorted(options, key=lambda v: v != best)}  # the best one is the default

    @property
    def measured(self) -> Measured:
        """The traces of the selected run."""
        return self.measure(self.names.index(self.now["run"]))

    def is_computed(self, index: int, words: tuple[str, ...]) -> bool:
        """Whether a run is measured and has read a sentence, so that showing them computes nothing."""
        return index in self._measured and (index, words, None) in self._attention

    def measure(self, index: int, executor: Executor | None = None) -> Measured:
        """The traces of one of the runs, measured on first use, in `executor` if given."""
        if index not in self._measured:
            run = self.runs[index]
            measurements = {"uas": UAS(self.treebank, self.min_count, self.seed)}
            measurements["heads"] = HeadScores(self.treebank, self.min_count, self.seed)
            progress = self.progress if executor is None else False
            traces = trace_all(run, measurements, executor=executor, device=self.device, progress=progress)
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

    def attention(self) -> pl.DataFrame:
        """Attention within the sentence at every checkpoint of the run or, while it is being read, at this one."""
        index, words = self.names.index(self.now["run"]), self.now["sentence"]
        key = (index, words, self.now["step"])
        ready = self.is_computed(index, words) or key not in self._attention
        return self.read(index, words) if ready else self._attention[key]

    def sentences(self, relation: str | None = None) -> list[Sentence]:
        """Sentences of the treebank that fit on a screen, those with `relation` first."""
        fitting = [sentence for sentence in self.treebank if 4 <= len(sentence) <= 16] or list(self.treebank)
        fitting.sort(key=lambda sentence: relation not in sentence.relations)  # stable: keeps the order otherwise
        return fitting[:SENTENCES]

    def moving(self) -> Moving:
        measured, now = self.measured, self.now
        cursor = Cursor(measured.run.steps)
        gold = next((sentence for sentence in self.treebank if sentence.words == now["sentence"]), None)
        attention = self.attention()
        heads = pl.concat(
            predicted_heads(attention, direction).with_columns(direction=pl.lit(direction)) for direction in DIRECTIONS
        )
        heads_and_relations = (gold.heads, gold.relations) if gold else (None, None)
        arcs = moving_arcs(now["sentence"], heads, *heads_and_relations, cursor)
        chart = in_column(measured.views, arcs)
        return with_slider(chart, cursor, now["step"], self._places(), *self._signals())

    def _signals(self) -> list[dict]:
        measured, now, signals = self.measured, self.now, []
        best = {name: list(head) for name, head in measured.best_heads.items()}
        signals.append(picker("relation", "relation", measured.relations, now["relation"]))
        for i, entry in enumerate(("layer", "head", "direction")):
            label = "read as" if entry == "direction" else entry
            options = sorted(self.choices(entry, now)) if entry != "direction" else DIRECTIONS
            # forced: otherwise Vega skips a head that was also the best of the previous relation
            follows = {"events": {"signal": "relation"}, "update": f"best_heads[relation][{i}]", "force": True}
            signals.append(picker(entry, label, options, now[entry], follows, head_click(entry)))
        return [*signals, {"name": "best_heads", "value": best}]

    def _places(self) -> list[Place]:
        data = self.measured
        rows = {row["step"]: row for row in data.curve.filter(source="per_relation").iter_rows(named=True)}
        return [Place(f"{step:,}", _step_text(step, data.losses.get(step), rows.get(step))) for step in data.run.steps]

    def tables(self) -> dict[str, pl.DataFrame]:
        measured, now = self.measured, self.now
        loss = measured.run.log.select("step", curve=pl.lit("loss"), value="loss") if len(measured.run.log) else None
        uas = measured.curve.select("step", curve="uas, " + pl.col("source"), value="uas", low="low", high="high")
        heads = predicted_heads(self.attention(), now["direction"])
        arcs = heads.filter(layer=now["layer"], head=now["head"], step=now["step"])
        best = with_wilson(measured.best.filter(pl.col("relation") == now["relation"]))
        best = best.select("step", "low", "high", curve=pl.lit("best head, ") + "relation", value="accuracy")
        curves = [uas, best] if loss is None else [loss, uas, best]
        return {
            "explorer_curves": pl.concat(curves, how="diagonal_relaxed"),
            "explorer_heads": measured.scores.filter(relation=now["relation"], step=now["step"], split="all"),
            "explorer_arcs": arcs.with_columns(text=pl.col("word").replace_strict(dict(enumerate(now["sentence"])))),
        }

    def stills(self) -> dict[str, Chart]:
        """The current picture; its description for screen readers includes relation and head."""
        measured, now = self.measured, self.now
        scores = dict.fromkeys(("relation", "step", "layer", "head", "direction"))
        row = measured.scores.filter(split="all", **{name: now[name] for name in scores})
        chosen = f"{now['relation']} in layer {now['layer']}, head {now['head']}, read {now['direction']}"
        share = with_wilson(row).row(0, named=True) if len(row) else None
        score = f": {with_interval(share['accuracy'], (share['low'], share['high']), '.0%')}" if share else ""
        chart = super().stills()[self.name]
        sentence = next(place.text for place in self._places() if place.name == f"{now['step']:,}")
        description = f"{chart.description} {sentence} {chosen}{score}. {measured.history[now['relation']]}"
        return {self.name: VegaLite(chart.to_dict() | {"description": description})}

    def state(self) -> State:
        return {**self.now, "sentence": list(self.now["sentence"])}

    def restore(self, state: Mapping[str, Any]) -> "SasExplorer":
        entries = complete_state(state, self.state())
        words = tuple(entries["sentence"])
        if not words or not all(isinstance(word, str) and word for word in words):
            raise UserError("the state's sentence should be a list of words, such as ['the', 'dog', 'sleeps']")
        previous, self.custom = self.custom, words
        try:
            if entries["run"] in self.names:
                self.read(self.names.index(entries["run"]), words)  # raises if the model cannot read them
            self.computing.abort()
            self.select({**entries, "sentence": words}, required=state)
        except UserError:
            self.custom = previous
            raise
        return self

    # the page: another run, or the reader's own sentence, is computed in the background

    @cached_property
    def computing(self) -> Computing:
        return Computing()

    @cached_property
    def text(self) -> widgets.Text:
        return sentence_box(lambda words: self._on_choice("sentence", words))

    @cached_property
    def widget(self) -> widgets.Widget:
        self.update_lists()
        wrap = widgets.Layout(flex_flow="wrap", grid_gap="0 18px")
        run, sentence = self.lists.values()
        first = widgets.HBox([*([run] if len(self.runs) > 1 else []), sentence, self.text], layout=wrap)
        return widgets.VBox([first, self.status, self.computing.widget, self.views, self.saving.widget])

    def _on_signals(self, values: Mapping[str, Any]) -> None:
        before = self.now["step"]
        super()._on_signals(values)
        if self.now["step"] != before and not self.computing.busy:  # reading was cancelled
            self._read_remaining()

    def _on_choice(self, entry: str, value: Any) -> None:
        """Select another run or sentence when it is measured, or read at this checkpoint; or show the error."""
        if self._updating or not value or value == self.now[entry]:
            return
        entries = {**self.now, entry: value}
        index, words = self.names.index(entries["run"]), entries["sentence"]
        label = f"measuring {value}" if entry == "run" else "reading the sentence"

        def compute(executor: Executor | None) -> None:
            self.measure(index, executor)
            self.read(index, words, executor, self.now["step"] if entry == "sentence" else None)

        def select() -> None:
            current = {name: self.now[name] for name in ("step", *self.signals)}  # perhaps changed within the picture
            if entry == "run":  # another run has other heads
                current = {**current, **dict.fromkeys(("layer", "head", "direction"))}
            self.custom = words
            self.select({**entries, **current})
            if tuple(self.text.value.split()) != words:  # it is from the list: the box has an older one
                self.text.value = ""
            self.show_message()
            self._read_remaining()

        def on_failure(message: str) -> None:
            self.update_lists()
            self.show_message(message)

        if self.is_computed(index, words):
            self.computing.abort()
            select()
        else:
            self.computing.begin(compute, lambda _: select(), on_failure, label)

    def _read_remaining(self) -> None:
        """Read the sentence at all other checkpoints, so that its arcs follow the slider."""
        index, words = self.names.index(self.now["run"]), self.now["sentence"]
        if not self.is_computed(index, words):

            def compute(executor: Executor | None) -> None:
                self.read(index, words, executor)

            self.computing.begin(compute, lambda _: self.draw(), self.show_message, "reading the sentence")

    def show_message(self, line: str = "") -> None:
        """Show a line under the controls: an error, or words unknown to the model; as text, never as HTML."""
        tokenizer = self.measured.run[self.now["step"]].tokenizer
        unknown = unknown_words(tokenizer, self.now["sentence"])
        if not line and unknown:
            line = f"not in the model's vocabulary, each read as {tokenizer.unk_token}: {', '.join(unknown)}"
        super().show_message(line)


def _step_text(step: int, loss: float | None, row: Mapping[str, float] | None) -> str:
    parts = [] if loss is None else [f"loss {loss:.3f} nats"]
    if row is not None:
        parts.append(f"heads find {row['uas']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of all arcs")
    return f"Step {step:,}: {'; '.join(parts) or 'nothing was measured'}."

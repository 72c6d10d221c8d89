"""Syntactic attention structure, to steer through: run, checkpoint, relation, head, sentence; all views together."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import altair as alt
import ipywidgets as widgets
import numpy as np
import polars as pl

from lmdynamics.analysis.intervals import loss_by_bin, with_interval, with_wilson
from lmdynamics.analysis.onsets import Onset, structure_onset
from lmdynamics.analysis.syntax import DIRECTIONS, describe_relation, head_history, predicted_heads, uas_by_step
from lmdynamics.charts.arcs import moving_arcs
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.heads import loss_and_uas, moving_head_map, picked_head
from lmdynamics.charts.moving import Moving, Place, above, beside, moved, picker
from lmdynamics.corpora.gold import Sentence, Treebank
from lmdynamics.errors import UserError
from lmdynamics.explorers.computing import Computing
from lmdynamics.explorers.explorer import Explorer, State, numbered
from lmdynamics.explorers.saving import restored
from lmdynamics.measurements.inputs import offset_baseline
from lmdynamics.measurements.syntax import UAS, HeadScores, WordAttention, best_heads_and_offset
from lmdynamics.measurements.trace import trace, trace_all
from lmdynamics.runs.run import Run

SENTENCES = 40  # offered from the treebank


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

    @cached_property
    def best_heads(self) -> dict[str, tuple[int, int, str]]:
        """Layer, head and direction that follow each relation best at the last checkpoint."""
        rows = self.best.sort("step", "relation").group_by("relation", maintain_order=True).last()
        return {row["relation"]: (row["layer"], row["head"], row["direction"]) for row in rows.to_dicts()}

    @cached_property
    def history(self) -> dict[str, str]:
        """When each relation appeared, in a sentence."""
        found = head_history(self.best)
        return {name: describe_relation(found, name) for name in self.relations}


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

    heard: ClassVar = ("relation", "layer", "head", "direction")
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
        self.own: tuple[str, ...] = tuple(sentence or ())
        first = self.measure(0)
        if relation is not None and relation not in first.relations:
            raise UserError(f"no scores for the relation {relation!r}; measured: {', '.join(first.relations)}")
        if step is not None:
            self.runs[0][step]  # a step without a checkpoint is refused there
        self.start(
            run=None, relation=relation, layer=None, head=None, direction=None, sentence=self.own or None, step=step
        )
        self.own = self.now["sentence"]  # another relation offers other sentences, and this one

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        if entry == "run":
            return {name: name for name in self.names}
        seen = self.measure(self.names.index(now["run"]))
        if entry == "step":
            return numbered(seen.run.steps)
        if entry == "relation":
            return {name: name for name in seen.relations}
        if entry == "sentence":
            offered = [sentence.words for sentence in self.sentences(now["relation"])]
            offered = [self.own, *offered] if self.own and self.own not in offered else offered
            return {words: " ".join(words) for words in dict.fromkeys(offered)}
        known = DIRECTIONS if entry == "direction" else seen.scores[entry].unique().sort().to_list()
        best = seen.best_heads[now["relation"]][self.heard.index(entry) - 1]
        return {each: str(each) for each in sorted(known, key=lambda each: each != best)}  # the best one is the default

    @property
    def measured(self) -> Measured:
        """The traces of the run that is looked at."""
        return self.measure(self.names.index(self.now["run"]))

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
        """Attention within the sentence at every checkpoint of the run, or, while it is being read, at this one."""
        index, words = self.names.index(self.now["run"]), self.now["sentence"]
        here = (index, words, self.now["step"])
        known = self.knows(index, words) or here not in self._attention
        return self.read(index, words) if known else self._attention[here]

    def sentences(self, relation: str | None = None) -> list[Sentence]:
        """Sentences of the treebank that fit on a screen, those with `relation` first."""
        fitting = [sentence for sentence in self.treebank if 4 <= len(sentence) <= 16] or list(self.treebank)
        fitting.sort(key=lambda sentence: relation not in sentence.relations)  # stable: otherwise in their order
        return fitting[:SENTENCES]

    def moving(self) -> Moving:
        seen, now = self.measured, self.now
        cursor, log = Cursor(seen.run.steps), seen.run.log
        if log.is_empty():
            log = pl.DataFrame({"step": seen.run.steps}).with_columns(loss=pl.lit(None, pl.Float64))
        gold = next((sentence for sentence in self.treebank if sentence.words == now["sentence"]), None)
        attention = self.attention()
        heads = pl.concat(
            predicted_heads(attention, direction).with_columns(direction=pl.lit(direction)) for direction in DIRECTIONS
        )
        chart = above(
            beside(
                loss_and_uas(log, seen.curve, seen.onset, cursor=cursor, best=seen.best),
                moving_head_map(seen.scores, cursor, seen.offsets),
            ),
            moving_arcs(now["sentence"], heads, gold.heads if gold else None, gold.relations if gold else None, cursor),
        )
        return moved(chart, cursor, now["step"], self._places(), *self._signals())

    def _signals(self) -> list[dict]:
        seen, now, signals = self.measured, self.now, []
        best = {name: list(head) for name, head in seen.best_heads.items()}
        signals.append(picker("relation", "relation", seen.relations, now["relation"]))
        for i, entry in enumerate(("layer", "head", "direction")):
            label = "read as" if entry == "direction" else entry
            options = sorted(self.choices(entry, now)) if entry != "direction" else DIRECTIONS
            # forced: Vega would skip a head that is the best of the last relation too, though another was picked since
            follows = {"events": {"signal": "relation"}, "update": f"best_heads[relation][{i}]", "force": True}
            signals.append(picker(entry, label, options, now[entry], follows, picked_head(entry)))
        return [*signals, {"name": "best_heads", "value": best}]

    def _places(self) -> list[Place]:
        seen = self.measured
        rows = {row["step"]: row for row in seen.curve.filter(source="attention").iter_rows(named=True)}
        return [Place(f"{step:,}", _in_words(step, seen.losses.get(step), rows.get(step))) for step in seen.run.steps]

    def tables(self) -> dict[str, pl.DataFrame]:
        seen, now = self.measured, self.now
        loss = seen.run.log.select("step", curve=pl.lit("loss"), value="loss") if len(seen.run.log) else None
        uas = seen.curve.select("step", curve="uas, " + pl.col("source"), value="uas", low="low", high="high")
        heads = predicted_heads(self.attention(), now["direction"])
        arcs = heads.filter(layer=now["layer"], head=now["head"], step=now["step"])
        best = with_wilson(seen.best.filter(pl.col("relation") == now["relation"]))
        best = best.select("step", "low", "high", curve=pl.lit("best head, ") + "relation", value="accuracy")
        curves = [uas, best] if loss is None else [loss, uas, best]
        return {
            "explorer_curves": pl.concat(curves, how="diagonal_relaxed"),
            "explorer_heads": seen.scores.filter(relation=now["relation"], step=now["step"], split="all"),
            "explorer_arcs": arcs.with_columns(text=pl.col("word").replace_strict(dict(enumerate(now["sentence"])))),
        }

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        """The picture as it stands; its words for those who cannot see it tell what is seen of relation and head."""
        seen, now = self.measured, self.now
        scores = dict.fromkeys(("relation", "step", "layer", "head", "direction"))
        row = seen.scores.filter(split="all", **{name: now[name] for name in scores})
        chosen = f"{now['relation']} in layer {now['layer']}, head {now['head']}, read {now['direction']}"
        share = with_wilson(row).row(0, named=True) if len(row) else None
        found = f": {with_interval(share['accuracy'], (share['low'], share['high']), '.0%')}" if share else ""
        chart = super().stills()[self.name]
        said = next(place.said for place in self._places() if place.name == f"{now['step']:,}")
        words = f"{chart.description} {said} {chosen}{found}. {seen.history[now['relation']]}"
        return {self.name: chart.properties(description=words)}

    def state(self) -> State:
        return {**self.now, "sentence": list(self.now["sentence"])}

    def restore(self, state: Mapping[str, Any]) -> "SasExplorer":
        wanted = restored(state, self.state())
        words = tuple(wanted["sentence"])
        if not words or not all(isinstance(word, str) and word for word in words):
            raise UserError("the state's sentence should be a list of words, such as ['the', 'dog', 'sleeps']")
        own, self.own = self.own, words
        try:
            if wanted["run"] in self.names:
                self.read(self.names.index(wanted["run"]), words)  # what the model cannot read is refused there
            self.computing.give_up()
            self.look({**wanted, "sentence": words}, given=state)
        except UserError:
            self.own = own
            raise
        return self

    # the page: another run, or a sentence of the reader's own, is computed beside it

    @cached_property
    def computing(self) -> Computing:
        return Computing()

    @cached_property
    def text(self) -> widgets.Text:
        text = widgets.Text(
            placeholder="a sentence of your own, words separated by spaces; Enter",
            description="or", continuous_update=False, style={"description_width": "auto"},
            layout=widgets.Layout(width="440px"),
        )  # fmt: skip
        text.observe(lambda change: self._picked("sentence", tuple(change["new"].split())), names="value")
        return text

    @cached_property
    def widget(self) -> widgets.Widget:
        self.offer()
        wrap = widgets.Layout(flex_flow="wrap", grid_gap="0 18px")
        run, sentence = self.lists.values()
        first = widgets.HBox([*([run] if len(self.runs) > 1 else []), sentence, self.text], layout=wrap)
        return widgets.VBox([first, self.status, self.computing.widget, self.views, self.saving.widget])

    def _heard(self, values: Mapping[str, Any]) -> None:
        before = self.now["step"]
        super()._heard(values)
        if self.now["step"] != before and not self.computing.busy:  # somebody has cancelled that
            self._read_on()

    def _picked(self, entry: str, value: Any) -> None:
        """Another run or sentence: once it is measured, or this checkpoint has read it; or say why not."""
        if self._offering or not value or value == self.now[entry]:
            return
        wanted = {**self.now, entry: value}
        index, words = self.names.index(wanted["run"]), wanted["sentence"]
        what = f"measuring {value}" if entry == "run" else "reading the sentence"

        def compute(executor: Executor | None) -> None:
            self.measure(index, executor)
            self.read(index, words, executor, self.now["step"] if entry == "sentence" else None)

        def look() -> None:
            moved_to = {name: self.now[name] for name in ("step", *self.heard)}  # meanwhile, within the picture
            if entry == "run":  # another run has other heads
                moved_to = {**moved_to, **dict.fromkeys(("layer", "head", "direction"))}
            self.own = words
            self.look({**wanted, **moved_to})
            if tuple(self.text.value.split()) != words:  # one of the list: the box holds an older one
                self.text.value = ""
            self.say()
            self._read_on()

        def left_again(said: str) -> None:
            self.offer()
            self.say(said)

        if self.knows(index, words):
            self.computing.give_up()
            look()
        else:
            self.computing.begin(compute, lambda _: look(), left_again, what)

    def _read_on(self) -> None:
        """The sentence at all other checkpoints, so that the slider moves its arcs too."""
        index, words = self.names.index(self.now["run"]), self.now["sentence"]
        if not self.knows(index, words):

            def compute(executor: Executor | None) -> None:
                self.read(index, words, executor)

            self.computing.begin(compute, lambda _: self.draw(), self.say, "reading the sentence")

    def say(self, line: str = "") -> None:
        """The line under the controls: what is wrong, or words the model has never seen; as text, never as HTML."""
        tokenizer = self.measured.run[self.now["step"]].tokenizer
        unknown = [
            word
            for word in self.now["sentence"]
            if tokenizer.unk_token_id in tokenizer([word], is_split_into_words=True)["input_ids"]
        ]
        if not line and unknown:
            line = f"not in the model's vocabulary, each read as {tokenizer.unk_token}: {', '.join(unknown)}"
        super().say(line)


def _in_words(step: int, loss: float | None, row: Mapping[str, float] | None) -> str:
    parts = [] if loss is None else [f"loss {loss:.3f} nats"]
    if row is not None:
        parts.append(f"heads find {row['uas']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of all arcs")
    return f"Step {step:,}: {'; '.join(parts) or 'nothing was measured'}."

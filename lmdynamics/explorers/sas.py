"""Syntactic attention structure, to steer through: run, checkpoint, relation, head, sentence; all views linked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape

import altair as alt
import ipywidgets as widgets
import polars as pl
import traitlets
from IPython.display import display

from lmdynamics import charts
from lmdynamics.corpora.treebank import Sentence, Treebank
from lmdynamics.curves.heads import DIRECTIONS, predicted_heads
from lmdynamics.curves.intervals import uas_by_step
from lmdynamics.curves.onsets import Onset, structure_onset
from lmdynamics.errors import UserError
from lmdynamics.explorers.live import LiveChart
from lmdynamics.measurements.arcs import offset_baseline
from lmdynamics.measurements.syntax import UAS, HeadScores, WordAttention, best_heads
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


@dataclass(frozen=True)
class Measured:
    """One run's traces, as the views need them."""

    run: Run
    scores: pl.DataFrame
    best: pl.DataFrame  # best head per step and relation
    curve: pl.DataFrame  # UAS with intervals
    onset: Onset
    offsets: dict[str, float]

    @cached_property
    def relations(self) -> list[str]:
        """Relations by frequency; those that UAS leaves out come last."""
        counts = self.best.group_by("relation").agg(pl.col("count").max())
        counts = counts.with_columns(aside=pl.col("relation").is_in(["root", "punct"]))
        return counts.sort("aside", "count", "relation", descending=[False, True, False])["relation"].to_list()

    def best_head(self, relation: str) -> tuple[int, int, str]:
        """Layer, head and direction that follow `relation` best at the last checkpoint."""
        row = self.best.filter(pl.col("relation") == relation).sort("step").row(-1, named=True)
        return row["layer"], row["head"], row["direction"]


class SasExplorer:
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
        self.state = State()
        first = self.measured
        relation = relation or first.relations[0]
        if relation not in first.relations:
            raise UserError(f"no scores for the relation {relation!r}; measured: {', '.join(first.relations)}")
        step = first.run.steps[-1] if step is None else step
        first.run[step]  # a step without a checkpoint is refused there
        layer, head, direction = first.best_head(relation)
        words = tuple(sentence) if sentence else self.sentences(relation)[0].words
        self.state.set_trait("relation", relation)
        for name, value in {"step": step, "layer": layer, "head": head, "direction": direction, "words": words}.items():
            self.state.set_trait(name, value)

    @property
    def measured(self) -> Measured:
        """The traces of the run that is looked at, measured on first use."""
        index = self.state.run
        if index not in self._measured:
            run = self.runs[index]
            what = {"uas": UAS(self.treebank, self.min_count, self.seed)}
            what["heads"] = HeadScores(self.treebank, self.min_count, self.seed)
            traces = trace_all(run, what, device=self.device, progress=self.progress)
            baseline = offset_baseline(self.treebank, self.min_count, self.seed).filter(pl.col("split") == "all")
            self._measured[index] = Measured(
                run,
                traces["heads"],
                best_heads(traces["heads"]).drop_nulls("accuracy"),
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
        """Loss and UAS with a line at the checkpoint."""
        seen = self.measured
        log = (
            seen.run.log
            if len(seen.run.log)
            else pl.DataFrame({"step": seen.run.steps}).with_columns(loss=pl.lit(None, pl.Float64))
        )
        return charts.loss_and_uas(log, seen.curve, seen.onset, self.state.step, cursor)

    def head_map(self, cursor: alt.Parameter | None = None, chosen=None) -> alt.LayerChart:
        """Every head's accuracy on the relation at the checkpoint."""
        seen, state = self.measured, self.state
        chosen = chosen or (state.layer, state.head)
        offset = seen.offsets.get(state.relation)
        return charts.layer_head_map(seen.scores, state.relation, state.step, offset, cursor=cursor, chosen=chosen)

    def arcs(self, cursor: alt.Parameter | None = None) -> alt.LayerChart:
        """What the chosen head makes of the sentence, over its gold tree if the treebank has one."""
        state = self.state
        predicted = predicted_heads(self.attention(), state.direction).filter(
            (pl.col("layer") == state.layer) & (pl.col("head") == state.head)
        )
        where = f"layer {state.layer}, head {state.head}, read {state.direction}"
        if cursor is None:
            predicted = predicted.filter(pl.col("step") == state.step).drop("step")
            where += f", step {state.step:,}"
        gold = next((sentence for sentence in self.treebank if sentence.words == state.words), None)
        tree = (gold.heads, gold.relations, state.relation) if gold else (None, None, None)
        return charts.sentence_arcs(state.words, predicted, *tree, cursor=cursor, caption=where)

    def attention(self) -> pl.DataFrame:
        """Attention within the sentence at every checkpoint of the run."""
        key = (self.state.run, self.state.words)
        if key not in self._attention:
            run = self.runs[self.state.run]
            self._attention[key] = trace(run, WordAttention(self.state.words), device=self.device, progress=False)
        return self._attention[key]

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        """The three views as they stand, by name: what a page without controls shows."""
        return {"explorer_curves": self.curves(), "explorer_heads": self.head_map(), "explorer_arcs": self.arcs()}

    def show(self, output_dir: str = "", interactive: bool = True) -> widgets.Widget | None:
        """The explorer itself, or its start values as still figures (and files, if `output_dir` is given)."""
        if interactive:
            return self.widget
        for name, chart in self.stills().items():
            display(charts.show(chart, name, output_dir, interactive=False))
        return None

    @cached_property
    def widget(self) -> widgets.Widget:
        """Controls and linked views. Made once; showing it twice shows the same state twice."""
        return _Page(self).box


class _Page:
    """The controls of one explorer, each bound to one value of its state, and the views that follow."""

    def __init__(self, explorer: SasExplorer):
        self.explorer, self.state = explorer, explorer.state
        self.switching = False  # between two runs, when controls and state do not yet agree
        state, seen = self.state, explorer.measured
        style = {"description_width": "80px"}

        def narrow(width: int) -> dict:
            return {"style": {"description_width": "auto"}, "layout": widgets.Layout(width=f"{width}px")}

        label = {"style": style, "layout": widgets.Layout(width="260px")}
        self.run = widgets.Dropdown(
            options=[(run.name, i) for i, run in enumerate(explorer.runs)], value=state.run, description="run", **label
        )
        self.step = widgets.SelectionSlider(
            options=_step_options(seen.run.steps), value=state.step, description="checkpoint",
            style=style, layout=widgets.Layout(width="480px"),
        )  # fmt: skip
        self.play = widgets.Play(
            min=0, max=len(seen.run.steps) - 1, value=seen.run.steps.index(state.step), interval=350,
            layout=widgets.Layout(width="120px"),
        )  # fmt: skip
        widgets.jslink((self.play, "value"), (self.step, "index"))
        self.relation = widgets.Dropdown(options=seen.relations, value=state.relation, description="relation", **label)
        self.layer = widgets.Dropdown(
            options=_numbers(seen, "layer"), value=state.layer, description="layer", **narrow(130)
        )
        self.head = widgets.Dropdown(
            options=_numbers(seen, "head"), value=state.head, description="head", **narrow(130)
        )
        self.direction = widgets.Dropdown(
            options=list(DIRECTIONS), value=state.direction, description="read as", **narrow(230)
        )
        wide = {"style": style, "layout": widgets.Layout(width="720px")}
        self.sentence = widgets.Dropdown(options=self._sentences(), value=state.words, description="sentence", **wide)
        self.text = widgets.Text(
            placeholder="a sentence of your own, words and punctuation parted by spaces, then press Enter",
            description="or", continuous_update=False, style=style, layout=widgets.Layout(width="720px"),
        )  # fmt: skip
        self.status = widgets.HTML()

        step = {"cursor": state.step}
        chosen = {"chosen_layer": state.layer, "chosen_head": state.head}
        self.curves = LiveChart(explorer.curves(self._cursor()), **step)
        self.map = LiveChart(explorer.head_map(self._cursor(), self._chosen()), **step, **chosen)
        self.arcs = LiveChart(explorer.arcs(self._cursor()), **step)
        self.arcs_of = (state.run, state.words, state.relation, state.layer, state.head, state.direction)
        self._bind()
        controls = [
            *([self.run] if len(explorer.runs) > 1 else []),
            widgets.HBox([self.step, self.play]),
            widgets.HBox(
                [self.relation, self.layer, self.head, self.direction], layout=widgets.Layout(flex_flow="wrap")
            ),
            self.sentence,
            self.text,
            self.status,
        ]
        views = widgets.HBox(
            [self.curves.widget, self.map.widget], layout=widgets.Layout(flex_flow="wrap", align_items="flex-start")
        )
        self.box = widgets.VBox([*controls, views, self.arcs.widget])

    def _bind(self) -> None:
        for name in ("step", "relation", "layer", "head", "direction"):
            traitlets.link((getattr(self, name), "value"), (self.state, name))
        self.sentence.observe(lambda change: self._read(change["new"]), names="value")
        self.text.observe(lambda change: self._read(tuple(change["new"].split())), names="value")
        self.state.observe(lambda _: self.switching or self._send(), names="step")
        self.state.observe(lambda _: self._relation_changed(), names="relation")
        self.state.observe(lambda _: self._head_changed(), names=["layer", "head", "direction"])
        self.run.observe(self._run_changed, names="value")  # no link: a run that fails is left again

    def _relation_changed(self) -> None:
        """Another relation brings its best head with it."""
        if self.switching:
            return
        layer, head, direction = self.explorer.measured.best_head(self.state.relation)
        with self.state.hold_trait_notifications():
            self.state.layer, self.state.head, self.state.direction = layer, head, direction
        self._draw_map()
        self._draw_arcs()

    def _head_changed(self) -> None:
        if not self.switching:
            self._send()
            self._draw_arcs()

    def _run_changed(self, change) -> None:
        """Another run: keep step and relation as far as it has them. One that cannot be measured is left again."""
        if self.switching:
            return
        state, self.status.value = self.state, "measuring …"
        state.run, self.switching = change["new"], True
        try:
            seen = self.explorer.measured
            self.explorer.attention()
        except UserError as error:
            state.run = self.run.value = change["old"]
            self._say(error)
        else:
            relation = state.relation if state.relation in seen.relations else seen.relations[0]
            near = min(seen.run.steps, key=lambda step: abs(step - state.step))
            layer, head, direction = seen.best_head(relation)
            self.relation.options, self.step.options = seen.relations, _step_options(seen.run.steps)
            self.layer.options, self.head.options = _numbers(seen, "layer"), _numbers(seen, "head")
            self.play.max = len(seen.run.steps) - 1
            state.relation, state.step, state.layer, state.head, state.direction = (
                relation,
                near,
                layer,
                head,
                direction,
            )
            self.curves.redraw(self.explorer.curves(self._cursor()))
            self._draw_map()
            self._draw_arcs()
            self._send()
            self._say()
        finally:
            self.switching = False

    def _read(self, words: tuple[str, ...]) -> None:
        """Look at another sentence; if the model cannot read it, say so and stay."""
        if not words or words == self.state.words:
            return
        before, self.state.words = self.state.words, words
        try:
            self.explorer.attention()
        except UserError as error:
            self.state.words = before
            self._say(error)
            return
        self.sentence.options = self._sentences()
        self.sentence.value = words
        self._draw_arcs()
        self._say()

    def _send(self) -> None:
        self.map.set(chosen_layer=self.state.layer, chosen_head=self.state.head)
        for view in (self.curves, self.map, self.arcs):
            view.set(cursor=self.state.step)

    def _draw_map(self) -> None:
        self.map.redraw(self.explorer.head_map(self._cursor(), self._chosen()))

    def _draw_arcs(self) -> None:
        """Three values change at once when a relation is picked: draw for the last of them only."""
        state = self.state
        wanted = (state.run, state.words, state.relation, state.layer, state.head, state.direction)
        if wanted != self.arcs_of:
            self.arcs_of = wanted
            self.arcs.redraw(self.explorer.arcs(self._cursor()))

    def _cursor(self) -> alt.Parameter:
        return alt.param(name="cursor", value=self.state.step)

    def _chosen(self) -> tuple[alt.Parameter, alt.Parameter]:
        layer, head = self.state.layer, self.state.head
        return alt.param(name="chosen_layer", value=layer), alt.param(name="chosen_head", value=head)

    def _say(self, error: UserError | None = None) -> None:
        """The line under the controls: an error, or words the model has never seen; always as text, never as HTML."""
        tokenizer = self.explorer.runs[self.state.run][self.state.step].tokenizer
        unknown = [
            word
            for word in self.state.words
            if tokenizer.unk_token_id in tokenizer([word], is_split_into_words=True)["input_ids"]
        ]
        line = str(error) if error else f"unknown to this model: {', '.join(unknown)}" if unknown else ""
        self.status.value = escape(line)

    def _sentences(self) -> list[tuple[str, tuple[str, ...]]]:
        offered = [sentence.words for sentence in self.explorer.sentences(self.state.relation)]
        if self.state.words not in offered:
            offered.insert(0, self.state.words)
        return [(" ".join(words), words) for words in dict.fromkeys(offered)]


def _numbers(seen: Measured, column: str) -> list[int]:
    return seen.scores[column].unique().sort().to_list()


def _step_options(steps: Sequence[int]) -> list[tuple[str, int]]:
    return [(f"{step:,}", step) for step in steps]

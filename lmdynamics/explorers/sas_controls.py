"""The controls of the explorer of syntactic attention structure, and how its views follow them."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from html import escape
from typing import Any

import altair as alt
import ipywidgets as widgets
import traitlets

from lmdynamics.analysis.syntax import DIRECTIONS
from lmdynamics.charts.heads import PICK
from lmdynamics.explorers.checkpoints import CheckpointSlider, nearest
from lmdynamics.explorers.computing import Computing
from lmdynamics.explorers.live import LiveChart
from lmdynamics.explorers.saving import SaveRow

CURSOR = "sas_step"  # not "cursor": Vega has a signal of that name, which holds the mouse pointer's shape


class Controls:
    """The controls of one explorer, each bound to one value of its state, and the views that follow."""

    def __init__(self, explorer):
        self.explorer, self.now = explorer, explorer.now
        self.switching = False  # between two runs, when controls and state do not yet agree
        now, seen = self.now, explorer.measured
        style = {"description_width": "80px"}

        def narrow(width: int) -> dict:
            return {"style": {"description_width": "auto"}, "layout": widgets.Layout(width=f"{width}px")}

        label = {"style": style, "layout": widgets.Layout(width="260px")}
        self.run = widgets.Dropdown(
            options=[(name, i) for i, name in enumerate(now.runs)], value=now.run, description="run", **label
        )
        self.checkpoint = CheckpointSlider(seen.run.steps, now.step, seen.losses)
        self.relation = widgets.Dropdown(options=seen.relations, value=now.relation, description="relation", **label)
        self.layer = widgets.Dropdown(
            options=_numbers(seen, "layer"), value=now.layer, description="layer", **narrow(130)
        )
        self.head = widgets.Dropdown(options=_numbers(seen, "head"), value=now.head, description="head", **narrow(130))
        self.direction = widgets.Dropdown(
            options=list(DIRECTIONS), value=now.direction, description="read as", **narrow(230)
        )
        wide = {"style": style, "layout": widgets.Layout(width="720px")}
        self.sentence = widgets.Dropdown(options=self._sentences(), value=now.words, description="sentence", **wide)
        self.text = widgets.Text(
            placeholder="a sentence of your own, words and punctuation separated by spaces, then press Enter",
            description="or", continuous_update=False, style=style, layout=widgets.Layout(width="720px"),
        )  # fmt: skip
        self.status, self.computing = widgets.HTML(), Computing()

        values = {CURSOR: now.step, "chosen_layer": now.layer, "chosen_head": now.head}
        clicks = {**self.checkpoint.clicks, PICK: self._pick}
        drawn = explorer.curves(self._cursor()), explorer.head_map(self._cursor(), self._chosen())
        self.curves, self.map, self.arcs = (
            LiveChart(chart, clicks, **values) for chart in (*drawn, explorer.arcs(self._cursor()))
        )
        self.arcs_of = self._arcs_wanted
        self._bind()
        controls = [
            *([self.run] if len(explorer.runs) > 1 else []),
            self.checkpoint,
            widgets.HBox(
                [self.relation, self.layer, self.head, self.direction], layout=widgets.Layout(flex_flow="wrap")
            ),
            self.sentence,
            self.text,
            self.status,
            self.computing.widget,
        ]
        views = widgets.HBox(
            [self.curves.widget, self.map.widget], layout=widgets.Layout(flex_flow="wrap", align_items="flex-start")
        )
        self.saving = SaveRow(explorer)
        self.box = widgets.VBox([*controls, views, self.arcs.widget, self.saving.widget])

    def put(self, run: int, words: tuple[str, ...]) -> None:
        """Look at another run and sentence, both known to be there."""
        self.run.value = run
        self._read(words)

    def _bind(self) -> None:
        traitlets.link((self.checkpoint, "step"), (self.now, "step"))
        for name in ("relation", "layer", "head", "direction"):
            traitlets.link((getattr(self, name), "value"), (self.now, name))
        self.sentence.observe(lambda change: self._read(change["new"]), names="value")
        self.text.observe(lambda change: self._read(tuple(change["new"].split())), names="value")
        self.now.observe(lambda _: self.switching or self._moved(), names="step")
        self.now.observe(lambda _: self._relation_changed(), names="relation")
        self.now.observe(lambda _: self._head_changed(), names=["layer", "head", "direction"])
        # no link: a run that cannot be measured is left again
        self.run.observe(lambda change: self._run_changed(change["new"]), names="value")

    def _pick(self, clicked: Mapping[str, Any]) -> None:
        """The head that a reader clicked on."""
        with self.now.hold_trait_notifications():
            self.now.layer, self.now.head = int(clicked["layer"]), int(clicked["head"])
            self.now.direction = clicked["direction"]

    def _relation_changed(self) -> None:
        """Another relation brings its best head with it."""
        if self.switching:
            return
        layer, head, direction = self.explorer.measured.best_head(self.now.relation)
        with self.now.hold_trait_notifications():
            self.now.layer, self.now.head, self.now.direction = layer, head, direction
        self._draw_curves()
        self._draw_map()
        self._draw_arcs()

    def _head_changed(self) -> None:
        if not self.switching:
            self._send()
            self._draw_arcs()

    def _run_changed(self, index: int) -> None:
        """Another run: once it is measured, keep step and relation as far as it has them."""
        if self.switching or index == self.now.run:
            return
        explorer, words, name = self.explorer, self.now.words, self.now.runs[index]

        def compute(executor: Executor | None) -> None:
            explorer.measure(index, executor)
            explorer.read(index, words, executor)

        def left_again(said: str) -> None:
            self.run.value = self.now.run
            self._say(said)

        self._compute(compute, lambda: self._look_at(index), left_again, f"measuring {name}", index, words)

    def _look_at(self, index: int) -> None:
        now, self.switching = self.now, True
        try:
            now.run = index
            seen = self.explorer.measured
            relation = now.relation if now.relation in seen.relations else seen.relations[0]
            layer, head, direction = seen.best_head(relation)
            self.relation.options = seen.relations
            self.checkpoint.offer(seen.run.steps, nearest(seen.run.steps, now.step), seen.losses)
            self.layer.options, self.head.options = _numbers(seen, "layer"), _numbers(seen, "head")
            now.relation, now.layer, now.head, now.direction = relation, layer, head, direction
            self._draw_curves()
            self._draw_map()
            self._draw_arcs()
            self._send()
            self._say()
        finally:
            self.switching = False

    def _read(self, words: tuple[str, ...]) -> None:
        """Look at another sentence, once this checkpoint has read it, and let the others follow; or say why not."""
        if self.switching or not words or words == self.now.words:
            return
        explorer, index, step = self.explorer, self.now.run, self.now.step

        def look() -> None:
            self.now.words = words
            self.switching = True  # new options put the picker at their first
            try:
                self.sentence.options = self._sentences()
                self.sentence.value = words
                if tuple(self.text.value.split()) != words:  # one of the list: the box holds an older one
                    self.text.value = ""
            finally:
                self.switching = False
            self._draw_arcs()
            self._say()
            self._read_on()

        def left_again(said: str) -> None:
            self.sentence.value = self.now.words
            self._say(said)

        def compute(executor: Executor | None) -> None:
            explorer.read(index, words, executor, step)

        self._compute(compute, look, left_again, "reading the sentence", index, words)

    def _read_on(self) -> None:
        """The sentence at all other checkpoints, so that the slider moves its arcs too."""
        explorer, index, words = self.explorer, self.now.run, self.now.words
        if not explorer.knows(index, words):

            def compute(executor: Executor | None) -> None:
                explorer.read(index, words, executor)

            self.computing.begin(compute, lambda _: self._draw_arcs(), self._say, "reading the sentence")

    def _compute(
        self,
        compute: Callable[[Executor | None], None],
        then: Callable[[], None],
        otherwise: Callable[[str], None],
        what: str,
        index: int,
        words: tuple[str, ...],
    ) -> None:
        """Beside the page, unless all of it is known already."""
        if self.explorer.knows(index, words):
            self.computing.give_up()
            then()
        else:
            self.computing.begin(compute, lambda _: then(), otherwise, what)

    def _moved(self) -> None:
        self._send()
        if not self.computing.busy:  # somebody has cancelled that
            self._read_on()

    def _send(self) -> None:
        now = self.now
        for view in (self.curves, self.map, self.arcs):
            view.set(**{CURSOR: now.step}, chosen_layer=now.layer, chosen_head=now.head)

    def _draw_curves(self) -> None:
        self.curves.redraw(self.explorer.curves(self._cursor()))

    def _draw_map(self) -> None:
        self.map.redraw(self.explorer.head_map(self._cursor(), self._chosen()))

    @property
    def _arcs_wanted(self) -> tuple:
        now = self.now
        whole = self.explorer.knows(now.run, now.words)
        return now.run, now.words, whole, now.relation, now.layer, now.head, now.direction

    def _draw_arcs(self) -> None:
        """Three values change at once when a relation is picked: draw for the last of them only."""
        if self._arcs_wanted != self.arcs_of:
            self.arcs_of = self._arcs_wanted
            self.arcs.redraw(self.explorer.arcs(self._cursor()))

    def _cursor(self) -> alt.Parameter:
        return alt.param(name=CURSOR, value=self.now.step)

    def _chosen(self) -> tuple[alt.Parameter, alt.Parameter]:
        layer, head = self.now.layer, self.now.head
        return alt.param(name="chosen_layer", value=layer), alt.param(name="chosen_head", value=head)

    def _say(self, line: str = "") -> None:
        """The line under the controls: what is wrong, or words the model has never seen; as text, never as HTML."""
        tokenizer = self.explorer.runs[self.now.run][self.now.step].tokenizer
        unknown = [
            word
            for word in self.now.words
            if tokenizer.unk_token_id in tokenizer([word], is_split_into_words=True)["input_ids"]
        ]
        if not line and unknown:
            line = f"not in the model's vocabulary, each read as {tokenizer.unk_token}: {', '.join(unknown)}"
        self.status.value = escape(line)

    def _sentences(self) -> list[tuple[str, tuple[str, ...]]]:
        offered = [sentence.words for sentence in self.explorer.sentences(self.now.relation)]
        if self.now.words not in offered:
            offered.insert(0, self.now.words)
        return [(" ".join(words), words) for words in dict.fromkeys(offered)]


def _numbers(seen, column: str) -> list[int]:
    return seen.scores[column].unique().sort().to_list()

"""The controls of the explorer of syntactic attention structure, and how its views follow them."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import altair as alt
import ipywidgets as widgets
import traitlets

from lmdynamics.curves.heads import DIRECTIONS
from lmdynamics.errors import UserError
from lmdynamics.explorers.live import LiveChart
from lmdynamics.explorers.saving import SaveRow

if TYPE_CHECKING:
    from lmdynamics.explorers.sas import Measured, SasExplorer


class Controls:
    """The controls of one explorer, each bound to one value of its state, and the views that follow."""

    def __init__(self, explorer: "SasExplorer"):
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
        self.saving = SaveRow(explorer)
        self.box = widgets.VBox([*controls, views, self.arcs.widget, self.saving.widget])

    def put(self, run: int, words: tuple[str, ...]) -> None:
        """Look at another run and sentence, both known to be there."""
        self.run.value = run
        self._read(words)

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


def _numbers(seen: "Measured", column: str) -> list[int]:
    return seen.scores[column].unique().sort().to_list()


def _step_options(steps: Sequence[int]) -> list[tuple[str, int]]:
    return [(f"{step:,}", step) for step in steps]

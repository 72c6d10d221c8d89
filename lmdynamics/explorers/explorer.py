"""The base of all explorers: a state, views with one slider, lists to choose from, and saving."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from html import escape
from typing import Any, ClassVar, Self

import ipywidgets as widgets
import polars as pl
from IPython.display import display

from lmdynamics import charts
from lmdynamics.charts.axes import SLIDER, nearest
from lmdynamics.charts.moving import Moving
from lmdynamics.charts.theme import Chart
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.explorers.live import LiveViews, show_live
from lmdynamics.explorers.saving import SaveRow, State, check_among, complete_state
from lmdynamics.html import STILL

ALL = ""  # no run, measure or group has this name


class Explorer(ABC):
    """One picture with a slider, at most 960 px wide and 700 px high, with lists above it to choose from.

    `now` is the current selection. Its entry `slider` is moved by the slider, within the picture and without Python;
    the entries in `signals` are also signals of the picture; those in `pickers` are lists, which redraw it.
    """

    name: ClassVar[str] = "explorer"  # of its picture and of its file
    slider: ClassVar[str] = "step"
    signals: ClassVar[tuple[str, ...]] = ()
    pickers: ClassVar[Mapping[str, str]] = {}  # entries of the state, and the labels of their lists

    now: State

    @abstractmethod
    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        """The values of an entry, given the entries before it, with a label for each; the first is the default."""

    def offered(self, entry: str, now: State) -> Mapping[Any, str]:
        """The choices that a list offers."""
        return self.choices(entry, now)

    @abstractmethod
    def moving(self) -> Moving:
        """The views at the current selection."""

    @abstractmethod
    def tables(self) -> dict[str, pl.DataFrame]:
        """The tidy data of the current views, by name."""

    def start(self, **entries: Any) -> None:
        """Set the initial selection; an entry that is None gets its default."""
        self.now = {}
        for entry, value in entries.items():
            options = self.choices(entry, self.now)
            if value is None:
                value = self.default(entry, options)
            elif value not in options:
                raise UserError(missing_message(entry, value, options))
            self.now[entry] = value

    def default(self, entry: str, options: Mapping[Any, str]) -> Any:
        """The default of an entry: the last place of the slider, the first option of anything else."""
        return list(options)[-1] if entry == self.slider else next(iter(options))

    def state(self) -> State:
        """The current selection as literals, for `restore`."""
        return dict(self.now)

    def restore(self, state: Mapping[str, Any]) -> Self:
        """Select what `state()` returned earlier, and return the explorer; entries that are not given stay.

        Raises
        ------
        UserError
            If the state has an unknown entry, or a value that does not exist (any more); nothing changes then.
        """
        self.select(complete_state(state, self.state()), required=state)
        return self

    def select(self, entries: Mapping[str, Any], required: Collection[str] = ()) -> None:
        """Select other values; an unknown one is replaced by the nearest place or by the default, unless `required`.

        Raises
        ------
        UserError
            If a required value is unknown; nothing changes then.
        """
        now: State = {}
        for entry, value in entries.items():
            options = self.choices(entry, now)
            if not options:
                raise UserError(f"there is no {entry} for what is chosen; choose something else")
            if value not in options:
                if entry in required:
                    check_among(entry, value, options)
                value = nearest(options, value) if entry == self.slider else self.default(entry, options)
            now[entry] = value
        before, self.now = self.now, now
        try:
            self.draw()
        except BaseException:  # a selection that cannot be drawn is undone
            self.now = before
            raise

    def draw(self) -> None:
        """Redraw the views and update the lists, if they are on a page."""
        if "views" in self.__dict__:
            self.update_lists()
            self.views.draw(self.moving())

    def stills(self) -> dict[str, Chart]:
        """The current picture, by name, for a page without controls."""
        return {self.name: self.moving().still()}

    def show(self, output_dir: str = "", interactive: bool = True) -> None:
        """Show the explorer, or its current state as a still figure (and a file, if `output_dir` is given)."""
        if interactive:
            show_live(self.widget, self.stills().values())
            return
        for name, chart in self.stills().items():
            display(charts.show(chart, name, output_dir, interactive=False), metadata=STILL)
        display(self.moving())

    # the page

    @cached_property
    def views(self) -> LiveViews:
        views = LiveViews(self.moving(), [SLIDER, *self.signals])
        views.observe(lambda change: self._on_signals(change["new"]), names="values")
        return views

    @cached_property
    def lists(self) -> dict[str, widgets.Dropdown]:
        """The lists above the picture, by the entry that they set."""
        lists = {
            entry: widgets.Dropdown(description=label, style={"description_width": "auto"})
            for entry, label in self.pickers.items()
        }
        for entry, control in lists.items():
            control.observe(lambda change, entry=entry: self._on_choice(entry, change["new"]), names="value")
        return lists

    @cached_property
    def saving(self) -> SaveRow:
        return SaveRow(self)

    @cached_property
    def status(self) -> widgets.HTML:
        return widgets.HTML()

    @cached_property
    def widget(self) -> widgets.Widget:
        """Lists, picture and the row to save it. Created once; showing it twice shows the same state twice."""
        self.update_lists()
        wrap = widgets.Layout(flex_flow="wrap", grid_gap="0 18px")
        lists = widgets.HBox(list(self.lists.values()), layout=wrap)
        return widgets.VBox([lists, self.status, self.views, self.saving.widget])

    def update_lists(self) -> None:
        """Set the options of the lists."""
        self._updating, before = True, {}
        try:
            for entry, value in self.now.items():
                if entry in self.lists:
                    options = [(label, option) for option, label in self.offered(entry, before).items()]
                    control = self.lists[entry]
                    if options != list(control.options):
                        control.options = options
                    control.value = value
                    control.layout.display = None if len(options) > 1 else "none"
                    longest = max(len(label) for label, _ in options) + len(self.pickers[entry])
                    control.layout.width = f"{min(90 + 8 * longest, 450)}px"
                before[entry] = value
        finally:
            self._updating = False

    def _on_choice(self, entry: str, value: Any) -> None:
        if self._updating:
            return
        try:
            self.select({**self.now, entry: value})
            self.show_message()
        except UserError as error:
            self.update_lists()  # the list returns to what is shown
            self.show_message(str(error))

    def show_message(self, line: str = "") -> None:
        """Show a line under the lists, such as an error, as text and never as HTML."""
        self.status.value = escape(line)

    def _on_signals(self, values: Mapping[str, Any]) -> None:
        """Take over what a reader changed within the picture."""
        places = list(self.choices(self.slider, self.now))
        changed = {**self.now, **{entry: values[entry] for entry in self.signals}}
        valid = all(changed[entry] in self.choices(entry, changed) for entry in self.signals)
        if valid and 0 <= values[SLIDER] < len(places):
            self.now = {**changed, self.slider: places[values[SLIDER]]}
        else:  # the page sent this before it received the current views
            self.views.values = {SLIDER: places.index(self.now[self.slider]), **{e: self.now[e] for e in self.signals}}


def with_all(names: Collection[str]) -> dict[str, str]:
    """A column's values as choices; the first choice is all of them."""
    return {ALL: "all", **{name: name for name in names if name != ALL}}


def step_options(steps: Collection[int]) -> dict[int, str]:
    """Steps as choices."""
    return {step: f"{step:,}" for step in steps}


def missing_message(entry: str, value: Any, options: Collection) -> str:
    """Error message for an unknown initial value."""
    if entry == "step":
        return f"step {value} was not measured; measured: {', '.join(map(str, options))}"
    return f"there is no {entry} {value!r}{did_you_mean(str(value), map(str, options))}"


def sentence_box(on_words: Callable[[tuple[str, ...]], None], label: str = "or") -> widgets.Text:
    """A box for a sentence of the reader's own; `on_words` gets its words after Enter."""
    text = widgets.Text(
        placeholder="a sentence of your own, words separated by spaces; Enter",
        description=label, continuous_update=False, style={"description_width": "auto"},
        layout=widgets.Layout(width="440px"),
    )  # fmt: skip
    text.observe(lambda change: on_words(tuple(change["new"].split())), names="value")
    return text


def link_checkpoints(*explorers: Explorer) -> None:
    """Link the checkpoints of explorers: when one moves, the others move to their nearest checkpoints."""
    following = False

    def follow(leader: Explorer) -> None:
        nonlocal following
        if following:  # it was moved by another explorer
            return
        following = True
        try:
            for explorer in explorers:
                places = list(explorer.choices(explorer.slider, explorer.now))
                index = places.index(nearest(places, leader.now[leader.slider]))
                if explorer is not leader and explorer.views.values[SLIDER] != index:
                    explorer.views.values = {**explorer.views.values, SLIDER: index}
        finally:
            following = False

    for explorer in explorers:
        explorer.views.observe(lambda _, explorer=explorer: follow(explorer), names="values")
    follow(explorers[0])

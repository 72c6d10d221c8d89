"""What every explorer is: a state, views that one slider moves, lists beside them, and what can be kept of all that."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import cached_property
from html import escape
from typing import Any, ClassVar, Self

import altair as alt
import ipywidgets as widgets
import polars as pl
from IPython.display import display

from lmdynamics import charts
from lmdynamics.charts.axes import AT, nearest
from lmdynamics.charts.moving import Moving
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.explorers.live import LiveViews, show_live
from lmdynamics.explorers.saving import SaveRow, State, check_among, restored
from lmdynamics.html import STILL

ALL = ""  # no run, measure or group has this name


class Explorer(ABC):
    """One picture that a slider moves, at most 960 px wide and 700 px high, with lists above it to choose from.

    `now` is what is looked at. The entry named `place` is moved by the slider, within the picture and without Python;
    those named by `heard` are signals of the picture, too; those named by `pickers` are lists, which draw it anew.
    """

    name: ClassVar[str] = "explorer"  # of its picture and of the file
    place: ClassVar[str] = "step"
    heard: ClassVar[tuple[str, ...]] = ()
    pickers: ClassVar[Mapping[str, str]] = {}  # entries of the state, and what their lists are called

    now: State

    @abstractmethod
    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        """What an entry can be, given those before it, and how each is called; the first is the default."""

    def offered(self, entry: str, now: State) -> Mapping[Any, str]:
        """Those of the choices that a list offers."""
        return self.choices(entry, now)

    @abstractmethod
    def moving(self) -> Moving:
        """The views, where `now` is."""

    @abstractmethod
    def tables(self) -> dict[str, pl.DataFrame]:
        """The tidy data behind the views as they stand, by name."""

    def start(self, **wanted: Any) -> None:
        """Look at what is wanted first; an entry that is None is left to `choices`."""
        self.now = {}
        for entry, value in wanted.items():
            known = self.choices(entry, self.now)
            if value is None:
                value = self.default(entry, known)
            elif value not in known:
                raise UserError(missing(entry, value, known))
            self.now[entry] = value

    def default(self, entry: str, known: Mapping[Any, str]) -> Any:
        """What an entry is where nobody chose: the last place, the first of anything else."""
        return list(known)[-1] if entry == self.place else next(iter(known))

    def state(self) -> State:
        """What is looked at as literals, for `restore`."""
        return dict(self.now)

    def restore(self, state: Mapping[str, Any]) -> Self:
        """Look again at what `state()` has told, and return the explorer; what a state does not name stays.

        Raises
        ------
        UserError
            If the state has an entry that is not known, or that there is not (any more); nothing changes then.
        """
        self.look(restored(state, self.state()), given=state)
        return self

    def look(self, wanted: Mapping[str, Any], given: Collection[str] = ()) -> None:
        """Look at something else: of what is not there, the nearest place, the first of anything else, unless `given`.

        Raises
        ------
        UserError
            If an entry that was given is not there; nothing changes then.
        """
        now: State = {}
        for entry, value in wanted.items():
            known = self.choices(entry, now)
            if not known:
                raise UserError(f"there is no {entry} for what is chosen; choose something else")
            if value not in known:
                if entry in given:
                    check_among(entry, value, known)
                value = nearest(known, value) if entry == self.place else self.default(entry, known)
            now[entry] = value
        before, self.now = self.now, now
        try:
            self.draw()
        except BaseException:  # what cannot be drawn is not looked at
            self.now = before
            raise

    def draw(self) -> None:
        """The views and lists anew, where they are on a page."""
        if "views" in self.__dict__:
            self.offer()
            self.views.draw(self.moving())

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        """The picture as it stands, by name: what a page without controls shows."""
        return {self.name: self.moving().still()}

    def show(self, output_dir: str = "", interactive: bool = True) -> None:
        """Show the explorer, or its start values as a still figure (and a file, if `output_dir` is given)."""
        if interactive:
            show_live(self.widget, self.stills().values())
            return
        for name, chart in self.stills().items():
            display(charts.show(chart, name, output_dir, interactive=False), metadata=STILL)
        display(self.moving())

    # the page

    @cached_property
    def views(self) -> LiveViews:
        views = LiveViews(self.moving(), [AT, *self.heard])
        views.observe(lambda change: self._heard(change["new"]), names="values")
        return views

    @cached_property
    def lists(self) -> dict[str, widgets.Dropdown]:
        """The lists beside the picture, by the entry that they set."""
        made = {
            entry: widgets.Dropdown(description=label, style={"description_width": "auto"})
            for entry, label in self.pickers.items()
        }
        for entry, control in made.items():
            control.observe(lambda change, entry=entry: self._picked(entry, change["new"]), names="value")
        return made

    @cached_property
    def saving(self) -> SaveRow:
        return SaveRow(self)

    @cached_property
    def status(self) -> widgets.HTML:
        return widgets.HTML()

    @cached_property
    def widget(self) -> widgets.Widget:
        """Lists, picture and the row to save it. Made once; showing it twice shows the same state twice."""
        self.offer()
        wrap = widgets.Layout(flex_flow="wrap", grid_gap="0 18px")
        lists = widgets.HBox(list(self.lists.values()), layout=wrap)
        return widgets.VBox([lists, self.status, self.views, self.saving.widget])

    def offer(self) -> None:
        """Give the lists what there is to choose from."""
        self._offering, before = True, {}
        try:
            for entry, value in self.now.items():
                if entry in self.lists:
                    options = [(label, each) for each, label in self.offered(entry, before).items()]
                    control = self.lists[entry]
                    if options != list(control.options):
                        control.options = options
                    control.value = value
                    control.layout.display = None if len(options) > 1 else "none"
                    longest = max(len(label) for label, _ in options) + len(self.pickers[entry])
                    control.layout.width = f"{min(90 + 8 * longest, 450)}px"
                before[entry] = value
        finally:
            self._offering = False

    def _picked(self, entry: str, value: Any) -> None:
        if self._offering:
            return
        try:
            self.look({**self.now, entry: value})
            self.say()
        except UserError as error:
            self.offer()  # the list goes back to what is seen
            self.say(str(error))

    def say(self, line: str = "") -> None:
        """The line under the lists: what cannot be shown, as text and never as HTML."""
        self.status.value = escape(line)

    def _heard(self, values: Mapping[str, Any]) -> None:
        """What a reader moved within the picture."""
        places = list(self.choices(self.place, self.now))
        heard = {**self.now, **{entry: values[entry] for entry in self.heard}}
        known = all(heard[entry] in self.choices(entry, heard) for entry in self.heard)
        if known and 0 <= values[AT] < len(places):
            self.now = {**heard, self.place: places[values[AT]]}
        else:  # the page sent this before it had the views that are there now
            self.views.values = {AT: places.index(self.now[self.place]), **{e: self.now[e] for e in self.heard}}


def with_all(names: Collection[str]) -> dict[str, str]:
    """A column's values as choices, all of them together the first."""
    return {ALL: "all", **{name: name for name in names if name != ALL}}


def numbered(steps: Collection[int]) -> dict[int, str]:
    """Steps as choices."""
    return {step: f"{step:,}" for step in steps}


def missing(entry: str, value: Any, known: Collection) -> str:
    """Why a start value is refused."""
    if entry == "step":
        return f"step {value} was not measured; measured: {', '.join(map(str, known))}"
    return f"there is no {entry} {value!r}{did_you_mean(str(value), map(str, known))}"


def together(*explorers: Explorer) -> None:
    """Explorers whose checkpoints move together: each goes to its checkpoint nearest to where another was put."""
    following = False

    def follow(leader: Explorer) -> None:
        nonlocal following
        if following:  # it was moved by another one
            return
        following = True
        try:
            for explorer in explorers:
                places = list(explorer.choices(explorer.place, explorer.now))
                at = places.index(nearest(places, leader.now[leader.place]))
                if explorer is not leader and explorer.views.values[AT] != at:
                    explorer.views.values = {**explorer.views.values, AT: at}
        finally:
            following = False

    for explorer in explorers:
        explorer.views.observe(lambda _, explorer=explorer: follow(explorer), names="values")
    follow(explorers[0])

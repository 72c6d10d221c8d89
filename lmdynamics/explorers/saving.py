"""Saving an explorer: its pictures and data as files, its state as the text of a cell."""

from collections.abc import Collection, Mapping
from html import escape
from typing import Any

import ipywidgets as widgets

from lmdynamics.charts.show import KINDS, save
from lmdynamics.errors import UserError, did_you_mean, printable, shortened

State = dict[str, Any]  # of literals only, so that its text in a cell makes it again
FOLDER = "out"  # where a view goes unless the reader names another folder
ALL = "SVG, PNG and CSV"


class SaveRow:
    """A row under an explorer: keep what is shown as files, or show the cell that brings it back."""

    def __init__(self, explorer):
        self.explorer = explorer
        small = {"style": {"description_width": "auto"}}
        self.folder = widgets.Text(
            value=FOLDER, description="folder", continuous_update=False, layout=widgets.Layout(width="260px"), **small
        )
        self.kinds = widgets.Dropdown(
            options=[(ALL, KINDS), *((kind.upper(), (kind,)) for kind in KINDS)],
            description="as", layout=widgets.Layout(width="210px"), **small,
        )  # fmt: skip
        self.save = widgets.Button(description="save", tooltip="write the views, and the data behind them, to files")
        self.state = widgets.Button(description="state", tooltip="show a cell that brings these views back")
        for button in (self.save, self.state):
            button.layout.width = "80px"
        self.said = widgets.HTML()
        self.cell = widgets.Textarea(
            disabled=False, rows=3, layout=widgets.Layout(display="none", width="720px", height="auto")
        )
        self.save.on_click(lambda _: self._save())
        self.state.on_click(lambda _: self._show_state())
        row = [self.save, self.kinds, self.folder, self.state, self.said]
        wrap = widgets.Layout(flex_flow="wrap", align_items="center")
        self.widget = widgets.VBox([widgets.HBox(row, layout=wrap), self.cell])

    def _save(self) -> None:
        self.save.disabled = True
        self.said.value = "saving …"
        try:
            paths = save(self.explorer.stills(), self.explorer.tables(), self.folder.value, self.kinds.value)
            files = "a file" if len(paths) == 1 else f"{len(paths)} files, {paths[0].name} the first,"
            self.said.value = escape(f"saved {files} to {paths[0].parent}")
        except UserError as error:
            self.said.value = escape(str(error))
        finally:
            self.save.disabled = False

    def _show_state(self) -> None:
        self.cell.value = as_cell(self.explorer.state())
        self.cell.rows = self.cell.value.count("\n") + 2
        self.cell.layout.display = None
        self.said.value = "copy this into a cell; <code>explorer</code> is whatever yours is called"


def as_cell(state: State) -> str:
    """The text of a cell that brings a state back, on an explorer of the same runs."""
    entries = "".join(f"    {name!r}: {value!r},\n" for name, value in state.items())
    return f"explorer.restore({{\n{entries}}}).show()"


def restored(given: Mapping[str, Any], present: State) -> State:
    """A whole state from one that may lack entries: what it does not name stays as it is.

    Raises
    ------
    UserError
        If it is no dictionary, has an entry that this explorer does not, or one of another type.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"a state is a dictionary with {', '.join(present)}; found {type(given).__name__}")
    for name, value in given.items():
        if name not in present:
            raise UserError(f"a state of this explorer has no entry {_told(name)}{did_you_mean(str(name), present)}")
        wanted = type(present[name])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UserError(
                f"the state's {name} should be a {wanted.__name__}, like {present[name]!r}; it is {_told(value)}"
            )
    return {**present, **given}


def check_among(name: str, value: Any, known: Collection) -> None:
    """Refuse an entry of a state that is no longer among what there is.

    Raises
    ------
    UserError
        If it is not.
    """
    if value not in known:
        there = shortened(", ".join(map(str, known)), 160)
        raise UserError(f"the state's {name} is {_told(value)}, which is not there (any more); there are: {there}")


def _told(value: Any) -> str:
    return shortened(printable(repr(value)))

"""Saving an explorer: its pictures and data as files, its state as code for a cell."""

from collections.abc import Collection, Mapping
from html import escape
from typing import Any

import ipywidgets as widgets

from lmdynamics.charts.show import KINDS, save
from lmdynamics.errors import UserError, did_you_mean, printable, shortened

State = dict[str, Any]  # of literals only, so that a cell can contain it
FOLDER = "out"  # the default folder of saved views
ALL = "SVG, PNG and CSV"


class SaveRow:
    """A row under an explorer: save what is shown as files, or show the cell that restores it."""

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
        self.message = widgets.HTML()
        self.cell = widgets.Textarea(
            disabled=False, rows=3, layout=widgets.Layout(display="none", width="720px", height="auto")
        )
        self.save.on_click(lambda _: self._save())
        self.state.on_click(lambda _: self._show_state())
        row = [self.save, self.kinds, self.folder, self.state, self.message]
        wrap = widgets.Layout(flex_flow="wrap", align_items="center")
        self.widget = widgets.VBox([widgets.HBox(row, layout=wrap), self.cell])

    def _save(self) -> None:
        self.save.disabled = True
        self.message.value = "saving …"
        try:
            paths = save(self.explorer.stills(), self.explorer.tables(), self.folder.value, self.kinds.value)
            files = "a file" if len(paths) == 1 else f"{len(paths)} files, {paths[0].name} the first,"
            self.message.value = escape(f"saved {files} to {paths[0].parent}")
        except UserError as error:
            self.message.value = escape(str(error))
        finally:
            self.save.disabled = False

    def _show_state(self) -> None:
        self.cell.value = as_cell(self.explorer.state())
        self.cell.rows = self.cell.value.count("\n") + 2
        self.cell.layout.display = None
        self.message.value = "copy this into a cell; <code>explorer</code> is the name of your explorer"


def as_cell(state: State) -> str:
    """Code for a cell that restores a state, on an explorer of the same runs."""
    entries = "".join(f"    {name!r}: {value!r},\n" for name, value in state.items())
    return f"explorer.restore({{\n{entries}}}).show()"


def complete_state(state: Mapping[str, Any], defaults: State) -> State:
    """A complete state from one that may lack entries, which are taken from `defaults`.

    Raises
    ------
    UserError
        If it is not a dictionary, has an unknown entry, or a value of another type.
    """
    if not isinstance(state, Mapping):
        raise UserError(f"a state is a dictionary with {', '.join(defaults)}; found {type(state).__name__}")
    for name, value in state.items():
        if name not in defaults:
            raise UserError(f"a state of this explorer has no entry {_text(name)}{did_you_mean(str(name), defaults)}")
        expected = type(defaults[name])
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise UserError(
                f"the state's {name} should be a {expected.__name__}, like {defaults[name]!r}; it is {_text(value)}"
            )
    return {**defaults, **state}


def check_among(name: str, value: Any, options: Collection) -> None:
    """Check that an entry of a state is one of the options.

    Raises
    ------
    UserError
        If it is not.
    """
    if value not in options:
        listed = shortened(", ".join(map(str, options)), 160)
        raise UserError(f"the state's {name} is {_text(value)}, which does not exist (any more); known: {listed}")


def _text(value: Any) -> str:
    return shortened(printable(repr(value)))

"""What every explorer is: views of one state, which a headless run shows as they start and a page moves by itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import altair as alt
import ipywidgets as widgets
import polars as pl
from IPython.display import display

from lmdynamics import charts
from lmdynamics.charts.linked import Linked
from lmdynamics.explorers.live import show_live
from lmdynamics.html import STILL


class Explorer(ABC):
    """Charts with controls around them. The controls hold what is looked at; every view follows them."""

    widget: widgets.Widget

    @abstractmethod
    def stills(self) -> dict[str, alt.TopLevelMixin]:
        """The views as they stand, by name: what a page without controls shows."""

    @abstractmethod
    def tables(self) -> dict[str, pl.DataFrame]:
        """The tidy data behind the views as they stand, by the names of `stills`."""

    @abstractmethod
    def linked(self) -> Linked:
        """The views with the data of every place inside, for a page whose slider needs no kernel."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What is looked at as literals, for `restore`."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> Self:
        """Look again at what `state()` has told, and return the explorer; what a state does not name stays.

        Raises
        ------
        UserError
            If the state has an entry that is not known, or that there is not (any more); nothing changes then.
        """

    def show(self, output_dir: str = "", interactive: bool = True) -> None:
        """Show the explorer, or its start values as still figures (and files, if `output_dir` is given)."""
        if interactive:
            show_live(self.widget, self.stills().values())
            return
        linked = self.linked()
        for name, chart in self.stills().items():
            display(charts.show(chart, name, output_dir, interactive=False), metadata=STILL)
        display(linked)

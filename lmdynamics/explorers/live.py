"""Charts in a notebook that follow named values: moving a slider sends a number, not a new chart."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import altair as alt
import ipywidgets as widgets
from IPython.display import HTML, display

from lmdynamics.charts.show import Picture

LIVE, NOTE = "lmd-live", "lmd-note"  # classes of a widget that is shown, and of the line below its pictures
_OUTPUT, _BEFORE_NOTE = ".jp-OutputArea-child", f":has(~ .jp-OutputArea-child .{NOTE})"
_STYLE = (  # a page with the widget hides pictures and line; a page without it hides the message that it is missing
    f"{_OUTPUT}:has(.{LIVE}) ~ {_OUTPUT}:has(> .jp-RenderedImage){_BEFORE_NOTE}, "
    f"{_OUTPUT}:has(.{LIVE}) ~ {_OUTPUT}:has(.{NOTE}), "
    f"{_OUTPUT}{_BEFORE_NOTE} > .jp-OutputArea-output:not(:has(*)) {{ display: none; }}"
)
Click = Callable[[Mapping[str, Any]], None]  # told the fields of what a reader clicked on


def show_live(widget: widgets.DOMWidget, stills: Iterable[alt.TopLevelMixin]) -> None:
    """Show a widget, and below it pictures for every page that has no kernel to draw it with.

    A saved notebook holds the pictures but not the widget. JupyterLab hides them while the widget is there.
    """
    widget.add_class(LIVE)
    display(widget)
    for chart in stills:
        display(Picture(chart))
    line = "Controls need a running kernel: run this cell again."
    display(HTML(f"<style>{_STYLE}</style><p class='{NOTE}'>{line}</p>"))


class LiveChart:
    """An Altair chart as a widget, whose parameters hold what Python says they hold.

    `JupyterChart` reports a chart's own start values back to Python each time a page draws it, late echoes of a
    moving slider too; here Python's value wins, so that a reloaded page and a second view show the present state.
    Of `values`, those count that the chart has as parameters. `clicks`: what to do at a click, by how the name of the
    chart's selection begins (`charts.axes.JUMP`, `charts.heads.PICK`).
    """

    def __init__(self, chart: alt.TopLevelMixin, clicks: Mapping[str, Click] | None = None, **values: float):
        alt.JupyterChart.enable_offline()
        self.widget = alt.JupyterChart(chart, embed_options={"actions": False})
        self.values = self._own(values)
        # `_params` is what travels between page and Python; `params`, its public face, cannot be set from an observer
        self.widget.observe(lambda _: self._send(), names="_params")
        if clicks:
            self.widget.observe(lambda change: self._clicked(change["new"], clicks), names="_vl_selections")
        self._send()

    def set(self, **values: float) -> None:
        """Give parameters new values; what is drawn follows."""
        self.values |= self._own(values)
        self._send()

    def redraw(self, chart: alt.TopLevelMixin) -> None:
        """Put another chart with the same parameters in this one's place. Slower than `set`: for rare changes.

        The specification goes out unvalidated, because charts are tested and validation is most of the wait.
        """
        self.widget.spec = chart.to_dict(validate=False)

    def _own(self, values: Mapping[str, float]) -> dict[str, float]:
        own = {part["name"] for part in self.widget.spec.get("params", ()) if "select" not in part}
        return {name: float(value) for name, value in values.items() if name in own}

    def _send(self) -> None:
        wanted = {**self.widget._params, **self.values}
        if wanted != self.widget._params:
            self.widget._params = wanted

    def _clicked(self, selections: Mapping[str, Mapping], clicks: Mapping[str, Click]) -> None:
        for name, selection in selections.items():
            deed = next((deed for start, deed in clicks.items() if name.startswith(start)), None)
            clicked = selection.get("value") or {}
            fields = {field: found[0] for field, found in clicked.items() if isinstance(found, list) and found}
            if deed is not None and fields:
                # forgotten at once, or a second click on the same place would change nothing
                self.widget._vl_selections = {**selections, name: {"value": None, "store": []}}
                deed(fields)
                return


class Views:
    """The live charts of an explorer, by name: drawn anew when something is picked, sent numbers when it moves."""

    def __init__(self, clicks: Mapping[str, Click] | None = None, upright: bool = False):
        self.clicks = clicks
        self.charts: dict[str, LiveChart] = {}
        beside = widgets.Layout(flex_flow="wrap", align_items="flex-start")
        self.widget = widgets.VBox() if upright else widgets.HBox(layout=beside)

    def draw(self, charts: Mapping[str, alt.TopLevelMixin], **values: float) -> None:
        """These charts in the place of those before; those that stay by name are drawn where they are."""
        for name, chart in charts.items():
            if name in self.charts:
                self.charts[name].redraw(chart)
            else:
                self.charts[name] = LiveChart(chart, self.clicks, **values)
        self.charts = {name: self.charts[name] for name in charts}
        self.widget.children = [chart.widget for chart in self.charts.values()]
        self.set(**values)

    def redraw(self, name: str, chart: alt.TopLevelMixin, **values: float) -> None:
        """One of them, which is there."""
        self.charts[name].redraw(chart)
        self.charts[name].set(**values)

    def clear(self) -> None:
        self.widget.children = ()

    def set(self, **values: float) -> None:
        for chart in self.charts.values():
            chart.set(**values)

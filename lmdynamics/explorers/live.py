"""Views with a slider as a widget, with pictures for pages that have no kernel."""

from collections.abc import Iterable

import anywidget
import ipywidgets as widgets
import traitlets
from IPython.display import HTML, DisplayHandle, display

from lmdynamics.charts.moving import Moving, read, script
from lmdynamics.charts.show import Picture
from lmdynamics.charts.theme import Chart

LIVE, NOTE = "lmd-live", "lmd-note"  # classes of a widget that is shown, and of the line below its pictures
_OUTPUT, _BEFORE_NOTE = ".jp-OutputArea-child", f":has(~ .jp-OutputArea-child .{NOTE})"
_STYLE = (  # with the widget, a page hides pictures and line; without it, the message that it is missing
    f"{_OUTPUT}:has(.{LIVE}) ~ {_OUTPUT}:has(> .jp-RenderedImage){_BEFORE_NOTE}, "
    f"{_OUTPUT}:has(.{LIVE}) ~ {_OUTPUT}:has(.{NOTE}), "
    f"{_OUTPUT}{_BEFORE_NOTE} > .jp-OutputArea-output:not(:has(*)) {{ display: none; }}"
)
_RENDER = """
export default {
  async render({ model, el }) {
    let shown = null, turn = 0, sending = false, following = 0;
    const names = () => Object.keys(model.get("values"));
    const follow = async () => {
      if (!shown || sending) return;
      const { view } = shown, values = model.get("values");
      following++;
      for (let pass = 0; pass < 2; pass++) { // a new relation selects its best head, before the chosen one is set
        for (const [name, value] of Object.entries(values)) view.signal(name, value);
        await view.runAsync();
      }
      following--;
    };
    const send = () => queueMicrotask(() => { // when all signals of this pulse have their values
      if (following) return;
      sending = true;
      model.set("values", Object.fromEntries(names().map(name => [name, shown.view.signal(name)])));
      sending = false;
      model.save_changes();
    });
    const draw = async () => {
      const mine = ++turn, place = document.createElement("div");
      const next = await show(place, model.get("content"));
      if (mine !== turn) return next.finalize(); // replaced by a newer one
      shown?.finalize();
      shown = next;
      await follow();
      for (const name of names()) shown.view.addSignalListener(name, send);
      el.replaceChildren(place);
    };
    model.on("change:content", draw);
    model.on("change:values", follow);
    await draw();
    return () => shown?.finalize();
  },
};
"""


def show_live(widget: widgets.DOMWidget, stills: Iterable[Chart]) -> list[DisplayHandle | None]:
    """Show a widget and, below it, pictures for pages that have no kernel; returns the pictures' handles.

    A saved notebook contains the pictures but not the widget. JupyterLab hides them while the widget is shown.
    """
    widget.add_class(LIVE)
    display(widget)
    handles = [display(Picture(chart), display_id=True) for chart in stills]
    line = "Controls need a running kernel: run this cell again."
    display(HTML(f"<style>{_STYLE}</style><p class='{NOTE}'>{line}</p>"))
    return handles


class LiveViews(anywidget.AnyWidget):
    """Views with a slider on a page with a kernel. `values` has their signals by name and follows every change."""

    _css = read("moving.css")
    content = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)

    def __init__(self, moving: Moving, signals: Iterable[str]):
        super().__init__(_esm=script(_RENDER))
        self.signals = list(signals)
        self.draw(moving)

    def draw(self, moving: Moving) -> None:
        """Replace the views."""
        with self.hold_sync():
            self.values = {s["name"]: s["value"] for s in moving.signals if s["name"] in self.signals}
            self.content = moving.content()

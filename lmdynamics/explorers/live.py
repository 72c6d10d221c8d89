"""Moving views as a widget, and pictures below for every page that has no kernel to draw it with."""

from collections.abc import Iterable

import altair as alt
import anywidget
import ipywidgets as widgets
import traitlets
from IPython.display import HTML, display

from lmdynamics.charts.moving import Moving, read, script
from lmdynamics.charts.show import Picture

LIVE, NOTE = "lmd-live", "lmd-note"  # classes of a widget that is shown, and of the line below its pictures
_OUTPUT, _BEFORE_NOTE = ".jp-OutputArea-child", f":has(~ .jp-OutputArea-child .{NOTE})"
_STYLE = (  # a page with the widget hides pictures and line; a page without it hides the message that it is missing
    f"{_OUTPUT}:has(.{LIVE}) ~ {_OUTPUT}:has(> .jp-RenderedImage){_BEFORE_NOTE}, "
    f"{_OUTPUT}:has(.{LIVE}) ~ {_OUTPUT}:has(.{NOTE}), "
    f"{_OUTPUT}{_BEFORE_NOTE} > .jp-OutputArea-output:not(:has(*)) {{ display: none; }}"
)
_RENDER = """
export default {
  async render({ model, el }) {
    let shown = null, turn = 0, telling = false, following = 0;
    const names = () => Object.keys(model.get("values"));
    const follow = async () => {
      if (!shown || telling) return;
      const { view } = shown, values = model.get("values");
      following++;
      for (let pass = 0; pass < 2; pass++) { // a new relation brings its best head, before the one that is wanted
        for (const [name, value] of Object.entries(values)) view.signal(name, value);
        await view.runAsync();
      }
      following--;
    };
    const tell = () => queueMicrotask(() => { // once all signals of this pulse have their values
      if (following) return;
      telling = true;
      model.set("values", Object.fromEntries(names().map(name => [name, shown.view.signal(name)])));
      telling = false;
      model.save_changes();
    });
    const draw = async () => {
      const mine = ++turn, place = document.createElement("div");
      const next = await show(place, model.get("content"));
      if (mine !== turn) return next.finalize(); // meanwhile there is something newer
      shown?.finalize();
      shown = next;
      await follow();
      for (const name of names()) shown.view.addSignalListener(name, tell);
      el.replaceChildren(place);
    };
    model.on("change:content", draw);
    model.on("change:values", follow);
    await draw();
    return () => shown?.finalize();
  },
};
"""


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


class LiveViews(anywidget.AnyWidget):
    """Moving views on a page with a kernel. `values` holds their signals by name, whoever changes them."""

    _css = read("moving.css")
    content = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)

    def __init__(self, moving: Moving, heard: Iterable[str]):
        super().__init__(_esm=script(_RENDER))
        self.heard = list(heard)
        self.draw(moving)

    def draw(self, moving: Moving) -> None:
        """Other views in the place of those before."""
        with self.hold_sync():
            self.values = {each["name"]: each["value"] for each in moving.signals if each["name"] in self.heard}
            self.content = moving.content()

"""Views that one slider moves, without a kernel: a chart, the Vega signals that a reader sets, and a text per place.

The same object is a still picture, the content of a widget, and, as an output of type
`application/vnd.lmdynamics.moving+json`, a part of a static page; `moving.js` shows it in both.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from lmdynamics import files
from lmdynamics.charts.axes import AT, Cursor
from lmdynamics.charts.theme import specification
from lmdynamics.html import MOVING
from lmdynamics.paths import cache_dir, writable

DIGITS = 4  # of a number in a picture: a pixel is a thousandth of it
TICK = 400  # milliseconds from one place to the next while it plays
_ON_A_PLACE = "event.item && event.item.datum && isValid(event.item.datum.i)"  # a click elsewhere changes nothing
_POINTER = [
    {"source": "view", "type": "pointerdown", "filter": [_ON_A_PLACE]},
    {"source": "view", "type": "pointermove", "filter": [_ON_A_PLACE, "event.buttons == 1"]},
]
Signal = dict[str, Any]  # in Vega's own words; Vega-Lite cannot say what changes a parameter that has a control


@dataclass(frozen=True)
class Place:
    """One place of a slider: its name, what is seen there, in words, and HTML below (escaped by whoever made it)."""

    name: str
    said: str = ""
    under: str = ""


@dataclass(frozen=True)
class Moving:
    """A chart that carries the data of every place and follows its signals; the first of them is the slider's."""

    chart: alt.TopLevelMixin
    signals: Sequence[Signal]
    places: Sequence[Place]

    def still(self) -> alt.TopLevelMixin:
        """The chart as it stands at the signals' values."""
        fixed = [alt.param(name=signal["name"], value=signal["value"]) for signal in self.signals]
        return with_parameters(self.chart, fixed)

    def content(self) -> dict[str, Any]:
        """All that `moving.js` needs, as plain JSON: rows of data as columns, numbers to four digits."""
        spec = compact(specification(self.chart, validate=False))
        # first, so that parameters computed from them find them
        patch = [{"op": "add", "path": "/signals/0", "value": signal} for signal in reversed(self.signals)]
        spec["usermeta"] = {"embedOptions": {"actions": False, "renderer": "svg", "mode": "vega-lite", "patch": patch}}
        return {"spec": spec, "places": [asdict(place) for place in self.places]}

    def _repr_mimebundle_(self, include=None, exclude=None):
        told = f"The same views with a slider over {len(self.places)} places are on this notebook's HTML page."
        return {MOVING: self.content(), "text/plain": told}


def slider(label: str, count: int, start: int) -> list[Signal]:
    """A slider over numbered places, moved by arrow keys, clicks and drags on `axes.strips`, and by a box to play it.

    Playing starts anew from the last place, and ends there.
    """
    last, clock = count - 1, {"type": "timer", "throttle": TICK}
    moves = [
        {"events": _POINTER, "update": "datum.i"},
        {"events": clock, "update": f"play ? ({AT} < {last} ? {AT} + 1 : 0) : {AT}"},
    ]
    bind = {"input": "range", "min": 0, "max": last, "step": 1, "name": f"{label} "}
    ends = {"events": clock, "update": f"play && {AT} < {last}"}  # of the same tick, and after it
    return [
        {"name": AT, "value": start, "bind": bind, "on": moves},
        {"name": "play", "value": False, "bind": {"input": "checkbox", "name": "play "}, "on": [ends]},
    ]


def picker(name: str, label: str, options: Sequence, value: Any, *on: Mapping[str, Any]) -> Signal:
    """A list to choose from; `on`: what else changes the choice, as Vega's event handlers."""
    bind = {"input": "select", "options": list(options), "name": f"{label} "}
    return {"name": name, "value": value, "bind": bind, "on": list(on)}


def moved(
    chart: alt.TopLevelMixin,
    cursor: Cursor,
    start: float,
    places: Sequence[Place],
    *signals: Signal,
    label="checkpoint",
) -> Moving:
    """A chart whose marks follow a cursor, with a slider over its places, and further signals."""
    found = [*slider(label, len(places), cursor.place(start)), *signals]
    return Moving(with_parameters(chart, cursor.parameters), found, places)


def with_parameters(chart: alt.TopLevelMixin, parameters: Sequence[alt.Parameter]) -> alt.TopLevelMixin:
    """The chart with more parameters; Altair's `add_params` copies all that is in it first, which takes seconds."""
    chart = chart.copy(deep=False)
    known = [] if chart.params is alt.Undefined else chart.params
    chart.params = [*known, *(parameter.param for parameter in parameters)]
    return chart


def beside(*views: alt.TopLevelMixin) -> alt.HConcatChart:
    """Figures side by side, each with its own title and legend, as one."""
    return _together(alt.hconcat, views, 24)


def above(*views: alt.TopLevelMixin) -> alt.VConcatChart:
    """Figures, or rows of them, one above the other, as one."""
    return _together(alt.vconcat, views, 10)


def _together(concat, views: Sequence[alt.TopLevelMixin], spacing: int):
    parts = [view.copy(deep=False) for view in views]
    for part in parts:
        part.config, part.description = alt.Undefined, alt.Undefined  # which only a whole chart has
    chart = concat(*parts, spacing=spacing).resolve_scale(color="independent", strokeDash="independent")
    chart.config = views[0].config  # all figures have the same theme
    chart.description = " ".join(str(view.description) for view in views)
    return chart


def over_places(frame: pl.DataFrame, keys: Sequence[str], values: Sequence[str], steps: Sequence[int]) -> pl.DataFrame:
    """One row per mark, each of `values` an array `NAME_at` over `steps`: a chart then looks up and filters no rows.

    `frame`: step, `keys` (which mark), `values`. A mark without a row at a step has null there.
    """
    every = frame.select(keys).unique(maintain_order=True).join(pl.DataFrame({"step": list(steps)}), how="cross")
    filled = every.join(frame, on=[*keys, "step"], how="left", maintain_order="left")
    return filled.group_by(keys, maintain_order=True).agg(pl.col(name).alias(f"{name}_at") for name in values)


def compact(spec: Mapping) -> dict:
    """A specification whose datasets are columns, `{"a": [1, 2]}`, where they were rows, and numbers are short."""
    datasets = {name: _columns(rows) for name, rows in spec.get("datasets", {}).items()}
    return {**spec, "datasets": datasets}


def _columns(rows: Sequence[Mapping]) -> dict[str, list]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_short(row.get(name)) for row in rows] for name in names}


def _short(value):
    """A number to four digits; whole numbers stay whole, because steps are compared."""
    if isinstance(value, list):
        return [_short(each) for each in value]
    if not isinstance(value, float) or value == 0:
        return value
    if not math.isfinite(value):  # which JSON cannot say
        return None
    if value.is_integer():
        return int(value)
    return round(value, max(0, DIGITS - 1 - math.floor(math.log10(abs(value)))))


def script(tail: str) -> str:
    """Vega, `moving.js` and some lines that call it, as one JavaScript module; made once, for that takes seconds."""
    own = read("moving.js") + tail
    made_of = [own, *(metadata.version(name) for name in ("altair", "vl-convert-python"))]
    bundle = writable(cache_dir() / "pages") / f"{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]}.js"
    if not bundle.exists():
        import vl_convert

        version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
        with files.atomic_file(bundle) as temporary:
            temporary.write_text(vl_convert.javascript_bundle(own, vl_version=version), "utf-8")
    return bundle.read_text("utf-8")


def read(name: str) -> str:
    """One of the files beside this module."""
    return Path(__file__).with_name(name).read_text("utf-8")

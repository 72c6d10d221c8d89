"""Charts that a slider controls without a kernel: a chart, the Vega signals that a reader sets, a text per place.

The same object is a still picture, the content of a widget, and, as an output of type
`application/vnd.lmdynamics.moving+json`, a part of a static page; `moving.js` shows it in both.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from lmdynamics import files
from lmdynamics.charts.axes import SLIDER, Cursor
from lmdynamics.charts.theme import Chart, specification
from lmdynamics.html import MOVING
from lmdynamics.paths import cache_dir, writable

DIGITS = 4  # significant digits of the numbers in a picture, which is about a thousand pixels wide
TICK = 400  # milliseconds per place while the slider plays
_HAS_PLACE = "event.item && event.item.datum && isValid(event.item.datum.i)"  # a click elsewhere changes nothing
_POINTER = [
    {"source": "view", "type": "pointerdown", "filter": [_HAS_PLACE]},
    {"source": "view", "type": "pointermove", "filter": [_HAS_PLACE, "event.buttons == 1"]},
]
Signal = dict[str, Any]  # as in Vega; in Vega-Lite, a parameter with a control cannot have event handlers


@dataclass(frozen=True)
class Place:
    """One place of a slider: its name, a text that describes it, and details as HTML (already escaped)."""

    name: str
    text: str = ""
    details: str = ""


@dataclass(frozen=True)
class VegaLite:
    """A finished chart as Vega-Lite. `charts.show` and `charts.save` accept it like a chart of Altair."""

    spec: Mapping[str, Any] = field(repr=False)

    @property
    def description(self) -> str:
        """The text for screen readers."""
        return self.spec["description"]

    def to_dict(self, **_) -> dict[str, Any]:
        """The specification; Altair's options change nothing."""
        return dict(self.spec)


@dataclass(frozen=True)
class Moving:
    """A chart with the data of every place; it follows the signals, and the first of these is the slider's."""

    chart: VegaLite
    signals: Sequence[Signal]
    places: Sequence[Place]

    def still(self) -> VegaLite:
        """The chart at the signals' values."""
        fixed = [alt.param(name=signal["name"], value=signal["value"]) for signal in self.signals]
        return with_parameters(self.chart, fixed)

    def content(self) -> dict[str, Any]:
        """All that `moving.js` needs, as plain JSON: rows of data as columns, numbers to four digits."""
        spec = compact(self.chart.spec)
        # first, because other parameters are computed from them
        patch = [{"op": "add", "path": "/signals/0", "value": signal} for signal in reversed(self.signals)]
        spec["usermeta"] = {"embedOptions": {"actions": False, "renderer": "svg", "mode": "vega-lite", "patch": patch}}
        places = [{"name": place.name, "said": place.text, "under": place.details} for place in self.places]
        return {"spec": spec, "places": places}

    def _repr_mimebundle_(self, include=None, exclude=None):
        text = f"The same views with a slider over {len(self.places)} places are on this notebook's HTML page."
        return {MOVING: self.content(), "text/plain": text}


def slider(label: str, count: int, start: int) -> list[Signal]:
    """A slider over numbered places, moved by arrow keys, clicks and drags on `axes.strips`, and a checkbox "play".

    Playing stops at the last place; if started there, it begins at the first.
    """
    last, clock = count - 1, {"type": "timer", "throttle": TICK}
    moves = [
        {"events": _POINTER, "update": "datum.i"},
        {"events": clock, "update": f"play ? ({SLIDER} < {last} ? {SLIDER} + 1 : 0) : {SLIDER}"},
    ]
    bind = {"input": "range", "min": 0, "max": last, "step": 1, "name": f"{label} "}
    stop = {"events": clock, "update": f"play && {SLIDER} < {last}"}  # after the move of the same tick
    return [
        {"name": SLIDER, "value": start, "bind": bind, "on": moves},
        {"name": "play", "value": False, "bind": {"input": "checkbox", "name": "play "}, "on": [stop]},
    ]


def picker(name: str, label: str, options: Sequence, value: Any, *handlers: Mapping[str, Any]) -> Signal:
    """A drop-down list; `handlers`: Vega event handlers that also change the choice."""
    bind = {"input": "select", "options": list(options), "name": f"{label} "}
    return {"name": name, "value": value, "bind": bind, "on": list(handlers)}


def with_slider(
    chart: Chart,
    cursor: Cursor,
    start: float,
    places: Sequence[Place],
    *signals: Signal,
    label="checkpoint",
) -> Moving:
    """A chart whose marks follow a cursor, with a slider over its places, and further signals."""
    all_signals = [*slider(label, len(places), cursor.place(start)), *signals]
    return Moving(with_parameters(chart, cursor.parameters), all_signals, places)


def with_parameters(chart: Chart, parameters: Sequence[alt.Parameter]) -> VegaLite:
    """The chart with more parameters."""
    spec = specification(chart, validate=False)
    return VegaLite({**spec, "params": [*spec.get("params", []), *(each.param.to_dict() for each in parameters)]})


def in_row(*views: Chart) -> VegaLite:
    """One chart of figures side by side, each with its own title and legend."""
    return _join("hconcat", views, 24)


def in_column(*views: Chart) -> VegaLite:
    """One chart of figures, or rows of figures, one above the other."""
    return _join("vconcat", views, 10)


def _join(direction: str, views: Sequence[Chart], spacing: int) -> VegaLite:
    """Figures as one; Altair's own functions copy every part of them several times, which takes most of a second."""
    parts = [dict(specification(view, validate=False)) for view in views]
    joined = {name: parts[0][name] for name in ("$schema", "config")}  # all figures have the same theme
    datasets, params = {}, []
    for part in parts:  # these are allowed only in a top-level chart
        datasets |= part.pop("datasets", {})
        params += [param for param in part.pop("params", []) if param not in params]  # the same in several figures
        del part["$schema"], part["config"]
    joined |= {"description": " ".join(part.pop("description") for part in parts), "datasets": datasets}
    if len({param["name"] for param in params}) < len(params):
        raise ValueError("two figures have a parameter of the same name with different values")
    resolve = {"scale": {"color": "independent", "strokeDash": "independent"}}
    return VegaLite(joined | {"params": params, "resolve": resolve, "spacing": spacing, direction: parts})


def by_place(frame: pl.DataFrame, keys: Sequence[str], values: Sequence[str], steps: Sequence[int]) -> pl.DataFrame:
    """One row per mark, with each of `values` as an array `NAME_at` over `steps`: charts need not filter rows by step.

    `frame`: step, `keys` (identify a mark), `values`. A mark without a row at a step has null there.
    """
    combinations = frame.select(keys).unique(maintain_order=True).join(pl.DataFrame({"step": list(steps)}), how="cross")
    complete = combinations.join(frame, on=[*keys, "step"], how="left", maintain_order="left")
    return complete.group_by(keys, maintain_order=True).agg(pl.col(name).alias(f"{name}_at") for name in values)


def compact(spec: Mapping) -> dict:
    """The specification with datasets as columns, `{"a": [1, 2]}`, instead of rows, and with short numbers."""
    datasets = {name: _columns(rows) for name, rows in spec.get("datasets", {}).items()}
    return {**spec, "datasets": datasets}


def _columns(rows: Sequence[Mapping]) -> dict[str, list]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [short(row.get(name)) for row in rows] for name in names}


def short(value):
    """A number to four digits; integers stay exact, because steps are compared."""
    if isinstance(value, list):
        return [short(item) for item in value]
    if not isinstance(value, float) or value == 0:
        return value
    if not math.isfinite(value):  # not allowed in JSON
        return None
    if value.is_integer():
        return int(value)
    return round(value, max(0, DIGITS - 1 - math.floor(math.log10(abs(value)))))


def script(tail: str) -> str:
    """Vega, `moving.js` and `tail`, the code that calls it, as one JavaScript module; cached, as it takes seconds."""
    code = read("moving.js") + tail
    ingredients = [code, *(metadata.version(name) for name in ("altair", "vl-convert-python"))]
    bundle = writable(cache_dir() / "pages") / f"{hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:16]}.js"
    if not bundle.exists():
        import vl_convert

        version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
        with files.atomic_file(bundle) as temporary:
            temporary.write_text(vl_convert.javascript_bundle(code, vl_version=version), "utf-8")
    return bundle.read_text("utf-8")


def read(name: str) -> str:
    """The text of a file in this module's folder."""
    return Path(__file__).with_name(name).read_text("utf-8")

"""Views with one slider over them that need no kernel: what a page on disk moves by itself.

A headless run keeps them beside its still pictures, as an output of type `application/vnd.lmdynamics.linked+json`;
whoever makes a page of the notebook puts Vega and a slider around them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import altair as alt

from lmdynamics.html import LINKED

DIGITS = 4  # of a number in a picture: a pixel is a thousandth of it


@dataclass(frozen=True)
class Place:
    """One place of a slider: what it is called, the parameters' values there, and what is seen there, in words.

    `at`: where it lies on a chart's step axis, for a click to find it. `under`: HTML below the charts, escaped by
    whoever made it.
    """

    name: str
    values: Mapping[str, float]
    said: str = ""
    at: float | None = None
    under: str = ""


@dataclass(frozen=True)
class Linked:
    """Some views and a slider: the charts carry the data of every place and follow their parameters.

    `label` says what the slider moves ("checkpoint"), `start` is the place where it stands at first.
    """

    label: str
    places: Sequence[Place]
    start: int
    views: Mapping[str, alt.TopLevelMixin]

    def content(self) -> dict:
        """Everything as plain JSON; rows of data as columns, numbers to four digits."""
        places = [{**asdict(place), "values": dict(place.values)} for place in self.places]
        views = [{"name": name, "spec": compact(chart.to_dict())} for name, chart in self.views.items()]
        return {"label": self.label, "start": self.start, "places": places, "views": views}

    def _repr_mimebundle_(self, include=None, exclude=None):
        told = f"The same views with a slider over {len(self.places)} places are on this notebook's HTML page."
        return {LINKED: self.content(), "text/plain": told}


def compact(spec: Mapping) -> dict:
    """A specification whose datasets are columns, `{"a": [1, 2]}`, where they were rows, and numbers are short."""
    datasets = {name: _columns(rows) for name, rows in spec.get("datasets", {}).items()}
    return {**spec, "datasets": datasets}


def _columns(rows: Sequence[Mapping]) -> dict[str, list]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_short(row.get(name)) for row in rows] for name in names}


def _short(value):
    """A number to four digits; whole numbers stay whole, because steps are compared."""
    if not isinstance(value, float) or not math.isfinite(value) or value == 0:
        return value
    if value.is_integer():
        return int(value)
    return round(value, max(0, DIGITS - 1 - math.floor(math.log10(abs(value)))))

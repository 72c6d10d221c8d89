"""The step axis of every figure over training, with its marks: onsets and the selected checkpoint."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import altair as alt
import polars as pl

from lmdynamics.analysis.onsets import Onset
from lmdynamics.charts.text import Value
from lmdynamics.charts.theme import ONSETS, TEXT, VERMILION

STEP_ZERO = 0.5  # position of step 0 on a logarithmic axis
SLIDER = "at"  # the Vega signal with the index of the slider's place


def log_ticks(low: float, high: float, max_ticks: int = 7) -> list[float]:
    """Round numbers between `low` and `high`, well separated on a logarithmic axis: 3, 4, 5, 6, 8, 10."""
    if high / low <= 2:  # evenly spaced, as on a linear axis
        size = 10.0 ** math.floor(math.log10(high - low))
        spacing = next(value for m in (0.1, 0.2, 0.5, 1, 2, 5, 10) if (high - low) / (value := m * size) <= max_ticks)
        ticks = [float(f"{i * spacing:.6g}") for i in range(int(low / spacing), int(high / spacing) + 2)]
        return [tick for tick in ticks if low <= tick <= high]
    ticks, min_distance = [], 0.75 * math.log(high / low) / max_ticks
    for tick in (m * 10.0**e for e in range(-6, 13) for m in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        if low <= tick <= high and (not ticks or math.log(tick / ticks[-1]) > min_distance):
            ticks.append(float(f"{tick:.6g}"))
    return ticks


def step_ticks(steps: Iterable[int], sparse: bool = False) -> list[float]:
    """Ticks 1, 3, 10, 30 … (`sparse`: powers of ten), and the position of step 0 if it is among the steps.

    If fewer than two of these are within the steps, the ticks are round numbers: 4,000, 5,000, 6,000 …
    """
    steps = sorted(set(steps))
    last = max(steps, default=1)
    ticks = [float(m * 10**e) for e in range(12) for m in ((1,) if sparse else (1, 3)) if m * 10**e <= last * 1.001]
    first = steps[1] if len(steps) > 1 and steps[0] == 0 else (steps[0] if steps else 0)
    ticks = [tick for tick in ticks if tick >= first * 0.999]
    if len(ticks) < 2 and first > 0:
        between = log_ticks(first, last, 3 if sparse else 6) if last > first else []
        ticks = [tick for tick in between if tick.is_integer()] or [float(first)]
    return [STEP_ZERO, *ticks] if 0 in steps else ticks


def step_axis(steps: Iterable[int], title: str | None = "training step (log scale)", sparse: bool = False) -> alt.X:
    """The logarithmic step axis over a field `x`: the step, or `STEP_ZERO` for step 0."""
    steps = sorted(set(steps)) or [0, 1]
    low, high = max(steps[0], STEP_ZERO), max(steps[-1], 1)
    return (
        alt.X("x:Q", title=title)
        .scale(type="log", domain=[low * 0.9, high * 1.08], nice=False)
        .axis(
            values=step_ticks(steps, sparse),
            labelExpr="datum.value < 1 ? '0' : format(datum.value, '~s')",
            grid=False,
        )
    )


def same_axis(axis: alt.X | alt.Y, column: str) -> alt.X | alt.Y:
    """Another column on the same axis, with its scale and title."""
    copy = axis.copy()
    copy["shorthand"] = f"{column}:Q"
    return copy


def on_step_axis(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame sorted by step, with `x`: the position of each step on `step_axis`."""
    return frame.with_columns(x=pl.col("step").cast(pl.Float64).clip(STEP_ZERO)).sort("step")


def steps_of(*frames: pl.DataFrame) -> list[int]:
    """All steps that occur in the frames, in order."""
    return sorted({step for frame in frames if frame is not None for step in frame["step"].to_list()})


def onset_bands(onsets: Sequence[Onset], axis: alt.X, labels: bool = True) -> list[alt.Chart]:
    """Layers behind curves: an onset's interval as a band, its step as a line, its name above.

    An onset without a step has no layers.
    """
    layers = []
    dated = sorted((onset for onset in onsets if onset.step is not None), key=lambda onset: onset.step)
    places = [_along(_place(onset.step), axis) for onset in dated[:2]]
    close = len(places) == 2 and places[1] - places[0] < 0.03  # then the second label is above the first
    for index, onset in enumerate(dated):
        colour = ONSETS.get(onset.name, VERMILION)
        positions = {"x": _place(onset.step), **onset_ends(onset)}
        base = alt.Chart(alt.Data(values=[{**positions, "label": f"{onset.name} {onset.step:,}"}]))
        band = base.mark_rect(color=colour, opacity=0.18)
        layers += [
            band.encode(same_axis(axis, "from"), alt.X2("to:Q"), y=alt.value(0), y2=alt.value("height")),
            base.mark_rule(color=colour, strokeWidth=1.5, tooltip=str(onset)).encode(axis),
        ]
        if labels:  # above the frame; the first label ends at its line, later ones start at theirs
            first_of_many = index == 0 and len(dated) > 1
            leftward = first_of_many or (len(dated) == 1 and _along(positions["x"], axis) > 0.7)
            outward = {"align": "right", "dx": 4} if leftward else {"align": "left", "dx": -4}
            text = base.mark_text(color=TEXT, baseline="bottom", dy=-3, fontWeight="bold", **outward)
            layers.append(text.encode(axis, alt.Text("label:N"), y=alt.value(-13 * max(0, index - 1 + close))))
    return layers


def onset_ends(onset: Onset) -> dict[str, float]:
    """Start and end of an onset's band."""
    bounds = {"from": onset.low, "to": onset.high}
    return {name: _place(onset.step if step is None else step) for name, step in bounds.items()}


def _place(step: int) -> float:
    return max(float(step), STEP_ZERO)


def _along(place: float, axis: alt.X) -> float:
    """Relative position on the axis, from 0 to 1."""
    low, high = (math.log(end) for end in axis.to_dict()["scale"]["domain"])
    return (math.log(place) - low) / (high - low)


def undated(onsets: Sequence[Onset]) -> list[str]:
    """Caption texts for onsets without a step, which have no band."""
    return [str(onset) for onset in onsets if onset.step is None]


def onset_sentences(onsets: Sequence[Onset]) -> str:
    """Each onset as a sentence, for screen readers."""
    return " ".join(f"{text[:1].upper()}{text[1:]}." for text in map(str, onsets))


@dataclass(frozen=True)
class Cursor:
    """The selected step: a slider's places, and the chart parameter that holds the step."""

    steps: Sequence[float]
    name: str = "cursor_step"

    @property
    def parameters(self) -> list[alt.Parameter]:
        """The steps of all places, and the step at the slider's place."""
        places = alt.param(name="cursor_steps", value=list(self.steps))
        return [places, alt.param(name=self.name, expr=f"cursor_steps[{SLIDER}]")]

    @property
    def number(self) -> Value:
        """The step, for a title."""
        return Value(f"format({self.name}, ',d')")

    def place(self, step: float) -> int:
        """Index of the place nearest to a step."""
        return list(self.steps).index(nearest(self.steps, step))


def nearest(steps: Iterable[float], step: float) -> float:
    """The step nearest to another, on a logarithmic axis."""
    target = math.log(max(step, STEP_ZERO))
    return min(steps, key=lambda candidate: abs(math.log(max(candidate, STEP_ZERO)) - target))


def step_line(place: Cursor | int, x: alt.X) -> alt.Chart:
    """A vertical line at a step, or at the cursor's step."""
    return _at(place).mark_rule(color=TEXT, strokeWidth=2).encode(x)


def step_number(place: Cursor | int, x: alt.X) -> alt.Chart:
    """The step itself, above the line."""
    text = _at(place).mark_text(color=TEXT, fontWeight="bold", baseline="bottom", dy=-3)
    return text.encode(x, alt.Text("step:Q", format=",d"), y=alt.value(0))


def _at(place: Cursor | int) -> alt.Chart:
    step = place.name if isinstance(place, Cursor) else str(place)
    data = alt.Chart(alt.Data(values=[{}]))
    return data.transform_calculate(x=f"max({step}, {STEP_ZERO})", step=step)


def strips(frame: pl.DataFrame, x: alt.X, cursor: Cursor, tips: Sequence[alt.Tooltip] = ()) -> alt.Chart:
    """Invisible strips over a whole panel: hovering shows the nearest step's tooltip, a click moves the cursor there.

    `frame`: x (from `on_step_axis`), step, and the columns of `tips`; one row per step. Must be a panel's top layer.
    Each step's strip ends halfway to its neighbours on the logarithmic axis.
    """
    positions, ends = frame["x"].unique().sort().to_list(), x.to_dict()["scale"]["domain"]
    edges = [ends[0], *(math.sqrt(left * right) for left, right in pairwise(positions)), ends[1]]
    reach = pl.DataFrame({"x": positions, "from": edges[:-1], "to": edges[1:]}, schema_overrides={"x": pl.Float64})
    places = pl.Series([cursor.place(step) for step in frame["step"]], dtype=pl.Int64)
    rows = frame.with_columns(i=places).join(reach, on="x", how="left", maintain_order="left")
    base = alt.Chart(rows).mark_rect(opacity=0, cursor="pointer")
    tooltips = [alt.Tooltip("step:Q", format=",d"), *tips]
    return base.encode(same_axis(x, "from"), alt.X2("to:Q"), y=alt.value(0), y2=alt.value("height"), tooltip=tooltips)


def by_step(rows: pl.DataFrame, name: str, value: str, style: str) -> tuple[pl.DataFrame, list[alt.Tooltip]]:
    """For `strips`: rows with x, step, a name and a value as one row per step, and a tooltip for each name."""
    names = rows[name].unique(maintain_order=True).to_list()
    columns = {f"value_{i}": pl.col(value).filter(pl.col(name) == label).first() for i, label in enumerate(names)}
    wide = rows.group_by("step", maintain_order=True).agg(pl.col("x").first(), **columns)
    return wide, [
        alt.Tooltip(f"{column}:Q", title=str(label), format=style) for column, label in zip(columns, names, strict=True)
    ]

"""Gradient dissent: the attractive and the repulsive part of the gradient at the last hidden state, by token group.

With p = softmax(U h) and the true token 1: ∇h⁺ = (p_1 − 1) U_1 (attractive), ∇h⁻ = Σ_{j≠1} p_j U_j (repulsive), and a
step goes against their sum. Dissent is cos(∇h⁺, ∇h⁻); at −1 the two cancel. The plane of cos(h, ∇h⁺) and cos(h, ∇h⁻)
shows where both point, seen from the hidden state h; its axes have no unit, so models of all sizes share it. Mircea,
Lobacheva & Rish 2024; the numbers are those of `analysis.gradients`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from textwrap import wrap

import altair as alt
import polars as pl

from lmdynamics.charts.axes import Cursor, by_step, on_step_axis, step_axis, steps_of
from lmdynamics.charts.conditions import names_of
from lmdynamics.charts.encodings import STEP_TIP, head, measured_step, need_rows, numbers, zero_line
from lmdynamics.charts.lines import Line, colour_by, levels, log_axis, panel
from lmdynamics.charts.text import Value, text_width
from lmdynamics.charts.theme import GREY, TEXT, WIDTH, figure, ramp

DISSENT = Line(
    "dissent",
    ["dissent (cosine of", "attraction and repulsion)"],
    "group",
    style="+.3f",
    points=20,
    shade=0.18,
    columns=5,
)
CONTROL = Line("dissent_control", series="group", band=None, style="+.3f", dashes=[2, 3], width=1.4)
NORMS = {  # a column: (axis, what it is called)
    "norm_hidden": (["norm of the", "hidden state (log)"], "h"),
    "norm_attractive": (["norm of the", "attraction (log)"], "attraction"),
    "norm_repulsive": (["norm of the", "repulsion (log)"], "repulsion"),
}
PLANE = ("cos_hidden_attractive", "cos_hidden_repulsive")
QUADRANTS = {  # (side, height): what a step along minus the gradient does to ‖h‖
    (-1, 1): ["attraction lengthens h,", "repulsion shortens it"],
    (1, 1): ["both shorten h"],
    (-1, -1): ["both lengthen h"],
    (1, -1): ["attraction shortens h,", "repulsion lengthens it"],
}
X_TITLE, Y_TITLE = ["cosine of h and the", "attractive gradient"], ["cosine of h and the", "repulsive gradient"]
ACROSS = 860  # pixels: all panels of a row


def dissent_over_training(
    table: pl.DataFrame,
    *,
    published: Mapping[str, float] | None = None,
    cursor: Cursor | None = None,
    groups: Sequence[str] | None = None,
) -> alt.TopLevelMixin:
    """cos(∇h⁺, ∇h⁻) against step, a line per group of tokens with its 95 % band, a panel per curve.

    `table`: step, group, dissent and its interval, as `analysis.gradients.dissent_by_group` makes it, perhaps `curve`;
    groups stand in its order, as from rare to frequent. A column `dissent_control` is drawn dotted. `published`:
    readings to compare with, by name, as faint lines. `cursor`: a parameter that holds a step, marked by an upright
    line. `groups`: all there are, so that each keeps its colour where others are left out.
    """
    rows = _bounded(_grouped(table, ["dissent"], "dissent over training"))
    curves, colours, steps = names_of(rows, "curve"), _group_colours(rows, groups), steps_of(rows)
    control = CONTROL.value in rows.columns
    top = max(0.0, *(rows[name].max() or 0.0 for name in ("dissent", "high", *[CONTROL.value] * control)))
    look = {
        "colours": colours,
        "scale": {"domain": [-1, min(1.0, top + 0.05)], "nice": False},
        "axis": {"tickCount": 6},
    }
    panels = []
    for index, curve in enumerate(curves):
        data = rows.filter(pl.col("curve") == curve).with_columns(pl.col("low", "high").clip(-1, 1))
        x = step_axis(steps, sparse=len(curves) > 2)
        titled = index % 2 == 0 and (cursor is None or index == 0)
        line = replace(DISSENT, title=DISSENT.title if titled else None, **look)
        labels = index == len(curves) - 1 or (cursor is None and index % 2 == 1)  # at the end of a row
        layers = levels(published or {}, line.y, right=True, labels=labels, dash=[2, 4], apart=0.1)
        layers += line.layers(data, x)
        if control and len(other := data.filter(pl.col(CONTROL.value).is_finite())):
            dotted = replace(CONTROL, title=line.title, columns=5, **look)
            layers += dotted.layers(other, x)
        here = by_step(data, "group", "dissent", "+.3f") if cursor is not None else None
        size = _size(len(curves), 300, 260) if cursor is None else _beside(len(curves), published or ())
        panels.append(_of_curve(panel(layers, x, at=cursor, here=here, **size), curve if len(curves) > 1 else ""))
    caption = [
        "bands: 95 % over rows of text" if rows["low"].is_not_null().any() else "",
        "dotted: attraction with the repulsion at another position" if control else "",
        "grey: published, read off a poster (approximate)" if published else "",
    ]
    return figure(
        _in_rows(panels, cursor),
        _found(rows),
        [caption],
        "Dissent between attraction and repulsion over training. " + " ".join(_spoken(rows, "dissent")),
    )


def norms_over_training(table: pl.DataFrame) -> alt.ConcatChart:
    """The mean norms of the hidden state, the attraction and the repulsion, a line per group, a column per curve.

    `table`: step, group, norm_hidden, norm_attractive, norm_repulsive, perhaps `curve`. Logarithmic; a norm of 0 has no
    place.
    """
    rows = _grouped(table, list(NORMS), "norms over training")
    curves, colours, steps = names_of(rows, "curve"), _group_colours(rows, None), steps_of(rows)
    panels, many = [], len(curves) > 1
    for name, (title, _) in NORMS.items():
        data = rows.filter(pl.col(name) > 0)
        first, last = name == next(iter(NORMS)), name == list(NORMS)[-1]
        ends = [data[name].min() / 1.15, data[name].max() * 1.15] if len(data) else [0.1, 1.0]
        line = Line(name, title, "group", colours, band=None, style=".3~g", points=16, **log_axis(*ends, 4))
        for curve in curves:
            x = step_axis(steps, "training step (log scale)" if last else None, sparse=len(curves) > 2)
            leftmost = curve == curves[0]
            look = {"title": title if leftmost else None, "columns": 2 if many else 5}
            line = replace(line, legend=None if last and leftmost else False, **look)
            layers = line.layers(data.filter(pl.col("curve") == curve), x)
            size = _size(len(curves), 300 if len(curves) < 3 else 150, 110)
            panels.append(_of_curve(panel(layers, x, **size), curve if first and many else ""))
    moved = []
    for name, (_, symbol) in NORMS.items():
        ends = rows.group_by("step").agg(pl.col(name).mean()).sort("step")[name]
        moved.append(f"{symbol} {ends[0]:.2g} → {ends[-1]:.2g}")
    chart = alt.concat(*panels, columns=len(curves), spacing=10).resolve_scale(color="independent")
    return figure(
        chart,
        f"Norms over training, mean over groups: {', '.join(moved)}",
        "means over tokens",
        "Norms of the hidden state and of both parts of its gradient over training. "
        + " ".join(text for name in NORMS for text in _spoken(rows, name)),
    )


def dissent_plane(
    table: pl.DataFrame,
    step: int | None = None,
    *,
    cursor: Cursor | None = None,
    groups: Sequence[str] | None = None,
) -> alt.TopLevelMixin:
    """Where the hidden state points: cos(h, ∇h⁺) along, cos(h, ∇h⁻) up, a trajectory per group, a panel per curve.

    `table`: step, group, cos_hidden_attractive, cos_hidden_repulsive (no unit), perhaps `curve`. A larger dot stands at
    `step` (default: the last), or at the cursor's.
    `groups`: as for `dissent_over_training`.
    """
    what = "dissent plane"
    rows = _grouped(table, list(PLANE), what)
    curves, colours, steps = names_of(rows, "curve"), _group_colours(rows, groups), steps_of(rows)
    step = measured_step(step, steps, what)
    here = str(step) if cursor is None else cursor.name
    most = min(1.3, 1.35 * max(0.1, *(rows[name].abs().max() for name in PLANE)))
    scale = alt.Scale(domain=[-most, most], nice=False)
    some = [tick for tick in (-1, -0.5, 0, 0.5, 1) if abs(tick) <= most] if most > 0.6 else None
    ticks = alt.Axis(tickCount=5, grid=False, format="~g", **({"values": some} if some else {}))
    x = alt.X(f"{PLANE[0]}:Q", title=X_TITLE, scale=scale, axis=ticks)
    if cursor is None:
        size = _size(len(curves), 330, 330 if len(curves) > 1 else 380)
    else:
        size = dict.fromkeys(("width", "height"), min(_beside(len(curves))["width"], 240 if len(curves) <= 2 else 135))
    key = None if cursor is None or len(curves) <= 2 else False  # the other figure, below this one, has it
    panels = []
    for index, curve in enumerate(curves):
        titled = index % 2 == 0 and (cursor is None or index == 0)
        y = alt.Y(f"{PLANE[1]}:Q", title=Y_TITLE if titled else None, scale=scale, axis=ticks)
        tips = ["group:N", STEP_TIP, *numbers("+.3f", *PLANE)]
        colour = colour_by("group", colours, columns=5, legend=key)
        base = alt.Chart(rows.filter(pl.col("curve") == curve)).encode(x, y, colour)
        at = base.transform_filter(f"datum.step == {here}")
        layers = [
            *_quadrants(most, x, y, small=cursor is not None),
            base.mark_line(strokeWidth=1.4).encode(order="step:Q"),
            base.mark_point(size=14, filled=True, opacity=0.7).encode(tooltip=tips),
            at.mark_point(size=170, filled=True, opacity=1, stroke="white", strokeWidth=1.2).encode(tooltip=tips),
        ]
        panels.append(_of_curve(alt.layer(*layers).properties(**size), curve if len(curves) > 1 else ""))
    at_step = Value(f"format({here}, ',d')")
    return figure(
        _in_rows(panels, cursor),
        ["Attraction and repulsion against the hidden state, step ", at_step],
        "lines: a group's course over training; large dots: at this step",
        f"The plane of the cosines of h with attraction and with repulsion. At step {step:,}: "
        + _spoken_plane(rows, step),
    )


def _quadrants(most: float, x: alt.X, y: alt.Y, small: bool) -> list[alt.Chart]:
    layers = [zero_line(channel, color=GREY, strokeWidth=1) for channel in ("x", "y")]
    for (side, height), text in QUADRANTS.items():
        text = [line for part in text for line in wrap(part, 12)] if small else text
        place = alt.Chart(alt.Data(values=[{PLANE[0]: side * most, PLANE[1]: height * most}]))
        inward = {"align": "left" if side < 0 else "right", "dx": -7 * side}
        onward = {"baseline": "top" if height > 0 else "bottom", "dy": 7 if height > 0 else -7 - 12 * (len(text) - 1)}
        layers.append(
            place.mark_text(text=text, fontSize=9 if small else 10.5, color=TEXT, **inward, **onward).encode(x, y)
        )
    return layers


def _grouped(table: pl.DataFrame, columns: list[str], what: str) -> pl.DataFrame:
    """The rows that have numbers, in order of steps, with `curve` (empty where there is none) and group as text."""
    otherwise = f"none of {len(table)} rows has a number; trace Dissent on some text first"
    finite = pl.all_horizontal(pl.col(columns).cast(pl.Float64).is_finite())
    rows = need_rows(table, ["step", "group", *columns], what, otherwise, finite)
    rows = rows if "curve" in table.columns else rows.with_columns(curve=pl.lit(""))
    return on_step_axis(rows.with_columns(pl.col("curve", "group").cast(pl.String), pl.col(columns).cast(pl.Float64)))


def _bounded(rows: pl.DataFrame) -> pl.DataFrame:
    none = pl.lit(None, pl.Float64)
    ends = {end: f"dissent_{end}" for end in ("low", "high")}
    return rows.with_columns(
        **{end: pl.col(c).cast(pl.Float64).fill_nan(None) if c in rows.columns else none for end, c in ends.items()}
    )


def _group_colours(rows: pl.DataFrame, groups: Sequence[str] | None) -> dict[str, str]:
    """A colour for each group that is present, as it is among all groups."""
    present = names_of(rows, "group")
    colours = ramp(groups or present)
    return {name: colours[name] for name in present}


def _of_curve(chart: alt.LayerChart, curve: str) -> alt.LayerChart:
    """One curve's panel, with its name if it has one."""
    return chart.properties(title=head(curve, frame="group")) if curve else chart


def _size(count: int, narrow: int, height: int) -> dict[str, int]:
    """The size of one of some panels; one alone is wider."""
    alone = WIDTH if narrow == 300 else narrow + 50
    return {"width": narrow if count > 1 else alone, "height": height}


def _beside(count: int, levels: Collection[str] = ()) -> dict[str, int]:
    """The size of one of some panels in a row, beside its axis and before the names of its levels."""
    half = ACROSS // 2 if count <= 2 else ACROSS  # up to two panels stand beside those of another figure
    names = max((text_width(name, 10) for name in levels), default=0)
    return {"width": int(half - 80 - names) // count - 28, "height": 150}


def _in_rows(panels: list[alt.LayerChart], cursor: Cursor | None) -> alt.TopLevelMixin:
    """Two panels in a row, or in an explorer all of them."""
    row = len(panels) < 3 or cursor is not None
    return alt.hconcat(*panels, spacing=14) if row else alt.concat(*panels, columns=2, spacing=14)


def _found(rows: pl.DataFrame) -> str:
    """The title: which group of which curve goes furthest towards total dissent, and the least at the same step."""
    last = rows.filter(pl.col("step") == pl.col("step").max().over("curve")).sort("dissent")
    far, near = last.row(0, named=True), last.row(-1, named=True)

    def named(row: dict) -> str:
        return f"{row['dissent']:.2f} ({', '.join(filter(None, (row['curve'], row['group'])))})"

    return f"Dissent at the end: from {named(near)} to {named(far)}".replace("-", "−")


def _spoken(rows: pl.DataFrame, name: str) -> list[str]:
    said = []
    for (curve, group), part in rows.group_by("curve", "group", maintain_order=True):
        who = f"{curve}, {group}" if curve else group
        said.append(f"{who}: {name} {part[name][0]:.2f} → {part[name][-1]:.2f}.".replace("-", "−"))
    return said


def _spoken_plane(rows: pl.DataFrame, step: int) -> str:
    here = rows.filter(pl.col("step") == step)
    places = [
        f"{row['curve']} {row['group']} ({row[PLANE[0]]:+.2f}, {row[PLANE[1]]:+.2f})".strip() for row in here.to_dicts()
    ]
    return ("; ".join(places) + ".").replace("-", "−")

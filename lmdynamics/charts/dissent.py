"""Gradient dissent: the attractive and the repulsive part of the gradient at the last hidden state, by token group.

With p = softmax(U h) and the true token 1: ∇h⁺ = (p_1 − 1) U_1 (attractive), ∇h⁻ = Σ_{j≠1} p_j U_j (repulsive), and a
step is opposite to their sum. Dissent is cos(∇h⁺, ∇h⁻); at −1 the two are opposite. The plane of cos(h, ∇h⁺) and
cos(h, ∇h⁻) shows both directions relative to the hidden state h; its axes have no unit, so all models share it.
Mircea, Lobacheva & Rish 2024; computed by `analysis.gradients`.
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
NORMS = {  # a column: (axis, symbol)
    "norm_hidden": (["norm of the", "hidden state (log)"], "h"),
    "norm_attractive": (["norm of the", "attraction (log)"], "attraction"),
    "norm_repulsive": (["norm of the", "repulsion (log)"], "repulsion"),
}
PLANE = ("cos_hidden_attractive", "cos_hidden_repulsive")
QUADRANTS = {  # (side, height): effect of a step along minus the gradient on ‖h‖
    (-1, 1): ["attraction lengthens h,", "repulsion shortens it"],
    (1, 1): ["both shorten h"],
    (-1, -1): ["both lengthen h"],
    (1, -1): ["attraction shortens h,", "repulsion lengthens it"],
}
X_TITLE, Y_TITLE = ["cosine of h and the", "attractive gradient"], ["cosine of h and the", "repulsive gradient"]
ROW_WIDTH = 860  # pixels: all panels of a row


def dissent_over_training(
    table: pl.DataFrame,
    *,
    published: Mapping[str, float] | None = None,
    cursor: Cursor | None = None,
    groups: Sequence[str] | None = None,
    units: str = "rows of text",
) -> alt.TopLevelMixin:
    """cos(∇h⁺, ∇h⁻) against step, a line per group of tokens with its 95 % band, a panel per curve.

    `table`: step, group, dissent and its interval, from `analysis.gradients.dissent_by_group`, perhaps `curve`; groups
    keep its order, such as from rare to frequent. A column `dissent_control` is drawn dotted. `published`: published
    values by name, as faint lines. `cursor`: its step is marked by a vertical line. `groups`: all groups, so that each
    keeps its colour if others are left out. `units`: what the intervals are over.
    """
    rows = _bounded(_valid_rows(table, ["dissent"], "dissent over training"))
    curves, colours, steps = names_of(rows, "curve"), _group_colours(rows, groups), steps_of(rows)
    control = CONTROL.value in rows.columns
    top = max(0.0, *(rows[name].max() or 0.0 for name in ("dissent", "high", *[CONTROL.value] * control)))
    options = {
        "colours": colours,
        "scale": {"domain": [-1, min(1.0, top + 0.05)], "nice": False},
        "axis": {"tickCount": 6},
    }
    panels = []
    for index, curve in enumerate(curves):
        data = rows.filter(pl.col("curve") == curve).with_columns(pl.col("low", "high").clip(-1, 1))
        x = step_axis(steps, sparse=len(curves) > 2)
        has_title = index % 2 == 0 and (cursor is None or index == 0)
        line = replace(DISSENT, title=DISSENT.title if has_title else None, **options)
        labels = index == len(curves) - 1 or (cursor is None and index % 2 == 1)  # at the end of a row
        layers = levels(published or {}, line.y, right=True, labels=labels, dash=[2, 4], min_distance=0.1)
        layers += line.layers(data, x)
        if control and len(control_rows := data.filter(pl.col(CONTROL.value).is_finite())):
            dotted = replace(CONTROL, title=line.title, columns=5, **options)
            layers += dotted.layers(control_rows, x)
        hover = by_step(data, "group", "dissent", "+.3f") if cursor is not None else None
        size = _size(len(curves), 300, 260) if cursor is None else _narrow(len(curves), published or ())
        panels.append(_titled(panel(layers, x, position=cursor, hover=hover, **size), curve if len(curves) > 1 else ""))
    caption = [
        f"bands: 95 % over {units}" if rows["low"].is_not_null().any() else "",
        "dotted: attraction with the repulsion at another position" if control else "",
        "grey: published, read off a poster (approximate)" if published else "",
    ]
    return figure(
        _arranged(panels, cursor),
        _title(rows),
        [caption],
        "Dissent between attraction and repulsion over training. " + " ".join(_sentences(rows, "dissent")),
    )


def norms_over_training(table: pl.DataFrame, *, groups: Sequence[str] | None = None) -> alt.ConcatChart:
    """The mean norms of the hidden state, the attraction and the repulsion, a line per group, a column per curve.

    `table`: step, group, norm_hidden, norm_attractive, norm_repulsive, perhaps `curve`. Axes are logarithmic; norms of
    0 are not drawn. `groups`: as for `dissent_over_training`.
    """
    rows = _valid_rows(table, list(NORMS), "norms over training")
    curves, colours, steps = names_of(rows, "curve"), _group_colours(rows, groups), steps_of(rows)
    panels, several = [], len(curves) > 1
    for name, (title, _) in NORMS.items():
        data = rows.filter(pl.col(name) > 0)
        first, last = name == next(iter(NORMS)), name == list(NORMS)[-1]
        ends = [data[name].min() / 1.15, data[name].max() * 1.15] if len(data) else [0.1, 1.0]
        options = {"points": 16, "columns": 5, **log_axis(*ends, 4)}
        line = Line(name, title, "group", colours, band=None, style=".3~g", **options)
        for curve in curves:
            x = step_axis(steps, "training step (log scale)" if last else None, sparse=len(curves) > 2)
            leftmost = curve == curves[0]
            line = replace(line, title=title if leftmost else None)
            layers = line.layers(data.filter(pl.col("curve") == curve), x)
            size = _size(len(curves), 300 if len(curves) < 3 else 150, 110)
            panels.append(_titled(panel(layers, x, **size), curve if first and several else ""))
    changes = []
    for name, (_, symbol) in NORMS.items():
        ends = rows.group_by("step").agg(pl.col(name).mean()).sort("step")[name]
        changes.append(f"{symbol} {ends[0]:.2g} → {ends[-1]:.2g}")
    return figure(
        alt.concat(*panels, columns=len(curves), spacing=10),
        f"Norms over training, mean over groups: {', '.join(changes)}",
        "means over tokens",
        "Norms of the hidden state and of both parts of its gradient over training. "
        + " ".join(text for name in NORMS for text in _sentences(rows, name)),
    )


def dissent_plane(
    table: pl.DataFrame,
    step: int | None = None,
    *,
    cursor: Cursor | None = None,
    groups: Sequence[str] | None = None,
) -> alt.TopLevelMixin:
    """The plane of cos(h, ∇h⁺) (x axis) and cos(h, ∇h⁻) (y axis): a trajectory per group, a panel per curve.

    `table`: step, group, cos_hidden_attractive, cos_hidden_repulsive (no unit), perhaps `curve`. A larger dot marks
    `step` (default: the last), or the cursor's step.
    `groups`: as for `dissent_over_training`.
    """
    context = "dissent plane"
    rows = _valid_rows(table, list(PLANE), context)
    curves, colours, steps = names_of(rows, "curve"), _group_colours(rows, groups), steps_of(rows)
    step = measured_step(step, steps, context)
    step_expression = str(step) if cursor is None else cursor.name
    limit = min(1.3, 1.35 * max(0.1, *(rows[name].abs().max() for name in PLANE)))
    scale = alt.Scale(domain=[-limit, limit], nice=False)
    values = [tick for tick in (-1, -0.5, 0, 0.5, 1) if abs(tick) <= limit] if limit > 0.6 else None
    ticks = alt.Axis(tickCount=5, grid=False, format="~g", **({"values": values} if values else {}))
    x = alt.X(f"{PLANE[0]}:Q", title=X_TITLE, scale=scale, axis=ticks)
    if cursor is None:
        size = _size(len(curves), 330, 330 if len(curves) > 1 else 380)
    else:
        size = dict.fromkeys(("width", "height"), min(_narrow(len(curves))["width"], 240 if len(curves) <= 2 else 135))
    labelled = cursor is None or len(curves) <= 2  # with more panels in a row, there is no room for text in them
    legend = None if labelled else False  # the other figure, below this one, has it
    panels = []
    for index, curve in enumerate(curves):
        has_title = index % 2 == 0 and (cursor is None or index == 0)
        y = alt.Y(f"{PLANE[1]}:Q", title=Y_TITLE if has_title else None, scale=scale, axis=ticks)
        tips = ["group:N", STEP_TIP, *numbers("+.3f", *PLANE)]
        colour = colour_by("group", colours, columns=5, legend=legend)
        base = alt.Chart(rows.filter(pl.col("curve") == curve)).encode(x, y, colour)
        selected = base.transform_filter(f"datum.step == {step_expression}")
        layers = [
            *(zero_line(channel, color=GREY, strokeWidth=1) for channel in ("x", "y")),
            *(_quadrants(limit, x, y, small=cursor is not None) if labelled else ()),
            base.mark_line(strokeWidth=1.4).encode(order="step:Q"),
            base.mark_point(size=14, filled=True, opacity=0.7).encode(tooltip=tips),
            selected.mark_point(size=170, filled=True, opacity=1, stroke="white", strokeWidth=1.2).encode(tooltip=tips),
        ]
        panels.append(_titled(alt.layer(*layers).properties(**size), curve if len(curves) > 1 else ""))
    step_text = Value(f"format({step_expression}, ',d')")
    return figure(
        _arranged(panels, cursor),
        ["Attraction and repulsion against the hidden state, step ", step_text],
        [
            [
                "lines: a group's course over training; large dots: at this step",
                "" if labelled else "left of 0 attraction lengthens h; above 0 repulsion shortens it",
            ]
        ],
        f"The plane of the cosines of h with attraction and with repulsion. At step {step:,}: "
        + _plane_text(rows, step),
    )


def _quadrants(limit: float, x: alt.X, y: alt.Y, small: bool) -> list[alt.Chart]:
    """In each corner of the plane, what a step does to the length of h."""
    layers = []
    for (side, height), text in QUADRANTS.items():
        text = [line for part in text for line in wrap(part, 12)] if small else text
        corner = alt.Chart(alt.Data(values=[{PLANE[0]: side * limit, PLANE[1]: height * limit}]))
        x_align = {"align": "left" if side < 0 else "right", "dx": -7 * side}
        y_align = {"baseline": "top" if height > 0 else "bottom", "dy": 7 if height > 0 else -7 - 12 * (len(text) - 1)}
        layers.append(
            corner.mark_text(text=text, fontSize=9 if small else 10.5, color=TEXT, **x_align, **y_align).encode(x, y)
        )
    return layers


def _valid_rows(table: pl.DataFrame, columns: list[str], context: str) -> pl.DataFrame:
    """The rows with finite numbers, sorted by step, with `curve` (default: empty) and `group` as text."""
    no_rows = f"none of {len(table)} rows has a number; trace Dissent on some text first"
    finite = pl.all_horizontal(pl.col(columns).cast(pl.Float64).is_finite())
    rows = need_rows(table, ["step", "group", *columns], context, no_rows, finite)
    rows = rows if "curve" in table.columns else rows.with_columns(curve=pl.lit(""))
    return on_step_axis(rows.with_columns(pl.col("curve", "group").cast(pl.String), pl.col(columns).cast(pl.Float64)))


def _bounded(rows: pl.DataFrame) -> pl.DataFrame:
    missing = pl.lit(None, pl.Float64)
    ends = {end: f"dissent_{end}" for end in ("low", "high")}
    return rows.with_columns(
        **{end: pl.col(c).cast(pl.Float64).fill_nan(None) if c in rows.columns else missing for end, c in ends.items()}
    )


def _group_colours(rows: pl.DataFrame, groups: Sequence[str] | None) -> dict[str, str]:
    """A colour for each group in the rows, the same as if all groups were present."""
    present = names_of(rows, "group")
    colours = ramp(groups or present)
    return {name: colours[name] for name in present}


def _titled(chart: alt.LayerChart, curve: str) -> alt.LayerChart:
    """One curve's panel, titled with its name if it has one."""
    return chart.properties(title=head(curve, frame="group")) if curve else chart


def _size(count: int, narrow: int, height: int) -> dict[str, int]:
    """The size of one of `count` panels; a single panel is wider."""
    single = WIDTH if narrow == 300 else narrow + 50
    return {"width": narrow if count > 1 else single, "height": height}


def _narrow(count: int, levels: Collection[str] = ()) -> dict[str, int]:
    """The size of one of `count` panels in a row that has an axis at the left and names of levels at the right."""
    available = ROW_WIDTH // 2 if count <= 2 else ROW_WIDTH  # up to two panels share the row with another figure
    names = max((text_width(name, 10) for name in levels), default=0)
    return {"width": int(available - 80 - names) // count - 28, "height": 150 if count <= 2 else 125}


def _arranged(panels: list[alt.LayerChart], cursor: Cursor | None) -> alt.TopLevelMixin:
    """Two panels in a row, or in an explorer all of them."""
    one_row = len(panels) < 3 or cursor is not None
    return alt.hconcat(*panels, spacing=14) if one_row else alt.concat(*panels, columns=2, spacing=14)


def _title(rows: pl.DataFrame) -> str:
    """The title: the highest and the lowest dissent at the end of training, with their curves and groups."""
    last = rows.filter(pl.col("step") == pl.col("step").max().over("curve")).sort("dissent")
    lowest, highest = last.row(0, named=True), last.row(-1, named=True)

    def described(row: dict) -> str:
        return f"{row['dissent']:.2f} ({', '.join(filter(None, (row['curve'], row['group'])))})"

    return f"Dissent at the end: from {described(highest)} to {described(lowest)}".replace("-", "−")


def _sentences(rows: pl.DataFrame, name: str) -> list[str]:
    sentences = []
    for (curve, group), part in rows.group_by("curve", "group", maintain_order=True):
        curve_and_group = f"{curve}, {group}" if curve else group
        sentences.append(f"{curve_and_group}: {name} {part[name][0]:.2f} → {part[name][-1]:.2f}.".replace("-", "−"))
    return sentences


def _plane_text(rows: pl.DataFrame, step: int) -> str:
    rows = rows.filter(pl.col("step") == step)
    positions = [
        f"{row['curve']} {row['group']} ({row[PLANE[0]]:+.2f}, {row[PLANE[1]]:+.2f})".strip() for row in rows.to_dicts()
    ]
    return ("; ".join(positions) + ".").replace("-", "−")

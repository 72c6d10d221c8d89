"""Gradient dissent: the attractive and the repulsive part of the gradient at the last hidden state, by token group.

With p = softmax(U h) and the true token 1: ∇h⁺ = (p_1 − 1) U_1 (attractive), ∇h⁻ = Σ_{j≠1} p_j U_j (repulsive), and a
step goes against their sum. Dissent is cos(∇h⁺, ∇h⁻); at −1 the two cancel. Mircea, Lobacheva & Rish 2024; the numbers
are those of `curves.dissent`.
"""

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.charts.deceleration import log_ticks
from lmdynamics.charts.decomposition import colour_by
from lmdynamics.charts.theme import GREY, TEXT, WIDTH, figure, lines, ramp, step_axis
from lmdynamics.charts.trajectories import on_step_axis, steps_of
from lmdynamics.curves.intervals import need_columns
from lmdynamics.errors import UserError

PLANE = ("cos_hidden_attractive", "cos_hidden_repulsive")
NORMS = {
    "norm_hidden": ["norm of the", "hidden state h"],
    "norm_attractive": ["norm of the", "attraction"],
    "norm_repulsive": ["norm of the", "repulsion"],
}
QUADRANTS = {  # (side, height): what a step along minus the gradient does to ‖h‖
    (-1, 1): ["attraction lengthens h,", "repulsion shortens it"],
    (1, 1): ["both shorten h"],
    (-1, -1): ["both lengthen h"],
    (1, -1): ["attraction shortens h,", "repulsion lengthens it"],
}
X_TITLE, Y_TITLE = "cosine of h and the attractive gradient", "cosine of h and the repulsive gradient"


def dissent_over_training(
    table: pl.DataFrame,
    *,
    published: Mapping[str, float] | None = None,
    cursor: alt.Parameter | None = None,
    groups: Sequence[str] | None = None,
) -> alt.HConcatChart:
    """cos(∇h⁺, ∇h⁻) against step, a line per group of tokens with its 95 % band, a panel per curve.

    `table`: step, group, dissent and its interval, as `curves.dissent.dissent_by_group` gives them, perhaps `curve`;
    groups stand in its order, as from rare to frequent. `published`: readings to compare with, by name, as faint lines.
    `cursor`: a parameter that holds a step, marked by an upright line. `groups`: all there are, so that each keeps its
    colour where others are left out.

    Raises
    ------
    UserError
        If a column is missing, or there is nothing to draw.
    """
    rows = _tidy(table, ["dissent"], "dissent over training")
    rows = _bounded(rows, "dissent")
    curves, colours, steps = _names(rows, "curve"), _colours(rows, groups), steps_of(rows)
    top = max(0.0, rows["dissent"].max(), rows["high"].max() or 0.0)
    y = alt.Y("dissent:Q").scale(domain=[-1, min(1.0, top + 0.05)], nice=False).axis(tickCount=6)
    panels = []
    for index, curve in enumerate(curves):
        data = rows.filter(pl.col("curve") == curve)
        x = step_axis(steps, sparse=len(curves) > 2)
        colour = colour_by("group", colours, columns=5)
        y = y.copy()
        y["title"] = "dissent (cosine of attraction and repulsion)" if index == 0 else None
        ends = y.copy()
        ends["shorthand"] = "low:Q"
        tips = ["group:N", "step:Q", *(alt.Tooltip(f"{name}:Q", format="+.3f") for name in ("dissent", "low", "high"))]
        layers = _levels(published or {}, y, label=index == len(curves) - 1)
        if len(reach := data.drop_nulls(["low", "high"])):
            reach = reach.with_columns(pl.col("low", "high").clip(-1, 1))
            layers.append(alt.Chart(reach).mark_area(opacity=0.18).encode(x, ends, alt.Y2("high:Q"), colour))
        base = alt.Chart(data).encode(x, y, colour)
        layers += [
            base.mark_line(strokeWidth=2),
            base.mark_point(size=20, filled=True, opacity=1).encode(tooltip=tips),
        ]
        if cursor is not None:
            layers.append(upright(cursor, x))
        panels.append(_panel(alt.layer(*layers), curve, curves, 300))
    chart = alt.hconcat(*panels, spacing=14)
    caption = ["bands: 95 % over rows of text" if rows["low"].is_not_null().any() else ""]
    caption += ["dashed: published, read off a poster (approximate)" if published else ""]
    return figure(
        chart if cursor is None else chart.add_params(cursor),
        lines(_found(rows), 76),
        "; ".join(filter(None, caption)),
        "Dissent between attraction and repulsion over training. " + " ".join(_spoken(rows, "dissent")),
    )


def dissent_plane(
    table: pl.DataFrame,
    step: int | None = None,
    *,
    cursor: alt.Parameter | None = None,
    groups: Sequence[str] | None = None,
) -> alt.HConcatChart:
    """Where the hidden state points: cos(h, ∇h⁺) along, cos(h, ∇h⁻) up, a trajectory per group, a panel per curve.

    `table`: step, group, cos_hidden_attractive, cos_hidden_repulsive (no unit), perhaps `curve`. A larger dot stands at
    `step` (default: the last); it follows the chart's parameter `plane_step`, or `cursor`, another one with a step.
    `groups`: as for `dissent_over_training`.

    Raises
    ------
    UserError
        If a column is missing, the step was not measured, or there is nothing to draw.
    """
    what = "dissent plane"
    rows = _tidy(table, list(PLANE), what)
    curves, colours, steps = _names(rows, "curve"), _colours(rows, groups), steps_of(rows)
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError(f"{what}: step {step} was not measured; measured: {', '.join(map(str, steps))}")
    chosen = alt.param(name="plane_step", value=step) if cursor is None else cursor
    most = min(1.0, 1.35 * max(0.1, *(rows[name].abs().max() for name in PLANE)))
    scale = alt.Scale(domain=[-most, most], nice=False)
    ticks = alt.Axis(tickCount=5, grid=False, format="~g")
    x = alt.X(f"{PLANE[0]}:Q", title=X_TITLE, scale=scale, axis=ticks)
    panels = []
    for index, curve in enumerate(curves):
        y = alt.Y(f"{PLANE[1]}:Q", title=Y_TITLE if index == 0 else None, scale=scale, axis=ticks)
        data = alt.Chart(rows.filter(pl.col("curve") == curve))
        colour = colour_by("group", colours, columns=5)
        tips = ["group:N", "step:Q", *(alt.Tooltip(f"{name}:Q", format="+.3f") for name in PLANE)]
        base = data.encode(x, y, colour)
        at = base.transform_filter(f"datum.step == {chosen.name}")
        layers = [
            *_quadrants(most, x, y),
            base.mark_line(strokeWidth=1.4, opacity=0.8).encode(order="step:Q"),
            base.mark_point(size=14, filled=True, opacity=0.7).encode(tooltip=tips),
            at.mark_point(size=170, filled=True, opacity=1, stroke="white", strokeWidth=1.2).encode(tooltip=tips),
        ]
        panels.append(_panel(alt.layer(*layers), curve, curves, 330, height=330 if len(curves) > 1 else 380))
    told = "'Attraction and repulsion against the hidden state, step ' + "
    return figure(
        alt.hconcat(*panels, spacing=14).add_params(chosen),
        alt.ExprRef(f"{told}format({chosen.name}, ',d')"),
        "lines: a group's course over training; large dots: at this step",
        f"The plane of the cosines of h with attraction and with repulsion. At step {step:,}: "
        + _spoken_plane(rows, step),
    )


def norms_over_training(table: pl.DataFrame) -> alt.ConcatChart:
    """The mean norms of the hidden state, the attraction and the repulsion, a line per group, a column per curve.

    `table`: step, group, norm_hidden, norm_attractive, norm_repulsive, perhaps `curve`. Logarithmic; a norm of 0 has no
    place.

    Raises
    ------
    UserError
        If a column is missing, or there is nothing to draw.
    """
    rows = _tidy(table, list(NORMS), "norms over training")
    curves, colours, steps = _names(rows, "curve"), _colours(rows, None), steps_of(rows)
    panels = []
    for name, title in NORMS.items():
        data = rows.filter(pl.col(name) > 0)
        last = name == list(NORMS)[-1]
        ends = [data[name].min() / 1.15, data[name].max() * 1.15] if len(data) else [0.1, 1.0]
        for curve in curves:
            y = alt.Y(f"{name}:Q", title=title if curve == curves[0] else None)
            y = y.scale(type="log", domain=ends, nice=False).axis(values=log_ticks(*ends, 4), format="~g")
            colour = colour_by("group", colours, columns=5)
            colour["legend"] = colour["legend"] if last and curve == curves[0] else None
            x = step_axis(steps, "training step (log scale)" if last else None, sparse=len(curves) > 2)
            tips = ["group:N", "step:Q", alt.Tooltip(f"{name}:Q", format=".3~g")]
            base = alt.Chart(data.filter(pl.col("curve") == curve)).encode(x, y, colour)
            layers = [
                base.mark_line(strokeWidth=2),
                base.mark_point(size=16, filled=True, opacity=1).encode(tooltip=tips),
            ]
            titled = curves if name == next(iter(NORMS)) else [curve]
            panels.append(_panel(alt.layer(*layers), curve, titled, 300, height=110, alone=len(curves) == 1))
    moved = []
    for name, symbol in zip(NORMS, ("h", "attraction", "repulsion"), strict=True):
        ends = rows.group_by("step").agg(pl.col(name).mean()).sort("step")[name]
        moved.append(f"{symbol} {ends[0]:.2g} → {ends[-1]:.2g}")
    chart = alt.concat(*panels, columns=len(curves), spacing=10).resolve_scale(color="independent")
    return figure(
        chart,
        lines(f"Norms over training, mean over groups: {', '.join(moved)}", 76),
        "means over tokens",
        "Norms of the hidden state and of both parts of its gradient over training. "
        + " ".join(text for name in NORMS for text in _spoken(rows, name)),
    )


def upright(cursor: alt.Parameter, x: alt.X) -> alt.Chart:
    """A line at the step that a parameter holds."""
    at = alt.Chart(alt.Data(values=[{}])).transform_calculate(x=f"max({cursor.name}, 0.5)")
    return at.mark_rule(color=TEXT, strokeWidth=2).encode(x)


def _tidy(table: pl.DataFrame, columns: list[str], what: str) -> pl.DataFrame:
    need_columns(table, ["step", "group", *columns], what)
    rows = table if "curve" in table.columns else table.with_columns(curve=pl.lit(""))
    rows = rows.with_columns(pl.col("curve", "group").cast(pl.String), pl.col(columns).cast(pl.Float64))
    rows = rows.filter(pl.all_horizontal(pl.col(columns).is_finite()))
    if rows.is_empty():
        raise UserError(f"{what}: none of {len(table)} rows has a number; trace Dissent on some text first")
    return on_step_axis(rows)


def _bounded(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    ends = {end: f"{name}_{end}" for end in ("low", "high")}
    none = pl.lit(None, pl.Float64)
    return rows.with_columns(
        **{end: pl.col(c).cast(pl.Float64).fill_nan(None) if c in rows.columns else none for end, c in ends.items()}
    )


def _names(rows: pl.DataFrame, column: str) -> list[str]:
    return rows[column].unique(maintain_order=True).to_list()


def _colours(rows: pl.DataFrame, groups: Sequence[str] | None) -> dict[str, str]:
    present = _names(rows, "group")
    colours = ramp(groups or present)
    return {name: colours[name] for name in present}


def _panel(chart, curve: str, curves: list[str], narrow: int, *, height: int = 260, alone: bool | None = None):
    alone = len(curves) == 1 if alone is None else alone
    chart = chart.properties(width=WIDTH if alone and narrow == 300 else narrow + 50 * alone, height=height)
    if len(curves) == 1:
        return chart
    return chart.properties(
        title=alt.TitleParams(curve, fontSize=12, fontWeight="normal", frame="group", anchor="start")
    )


def _levels(levels: Mapping[str, float], y: alt.Y, label: bool) -> list[alt.Chart]:
    if not levels:
        return []
    data = alt.Chart(pl.DataFrame({"name": list(levels), "dissent": [float(value) for value in levels.values()]}))
    rules = [data.mark_rule(color=GREY, strokeDash=[2, 4], strokeWidth=1.2, opacity=0.8).encode(y)]
    if label:
        text = data.mark_text(color=TEXT, align="left", dx=6, fontSize=10)
        rules.append(text.encode(y, text="name:N", x=alt.value("width")))
    return rules


def _quadrants(most: float, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    axes = alt.Chart(alt.Data(values=[{}]))
    layers = [
        axes.mark_rule(color=GREY, strokeWidth=1).encode(x=alt.datum(0)),
        axes.mark_rule(color=GREY, strokeWidth=1).encode(y=alt.datum(0)),
    ]
    for (side, height), text in QUADRANTS.items():
        place = alt.Chart(alt.Data(values=[{PLANE[0]: side * most, PLANE[1]: height * most}]))
        inward = {"align": "left" if side < 0 else "right", "dx": -7 * side}
        onward = {"baseline": "top" if height > 0 else "bottom", "dy": 7 if height > 0 else -7 - 12 * (len(text) - 1)}
        layers.append(
            place.mark_text(text=text, fontSize=10.5, color=TEXT, opacity=0.85, **inward, **onward).encode(x, y)
        )
    return layers


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

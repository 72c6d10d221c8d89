"""Gradient dissent: the attractive and the repulsive part of the gradient at the last hidden state, by token group.

With p = softmax(U h) and the true token 1: ∇h⁺ = (p_1 − 1) U_1 (attractive), ∇h⁻ = Σ_{j≠1} p_j U_j (repulsive), and a
step goes against their sum. Dissent is cos(∇h⁺, ∇h⁻); at −1 the two cancel. Mircea, Lobacheva & Rish 2024; the numbers
are those of `analysis.gradients`.
"""

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import Cursor, by_step, log_ticks, on_step_axis, step_axis, steps_of, strips, upright
from lmdynamics.charts.conditions import names_of
from lmdynamics.charts.lines import colour_by, levels, line_layers, placed
from lmdynamics.charts.theme import WIDTH, figure, ramp
from lmdynamics.errors import UserError

NORMS = {
    "norm_hidden": ["norm of the", "hidden state (log)"],
    "norm_attractive": ["norm of the", "attraction (log)"],
    "norm_repulsive": ["norm of the", "repulsion (log)"],
}
CONTROL = "dissent_control"
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

    Raises
    ------
    UserError
        If a column is missing, or there is nothing to draw.
    """
    rows = grouped(table, ["dissent"], "dissent over training")
    rows = _bounded(rows, "dissent")
    curves, colours, steps = names_of(rows, "curve"), group_colours(rows, groups), steps_of(rows)
    control = CONTROL in rows.columns
    top = max(0.0, rows["dissent"].max(), rows["high"].max() or 0.0, (rows[CONTROL].max() or 0.0) if control else 0.0)
    y = alt.Y("dissent:Q").scale(domain=[-1, min(1.0, top + 0.05)], nice=False).axis(tickCount=6)
    panels = []
    for index, curve in enumerate(curves):
        data = rows.filter(pl.col("curve") == curve)
        x = step_axis(steps, sparse=len(curves) > 2)
        colour = colour_by("group", colours, columns=5)
        y = y.copy()
        title = ["dissent (cosine of", "attraction and repulsion)"]
        y["title"] = title if index % 2 == 0 and (cursor is None or index == 0) else None
        tips = ["group:N", "step:Q", *(alt.Tooltip(f"{name}:Q", format="+.3f") for name in ("dissent", "low", "high"))]
        labels = index % 2 == 1 or index == len(curves) - 1
        layers = levels(published or {}, y, right=True, labels=labels, dash=[2, 4], apart=0.1)
        data = data.with_columns(pl.col("low", "high").clip(-1, 1))
        layers += line_layers(data, x, y, colour, tips, opacity=0.18, points=20)
        if control and len(other := data.filter(pl.col(CONTROL).is_finite())):
            line = alt.Chart(other).mark_line(strokeWidth=1.4, strokeDash=[2, 3], clip=True)
            told = ["group:N", alt.Tooltip(f"{CONTROL}:Q", format="+.3f")]
            layers.append(line.encode(x, placed(y, CONTROL), colour, tooltip=told))
        if cursor is not None:
            here, told = by_step(data, "group", "dissent", "+.3f")
            layers += [upright(cursor, x), strips(here, x, cursor, told)]
        room = {} if cursor is None else {"width": panel_width(len(curves)), "height": 150}
        panels.append(panel(alt.layer(*layers), curve, curves, 300, **room))
    chart = side_by_side(panels) if cursor is None else alt.hconcat(*panels, spacing=14)
    caption = ["bands: 95 % over rows of text" if rows["low"].is_not_null().any() else ""]
    caption += ["dotted: attraction with the repulsion at another position" if control else ""]
    caption += ["grey: published, read off a poster (approximate)" if published else ""]
    return figure(
        chart,
        _found(rows),
        "; ".join(filter(None, caption)),
        "Dissent between attraction and repulsion over training. " + " ".join(_spoken(rows, "dissent")),
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
    rows = grouped(table, list(NORMS), "norms over training")
    curves, colours, steps = names_of(rows, "curve"), group_colours(rows, None), steps_of(rows)
    panels = []
    for name, title in NORMS.items():
        data = rows.filter(pl.col(name) > 0)
        last = name == list(NORMS)[-1]
        ends = [data[name].min() / 1.15, data[name].max() * 1.15] if len(data) else [0.1, 1.0]
        for curve in curves:
            y = alt.Y(f"{name}:Q", title=title if curve == curves[0] else None)
            y = y.scale(type="log", domain=ends, nice=False).axis(values=log_ticks(*ends, 4), format="~g")
            colour = colour_by("group", colours, columns=5 if len(curves) == 1 else 2)
            colour["legend"] = colour["legend"] if last and curve == curves[0] else None
            x = step_axis(steps, "training step (log scale)" if last else None, sparse=len(curves) > 2)
            tips = ["group:N", "step:Q", alt.Tooltip(f"{name}:Q", format=".3~g")]
            layers = line_layers(data.filter(pl.col("curve") == curve), x, y, colour, tips, points=16)
            titled = curves if name == next(iter(NORMS)) else [curve]
            panels.append(
                panel(
                    alt.layer(*layers),
                    curve,
                    titled,
                    300 if len(curves) < 3 else 150,
                    height=110,
                    alone=len(curves) == 1,
                )
            )
    moved = []
    for name, symbol in zip(NORMS, ("h", "attraction", "repulsion"), strict=True):
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


def grouped(table: pl.DataFrame, columns: list[str], what: str) -> pl.DataFrame:
    """The rows that have numbers, in order of steps, with `curve` (empty where there is none) and group as text."""
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


def group_colours(rows: pl.DataFrame, groups: Sequence[str] | None) -> dict[str, str]:
    """A colour for each group that is present, as it is among all groups."""
    present = names_of(rows, "group")
    colours = ramp(groups or present)
    return {name: colours[name] for name in present}


def panel(
    chart, curve: str, curves: list[str], narrow: int, *, height: int = 260, alone: bool | None = None, width: int = 0
):
    """One curve's chart with its size, and its name where there are several."""
    alone = len(curves) == 1 if alone is None else alone
    width = width or (WIDTH if alone and narrow == 300 else narrow + 50 * alone)
    chart = chart.properties(width=width, height=height)
    if len(curves) == 1:
        return chart
    return chart.properties(
        title=alt.TitleParams(curve, fontSize=12, fontWeight="normal", frame="group", anchor="start")
    )


def panel_width(count: int) -> int:
    """The width of one of some panels in a row, beside its axis."""
    half = ACROSS // 2 if count <= 2 else ACROSS  # up to two panels stand beside those of another figure
    return (half - 80) // count - 28


def side_by_side(panels: list[alt.LayerChart]) -> alt.TopLevelMixin:
    """Two panels in a row."""
    return alt.hconcat(*panels, spacing=14) if len(panels) < 3 else alt.concat(*panels, columns=2, spacing=14)


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

"""The plane of cos(h, ∇h⁺) and cos(h, ∇h⁻): where attraction and repulsion point, seen from the hidden state h.

Its axes have no unit, so models of all sizes share it. Mircea, Lobacheva & Rish 2024; ∇h⁺, ∇h⁻ as in `charts.dissent`.
"""

from collections.abc import Sequence
from textwrap import wrap

import altair as alt
import polars as pl

from lmdynamics.charts.axes import Cursor, steps_of
from lmdynamics.charts.conditions import names_of
from lmdynamics.charts.dissent import group_colours, grouped, panel, panel_width, side_by_side
from lmdynamics.charts.lines import colour_by
from lmdynamics.charts.text import Value
from lmdynamics.charts.theme import GREY, TEXT, figure
from lmdynamics.errors import UserError

PLANE = ("cos_hidden_attractive", "cos_hidden_repulsive")
QUADRANTS = {  # (side, height): what a step along minus the gradient does to ‖h‖
    (-1, 1): ["attraction lengthens h,", "repulsion shortens it"],
    (1, 1): ["both shorten h"],
    (-1, -1): ["both lengthen h"],
    (1, -1): ["attraction shortens h,", "repulsion lengthens it"],
}
X_TITLE, Y_TITLE = ["cosine of h and the", "attractive gradient"], ["cosine of h and the", "repulsive gradient"]


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

    Raises
    ------
    UserError
        If a column is missing, the step was not measured, or there is nothing to draw.
    """
    what = "dissent plane"
    rows = grouped(table, list(PLANE), what)
    curves, colours, steps = names_of(rows, "curve"), group_colours(rows, groups), steps_of(rows)
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError(f"{what}: step {step} was not measured; measured: {', '.join(map(str, steps))}")
    here = str(step) if cursor is None else cursor.name
    most = min(1.3, 1.35 * max(0.1, *(rows[name].abs().max() for name in PLANE)))
    scale = alt.Scale(domain=[-most, most], nice=False)
    some = [tick for tick in (-1, -0.5, 0, 0.5, 1) if abs(tick) <= most] if most > 0.6 else None
    ticks = alt.Axis(tickCount=5, grid=False, format="~g", **({"values": some} if some else {}))
    x = alt.X(f"{PLANE[0]}:Q", title=X_TITLE, scale=scale, axis=ticks)
    width = 0 if cursor is None else min(panel_width(len(curves)), 240)
    panels = []
    for index, curve in enumerate(curves):
        y = alt.Y(
            f"{PLANE[1]}:Q",
            title=Y_TITLE if index % 2 == 0 and (cursor is None or index == 0) else None,
            scale=scale,
            axis=ticks,
        )
        data = alt.Chart(rows.filter(pl.col("curve") == curve))
        colour = colour_by("group", colours, columns=5)
        tips = ["group:N", "step:Q", *(alt.Tooltip(f"{name}:Q", format="+.3f") for name in PLANE)]
        base = data.encode(x, y, colour)
        at = base.transform_filter(f"datum.step == {here}")
        layers = [
            *_quadrants(most, x, y, small=cursor is not None),
            base.mark_line(strokeWidth=1.4).encode(order="step:Q"),
            base.mark_point(size=14, filled=True, opacity=0.7).encode(tooltip=tips),
            at.mark_point(size=170, filled=True, opacity=1, stroke="white", strokeWidth=1.2).encode(tooltip=tips),
        ]
        height = (330 if len(curves) > 1 else 380) if cursor is None else width
        panels.append(panel(alt.layer(*layers), curve, curves, 330, height=height, width=width))
    at_step = Value(f"format({here}, ',d')")
    return figure(
        side_by_side(panels) if cursor is None else alt.hconcat(*panels, spacing=14),
        ["Attraction and repulsion against the hidden state, step ", at_step],
        "lines: a group's course over training; large dots: at this step",
        f"The plane of the cosines of h with attraction and with repulsion. At step {step:,}: "
        + _spoken_plane(rows, step),
    )


def _quadrants(most: float, x: alt.X, y: alt.Y, small: bool) -> list[alt.Chart]:
    axes = alt.Chart(alt.Data(values=[{}]))
    layers = [
        axes.mark_rule(color=GREY, strokeWidth=1).encode(x=alt.datum(0)),
        axes.mark_rule(color=GREY, strokeWidth=1).encode(y=alt.datum(0)),
    ]
    for (side, height), text in QUADRANTS.items():
        text = [line for part in text for line in wrap(part, 12)] if small else text
        place = alt.Chart(alt.Data(values=[{PLANE[0]: side * most, PLANE[1]: height * most}]))
        inward = {"align": "left" if side < 0 else "right", "dx": -7 * side}
        onward = {"baseline": "top" if height > 0 else "bottom", "dy": 7 if height > 0 else -7 - 12 * (len(text) - 1)}
        layers.append(
            place.mark_text(text=text, fontSize=9 if small else 10.5, color=TEXT, **inward, **onward).encode(x, y)
        )
    return layers


def _spoken_plane(rows: pl.DataFrame, step: int) -> str:
    here = rows.filter(pl.col("step") == step)
    places = [
        f"{row['curve']} {row['group']} ({row[PLANE[0]]:+.2f}, {row[PLANE[1]]:+.2f})".strip() for row in here.to_dicts()
    ]
    return ("; ".join(places) + ".").replace("-", "−")

"""A break put by hand: what it costs to be elsewhere, and how the curve would look.

`broken_by_hand` follows a cursor over the rows of a profile, `break_profile` can; `hand_parameters` holds the row.
"""

from collections.abc import Mapping

import altair as alt
import polars as pl

from lmdynamics.analysis.fits import fitted_line, least_error
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import AT, Cursor, step_axis, strips
from lmdynamics.charts.deceleration import LOSS, LOSS_TIP, STEP_TIP, step_ends, thinned
from lmdynamics.charts.text import Value
from lmdynamics.charts.theme import BLUE, GREY, HEIGHT, TEXT, VERMILION, WIDTH, figure
from lmdynamics.errors import UserError

HAND, BEST = VERMILION, BLUE
HAND_STEP = Value("format(hand_step, ',.0f')")
COLUMNS = {  # parameters of the views, and the columns of a profile that they take
    "hand_step": "step_at_break",
    "hand_loss": "loss_at_break",
    "hand_before": "rate_before_break",
    "hand_after": "rate_after_break",
    "hand_width": "f1",
    "hand_rsle": "rsle",
}


def hand_parameters(profile: pl.DataFrame) -> list[alt.Parameter]:
    """The numbers of the break at the cursor's place, a row of `analysis.fits.break_profile`."""
    rows = alt.param(name="hand_rows", value=profile.select(**COLUMNS).to_dicts())
    return [rows, *(alt.param(name=name, expr=f"hand_rows[{AT}].{name}") for name in COLUMNS)]


def break_profile(profile: pl.DataFrame, best_step: float, cursor: Cursor | None = None) -> alt.LayerChart:
    """The error that is left with the break put at each step: a dot at the best, a second at the cursor.

    `profile`: step_at_break, rsle, as `analysis.fits.break_profile` gives them.
    """
    need_columns(profile, ["step_at_break", "rsle"], "break profile")
    if profile.is_empty():
        raise UserError("break profile: the frame has no rows; give one per step at which a break was put")
    rows = profile.sort("step_at_break").select(x="step_at_break", rsle="rsle")
    least = least_error(profile, best_step)
    near = rows.filter(pl.col("rsle") <= 1.1 * least)["x"]
    x = step_axis(rows["x"])
    title = "RMS error of log loss"
    y = alt.Y("rsle:Q", title=title).scale(domain=[0, rows["rsle"].max() * 1.12], nice=False).axis(tickCount=5)
    tips = [alt.Tooltip("x:Q", title="break at step", format=",.0f"), alt.Tooltip("rsle:Q", format=".4f")]
    best = alt.Chart(alt.Data(values=[{"x": best_step, "rsle": least, "label": f"best: {best_step:,.0f}"}]))
    beside = {"align": "right", "dx": -11} if best_step > rows["x"].median() else {"align": "left", "dx": 11}
    label = {"dy": 14, "baseline": "top"} if least > 0.17 * rows["rsle"].max() else beside  # clear of the axis
    layers = [
        alt.Chart(rows).mark_line(color=GREY, strokeWidth=2).encode(x, y, tooltip=tips),
        best.mark_point(color=BEST, filled=True, size=110, opacity=1).encode(x, y, tooltip=tips),
        best.mark_text(color=TEXT, fontSize=11, **label).encode(x, y, text="label:N"),
    ]
    shown: str | list[str | Value] = f"The error is least with the break at step {best_step:,.0f}"
    within = f"within a tenth of it from step {near.min():,.0f} to {near.max():,.0f}" if len(near) > 1 else ""
    if cursor is not None:
        at = alt.Chart(alt.Data(values=[{}])).transform_calculate(x="hand_step", rsle="hand_rsle")
        layers += [
            at.mark_rule(color=HAND, strokeDash=[4, 3]).encode(x),
            at.mark_point(color=HAND, filled=True, size=110, opacity=1, shape="diamond").encode(x, y, tooltip=tips),
            strips(rows.with_columns(step="x"), x, cursor, tips[1:]),
        ]
        times = f"hand_rsle / {least!r}"
        shown = [
            "A break at step ",
            HAND_STEP,
            " leaves ",
            Value(f"format({times}, {times} < 1.095 ? '.2f' : '.1f')", "100.0"),
            f" times the least error, at {best_step:,.0f}",
        ]
    said = f"Error against the step of the break. Least at step {best_step:,.0f}: {least:.3g}; {within}."
    chart = alt.layer(*layers).properties(width=WIDTH, height=110)
    return figure(chart, shown, within, said.replace("; .", "."))


def broken_by_hand(points: pl.DataFrame, best: Mapping[str, float], cursor: Cursor) -> alt.LayerChart:
    """One curve with a break that was put somewhere by hand, and, thin, with the best one.

    `points`: step, loss of one curve. `best`: a row of `analysis.fits.break_profile`, or of `fits_table`. The break is
    that of `hand_parameters`.
    """
    need_columns(points, ["step", "loss"], "break by hand: points")
    name = str(points["curve"][0]) if "curve" in points.columns and len(points) else "the curve"
    data = thinned(points.with_columns(curve=pl.lit(name)), name)
    first, last = data["x"].min(), data["x"].max()
    low, high = min(data["loss"].min(), best["loss_at_break"]) / 1.05, data["loss"].max() * 1.05
    reach = {
        "domainMin": alt.ExprRef(f"min({low}, hand_loss / 1.05)"),
        "domainMax": alt.ExprRef(f"max({high}, hand_loss * 1.05)"),
    }
    x = step_axis(step_ends(data))
    y = alt.Y("loss:Q", title=LOSS).scale(type="log", nice=False, **reach).axis(tickCount=6, format="~g")
    grid = pl.DataFrame({"x": [first * (last / first) ** (i / 159) for i in range(160)]})
    ends = alt.Data(values=[{"end": 0}, {"end": 1}, {"end": 2}])
    rate = "(datum.x < hand_step ? hand_before : hand_after)"
    drop = "log(datum.x / hand_step) / hand_width"
    bend = f"(max({drop}, 0) + log(1 + exp(-abs({drop}))))"  # log(1 + exp(drop)), without overflow
    smooth = (
        f"hand_loss * exp(-hand_before * log(datum.x / hand_step) + hand_width * (hand_before - hand_after) * {bend})"
    )
    sharp = f"hand_loss * pow(datum.x / hand_step, -{rate})"
    by_hand = alt.Chart(grid).transform_calculate(loss=smooth)
    pieces = (
        alt.Chart(ends)
        .transform_calculate(x=f"[{first}, hand_step, {last}][datum.end]")
        .transform_calculate(loss=sharp)
    )
    at = alt.Chart(alt.Data(values=[{}])).transform_calculate(x="hand_step", loss="hand_loss")
    meet = alt.Chart(alt.Data(values=[{"x": best["step_at_break"], "loss": best["loss_at_break"]}]))
    layers = [
        alt.Chart(data)
        .mark_point(size=16, filled=True, color=GREY, opacity=0.45)
        .encode(x, y, tooltip=[STEP_TIP, LOSS_TIP]),
        alt.Chart(fitted_line({**best, "curve": name}, first, last))
        .mark_line(color=BEST, strokeWidth=1.3, clip=True)
        .encode(x, y),
        meet.mark_point(color=BEST, filled=True, size=70, opacity=1, clip=True).encode(
            x, y, tooltip=[STEP_TIP, LOSS_TIP]
        ),
        by_hand.mark_line(color=HAND, strokeWidth=2.2, clip=True).encode(x, y),
        pieces.mark_line(color=HAND, strokeWidth=1.2, strokeDash=[5, 4], clip=True).encode(x, y, order="end:Q"),
        at.mark_point(color=HAND, filled=True, size=110, shape="diamond", opacity=1, clip=True).encode(x, y),
        strips(data.select("x", "loss", step="x").unique("x", maintain_order=True), x, cursor, [LOSS_TIP]),
    ]
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=HEIGHT - 60),
        [
            f"{name} with a break put at step ",
            HAND_STEP,
            ": rate ",
            Value("format(hand_before, '.3r')", "−0.0111"),
            " → ",
            Value("format(hand_after, '.3r')", "−0.0111"),
        ],
        [
            "orange: the curve with this break, dashed: the two power laws it joins",
            f"blue: the best break, step {best['step_at_break']:,.0f}, rate "
            f"{best['rate_before_break']:.3g} → {best['rate_after_break']:.3g}",
        ],
        f"Loss of {name} against step, both logarithmic, with a break put by hand and the best break, at step "
        f"{best['step_at_break']:,.0f}, loss {best['loss_at_break']:.3f}.",
    )

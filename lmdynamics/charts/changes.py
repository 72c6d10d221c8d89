"""Changes of tokens' losses at the checkpoint where a cursor stands: what the zero-sum explorer shows."""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import Cursor, on_step_axis, step_axis, steps_of, strips, upright
from lmdynamics.charts.decomposition import span
from lmdynamics.charts.lines import line_layers
from lmdynamics.charts.theme import BLUE, GREY, TEXT, VERMILION, figure
from lmdynamics.charts.trades import SIGNED
from lmdynamics.errors import UserError

WIDTH = 330  # two stand side by side
SIDES = {"fell": BLUE, "rose": VERMILION}


def interference_cursor(
    table: pl.DataFrame, cursor: Cursor, each: pl.DataFrame | None = None, caption: str = ""
) -> alt.LayerChart:
    """D over training with its band, and an upright line at the step that `cursor` holds.

    `table`: step, interference, interference_low, interference_high (null: no band). `each`: step, interference of one
    batch alone, thin. `caption`: what is looked at.

    Raises
    ------
    UserError
        If a column is missing, or there is no number to draw.
    """
    what = "interference at a checkpoint"
    columns = ["interference", "interference_low", "interference_high"]
    need_columns(table, ["step", *columns], what)
    rows = on_step_axis(table).filter(pl.col("interference").is_finite())
    if rows.is_empty():
        raise UserError(f"{what}: no step has a number; nothing changed at any of them")
    x, title = step_axis(steps_of(rows)), "destructive interference D"
    scale = alt.Scale(domain=[0, 1])
    y = alt.Y("interference:Q", title=title, scale=scale).axis(tickCount=5)
    tips = [alt.Tooltip(f"{name}:Q", format=".3f") for name in columns]
    ends = ("interference_low", "interference_high")
    layers = line_layers(rows, x, y, BLUE, ends=ends, width=2.2, points=22)
    if each is not None and len(each):
        layers.append(alt.Chart(on_step_axis(each)).mark_line(color=GREY, strokeWidth=1.2).encode(x, y))
    layers += [upright(cursor, x), strips(rows.select("x", "step", *columns), x, cursor, tips)]
    told = f"from {span(rows['interference'][:1])} to {span(rows['interference'][-1:])}"
    key = [
        "band: 95 %" if len(rows.drop_nulls(ends)) else "",
        "grey: this batch alone" if each is not None and len(each) else "",
    ]
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=105),
        f"Destructive interference goes {told}",
        [caption, "; ".join(filter(None, key))],
        f"Destructive interference against step, {told}, with a line at one checkpoint. {caption}".strip(),
    )


def change_histogram(bins: pl.DataFrame, cursor: Cursor) -> alt.LayerChart:
    """How tokens' changes are spread at the step that `cursor` holds: those whose loss fell in blue, rose in orange.

    `bins`: step, low, high, share, side, tokens of `analysis.zero_sum.change_bins` by step.

    Raises
    ------
    UserError
        If a column is missing, or there are no bins.
    """
    what = "changes at a checkpoint"
    need_columns(bins, ["step", "low", "high", "share", "side", "tokens"], what)
    if bins.is_empty():
        raise UserError(f"{what}: there are no changes to count")
    most = bins["high"].max() if bins["high"].max() > -bins["low"].min() else -bins["low"].min()
    inner = bins.filter(pl.col("low") >= 0)["high"].min() or bins.filter(pl.col("high") <= 0)["low"].abs().min()
    scale = alt.Scale(type="symlog", constant=10 * (inner or most), domain=[-most, most], nice=False)
    marks = [sign * 10.0**e for e in range(-9, 3) for sign in (-1, 1) if inner < 10.0**e <= most][-6:]
    x = alt.X("low:Q", title="change of a token's loss (nats; wider steps further out)", scale=scale)
    x = x.axis(values=sorted([0, *marks]), labelExpr=SIGNED, grid=False)
    y = alt.Y("share:Q", title="share of tokens").scale(domain=[0, bins["share"].max() * 1.05], nice=False)
    colour = alt.Color("side:N", legend=None).scale(domain=list(SIDES), range=list(SIDES.values()))
    tips = [*(alt.Tooltip(f"{name}:Q", format="+.3~g") for name in ("low", "high")), "tokens:Q"]
    base = alt.Chart(bins).transform_filter(f"datum.step == {cursor.name}")
    bars = base.mark_rect(stroke=None).encode(
        x, alt.X2("high:Q"), y.axis(format="%", tickCount=4), alt.Y2(datum=0), colour, tooltip=tips
    )
    zero = alt.Chart(alt.Data(values=[{"low": 0}])).mark_rule(color=TEXT).encode(x)
    return figure(
        alt.layer(bars, zero).properties(width=WIDTH, height=105),
        ["How far losses moved at step ", cursor.number],
        "blue: the loss fell; orange: it rose",
        "Histogram of the changes of tokens' losses at one checkpoint, those that fell to the left.",
    )


def traded_at(table: pl.DataFrame, cursor: Cursor, by: str = "") -> alt.LayerChart:
    """How far each group's losses fell and rose at the step that `cursor` holds.

    `table`: step, group, gained, lost, net, as `analysis.zero_sum.traded` gives them by step. `by`: what groups are.
    """
    what = "losses traded at a checkpoint"
    need_columns(table, ["step", "group", "gained", "lost", "net"], what)
    if table.is_empty():
        raise UserError(f"{what}: the frame has no rows")
    rows = table.with_columns(pl.col("group").cast(pl.String), away=-pl.col("gained"))
    groups = rows["group"].unique(maintain_order=True).to_list()
    name = cursor.name
    here = alt.Chart(rows).transform_filter(f"datum.step == {name}")
    y = alt.Y("group:N", title=by or None, sort=groups).scale(domain=groups)
    y = y.axis(ticks=False, domain=False, labelLimit=150, labelPadding=8, titlePadding=24)
    axis = alt.Axis(tickCount=5, labelExpr=SIGNED, grid=False)
    title = "change of loss (nats per token of the text)"
    tips = ["group:N", *(alt.Tooltip(f"{column}:Q", format="+.3~g") for column in ("gained", "lost", "net"))]
    layers = [
        here.mark_bar(color=colour, height=11).encode(alt.X(f"{column}:Q", title=title, axis=axis), y, tooltip=tips)
        for column, colour in (("away", BLUE), ("lost", VERMILION))
    ]
    dot = here.mark_point(filled=True, color="#ffffff", stroke=TEXT, strokeWidth=1.6, size=45, opacity=1)
    layers += [
        here.mark_rule(color=TEXT).encode(x=alt.datum(0)),
        dot.encode(alt.X("net:Q", title=title, axis=axis), y, tooltip=tips),
    ]
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=20 * len(groups)),
        ["Whose losses fell and rose at step ", cursor.number],
        "blue: how far losses fell; orange: rose; dot: the sum of both",
        f"Losses that fell and rose at one checkpoint, for the groups {', '.join(groups)}.",
    )


def token_course(rows: pl.DataFrame, token: str, cursor: Cursor) -> alt.VConcatChart | alt.LayerChart:
    """One token over training: its loss, and how far it moved at each checkpoint, with a line at `cursor`.

    `rows`: step, change (nats), perhaps loss (nats, before the change). There is no interval: it is one token.

    Raises
    ------
    UserError
        If a column is missing, or there are no rows.
    """
    what = "a token over training"
    need_columns(rows, ["step", "change"], what)
    if rows.is_empty():
        raise UserError(f"{what}: it was measured at no checkpoint")
    data = on_step_axis(rows)
    loss = "loss" in rows.columns and data["loss"].is_not_null().any()
    columns = ["loss", "change"] if loss else ["change"]
    by = "a doubling" if "until" in rows.columns else "one step"
    titles = {"loss": "loss (nats)", "change": [f"change by {by}", "(nats)"]}
    panels = []
    for column in columns:
        x = step_axis(steps_of(data), "training step (log)" if column == "change" else None)
        y = alt.Y(f"{column}:Q", title=titles[column]).scale(zero=column == "change").axis(tickCount=4)
        base = alt.Chart(data).encode(x, y)
        if column == "loss":
            marks = [base.mark_line(color=BLUE, strokeWidth=2), base.mark_point(color=BLUE, size=16, filled=True)]
        else:
            fell = alt.condition("datum.change < 0", alt.value(BLUE), alt.value(VERMILION))
            bars = base.mark_rule(strokeWidth=4).encode(alt.Y2(datum=0), color=fell)
            marks = [bars, alt.Chart(data).mark_rule(color=TEXT).encode(y=alt.datum(0))]
        tip = alt.Tooltip(f"{column}:Q", format="+.3~g" if column == "change" else ".3f")
        over = strips(data.select("x", "step", column), x, cursor, [tip])
        panels.append(alt.layer(upright(cursor, x), *marks, over).properties(width=WIDTH, height=48))
    chart = alt.vconcat(*panels, spacing=10) if loss else panels[0]
    largest = data.sort(pl.col("change").abs())["step"][-1]
    most = f"{data.filter(step=largest)['change'][0]:+.3g} nats".replace("-", "−")
    told = f"{by} moves it most at {largest:,}, by {most}"
    if loss:
        told = f"loss {data['loss'][0]:.2f} → {data['loss'][-1]:.2f}, {told}"
    return figure(
        chart,
        f"“{token}”: {told}",
        "blue: its loss fell; orange: rose; one token, no interval",
        f"One token over training: {told}.",
    )

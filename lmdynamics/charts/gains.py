"""Where a condition gains: accuracy on each paradigm of minimal pairs, less the baseline's."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.conditions import ROW, absent, count, tidy
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import TEXT, WIDTH, condition_colours, figure

SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+.3~r')"


def gain_by_paradigm(
    frame: pl.DataFrame, baseline: str = "the baseline", *, conditions: Sequence[str] | None = None
) -> alt.HConcatChart:
    """Accuracy less that of the baseline's run of the same seed: a row per paradigm, a column per condition.

    `frame`: paradigm, condition, seed, difference (a share; shown in percentage points). Paradigms stand in the order
    of their mean gain over conditions; rows of the baseline itself are left out.
    """
    need_columns(frame, ["paradigm", "condition", "seed", "difference"], "gain by paradigm")
    others = frame.filter(pl.col("condition") != baseline).with_columns(value="difference")
    data, missing = tidy(others, ["paradigm", "condition", "seed", "value"], "gain by paradigm")
    colours = condition_colours(data["condition"], conditions)
    data = data.with_columns(
        pl.col("value") * 100, name=pl.col("paradigm").str.replace_all("_", " ").str.replace("-([^-]*)$", ": $1")
    )
    mean = data.group_by("condition", "name", maintain_order=True).agg(pl.col("value").mean()).drop_nulls("value")
    ranked = mean.group_by("name", maintain_order=True).agg(pl.col("value").mean())
    order = ranked.sort("value", descending=True, maintain_order=True)["name"].to_list()
    low, high = (min(0, data["value"].min()), max(0, data["value"].max()))
    scale = alt.Scale(domain=[low, high] if low < high else [-1, 1], nice=True)
    dense = len(order) > 8
    panels, said, gains = [], [], {}
    for index, (name, colour) in enumerate(colours.items()):
        here, middle = (t.filter(pl.col("condition") == name) for t in (data, mean))
        y = alt.Y("name:N", title=None, sort=order).scale(domain=order)
        y = y.axis(labels=index == 0, ticks=False, domain=False, grid=True, labelLimit=0, labelPadding=8)
        width = max(104, min(240, WIDTH // len(colours)))
        axis = alt.Axis(labelExpr=SIGNED, tickCount=4 if width > 140 else 3, grid=False)
        x = alt.X("value:Q", title="percentage points", axis=axis, scale=scale)
        tips = [alt.Tooltip("name", title="paradigm"), alt.Tooltip("value", title="gain (points)", format="+.1f")]
        none = alt.Chart(alt.Data(values=[{"value": 0}])).mark_rule(color=TEXT, strokeWidth=1.2).encode(x)
        dots = alt.Chart(here).mark_point(size=14 if dense else 26, filled=True, opacity=1, color=colour)
        ticks = alt.Chart(middle).mark_tick(thickness=3, size=12 if dense else 18, color=colour, opacity=1)
        panel = alt.layer(none, dots.encode(x, y, tooltip=[*tips, "seed"]), ticks.encode(x, y, tooltip=tips))
        up = (middle["value"] > 0).sum()
        gains[name] = middle["value"].mean()
        told = f"{_points(gains[name])}, {up} of {len(middle)} up"
        head = alt.TitleParams(
            wrapped(name, width),
            subtitle=told,
            fontSize=12,
            fontWeight="normal",
            subtitleFontSize=11,
            anchor="middle",
            offset=6,
        )
        panels.append(panel.properties(width=width, height=(16 if dense else ROW) * len(order), title=head))
        said.append(f"{name} {told}")
    gains = {name: gain for name, gain in gains.items() if gain is not None}
    (least, low), (most, high) = min(gains.items(), key=lambda g: g[1]), max(gains.items(), key=lambda g: g[1])
    span = f"{_points(low)} ({least}) to {_points(high)} ({most})" if len(gains) > 1 else f"{_points(low)} ({least})"
    caption = ["in percentage points of accuracy, same seed", "dot: a seed", "tick: mean", absent(missing)]
    return figure(
        alt.hconcat(*panels, spacing=14),
        f"Mean gain over {baseline}, {count(len(order), 'paradigm')}: {span}",
        "; ".join(filter(None, caption)),
        f"Gain in accuracy over {baseline}, by paradigm. Mean in percentage points: {'; '.join(said)}. "
        f"Largest for {order[0]}, smallest for {order[-1]}.",
    )


def _points(value: float | None) -> str:
    return "no value" if value is None else f"{value:+.1f}".replace("-", "−")

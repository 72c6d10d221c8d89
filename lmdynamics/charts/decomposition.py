"""The three measures of a change in tokens' losses, D, M and |ΔL| = M (1 − D), one above the other over training."""

import math
from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import log_ticks, on_step_axis, step_axis, steps_of
from lmdynamics.charts.conditions import count
from lmdynamics.charts.lines import line_layers
from lmdynamics.charts.theme import TEXT
from lmdynamics.errors import UserError

MEASURES = {
    "interference": ["destructive", "interference D"],
    "magnitude": ["magnitude M", "(nats per token)"],
    "mean_change": ["|ΔL| (nats per", "token, log scale)"],
}


def tidy(table: pl.DataFrame, key: str, what: str) -> pl.DataFrame:
    """One row per number: the key (with `size`, if given), step, x, measure, value, low, high; whether it `rose`"""
    need_columns(table, [key, "step", *MEASURES], what)
    parts, keys = [], [key, *(["size"] if "size" in table.columns else [])]
    for name in MEASURES:
        ends = [
            pl.col(column).cast(pl.Float64) if column in table.columns else pl.lit(None, pl.Float64)
            for column in (f"{name}_low", f"{name}_high")
        ]
        part = table.select(
            *keys, "step", measure=pl.lit(name), value=pl.col(name).cast(pl.Float64), low=ends[0], high=ends[1]
        )
        part = part.with_columns(rose=(pl.col("value") > 0) if name == "mean_change" else pl.lit(False))
        parts.append(_size_alone(part) if name == "mean_change" else part)
    rows = on_step_axis(pl.concat(parts)).with_columns(
        pl.col(key).cast(pl.String), pl.col("low", "high").fill_nan(None)
    )
    rows = rows.filter(pl.col("value").is_finite(), (pl.col("value") > 0) | (pl.col("measure") != "mean_change"))
    if rows.is_empty():
        raise UserError(
            f"{what}: none of {len(table)} rows has a number; trace losses at two checkpoints or more first"
        )
    order = table[key].cast(pl.String).unique(maintain_order=True).to_list()
    return rows.sort(pl.col(key).replace_strict(order, list(range(len(order)))), "step", maintain_order=True)


def panels(
    rows: pl.DataFrame,
    scales: Mapping[str, alt.Y],
    width: int,
    colour: alt.Color,
    *,
    dashes: Mapping[str, Sequence[int]] | None = None,
    breaks: pl.DataFrame | None = None,
    titles: bool = True,
    title: str = "step t at which the doubling t → 2t starts (log scale)",
) -> list[alt.LayerChart]:
    """The three measures of `tidy` rows, each a panel, over the same steps; the last one has the legend."""
    steps, made = steps_of(rows), []
    field, legend = colour["field"], colour["legend"]
    key = "series" if "series" in rows.columns else "curve"
    for index, name in enumerate(MEASURES):
        last = index == len(MEASURES) - 1
        x = step_axis(steps, title if last else None, sparse=width < 300)
        colour = colour.copy()
        colour["legend"] = legend if last else None
        y = scales[name] if titles else scales[name].copy()
        if not titles:
            y["title"] = None
        data = rows.filter(pl.col("measure") == name)
        number = ".4f" if name == "interference" else ".4~g"
        tips = [f"{key}:N", "step:Q", *(alt.Tooltip(f"{c}:Q", format=number) for c in ("value", "low", "high"))]
        low, high = y["scale"]["domain"]
        base = alt.Chart(data).encode(x, y, colour, detail=f"{key}:N")
        layers = _upright(breaks, x, colour, labels=index == 0) if breaks is not None else []
        shown, dash = data.with_columns(pl.col("low", "high").clip(low, high)), _dash(field, dashes, colour["legend"])
        opacity = 0.18 if dashes is None else 0.1
        layers += line_layers(shown, x, y, colour, opacity=opacity, dash=dash, detail=f"{key}:N")
        for rose in sorted(data["rose"].unique()):
            dots = base.mark_point(size=26, filled=not rose, opacity=1, strokeWidth=1.5).encode(tooltip=tips)
            layers.append(dots.transform_filter(f"datum.rose == {str(rose).lower()}"))
        made.append(alt.layer(*layers).properties(width=width, height=150 if index == 0 else 110))
    return made


def _dash(key: str, dashes: Mapping[str, Sequence[int]] | None, legend: alt.Legend | None) -> alt.StrokeDash | None:
    if not dashes or len({tuple(each) for each in dashes.values()}) == 1:
        return None
    scale = alt.Scale(domain=list(dashes), range=[list(each) for each in dashes.values()])
    return alt.StrokeDash(field=key, type="nominal", title=None, scale=scale, legend=legend)


def measure_axis(name: str, *parts: pl.DataFrame) -> alt.Y:
    """A measure's axis, the same for all parts: D from 0 to 1, M from 0, |ΔL| logarithmic."""
    rows = pl.concat([part.filter(pl.col("measure") == name).select("value", "low", "high") for part in parts])
    y = alt.Y("value:Q", title=MEASURES[name])
    if name == "interference":
        return y.scale(domain=[0, 1]).axis(tickCount=5)
    most = max(rows["value"].max() or 1.0, rows["high"].max() or 0.0)
    if name == "magnitude":
        return y.scale(domain=[0, 1.05 * most], nice=False).axis(tickCount=4, format="~g")
    low, high = (rows["value"].min() or 0.1) / 1.4, 1.2 * most
    if high / low > 1e4:  # such ticks would not fit as numbers written out
        tens = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        ticks, style = [10.0**e for e in tens[:: -(-len(tens) // 4)]], "~e"
    else:
        ticks, style = log_ticks(low, high, 4), "~g"
    return y.scale(type="log", domain=[low, high], nice=False).axis(values=ticks, format=style)


def _size_alone(part: pl.DataFrame) -> pl.DataFrame:
    """|ΔL| for ΔL: an interval on both sides of zero reaches down to it."""
    low, high = pl.col("low"), pl.col("high")
    least = pl.when(low * high > 0).then(pl.min_horizontal(low.abs(), high.abs())).otherwise(0.0)
    return part.with_columns(
        pl.col("value").abs(),
        low=pl.when(low.is_not_null() & high.is_not_null()).then(least),
        high=pl.when(low.is_not_null() & high.is_not_null()).then(pl.max_horizontal(low.abs(), high.abs())),
    )


def _upright(breaks: pl.DataFrame, x: alt.X, colour: alt.Color, labels: bool) -> list[alt.Chart]:
    if breaks.is_empty():
        return []
    tips = ["curve:N", alt.Tooltip("x:Q", title="t_d", format=",.0f")]
    layers = [alt.Chart(breaks).mark_rule(strokeWidth=1.2, strokeDash=[4, 3]).encode(x, colour, tooltip=tips)]
    if labels:
        first = breaks.unique("group", keep="first", maintain_order=True).with_columns(label=pl.lit("t_d"))
        text = alt.Chart(first).mark_text(color=TEXT, align="right", baseline="top", dx=-5, fontSize=11)
        layers.append(text.encode(x, text="label:N", y=alt.value(2)))
    return layers


def span(values: pl.Series) -> str:
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low}–{high}"


def spoken(rows: pl.DataFrame, key: str = "curve") -> str:
    said = []
    for (name,), part in rows.group_by(key, maintain_order=True):
        ends = [
            f"{measure} {one['value'][0]:.2g} → {one['value'][-1]:.2g}"
            for measure, short in zip(MEASURES, ("D", "M", "|ΔL|"), strict=True)
            for measure, one in [(short, part.filter(pl.col("measure") == measure))]
            if len(one)
        ]
        said.append(f"{name}: {', '.join(ends)} over {count(part['step'].n_unique(), 'step')}.")
    return " ".join(said)

"""A recorded figure over many batches: whether it drifts, jumps, or stays within its tolerance."""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import same_axis
from lmdynamics.charts.conditions import MAX_ROWS, capital, count, number
from lmdynamics.charts.encodings import interval, numbers
from lmdynamics.charts.theme import BLUE, GREY, HEIGHT, VERMILION, WIDTH, figure
from lmdynamics.errors import UserError, printable

NAME = "trend of a record"


def record_trend(frame: pl.DataFrame) -> alt.LayerChart:
    """One record of one item against the time at which its batches ended.

    `frame`: batch, ended (a datetime), value, perhaps item, record, unit, low and high (95 %, drawn as vertical lines),
    and baseline with tolerance: values within the grey band are accepted as equal, values outside it are vermilion.
    Rows of `batch.site.trend`, filtered to one item and record.
    """
    data = _tidy(frame)
    labels = [printable(data[column][-1]) for column in ("record", "item") if column in data.columns]
    units = data["unit"].drop_nulls().unique().to_list() if "unit" in data.columns else []
    unit = printable(units[0]) if len(units) == 1 else ""
    name = labels[0] if labels else "value"
    x = alt.X("ended:T", title="batch ended (local time)").scale(padding=12)
    x = x.axis(grid=False, tickCount=4, labelOverlap=True, format="%Y-%m-%d %H:%M")
    y = alt.Y("value:Q", title=f"{name} ({unit})" if unit else name).scale(zero=False)
    if (first := data["value"][0]) == data["value"].min() == data["value"].max():  # or its one tick would be rounded
        y = y.scale(zero=False, domain=[first - abs(first) / 10 - 1e-9, first + abs(first) / 10 + 1e-9], clamp=False)
    columns = [column for column in ("value", "low", "high", "baseline", "tolerance") if column in data.columns]
    tips = ["batch", alt.Tooltip("ended:T", format="%Y-%m-%d %H:%M"), *numbers(",.4~g", *columns)]
    layers, caption = [], []
    if data["baseline"].is_not_null().any():
        layers += _accepted(data.drop_nulls("baseline"), x, y)
        caption.append("grey: accepted, with its tolerance" if len(layers) == 2 else "grey: accepted")
    chart = alt.Chart(data)
    bounds = interval(data, y, x, color=BLUE, strokeWidth=1.2, opacity=0.6)
    layers += bounds
    layers.append(chart.mark_line(color=BLUE, strokeWidth=1.5).encode(x, y))
    colour = alt.condition("datum.outside", alt.value(VERMILION), alt.value(BLUE))
    layers.append(chart.mark_point(size=45, filled=True, opacity=1).encode(x, y, color=colour, tooltip=tips))
    caption.append("vertical lines: 95 %" if bounds else "no intervals")
    if data["outside"].any():
        caption.append("vermilion: outside the tolerance")
    if missing := len(frame) - len(data):
        caption.append(f"{count(missing, 'row')} without a number left out")
    summary = _summary(name, unit, data)
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=HEIGHT),
        summary,
        [" of ".join(labels), "; ".join(caption)],
        f"{' of '.join(labels) or name} over {_batches(data)}. {capital(summary)}.",
    )


def _tidy(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with a number by time, with `floor` and `ceiling` of the tolerance and whether they are outside."""
    need_columns(frame, ["batch", "ended", "value"], NAME)
    if not frame["ended"].dtype.is_temporal():
        raise UserError(f"{NAME}: ended is {frame['ended'].dtype}, expected a datetime; use batch.site.trend")
    for column in ("item", "record"):
        if column in frame.columns and frame[column].n_unique() > 1:
            raise UserError(f"{NAME}: {frame[column].n_unique()} different values of {column}; filter the frame to one")
    optional = [pl.lit(None).alias(name) for name in ("low", "high", "baseline", "tolerance") if name not in frame]
    frame = frame.with_columns(optional).with_columns(
        pl.col("value", "low", "high", "baseline", "tolerance").cast(pl.Float64)
    )
    data = frame.filter(pl.col("value").is_finite(), pl.col("ended").is_not_null()).sort("ended", maintain_order=True)
    if data.is_empty():
        raise UserError(f"{NAME}: none of {len(frame)} rows has a number and a time; run some batches first")
    if len(data) > MAX_ROWS:
        raise UserError(f"{NAME}: {len(data):,} rows, a figure holds {MAX_ROWS:,}; leave out old batches")
    # rounding errors of the subtraction do not count, as in the comparison of batches
    rounding = 4 * 2.0**-52 * pl.max_horizontal(pl.col("value").abs(), pl.col("baseline").abs())
    return data.with_columns(
        floor=pl.col("baseline") - pl.col("tolerance"),
        ceiling=pl.col("baseline") + pl.col("tolerance"),
        outside=((pl.col("value") - pl.col("baseline")).abs() > pl.col("tolerance") + rounding).fill_null(False),
    )


def _accepted(data: pl.DataFrame, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The baseline and its band: straight if constant, otherwise in steps from batch to batch."""
    constant = data.select("baseline", "tolerance").n_unique() == 1
    base = alt.Chart(data.head(1)) if constant else alt.Chart(data).encode(x)
    stepped = {} if constant else {"interpolate": "step-after"}
    band = base.mark_rect if constant else base.mark_area
    dashed = base.mark_rule if constant else base.mark_line
    layers = []
    if data["floor"].is_not_null().any():
        mark = band(color=GREY, opacity=0.25, **stepped)
        layers.append(mark.encode(same_axis(y, "floor"), alt.Y2("ceiling:Q")))
    mark = dashed(color=GREY, strokeDash=[6, 4], strokeWidth=1.5, **stepped)
    return [*layers, mark.encode(same_axis(y, "baseline"))]


def _summary(name: str, unit: str, data: pl.DataFrame) -> str:
    """The title: the latest value of the record, and since when it has been outside its tolerance."""
    first, last = data["value"][0], data["value"][-1]
    start = "" if len(data) == 1 else f"{number(first, False)} → "
    summary = f"{name} {start}{number(last, False)}"
    summary += f" {unit}" if unit else ""
    summary += f" over {_batches(data)}"
    row = data.row(-1, named=True)
    if row["baseline"] is None or row["tolerance"] is None:
        return summary
    accepted = f"{number(row['baseline'], False)} ± {number(row['tolerance'], False)}"
    if not row["outside"]:
        return f"{summary}, now within {accepted}" if data["outside"].any() else f"{summary}, all within {accepted}"
    inside = data.with_row_index().filter(~pl.col("outside"))["index"]
    outside_since = data["ended"][inside[-1] + 1 if len(inside) else 0]
    return f"{summary}, outside {accepted} since {outside_since:%Y-%m-%d}"


def _batches(data: pl.DataFrame) -> str:
    n = data["batch"].n_unique()
    return f"{n} batch" if n == 1 else f"{n} batches"

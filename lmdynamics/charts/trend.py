"""A recorded figure over many batches: whether it drifts, jumps, or stays within its tolerance."""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import placed
from lmdynamics.charts.conditions import MOST_ROWS, capital, count, number
from lmdynamics.charts.encodings import interval, numbers
from lmdynamics.charts.theme import BLUE, GREY, HEIGHT, VERMILION, WIDTH, figure
from lmdynamics.errors import UserError, printable

WHAT = "trend of a record"


def record_trend(frame: pl.DataFrame) -> alt.LayerChart:
    """One record of one item against the time at which its batches ended.

    `frame`: batch, ended (a datetime), value, perhaps item, record, unit, low and high (95 %, drawn as upright lines),
    and baseline with tolerance: a grey band is where a value counts as the same, and values outside it are vermilion.
    Rows of `batch.site.trend`, filtered to one item and record.
    """
    data = _tidy(frame)
    named = [printable(data[column][-1]) for column in ("record", "item") if column in data.columns]
    units = data["unit"].drop_nulls().unique().to_list() if "unit" in data.columns else []
    unit = printable(units[0]) if len(units) == 1 else ""
    name = named[0] if named else "value"
    x = alt.X("ended:T", title="batch ended (local time)").scale(padding=12)
    x = x.axis(grid=False, tickCount=4, labelOverlap=True, format="%Y-%m-%d %H:%M")
    y = alt.Y("value:Q", title=f"{name} ({unit})" if unit else name).scale(zero=False)
    if (only := data["value"][0]) == data["value"].min() == data["value"].max():  # or its one tick would be rounded
        y = y.scale(zero=False, domain=[only - abs(only) / 10 - 1e-9, only + abs(only) / 10 + 1e-9], clamp=False)
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
    caption.append("upright lines: 95 %" if bounds else "no intervals")
    if data["outside"].any():
        caption.append("vermilion: outside the tolerance")
    if missing := len(frame) - len(data):
        caption.append(f"{count(missing, 'row')} without a number left out")
    said = _said(name, unit, data)
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=HEIGHT),
        said,
        [" of ".join(named), "; ".join(caption)],
        f"{' of '.join(named) or name} over {_batches(data)}. {capital(said)}.",
    )


def _tidy(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows with a number in order of time, with `floor` and `ceiling` of the tolerance and whether they are outside."""
    need_columns(frame, ["batch", "ended", "value"], WHAT)
    if not frame["ended"].dtype.is_temporal():
        raise UserError(f"{WHAT}: ended is {frame['ended'].dtype}, expected a datetime; use batch.site.trend")
    for column in ("item", "record"):
        if column in frame.columns and frame[column].n_unique() > 1:
            raise UserError(f"{WHAT}: {frame[column].n_unique()} different values of {column}; filter the frame to one")
    optional = [pl.lit(None).alias(name) for name in ("low", "high", "baseline", "tolerance") if name not in frame]
    frame = frame.with_columns(optional).with_columns(
        pl.col("value", "low", "high", "baseline", "tolerance").cast(pl.Float64)
    )
    data = frame.filter(pl.col("value").is_finite(), pl.col("ended").is_not_null()).sort("ended", maintain_order=True)
    if data.is_empty():
        raise UserError(f"{WHAT}: none of {len(frame)} rows has a number and a time; run some batches first")
    if len(data) > MOST_ROWS:
        raise UserError(f"{WHAT}: {len(data):,} rows, a figure holds {MOST_ROWS:,}; leave out old batches")
    # the rounding of the subtraction itself is not outside, as when batches are compared
    rounding = 4 * 2.0**-52 * pl.max_horizontal(pl.col("value").abs(), pl.col("baseline").abs())
    return data.with_columns(
        floor=pl.col("baseline") - pl.col("tolerance"),
        ceiling=pl.col("baseline") + pl.col("tolerance"),
        outside=((pl.col("value") - pl.col("baseline")).abs() > pl.col("tolerance") + rounding).fill_null(False),
    )


def _accepted(data: pl.DataFrame, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The baseline and its band: across the figure if there is one, or else in steps from batch to batch."""
    one = data.select("baseline", "tolerance").n_unique() == 1
    base = alt.Chart(data.head(1)) if one else alt.Chart(data).encode(x)
    stepped = {} if one else {"interpolate": "step-after"}
    band = base.mark_rect if one else base.mark_area
    dashed = base.mark_rule if one else base.mark_line
    layers = []
    if data["floor"].is_not_null().any():
        drawn = band(color=GREY, opacity=0.25, **stepped)
        layers.append(drawn.encode(placed(y, "floor"), alt.Y2("ceiling:Q")))
    drawn = dashed(color=GREY, strokeDash=[6, 4], strokeWidth=1.5, **stepped)
    return [*layers, drawn.encode(placed(y, "baseline"))]


def _said(name: str, unit: str, data: pl.DataFrame) -> str:
    """What the figure shows: where the record is now, and since when it has been outside its tolerance."""
    first, last = data["value"][0], data["value"][-1]
    start = "" if len(data) == 1 else f"{number(first, False)} → "
    told = f"{name} {start}{number(last, False)}"
    told += f" {unit}" if unit else ""
    told += f" over {_batches(data)}"
    row = data.row(-1, named=True)
    if row["baseline"] is None or row["tolerance"] is None:
        return told
    accepted = f"{number(row['baseline'], False)} ± {number(row['tolerance'], False)}"
    if not row["outside"]:
        return f"{told}, now within {accepted}" if data["outside"].any() else f"{told}, all within {accepted}"
    inside = data.with_row_index().filter(~pl.col("outside"))["index"]
    since = data["ended"][inside[-1] + 1 if len(inside) else 0]
    return f"{told}, outside {accepted} since {since:%Y-%m-%d}"


def _batches(data: pl.DataFrame) -> str:
    n = data["batch"].n_unique()
    return f"{n} batch" if n == 1 else f"{n} batches"

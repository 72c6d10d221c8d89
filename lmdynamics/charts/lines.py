"""Values over training, the parts that most figures share: a curve with its band, levels to compare with."""

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.charts.text import text_width
from lmdynamics.charts.theme import GREY, TEXT, WIDTH


def line_layers(
    frame: pl.DataFrame,
    x: alt.X,
    y: alt.Y,
    colour: str | alt.Color,
    tips: Sequence[alt.Tooltip | str] = (),
    *,
    ends: tuple[str, str] | None = ("low", "high"),
    opacity: float = 0.2,
    width: float = 2,
    dash: Sequence[int] | alt.StrokeDash | None = None,
    points: int = 0,
    **channels,
) -> list[alt.Chart]:
    """A band behind, a line, and points on it: layers of one panel.

    `frame`: x (as `on_step_axis` puts it), the value that `y` names, and its interval in the columns `ends`; a row
    without an interval has no band; without these columns, or with None, there is none at all. `colour`: one for all,
    or by a column. `points`: their size in square pixels (0: none); `channels`: further ones, as `detail`.
    """
    own = {"color": colour} if isinstance(colour, str) else {}
    by = [] if isinstance(colour, str) else [colour]
    dashed = {"strokeDash": list(dash)} if dash is not None and not isinstance(dash, alt.StrokeDash) else {}
    base, layers = alt.Chart(frame).encode(x, y, *by, **channels), []
    known = frame.drop_nulls(ends).height if ends and set(ends) <= set(frame.columns) else 0
    if known:
        band = base if known == len(frame) else base.transform_filter(_both(ends))
        band = band.mark_area(opacity=opacity, **own)
        layers.append(band.encode(placed(y, ends[0]), alt.Y2(f"{ends[1]}:Q")))
    line = base.mark_line(strokeWidth=width, **own, **dashed)
    layers.append(line.encode(*([dash] if isinstance(dash, alt.StrokeDash) else []), tooltip=list(tips)))
    if points:
        layers.append(base.mark_point(size=points, filled=True, opacity=1, **own).encode(tooltip=list(tips)))
    return layers


def _both(ends: tuple[str, str]) -> str:
    return " && ".join(f"isValid(datum['{end}'])" for end in ends)


def colour_by(field: str, colours: Mapping[str, str], columns: int = 4, legend: bool | None = None) -> alt.Color:
    """A line's or a point's colour by a column, with a legend below: by default where there are several colours.

    The legend has as many of the `columns` as fit.
    """
    longest = max((text_width(name, 11) for name in colours), default=0)
    columns = max(1, min(columns, int(WIDTH // (longest + 30))))
    key = alt.Legend(
        orient="bottom", columns=columns, columnPadding=10 + longest / 6,  # as far as a wider font reaches
        symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1,
    )  # fmt: skip
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    shown = len(colours) > 1 if legend is None else legend
    return alt.Color(field=field, type="nominal", title=None, scale=scale, legend=key if shown else None)


def placed(axis: alt.Y, field: str) -> alt.Y:
    """Another column on the same axis, with its scale and title."""
    other = axis.copy()
    other["shorthand"] = f"{field}:Q"
    return other


def levels(
    values: Mapping[str, float],
    y: alt.Y,
    *,
    right: bool = False,
    labels: bool = True,
    dash: Sequence[int] = (6, 4),
    apart: float = 0.0,
) -> list[alt.Chart]:
    """Values to compare with, dashed across a panel, their names above the line, or `right` of the panel.

    Of two names there whose values are less than `apart` from each other, the upper one stands above its line.
    """
    if not values:
        return []
    field = y["shorthand"].partition(":")[0]
    rows = pl.DataFrame({"name": list(values), field: [float(value) for value in values.values()]}).sort(field)
    rules = [alt.Chart(rows).mark_rule(color=GREY, strokeDash=list(dash), strokeWidth=1.5).encode(y)]
    return [*rules, *_names(rows, y, field, right, apart)] if labels else rules


def _names(rows: pl.DataFrame, y: alt.Y, field: str, right: bool, apart: float) -> list[alt.Chart]:
    if not right:
        text = alt.Chart(rows).mark_text(color=TEXT, align="left", baseline="bottom", dx=4, dy=-3, fontSize=11)
        return [text.encode(y, alt.Text("name:N"), x=alt.value(0))]
    near = rows[field].diff().fill_null(apart) < apart
    return [
        alt.Chart(part)
        .mark_text(color=TEXT, align="left", dx=6, dy=dy, fontSize=10)
        .encode(y, alt.Text("name:N"), x=alt.value("width"))
        for part, dy in ((rows.filter(near), -6), (rows.filter(~near), 3 if near.any() else 0))
        if len(part)
    ]

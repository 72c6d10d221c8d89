"""A run while it is trained: loss, rates and measurements, as one chart that takes new rows without being made anew."""

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import loss_by_bin
from lmdynamics.charts.axes import on_step_axis, step_axis, step_ticks
from lmdynamics.charts.theme import BLUE, GREEN, GREY, PURPLE, VERMILION, WIDTH, figure

RAW_PER_DECADE = 100  # single steps drawn per factor of ten: enough to see the noise, few enough to send each second
Rows = list[dict[str, float | str | None]]


def live_training(
    steps: int,
    rows: Mapping[str, Rows],
    measured: Sequence[str] = (),
    masking: bool = True,
    name: str = "the run",
    said: str = " ",
) -> alt.VConcatChart:
    """Loss above, then masking rate (where there is one), learning rate and each measurement by name.

    `steps`: at which training ends; `rows`: as `live_rows` gives them. New rows go to the data sets `raw`, `smooth` and
    `measured`, the title to the parameter `said`; `seen` is 0 until someone counts.
    """
    data = {which: alt.InlineData(values=rows[which], name=which) for which in ("raw", "smooth", "measured")}
    reach = [0, 1, steps]
    parameters = [alt.param(name="said", value=said), alt.param(name="seen", value=0)]
    panels = [_loss(data, reach)]
    if masking:
        panels.append(_line(data["raw"], reach, "masking_rate", ["masking", "rate"], VERMILION, "%"))
    panels.append(_line(data["raw"], reach, "lr", ["learning", "rate"], PURPLE, ".1~e"))
    for what in measured:
        chosen = data["measured"]
        panels.append(_line(chosen, reach, "value", what, GREEN, ".3~g", what, points=True))
    panels[-1] = _with_title(panels[-1], reach)
    chart = figure(
        alt.vconcat(*panels, spacing=10),
        "",
        f"{name}; grey: single batches, blue: their mean and middle 80 %",
        f"Loss, rates and measurements of {name} while it is trained, over {steps:,} steps on a logarithmic axis.",
    ).add_params(*parameters)
    chart.title.text = alt.ExprRef(
        r"split(replace(said, ', loss', '\nloss'), '\n')"
    )  # it is longer than the chart is wide
    # new rows bring wider labels and a longer title: the picture grows with them, or they would be cut off
    return chart.properties(autosize=alt.AutoSizeParams(type="pad", resize=True))


def live_rows(log: pl.DataFrame, measured: pl.DataFrame | None = None) -> dict[str, Rows]:
    """What a log (step, loss, lr, masking_rate) and measurements (step, name, value) come to as rows of the chart.

    `raw`: the last of the steps that fall on one place of the axis; `smooth`: their mean and middle 80 %.
    """
    columns = ("step", "loss", "lr", "masking_rate")
    place = (pl.col("step").cast(pl.Float64).clip(0.5).log10() * RAW_PER_DECADE).floor()
    finite = log.select(columns).filter(pl.col("loss").is_finite())
    raw = finite.group_by(place.alias("place")).agg(pl.all().sort_by("step").last()).drop("place")
    if measured is None or measured.is_empty():
        measured = pl.DataFrame(schema={"step": pl.Int64, "name": pl.String, "value": pl.Float64})
    measured = measured.filter(pl.col("value").is_finite())
    smooth = finite if finite.is_empty() else loss_by_bin(finite)
    frames = {"raw": raw, "smooth": smooth, "measured": measured}
    return {which: on_step_axis(frame).to_dicts() for which, frame in frames.items()}


def _loss(data: Mapping[str, alt.InlineData], reach: Sequence[int]) -> alt.LayerChart:
    axis, title = _unlabelled(reach), ["loss (nats per", "predicted token)"]
    y = alt.Y("loss:Q", title=title).scale(zero=False)
    tips = [alt.Tooltip("step:Q", format=",d"), alt.Tooltip("loss:Q", format=".3f")]
    smooth = alt.Chart(data["smooth"]).encode(axis)
    return alt.layer(
        smooth.mark_area(color=BLUE, opacity=0.15).encode(alt.Y("low:Q", title=title), alt.Y2("high:Q")),
        alt.Chart(data["raw"]).mark_point(color=GREY, size=6, filled=True, opacity=0.7).encode(axis, y, tooltip=tips),
        smooth.mark_line(color=BLUE, strokeWidth=2.5).encode(y, tooltip=tips),
    ).properties(width=WIDTH, height=180)


def _line(data, reach, field: str, title, colour: str, form: str, only: str = "", points: bool = False) -> alt.Chart:
    y = alt.Y(f"{field}:Q", title=title).scale(zero=not points).axis(tickCount=3, format=form)
    tips = [alt.Tooltip("step:Q", format=",d"), alt.Tooltip(f"{field}:Q", format=form)]
    mark = {"color": colour, "strokeWidth": 2, "point": {"color": colour, "size": 14} if points else False}
    chart = alt.Chart(data).mark_line(**mark).encode(_unlabelled(reach), y, tooltip=tips)
    if only:
        chart = chart.transform_filter(alt.FieldEqualPredicate(field="name", equal=only))
    return chart.properties(width=WIDTH, height=80 if points else 50)


def _unlabelled(reach: Sequence[int]) -> alt.X:
    axis = step_axis(reach, None)
    return axis.axis(values=step_ticks(reach), labels=False, grid=False)


def _with_title(panel: alt.Chart, reach: Sequence[int]) -> alt.Chart:
    """The lowest panel names the axis that all of them share."""
    return panel.encode(step_axis(reach))

"""A run while it is trained: loss, rates and measurements, as one chart that takes new rows without being made anew."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import loss_by_bin
from lmdynamics.charts.axes import on_step_axis, step_axis, step_ticks
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.theme import GREEN, GREY, PURPLE, VERMILION, figure

RAW_PER_DECADE = 100  # single steps drawn per factor of ten: enough to see the noise, few enough to send each second
Rows = list[dict[str, float | str | None]]
LOSS = Line("loss", ["loss (nats per", "predicted token)"], width=2.5, shade=0.15)
RATE = {"band": None, "scale": {"zero": True}}
MASKING = Line(
    "masking_rate", ["masking", "rate"], colours=VERMILION, axis={"tickCount": 3, "format": "%"}, style="%", **RATE
)
LEARNING = Line(
    "lr", ["learning", "rate"], colours=PURPLE, axis={"tickCount": 3, "format": ".1~e"}, style=".1~e", **RATE
)
MEASURED = Line("value", colours=GREEN, band=None, axis={"tickCount": 3, "format": ".3~g"}, style=".3~g", points=14)


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
    below, x = step_axis(reach), step_axis(reach, None)
    x = x.axis(values=step_ticks(reach), labels=False, grid=False)
    band, line = LOSS.layers(data["smooth"], x)
    single = alt.Chart(data["raw"]).mark_point(color=GREY, size=6, filled=True, opacity=0.7)
    raw = single.encode(x, LOSS.y, tooltip=LOSS.tips())
    lines = [(rate, data["raw"], "") for rate in ([MASKING] if masking else []) + [LEARNING]]
    lines += [(replace(MEASURED, title=what), data["measured"], what) for what in measured]
    panels = [panel([band, raw, line], x, height=180)]
    for rate, numbers, only in lines:
        axis = below if len(panels) == len(lines) else x  # the lowest panel names the axis that all of them share
        layers = rate.layers(numbers, axis)
        if only:
            chosen = alt.FieldEqualPredicate(field="name", equal=only)
            layers = [layer.transform_filter(chosen) for layer in layers]
        panels.append(panel(layers, axis, height=80 if only else 50))
    chart = figure(
        alt.vconcat(*panels, spacing=10),
        "",
        f"{name}; grey: single batches, blue: their mean and middle 80 %",
        f"Loss, rates and measurements of {name} while it is trained, over {steps:,} steps on a logarithmic axis.",
    ).add_params(alt.param(name="said", value=said), alt.param(name="seen", value=0))
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

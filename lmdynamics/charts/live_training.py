"""A run during training: loss, rates and measurements in one chart, to which rows are added while it is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import loss_by_bin
from lmdynamics.charts.axes import on_step_axis, step_axis, step_ticks
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.theme import GREEN, GREY, PURPLE, VERMILION, figure

POINTS_PER_DECADE = 100  # single steps drawn per factor of ten: enough to see the noise, few enough to send each second
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
    status: str = " ",
) -> alt.VConcatChart:
    """Loss above, then masking rate (where there is one), learning rate and each measurement by name.

    `steps`: length of training; `rows`: from `live_rows`. New rows go to the data sets `raw`, `smooth` and `measured`,
    the title to the parameter `status`; `revision` counts the updates, from 0.
    """
    data = {dataset: alt.InlineData(values=rows[dataset], name=dataset) for dataset in ("raw", "smooth", "measured")}
    limits = [0, 1, steps]
    below, x = step_axis(limits), step_axis(limits, None)
    x = x.axis(values=step_ticks(limits), labels=False, grid=False)
    band, line = LOSS.layers(data["smooth"], x)
    single = alt.Chart(data["raw"]).mark_point(color=GREY, size=6, filled=True, opacity=0.7)
    raw = single.encode(x, LOSS.y, tooltip=LOSS.tips())
    lines = [(rate, data["raw"], "") for rate in ([MASKING] if masking else []) + [LEARNING]]
    lines += [(replace(MEASURED, title=title), data["measured"], title) for title in measured]
    panels = [panel([band, raw, line], x, height=180)]
    for rate, numbers, measurement in lines:
        axis = below if len(panels) == len(lines) else x  # the lowest panel has the title of the shared axis
        layers = rate.layers(numbers, axis)
        if measurement:
            chosen = alt.FieldEqualPredicate(field="name", equal=measurement)
            layers = [layer.transform_filter(chosen) for layer in layers]
        panels.append(panel(layers, axis, height=80 if measurement else 50))
    chart = figure(
        alt.vconcat(*panels, spacing=10),
        "",
        f"{name}; grey: single batches, blue: their mean and middle 80 %",
        f"Loss, rates and measurements of {name} while it is trained, over {steps:,} steps on a logarithmic axis.",
    ).add_params(alt.param(name="status", value=status), alt.param(name="revision", value=0))
    chart.title.text = alt.ExprRef(
        r"split(replace(status, ', loss', '\nloss'), '\n')"
    )  # it is longer than the chart is wide
    # new rows can have wider labels and a longer title, which would be cut off if the picture did not grow
    return chart.properties(autosize=alt.AutoSizeParams(type="pad", resize=True))


def live_rows(log: pl.DataFrame, measured: pl.DataFrame | None = None) -> dict[str, Rows]:
    """The rows of the chart from a log (step, loss, lr, masking_rate) and measurements (step, name, value).

    `raw`: the last step in each bin of the axis; `smooth`: means and middle 80 % of bins.
    """
    columns = ("step", "loss", "lr", "masking_rate")
    log_bin = (pl.col("step").cast(pl.Float64).clip(0.5).log10() * POINTS_PER_DECADE).floor()
    finite = log.select(columns).filter(pl.col("loss").is_finite())
    raw = finite.group_by(log_bin.alias("place")).agg(pl.all().sort_by("step").last()).drop("place")
    if measured is None or measured.is_empty():
        measured = pl.DataFrame(schema={"step": pl.Int64, "name": pl.String, "value": pl.Float64})
    measured = measured.filter(pl.col("value").is_finite())
    smooth = finite if finite.is_empty() else loss_by_bin(finite)
    frames = {"raw": raw, "smooth": smooth, "measured": measured}
    return {dataset: on_step_axis(frame).to_dicts() for dataset, frame in frames.items()}

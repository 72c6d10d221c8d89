"""Curves over training: loss, UAS, accuracy on minimal pairs, complexity. Onsets stand behind them as bands."""

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import loss_by_bin, need_columns, steps_without_loss, unused_rows
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import ties_and_flips, uas_within_reach
from lmdynamics.charts.axes import on_step_axis, onset_bands, onset_ends, spoken, step_axis, steps_of, undated
from lmdynamics.charts.lines import colour_by, levels, line_layers, placed
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import BLUE, GREEN, GREY, HEIGHT, ONSETS, SOURCES, VERMILION, WIDTH, figure
from lmdynamics.errors import UserError

LOSS = "loss (nats per predicted token)"


def loss_over_training(
    log: pl.DataFrame,
    held_out: pl.DataFrame | None = None,
    onsets: Sequence[Onset] = (),
    baselines: Mapping[str, float] | None = None,
) -> alt.LayerChart:
    """Loss against step. `log`: step, loss of each training step; `held_out`: trace of `HeldOutLoss` (± 2 s.e.).

    `baselines`: losses (nats) to compare with, by name, as dashed lines.
    """
    layers = []
    frames = [frame for frame in (log, held_out) if frame is not None and len(frame)]
    axis = step_axis(steps_of(*frames))
    y = alt.Y("loss:Q", title=LOSS).scale(zero=False)
    named = {"training batches": GREY, "held out": BLUE} if len(log) else {"held out": BLUE}
    colour = colour_by("curve", named, legend=True)
    if len(log):
        data = on_step_axis(loss_by_bin(log)).with_columns(curve=pl.lit("training batches"))
        layers += line_layers(
            data, axis, y, colour, ["step", alt.Tooltip("loss", format=".3f")], opacity=0.25, width=1.2
        )
    if held_out is not None and len(held_out):
        need_columns(held_out, ["step", "loss", "stderr"], "held-out loss")
        spread = 2 * pl.col("stderr")
        data = on_step_axis(held_out).with_columns(
            low=pl.col("loss") - spread, high=pl.col("loss") + spread, curve=pl.lit("held out")
        )
        tips = ["step", alt.Tooltip("loss", format=".3f"), alt.Tooltip("stderr", format=".3f")]
        layers += line_layers(data, axis, y, colour, tips, opacity=0.3, width=2.5, points=16)
    layers += levels(baselines or {}, y)
    chart = alt.layer(*onset_bands(onsets, axis), *layers).properties(width=WIDTH, height=HEIGHT)
    last = (held_out if held_out is not None and len(held_out) else log).drop_nulls("loss").sort("step")
    said = f"Loss from {last['loss'][0]:.2f} to {last['loss'][-1]:.2f} nats over {last['step'][-1]:,} steps."
    said += "".join(f" {name.capitalize()}: {value:.2f}." for name, value in (baselines or {}).items())
    caption = ["Held out: the same text and masks at every checkpoint (± 2 standard errors)"]
    caption += ["Batches: mean and middle 80 %"] if len(log) else []
    notes = [steps_without_loss(log), unused_rows(held_out)]
    return figure(chart, "Loss over training", ["; ".join(caption), *notes], f"{said} {spoken(onsets)}")


def uas_over_training(curve: pl.DataFrame, onsets: Onset | Sequence[Onset] = ()) -> alt.LayerChart:
    """UAS against step, one line per source with its 95 % band (frame of `analysis.syntax.uas_by_step`)."""
    onsets = [onsets] if isinstance(onsets, Onset) else list(onsets)
    need_columns(curve, ["step", "source", "uas", "low", "high"], "UAS over training")
    present = [source for source in SOURCES if source in curve["source"].unique()]
    names = [SOURCES[source][0] for source in present]
    data = on_step_axis(curve.filter(pl.col("source").is_in(present))).with_columns(
        curve=pl.col("source").replace_strict(present, names, return_dtype=pl.String)
    )
    axis = step_axis(steps_of(curve))
    colour = colour_by("curve", {SOURCES[source][0]: SOURCES[source][1] for source in present}, 2, legend=True)
    dash = alt.StrokeDash("curve:N", title=None).scale(domain=names, range=[SOURCES[s][2] for s in present])
    width = alt.StrokeWidth("curve:N", legend=None).scale(domain=names, range=[SOURCES[s][3] for s in present])
    share = alt.Axis(format="%")
    top = max(0.5, float(data.select(pl.max_horizontal("uas", "high").max()).item()) * 1.1)
    y_scale = alt.Scale(domain=[0, min(top, 1.0)])
    base = alt.Chart(data).encode(axis)
    y = alt.Y("uas:Q", title="UAS (share of arcs found)", axis=share, scale=y_scale)
    bands = [
        base.mark_area(opacity=0.2, color=SOURCES[source][1])
        .transform_filter(alt.FieldEqualPredicate(field="source", equal=source))
        .encode(alt.Y("low:Q", title="UAS (share of arcs found)", axis=share, scale=y_scale), alt.Y2("high:Q"))
        for source in present
        if source in ("attention", "shuffled")
    ]
    tips = [
        "step",
        alt.Tooltip("curve", title="source"),
        *(alt.Tooltip(c, format=".1%") for c in ("uas", "low", "high")),
    ]
    line = base.mark_line().encode(y, colour, dash, width, tooltip=tips)
    points = (
        base.transform_filter("datum.source == 'attention'")
        .mark_point(size=14, filled=True, opacity=1, color=BLUE)
        .encode(y, tooltip=tips)
    )
    chart = alt.layer(*onset_bands(onsets, axis), *bands, line, points)
    chart = chart.properties(width=WIDTH, height=HEIGHT)
    reach = uas_within_reach(curve)
    ends = "; ".join(
        f"{name}: {rows['uas'][0]:.0%} to {rows['uas'][-1]:.0%}"
        for name in names
        for rows in [data.filter(pl.col("curve") == name).sort("step")]
    )
    return figure(
        chart,
        "Syntactic attention structure over training",
        [
            "Each relation is read off the one head that follows it best; bands: 95 % over sentences",
            reach,
            *undated(onsets),
        ],
        f"UAS over training. {ends}. {reach.capitalize()}{'. ' if reach else ''}{spoken(onsets)}",
    )


def pair_accuracy_over_training(
    curve: pl.DataFrame, onset: Onset | None = None, chance: float = 0.5, columns: int = 4
) -> alt.VConcatChart | alt.LayerChart | alt.FacetChart:
    """Accuracy on minimal pairs against step, chance dashed; a panel per paradigm, in the order of the frame.

    `curve`: frame of `accuracy_by_step`, perhaps with that of `average_accuracy` in front.
    """
    need_columns(curve, ["step", "paradigm", "accuracy", "low", "high", "pairs"], "accuracy over training")
    paradigms = curve["paradigm"].unique(maintain_order=True).to_list()
    columns = min(columns if len(paradigms) <= 12 else 5, len(paradigms))  # Zorro has 23, BLiMP 67
    width = max(110, (WIDTH - 30 * (columns - 1)) // columns) if len(paradigms) > 1 else WIDTH
    titles = ["\n".join(wrapped(name.replace("_", " ").replace("-", ": ", 1), width + 20, 11)) for name in paradigms]
    data = on_step_axis(curve).with_columns(
        panel=pl.col("paradigm").replace_strict(paradigms, titles, return_dtype=pl.String), chance=pl.lit(chance)
    )
    axis = step_axis(steps_of(curve), "training step (log)", sparse=len(paradigms) > 1)
    low = min(0.4, float(data["low"].min()))
    scale = alt.Scale(domain=[max(0.0, low), 1.0])
    base = alt.Chart(data).encode(axis)
    y = alt.Y("accuracy:Q", title="pairs judged right", axis=alt.Axis(format="%", tickCount=4), scale=scale)
    tips = ["step", "paradigm", *(alt.Tooltip(c, format=".1%") for c in ("accuracy", "low", "high")), "pairs"]
    band, *line = line_layers(data, axis, y, BLUE, tips, opacity=0.25, width=2.2, points=12)
    guess = base.mark_line(color=GREY, strokeDash=[6, 4], strokeWidth=1.5).encode(placed(y, "chance"))
    layers = [band, guess, *line]
    if onset is not None and onset.step is not None:
        start = axis.copy()
        start["shorthand"] = "from:Q"
        band = base.mark_rect(color=ONSETS.get(onset.name, VERMILION), opacity=0.2).encode(
            start, alt.X2("to:Q"), y=alt.value(0), y2=alt.value("height")
        )
        once = alt.FieldEqualPredicate(field="step", equal=int(data["step"].min()))  # one band a panel, not one a row
        place = {name: str(place) for name, place in onset_ends(onset).items()}
        band = band.transform_filter(once).transform_calculate(**place)
        layers = [band, *layers]
    facet = alt.Facet("panel:N", title=None, sort=titles)
    facet = facet.header(labelFontSize=11, labelLimit=width + 30, labelExpr="split(datum.label, '\\n')")
    panel = alt.layer(*layers).properties(
        width=width, height=HEIGHT if len(paradigms) == 1 else 140 if len(paradigms) <= 12 else 90
    )
    chart = panel.facet(facet, columns=columns) if len(paradigms) > 1 else panel
    last = curve.filter(pl.col("step") == curve["step"].max())
    ends = "; ".join(f"{row['paradigm']} {row['accuracy']:.0%}" for row in last.iter_rows(named=True))
    counts = sorted(set(curve["pairs"].to_list()))
    many = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}"
    return figure(
        chart,
        "Grammaticality judgements over training",
        [
            f"Share of minimal pairs where the good sentence scores higher; {many} pairs a panel",
            f"dashed: chance ({chance:.0%}); bands: 95 %" + (f"; {onset}" if onset and onset.step is not None else ""),
            *undated([onset] if onset else []),
            *ties_and_flips(curve),
        ],
        f"Accuracy on minimal pairs at the last checkpoint: {ends}. {spoken([onset] if onset else [])}",
    )


def complexity_over_training(
    dimension: pl.DataFrame | None = None,
    norm: pl.DataFrame | None = None,
    fisher: pl.DataFrame | None = None,
    onsets: Sequence[Onset] = (),
) -> alt.VConcatChart:
    """Intrinsic dimension, squared weight norm and Fisher trace, one small panel each over the same steps."""
    given = [
        (dimension, "dimension", ["intrinsic", "dimension"], "TwoNN", GREEN, "linear"),
        (norm, "norm2", ["squared weight", "norm ‖θ‖²"], "squared weight norm", BLUE, "linear"),
        (fisher, "trace", ["trace of the", "Fisher (log)"], "empirical Fisher", VERMILION, "log"),
    ]
    # an untrained model may have no dimension to speak of
    given = [(entry[0].drop_nulls(entry[1]), *entry[1:]) for entry in given if entry[0] is not None]
    given = [entry for entry in given if len(entry[0])]
    if not given:
        raise UserError("complexity over training: no frame with rows; trace at least one of the three measurements")
    steps = steps_of(*(entry[0] for entry in given))
    panels, ends = [], []
    for index, (frame, column, title, what, colour, kind) in enumerate(given):
        last = index == len(given) - 1
        axis = step_axis(steps, "training step (log scale)" if last else None)
        data = on_step_axis(frame)
        y = alt.Y(f"{column}:Q", title=title).scale(zero=False, type=kind)
        y = y.axis(tickCount=2 if kind == "log" else 4, format=",.4~g")
        tips = ["step", alt.Tooltip(column, format=".4~g")]
        if "stderr" in data.columns:
            floor = data[column].min() / 10 if kind == "log" else None
            data = data.with_columns(
                low=(pl.col(column) - 2 * pl.col("stderr")).clip(floor), high=pl.col(column) + 2 * pl.col("stderr")
            )
        layers = line_layers(data, axis, y, colour, tips, opacity=0.25, points=12)
        bands = onset_bands(onsets, axis, labels=index == 0)
        panels.append(alt.layer(*bands, *layers).properties(width=WIDTH, height=110))
        ordered = frame.sort("step")[column]
        ends.append(f"{what} {_short(ordered[0])} → {_short(ordered[-1])}")
    return figure(
        alt.vconcat(*panels, spacing=14),
        "Complexity over training",
        "; ".join(ends),
        f"Complexity of the model over training: {'; '.join(ends)}. {spoken(onsets)}",
    )


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"

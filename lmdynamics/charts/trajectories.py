"""Measures over training: loss, UAS, minimal pairs and complexity.

Onsets are drawn as bands behind the curves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.analysis import precursors
from lmdynamics.analysis.intervals import (
    loss_by_bin,
    need_columns,
    normal_interval,
    steps_without_loss,
    unused_rows,
    with_interval,
)
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import ties_and_flips, uas_within_reach
from lmdynamics.charts.axes import (
    on_step_axis,
    onset_bands,
    onset_ends,
    onset_sentences,
    same_axis,
    step_axis,
    steps_of,
    undated,
)
from lmdynamics.charts.encodings import numbers
from lmdynamics.charts.lines import Line, levels, panel
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import BLUE, GREEN, GREY, HEIGHT, ONSETS, ORANGE, SKY, SOURCES, VERMILION, WIDTH, figure
from lmdynamics.errors import UserError

LOSS = Line("loss", "loss (nats per predicted token)", "curve", legend=True)
UAS = Line("uas", "UAS (share of arcs found)", percent=True)
ACCURACY = Line("accuracy", "pairs judged right", percent=True, axis={"tickCount": 4}, width=2.2, points=12, shade=0.25)
PRECURSORS = {  # a measure: the title of its panel
    precursors.LOSS: ["held-out loss", "(nats per token)"],
    precursors.REPETITION: ["pairs with the", "same prediction"],
    precursors.STATES: ["cosine between", "states"],
    precursors.ATTENTION: ["attention:", "progress to", "its final form"],
}
PRECURSOR_CURVES = {  # a curve: its colour and dash
    precursors.MODEL: (BLUE, [1, 0]),
    "unigram entropy": (GREY, [6, 4]),
    "in the text": (ORANGE, [2, 2]),
    "between rows": (SKY, [6, 4]),
    "to other heads": (GREEN, [6, 4]),
}
COMPLEXITY = {  # a measurement: its curve, and its name in texts
    "dimension": (Line("dimension", ["intrinsic", "dimension"], colours=GREEN), "TwoNN"),
    "norm": (Line("norm2", ["squared weight", "norm ‖θ‖²"], colours=BLUE), "squared weight norm"),
    "fisher": (
        Line("trace", ["trace of the", "Fisher (log)"], colours=VERMILION, scale={"zero": False, "type": "log"}),
        "empirical Fisher",
    ),
}


def loss_over_training(
    log: pl.DataFrame,
    held_out: pl.DataFrame | None = None,
    onsets: Sequence[Onset] = (),
    baselines: Mapping[str, float] | None = None,
) -> alt.LayerChart:
    """Loss against step. `log`: step, loss of each training step; `held_out`: trace of `HeldOutLoss` (± 2 s.e.).

    `baselines`: reference losses (nats) by name, as dashed lines.
    """
    layers = []
    frames = [frame for frame in (log, held_out) if frame is not None and len(frame)]
    x = step_axis(steps_of(*frames))
    colours = {"training batches": GREY, "held out": BLUE} if len(log) else {"held out": BLUE}
    line = replace(LOSS, colours=colours)
    tips = ["step", *numbers(".3f", "loss")]
    if len(log):
        data = on_step_axis(loss_by_bin(log)).with_columns(curve=pl.lit("training batches"))
        layers += replace(line, shade=0.25, width=1.2).layers(data, x, tips)
    if held_out is not None and len(held_out):
        need_columns(held_out, ["step", "loss", "stderr"], "held-out loss")
        data = on_step_axis(_two_errors(held_out, "loss")).with_columns(curve=pl.lit("held out"))
        tips += numbers(".3f", "stderr")
        layers += replace(line, shade=0.3, width=2.5, points=16).layers(data, x, tips)
    layers += levels(baselines or {}, line.y)
    last = (held_out if held_out is not None and len(held_out) else log).drop_nulls("loss").sort("step")
    sentence = f"Loss from {last['loss'][0]:.2f} to {last['loss'][-1]:.2f} nats over {last['step'][-1]:,} steps."
    sentence += "".join(f" {name.capitalize()}: {value:.2f}." for name, value in (baselines or {}).items())
    caption = ["Held out: the same text and masks at every checkpoint (± 2 standard errors)"]
    caption += ["Batches: mean and middle 80 %"] if len(log) else []
    notes = [steps_without_loss(log), unused_rows(held_out)]
    chart = panel(layers, x, onsets=onsets)
    return figure(chart, "Loss over training", ["; ".join(caption), *notes], f"{sentence} {onset_sentences(onsets)}")


def uas_over_training(curve: pl.DataFrame, onsets: Onset | Sequence[Onset] = ()) -> alt.LayerChart:
    """UAS against step, one line per source with its 95 % band (frame of `analysis.syntax.uas_by_step`)."""
    onsets = [onsets] if isinstance(onsets, Onset) else list(onsets)
    need_columns(curve, ["step", "source", "uas", "low", "high"], "UAS over training")
    present = {source: style for source, style in SOURCES.items() if source in curve["source"].unique()}
    names = [name for name, *_ in present.values()]
    data = on_step_axis(curve.filter(pl.col("source").is_in(list(present)))).with_columns(
        curve=pl.col("source").replace_strict(list(present), names, return_dtype=pl.String)
    )
    x = step_axis(steps_of(curve))
    top = max(0.5, float(data.select(pl.max_horizontal("uas", "high").max()).item()) * 1.1)
    line = replace(UAS, scale={"domain": [0, min(top, 1.0)]})
    tips = ["step", alt.Tooltip("curve", title="source"), *numbers(".1%", "uas", "low", "high")]
    bands, points = [], []
    for source in ("per_relation", "shuffled"):
        if source in present:
            *band, _, dots = replace(line, colours=SOURCES[source][1], points=14).layers(
                data.filter(pl.col("source") == source), x, tips
            )
            bands += band
            points += [dots] if source == "per_relation" else []
    colours, dashes, widths = ({name: style[i] for name, *style in present.values()} for i in range(3))
    styles = {"series": "curve", "colours": colours, "dashes": dashes, "width": widths, "columns": 2, "legend": True}
    lines = replace(line, band=None, **styles).layers(data, x, tips)
    reach = uas_within_reach(curve)
    ends = "; ".join(
        f"{name}: {rows['uas'][0]:.0%} to {rows['uas'][-1]:.0%}"
        for name in names
        for rows in [data.filter(pl.col("curve") == name).sort("step")]
    )
    return figure(
        panel([*bands, *lines, *points], x, onsets=onsets),
        "Syntactic attention structure over training",
        [
            "heads are chosen on other sentences than they are scored on; bands: 95 % over sentences",
            reach,
            *undated(onsets),
        ],
        f"UAS over training. {ends}. {reach.capitalize()}{'. ' if reach else ''}{onset_sentences(onsets)}",
    )


def pair_accuracy_over_training(
    curve: pl.DataFrame, onset: Onset | None = None, chance: float = 0.5, columns: int = 4
) -> alt.VConcatChart | alt.LayerChart | alt.FacetChart:
    """Accuracy on minimal pairs against step, chance dashed; a panel per paradigm, in the order of the frame.

    `curve`: frame of `accuracy_by_step`, perhaps after that of `average_accuracy`.
    """
    need_columns(curve, ["step", "paradigm", "accuracy", "low", "high", "pairs"], "accuracy over training")
    paradigms = curve["paradigm"].unique(maintain_order=True).to_list()
    columns = min(columns if len(paradigms) <= 12 else 5, len(paradigms))  # Zorro has 23, BLiMP 67
    width = max(110, (WIDTH - 30 * (columns - 1)) // columns) if len(paradigms) > 1 else WIDTH
    titles = ["\n".join(wrapped(name.replace("_", " ").replace("-", ": ", 1), width + 20, 11)) for name in paradigms]
    data = on_step_axis(curve).with_columns(
        panel=pl.col("paradigm").replace_strict(paradigms, titles, return_dtype=pl.String), chance=pl.lit(chance)
    )
    x = step_axis(steps_of(curve), "training step (log)", sparse=len(paradigms) > 1)
    low = max(0.0, min(0.4, float(data["low"].min())))
    line = replace(ACCURACY, scale={"domain": [low, 1.0]})
    tips = ["step", "paradigm", *numbers(".1%", "accuracy", "low", "high"), "pairs"]
    band, *lines = line.layers(data, x, tips)
    base = alt.Chart(data).encode(x)
    guess = base.mark_line(color=GREY, strokeDash=[6, 4], strokeWidth=1.5).encode(same_axis(line.y, "chance"))
    layers = [band, guess, *lines]
    if onset is not None and onset.step is not None:
        once = alt.FieldEqualPredicate(field="step", equal=int(data["step"].min()))  # one band a panel, not one a row
        limits = {name: str(position) for name, position in onset_ends(onset).items()}
        band = base.mark_rect(color=ONSETS.get(onset.name, VERMILION), opacity=0.2).transform_filter(once)
        band = band.transform_calculate(**limits).encode(same_axis(x, "from"), alt.X2("to:Q"))
        layers = [band.encode(y=alt.value(0), y2=alt.value("height")), *layers]
    facet = alt.Facet("panel:N", title=None, sort=titles)
    facet = facet.header(labelFontSize=11, labelLimit=width + 30, labelExpr="split(datum.label, '\\n')")
    panel = alt.layer(*layers).properties(
        width=width, height=HEIGHT if len(paradigms) == 1 else 140 if len(paradigms) <= 12 else 90
    )
    chart = panel.facet(facet, columns=columns) if len(paradigms) > 1 else panel
    last = curve.filter(pl.col("step") == curve["step"].max())
    summary = "; ".join(f"{row['paradigm']} {row['accuracy']:.0%}" for row in last.iter_rows(named=True))
    counts = sorted(set(curve["pairs"].to_list()))
    pair_count = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}"
    return figure(
        chart,
        "Grammaticality judgements over training",
        [
            f"Share of minimal pairs where the good sentence scores higher; {pair_count} pairs a panel",
            f"dashed: chance ({chance:.0%}); bands: 95 %" + (f"; {onset}" if onset and onset.step is not None else ""),
            *undated([onset] if onset else []),
            *ties_and_flips(curve),
        ],
        f"Accuracy on minimal pairs at the last checkpoint: {summary}. {onset_sentences([onset] if onset else [])}",
    )


def complexity_over_training(
    dimension: pl.DataFrame | None = None,
    norm: pl.DataFrame | None = None,
    fisher: pl.DataFrame | None = None,
    onsets: Sequence[Onset] = (),
) -> alt.VConcatChart:
    """Intrinsic dimension, squared weight norm and Fisher trace, one small panel each over the same steps."""
    measured = [
        (frame.drop_nulls(line.value), line, label)  # the dimension of an untrained model may be undefined
        for frame, (line, label) in zip((dimension, norm, fisher), COMPLEXITY.values(), strict=True)
        if frame is not None
    ]
    measured = [entry for entry in measured if len(entry[0])]
    if not measured:
        raise UserError("complexity over training: no frame with rows; trace at least one of the three measurements")
    steps, panels, ends = steps_of(*(frame for frame, *_ in measured)), [], []
    for index, (frame, line, label) in enumerate(measured):
        x = step_axis(steps, "training step (log scale)" if index == len(measured) - 1 else None)
        data, log = on_step_axis(frame), line.scale.get("type") == "log"
        if "stderr" in data.columns:
            data = _two_errors(data, line.value, data[line.value].min() / 10 if log else None)
        line = replace(line, axis={"tickCount": 2 if log else 4, "format": ",.4~g"}, points=12, shade=0.25)
        layers = line.layers(data, x, ["step", *numbers(".4~g", line.value)])
        panels.append(panel(layers, x, onsets=onsets, onset_labels=index == 0, height=110))
        ordered = frame.sort("step")[line.value]
        ends.append(f"{label} {_short(ordered[0])} → {_short(ordered[-1])}")
    return figure(
        alt.vconcat(*panels, spacing=14),
        "Complexity over training",
        "; ".join(ends),
        f"Complexity of the model over training: {'; '.join(ends)}. {onset_sentences(onsets)}",
    )


def precursors_over_training(curves: pl.DataFrame, onsets: Mapping[str, Onset]) -> alt.VConcatChart:
    """What precedes a drop of the loss: a panel each for loss, repetition, cosine and attention, with its onsets.

    `curves`: of `analysis.precursors.precursor_curves`. `onsets` by name, the loss drop among them, which is drawn in
    all panels; onsets of other measures are drawn beside the loss.
    """
    columns = ["measure", "curve", "step", "value", "low", "high"]
    need_columns(curves, columns, "what precedes a drop of the loss")
    measures = [measure for measure in PRECURSORS if measure in curves["measure"].unique()]
    if not measures or precursors.DROP not in onsets:
        raise UserError("what precedes a drop of the loss: no curves, or no loss drop; use analysis.precursors")
    drop, panels, steps = onsets[precursors.DROP], [], steps_of(curves)
    colours, dashes = ({name: style[i] for name, style in PRECURSOR_CURVES.items()} for i in (0, 1))
    line = Line("value", series="curve", colours=colours, dashes=dashes, axis={"tickCount": 4}, legend=True)
    for measure in measures:
        x = step_axis(steps, "training step (log scale)" if measure == measures[-1] else None)
        data = on_step_axis(curves.filter(pl.col("measure") == measure))
        tips = ["step", alt.Tooltip("curve"), *numbers(".3f", "value", "low", "high")]
        layers = replace(line, title=PRECURSORS[measure]).layers(data, x, tips)
        measured_by = {name: precursors.ONSETS.get(name, (precursors.LOSS,))[0] for name in onsets}
        own = [onset for name, onset in onsets.items() if measured_by[name] == measure]
        if measure != precursors.LOSS:
            layers = [*onset_bands([drop], x, labels=False), *layers]
        panels.append(panel(layers, x, onsets=own, height=110))
    order = precursors.before_drop(onsets)
    when = f"Before the loss drop at step {with_interval(drop.step, (drop.low, drop.high), ',')}"
    title = f"{when}: {', '.join(order['before']) or 'nothing measured here'}" if drop.step else "No loss drop is dated"
    rest = [f"{kind}: {', '.join(order[kind])}" for kind in ("after", "undecided", "undated") if order[kind]]
    caption = [
        "grey band: the loss drop; red: onsets; bands: 95 % over groups of rows",
        "; ".join(rest),
        *undated([drop]),
    ]
    return figure(
        alt.vconcat(*panels, spacing=40),
        title,
        caption,
        f"{title}. {'. '.join(rest)}. {onset_sentences(list(onsets.values()))}",
    )


def _two_errors(frame: pl.DataFrame, column: str, floor: float | None = None) -> pl.DataFrame:
    """With `low` and `high`, two standard errors to either side."""
    low, high = normal_interval(pl.col(column), pl.col("stderr"), z=2)
    return frame.with_columns(low=low.clip(floor), high=high)


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"

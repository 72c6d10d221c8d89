"""The race of minimal pairs: both sentences' log-probability over training, and which kinds are judged right."""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import leads_from
from lmdynamics.charts.axes import (
    Cursor,
    by_step,
    on_step_axis,
    onset_bands,
    step_axis,
    step_number,
    steps_of,
    strips,
    upright,
)
from lmdynamics.charts.lines import line_layers
from lmdynamics.charts.theme import BLUE, GREY, TEXT, VERMILION, figure
from lmdynamics.errors import UserError

WIDTH, DOTS = 400, 240  # side by side on a page, with the longest of Zorro's names
LINES = {"good": (BLUE, [1, 0]), "bad": (VERMILION, [6, 4])}  # told apart by dashes alone, too
LEVEL = ["(pseudo-)log-probability", "per sentence (nats)"]
LEAD = ["good − bad", "(nats)"]


def pair_race(
    rows: pl.DataFrame,
    cursor: Cursor | None = None,
    step: int | None = None,
    onset: Onset | None = None,
    caption: str = "",
) -> alt.VConcatChart:
    """Log-probability of the good and of the bad sentence above, their difference below, on one step axis.

    `rows`: frame of `analysis.syntax.pair_race`; what has no interval gets no band. A vertical line at `step`, by
    default the last, or at the step that `cursor` holds. `onset`: a band behind. `caption`: what is looked at.

    Raises
    ------
    UserError
        If a column is missing, or there are no rows.
    """
    columns = ["step", "paradigm", "pair", "score", "value", "low", "high", "pairs"]
    need_columns(rows, columns, "the race of minimal pairs")
    if rows.is_empty():
        raise UserError("the race of minimal pairs: the frame has no rows; trace PairAccuracy first")
    data = on_step_axis(rows)
    scores, lead = data.filter(pl.col("score") != "difference"), data.filter(pl.col("score") == "difference")
    steps = steps_of(rows)
    place = cursor if cursor is not None else steps[-1] if step is None else step
    axes = [step_axis(steps, None), step_axis(steps)]
    level, zero = alt.Scale(zero=False), alt.Scale(zero=True)
    above = [
        layer
        for score, (colour, dash) in LINES.items()
        for layer in _line(scores.filter(pl.col("score") == score), axes[0], LEVEL, level, colour, dash)
    ]
    nought = alt.Chart(alt.Data(values=[{"value": 0}])).mark_rule(color=GREY, strokeWidth=1.2)
    below = [nought.encode(alt.Y("value:Q", title=LEAD)), *_line(lead, axes[1], LEAD, zero, TEXT, [1, 0], 18)]
    over: list[list[alt.Chart]] = [[], []]
    if cursor is not None:
        here, tips = by_step(scores, "score", "value", ".2f")
        over[0].append(strips(here, axes[0], cursor, tips))
        known = ["value", *(["low", "high"] if lead["low"].is_not_null().any() else [])]
        tips = [alt.Tooltip("value:Q", title="good − bad", format="+.2f")]
        tips += [alt.Tooltip(f"{name}:Q", format="+.2f") for name in known[1:]]
        over[1].append(strips(lead.select("x", "step", *known), axes[1], cursor, tips))
    bands = [onset_bands([onset] if onset else [], axis, labels=False) for axis in axes]
    marks = [upright(place, axes[0]), step_number(place, axes[0])]
    upper = alt.layer(*bands[0], *above, *marks, *over[0]).properties(width=WIDTH, height=150)
    lower = alt.layer(*bands[1], *below, upright(place, axes[1]), *over[1]).properties(width=WIDTH, height=110)
    chart = alt.vconcat(upper, lower, spacing=12)
    count, alone = rows["pairs"][0], lead["low"].is_null().all()
    key = ["solid blue: good sentence; dashed orange: bad sentence"]
    key.append(("one pair" if count == 1 else f"{count:,} pairs, one of some kind") + ", no interval")
    if not alone:
        key[1] = f"bands: 95 % over {count:,} pairs"
    if onset is not None and onset.step is not None:
        key.append(f"upright band: {onset.name} onset, step {onset.step:,}")
    finding = race_in_words(rows)
    return figure(
        chart,
        finding,
        [*caption.split("\n"), "; ".join(key)],
        f"Log-probability of good and bad sentences over training, with a line at one checkpoint. {finding}. "
        f"{_ends(rows)} {caption}".replace("\n", " ").strip(),
    )


def race_in_words(rows: pl.DataFrame) -> str:
    """What the race comes to: since when the good sentence leads, and by how much at the end."""
    end = rows.filter(pl.col("score") == "difference").sort("step").row(-1, named=True)
    first, since, ever = rows["step"].min(), leads_from(rows), leads_from(rows, k=1)
    name = spoken(end["paradigm"]) + ("" if end["pair"] is None else ", one pair")
    if since is None and ever is not None and ever > first:
        return f"{name}: the good sentence leads from step {ever:,} on only, too late to say that it stays ahead"
    if since is None:
        ahead = with_interval(end["value"], (end["low"], end["high"]), "+.2f").replace("-", "−")
        return f"{name}: the good sentence never leads for good; good − bad is {ahead} nats at the end"
    before = rows.filter(pl.col("step") < since)["step"].max()
    start = f"from step {since:,} on (not yet at {before:,})" if since > first else "at every checkpoint"
    start += f", the first at step {first:,}" if since == first > 0 else ""
    ahead = f"{end['value']:.1f}" if end["value"] >= 0.1 else f"{end['value']:.2g}"
    return f"{name}: the good sentence leads {start}, by {ahead} nats at the end"


def pairs_at_step(accuracy: pl.DataFrame, cursor: Cursor, chosen: str = "", chance: float = 0.5):
    """Share of pairs judged right at the step that `cursor` holds, a dot and its interval for each paradigm.

    `accuracy`: frame of `accuracy_by_step`; all steps go into the chart. Paradigms stand in the order of their accuracy
    at the last step. `chosen`: the paradigm that gets a ring.
    """
    need_columns(accuracy, ["step", "paradigm", "accuracy", "low", "high", "pairs"], "pairs judged right at a step")
    if accuracy.is_empty():
        raise UserError("pairs judged right at a step: the frame has no rows; trace PairAccuracy first")
    rows = accuracy.with_columns(name=pl.Series([spoken(paradigm) for paradigm in accuracy["paradigm"]]))
    last = rows.filter(pl.col("step") == pl.col("step").max()).sort("accuracy", "name", descending=[True, False])
    order = last["name"].to_list()
    y = alt.Y("name:N", title=None, sort=order).scale(domain=order)
    y = y.axis(ticks=False, domain=False, grid=True, labelLimit=0, labelPadding=8)
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(format="%", tickCount=5, grid=False)
    x = alt.X("accuracy:Q", title="pairs judged right", axis=axis, scale=scale)
    low = alt.X("low:Q", title="pairs judged right", axis=axis, scale=scale)
    here = alt.Chart(rows).transform_filter(f"datum.step == {cursor.name}")
    tips = [alt.Tooltip("name:N", title="paradigm"), "step:Q"]
    tips += [*(alt.Tooltip(f"{column}:Q", format=".1%") for column in ("accuracy", "low", "high")), "pairs:Q"]
    guess = alt.Chart(alt.Data(values=[{"accuracy": chance}])).mark_rule(color=GREY, strokeDash=[6, 4], strokeWidth=1.5)
    layers = [
        guess.encode(x),
        here.mark_rule(color=BLUE, strokeWidth=2).encode(low, alt.X2("high:Q"), y),
        here.mark_point(color=BLUE, size=60, filled=True, opacity=1).encode(x, y, tooltip=tips),
    ]
    key = [f"dashed: chance ({chance:.0%})", "bars: 95 %"]
    if chosen in accuracy["paradigm"]:
        ring = here.transform_filter(alt.FieldEqualPredicate(field="paradigm", equal=chosen))
        layers.append(ring.mark_point(color=TEXT, size=170, strokeWidth=2, opacity=1).encode(x, y))
        key.append("ring: the one looked at")
    ends = "; ".join(f"{row['name']} {row['accuracy']:.0%}" for row in last.iter_rows(named=True))
    return figure(
        alt.layer(*layers).properties(width=DOTS, height=(28 if len(order) <= 12 else 14) * len(order)),
        ["Pairs judged right at step ", cursor.number],
        ["; ".join(key), "best at the last checkpoint on top"],
        f"Share of minimal pairs judged right at one checkpoint, by kind of pair. At the last one: {ends}.",
    )


def spoken(paradigm: str) -> str:
    """A paradigm's name for a reader: "filler-gap: wh question subject"."""
    return ": ".join(paradigm.replace("_", " ").rsplit("-", 1))


def _line(
    rows: pl.DataFrame, x: alt.X, title: list[str], scale: alt.Scale, colour: str, dash: list[int], points: int = 0
) -> list[alt.Chart]:
    """A score over training: its band, if it has one, and its line; points would hide a line behind."""
    y = alt.Y("value:Q", title=title, scale=scale).axis(tickCount=5)
    return line_layers(rows, x, y, colour, dash=dash, width=2.2, points=points)


def _ends(rows: pl.DataFrame) -> str:
    """Start and end of both lines, for those who cannot see them."""
    ordered = rows.sort("step")
    told = []
    for score in LINES:
        values = ordered.filter(pl.col("score") == score)["value"]
        told.append(f"{score} sentence {values[0]:.1f} → {values[-1]:.1f} nats")
    return f"{'; '.join(told)}.".replace("-", "−")

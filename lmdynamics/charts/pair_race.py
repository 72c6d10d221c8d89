"""The race of minimal pairs: both sentences' log-probability over training, and which kinds are judged right."""

from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import with_interval
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import leads_from
from lmdynamics.charts.axes import Cursor, by_step, on_step_axis, placed, step_axis, steps_of
from lmdynamics.charts.encodings import STEP_TIP, across, names, need_rows, numbers
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.theme import BLUE, GREY, TEXT, VERMILION, figure

WIDTH, DOTS = 400, 240  # side by side on a page, with the longest of Zorro's names
GOOD = Line(
    "value", ["(pseudo-)log-probability", "per sentence (nats)"], dashes=[1, 0], axis={"tickCount": 5}, width=2.2
)
SCORES = {"good": GOOD, "bad": replace(GOOD, colours=VERMILION, dashes=[6, 4])}  # told apart by dashes alone, too
LEAD = replace(GOOD, title=["good − bad", "(nats)"], colours=TEXT, scale={"zero": True}, style="+.2f", points=18)
NO_ROWS = "the frame has no rows; trace PairAccuracy first"


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
    """
    columns = ["step", "paradigm", "pair", "score", "value", "low", "high", "pairs"]
    data = on_step_axis(need_rows(rows, columns, "the race of minimal pairs", NO_ROWS))
    scores, lead = data.filter(pl.col("score") != "difference"), data.filter(pl.col("score") == "difference")
    steps = steps_of(rows)
    above, below = step_axis(steps, None), step_axis(steps)
    lines = [layer for score, line in SCORES.items() for layer in line.layers(scores.filter(score=score), above, ())]
    known = ["value", *(["low", "high"] if lead["low"].is_not_null().any() else [])]
    tips = [alt.Tooltip("value:Q", title="good − bad", format="+.2f"), *numbers("+.2f", *known[1:])]
    look = {
        "onsets": [onset] if onset else [],
        "named": False,
        "at": cursor if cursor is not None else steps[-1] if step is None else step,
        "width": WIDTH,
    }
    upper = panel(lines, above, number=True, here=by_step(scores, "score", "value", ".2f"), height=150, **look)
    nought = across(LEAD.y, 0, color=GREY, strokeWidth=1.2)
    here = lead.select("x", "step", *known), tips
    lower = panel([nought, *LEAD.layers(lead, below, ())], below, here=here, height=110, **look)
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
    columns = ["step", "paradigm", "accuracy", "low", "high", "pairs"]
    accuracy = need_rows(accuracy, columns, "pairs judged right at a step", NO_ROWS)
    rows = accuracy.with_columns(name=pl.Series([spoken(paradigm) for paradigm in accuracy["paradigm"]]))
    last = rows.filter(pl.col("step") == pl.col("step").max()).sort("accuracy", "name", descending=[True, False])
    order = last["name"].to_list()
    y = names("name", order, grid=True, labelLimit=0)
    x = alt.X("accuracy:Q", title="pairs judged right").scale(domain=[0, 1]).axis(format="%", tickCount=5, grid=False)
    here = alt.Chart(rows).transform_filter(f"datum.step == {cursor.name}").encode(y)
    tips = [alt.Tooltip("name:N", title="paradigm"), STEP_TIP, *numbers(".1%", "accuracy", "low", "high"), "pairs:Q"]
    layers = [
        across(x, chance, color=GREY, strokeDash=[6, 4], strokeWidth=1.5),
        here.mark_rule(color=BLUE, strokeWidth=2).encode(placed(x, "low"), alt.X2("high:Q")),
        here.mark_point(color=BLUE, size=60, filled=True, opacity=1).encode(x, tooltip=tips),
    ]
    key = [f"dashed: chance ({chance:.0%})", "bars: 95 %"]
    if chosen in accuracy["paradigm"]:
        ring = here.transform_filter(alt.FieldEqualPredicate(field="paradigm", equal=chosen))
        layers.append(ring.mark_point(color=TEXT, size=170, strokeWidth=2, opacity=1).encode(x))
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


def _ends(rows: pl.DataFrame) -> str:
    """Start and end of both lines, for those who cannot see them."""
    ordered = rows.sort("step")
    told = []
    for score in SCORES:
        values = ordered.filter(pl.col("score") == score)["value"]
        told.append(f"{score} sentence {values[0]:.1f} → {values[-1]:.1f} nats")
    return f"{'; '.join(told)}.".replace("-", "−")

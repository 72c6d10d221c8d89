"""The race of minimal pairs: both sentences' log-probability over training, and accuracy by kind of pair."""

from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import with_interval
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import leads_from
from lmdynamics.charts.axes import Cursor, by_step, on_step_axis, same_axis, step_axis, steps_of
from lmdynamics.charts.encodings import STEP_TIP, names, need_rows, numbers, rule_at
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.theme import BLUE, GREY, TEXT, VERMILION, figure

WIDTH, DOTS_WIDTH = 400, 240  # side by side on a page, with the longest of Zorro's names
GOOD = Line(
    "value", ["(pseudo-)log-probability", "per sentence (nats)"], dashes=[1, 0], axis={"tickCount": 5}, width=2.2
)
SCORES = {"good": GOOD, "bad": replace(GOOD, colours=VERMILION, dashes=[6, 4])}  # distinguishable without colour
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

    `rows`: frame of `analysis.syntax.pair_race`; rows without an interval have no band. A vertical line marks `step`,
    by default the last, or the cursor's step. `onset`: drawn as a band. `caption`: what is shown.
    """
    columns = ["step", "paradigm", "pair", "score", "value", "low", "high", "pairs"]
    data = on_step_axis(need_rows(rows, columns, "the race of minimal pairs", NO_ROWS))
    scores, lead = data.filter(pl.col("score") != "difference"), data.filter(pl.col("score") == "difference")
    steps = steps_of(rows)
    above, below = step_axis(steps, None), step_axis(steps)
    lines = [layer for score, line in SCORES.items() for layer in line.layers(scores.filter(score=score), above, ())]
    tip_columns = ["value", *(["low", "high"] if lead["low"].is_not_null().any() else [])]
    tips = [alt.Tooltip("value:Q", title="good − bad", format="+.2f"), *numbers("+.2f", *tip_columns[1:])]
    options = {
        "onsets": [onset] if onset else [],
        "onset_labels": False,
        "position": cursor if cursor is not None else steps[-1] if step is None else step,
        "width": WIDTH,
    }
    upper = panel(lines, above, number=True, hover=by_step(scores, "score", "value", ".2f"), height=150, **options)
    zero = rule_at(LEAD.y, 0, color=GREY, strokeWidth=1.2)
    hover = lead.select("x", "step", *tip_columns), tips
    lower = panel([zero, *LEAD.layers(lead, below, ())], below, hover=hover, height=110, **options)
    chart = alt.vconcat(upper, lower, spacing=12)
    count, no_interval = rows["pairs"][0], lead["low"].is_null().all()
    key = ["solid blue: good sentence; dashed orange: bad sentence"]
    key.append(("one pair" if count == 1 else f"{count:,} pairs, one of some kind") + ", no interval")
    if not no_interval:
        key[1] = f"bands: 95 % over {count:,} pairs"
    if onset is not None and onset.step is not None:
        key.append(f"vertical band: {onset.name} onset, step {onset.step:,}")
    finding = describe_race(rows)
    return figure(
        chart,
        finding,
        [*caption.split("\n"), "; ".join(key)],
        f"Log-probability of good and bad sentences over training, with a line at one checkpoint. {finding}. "
        f"{_describe_ends(rows)} {caption}".replace("\n", " ").strip(),
    )


def describe_race(rows: pl.DataFrame) -> str:
    """The result of the race: the step from which the good sentence leads, and by how much at the end."""
    end = rows.filter(pl.col("score") == "difference").sort("step").row(-1, named=True)
    first, leads_since, first_lead = rows["step"].min(), leads_from(rows), leads_from(rows, k=1)
    name = paradigm_label(end["paradigm"]) + ("" if end["pair"] is None else ", one pair")
    if leads_since is None and first_lead is not None and first_lead > first:
        return f"{name}: the good sentence leads from step {first_lead:,} on only, too late to say that it stays ahead"
    if leads_since is None:
        margin = with_interval(end["value"], (end["low"], end["high"]), "+.2f").replace("-", "−")
        return f"{name}: the good sentence never leads for good; good − bad is {margin} nats at the end"
    previous = rows.filter(pl.col("step") < leads_since)["step"].max()
    start = f"from step {leads_since:,} on (not yet at {previous:,})" if leads_since > first else "at every checkpoint"
    start += f", the first at step {first:,}" if leads_since == first > 0 else ""
    margin = f"{end['value']:.1f}" if end["value"] >= 0.1 else f"{end['value']:.2g}"
    return f"{name}: the good sentence leads {start}, by {margin} nats at the end"


def pairs_at_step(accuracy: pl.DataFrame, cursor: Cursor, chosen: str = "", chance: float = 0.5):
    """Share of pairs judged right at the cursor's step, a dot and its interval for each paradigm.

    `accuracy`: frame of `accuracy_by_step`; the chart holds all steps. Paradigms are sorted by accuracy at the last
    step. `chosen`: the paradigm marked by a ring.
    """
    columns = ["step", "paradigm", "accuracy", "low", "high", "pairs"]
    accuracy = need_rows(accuracy, columns, "pairs judged right at a step", NO_ROWS)
    rows = accuracy.with_columns(name=pl.Series([paradigm_label(paradigm) for paradigm in accuracy["paradigm"]]))
    last = rows.filter(pl.col("step") == pl.col("step").max()).sort("accuracy", "name", descending=[True, False])
    order = last["name"].to_list()
    y = names("name", order, grid=True, labelLimit=0)
    x = alt.X("accuracy:Q", title="pairs judged right").scale(domain=[0, 1]).axis(format="%", tickCount=5, grid=False)
    rows_at_step = alt.Chart(rows).transform_filter(f"datum.step == {cursor.name}").encode(y)
    tips = [alt.Tooltip("name:N", title="paradigm"), STEP_TIP, *numbers(".1%", "accuracy", "low", "high"), "pairs:Q"]
    layers = [
        rule_at(x, chance, color=GREY, strokeDash=[6, 4], strokeWidth=1.5),
        rows_at_step.mark_rule(color=BLUE, strokeWidth=2).encode(same_axis(x, "low"), alt.X2("high:Q")),
        rows_at_step.mark_point(color=BLUE, size=60, filled=True, opacity=1).encode(x, tooltip=tips),
    ]
    key = [f"dashed: chance ({chance:.0%})", "bars: 95 %"]
    if chosen in accuracy["paradigm"]:
        ring = rows_at_step.transform_filter(alt.FieldEqualPredicate(field="paradigm", equal=chosen))
        layers.append(ring.mark_point(color=TEXT, size=170, strokeWidth=2, opacity=1).encode(x))
        key.append("ring: the selected paradigm")
    ends = "; ".join(f"{row['name']} {row['accuracy']:.0%}" for row in last.iter_rows(named=True))
    return figure(
        alt.layer(*layers).properties(width=DOTS_WIDTH, height=(28 if len(order) <= 12 else 14) * len(order)),
        ["Pairs judged right at step ", cursor.number],
        ["; ".join(key), "best at the last checkpoint on top"],
        f"Share of minimal pairs judged right at one checkpoint, by kind of pair. At the last one: {ends}.",
    )


def paradigm_label(paradigm: str) -> str:
    """A paradigm's name for display: "filler-gap: wh question subject"."""
    return ": ".join(paradigm.replace("_", " ").rsplit("-", 1))


def _describe_ends(rows: pl.DataFrame) -> str:
    """Start and end of both lines, for screen readers."""
    ordered = rows.sort("step")
    sentences = []
    for score in SCORES:
        values = ordered.filter(pl.col("score") == score)["value"]
        sentences.append(f"{score} sentence {values[0]:.1f} → {values[-1]:.1f} nats")
    return f"{'; '.join(sentences)}.".replace("-", "−")

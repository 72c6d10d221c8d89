"""Whose loss was traded for whose: groups of tokens, and single tokens, that gained and that lost."""

from collections.abc import Callable

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.conditions import ROW, capital
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import BLUE, TEXT, VERMILION, WIDTH, figure
from lmdynamics.charts.tokens import visible
from lmdynamics.errors import UserError, shortened

SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+.3~r')"
MOST_PANELS = 4  # doublings side by side
LONGEST = 18  # characters of a token that are shown


def traded(table: pl.DataFrame, *, by: str = "") -> alt.HConcatChart:
    """How far the losses of each group's tokens fell (left) and rose (right), and what is left of it.

    `table`: group, gained, lost, net (nats per token of the whole text, so that the bars of all groups add up) with
    net_low and net_high, as `analysis.zero_sum.traded` gives them. With `step`, a panel per step, spread evenly over
    log step where there are more than 4; groups stand in the order of the frame, with their `tokens` if they have any.
    `by`: what the groups are, for the title.

    Raises
    ------
    UserError
        If a column is missing, or there is nothing to draw.
    """
    what = "losses traded"
    need_columns(table, ["group", "gained", "lost", "net"], what)
    rows = table.filter(pl.col("gained").is_finite() & pl.col("lost").is_finite())
    if rows.is_empty():
        raise UserError(f"{what}: the frame has no rows; give the changes of some tokens and the groups they are in")
    rows = rows.with_columns(pl.col("group").cast(pl.String), away=-pl.col("gained"))
    steps = spread(rows["step"].unique().sort().to_list(), MOST_PANELS) if "step" in rows.columns else [None]
    rows = rows if steps == [None] else rows.filter(pl.col("step").is_in(steps))
    if counted := "tokens" in rows.columns and rows.select("group", "tokens").n_unique() == rows["group"].n_unique():
        rows = rows.with_columns(pl.format("{} ({})", "group", pl.col("tokens").map_elements("{:,}".format, pl.String)))
    groups = rows["group"].unique(maintain_order=True).to_list()
    most = 1.08 * max(rows["gained"].max(), rows["lost"].max(), 1e-12)
    tips = ["group:N", *(alt.Tooltip(f"{name}:Q", format="+.4f") for name in ("gained", "lost", "net"))]
    tips += [f"{name}:Q" for name in ("interference", "tokens") if name in rows.columns]
    end = float(f"{most / 1.6:.1g}")
    ticks = {"tickCount": 5} if len(steps) < 3 else {"values": [-end, 0, end]}
    width = WIDTH - 80 if len(steps) == 1 else 240 if len(steps) == 2 else 150
    under = wrapped("nats per token" if len(steps) > 2 else "change of loss (nats per token of the text)", width)
    panels, said = [], []
    for index, step in enumerate(steps):
        here = rows if step is None else rows.filter(pl.col("step") == step)
        y = alt.Y("group:N", title=None, sort=groups).scale(domain=groups)
        y = y.axis(labels=index == 0, ticks=False, domain=False, labelLimit=240, labelPadding=8)
        x = alt.X(title=under)
        x = x.scale(domain=[-most, most], nice=False).axis(labelExpr=SIGNED, grid=False, **ticks)
        base = alt.Chart(here).encode(y, tooltip=tips)
        bars = [
            base.mark_bar(color=colour, height=14).encode(_along(x, name))
            for name, colour in (("away", BLUE), ("lost", VERMILION))
        ]
        zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color=TEXT).encode(_along(x, "zero"))
        layers = [*bars, zero]
        if {"net_low", "net_high"} <= set(here.columns) and len(bounded := here.drop_nulls(["net_low", "net_high"])):
            reach = alt.Chart(bounded).mark_rule(color=TEXT, strokeWidth=2).encode(_along(x, "net_low"), y)
            layers.append(reach.encode(alt.X2("net_high:Q")))
        dot = base.mark_point(filled=True, color="#ffffff", stroke=TEXT, strokeWidth=1.6, size=48, opacity=1)
        layers.append(dot.encode(_along(x, "net")))
        panel = alt.layer(*layers).properties(width=width, height=ROW * len(groups))
        if step is not None:
            until = here["until"][0] if "until" in here.columns else None
            name = f"step {step:,}" + (f" → {until:,}" if until is not None else "")
            panel = panel.properties(title=alt.TitleParams(name, fontSize=12, fontWeight="normal", offset=6))
        panels.append(panel)
        told = _sums(here)
        said.append(told if step is None else f"from step {step:,}: {told}")
    return figure(
        alt.hconcat(*panels, spacing=14),
        f"By {by}, {said[-1]}" if by else capital(said[-1]),
        [
            "blue: how far losses fell; orange: how far they rose; dot: the sum of both, with its 95 % interval",
            "in brackets: how many tokens; a large group has long bars" if counted else "",
        ],
        "Losses that fell and rose, by group of tokens. " + " ".join(_spoken(rows)),
    )


def winners_and_losers(table: pl.DataFrame, name: Callable[[int], str] | None = None) -> alt.LayerChart:
    """The tokens whose loss fell most, and those whose rose most, each with its mean change ± 1.96 standard errors.

    `table`: token, change, count, stderr, kind ("winner" or "loser"), as `analysis.zero_sum.winners_and_losers` gives
    them; of several steps, the last is shown. A token is called by `name` (a tokenizer's `decode`, say), by a column
    `form`, or by its number.

    Raises
    ------
    UserError
        If a column is missing, or there is nothing to draw.
    """
    what = "winners and losers"
    need_columns(table, ["token", "change", "count", "kind"], what)
    rows = table.filter(pl.col("change").is_finite()).sort("change")
    if "step" in rows.columns:
        rows = rows.filter(pl.col("step") == pl.col("step").max())
    if rows.is_empty():
        raise UserError(f"{what}: the frame has no rows; ask for tokens with fewer occurrences (at_least)")
    if name is not None:
        texts = [name(token) for token in rows["token"]]
    else:
        texts = rows["form"].to_list() if "form" in rows.columns else [str(token) for token in rows["token"]]
    rows = rows.with_columns(pl.Series("label", _told_apart([clipped(text) for text in texts], rows["token"])))
    if "stderr" in rows.columns:
        reach = 1.959964 * pl.col("stderr").cast(pl.Float64)
        rows = rows.with_columns(low=pl.col("change") - reach, high=pl.col("change") + reach)
    y = alt.Y("label:N", title=None, sort=rows["label"].to_list())
    y = y.axis(ticks=False, domain=False, labelLimit=220, labelPadding=8)
    x = alt.X("change:Q", title="mean change of loss (nats)").axis(labelExpr=SIGNED, tickCount=6)
    scale = alt.Scale(domain=["winner", "loser"], range=[BLUE, VERMILION])
    colour = alt.Color("kind:N", scale=scale, legend=None)
    tips = ["label:N", "token:Q", alt.Tooltip("change:Q", format="+.4f"), "count:Q"]
    base = alt.Chart(rows).encode(y, tooltip=tips)
    layers = [base.mark_bar(height=13).encode(x, colour), base.mark_rule(color=TEXT).encode(x=alt.datum(0))]
    if "low" in rows.columns and len(bounded := rows.drop_nulls(["low", "high"])):
        ends = alt.Chart(bounded).mark_rule(color=TEXT, strokeWidth=1.5).encode(y, alt.X("low:Q"), alt.X2("high:Q"))
        layers.append(ends)
    first, last = rows.row(0, named=True), rows.row(-1, named=True)
    ends = [
        f"“{row['label']}” {verb} most ({row['change']:+.2f} nats)".replace("-", "−")
        for row, kind, verb in ((first, "winner", "gained"), (last, "loser", "lost"))
        if row["kind"] == kind
    ]
    listed = "; ".join(f"{row['label']} {row['change']:+.3f} ({row['count']} times)" for row in rows.to_dicts())
    return figure(
        alt.layer(*layers).properties(width=WIDTH - 100, height=alt.Step(19)),
        capital(", ".join(ends) or "Tokens by their mean change of loss"),
        "blue: the loss fell; orange: it rose; line: ± 1.96 standard errors of the mean",
        f"Mean change of loss by token: {listed}.",
    )


def clipped(text: str, most: int = LONGEST) -> str:
    """A token as a label: nothing that acts, a space as ·, and not too long."""
    return shortened(visible(text).replace(" ", "·"), most)


def spread(steps: list[int], most: int) -> list[int]:
    """At most so many of some steps in order, about evenly over log step, the last among them."""
    if len(steps) <= most:
        return steps
    chosen = {round(i * (len(steps) - 1) / (most - 1)) for i in range(1, most)}  # checkpoints are log-spaced themselves
    first = next((i for i, step in enumerate(steps) if step > 0), 0)
    return [steps[i] for i in sorted(chosen | {first})][-most:]


def _along(x: alt.X, field: str) -> alt.X:
    placed = x.copy()
    placed["shorthand"] = f"{field}:Q"
    return placed


def _told_apart(labels: list[str], tokens: pl.Series) -> list[str]:
    """Two tokens can look alike: then their numbers follow."""
    return [
        label if labels.count(label) == 1 else f"{label} ({token})" for label, token in zip(labels, tokens, strict=True)
    ]


def _sums(rows: pl.DataFrame) -> str:
    gained, lost = rows["gained"].sum(), rows["lost"].sum()
    share = f", {lost / gained:.0%} of it undone by" if gained > 0 else " against"
    return f"losses fell by {gained:.3g} nats per token{share} losses that rose ({lost:.3g})"


def _spoken(rows: pl.DataFrame) -> list[str]:
    when = [f"step {row['step']:,}, " if "step" in rows.columns else "" for row in rows.to_dicts()]
    return [
        f"{at}{row['group']}: −{row['gained']:.3f} and +{row['lost']:.3f} nats."
        for at, row in zip(when, rows.to_dicts(), strict=True)
    ]

"""Losses that fell and losses that rose: of groups of tokens, of single tokens, and as a histogram of all changes.

Figures with a `cursor` follow it; they are the views of the zero-sum explorer.
"""

from collections.abc import Callable

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import normal_interval
from lmdynamics.charts.axes import Cursor, on_step_axis, same_axis, step_axis, steps_of
from lmdynamics.charts.conditions import ROW, capital, span_of
from lmdynamics.charts.encodings import SIGNED, head, interval, names, need_rows, numbers, rule_at, zero_line
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import BLUE, GREY, TEXT, VERMILION, WIDTH, figure
from lmdynamics.charts.tokens import visible
from lmdynamics.errors import shortened

MAX_PANELS = 4  # doublings side by side
LONGEST = 18  # characters of a token's label
PANEL_WIDTH, PANEL_HEIGHT = 330, 74  # pixels: the size of one of four figures, two in a row
SIDES = {"away": BLUE, "lost": VERMILION}  # how far losses fell (left) and rose (right)
TRADE_COLUMNS = ["group", "gained", "lost", "net"]
X_TITLE = "change of loss (nats per token of the text)"
INTERFERENCE = Line(
    "interference",
    ["destructive", "interference D"],
    band=("interference_low", "interference_high"),
    scale={"domain": [0, 1]},
    axis={"tickCount": 5},
    width=2.2,
    points=22,
)


def traded(table: pl.DataFrame, *, by: str = "") -> alt.HConcatChart:
    """How far the losses of each group's tokens fell (left) and rose (right), and the sum of both.

    `table`: group, gained, lost, net (nats per token of the whole text, so that the bars of all groups add up) with
    net_low and net_high, from `analysis.zero_sum.traded`. With `step`, a panel per step, at most 4, evenly over log
    step; groups keep the order of the frame, with their number of `tokens` if it is the same at all steps.
    `by`: what the groups are, for the title.
    """
    no_rows = "the frame has no rows; give the changes of some tokens and the groups they are in"
    measured = pl.col("gained").is_finite() & pl.col("lost").is_finite()
    rows = _with_sides(need_rows(table, TRADE_COLUMNS, "losses traded", no_rows, measured))
    steps = spread(rows["step"].unique().sort().to_list(), MAX_PANELS) if "step" in rows.columns else [None]
    rows = rows if steps == [None] else rows.filter(pl.col("step").is_in(steps))
    if counted := "tokens" in rows.columns and rows.select("group", "tokens").n_unique() == rows["group"].n_unique():
        rows = rows.with_columns(pl.format("{} ({})", "group", pl.col("tokens").map_elements("{:,}".format, pl.String)))
    groups = rows["group"].unique(maintain_order=True).to_list()
    limit = 1.08 * max(rows["gained"].max(), rows["lost"].max(), 1e-12)
    tips = ["group:N", *numbers("+.4f", "gained", "lost", "net")]
    tips += [f"{name}:Q" for name in ("interference", "tokens") if name in rows.columns]
    tick = float(f"{limit / 1.6:.1g}")
    ticks = {"tickCount": 5} if len(steps) < 3 else {"values": [-tick, 0, tick]}
    width = WIDTH - 80 if len(steps) == 1 else 240 if len(steps) == 2 else 150
    x_title = wrapped("nats per token" if len(steps) > 2 else X_TITLE, width)
    panels, summaries = [], []
    for index, step in enumerate(steps):
        step_rows = rows if step is None else rows.filter(pl.col("step") == step)
        y = names("group", groups, labels=index == 0, labelLimit=240)
        x = alt.X("net:Q", title=x_title)
        x = x.scale(domain=[-limit, limit], nice=False).axis(labelExpr=SIGNED, grid=False, **ticks)
        base = alt.Chart(step_rows).encode(y, tooltip=tips)
        layers = [*_bars(base, x, 14), rule_at(x, 0)]
        layers += interval(step_rows, x, y, band=("net_low", "net_high"), color=TEXT, strokeWidth=2)
        layers.append(_net(base, 48).encode(x))
        part = alt.layer(*layers).properties(width=width, height=ROW * len(groups))
        if step is not None:
            until = step_rows["until"][0] if "until" in step_rows.columns else None
            name = f"step {step:,}" + (f" → {until:,}" if until is not None else "")
            part = part.properties(title=head(name, anchor="middle", offset=6))
        panels.append(part)
        summary = _sums(step_rows)
        summaries.append(summary if step is None else f"from step {step:,}: {summary}")
    return figure(
        alt.hconcat(*panels, spacing=14),
        f"By {by}, {summaries[-1]}" if by else capital(summaries[-1]),
        [
            "blue: how far losses fell; orange: how far they rose; dot: the sum of both, with its 95 % interval",
            "in brackets: how many tokens; a large group has long bars" if counted else "",
        ],
        "Losses that fell and rose, by group of tokens. " + " ".join(_sentences(rows)),
    )


def winners_and_losers(table: pl.DataFrame, name: Callable[[int], str] | None = None) -> alt.LayerChart:
    """The tokens whose losses fell most or rose most, each with its mean change ± 1.96 standard errors.

    `table`: token, change, count, stderr, kind ("winner" or "loser"), from `analysis.zero_sum.winners_and_losers`; of
    several steps, the last is shown. A token's label is from `name` (such as a tokenizer's `decode`), from a column
    `form`, or its number.
    """
    no_rows = "the frame has no rows; ask for tokens with fewer occurrences (min_count)"
    columns, measured = ["token", "change", "count", "kind"], pl.col("change").is_finite()
    rows = need_rows(table, columns, "winners and losers", no_rows, measured).sort("change")
    if "step" in rows.columns:
        rows = rows.filter(pl.col("step") == pl.col("step").max())
    if name is not None:
        texts = [name(token) for token in rows["token"]]
    else:
        texts = rows["form"].to_list() if "form" in rows.columns else [str(token) for token in rows["token"]]
    rows = rows.with_columns(pl.Series("label", _distinct_labels([clipped(text) for text in texts], rows["token"])))
    if "stderr" in rows.columns:
        low, high = normal_interval(pl.col("change"), pl.col("stderr").cast(pl.Float64))
        rows = rows.with_columns(low=low, high=high)
    y = names("label", rows["label"].to_list(), labelLimit=220)
    x = alt.X("change:Q", title="mean change of loss (nats)").axis(labelExpr=SIGNED, tickCount=6)
    scale = alt.Scale(domain=["winner", "loser"], range=[BLUE, VERMILION])
    colour = alt.Color("kind:N", scale=scale, legend=None)
    tips = ["label:N", "token:Q", *numbers("+.4f", "change"), "count:Q"]
    base = alt.Chart(rows).encode(y, tooltip=tips)
    layers = [base.mark_bar(height=13).encode(x, colour), zero_line()]
    layers += interval(rows, x, y, color=TEXT, strokeWidth=1.5)
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


def interference_cursor(
    table: pl.DataFrame, cursor: Cursor, batch: pl.DataFrame | None = None, caption: str = ""
) -> alt.LayerChart:
    """D over training with its band, and a vertical line at the cursor's step.

    `table`: step, interference, interference_low, interference_high (null: no band). `batch`: step, interference of
    one batch, as a thin line. `caption`: what is shown.
    """
    line, no_rows = INTERFERENCE, "no step has a number; nothing changed at any of them"
    columns = [line.value, *line.band]
    measured = pl.col("interference").is_finite()
    rows = on_step_axis(need_rows(table, ["step", *columns], "interference at a checkpoint", no_rows, measured))
    x = step_axis(steps_of(rows))
    layers, has_batch = line.layers(rows, x, ()), batch is not None and len(batch) > 0
    if has_batch:
        layers.append(alt.Chart(on_step_axis(batch)).mark_line(color=GREY, strokeWidth=1.2).encode(x, line.y))
    hover = rows.select("x", "step", *columns), numbers(".3f", *columns)
    change = f"from {span_of(rows['interference'][:1])} to {span_of(rows['interference'][-1:])}"
    key = ["band: 95 %" if len(rows.drop_nulls(line.band)) else "", "grey: this batch alone" if has_batch else ""]
    return figure(
        panel(layers, x, position=cursor, hover=hover, width=PANEL_WIDTH, height=PANEL_HEIGHT),
        f"Destructive interference goes {change}",
        [[caption, *key]],
        f"Destructive interference against step, {change}, with a line at one checkpoint. {caption}".strip(),
    )


def change_histogram(bins: pl.DataFrame, cursor: Cursor) -> alt.LayerChart:
    """Histogram of tokens' changes at the cursor's step: losses that fell in blue, losses that rose in orange.

    `bins`: step, low, high, share, side, tokens of `analysis.zero_sum.change_bins` by step.
    """
    columns = ["step", "low", "high", "share", "side", "tokens"]
    need_rows(bins, columns, "changes at a checkpoint", "there are no changes to count")
    limit = bins["high"].max() if bins["high"].max() > -bins["low"].min() else -bins["low"].min()
    smallest = bins.filter(pl.col("low") >= 0)["high"].min() or bins.filter(pl.col("high") <= 0)["low"].abs().min()
    scale = alt.Scale(type="symlog", constant=10 * (smallest or limit), domain=[-limit, limit], nice=False)
    marks = [sign * 10.0**e for e in range(-9, 3) for sign in (-1, 1) if smallest < 10.0**e <= limit][-6:]
    x = alt.X("low:Q", title="change of a token's loss (nats; wider steps further out)", scale=scale)
    x = x.axis(values=sorted([0, *marks]), labelExpr=SIGNED, grid=False)
    y = alt.Y("share:Q", title="share of tokens").scale(domain=[0, bins["share"].max() * 1.05], nice=False)
    colour = alt.Color("side:N", legend=None).scale(domain=["fell", "rose"], range=[BLUE, VERMILION])
    base = alt.Chart(bins).transform_filter(f"datum.step == {cursor.name}")
    bars = base.mark_rect(stroke=None).encode(
        x,
        alt.X2("high:Q"),
        y.axis(format="%", tickCount=4),
        alt.Y2(datum=0),
        colour,
        tooltip=[*numbers("+.3~g", "low", "high"), "tokens:Q"],
    )
    return figure(
        alt.layer(bars, rule_at(x, 0)).properties(width=PANEL_WIDTH, height=PANEL_HEIGHT),
        ["How far losses moved at step ", cursor.number],
        "blue: the loss fell; orange: it rose",
        "Histogram of the changes of tokens' losses at one checkpoint, those that fell to the left.",
    )


def traded_at(table: pl.DataFrame, cursor: Cursor, by: str = "") -> alt.LayerChart:
    """How far each group's losses fell and rose at the cursor's step.

    `table`: step, group, gained, lost, net, from `analysis.zero_sum.traded` by step. `by`: what the groups are.
    """
    rows = need_rows(table, ["step", *TRADE_COLUMNS], "losses traded at a checkpoint", "the frame has no rows")
    rows = _with_sides(rows)
    groups = rows["group"].unique(maintain_order=True).to_list()
    y = names("group", groups, labelLimit=150, titlePadding=24).title(by or None)
    x = alt.X("net:Q", title=X_TITLE, axis=alt.Axis(tickCount=5, labelExpr=SIGNED, grid=False))
    tips = ["group:N", *numbers("+.3~g", "gained", "lost", "net")]
    rows_at_step = alt.Chart(rows).transform_filter(f"datum.step == {cursor.name}").encode(y, tooltip=tips)
    return figure(
        alt.layer(*_bars(rows_at_step, x, 10), zero_line(), _net(rows_at_step, 45).encode(x)).properties(
            width=PANEL_WIDTH, height=16 * len(groups)
        ),
        ["Whose losses fell and rose at step ", cursor.number],
        "blue: how far losses fell; orange: rose; dot: the sum of both",
        f"Losses that fell and rose at one checkpoint, for the groups {', '.join(groups)}.",
    )


def token_course(rows: pl.DataFrame, token: str, cursor: Cursor) -> alt.VConcatChart | alt.LayerChart:
    """One token over training: its loss, and the change of it at each checkpoint, with a line at `cursor`.

    `rows`: step, change (nats), perhaps loss (nats, before the change). One token has no interval.
    """
    rows = need_rows(rows, ["step", "change"], "a token over training", "it was measured at no checkpoint")
    data = on_step_axis(rows)
    loss = "loss" in rows.columns and data["loss"].is_not_null().any()
    interval_name = "a doubling" if "until" in rows.columns else "one step"
    axis = {"tickCount": 4}
    lines = {
        ".3f": Line("loss", ["loss", "(nats)"], axis=axis, points=16),
        "+.3~g": Line("change", ["change", "(nats)"], scale={"zero": True}, axis=axis),
    }
    panels = []
    for style, line in list(lines.items())[0 if loss else 1 :]:
        x = step_axis(steps_of(data), "training step (log)" if line.value == "change" else None)
        if line.value == "loss":
            marks = line.layers(data, x, ())
        else:
            fell = alt.condition("datum.change < 0", alt.value(BLUE), alt.value(VERMILION))
            bars = alt.Chart(data).mark_rule(strokeWidth=4).encode(x, line.y, alt.Y2(datum=0), color=fell)
            marks = [bars, zero_line("y")]
        hover = data.select("x", "step", line.value), numbers(style, line.value)
        panels.append(panel(marks, x, position=cursor, hover=hover, width=PANEL_WIDTH, height=38))
    chart = alt.vconcat(*panels, spacing=10) if loss else panels[0]
    largest = data.sort(pl.col("change").abs())["step"][-1]
    largest_change = f"{data.filter(step=largest)['change'][0]:+.3g} nats".replace("-", "−")
    summary = f"{interval_name} moves it most at {largest:,}, by {largest_change}"
    if loss:
        summary = f"loss {data['loss'][0]:.2f} → {data['loss'][-1]:.2f}, {summary}"
    return figure(
        chart,
        f"“{token}”: {summary}",
        "blue: its loss fell; orange: rose; one token, no interval",
        f"One token over training: {summary}.",
    )


def clipped(text: str, max_length: int = LONGEST) -> str:
    """A token as a label: escaped, a space as ·, and not too long."""
    return shortened(visible(text).replace(" ", "·"), max_length)


def spread(steps: list[int], count: int) -> list[int]:
    """At most `count` of the sorted steps, about evenly over log step, including the last."""
    if len(steps) <= count:
        return steps
    indices = {round(i * (len(steps) - 1) / (count - 1)) for i in range(1, count)}  # checkpoints are log-spaced
    first = next((i for i, step in enumerate(steps) if step > 0), 0)
    return [steps[i] for i in sorted(indices | {first})][-count:]


def _with_sides(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.col("group").cast(pl.String), away=-pl.col("gained"))


def _bars(base: alt.Chart, x: alt.X, height: int) -> list[alt.Chart]:
    """Bars to both sides of zero."""
    return [base.mark_bar(color=colour, height=height).encode(same_axis(x, column)) for column, colour in SIDES.items()]


def _net(base: alt.Chart, size: int) -> alt.Chart:
    """A dot at the sum of both sides."""
    return base.mark_point(filled=True, color="#ffffff", stroke=TEXT, strokeWidth=1.6, size=size, opacity=1)


def _distinct_labels(labels: list[str], tokens: pl.Series) -> list[str]:
    """Unique labels: the number of a token is added if another token has the same label."""
    return [
        label if labels.count(label) == 1 else f"{label} ({token})" for label, token in zip(labels, tokens, strict=True)
    ]


def _sums(rows: pl.DataFrame) -> str:
    gained, lost = rows["gained"].sum(), rows["lost"].sum()
    share = f", {lost / gained:.0%} of it undone by" if gained > 0 else " against"
    return f"losses fell by {gained:.3g} nats per token{share} losses that rose ({lost:.3g})"


def _sentences(rows: pl.DataFrame) -> list[str]:
    prefixes = [f"step {row['step']:,}, " if "step" in rows.columns else "" for row in rows.to_dicts()]
    return [
        f"{prefix}{row['group']}: −{row['gained']:.3f} and +{row['lost']:.3f} nats."
        for prefix, row in zip(prefixes, rows.to_dicts(), strict=True)
    ]

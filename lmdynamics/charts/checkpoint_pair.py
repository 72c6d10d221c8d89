"""Two checkpoints of a run, A and B: what each token gained or lost between them, and which heads changed relation.

The place of A is in the signal `origin`, that of B is the slider's.
"""

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.checkpoint_pairs import changed_heads, context_of
from lmdynamics.analysis.intervals import with_interval
from lmdynamics.charts.axes import SLIDER, STEP_ZERO, Cursor, on_step_axis, same_axis, step_axis, strips
from lmdynamics.charts.encodings import numbers
from lmdynamics.charts.lines import Line
from lmdynamics.charts.moving import VegaLite, by_place, in_column, in_row
from lmdynamics.charts.text import Value, text_width
from lmdynamics.charts.theme import BLUE, GREY, OPPOSED, TEXT, VERMILION, figure
from lmdynamics.charts.tokens import visible

WIDTH, LINE, LINES = 880, 21, 6  # pixels: of the text, of one of its lines; lines
LISTED, ROW = 4, 16  # tokens that gained most, and lost most; pixels of a row of a table
HEADS = 2 * LISTED
ORIGIN = "origin"
ENDS = {ORIGIN: "A", SLIDER: "B"}
PAIR = f"[{ORIGIN}][{SLIDER}]"  # of an array with an entry for each two checkpoints
SIZE = 12  # of a token


def moving_pair(
    losses: pl.DataFrame,
    texts: Mapping[int, Sequence[str]],
    pairs: pl.DataFrame,
    cursor: Cursor,
    heads: pl.DataFrame | None = None,
) -> VegaLite:
    """Tokens coloured by the change of their losses from A to B, the largest changes, and heads that changed relation.

    `losses`: a trace of `TokenLosses`; `texts`: the tokens of its rows, of which the first are shown; `pairs`: frame of
    `analysis.checkpoint_pairs.changes_of_all_pairs`; `heads`: as for `analysis.checkpoint_pairs.changed_heads`.
    """
    tokens = by_place(losses, ["row", "position"], ["loss"], cursor.steps)
    below = [_largest(tokens, texts)] + ([] if heads is None else [_heads(heads, cursor)])
    return in_column(_course(losses, pairs, cursor), _text(tokens, texts, cursor), in_row(*below))


def origin_click() -> dict[str, str | dict]:
    """Vega event handler for a click on the strip of A: sets a signal to the place there."""
    has_place = "event.item && event.item.datum && isValid(event.item.datum.from_place)"
    moved = {"source": "view", "type": "pointermove", "filter": [has_place, "event.buttons == 1"]}
    pressed = {"source": "view", "type": "pointerdown", "filter": [has_place]}
    return {"events": [pressed, moved], "update": "datum.from_place"}


def _step(place: str, cursor: Cursor) -> Value:
    return Value(f"format(cursor_steps[{place}], ',d')", f"{max(cursor.steps):,}")


def _course(losses: pl.DataFrame, pairs: pl.DataFrame, cursor: Cursor) -> alt.VConcatChart:
    """The mean loss over training with both checkpoints, and a strip to click on for A; the title sums the pair up."""
    means = on_step_axis(losses.group_by("step").agg(pl.col("loss").mean()))
    x, line = step_axis(cursor.steps), Line("loss", ["mean loss", "(nats)"], axis={"tickCount": 3})
    unlabelled = step_axis(cursor.steps, None)
    unlabelled["axis"]["labels"] = False
    hover = strips(means.select("x", "step", "loss"), unlabelled, cursor, numbers(".3f", "loss"))
    ends = [mark for place, name in ENDS.items() for mark in _end(place, name, unlabelled)]
    curve = alt.layer(*line.layers(means, unlabelled, ()), *ends, hover).properties(width=WIDTH - 60, height=42)
    places = strips(means.select("x", "step"), x, cursor).transform_calculate(from_place="datum.i", i="null")
    places = places.encode(tooltip=alt.value("click: A is here"))
    band = alt.Chart(alt.Data(values=[{}])).mark_rect(color="#88888830", height=14).encode(y=alt.value(7))
    strip = alt.layer(band, *(_end(place, name, x)[0] for place, name in ENDS.items()), places).properties(
        width=WIDTH - 60, height=14
    )
    steps = list(cursor.steps)
    rows = {(row["from_step"], row["step"]): row for row in pairs.iter_rows(named=True)}
    nested = [[rows[a, b] for b in steps] for a in steps]
    change = [[_change(row) for row in line] for line in nested]
    values = {
        "pair_change": change,
        "pair_improved": [[f"{row['improved']:.0%}" for row in line] for line in nested],
        "pair_large": [[max(row["large"], 1e-6) for row in line] for line in nested],
    }
    first, longest = nested[0][0], max((text for line in change for text in line), key=len)
    bounded = first["change_low"] is not None
    interval = "brackets: 95 % interval over rows" if bounded else "no interval: fewer than 6 rows of text"
    title = ["From step ", _step(ORIGIN, cursor), " to ", _step(SLIDER, cursor), ": "]
    title += [Value(f"pair_improved{PAIR}", "100%"), " of the tokens improve, mean change "]
    title.append(Value(f"pair_change{PAIR}", longest))
    chart = alt.vconcat(curve, strip, spacing=2)
    chart.params = [alt.VariableParameter(name, value=value) for name, value in values.items()]
    return figure(
        chart,
        title,
        [
            [
                f"{first['tokens']:,} tokens in {first['rows']:,} rows",
                interval,
                "a single token has none",
                "click: B on the curve, A on the strip",
            ],
        ],
        "Mean loss over training, with lines at two checkpoints, A and B.",
    )


def _change(row: Mapping) -> str:
    text = with_interval(row["change"], (row["change_low"], row["change_high"]), "+.2f").replace("-", "−")
    number, space, bounds = text.partition(" ")
    return f"{number} nats{space}{bounds}"


def _end(place: str, name: str, x: alt.X) -> list[alt.Chart]:
    """A line at a checkpoint, with its letter above."""
    data = alt.Chart(alt.Data(values=[{"name": name}]))
    data = data.transform_calculate(x=f"max(cursor_steps[{place}], {STEP_ZERO})")
    line = data.mark_rule(color=TEXT, strokeWidth=2, strokeDash=[4, 2] if name == "A" else [1, 0])
    letter = data.mark_text(color=TEXT, fontWeight="bold", baseline="bottom", dy=-2, dx=-5 if name == "A" else 5)
    return [line.encode(x), letter.encode(x, alt.Text("name:N"), y=alt.value(0))]


def _with_change(tokens: alt.Chart) -> alt.Chart:
    """The tokens with their losses at A and B, the change, and that relative to a large one."""
    return tokens.transform_calculate(a=f"datum.loss_at[{ORIGIN}]", b=f"datum.loss_at[{SLIDER}]").transform_calculate(
        change="datum.b - datum.a", relative=f"clamp((datum.b - datum.a) / pair_large{PAIR}, -1, 1)"
    )


CHANGE_TIPS = [
    *(alt.Tooltip(f"{name}:Q", title=f"loss at {name.upper()} (nats)", format=".3f") for name in "ab"),
    alt.Tooltip("change:Q", title="change (nats)", format="+.3f"),
]


def _text(tokens: pl.DataFrame, texts: Mapping[int, Sequence[str]], cursor: Cursor) -> alt.LayerChart:
    """The first rows of text; tokens that are predicted are coloured."""
    places, x, line = [], 0.0, -1
    for row in tokens["row"].unique(maintain_order=True):
        x, line = 0.0, line + 1
        for position, token in enumerate([f"row {row}", *map(visible, texts[row])], start=-1):
            width = text_width(token.strip(), SIZE) + 8
            if x + width > WIDTH and x > 0:
                x, line = 54.0, line + 1
            places.append((row, position, token.strip(), x, x + width, line))
            x = max(x + width + 2, 54.0)
    schema = {"row": pl.Int32, "position": pl.Int32, "token": pl.String, "left": pl.Float64, "right": pl.Float64}
    data = pl.DataFrame(places, {**schema, "line": pl.Int64}, orient="row").filter(pl.col("line") < LINES)
    lines = int(data["line"].max()) + 1
    data = data.join(tokens, on=["row", "position"], how="left", maintain_order="left")
    span = alt.Scale(domain=[0, WIDTH], range=[0, WIDTH])
    y = alt.Y("line:O", axis=None, scale=alt.Scale(domain=list(range(lines)), paddingInner=0.12))
    base = alt.Chart(data).encode(alt.X("left:Q", axis=None, scale=span), y)
    values = [-1, -0.5, 0, 0.5, 1]
    legend = {
        "type": "symbol", "symbolType": "square", "symbolStrokeWidth": 0, "values": values, "orient": "top",
        "labelExpr": f"datum.value == 0 ? '0' : format(datum.value * pair_large{PAIR}, '+.2f')", "titleLimit": 400,
        "offset": 4, "titleOrient": "left", "direction": "horizontal",
    }  # fmt: skip
    scale = alt.Scale(domain=[-1, 0, 1], range=list(reversed(OPPOSED)), clamp=True, interpolate="rgb")
    title = "change of loss from A to B (nats; full colour there and beyond)"
    colour = alt.Color("relative:Q", title=title, scale=scale).legend(**legend)
    coloured = _with_change(base.transform_filter("isValid(datum.loss_at)"))
    tips = ["token:N", "row:O", *CHANGE_TIPS]
    tiles = coloured.mark_rect().encode(
        same_axis(alt.X("left:Q", axis=None, scale=span), "left"), alt.X2("right:Q"), colour, tooltip=tips
    )
    words = {"align": "left", "dx": 4, "fontSize": SIZE}
    on_colour = alt.condition("abs(datum.relative) > 0.93", alt.value("#ffffff"), alt.value("#000000"))
    plain = base.transform_filter("!isValid(datum.loss_at)").mark_text(**words, color=TEXT, opacity=0.75)
    text = coloured.mark_text(**words).encode(alt.Text("token:N"), color=on_colour, tooltip=tips)
    chart = alt.layer(tiles, text, plain.encode(alt.Text("token:N"))).properties(width=WIDTH, height=LINE * lines)
    return figure(
        chart,
        ["What each predicted token gained or lost between ", _step(ORIGIN, cursor), " and ", _step(SLIDER, cursor)],
        "point at a token for its losses; pale tokens are not predicted",
        "Rows of held-out text; each predicted token is coloured by the change of its loss between two checkpoints.",
    )


def _largest(tokens: pl.DataFrame, texts: Mapping[int, Sequence[str]]) -> alt.LayerChart:
    """The tokens whose losses fell most and rose most, each with its context and its losses at A and B."""
    words = {row: [visible(token).strip() for token in texts[row]] for row in tokens["row"].unique()}
    contexts = [context_of(words[row], position) for row, position in tokens.select("row", "position").iter_rows()]
    base = _with_change(alt.Chart(tokens.with_columns(context=pl.Series(contexts)))).transform_window(
        rank="row_number()", sort=[alt.SortField("change"), alt.SortField("row"), alt.SortField("position")]
    ).transform_joinaggregate(n="count()")  # fmt: skip
    fell, rose = f"datum.change < 0 && datum.rank <= {LISTED}", f"datum.change > 0 && datum.rank > datum.n - {LISTED}"
    base = base.transform_filter(f"({fell}) || ({rose})").transform_calculate(
        place=f"datum.change < 0 ? datum.rank : datum.rank - datum.n + {2 * LISTED}",
        losses="format(datum.a, '.2f') + ' → ' + format(datum.b, '.2f')",
        number="replace(format(datum.change, '+.2f'), '-', '−')",
        where="'row ' + datum.row",
    )
    y = alt.Y("place:O", axis=None, scale=alt.Scale(domain=list(range(1, 2 * LISTED + 1))))
    base = base.encode(y, tooltip=["context:N", "row:O", *CHANGE_TIPS])
    x = alt.X("relative:Q", axis=None, scale=alt.Scale(domain=[-1, 1], range=[352, 432]))
    fill = alt.condition("datum.change < 0", alt.value(BLUE), alt.value(VERMILION))
    columns = {
        "context": (0, "left", 205),
        "where": (254, "right", 60),
        "losses": (340, "right", 84),
        "number": (480, "right", 50),
    }
    texts_of = [
        base.mark_text(align=align, limit=limit, color=TEXT, fontSize=11).encode(alt.Text(f"{name}:N"), x=alt.value(at))
        for name, (at, align, limit) in columns.items()
    ]
    return figure(
        alt.layer(base.mark_bar(height=10).encode(x, alt.X2(datum=0), color=fill), *texts_of).properties(
            width=484, height=ROW * 2 * LISTED
        ),
        "Tokens that changed most",
        "blue: the loss fell from A to B; orange: it rose",
        "The tokens whose losses fell most and rose most between two checkpoints.",
    )


def _heads(heads: pl.DataFrame, cursor: Cursor) -> alt.LayerChart:
    """The heads whose best relation is another at B than at A."""
    marks = by_place(heads, ["layer", "head"], ["relation", "accuracy", "above"], cursor.steps)
    counts = [[len(changed_heads(heads, a, b)) for b in cursor.steps] for a in cursor.steps]
    base = alt.Chart(marks)
    for end, place in (("a", ORIGIN), ("b", SLIDER)):
        base = base.transform_calculate(
            **{f"{end}_{name}": f"datum.{name}_at[{place}]" for name in ("relation", "accuracy", "above")}
        )
    base = (
        base.transform_filter("datum.a_relation != datum.b_relation")
        .transform_window(rank="row_number()", sort=[alt.SortField("b_accuracy", order="descending")])
        .transform_filter(f"datum.rank <= {HEADS}")
        .transform_calculate(
            name="datum.layer + '-' + datum.head",
            **{f"{end}_share": f"format(datum.{end}_accuracy, '.0%')" for end in "ab"},
        )
    )
    tips = ["layer:O", "head:O", *(alt.Tooltip(f"{end}_relation:N", title=end.upper()) for end in "ab")]
    tips += [alt.Tooltip(f"{end}_accuracy:Q", title=f"accuracy at {end.upper()}", format=".1%") for end in "ab"]
    base = base.encode(alt.Y("rank:O", axis=None, scale=alt.Scale(domain=list(range(1, HEADS + 1)))), tooltip=tips)
    columns = {
        "name": (0, "left"),
        "a_relation": (64, "left"),
        "a_share": (150, "right"),
        "b_relation": (200, "left"),
        "b_share": (290, "right"),
    }
    layers = [
        base.mark_text(align=align, color=TEXT, fontSize=11, limit=84).encode(alt.Text(f"{name}:N"), x=alt.value(at))
        for name, (at, align) in columns.items()
    ]
    for end, at in (("a", 54), ("b", 190)):
        above = alt.condition(f"datum.{end}_above", alt.value(BLUE), alt.value("transparent"))
        layers.append(base.mark_point(size=34, opacity=1, stroke=GREY).encode(x=alt.value(at), fill=above))
    arrow = base.mark_text(text="→", color=TEXT).encode(x=alt.value(170))
    chart = alt.layer(*layers, arrow).properties(width=310, height=ROW * HEADS)
    chart.params = [alt.VariableParameter("pair_heads", value=counts)]
    return figure(
        chart,
        [Value(f"pair_heads{PAIR}", "100"), f" of {len(marks)} heads changed relation"],
        [
            ["best relation at A → at B", f"at most {HEADS} shown" if len(marks) > HEADS else ""],
            "filled: above the best fixed offset (95 %)",
        ],
        "Attention heads whose best relation differs between two checkpoints, with their accuracies.",
    )  # fmt: skip

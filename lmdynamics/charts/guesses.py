"""What a model guesses for a hidden word at each checkpoint: a sentence to click on, its guesses, and their course."""

from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import polars as pl

from lmdynamics.charts.arcs import word_positions
from lmdynamics.charts.axes import SLIDER, Cursor, on_step_axis, step_axis, step_line, strips
from lmdynamics.charts.encodings import need_rows, numbers
from lmdynamics.charts.lines import Line, log_scale
from lmdynamics.charts.moving import VegaLite, by_place, in_column, in_row
from lmdynamics.charts.text import Value
from lmdynamics.charts.theme import BLUE, GREY, TEXT, figure
from lmdynamics.charts.tokens import visible

COLUMNS = ["step", "sentence", "word", "pieces", "rank", "guess", "probability", "right", "right_rank"]
COLUMNS += ["right_probability"]
WIDTH, WORD_HEIGHT, HEIGHT = 880, 34, 135  # pixels: of the sentence, of its boxes, of the panels below
NAME_END, BAR_START, BAR_END, BARS_WIDTH, COURSE_WIDTH = 118, 126, 290, 430, 340  # pixels
GAP = "▁▁▁"
SCREEN = "datum.sentence == sentence_number"
CHOSEN = f"{SCREEN} && datum.word == word"


def moving_guesses(
    guesses: pl.DataFrame, sentences: Sequence[Sequence[str]], cursor: Cursor, causal: bool = False
) -> VegaLite:
    """A sentence with a hidden word, the best guesses for it at the cursor's step, and its probability over training.

    `guesses`: a trace of `Guesses` on `sentences`. The signal `sentence` (its words, joined by spaces) chooses one, the
    signal `word` (0-based) its hidden word. `causal`: whether the model reads only the words before the hidden one.
    """
    no_rows = "no word was hidden; trace Guesses on some sentences first"
    rows = need_rows(guesses, COLUMNS, "guesses for a hidden word", no_rows)
    rows = rows.with_columns(pl.Series("guess", [visible(token).strip() or "␣" for token in rows["guess"]]))
    texts = [" ".join(words) for words in sentences]
    best = rows.filter(pl.col("rank") == 1)
    names = best.select(
        "sentence", "word", "step", "right_rank", best=pl.format("“{}” ({}%)", "guess", _percent("probability"))
    )
    lookup = by_place(names, ["sentence", "word"], ["best", "right_rank"], cursor.steps)
    by_word = {name: [[None] * len(words) for words in sentences] for name in ("best", "right_rank")}
    for row in lookup.iter_rows(named=True):
        for name, values in by_word.items():
            values[row["sentence"]][row["word"]] = row[f"{name}_at"]
    params = [
        alt.param(name="sentence_texts", value=texts),
        alt.param(name="sentence_number", expr="indexof(sentence_texts, sentence)"),
        *(alt.param(name=f"guess_{name}", value=values) for name, values in by_word.items()),
    ]
    title = [
        "At step ",
        cursor.number,
        ", the best guess is ",
        Value(_looked_up("guess_best"), max(names["best"], key=len)),
        "; “",
        Value("split(sentence, ' ')[word]", max((word for words in sentences for word in words), key=len)),
        "”, the hidden word, is guess ",
        Value(f"format({_looked_up('guess_right_rank')}, ',')", "1,000"),
    ]
    pieces = "of a word in pieces, the first is guessed" if (rows["pieces"] > 1).any() else ""
    reading = "this model reads from left to right and does not see the pale words" if causal else ""
    sentence = figure(
        _sentence(rows, sentences, causal).add_params(*params),
        title,
        [["click on a word to hide it", reading, pieces, "single numbers, without intervals"]],
        f"A hidden word in one of {len(texts)} sentences, at one checkpoint: {' / '.join(texts)}",
    )
    return in_column(sentence, in_row(_bars(rows, cursor), _course(best, cursor)))


def word_click() -> dict[str, str | dict]:
    """Vega event handler for a click on a word of the sentence: sets a signal to the word's number."""
    has_word = "event.item && event.item.datum && isValid(event.item.datum.place)"
    return {"events": {"source": "view", "type": "click", "filter": [has_word]}, "update": "datum.place"}


def _percent(column: str) -> pl.Expr:
    return (100 * pl.col(column)).map_elements("{:.2g}".format, pl.String)


def _looked_up(name: str) -> str:
    """A Vega expression for the value at the cursor, of the hidden word; empty while a new sentence is chosen."""
    return f"((({name}[sentence_number] || [])[word] || [])[{SLIDER}] || '')"


def _sentence(rows: pl.DataFrame, sentences: Sequence[Sequence[str]], causal: bool) -> alt.LayerChart:
    """Each word in a box of its own."""
    guessed = set(rows.select("sentence", "word").unique().iter_rows())
    boxes = []
    for number, words in enumerate(sentences):
        middles, _, size = word_positions(words)
        edges = [0.0]
        for middle in middles:  # boxes fill the line: each is as wide as its word and half the gaps beside it
            edges.append(2 * middle - edges[-1])
        for i, word in enumerate(words):
            place = i if (number, i) in guessed else None
            boxes.append(
                {"sentence": number, "place": place, "number": i, "text": visible(word), "size": min(15.0, size + 1),
                 "left": edges[i] + 2, "right": edges[i + 1] - 2, "middle": middles[i]}
            )  # fmt: skip
    base = alt.Chart(pl.DataFrame(boxes, schema_overrides={"place": pl.Int64})).transform_filter(SCREEN)
    x = alt.X("left:Q", axis=None, scale=alt.Scale(domain=[0, WIDTH], range=[0, WIDTH]))
    hidden, clickable = "datum.number == word", alt.ExprRef("isValid(datum.place) ? 'pointer' : 'default'")
    box = base.mark_rect(cornerRadius=5, strokeWidth=2, cursor=clickable, tooltip="click to hide this word").encode(
        x, alt.X2("right:Q"), y=alt.value(0), y2=alt.value(WORD_HEIGHT),
        color=alt.condition(hidden, alt.value("#0072B222"), alt.value("#88888818")),
        stroke=alt.condition(hidden, alt.value(BLUE), alt.value("#88888840")),
    )  # fmt: skip
    seen = alt.ExprRef("datum.number > word ? 0.45 : 1") if causal else 1
    text = base.mark_text(color=TEXT, fontSize=alt.ExprRef("datum.size"), opacity=seen, cursor=clickable).encode(
        alt.X("middle:Q", axis=None, scale=alt.Scale(domain=[0, WIDTH], range=[0, WIDTH])),
        alt.Text("shown:N"),
        y=alt.value(WORD_HEIGHT / 2),
    )
    text = text.transform_calculate(shown=f"{hidden} ? '{GAP}' : datum.text")
    return alt.layer(box, text).properties(width=WIDTH, height=WORD_HEIGHT)


def _bars(rows: pl.DataFrame, cursor: Cursor) -> alt.LayerChart:
    """The best guesses at the cursor's step, with their probabilities."""
    values = ["guess", "probability", "right"]
    marks = by_place(rows, ["sentence", "word", "rank"], values, cursor.steps)
    base = alt.Chart(marks).transform_filter(CHOSEN)
    base = base.transform_calculate(**{name: f"datum.{name}_at[{SLIDER}]" for name in values})
    tips = ["rank:O", "guess:N", *numbers(".2%", "probability")]
    base = base.encode(alt.Y("rank:O", axis=None), tooltip=tips)
    scale = alt.Scale(domain=[0, 1], range=[BAR_START, BAR_END])
    x = alt.X("probability:Q", axis=None, scale=scale)
    colour = alt.condition("datum.right", alt.value(BLUE), alt.value(GREY))
    weight = alt.ExprRef("datum.right ? 'bold' : 'normal'")
    bar = base.mark_bar(height=16).encode(x, alt.X2(datum=0), color=colour)
    name = base.mark_text(align="right", color=TEXT, fontSize=13, fontWeight=weight, limit=NAME_END - 6)
    share = base.transform_calculate(
        share="format(datum.probability, '.1%') + (datum.right ? ', the hidden word' : '')"
    ).mark_text(align="left", dx=6, color=TEXT, fontSize=11)
    number = base.mark_text(align="left", color=TEXT, fontSize=11).encode(alt.Text("rank:O"), x=alt.value(2))
    layers = [
        number,
        bar,
        name.encode(alt.Text("guess:N"), x=alt.value(NAME_END)),
        share.encode(x, alt.Text("share:N")),
    ]
    return figure(
        alt.layer(*layers).properties(width=BARS_WIDTH, height=HEIGHT),
        "Best guesses",
        "blue: the hidden word; grey: other words",
        "The best guesses for the hidden word, with their probabilities.",
    )


def _course(best: pl.DataFrame, cursor: Cursor) -> alt.LayerChart:
    """Probability of the hidden word and of the best guess over training."""
    low = max(1e-5, 0.8 * float(best["right_probability"].min()))
    columns = ["sentence", "word", "step", "right_probability", "best_probability", "right_rank"]
    data = on_step_axis(best.rename({"probability": "best_probability"}).select(columns))
    ticks = [10.0**power for power in range(-5, 1) if 10.0**power >= low]
    scales = {"scale": log_scale(low, 1), "axis": {"values": ticks, "format": "~%"}}
    hidden = Line("right_probability", "probability (log)", width=2.5, **scales)
    first = replace(hidden, value="best_probability", colours=GREY, dashes=[5, 3], width=1.8)
    x, shown = step_axis(cursor.steps), data.with_columns(pl.col("right_probability").clip(low))
    tips = [*numbers(".2%", "right_probability", "best_probability"), alt.Tooltip("right_rank:Q", format=",d")]
    layers = [layer for line in (first, hidden) for layer in line.layers(shown, x, ())]
    layers = [layer.transform_filter(CHOSEN) for layer in [*layers, strips(shown, x, cursor, tips)]]
    chart = alt.layer(*layers[:-1], step_line(cursor, x), layers[-1]).properties(width=COURSE_WIDTH, height=HEIGHT)
    return figure(
        chart,
        "Probability over training",
        "blue: the hidden word; dashed: the best guess",
        "Probability of the hidden word and of the best guess over training, with a line at one checkpoint.",
    )

"""One sentence: what one attention head takes for each word's head, above; the gold tree, below."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.syntax import DIRECTIONS
from lmdynamics.charts.axes import AT, Cursor
from lmdynamics.charts.moving import over_places
from lmdynamics.charts.text import Value, quoted
from lmdynamics.charts.theme import BLUE, GREY, ORANGE, PURPLE, TEXT, figure
from lmdynamics.errors import UserError

LETTER, GAP = 7.6, 24.0  # pixels: a letter's width; between words
BASE, LEVEL = 14.0, 13.0  # pixels: from the words' middle to where arcs begin; how much higher one stands over others
NEAR = 5.0  # pixels: how far from a head's middle an arc meets it, on the side that it comes from
HIGHEST = 5  # levels over the words; where more arcs nest, they stand closer
FITS = 870.0  # pixels: a longer sentence is drawn smaller
ALONG = "[0,.02,.05,.1,.16,.24,.33,.42,.5,.58,.67,.76,.84,.9,.95,.98,1]"  # places along an arc
RIGHT, WRONG, UNKNOWN = "as in the gold tree", "elsewhere", "no gold tree to compare with"


def sentence_arcs(
    words: Sequence[str],
    predicted: pl.DataFrame,
    heads: Sequence[int] | None = None,
    relations: Sequence[str] | None = None,
    relation: str | None = None,
    caption: str = "",
    direction: str = DIRECTIONS[0],
) -> alt.LayerChart:
    """Arcs between each word and the head that attention predicts (thicker: more attention), over the gold arcs.

    `predicted`: word, predicted, weight (0-based indices; of one attention head, see `analysis.syntax.predicted_heads`,
    read in `direction`). A dot stands at the word attended to: the predicted head, or, read head→dependent, the
    dependent. `heads`: gold head of each word, −1 for the root (in bold); `relations`: their names; arcs of `relation`
    stand out. Without `heads` only attention is drawn.

    Raises
    ------
    UserError
        If there are no words, attention, heads or relations are those of a sentence of another length, or the
        direction is none of `analysis.syntax.DIRECTIONS`.
    """
    _check(words, predicted, heads, relations)
    if direction not in DIRECTIONS:
        raise UserError(f"sentence arcs: direction {direction!r} is neither {DIRECTIONS[0]!r} nor {DIRECTIONS[1]!r}")
    predicted = predicted.filter(pl.col("predicted") >= 0)
    attention = alt.Chart(
        predicted.with_columns(rise=_rises(predicted["word"], predicted["predicted"]))
    ).transform_calculate(head="datum.predicted")
    chart = _drawn(words, attention, heads, relations, quoted(relation or ""), quoted(direction))
    found = ""
    if heads is not None:
        right = sum(heads[word] == head for word, head in predicted.select("word", "predicted").iter_rows())
        found = f"{right} of {sum(head >= 0 for head in heads)} arcs as in the gold tree"
    return figure(
        chart,
        "Attention of one sentence",
        ["; ".join(part for part in (caption, found) if part), *_key(heads)],
        f"Attention arcs over the sentence “{' '.join(words)}”. {caption}. {found}".strip(),
    )


def moving_arcs(
    words: Sequence[str],
    predicted: pl.DataFrame,
    heads: Sequence[int] | None,
    relations: Sequence[str] | None,
    cursor: Cursor,
) -> alt.LayerChart:
    """The same of every attention head at every place of a cursor; signals `layer`, `head`, `direction` choose one.

    `predicted`: step, layer, head, direction, word, predicted, weight. Arcs of the relation that the signal `relation`
    holds stand out in the gold tree.
    """
    _check(words, predicted, heads, relations)
    parts = predicted.partition_by("step", "layer", "head", "direction", maintain_order=True)
    none = predicted.clear().with_columns(rise=pl.lit(None, pl.Float64))
    known = pl.concat([none, *(part.with_columns(rise=_rises(part["word"], part["predicted"])) for part in parts)])
    keys = ["layer", "head", "direction", "word"]
    rows = over_places(known, keys, ["predicted", "weight", "rise"], cursor.steps)
    attention = (
        alt.Chart(rows)
        .transform_filter("datum.layer == layer && datum.head == head && datum.direction == direction")
        .transform_calculate(**{name: f"datum.{name}_at[{AT}]" for name in ("predicted", "weight", "rise")})
        .transform_filter("isValid(datum.predicted)")
        .transform_calculate(head="datum.predicted")
    )
    read = Value("direction", DIRECTIONS[0])
    return figure(
        _drawn(words, attention, heads, relations, "relation", "direction"),
        [
            "Layer ",
            Value("layer", "100"),
            ", head ",
            Value("head", "100"),
            ", read ",
            read,
            ", at step ",
            cursor.number,
        ],
        _key(heads),
        f"Attention arcs over the sentence “{' '.join(words)}”.",
    )


def _check(words, predicted: pl.DataFrame, heads, relations) -> None:
    need_columns(predicted, ["word", "predicted", "weight"], "sentence arcs")
    if not words:
        raise UserError("sentence arcs: the sentence has no words")
    if heads is not None and {len(heads), len(relations or heads)} != {len(words)}:
        counts = f"{len(words)} words, {len(heads)} gold heads, {len(relations or ())} relations"
        raise UserError(f"sentence arcs: {counts}; there must be one of each per word")
    if len(predicted) and max(predicted["word"].max(), predicted["predicted"].max()) >= len(words):
        raise UserError(f"sentence arcs: attention over more words than the sentence's {len(words)}")


def _key(heads) -> list[str]:
    key = "above: each word's strongest attention (thicker: more), a dot at the word attended to"
    if heads is None:
        return [f"{key}; {UNKNOWN}"]
    return [f"{key}; blue: {RIGHT}", "below: the gold tree, its root in bold, arcs of the relation in orange"]


def _drawn(words, attention: alt.Chart, heads, relations, relation: str, direction: str) -> alt.LayerChart:
    """`attention`: word, head, weight, rise of each arc; `relation`, `direction`: Vega expressions."""
    middle, width, size = _places(words)
    below = _tree(heads, relations) if heads is not None else None
    top = LEVEL * min(len(words), HIGHEST) + BASE + 8  # the same for every head and step, or the words would jump
    bottom = -(max([0.0, *(-below["rise"])]) + BASE + 18) if below is not None else -14.0
    x = alt.X("x:Q", axis=None).scale(domain=[0, width], nice=False, zero=False)
    y = alt.Y("y:Q", axis=None).scale(domain=[bottom, top], nice=False, zero=False)

    verdicts = {RIGHT: BLUE, WRONG: GREY} if heads is not None else {UNKNOWN: PURPLE}
    colour = alt.Color("verdict:N")
    colour = colour.scale(domain=list(verdicts), range=list(verdicts.values())).legend(None)
    thickness = alt.StrokeWidth("weight:Q", legend=None).scale(domain=[0, 1], range=[0.7, 5])
    tips = ["from:N", "to:N", alt.Tooltip("weight:Q", format=".2f", title="attention")]
    onward = f"{direction} == {quoted(DIRECTIONS[0])}"
    gold = f"arc_gold[datum.word] == datum.head ? {quoted(RIGHT)} : {quoted(WRONG)}"
    arcs = _placed(attention, BASE).transform_calculate(
        **{
            "verdict": gold if heads is not None else quoted(UNKNOWN),
            "from": f"arc_words[{onward} ? datum.word : datum.head]",
            "to": f"arc_words[{onward} ? datum.head : datum.word]",
        }
    )
    lines = _curved(arcs).mark_line(opacity=0.85, strokeCap="round", interpolate="cardinal")
    ends = arcs.transform_calculate(x=f"{onward} ? datum.x1 : datum.x0", y="datum.base")
    parts = [
        lines.encode(x, y, colour, thickness, alt.Detail("word:N"), alt.Order("t:Q"), tooltip=tips),
        ends.mark_point(filled=True, opacity=1, size=26).encode(x, y, color=colour, tooltip=tips),
    ]
    if below is not None:
        parts += _drawn_tree(below, x, y, f"datum.name == {relation}")
    root = [heads is not None and heads[i] < 0 for i in range(len(words))]
    tokens = alt.Chart(pl.DataFrame({"x": middle, "y": 0.0, "text": list(words), "root": root})).encode(
        x, y, text="text:N"
    )
    parts += [
        tokens.transform_filter("!datum.root").mark_text(fontSize=size, color=TEXT),
        tokens.transform_filter("datum.root").mark_text(fontSize=size, color=TEXT, fontWeight="bold"),
    ]
    known = {"arc_middle": middle, "arc_words": list(words), "arc_gold": list(heads or [])}
    chart = alt.layer(*parts).properties(width=width, height=top - bottom)
    return chart.add_params(*(alt.param(name=name, value=value) for name, value in known.items()))


def _placed(arcs: alt.Chart, base: float) -> alt.Chart:
    """Where arcs from a word to a head begin and end, and on which height."""
    side = arcs.transform_calculate(near=f"datum.head < datum.word ? {NEAR} : {-NEAR}", base=str(base))
    ends = {"x0": "arc_middle[datum.word] - datum.near / 2", "x1": "arc_middle[datum.head] + datum.near"}
    return side.transform_calculate(**ends)


def _tree(heads, relations) -> pl.DataFrame:
    """The gold arcs with their names, below the words; the root has none."""
    named = enumerate(zip(heads, relations or [""] * len(heads), strict=True))
    rows = [(word, head, name) for word, (head, name) in named if head >= 0]
    arcs = pl.DataFrame(rows, {"word": pl.Int64, "head": pl.Int64, "name": pl.String}, orient="row")
    return arcs.with_columns(rise=_rises(arcs["word"], arcs["head"], -1))


def _drawn_tree(below: pl.DataFrame, x: alt.X, y: alt.Y, chosen: str) -> list[alt.Chart]:
    """`chosen`: a Vega expression, true of the arcs that stand out."""
    colour = alt.condition(chosen, alt.value(ORANGE), alt.value(GREY))
    thick = alt.condition(chosen, alt.value(3), alt.value(1.2))
    arcs = _placed(alt.Chart(below), -BASE)
    lines = _curved(arcs).mark_line(opacity=0.9, interpolate="cardinal")
    labels = arcs.transform_calculate(x="(datum.x0 + datum.x1) / 2", y="datum.base + datum.rise")
    weight = alt.ExprRef(f"{chosen} ? 'bold' : 'normal'")
    text = labels.mark_text(fontSize=10, baseline="top", dy=2, color=TEXT, fontWeight=weight)
    return [
        lines.encode(x, y, color=colour, strokeWidth=thick, detail="word:N", order="t:Q", tooltip=["name:N"]),
        text.encode(x, y, text="name:N"),
    ]


def _places(words: Sequence[str]) -> tuple[list[float], float, float]:
    """The middle of each word in pixels, the width of the whole sentence, and the size of its letters."""
    spans = [max(len(word) * LETTER, 16) + GAP for word in words]
    scale = min(1.0, FITS / sum(spans))
    ends = accumulate(spans)
    middle = [scale * (end - span / 2) for end, span in zip(ends, spans, strict=True)]
    return middle, max(scale * sum(spans), 200.0), 14 * scale


def arc_levels(pairs: Iterable[tuple[int, int]]) -> list[int]:
    """How high each arc stands: one above the highest shorter arc whose span it shares, so that arcs nest."""
    spans = [(min(pair), max(pair)) for pair in pairs]
    levels = [0] * len(spans)
    placed: list[int] = []
    for i in sorted(range(len(spans)), key=lambda i: (spans[i][1] - spans[i][0], i)):
        low, high = spans[i]
        under = [levels[j] for j in placed if spans[j][0] < high and low < spans[j][1]]
        levels[i] = 1 + max(under, default=0)
        placed.append(i)
    return levels


def _rises(words: pl.Series, heads: pl.Series, sign: int = 1) -> pl.Series:
    """How far each arc rises over the words, in pixels."""
    levels = arc_levels(zip(words, heads, strict=True))
    squeezed = min(1.0, HIGHEST / max(levels, default=1))
    return pl.Series([sign * LEVEL * squeezed * level for level in levels], dtype=pl.Float64)


def _curved(chart: alt.Chart) -> alt.Chart:
    """One row per arc becomes points along a rounded arch in the reader's browser: the data stay small."""
    return (
        chart.transform_calculate(t=ALONG)
        .transform_flatten(["t"])
        .transform_calculate(
            x="datum.x0 + (datum.x1 - datum.x0) * (1 - cos(PI * datum.t)) / 2",
            y="datum.base + datum.rise * pow(sin(PI * datum.t), 0.7)",
        )
    )

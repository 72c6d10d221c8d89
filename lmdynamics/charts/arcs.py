"""Arcs over one sentence: above, the head that an attention head predicts for each word; below, the gold tree."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.syntax import DIRECTIONS
from lmdynamics.charts.axes import SLIDER, Cursor
from lmdynamics.charts.moving import by_place
from lmdynamics.charts.text import Value, quoted
from lmdynamics.charts.theme import BLUE, GREY, ORANGE, PURPLE, TEXT, figure
from lmdynamics.errors import UserError

LETTER, GAP = 7.6, 24.0  # pixels: a letter's width; between words
BASE, LEVEL = 14.0, 13.0  # pixels: from the middle of the words to the start of the arcs; height of a level
HEAD_OFFSET = 5.0  # pixels: from the end of an arc to the middle of its head
MAX_LEVELS = 5  # levels above the words; more levels are drawn closer together
MAX_WIDTH = 870.0  # pixels: a longer sentence is drawn smaller
CURVE_POINTS = "[0,.02,.05,.1,.16,.24,.33,.42,.5,.58,.67,.76,.84,.9,.95,.98,1]"  # positions along an arc
CORRECT, INCORRECT, UNKNOWN = "as in the gold tree", "elsewhere", "no gold tree to compare with"


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
    read in `direction`). A dot marks the word attended to: the predicted head, or, read head→dependent, the dependent.
    `heads`: gold head of each word, −1 for the root (in bold); `relations`: their names; arcs of `relation` are
    highlighted. Without `heads` only attention is drawn.

    Raises
    ------
    UserError
        If there are no words, if attention, heads or relations belong to a sentence of another length, or if the
        direction is not one of `analysis.syntax.DIRECTIONS`.
    """
    _check_sentence(words, predicted, heads, relations)
    if direction not in DIRECTIONS:
        raise UserError(f"sentence arcs: direction {direction!r} is neither {DIRECTIONS[0]!r} nor {DIRECTIONS[1]!r}")
    predicted = predicted.filter(pl.col("predicted") >= 0)
    attention = alt.Chart(
        predicted.with_columns(rise=_rises(predicted["word"], predicted["predicted"]))
    ).transform_calculate(head="datum.predicted")
    chart = _arc_layers(words, attention, heads, relations, quoted(relation or ""), quoted(direction))
    agreement = ""
    if heads is not None:
        matching = sum(heads[word] == head for word, head in predicted.select("word", "predicted").iter_rows())
        agreement = f"{matching} of {sum(head >= 0 for head in heads)} arcs as in the gold tree"
    return figure(
        chart,
        "Attention of one sentence",
        ["; ".join(part for part in (caption, agreement) if part), *_legend_text(heads)],
        f"Attention arcs over the sentence “{' '.join(words)}”. {caption}. {agreement}".strip(),
    )


def moving_arcs(
    words: Sequence[str],
    predicted: pl.DataFrame,
    heads: Sequence[int] | None,
    relations: Sequence[str] | None,
    cursor: Cursor,
) -> alt.LayerChart:
    """The same for every attention head and every place of a cursor; signals `layer`, `head`, `direction` choose one.

    `predicted`: step, layer, head, direction, word, predicted, weight. In the gold tree, arcs of the relation in the
    signal `relation` are highlighted.
    """
    _check_sentence(words, predicted, heads, relations)
    parts = predicted.partition_by("step", "layer", "head", "direction", maintain_order=True)
    empty = predicted.clear().with_columns(rise=pl.lit(None, pl.Float64))
    arcs = pl.concat([empty, *(part.with_columns(rise=_rises(part["word"], part["predicted"])) for part in parts)])
    keys = ["layer", "head", "direction", "word"]
    rows = by_place(arcs, keys, ["predicted", "weight", "rise"], cursor.steps)
    attention = (
        alt.Chart(rows)
        .transform_filter("datum.layer == layer && datum.head == head && datum.direction == direction")
        .transform_calculate(**{name: f"datum.{name}_at[{SLIDER}]" for name in ("predicted", "weight", "rise")})
        .transform_filter("isValid(datum.predicted)")
        .transform_calculate(head="datum.predicted")
    )
    reading = Value("direction", DIRECTIONS[0])
    return figure(
        _arc_layers(words, attention, heads, relations, "relation", "direction"),
        [
            "Layer ",
            Value("layer", "100"),
            ", head ",
            Value("head", "100"),
            ", read ",
            reading,
            ", at step ",
            cursor.number,
        ],
        _legend_text(heads),
        f"Attention arcs over the sentence “{' '.join(words)}”.",
    )


def _check_sentence(words, predicted: pl.DataFrame, heads, relations) -> None:
    need_columns(predicted, ["word", "predicted", "weight"], "sentence arcs")
    if not words:
        raise UserError("sentence arcs: the sentence has no words")
    if heads is not None and {len(heads), len(relations or heads)} != {len(words)}:
        counts = f"{len(words)} words, {len(heads)} gold heads, {len(relations or ())} relations"
        raise UserError(f"sentence arcs: {counts}; there must be one of each per word")
    if len(predicted) and max(predicted["word"].max(), predicted["predicted"].max()) >= len(words):
        raise UserError(f"sentence arcs: attention over more words than the sentence's {len(words)}")


def _legend_text(heads) -> list[str]:
    key = "above: each word's strongest attention (thicker: more), a dot at the word attended to"
    if heads is None:
        return [f"{key}; {UNKNOWN}"]
    return [f"{key}; blue: {CORRECT}", "below: the gold tree, its root in bold, arcs of the relation in orange"]


def _arc_layers(words, attention: alt.Chart, heads, relations, relation: str, direction: str) -> alt.LayerChart:
    """`attention`: word, head, weight, rise of each arc; `relation`, `direction`: Vega expressions."""
    middle, width, size = word_positions(words)
    gold_arcs = _gold_arcs(heads, relations) if heads is not None else None
    top = LEVEL * min(len(words), MAX_LEVELS) + BASE + 8  # the same for every head and step, or the words would jump
    bottom = -(max([0.0, *(-gold_arcs["rise"])]) + BASE + 18) if gold_arcs is not None else -14.0
    x = alt.X("x:Q", axis=None).scale(domain=[0, width], nice=False, zero=False)
    y = alt.Y("y:Q", axis=None).scale(domain=[bottom, top], nice=False, zero=False)

    verdict_colours = {CORRECT: BLUE, INCORRECT: GREY} if heads is not None else {UNKNOWN: PURPLE}
    colour = alt.Color("verdict:N")
    colour = colour.scale(domain=list(verdict_colours), range=list(verdict_colours.values())).legend(None)
    thickness = alt.StrokeWidth("weight:Q", legend=None).scale(domain=[0, 1], range=[0.7, 5])
    tips = [alt.Tooltip("from:N"), alt.Tooltip("to:N"), alt.Tooltip("weight:Q", format=".2f", title="attention")]
    dependent_first = f"{direction} == {quoted(DIRECTIONS[0])}"
    verdict = f"arc_gold[datum.word] == datum.head ? {quoted(CORRECT)} : {quoted(INCORRECT)}"
    arcs = _with_ends(attention, BASE).transform_calculate(
        **{
            "verdict": verdict if heads is not None else quoted(UNKNOWN),
            "from": f"arc_words[{dependent_first} ? datum.word : datum.head]",
            "to": f"arc_words[{dependent_first} ? datum.head : datum.word]",
        }
    )
    lines = _curved(arcs).mark_line(opacity=0.85, strokeCap="round", interpolate="cardinal")
    ends = arcs.transform_calculate(x=f"{dependent_first} ? datum.x1 : datum.x0", y="datum.base")
    parts = [
        lines.encode(x, y, colour, thickness, alt.Detail("word:N"), alt.Order("t:Q"), tooltip=tips),
        ends.mark_point(filled=True, opacity=1, size=26).encode(x, y, color=colour, tooltip=tips),
    ]
    if gold_arcs is not None:
        parts += _tree_layers(gold_arcs, x, y, f"datum.name == {relation}")
    root = [heads is not None and heads[i] < 0 for i in range(len(words))]
    tokens = alt.Chart(pl.DataFrame({"x": middle, "y": 0.0, "text": list(words), "root": root})).encode(
        x, y, alt.Text("text:N")
    )
    parts += [
        tokens.transform_filter("!datum.root").mark_text(fontSize=size, color=TEXT),
        tokens.transform_filter("datum.root").mark_text(fontSize=size, color=TEXT, fontWeight="bold"),
    ]
    values = {"arc_middle": middle, "arc_words": list(words), "arc_gold": list(heads or [])}
    params = [alt.VariableParameter(name, value=value) for name, value in values.items()]
    return alt.layer(*parts, width=width, height=top - bottom, params=params)


def _with_ends(arcs: alt.Chart, base: float) -> alt.Chart:
    """The arcs with the start, the end and the base height of each."""
    signed = arcs.transform_calculate(near=f"datum.head < datum.word ? {HEAD_OFFSET} : {-HEAD_OFFSET}", base=str(base))
    ends = {"x0": "arc_middle[datum.word] - datum.near / 2", "x1": "arc_middle[datum.head] + datum.near"}
    return signed.transform_calculate(**ends)


def _gold_arcs(heads, relations) -> pl.DataFrame:
    """The gold arcs with their names, below the words; the root has none."""
    numbered = enumerate(zip(heads, relations or [""] * len(heads), strict=True))
    rows = [(word, head, name) for word, (head, name) in numbered if head >= 0]
    arcs = pl.DataFrame(rows, {"word": pl.Int64, "head": pl.Int64, "name": pl.String}, orient="row")
    return arcs.with_columns(rise=_rises(arcs["word"], arcs["head"], -1))


def _tree_layers(gold_arcs: pl.DataFrame, x: alt.X, y: alt.Y, highlighted: str) -> list[alt.Chart]:
    """`highlighted`: a Vega expression that is true for the arcs to highlight."""
    colour = alt.condition(highlighted, alt.value(ORANGE), alt.value(GREY))
    thick = alt.condition(highlighted, alt.value(3), alt.value(1.2))
    arcs = _with_ends(alt.Chart(gold_arcs), -BASE)
    lines = _curved(arcs).mark_line(opacity=0.9, interpolate="cardinal")
    labels = arcs.transform_calculate(x="(datum.x0 + datum.x1) / 2", y="datum.base + datum.rise")
    weight = alt.ExprRef(f"{highlighted} ? 'bold' : 'normal'")
    text = labels.mark_text(fontSize=10, baseline="top", dy=2, color=TEXT, fontWeight=weight)
    return [
        lines.encode(
            x, y, alt.Detail("word:N"), alt.Order("t:Q"), alt.Tooltip("name:N"), color=colour, strokeWidth=thick
        ),
        text.encode(x, y, alt.Text("name:N")),
    ]


def word_positions(words: Sequence[str]) -> tuple[list[float], float, float]:
    """The middle of each word in pixels, the width of the whole sentence, and the font size."""
    spans = [max(len(word) * LETTER, 16) + GAP for word in words]
    scale = min(1.0, MAX_WIDTH / sum(spans))
    ends = accumulate(spans)
    centres = [scale * (right - span / 2) for right, span in zip(ends, spans, strict=True)]
    return centres, max(scale * sum(spans), 200.0), 14 * scale


def arc_levels(pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Level of each arc: one above the highest shorter arc whose span it overlaps, so that arcs nest."""
    spans = [(min(pair), max(pair)) for pair in pairs]
    levels = [0] * len(spans)
    placed: list[int] = []
    for i in sorted(range(len(spans)), key=lambda i: (spans[i][1] - spans[i][0], i)):
        low, high = spans[i]
        covered = [levels[j] for j in placed if spans[j][0] < high and low < spans[j][1]]
        levels[i] = 1 + max(covered, default=0)
        placed.append(i)
    return levels


def _rises(words: pl.Series, heads: pl.Series, sign: int = 1) -> pl.Series:
    """Height of each arc above the words, in pixels."""
    levels = arc_levels(zip(words, heads, strict=True))
    factor = min(1.0, MAX_LEVELS / max(levels, default=1))
    return pl.Series([sign * LEVEL * factor * level for level in levels], dtype=pl.Float64)


def _curved(chart: alt.Chart) -> alt.Chart:
    """Points along a rounded arch from one row per arc, computed in the reader's browser to keep the data small."""
    return (
        chart.transform_calculate(t=CURVE_POINTS)
        .transform_flatten(["t"])
        .transform_calculate(
            x="datum.x0 + (datum.x1 - datum.x0) * (1 - cos(PI * datum.t)) / 2",
            y="datum.base + datum.rise * pow(sin(PI * datum.t), 0.7)",
        )
    )

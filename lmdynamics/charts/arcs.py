"""One sentence: what one attention head takes for each word's head, above; the gold tree, below."""

from collections.abc import Iterable, Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.syntax import DIRECTIONS
from lmdynamics.charts.theme import BLUE, GREY, ORANGE, PURPLE, TEXT, figure
from lmdynamics.errors import UserError

LETTER, GAP = 7.6, 24.0  # pixels: a letter's width; between words
BASE, LEVEL = 14.0, 21.0  # pixels: from the words' middle to where arcs begin; how much higher one stands over others
HIGHEST = 5  # levels over the words; where more arcs nest, they stand closer
ALONG = "[0,.02,.05,.1,.16,.24,.33,.42,.5,.58,.67,.76,.84,.9,.95,.98,1]"  # places along an arc
WEIGHT = "datum.chosen ? 'bold' : 'normal'"
RIGHT, WRONG, UNKNOWN = "as in the gold tree", "elsewhere", "no gold tree to compare with"


def sentence_arcs(
    words: Sequence[str],
    predicted: pl.DataFrame,
    heads: Sequence[int] | None = None,
    relations: Sequence[str] | None = None,
    relation: str | None = None,
    cursor: alt.Parameter | None = None,
    caption: str = "",
    direction: str = DIRECTIONS[0],
) -> alt.LayerChart:
    """Arcs between each word and the head that attention predicts (thicker: more attention), over the gold arcs.

    `predicted`: word, predicted, weight (0-based indices; of one attention head, see `analysis.syntax.predicted_heads`,
    read in `direction`), with `step` where `cursor`, a parameter holding a step, chooses among checkpoints. A dot
    stands at the word attended to: the predicted head, or, read head→dependent, the dependent. `heads`: gold head of
    each word, −1 for the root (in bold); `relations`: their names; arcs of `relation` stand out. Without `heads` only
    attention is drawn.

    Raises
    ------
    UserError
        If there are no words, attention, heads or relations are those of a sentence of another length, or the
        direction is none of `analysis.syntax.DIRECTIONS`.
    """
    need_columns(predicted, ["word", "predicted", "weight"], "sentence arcs")
    if not words:
        raise UserError("sentence arcs: the sentence has no words")
    if heads is not None and {len(heads), len(relations or heads)} != {len(words)}:
        counts = f"{len(words)} words, {len(heads)} gold heads, {len(relations or ())} relations"
        raise UserError(f"sentence arcs: {counts}; there must be one of each per word")
    if len(predicted) and max(predicted["word"].max(), predicted["predicted"].max()) >= len(words):
        raise UserError(f"sentence arcs: attention over more words than the sentence's {len(words)}")
    if direction not in DIRECTIONS:
        raise UserError(f"sentence arcs: direction {direction!r} is neither {DIRECTIONS[0]!r} nor {DIRECTIONS[1]!r}")
    middle, width = _places(words)
    above = _attention(words, predicted, heads, middle, direction)
    below = _tree(heads, relations, middle) if heads is not None else None
    top = LEVEL * min(len(words), HIGHEST) + BASE + 8  # the same for every head and step, or the words would jump
    bottom = -(max([0.0, *(-below["rise"])]) + BASE + 18) if below is not None else -14.0
    x = alt.X("x:Q", axis=None).scale(domain=[0, width], nice=False, zero=False)
    y = alt.Y("y:Q", axis=None).scale(domain=[bottom, top], nice=False, zero=False)

    verdicts = {RIGHT: BLUE, WRONG: GREY} if heads is not None else {UNKNOWN: PURPLE}
    colour = alt.Color("verdict:N", title="each word's strongest attention")
    colour = colour.scale(domain=list(verdicts), range=list(verdicts.values()))
    colour = colour.legend(orient="top", symbolType="stroke", symbolStrokeWidth=3)
    thickness = alt.StrokeWidth("weight:Q", legend=None).scale(domain=[0, 1], range=[0.7, 5])
    tips = ["from:N", "to:N", alt.Tooltip("weight:Q", format=".2f", title="attention")]
    attention = _curved(alt.Chart(above), cursor).mark_line(opacity=0.85, strokeCap="round", interpolate="cardinal")
    parts = [attention.encode(x, y, colour, thickness, alt.Detail("word:N"), alt.Order("t:Q"), tooltip=tips)]
    ends = alt.Chart(above).transform_filter(f"datum.step == {cursor.name}") if cursor is not None else alt.Chart(above)
    attended = "x1:Q" if direction == DIRECTIONS[0] else "x0:Q"
    place = {"x": alt.X(attended, axis=None, scale=x["scale"]), "y": alt.Y("base:Q", axis=None, scale=y["scale"])}
    parts.append(ends.mark_point(filled=True, opacity=1, size=26).encode(**place, color=colour, tooltip=tips))
    if below is not None:
        chosen = pl.col("name") == (relation or "")
        parts += _drawn_tree(below.with_columns(chosen=chosen), x, y)
    root = [heads is not None and heads[i] < 0 for i in range(len(words))]
    tokens = alt.Chart(pl.DataFrame({"x": middle, "y": 0.0, "text": list(words), "root": root})).encode(
        x, y, text="text:N"
    )
    parts += [
        tokens.transform_filter("!datum.root").mark_text(fontSize=14, color=TEXT),
        tokens.transform_filter("datum.root").mark_text(fontSize=14, color=TEXT, fontWeight="bold"),
    ]
    chart = alt.layer(*parts).properties(width=width, height=top - bottom)
    if cursor is not None:
        chart = chart.add_params(cursor)
    found = ""
    if heads is not None and cursor is None:
        arcs = sum(head >= 0 for head in heads)
        found = f"{above.filter(pl.col('verdict') == RIGHT).height} of {arcs} arcs as in the gold tree"
    key = "above: attention (thicker: more), a dot at the word attended to"
    key += "; below: the gold tree, its root in bold" if heads is not None else ""
    return figure(
        chart,
        "Attention of one sentence",
        ["; ".join(part for part in (caption, found) if part), key],
        f"Attention arcs over the sentence “{' '.join(words)}”. {caption}. {found}".strip(),
    )


def _attention(words, predicted: pl.DataFrame, heads, middle, direction: str) -> pl.DataFrame:
    """Attention's arcs with their geometry, per step if there are steps; a word that attends to none has no arc."""
    gold = list(heads) if heads is not None else [None] * len(words)
    parts = []
    by_step = predicted.partition_by("step", maintain_order=True) if "step" in predicted.columns else []
    for arcs in by_step or [predicted]:
        arcs = arcs.filter(pl.col("predicted") >= 0)
        pairs = list(arcs.select("word", "predicted").iter_rows())
        verdict = [UNKNOWN if heads is None else RIGHT if gold[word] == head else WRONG for word, head in pairs]
        parts.append(
            _with_geometry(arcs, pairs, middle, 1).with_columns(pl.Series("verdict", verdict, dtype=pl.String))
        )
    named = {"old": list(range(len(words))), "new": list(words), "return_dtype": pl.String}
    attending, attended = ("word", "predicted") if direction == DIRECTIONS[0] else ("predicted", "word")
    return pl.concat(parts).with_columns(
        pl.col(attending).replace_strict(**named).alias("from"), pl.col(attended).replace_strict(**named).alias("to")
    )


def _tree(heads, relations, middle) -> pl.DataFrame:
    """The gold arcs with their geometry, below the words; the root has none."""
    arcs = pl.DataFrame(
        {"word": range(len(heads)), "predicted": list(heads), "name": list(relations or [""] * len(heads))},
        schema={"word": pl.Int64, "predicted": pl.Int64, "name": pl.String},
    ).filter(pl.col("predicted") >= 0)
    return _with_geometry(arcs, list(arcs.select("word", "predicted").iter_rows()), middle, -1)


def _drawn_tree(below: pl.DataFrame, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    colour = alt.condition("datum.chosen", alt.value(ORANGE), alt.value(GREY))
    thick = alt.condition("datum.chosen", alt.value(3), alt.value(1.2))
    lines = _curved(alt.Chart(below), None).mark_line(opacity=0.9, interpolate="cardinal")
    labels = below.with_columns(x=(pl.col("x0") + pl.col("x1")) / 2, y=pl.col("base") + pl.col("rise"))
    return [
        lines.encode(x, y, color=colour, strokeWidth=thick, detail="word:N", order="t:Q", tooltip=["name:N"]),
        alt.Chart(labels)
        .mark_text(fontSize=10, baseline="top", dy=2, color=TEXT, fontWeight=alt.ExprRef(WEIGHT))
        .encode(x, y, text="name:N"),
    ]


def _places(words: Sequence[str]) -> tuple[list[float], float]:
    """The middle of each word in pixels, and the width of the whole sentence."""
    middle, left = [], GAP / 2
    for word in words:
        span = max(len(word) * LETTER, 16)
        middle.append(left + span / 2)
        left += span + GAP
    return middle, max(left - GAP / 2, 200.0)


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


def _with_geometry(arcs: pl.DataFrame, pairs: list[tuple[int, int]], middle: list[float], sign: int) -> pl.DataFrame:
    """`x0` (the dependent), `x1` (its head, a little to the near side), `base` and `rise` of each arc, in pixels."""
    toward = [5.0 if head < word else -5.0 for word, head in pairs]
    levels = arc_levels(pairs)
    squeezed = min(1.0, HIGHEST / max(levels, default=1))
    columns = {
        "x0": [middle[word] - side / 2 for (word, _), side in zip(pairs, toward, strict=True)],
        "x1": [middle[head] + side for (_, head), side in zip(pairs, toward, strict=True)],
        "rise": [sign * LEVEL * squeezed * level for level in levels],
    }
    series = [pl.Series(name, values, dtype=pl.Float64) for name, values in columns.items()]
    return arcs.with_columns(*series, base=pl.lit(sign * BASE))


def _curved(chart: alt.Chart, cursor: alt.Parameter | None) -> alt.Chart:
    """One row per arc becomes points along a rounded arch in the reader's browser: the data stay small."""
    if cursor is not None:
        chart = chart.transform_filter(f"datum.step == {cursor.name}")
    return (
        chart.transform_calculate(t=ALONG)
        .transform_flatten(["t"])
        .transform_calculate(
            x="datum.x0 + (datum.x1 - datum.x0) * (1 - cos(PI * datum.t)) / 2",
            y="datum.base + datum.rise * pow(sin(PI * datum.t), 0.7)",
        )
    )

"""What a model fills in for a hidden word, checkpoint by checkpoint."""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.theme import VERMILION, figure
from lmdynamics.charts.tiles import accuracy_colour, ink
from lmdynamics.charts.tokens import visible


def predictions_over_training(predictions: pl.DataFrame, sentence: str, hidden: str) -> alt.LayerChart:
    """A grid: one column per checkpoint, its best guesses from the top, colour for probability.

    `predictions`: step, rank (1 = best), word, probability. The cell of the word that stood there is outlined.
    """
    need_columns(predictions, ["step", "rank", "word", "probability"], "predictions over training")
    words = [visible(word) for word in predictions["word"]]
    data = predictions.with_columns(pl.Series("word", words), right=pl.col("word") == hidden)
    hidden = visible(hidden).strip()
    steps = data["step"].n_unique()
    base = alt.Chart(data).encode(
        alt.X("step:O", title="checkpoint (training step)").axis(
            labelAngle=0, labelExpr="format(datum.value, ',')", domain=False, ticks=False, orient="top"
        ),
        alt.Y("rank:O", title="guess").axis(domain=False, ticks=False),
        tooltip=["step", "rank", "word", alt.Tooltip("probability", format=".1%")],
    )
    top = max(0.1, float(data["probability"].max()))  # few guesses are sure of themselves: colours go up to the surest
    tile = base.mark_rect().encode(accuracy_colour(title="probability", field="probability", top=top))
    text = base.mark_text(fontSize=12, limit=86).encode(alt.Text("word:N"), color=ink("probability", top))
    outline = base.transform_filter("datum.right").mark_rect(filled=False, stroke=VERMILION, strokeWidth=2.5)
    chart = alt.layer(tile, text, outline).properties(width=92 * steps, height=26 * data["rank"].n_unique())
    first = data.filter(pl.col("rank") == 1).sort("step")
    said = "; ".join(f"step {r['step']}: {r['word']} ({r['probability']:.0%})" for r in first.iter_rows(named=True))
    return figure(
        chart,
        "What the model fills in",
        [sentence, f"outlined: “{hidden}”, the word that stood there"],
        f"Best guesses for the hidden word in “{sentence}” (it was “{hidden}”). {said}.",
    )

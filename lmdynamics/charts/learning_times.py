"""The fall of the mean loss over training, beside the times at which single tokens are learnt."""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import bounded, need_columns
from lmdynamics.analysis.learning_times import LOSS, TIMES, TOGETHER
from lmdynamics.charts.axes import STEP_ZERO, Cursor, by_step, same_axis, step_axis, strips
from lmdynamics.charts.encodings import need_rows
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.theme import BLUE, GREEN, VERMILION, figure

WIDTH, HEIGHT = 760, 210
NAMES = {
    LOSS: "fall of the mean loss, −dL/dlog t",
    TIMES: "learning times of tokens, weighted by their falls",
    TOGETHER: "control: all tokens fall together, with noise",
}
FALL = Line(
    "fall",
    ["nats per token and", "doubling of the steps"],
    "name",
    dict(zip(NAMES.values(), (GREEN, BLUE, VERMILION), strict=True)),
    dict(zip(NAMES.values(), ([1, 0], [1, 0], [6, 4]), strict=True)),
    band=("fall_low", "fall_high"),
    scale={"zero": True},
    points=14,
    columns=1,
)


def learning_density(density: pl.DataFrame, tests: pl.DataFrame, cursor: Cursor | None = None) -> alt.LayerChart:
    """−dL/dlog2 t of the mean loss, the density of the tokens' learning times, and that of the control.

    `density`: step, until, account, fall with its interval, runs; `tests`: measure, control, and value and expected
    with their intervals; both of one size, from `experiments.learning`. With a cursor, whose steps are those of
    `density`, the time from its step to the next is marked, and a click moves it.
    """
    subject = "learning times"
    rows = need_rows(density, ["step", "until", "account", "fall", "fall_low", "fall_high", "runs"], subject, "no rows")
    need_columns(tests, ["measure", "control", "value", "expected"], subject)
    start = pl.col("step").cast(pl.Float64).clip(STEP_ZERO)
    name = pl.col("account").replace_strict(NAMES, return_dtype=pl.String)
    rows = rows.with_columns(name=name, **{"from": start}, x=(start * pl.col("until")).sqrt()).sort("x")
    x = step_axis({*rows["step"], *rows["until"]})
    layers = FALL.layers(rows, x)
    if cursor is not None:
        bins = rows.unique("step", keep="first", maintain_order=True)
        chosen = alt.Chart(bins).transform_filter(f"datum.step == {cursor.name}")
        mark = chosen.mark_rect(color="#88888840").encode(same_axis(x, "from"), alt.X2("until:Q"))
        layers = [mark.encode(y=alt.value(0), y2=alt.value("height")), *layers]
        wide, tips = by_step(rows, "name", "fall", ".3f")
        layers.append(strips(wide, x, cursor, tips))
    test = tests.filter(measure="overlap", control=TOGETHER).row(0, named=True)
    runs = rows["runs"][0]
    units = f"{runs} seeds" if runs > 1 else "rows of text"
    banded = rows["fall_low"].is_not_null().any()
    title = (
        f"The learning times of tokens overlap with the fall of the mean loss to {bounded(test, 'value', '.0%')}; "
        f"if all tokens fell together, to {bounded(test, 'expected', '.0%')}"
    )
    caption = [
        f"bands: 95 % over {units}" if banded else "no intervals: fewer than 6 rows of text",
        "the control is drawn with the noise of the same tokens",
        "click on a time to read its tokens" if cursor is not None else "",
    ]
    return figure(
        panel(layers, x, width=WIDTH, height=HEIGHT),
        title,
        [caption],
        f"Curves over training of the fall of the mean loss and of the times at which tokens are learnt. {title}.",
    )

"""Seeds beside each other: how far their predictions differ by group of tokens, and where each seed is."""

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import with_interval
from lmdynamics.charts.axes import on_step_axis, same_axis, step_axis, steps_of
from lmdynamics.charts.conditions import ROW, missing_text, names_of
from lmdynamics.charts.encodings import interval, names, need_rows, numbers
from lmdynamics.charts.lines import Line, colour_by, panel
from lmdynamics.charts.theme import BLUE, GREY, VERMILION, WIDTH, condition_colours, figure

DOT = 5  # pixels between seeds at the same place


def divergence_panels(
    frame: pl.DataFrame, panels: Mapping[str, Sequence[str]], title: str, units: str = "pairs of seeds"
) -> alt.VConcatChart:
    """Divergences over training, a panel for each of `panels`: its title with the unit, and what it compares with.

    `frame`: compared, step, value, low, high (95 % over `units`, drawn as a band; null without an interval).
    """
    names_shown = [name for names_of_panel in panels.values() for name in names_of_panel]
    shown = pl.col("compared").is_in(names_shown)
    need = ["compared", "step", "value", "low", "high"]
    rows = on_step_axis(need_rows(frame, need, "divergence over training", "nothing was compared", shown))
    colours, charts, steps = condition_colours(names_shown), [], steps_of(rows)
    for index, (label, compared) in enumerate(panels.items()):
        own = rows.filter(pl.col("compared").is_in(compared))
        x = step_axis(steps, "training step (log scale)" if index == len(panels) - 1 else None)
        line = Line("value", label, "compared", colours, scale={"zero": True}, axis={"tickCount": 5}, points=12)
        charts.append(panel(line.layers(own, x), x, height=180))
    ends = rows.group_by("compared", maintain_order=True).last()
    texts = [f"{row['compared']} {bounded_text(row)} at step {row['step']:,}" for row in ends.iter_rows(named=True)]
    band = f"band: 95 % over {units}" if rows["low"].is_not_null().any() else "no intervals"
    caption = ["mean of both Kullback–Leibler divergences", band]
    return figure(alt.vconcat(*charts, spacing=14), title, [caption], f"Divergence over training: {'; '.join(texts)}.")


def bounded_text(row: Mapping) -> str:
    """The value of a row with its interval."""
    return with_interval(row["value"], (row["low"], row["high"]), ".2f")


def divergence_of_groups(
    frame: pl.DataFrame, against: str, control: str, title: str, units: str = "pairs of seeds"
) -> alt.LayerChart:
    """A row per group of tokens: the divergence `against` another run, and its `control`, with their 95 % intervals.

    `frame`: group, compared (with `against` and `control` among its values), value, low, high (nats; null without an
    interval). Groups are in the order of their divergence, the largest first. `units`: of the intervals.
    """
    columns = ["group", "compared", "value", "low", "high"]
    compared = pl.col("compared").is_in([against, control])
    rows = need_rows(frame, columns, "divergence of groups", f"no row is compared with {against!r}", compared)
    order = names_of(rows.filter(compared=against).sort("value", descending=True), "group")
    colours = {against: BLUE, control: GREY}
    y, x = names("group", order, labelLimit=0, grid=True), alt.X("value:Q", title="divergence (nats)")
    x = x.scale(zero=True).axis(tickCount=6, grid=False)
    colour, offset = colour_by("compared", colours), alt.YOffset("compared:N", sort=list(colours))
    tips = ["group:N", "compared:N", *numbers(".3f", "value", "low", "high")]
    points = alt.Chart(rows).mark_point(size=55, filled=True, opacity=1)
    layers = [
        *interval(rows, x, y, colour, offset, strokeWidth=2),
        points.encode(x, y, colour, offset, tooltip=tips),
    ]
    bounded = rows["low"].is_not_null().any()
    sentences = [
        f"{row['group']}: {bounded_text(row)}"
        for row in rows.filter(compared=against).sort("value", descending=True).iter_rows(named=True)
    ]
    chart = alt.layer(*layers).properties(width=WIDTH - 120, height=ROW * len(order))
    caption = ["mean of both Kullback–Leibler divergences", f"bar: 95 % over {units}" if bounded else "no intervals"]
    return figure(chart, title, [caption], f"Divergence from {against}, by group of tokens. {'; '.join(sentences)}.")


def seeds_in_rows(frame: pl.DataFrame, title: str, axis: str, *, percent: bool = False) -> alt.LayerChart:
    """A row per name with a dot for each seed; seeds at the same place are stacked.

    `frame`: name, seed, and `step` (on the logarithmic axis of steps) or `value`; null: the seed has none, and is
    counted in the caption. Of each row, the two parts of the seeds that differ most have ticks at `low` and `high`,
    where the frame has these columns. `axis`: the title of the axis.
    """
    on_steps = "step" in frame.columns
    column = "step" if on_steps else "value"
    rows = need_rows(
        frame, ["name", "seed", column], "seeds in rows", "no seed has a value", pl.col(column).is_not_null()
    )
    order = names_of(frame, "name")
    if on_steps:
        rows, x = on_step_axis(rows), step_axis(steps_of(rows), axis)
    else:
        rows = rows.with_columns(x=pl.col("value"))
        x = (
            alt.X("x:Q", title=axis)
            .scale(zero=False, padding=12, nice=False)
            .axis(format="%" if percent else "~g", grid=False)
        )
    place = (pl.int_range(pl.len()) - (pl.len() - 1) / 2).over("name", "x")
    stacked = rows.with_columns(shift=DOT * place.cast(pl.Float64))
    height = max(ROW, int(2 * stacked["shift"].max()) + 16)
    y = names("name", order, labelLimit=0, grid=True).scale(domain=order, padding=0)
    dots = alt.Chart(stacked).mark_point(size=34, filled=True, opacity=1, color=BLUE)
    shift = alt.YOffset("shift:Q").scale(domain=[-height / 2, height / 2], range=[0, height])
    layers = [dots.encode(x, y, shift, tooltip=["name:N", "seed:Q", *numbers(".1%" if percent else ",.4~g", column)])]
    if {"low", "high"} <= set(frame.columns):
        ends = frame.select("name", "low", "high").drop_nulls().unique(maintain_order=True)
        ticks = alt.Chart(ends).mark_tick(color=VERMILION, thickness=2, size=height * 0.7)
        layers += [ticks.encode(same_axis(x, end), y, tooltip=numbers(",.4~g", end)) for end in ("low", "high")]
    chart = alt.layer(*layers).properties(width=WIDTH - 120, height=height * len(order))
    count = rows["seed"].n_unique()
    ticked = len(layers) > 1 and len(ends) > 0
    caption = [f"dot: each of {count} seeds", "ticks: means of the two parts that differ most" if ticked else ""]
    style = ".1%" if percent else ",.4g"
    spread = rows.group_by("name", maintain_order=True).agg(
        n=pl.len(), low=pl.col(column).min(), high=pl.col(column).max()
    )
    texts = [f"{name}: {n} seeds from {low:{style}} to {high:{style}}" for name, n, low, high in spread.iter_rows()]
    return figure(
        chart, title, [[*caption, missing_text(len(frame) - len(rows))]], f"Seeds in rows. {axis}. {'; '.join(texts)}."
    )

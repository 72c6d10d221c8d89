"""The answers of pages 03 to 05: what a ladder of sizes shows, over seeds, from the reference results."""

from collections.abc import Mapping

import polars as pl

from lmdynamics import charts
from lmdynamics.analysis.fits import decelerating, power_laws
from lmdynamics.analysis.statistics import mean_over_seeds
from lmdynamics.corpora.tokens import group_names
from lmdynamics.experiments.findings import over_seeds
from lmdynamics.experiments.ladder import (
    across_breaks,
    as_published,
    by_curve,
    fits_after_phase,
    interval_units,
    ladder_curves,
    null_fits_after_phase,
    published_fits,
    published_interference,
)
from lmdynamics.experiments.reference import Reference, reference
from lmdynamics.explorers.answers import Answer, number

D = ("interference", "magnitude", "mean_change")
BREAK = (("Loss at the break L_d", "loss_at_break", ".2f"), ("rate after it r_d", "rate_after_break", ".4f"))


def deceleration_answer(results: Reference | None = None) -> Answer:
    """Page 03: how many curves decelerate after the unigram phase, and what size does to L_d and r_d."""
    results = results or reference("ladder")
    losses, runs = ladder_curves(results)
    fits = fits_after_phase(losses, runs)
    slowing = fits.filter(verdict="decelerates")
    control = null_fits_after_phase(losses, runs)
    called, twice = len(control.filter(verdict="decelerates")), slowing["caveat"].str.contains("two breaks").sum()
    sentences = [
        f"The loss of {len(slowing)} of {len(runs)} runs decelerates after the unigram phase: from a step on it falls "
        f"more slowly, in log-log space. (In {twice} of them two breaks fit better than one. The control, curves made "
        f"without a break, decelerates in {called} of {len(control)}.)"
    ]
    ends = (
        "; ".join(f"{name}: {_sizes(slowing, column, style)}" for name, column, style in BREAK) if len(slowing) else ""
    )
    sentences += [f"{ends}. Over all sizes: {as_published(fits)}".removeprefix(". "), _ordered(results["loss"], runs)]
    shown = decelerating(fits)
    gain = _paired(runs, "final_loss")
    few = slowing["size"].n_unique() < 3  # then the lines over sizes decide nothing
    title = (
        ""
        if gain is None or not few
        else f"The largest model's final loss: {_difference(gain, '.2f', 'higher', 'lower')}"
    )
    figure = charts.size_trends(shown, power_laws(shown), published_fits(), title)
    return Answer(sentences, figure, results.source)


def zero_sum_answer(results: Reference | None = None) -> Answer:
    """Page 04: D before and after the break, at the last doubling, and of one step beside a random one."""
    results = results or reference("ladder")
    losses, runs = ladder_curves(results)
    fits = fits_after_phase(losses, runs)
    rows = by_curve(results["interference"])
    table = over_seeds(rows, ["size", "step", "until"], D)
    across = across_breaks(rows, fits)
    means = {
        size: [_mean(across.filter(size=size), column) for column in ("before", "after", "difference")]
        for size in _ends(across)
    }
    last = rows.filter(step=rows["step"].max()).join(runs.select("curve", "parameters"), on="curve")
    sentences = [
        "D, averaged over the doublings before the break of the loss, and over those after it: "
        + (
            "; ".join(
                f"{size}: {number(before, '.2f')} and {number(after, '.2f')}, "
                + _difference(moved, ".2f", "a rise", "a fall")
                for size, (before, after, moved) in means.items()
            )
            or "no run has a located break with doublings on both sides"
        )
        + ".",
        f"Over the last doubling, {last['step'][0]:,} to {last['until'][0]:,}, D is "
        f"{_sizes(last, 'interference', '.2f')}. "
        f"In nats, a token's loss changes by {_sizes(last, 'magnitude', '.2f')}.",
        _one_step(results["one step"], runs["size"][-1]),
    ]
    order = runs["size"].unique(maintain_order=True).to_list()
    curves = table.sort(pl.col("size").cast(pl.Enum(order)), "step").with_columns(curve="size")
    slowing = fits.filter(verdict="decelerates").group_by(curve="size", maintain_order=True)
    breaks = slowing.agg(pl.col("step_at_break").mean(), pl.col("verdict").first())
    figure = charts.interference_over_training(curves, breaks, published_interference(), interval_units(runs))
    return Answer(sentences, figure, results.source)


def dissent_answer(results: Reference | None = None) -> Answer:
    """Page 05: dissent at the end by size, beyond its control, by frequency, and whether it still deepens."""
    results = results or reference("ladder")
    _, runs = ladder_curves(results)
    rows = by_curve(results["dissent"]).join(runs.select("curve", "parameters"), on="curve")
    rows = rows.sort("parameters", maintain_order=True)
    last = rows.filter(step=rows["step"].max()).with_columns(beyond=pl.col("dissent") - pl.col("dissent_control"))
    every, step = last.filter(group="all"), f"At step {rows['step'].max():,}"
    rare, common = group_names()[-1], group_names()[0]
    by_group = last.filter(pl.col("group").is_in([rare, common])).pivot(
        "group", index=["curve", "size", "seed", "parameters"], values="beyond"
    )
    by_group = by_group.with_columns(less=pl.col(rare) - pl.col(common))
    sentences = [
        f"{step}, the mean cosine of attraction and repulsion is {_sizes(every, 'dissent', '.2f')}; −1 would be total "
        "dissent.",
        f"Less its control, in which each attraction meets the repulsion at another position, it is "
        f"{_sizes(every, 'beyond', '.2f')}.",
        f"Less its control, too, rare tokens ({rare}) differ from frequent ones ({common}) by "
        f"{_sizes(by_group, 'less', '+.2f')}.",
    ]
    bounded = ["dissent", "dissent_control"]
    table = over_seeds(rows, ["size", "step", "group"], bounded).rename({"size": "curve"})
    figure = charts.dissent_over_training(
        table,
        published={"14M, at the end": -0.97, "410M": -0.37, "1B": -0.31},
        groups=[*group_names(), "all"],
        units=interval_units(runs),
    )
    return Answer(sentences, figure, results.source)


def _mean(rows: pl.DataFrame, value: str) -> dict:
    """Mean and interval over seeds."""
    return mean_over_seeds(rows.with_columns(what=pl.lit("")), "what", value).row(0, named=True)


def _ends(rows: pl.DataFrame) -> list[str]:
    """The smallest and the largest size."""
    sizes = rows.sort("parameters")["size"].unique(maintain_order=True).to_list()
    return list(dict.fromkeys([*sizes[:1], *sizes[-1:]]))


def _sizes(rows: pl.DataFrame, value: str, style: str) -> str:
    """A value at the smallest and the largest size, and their difference, paired by seed."""
    rows = rows.filter(pl.col(value).is_finite())
    ends = _ends(rows)
    texts = [number(_mean(rows.filter(size=size), value), style, size) for size in ends]
    if len(ends) < 2:
        return "".join(texts)
    moved, text = _paired(rows, value), " and ".join(texts)
    if moved is None:
        return f"{text}, not tested"
    counts = [rows.filter(size=size)["seed"].n_unique() for size in ends]
    some = f" over the {moved['n']} seeds with both" * any(count > moved["n"] for count in counts)
    return f"{text}, {_difference(moved, style, 'higher in the larger model', 'lower in the larger model')}{some}"


def _paired(rows: pl.DataFrame, value: str) -> dict | None:
    """The largest size less the smallest, seed by seed: mean and interval; None below two seeds with both."""
    ends = _ends(rows)
    if len(ends) < 2:
        return None
    paired = rows.filter(pl.col("size").is_in(ends)).pivot("size", index="seed", values=value).drop_nulls(ends)
    return _mean(paired.with_columns(moved=pl.col(ends[1]) - pl.col(ends[0])), "moved") if len(paired) > 1 else None


def _difference(row: Mapping, style: str, above: str, below: str) -> str:
    """`difference −0.28 [−0.31, −0.25], lower in the larger model`."""
    style = f"+{style.removeprefix('+')}"
    if row["low"] is None:
        return f"difference {row['mean']:{style}}, not tested".replace("-", "−")
    return f"difference {number(row, style)}, {_verdict(row, above, below)}"


def _verdict(row: Mapping, above: str, below: str) -> str:
    """What the interval of a difference says."""
    if row["low"] <= 0 <= row["high"]:
        return "undecided"
    return above if row["low"] > 0 else below


def _ordered(loss: pl.DataFrame, runs: pl.DataFrame) -> str:
    """Whether a larger model has the lower held-out loss at each checkpoint after the first tenth, seed by seed."""
    rows = by_curve(loss).join(runs.select("curve", "parameters"), on="curve")
    rows = rows.filter(pl.col("step") >= 0.1 * pl.col("step").max()).sort("parameters", maintain_order=True)
    falls = rows.group_by("seed", "step").agg(
        falls=(pl.col("loss").diff() < 0).all(), sizes=pl.col("parameters").n_unique()
    )
    compared = falls.filter(pl.col("sizes") > 1)
    if compared.is_empty():
        return "There is one size, so sizes are not compared."
    count, total, seeds = compared["falls"].sum(), len(compared), compared["seed"].n_unique()
    return (
        f"After the first tenth of training, every larger model has the lower held-out loss at {count} of {total} "
        f"checkpoints ({seeds} seed{'s' * (seeds != 1)} with several sizes); at the end the loss is "
        f"{_sizes(runs, 'final_loss', '.3f')}."
    )


def _one_step(one_step: pl.DataFrame, size: str) -> str:
    """D of the last measured step of the optimizer on held-out text, and of a random step as long, at one size."""
    last = by_curve(one_step).filter(size=size, step=one_step["step"].max(), split="held out")
    by_run = last.pivot("direction", index=["curve", "seed"], values="interference").drop_nulls()
    by_run = by_run.with_columns(less=pl.col("update") - pl.col("random"))
    update, random, less = (_mean(by_run, name) for name in ("update", "random", "less"))
    return (
        f"One step of the optimizer, at step {one_step['step'].max():,} ({size}), has D {number(update, '.2f')} on new "
        f"text; a random step as long, the control, has {number(random, '.2f')}: "
        f"{_difference(less, '.2f', 'above the control', 'below the control')}."
    )

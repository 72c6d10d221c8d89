"""The answer of the page on seeds: where two runs disagree, and whether the onsets of many are one group or two."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from lmdynamics import charts
from lmdynamics.analysis.onsets import rise_window
from lmdynamics.analysis.seeds import MIN_SEEDS, UNDECIDED, Groups, changes, one_or_two
from lmdynamics.analysis.statistics import mean_over_seeds
from lmdynamics.charts.conditions import count
from lmdynamics.charts.seeds import bounded_text
from lmdynamics.corpora.tokens import group_names
from lmdynamics.experiments.findings import over_seeds
from lmdynamics.experiments.reference import Reference, reference
from lmdynamics.explorers.answers import Answer, number
from lmdynamics.measurements.divergence import EARLIER, SEEDS, UNIGRAM


def seeds_answer(results: Reference | None = None) -> Answer:
    """Page 06: how far seeds differ, on what most, when the difference rises, and whether onsets form two groups."""
    results = results or reference("seeds")
    pairs, curves, onsets = (results[name] for name in ("divergence", "curves", "onsets"))
    whole = pairs.filter(by="all", compared=SEEDS)
    mean = pair_means(pairs).sort("step", maintain_order=True)
    every, ends = mean.filter(by="all"), mean.filter(step=mean["step"].max())
    top = every.filter(compared=SEEDS).sort("value").row(-1, named=True)
    first, end = (every.filter(compared=SEEDS).row(place, named=True) for place in (0, -1))
    control = every.filter(compared=EARLIER).row(-1, named=True)
    relations = ends.filter(by="relation", compared=SEEDS).sort("value", descending=True)
    most, least = relations.row(0, named=True), relations.row(-1, named=True)
    compared = count(whole["seed"].n_unique(), "pair")
    sentences = [
        f"Two seeds differ in their predictions by {bounded_text(first)} nats before training, by "
        f"{bounded_text(top)} at step {top['step']:,}, where the mean is largest, and by {bounded_text(end)} at the "
        f"end (mean of both KL divergences, {compared} of seeds). The control, a run against itself at half the step, "
        f"differs by {bounded_text(control)} at the end. {_changes_text(changes(whole, rises(curves)))}",
        f"At the end, by relation of the hidden word, the mean divergence is largest on {most['group']} "
        f"({bounded_text(most)} nats) and smallest on {least['group']} ({bounded_text(least)}); {_rare(pairs)}.",
        _onsets_text(onset_groups(onsets, curves)),
    ]
    return Answer(sentences, divergence_figure(pairs), results.source)


def _rare(pairs: pl.DataFrame) -> str:
    """Rare tokens less frequent ones at the end, paired: a clause with its verdict."""
    rows = pairs.filter(pl.col("step") == pl.col("step").max(), by="frequency", compared=SEEDS)
    order = [name for name in group_names() if name in rows["group"]]
    if len(order) < 2:
        return "all tokens are equally frequent"
    wide = rows.pivot("group", index="seed", values="value").with_columns(what=pl.lit(""))
    less = wide.with_columns(less=pl.col(order[-1]) - pl.col(order[0])).drop_nulls("less")
    row = mean_over_seeds(less, "what", "less").row(0, named=True)
    verdict = (
        "undecided" if row["low"] is None or row["low"] <= 0 <= row["high"] else "more" if row["mean"] > 0 else "less"
    )
    return f"on tokens {order[-1]} less those {order[0]}: {number(row, '+.2f')} nats ({verdict})"


def _changes_text(moved: pl.DataFrame) -> str:
    """Changes of the divergence: those that are decided with their numbers, then the others by name."""
    others = moved.filter(verdict=UNDECIDED)["what"].to_list()
    decided = moved.filter(pl.col("verdict") != UNDECIDED).iter_rows(named=True)
    texts = [f"{row['what']} {number(row, '+.2f')} nats, {row['verdict']}" for row in decided]
    texts += [f"undecided: {', '.join(others)}"] if others else []
    return f"Changes of the divergence: {'; '.join(texts)}."


def _onsets_text(groups: Mapping[str, Groups]) -> str:
    """Sentences on all onsets; one for all where no seeds are told from one group."""
    if any(each.p is None or each.verdict != UNDECIDED for each in groups.values()):
        return " ".join(groups_text(name, each) for name, each in groups.items())
    at = "; ".join(
        f"{name} around step {np.exp(each.mean):,.0f} ({each.seeds} seeds, spread by a factor of "
        f"{np.exp(each.spread):.2f})"
        for name, each in groups.items()
    )
    tests = ", ".join(f"{each.p:.2f}" for each in groups.values())
    found = ", ".join(found_text(each.found, each.spread) for each in groups.values())
    return (
        f"Onsets: {at}. Whether any is in two groups is undecided (p = {tests}, corrected). Two equal groups, "
        f"each spread like this, would be found 4 times in 5 if they were apart by {found}."
    )


def rises(curves: pl.DataFrame) -> pl.DataFrame:
    """Of each seed, the window in which UAS goes from a tenth to nine tenths of its rise: seed, start, end."""
    rows = []
    for (seed,), frame in curves.filter(measure="UAS").sort("step").group_by("seed", maintain_order=True):
        if window := rise_window(frame["step"].to_list(), frame["value"].to_list()):
            rows.append((seed, *window))
    return pl.DataFrame(rows, {"seed": pl.Int64, "start": pl.Int64, "end": pl.Int64}, orient="row")


def onset_groups(onsets: pl.DataFrame, curves: pl.DataFrame) -> dict[str, Groups]:
    """Of each onset, whether the logarithms of its steps over seeds are one group or two; seeds without it left out.

    p is corrected for the number of onsets that enough seeds have.
    """
    grid = np.log(curves.filter(pl.col("step") > 0)["step"].unique().sort().to_numpy())
    dated = onsets.drop_nulls("step")
    tests = (dated["onset"].value_counts()["count"] >= MIN_SEEDS).sum()
    return {
        name: one_or_two(np.log(rows["step"].to_numpy()), grid, tests)
        for (name,), rows in dated.group_by("onset", maintain_order=True)
    }


def groups_text(name: str, groups: Groups) -> str:
    """A sentence on one onset: where its seeds are, the verdict, and what could have been found."""
    spread = groups.spread
    text = f"{name[:1].upper()}{name[1:]}: {groups.seeds} seeds around step {np.exp(groups.mean):,.0f}, spread by a "
    text += f"factor of {np.exp(spread):.2f} (one standard deviation); "
    if groups.p is None:
        return (
            f"{text}undecided: {'no spread' if groups.seeds >= MIN_SEEDS else 'too few seeds'} to test for two groups."
        )
    ends = f"{groups.sizes[0]} seeds at {np.exp(groups.low):,.0f} and {groups.sizes[1]} at {np.exp(groups.high):,.0f}"
    if groups.verdict == "two groups":
        return f"{text}more than one normal group (p = {groups.p:.3f}, corrected): {ends}."
    return (
        f"{text}undecided: not told from one group (p = {groups.p:.2f}, corrected). Two equal groups, each spread like "
        f"this, would be found 4 times in 5 if they were {found_text(groups.found, spread)} apart."
    )


def found_text(distance: float, spread: float) -> str:
    """A distance in standard deviations as a factor of steps."""
    return f"a factor of {np.exp(distance * spread):.1f}" if np.isfinite(distance) else "infinitely far"


def onset_rows(onsets: pl.DataFrame, curves: pl.DataFrame) -> tuple[pl.DataFrame, str, str]:
    """Arguments of `charts.seeds_in_rows`: a row per onset, with the parts that differ most; title and axis."""
    groups = onset_groups(onsets, curves)
    ends = pl.DataFrame(
        [(name, *np.exp([each.low, each.high])) for name, each in groups.items() if each.p is not None],
        {"onset": pl.String, "low": pl.Float64, "high": pl.Float64}, orient="row",
    )  # fmt: skip
    rows = onsets.select("onset", "seed", "step").join(ends, on="onset", how="left", maintain_order="left")
    two = [name for name, each in groups.items() if each.verdict == "two groups"]
    title = f"More than one group: {', '.join(two)}" if two else "No onset is shown to have two groups of seeds"
    return rows.rename({"onset": "name"}), title, "onset: training step (log scale)"


def pair_means(pairs: pl.DataFrame) -> pl.DataFrame:
    """Means over pairs of seeds: by, compared, step, group, value, low, high. No `low` is below zero."""
    means = over_seeds(pairs, ["by", "compared", "step", "group"], ["value"])
    return means.select(pl.exclude("value_low", "value_high"), low=pl.col("value_low").clip(0), high="value_high")


PANELS = {"divergence (nats)": (SEEDS, EARLIER), "for scale (nats)": (UNIGRAM, "loss")}


def divergence_figure(pairs: pl.DataFrame):
    """The divergence of seeds and its control over training, and below it token frequencies and loss, for scale."""
    means = pair_means(pairs.filter(by="all")).sort("step")
    own, control = (means.filter(compared=name).row(-1, named=True) for name in (SEEDS, EARLIER))
    title = f"At the end two seeds differ by {bounded_text(own)} nats; a run from itself at half the step by "
    title += bounded_text(control)
    return charts.divergence_panels(means, PANELS, title)

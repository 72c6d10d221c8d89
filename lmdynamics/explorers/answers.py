"""The answer that a page opens with: what the reference results show, in a few sentences and one figure.

Every number is computed from the tables in `data/reference`; see `experiments.reference` and `experiments.findings`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from lmdynamics import charts
from lmdynamics.analysis.statistics import mean_over_seeds
from lmdynamics.charts.moving import in_row
from lmdynamics.charts.theme import Chart
from lmdynamics.experiments.findings import (
    AGREEMENT,
    MARGIN,
    MASKING_MEASURES,
    SYNTAX_MEASURES,
    contrasts,
    differences,
    last_values,
    later,
    loss_drop,
    masking_curves,
    mean_step,
    name_interventions,
    onset_table,
    published_sas,
    syntax_curves,
    uas_curves,
)
from lmdynamics.experiments.reference import Reference, reference
from lmdynamics.html import escape

MARGIN_POINTS = 10  # by which a curve must exceed its control; position alone must only be exceeded
HALF = 360  # width of a panel in a figure of two columns, pixels


@dataclass(frozen=True)
class Answer:
    """Sentences and a figure; the last expression of a cell shows both."""

    sentences: Sequence[str]
    figure: Chart
    source: str

    def __str__(self) -> str:
        return "\n".join([*self.sentences, self._origin])

    @property
    def _origin(self) -> str:
        return f"Means and 95 % intervals are over seeds. Reference results: {self.source}"

    def show(self) -> None:
        """Display the sentences, and then the figure as a still picture."""
        from IPython.display import display

        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.sentences)
        source = escape(self._origin)
        text = {
            "text/html": f"<h2>What we found</h2><ul>{items}</ul><p><small>{source}</small></p>",
            "text/markdown": "\n".join(f"- {sentence}" for sentence in self.sentences),  # for the card of the page
            "text/plain": str(self),
        }
        display(text, raw=True)
        display(charts.show(self.figure, "what-we-found", interactive=False))


def syntax_answer(results: Reference | None = None) -> Answer:
    """Page 02: the onsets of structure and grammar, their order, and the loss while structure appears."""
    results = results or reference("syntax")
    uas = results["uas"]
    onsets = _onsets(results)
    steps = {row["onset"]: row for row in mean_step(onsets).iter_rows(named=True)}
    structure, beyond, grammar = (steps[name] for name in ("structure", "structure beyond position", "capabilities"))
    drops = loss_drop(results["loss"], uas).with_columns(what=pl.lit("drop"))
    drop, share = (mean_over_seeds(drops, "what", name).row(0, named=True) for name in ("drop", "share"))
    sentences = [
        f"Attention heads find over {MARGIN_POINTS} points more arcs than on shuffled trees from {_step(structure)} "
        f"on, and more arcs than position alone from {_step(beyond)} on. Agreement of subject and verb is over "
        f"{MARGIN_POINTS} points above chance from {_step(grammar)} on.",
        f"{_order(onsets, 'structure')} {_order(onsets, 'structure beyond position')}",
        f"While UAS rises from a tenth to nine tenths of its way, the held-out loss falls by {number(drop, '.2f')} "
        f"nats, {number(share, '.0%')} of its whole fall.",
    ]
    levels = uas_curves(uas).group_by("source").agg(pl.col("value").mean())
    position, shuffled = (levels.filter(source=name)["value"][0] for name in ("offset", "shuffled"))
    ours = charts.conditions_panels(
        syntax_curves(results),
        percent=["UAS", "agreement"],
        controls={"UAS": {"position": position, "shuffled": shuffled}, "agreement": {"chance": 0.5}},
        width=HALF,
        title=f"Here: structure at step {structure['step']:,.0f}, agreement at step {grammar['step']:,.0f}"
        if structure["step"] and grammar["step"]
        else "Here: no onset",
    )
    published, marks, position = published_sas()
    paper = charts.conditions_panels(
        published,
        percent=["UAS, one head", "BLiMP"],
        controls={"UAS, one head": {"position": position}, "BLiMP": {"chance": 0.5}},
        width=HALF,
        title=f"Chen et al. 2023 (BERT): step {marks['structure']:,}, then {marks['capabilities']:,}",
    )
    return Answer(sentences, in_row(ours, paper), results.source)


def start_answer(results: Reference | None = None) -> Answer:
    """Page 00: how fast the loss falls, and what is learned when."""
    results = results or reference("syntax")
    loss = results["loss"].sort("step")
    onsets = _onsets(results)
    steps = {row["onset"]: row for row in mean_step(onsets).iter_rows(named=True)}
    beyond, grammar = steps["structure beyond position"], steps["capabilities"]
    ends = loss.group_by("seed", maintain_order=True).agg(first=pl.col("loss").first(), last=pl.col("loss").last())
    first, last = (mean_over_seeds(ends.with_columns(what=pl.lit("")), "what", name) for name in ("first", "last"))
    below = loss.join(ends, on="seed").filter(pl.col("loss") <= (pl.col("first") + pl.col("last")) / 2)
    half = below.group_by("seed", maintain_order=True).agg(pl.col("step").first())
    half = mean_step(half.with_columns(onset=pl.lit("half"))).row(0, named=True)
    sentences = [
        f"In {loss['step'].max():,} steps the loss on new text falls from {number(first.row(0, named=True), '.2f')} to "
        f"{number(last.row(0, named=True), '.2f')} nats per word. Half of this fall is over at {_step(half)}.",
        f"Grammar comes later. Attention heads find more relations of grammar than position alone from {_step(beyond)} "
        f"on, and verbs agree with their subjects, {MARGIN_POINTS} points above chance, from {_step(grammar)} on.",
    ]
    at = onsets.filter(onset="capabilities").join(loss, on=["seed", "step"]).join(ends, on="seed")
    if len(at):
        share = (pl.col("first") - pl.col("loss")) / (pl.col("first") - pl.col("last"))
        row = mean_over_seeds(at.select("seed", "onset", share=share), "onset", "share").row(0, named=True)
        sentences.append(f"When agreement starts, {number(row, '.0%')} of the fall is over.")
    figure = charts.conditions_panels(
        syntax_curves(results),
        percent=["UAS", AGREEMENT],
        controls={AGREEMENT: {"chance": 0.5}},
        title=f"Half of the loss has gone by step {half['step']:,.0f}; agreement "
        + (f"starts at step {grammar['step']:,.0f}" if grammar["step"] else "never starts"),
    )
    return Answer(sentences, figure, results.source)


def _onsets(results: Reference) -> pl.DataFrame:
    return onset_table(results["uas"], results["pairs"], MARGIN_POINTS / 100)


def interventions_answer(results: Reference | None = None) -> Answer:
    """Page 02 on interventions: how suppressed, released and promoted runs end, against the base."""
    results = results or reference("interventions")
    curves = name_interventions(syntax_curves(results))
    order = curves["condition"].unique(maintain_order=True).to_list()
    final = last_values(curves)
    releases = [name for name in order if name.startswith("released")]
    tests = {
        measure: contrasts(final, [(name, "base") for name in order if name != "base"], measure, higher)
        for measure, higher in SYNTAX_MEASURES.items()
    }
    sentences = [
        "Suppressed throughout: " + _ends(tests, "suppressed") + ".",
        *(f"{name.capitalize()} of training: " + _ends(tests, name) + "." for name in releases),
        "Promoted throughout: " + _ends(tests, "promoted") + ".",
    ]
    figure = charts.conditions_panels(
        curves,
        percent=["UAS", "agreement"],
        controls={"agreement": {"chance": 0.5}},
        conditions=order,
        title="Suppressed throughout: " + _ends({AGREEMENT: tests[AGREEMENT]}, "suppressed"),
    )
    return Answer(sentences, figure, results.source)


def _ends(tests: dict[str, pl.DataFrame], condition: str) -> str:
    """How a condition ends against the base, in each measure."""
    return "; ".join(_end(table.filter(condition=condition).row(0, named=True), name) for name, table in tests.items())


def _end(row: dict, measure: str) -> str:
    """`agreement ends 48 [45, 51] points below the base`."""
    digits, unit, scale = (2, "nats", 1) if "nats" in measure else (0, "points", 100)
    side, sign = ("below", -scale) if row["difference"] < 0 else ("above", scale)
    interval = ""
    if row["low"] is not None:
        low, high = sorted((sign * row["low"], sign * row["high"]))
        interval = f" [{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")
    verdict = "" if row["verdict"] in ("better", "worse") else ", undecided"
    name = measure.partition(" (")[0]
    return f"{name} ends {sign * row['difference']:.{digits}f}{interval} {unit} {side} the base{verdict}"


MASKING_BASELINE = "constant 15 %"


def masking_answer(results: Reference | None = None) -> Answer:
    """Page 01: schedules against a constant 15 %, at four masking rates and in agreement."""
    results = results or reference("masking")
    final = last_values(masking_curves(results))
    order = results["loss"]["condition"].unique(maintain_order=True).to_list()
    falling = "linear 30 → 15 %"
    direction, start = (falling, "linear 15 → 30 %"), ("constant 30 %", MASKING_BASELINE)
    pairs = [(falling, MASKING_BASELINE), (falling, "constant 30 %"), direction, start]
    tests = {
        name: contrasts(final, pairs, name, higher)
        for name, higher in MASKING_MEASURES.items()
        if name in ("loss at 15 %", MARGIN)
    }
    sentences = [_starting_or_falling(tests["loss at 15 %"], falling), *(_contrast(tests, *pair) for pair in pairs)]
    sentences.append(
        "Better and worse are verdicts after a correction for the number of comparisons (Hochberg). The margin is by "
        "how much the right sentence of a pair is likelier; unlike accuracy it has no ceiling."
    )
    moved = differences(final, MASKING_BASELINE)
    means = mean_over_seeds(moved, ["measure", "condition"], "value")
    figure = charts.final_by_condition(
        moved, means, conditions=order, zero=True, percent=[AGREEMENT],
        title=_contrast(tests, falling, MASKING_BASELINE).rstrip("."),
    )  # fmt: skip
    return Answer(sentences, figure, results.source)


EFFECT = {"better": "lowers", "worse": "raises", "undecided": "does not measurably change"}


def _starting_or_falling(table: pl.DataFrame, falling: str) -> str:
    """Whether the start at 30 % or the fall from it makes the difference in the loss."""
    rows = {(row["condition"], row["baseline"]): row for row in table.iter_rows(named=True)}
    fall, start = rows[falling, MASKING_BASELINE], rows["constant 30 %", MASKING_BASELINE]
    both = rows[falling, "constant 30 %"]
    if not all(row["verdict"] in EFFECT for row in (fall, start, both)):  # one seed, or no spread between seeds
        return "Whether a rate that falls from 30 to 15 % lowers the loss at 15 % is undecided: there is no test."
    text = (
        f"Compared with 15 % throughout, a rate that falls from 30 to 15 % {EFFECT[fall['verdict']]} the loss at 15 %, "
        f"and 30 % throughout {EFFECT[start['verdict']]} it."
    )
    excluded = f"effects outside [{both['low']:+.2f}, {both['high']:+.2f}] nats are excluded".replace("-", "−")
    if both["verdict"] == "undecided":
        return f"{text} Falling against 30 % throughout is undecided: {excluded}."
    return f"{text} Falling is {both['verdict']} than 30 % throughout."


def _contrast(tests: dict[str, pl.DataFrame], condition: str, baseline: str) -> str:
    """One condition against another, in each measure, with intervals and verdicts."""
    parts = []
    for measure, table in tests.items():
        row = table.filter(condition=condition, baseline=baseline).row(0, named=True)
        interval = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
        parts.append(f"{measure.partition(' (')[0]} {row['difference']:+.2f}{interval} nats ({row['verdict']})")
    return f"{condition} against {baseline}: " + ", ".join(parts).replace("-", "−") + "."


def _step(row: dict) -> str:
    if row["step"] is None:
        return f"no step ({row['n']} of {row['runs']} runs)"
    interval = " (one run: no interval)" if row["low"] is None else f" [{row['low']:,.0f}, {row['high']:,.0f}]"
    return f"step {row['step']:,.0f}{interval}" + (f" in {row['n']} of {row['runs']} runs" * (row["n"] < row["runs"]))


def number(row: dict, style: str) -> str:
    """Mean and interval of a row of `mean_over_seeds`."""
    interval = "(one seed: no interval)" if row["low"] is None else f"[{row['low']:{style}}, {row['high']:{style}}]"
    return f"{row['mean']:{style}} {interval}".replace("-", "−")


def _order(onsets: pl.DataFrame, first: str) -> str:
    """Whether agreement comes later than a structure onset, over seeds."""
    ratio = later(onsets, first, "capabilities")
    control = "position" if "position" in first else "shuffled trees"
    if ratio["mean"] is None:
        return f"No run has both agreement and heads that beat {control}, so their order is unknown."
    text = f"{ratio['mean']:.2f} times the step at which heads beat {control}"
    if ratio["low"] is None:
        return f"Agreement comes at {text} (one seed: no interval)."
    interval = f"[{ratio['low']:.2f}, {ratio['high']:.2f}], {ratio['n']} seeds"
    if ratio["low"] > 1:
        return f"Agreement comes later: at {text} ({interval})."
    if ratio["high"] < 1:
        return f"Agreement comes earlier: at {text} ({interval})."
    return f"Which comes first is undecided: agreement comes at {text} ({interval})."

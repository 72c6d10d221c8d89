"""The answer that a page opens with: what the reference results show, in a few sentences and one figure.

Every number is computed from the tables in `data/reference`; see `experiments.reference` and `experiments.findings`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from lmdynamics import charts
from lmdynamics.analysis.onsets import rise_window
from lmdynamics.analysis.statistics import mean_over_seeds
from lmdynamics.charts.moving import in_row
from lmdynamics.charts.theme import Chart
from lmdynamics.experiments.findings import (
    AGREEMENT,
    HELD_OUT_LOSS,
    MARGIN,
    MASKING_MEASURES,
    SINGLE_HEAD,
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
from lmdynamics.html import PAGE_STYLE, escape

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
        return (
            f"Means and 95 % intervals are over seeds; a single seed has no interval. Reference results: {self.source}"
        )

    def show(self) -> None:
        """Display the sentences, and then the figure as a still picture. A click on the heading folds both."""
        from IPython.display import display

        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.sentences)
        source = escape(self._origin)
        text = {
            "text/html": f"{PAGE_STYLE}<details class='lmd-answer' open><summary><h2>What we found</h2></summary>"
            f"<ul>{items}</ul><p><small>{source}</small></p></details>",
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
    published, marks, published_position = published_sas()
    rising = published.filter(measure=SINGLE_HEAD).sort("step")
    start, end = rise_window(rising["step"].to_list(), rising["value"].to_list())
    drops = loss_drop(results["loss"], uas).with_columns(what=pl.lit("drop"))
    drops = drops.with_columns(window=(pl.col("end") - pl.col("start")) / results["loss"]["step"].max())
    drop, share, window = (
        mean_over_seeds(drops, "what", name).row(0, named=True) for name in ("drop", "share", "window")
    )
    sentences = [
        f"From {_step(structure)} on, attention heads find more arcs than on shuffled trees, by {MARGIN_POINTS} points "
        f"more than before training; from {_step(beyond)} on, more than position alone. Agreement of subject and verb "
        f"is over {MARGIN_POINTS} points above chance from {_step(grammar)} on.",
        f"{_order(onsets, 'structure')} {_order(onsets, 'structure beyond position')}",
        f"While UAS rises from a tenth to nine tenths of its way, the held-out loss falls by {number(drop, '.2f')} "
        f"nats, {number(share, '.0%')} of its whole fall. That takes {number(window, '.0%')} of all steps "
        f"(BERT, published: {(end - start) / rising['step'].max():.0%}).",
    ]
    levels = dict(uas_curves(uas).group_by("source").agg(pl.col("value").mean()).iter_rows())
    controls = {"UAS": {"position": levels["offset"], "shuffled": levels["shuffled"]}, AGREEMENT: {"chance": 0.5}}
    if "single_offset" in levels:
        controls[SINGLE_HEAD] = {"position": levels["single_offset"]}
    order = [HELD_OUT_LOSS, SINGLE_HEAD, AGREEMENT, "UAS"]  # the published panels, then ours alone
    curves = syntax_curves(results).sort(pl.col("measure").cast(pl.Enum(order)), maintain_order=True)
    ours = charts.conditions_panels(
        curves,
        percent=["UAS", SINGLE_HEAD, AGREEMENT],
        controls=controls,
        width=HALF,
        title=f"Here: structure at step {structure['step']:,.0f}, agreement at step {grammar['step']:,.0f}"
        if structure["step"] and grammar["step"]
        else "Here: no onset",
    )
    paper = charts.conditions_panels(
        published,
        percent=[SINGLE_HEAD, "BLiMP"],
        controls={SINGLE_HEAD: {"position": published_position}, "BLiMP": {"chance": 0.5}},
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
        syntax_curves(results).filter(pl.col("measure") != SINGLE_HEAD),
        percent=["UAS", AGREEMENT],
        controls={AGREEMENT: {"chance": 0.5}},
        title=f"Half of the fall of the loss is over by step {half['step']:,.0f}; agreement "
        + (f"starts at step {grammar['step']:,.0f}" if grammar["step"] else "never starts"),
    )
    return Answer(sentences, figure, results.source)


def _onsets(results: Reference) -> pl.DataFrame:
    return onset_table(results["uas"], results["pairs"], MARGIN_POINTS / 100)


def interventions_answer(results: Reference | None = None) -> Answer:
    """Page 02 on interventions: how suppressed, released and promoted runs end, against the base.

    The control of suppression is the same penalty on the arcs of shuffled trees.
    """
    results = results or reference("interventions")
    curves = name_interventions(syntax_curves(results))
    order = curves["condition"].unique(maintain_order=True).to_list()
    throughout = [(name, "base", measure) for name in ("suppressed", "promoted") for measure in SYNTAX_MEASURES]
    released = [(name, "base", AGREEMENT) for name in order if name.startswith("released")]
    control = [(CONTROL, "base", AGREEMENT), ("suppressed", CONTROL, AGREEMENT)] if CONTROL in order else []
    tests = contrasts(last_values(curves), [*throughout, *released, *control], SYNTAX_MEASURES).to_dicts()
    suppressed, promoted, rest = tests[:3], tests[3:6], tests[6:]
    ends, controls = rest[: len(released)], rest[len(released) :]
    sentences = [
        f"Suppressed throughout: {'; '.join(map(_end, suppressed))}.{_against_control(*controls)}",
        "; ".join(f"{row['condition']} of training, {_end(row)}" for row in ends).capitalize() + ".",
        f"Promoted throughout: {'; '.join(map(_end, promoted))}. {_correction(tests)}",
    ]
    (costs,) = (row for row in suppressed if row["measure"] == AGREEMENT)
    figure = charts.conditions_panels(
        curves,
        percent=["UAS", "agreement"],
        controls={"agreement": {"chance": 0.5}},
        conditions=order,
        title="; ".join([f"Suppressed throughout: {_end(costs)}", *(f"control: {_end(row)}" for row in controls[:1])]),
    )
    return Answer(sentences, figure, results.source)


def _correction(tests: list[dict]) -> str:
    return f"Verdicts are corrected for these {len(tests)} comparisons (Hochberg)."


CONTROL = "on shuffled trees"  # the same penalty on the arcs of shuffled trees


def _against_control(control: dict | None = None, suppressed: dict | None = None) -> str:
    """A sentence on the control of suppression against the base, and on suppression against its control."""
    if control is None or suppressed is None:
        return ""
    costs = "costs" if suppressed["verdict"] == "worse" else "is not shown to cost"
    return (
        f" The control, the same penalty on shuffled trees: {_end(control)}. Suppression {costs} more than its control "
        f"({_end(suppressed, 'it')})."
    )


def _end(row: dict, baseline: str = "the base") -> str:
    """`agreement ends 48 [45, 51] points below the base`."""
    digits, unit, scale = (2, "nats", 1) if "nats" in row["measure"] else (0, "points", 100)
    side, sign = ("below", -scale) if row["difference"] < 0 else ("above", scale)
    interval = ""
    if row["low"] is not None:
        low, high = sorted((sign * row["low"], sign * row["high"]))
        interval = f" [{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")
    verdict = "" if row["verdict"] in ("better", "worse") else ", undecided"
    name = row["measure"].partition(" (")[0]
    return f"{name} ends {sign * row['difference']:.{digits}f}{interval} {unit} {side} {baseline}{verdict}"


MASKING_BASELINE, FALLING, RISING, HIGHER = "constant 15 %", "linear 30 → 15 %", "linear 15 → 30 %", "constant 30 %"
LOSS = "loss at 15 %"


def masking_answer(results: Reference | None = None) -> Answer:
    """Page 01: schedules against a constant 15 % in loss, then falling against starting rate, then agreement."""
    results = results or reference("masking")
    final = last_values(masking_curves(results))
    order = results["loss"]["condition"].unique(maintain_order=True).to_list()
    by_baseline = [(name, MASKING_BASELINE, LOSS) for name in order if name != MASKING_BASELINE]
    direction = [(FALLING, HIGHER, LOSS), (FALLING, RISING, LOSS)]
    in_agreement = [(FALLING, MASKING_BASELINE, MARGIN), (FALLING, HIGHER, MARGIN)]
    tests = contrasts(final, [*by_baseline, *direction, *in_agreement], MASKING_MEASURES).to_dicts()
    against, falling, agreement = tests[: len(by_baseline)], tests[len(by_baseline) : -2], tests[-2:]
    sentences = [
        f"Loss at the end, measured at 15 % masking, compared with {MASKING_BASELINE}: "
        + "; ".join(f"{row['condition']} {_effect(row)}" for row in against)
        + ".",
        f"Is it the fall of the rate, or the higher rate at the start? {FALLING} compared with "
        + "; with ".join(f"{row['baseline']}: {_effect(row)}" for row in falling)
        + ".",
        f"Agreement (how much likelier the right sentence is): {FALLING} compared with "
        + "; with ".join(f"{row['baseline']}: {_effect(row)}" for row in agreement)
        + f". {_correction(tests)}",
    ]
    moved = differences(final, MASKING_BASELINE)
    means = mean_over_seeds(moved, ["measure", "condition"], "value")
    (fall,) = (row for row in against if row["condition"] == FALLING)
    figure = charts.final_by_condition(
        moved, means, conditions=order, zero=True, percent=[AGREEMENT],
        title=f"{FALLING} against {MASKING_BASELINE}: loss at 15 % {_effect(fall)}, agreement margin "
        f"{_effect(agreement[0])}",
    )  # fmt: skip
    return Answer(sentences, figure, results.source)


def _effect(row: dict) -> str:
    """`−0.24 [−0.40, −0.09] nats (better)`."""
    interval = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    return f"{row['difference']:+.2f}{interval} nats ({row['verdict']})".replace("-", "−")


def _step(row: dict) -> str:
    if row["step"] is None:
        return f"no step ({row['n']} of {row['runs']} runs)"
    interval = " (one run)" if row["low"] is None else f" [{row['low']:,.0f}, {row['high']:,.0f}]"
    return f"step {row['step']:,.0f}{interval}" + (f" in {row['n']} of {row['runs']} runs" * (row["n"] < row["runs"]))


def number(row: dict, style: str, of: str = "") -> str:
    """Mean and interval of a row of `mean_over_seeds`, and what it is of: `4.87 [4.84, 4.90] (0.18M)`."""
    interval = "" if row["low"] is None else f" [{row['low']:{style}}, {row['high']:{style}}]"
    notes = [of] * bool(of) + ["one seed"] * (not interval)
    return f"{row['mean']:{style}}{interval}".replace("-", "−") + f" ({', '.join(notes)})" * bool(notes)


def _order(onsets: pl.DataFrame, first: str) -> str:
    """Whether agreement comes later than a structure onset, over seeds."""
    ratio = later(onsets, first, "capabilities")
    control = "position" if "position" in first else "shuffled trees"
    if ratio["mean"] is None:
        return f"No run has both agreement and heads that beat {control}, so their order is unknown."
    text = f"{ratio['mean']:.2f} times the step at which heads beat {control}"
    if ratio["low"] is None:
        return f"Agreement comes at {text} (one seed)."
    interval = f"[{ratio['low']:.2f}, {ratio['high']:.2f}], {ratio['n']} seeds"
    if ratio["low"] > 1:
        return f"Agreement comes later: at {text} ({interval})."
    if ratio["high"] < 1:
        return f"Agreement comes earlier: at {text} ({interval})."
    return f"Which comes first is undecided: agreement comes at {text} ({interval})."

"""Explore minimal pairs: whether the good or the bad sentence is more probable, since when, and by how much."""

from collections.abc import Mapping
from difflib import SequenceMatcher
from html import escape
from typing import Any, ClassVar

import polars as pl

from lmdynamics import charts
from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import ALL_PARADIGMS, judged_right, pair_race
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.moving import Moving, Place, in_row, with_slider
from lmdynamics.charts.pair_race import pairs_at_step, paradigm_label
from lmdynamics.charts.theme import BLUE, VERMILION
from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.errors import UserError, shortened
from lmdynamics.explorers.explorer import ALL, Explorer, State, missing_message, step_options
from lmdynamics.html import CELL, LITERAL

MEAN = -1  # in place of a pair: the mean of all pairs
LISTED = 50  # pairs of a paradigm in the list; any other can be selected by its number
COLUMNS = ["step", "paradigm", "pair", "good", "bad", "correct"]


class PairExplorer(Explorer):
    """Move through checkpoints, and see the probabilities of the good and the bad sentence of minimal pairs.

    `traces`: a trace of `PairAccuracy`, or of several runs a mapping by name; `pairs`: the pairs they were measured on.
    `run`, `step`, `paradigm`, `pair` (its number) are the initial selection: by default the first run, its last step
    and the average over paradigms. `onset`: the capabilities onset of the first run, or a mapping by name.

    In its state, an empty paradigm is the average of all, and pair -1 the mean of a paradigm.

    Raises
    ------
    UserError
        If a column or a number is missing, there are no rows, runs were judged on different pairs, the text of a pair
        is not in `pairs`, or an initial value is unknown.
    """

    name = "explorer_pairs"
    pickers: ClassVar = {"run": "run", "paradigm": "paradigm", "pair": "pair"}

    def __init__(
        self,
        traces: pl.DataFrame | Mapping[str, pl.DataFrame],
        pairs: MinimalPairs,
        *,
        run: str | None = None,
        step: int | None = None,
        paradigm: str | None = None,
        pair: int | None = None,
        onset: Onset | Mapping[str, Onset] | None = None,
    ):
        self.traces, self.texts = _checked({"the run": traces} if isinstance(traces, pl.DataFrame) else traces, pairs)
        first = next(iter(self.traces))
        self.onsets = onset if isinstance(onset, Mapping) else {first: onset}
        self.accuracy = {name: judged_right(trace) for name, trace in self.traces.items()}
        self.paradigms = self.texts["paradigm"].unique(maintain_order=True).to_list()
        self._races: dict[tuple, pl.DataFrame] = {}
        for name in self.traces:  # raises for missing values here, not at a click
            self._race(name, ALL, MEAN)
        if pair is not None:
            paradigm_of_pair = dict(self.texts.select("pair", "paradigm").iter_rows()).get(pair)
            if paradigm_of_pair is None or (paradigm or paradigm_of_pair) != paradigm_of_pair:
                raise UserError(f"there is no pair {pair} in {'this trace' if paradigm is None else paradigm}")
            paradigm = paradigm_of_pair
        if paradigm is not None and paradigm not in self.paradigms:
            raise UserError(missing_message("paradigm", paradigm, self.paradigms))
        self.start(run=run, paradigm=paradigm, pair=MEAN if pair is None else pair, step=step)

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        if entry == "run":
            return {name: name for name in self.traces}
        if entry == "paradigm":
            labels = {name: paradigm_label(name) for name in self.paradigms}
            return {ALL: f"all (average of {len(labels)})", **labels} if len(labels) > 1 else labels
        if entry == "step":
            return step_options(self.traces[now["run"]]["step"].unique().sort())
        good = self.texts.filter(pl.col("paradigm") == now["paradigm"])  # none for the average over paradigms
        several = f"all {len(good):,} (mean)" if len(good) else "pick a paradigm first"
        return {MEAN: several, **{pair: shortened(text, 70) for pair, text in good.select("pair", "good").iter_rows()}}

    def offered(self, entry: str, now: State) -> Mapping[Any, str]:
        """The first pairs of a paradigm, and the selected one."""
        options = super().offered(entry, now)
        shown = {key: label for i, (key, label) in enumerate(options.items()) if i <= LISTED or key == self.now[entry]}
        return shown if entry == "pair" else options

    @property
    def rows(self) -> pl.DataFrame:
        """The selected race, at every step."""
        return self._race(self.now["run"], self.now["paradigm"], self.now["pair"])

    def moving(self) -> Moving:
        run, sentences, steps = self.now["run"], self._text(self.now["pair"]), list(self.choices("step", self.now))
        cursor = Cursor(steps)
        lines = [f"run {run}"] * (len(self.traces) > 1) + [f"{name}: “{text}”" for name, text in sentences.items()]
        chart = charts.pair_race(self.rows, cursor, onset=self.onsets.get(run), caption="\n".join(lines))
        if len(self.paradigms) > 1:
            chart = in_row(chart, pairs_at_step(self._by_paradigm(), cursor, self.now["paradigm"]))
        places = [Place(f"{step:,}", self.describe_step(step), self._sentence_table(step)) for step in steps]
        return with_slider(chart, cursor, self.now["step"], places)

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data of the views: of the race at all steps, of the paradigms at the selected step."""
        tables = {"pair_race": self.rows}
        if len(self.paradigms) > 1:
            tables["pair_paradigms"] = self._by_paradigm().filter(pl.col("step") == self.now["step"])
        return tables

    def describe_step(self, step: int) -> str:
        """Both log-probabilities, their difference and the share of pairs judged right at a step."""
        nats = _numbers(self.rows, step)
        run, paradigm, text = self.now["run"], self.now["paradigm"], self._text(self.now["pair"])
        label = f"{run}, step {step:,}" if len(self.traces) > 1 else f"Step {step:,}"
        if text:
            ahead = self.rows.filter(step=step, score="difference")["value"][0] > 0
            return (
                f"{label}: “{text['good']}” {nats['good']} nats, “{text['bad']}” {nats['bad']} nats; difference "
                f"{nats['difference']} nats, {'right' if ahead else 'wrong'} (one pair, no interval)."
            )
        row = self.accuracy[run].filter(step=step, paradigm=paradigm or ALL_PARADIGMS).row(0, named=True)
        mean = "" if paradigm else f" (mean over {len(self.paradigms)} paradigms)"
        return (
            f"{label}: log-probability of the good sentence {nats['good']}, of the bad one {nats['bad']}, difference "
            f"{nats['difference']} nats. Judged right: {row['accuracy']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of "
            f"{row['pairs']:,} pairs{mean}."
        )

    def _text(self, pair: int) -> dict[str, str]:
        """Both sentences of a pair as good and bad; none for the mean of pairs."""
        rows = self.texts.filter(pl.col("pair") == pair).select("good", "bad").to_dicts()
        return rows[0] if rows else {}

    def _race(self, run: str, paradigm: str, pair: int) -> pl.DataFrame:
        key = (run, paradigm, pair)
        if key not in self._races:
            index = None if pair == MEAN else pair
            self._races[key] = pair_race(self.traces[run], paradigm or None, index)
        return self._races[key]

    def _by_paradigm(self) -> pl.DataFrame:
        return self.accuracy[self.now["run"]].filter(pl.col("paradigm") != ALL_PARADIGMS)

    def _sentence_table(self, step: int) -> str:
        """The selected pair, or the first of several, as a table with one sentence above the other."""
        paradigm, pair = self.now["paradigm"], self.now["pair"]
        selected = pl.col("pair") == pair if pair != MEAN else pl.col("paradigm") == paradigm
        row = (self.texts if paradigm == ALL else self.texts.filter(selected)).row(0, named=True)
        numbers = _numbers(self._race(self.now["run"], row["paradigm"], row["pair"]), step)
        leads = ["for example", ""] if pair == MEAN else ["", ""]
        lines = "".join(
            f"<tr><td style='{CELL}'>{lead}</td><td style='{CELL}'>{name}</td><td style='{CELL}'>{text}</td>"
            f"<td style='{CELL}'>{numbers[name]} nats</td></tr>"
            for lead, name, text in zip(leads, ("good", "bad"), mark_differences(row["good"], row["bad"]), strict=True)
        )
        return f"<table class='{LITERAL}'>{lines}</table>"


def mark_differences(good: str, bad: str) -> tuple[str, str]:
    """Both sentences as escaped HTML, with the words in which they differ highlighted."""
    words = good.split(), bad.split()
    html: tuple[list[str], list[str]] = ([], [])
    for same, *ends in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for i, colour in enumerate((BLUE, VERMILION)):
            if part := escape(" ".join(words[i][ends[2 * i] : ends[2 * i + 1]])):
                style = f"color: {colour}; text-decoration: underline"
                html[i].append(part if same == "equal" else f"<b style='{style}'>{part}</b>")
    return " ".join(html[0]), " ".join(html[1])


def _numbers(race: pl.DataFrame, step: int) -> dict[str, str]:
    """Each score at a step as text, with its interval if it has one."""
    numbers = {}
    for row in race.filter(pl.col("step") == step).iter_rows(named=True):
        style = "+.2f" if row["score"] == "difference" else ".1f"
        numbers[row["score"]] = with_interval(row["value"], (row["low"], row["high"]), style).replace("-", "−")
    return numbers


def _checked(traces: Mapping[str, pl.DataFrame], pairs: MinimalPairs) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    """The traces by run, and paradigm, pair, good and bad sentence of each pair in them."""
    context = "the minimal-pair explorer"
    if not traces:
        raise UserError(f"{context}: there are no runs; give the trace of PairAccuracy of one or more")
    checked: dict[str, pl.DataFrame] = {}
    judged = []
    for name, trace in traces.items():
        need_columns(trace, COLUMNS, context)
        if trace.is_empty():
            raise UserError(f"{context}: the trace of {name} has no rows; trace PairAccuracy on some pairs first")
        checked[str(name)] = trace.with_columns(pl.col("paradigm").cast(pl.String))
        judged.append(checked[str(name)].select("paradigm", "pair").unique().sort("paradigm", "pair"))
        if not judged[-1].equals(judged[0]):
            first = next(iter(checked))
            raise UserError(f"{context}: {name} was judged on other pairs than {first}; trace both on the same")
    texts = pairs.frame.join(judged[0], on=["paradigm", "pair"], how="semi", maintain_order="left")
    if len(texts) != len(judged[0]):
        raise UserError(
            f"{context}: {len(judged[0]) - len(texts):,} of {len(judged[0]):,} judged pairs are not among "
            f"{pairs.name}; give the pairs that were traced"
        )
    return checked, texts

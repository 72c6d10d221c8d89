"""Minimal pairs, to step through: whether the good or the bad sentence is ahead, since when, and by how much."""

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
from lmdynamics.charts.moving import Moving, Place, beside, moved
from lmdynamics.charts.pair_race import pairs_at_step, spoken
from lmdynamics.charts.theme import BLUE, VERMILION
from lmdynamics.corpora.gold import MinimalPairs
from lmdynamics.errors import UserError, shortened
from lmdynamics.explorers.explorer import ALL, Explorer, State, missing, numbered
from lmdynamics.html import CELL, LITERAL

EVERY = -1  # pairs: their mean
OFFERED = 50  # pairs of a paradigm; any other is reached by its number
COLUMNS = ["step", "paradigm", "pair", "good", "bad", "correct"]


class PairExplorer(Explorer):
    """Move through checkpoints, and see how probable the good and the bad sentence of minimal pairs are.

    `traces`: a trace of `PairAccuracy`, or of several runs a mapping by name; `pairs`: the pairs they were measured on.
    `run`, `step`, `paradigm`, `pair` (its number) choose where to start: by default the first run, its last step and
    the average over paradigms. `onset`: where the abilities broke through in the first run, or a mapping by name.

    In its state an empty paradigm is the average of all, and pair -1 the mean of a paradigm.

    Raises
    ------
    UserError
        If a column or a number is missing, there are no rows, runs were judged on different pairs, the text of one is
        not in `pairs`, or a start value is not among those there are.
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
        self.traces, self.texts = _judged({"the run": traces} if isinstance(traces, pl.DataFrame) else traces, pairs)
        first = next(iter(self.traces))
        self.onsets = onset if isinstance(onset, Mapping) else {first: onset}
        self.accuracy = {name: judged_right(trace) for name, trace in self.traces.items()}
        self.paradigms = self.texts["paradigm"].unique(maintain_order=True).to_list()
        self._races: dict[tuple, pl.DataFrame] = {}
        for name in self.traces:  # a hole or a NaN in any is refused here, not at a click
            self._race(name, ALL, EVERY)
        if pair is not None:
            of = dict(self.texts.select("pair", "paradigm").iter_rows()).get(pair)
            if of is None or (paradigm or of) != of:
                raise UserError(f"there is no pair {pair} in {'this trace' if paradigm is None else paradigm}")
            paradigm = of
        if paradigm is not None and paradigm not in self.paradigms:
            raise UserError(missing("paradigm", paradigm, self.paradigms))
        self.start(run=run, paradigm=paradigm, pair=EVERY if pair is None else pair, step=step)

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        if entry == "run":
            return {name: name for name in self.traces}
        if entry == "paradigm":
            named = {name: spoken(name) for name in self.paradigms}
            return {ALL: f"all (average of {len(named)})", **named} if len(named) > 1 else named
        if entry == "step":
            return numbered(self.traces[now["run"]]["step"].unique().sort())
        good = self.texts.filter(pl.col("paradigm") == now["paradigm"])  # none of the average over paradigms
        several = f"all {len(good):,} (mean)" if len(good) else "pick a paradigm first"
        return {EVERY: several, **{pair: shortened(text, 70) for pair, text in good.select("pair", "good").iter_rows()}}

    def offered(self, entry: str, now: State) -> Mapping[Any, str]:
        """The first pairs of a paradigm, and the one that is looked at."""
        known = super().offered(entry, now)
        kept = {each: label for i, (each, label) in enumerate(known.items()) if i <= OFFERED or each == self.now[entry]}
        return kept if entry == "pair" else known

    @property
    def rows(self) -> pl.DataFrame:
        """The race that is looked at, at every step."""
        return self._race(self.now["run"], self.now["paradigm"], self.now["pair"])

    def moving(self) -> Moving:
        run, one, steps = self.now["run"], self._text(self.now["pair"]), list(self.choices("step", self.now))
        cursor = Cursor(steps)
        told = [f"run {run}"] * (len(self.traces) > 1) + [f"{name}: “{text}”" for name, text in one.items()]
        chart = charts.pair_race(self.rows, cursor, onset=self.onsets.get(run), caption="\n".join(told))
        if len(self.paradigms) > 1:
            chart = beside(chart, pairs_at_step(self._by_paradigm(), cursor, self.now["paradigm"]))
        places = [Place(f"{step:,}", self.in_words(step), self._shown(step)) for step in steps]
        return moved(chart, cursor, self.now["step"], places)

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data behind the views: of the race at all steps, of the paradigms at the one that is looked at."""
        tables = {"pair_race": self.rows}
        if len(self.paradigms) > 1:
            tables["pair_paradigms"] = self._by_paradigm().filter(pl.col("step") == self.now["step"])
        return tables

    def in_words(self, step: int) -> str:
        """Both log-probabilities, their difference and the share of pairs judged right at a step."""
        here = _numbers(self.rows, step)
        run, paradigm, text = self.now["run"], self.now["paradigm"], self._text(self.now["pair"])
        of = f"{run}, step {step:,}" if len(self.traces) > 1 else f"Step {step:,}"
        if text:
            ahead = self.rows.filter(step=step, score="difference")["value"][0] > 0
            return (
                f"{of}: “{text['good']}” {here['good']} nats, “{text['bad']}” {here['bad']} nats; difference "
                f"{here['difference']} nats, {'right' if ahead else 'wrong'} (one pair, no interval)."
            )
        row = self.accuracy[run].filter(step=step, paradigm=paradigm or ALL_PARADIGMS).row(0, named=True)
        mean = "" if paradigm else f" (mean over {len(self.paradigms)} paradigms)"
        return (
            f"{of}: log-probability of the good sentence {here['good']}, of the bad one {here['bad']}, difference "
            f"{here['difference']} nats. Judged right: {row['accuracy']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of "
            f"{row['pairs']:,} pairs{mean}."
        )

    def _text(self, pair: int) -> dict[str, str]:
        """Both sentences of a pair by what they are; of the mean of pairs, none."""
        found = self.texts.filter(pl.col("pair") == pair).select("good", "bad").to_dicts()
        return found[0] if found else {}

    def _race(self, run: str, paradigm: str, pair: int) -> pl.DataFrame:
        key = (run, paradigm, pair)
        if key not in self._races:
            one = None if pair == EVERY else pair
            self._races[key] = pair_race(self.traces[run], paradigm or None, one)
        return self._races[key]

    def _by_paradigm(self) -> pl.DataFrame:
        return self.accuracy[self.now["run"]].filter(pl.col("paradigm") != ALL_PARADIGMS)

    def _shown(self, step: int) -> str:
        """The pair that is looked at, or the first of several, one sentence above the other, as a table."""
        paradigm, wanted = self.now["paradigm"], self.now["pair"]
        own = pl.col("pair") == wanted if wanted != EVERY else pl.col("paradigm") == paradigm
        row = (self.texts if paradigm == ALL else self.texts.filter(own)).row(0, named=True)
        here = _numbers(self._race(self.now["run"], row["paradigm"], row["pair"]), step)
        leads = ["for example", ""] if wanted == EVERY else ["", ""]
        lines = "".join(
            f"<tr><td style='{CELL}'>{lead}</td><td style='{CELL}'>{name}</td><td style='{CELL}'>{text}</td>"
            f"<td style='{CELL}'>{here[name]} nats</td></tr>"
            for lead, name, text in zip(leads, ("good", "bad"), marked(row["good"], row["bad"]), strict=True)
        )
        return f"<table class='{LITERAL}'>{lines}</table>"


def marked(good: str, bad: str) -> tuple[str, str]:
    """Both sentences as HTML whose text is text, the words in which they differ set off."""
    words = good.split(), bad.split()
    html: tuple[list[str], list[str]] = ([], [])
    for same, *ends in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for i, colour in enumerate((BLUE, VERMILION)):
            if part := escape(" ".join(words[i][ends[2 * i] : ends[2 * i + 1]])):
                style = f"color: {colour}; text-decoration: underline"
                html[i].append(part if same == "equal" else f"<b style='{style}'>{part}</b>")
    return " ".join(html[0]), " ".join(html[1])


def _numbers(race: pl.DataFrame, step: int) -> dict[str, str]:
    """Each score at a step for a reader, with its interval if it has one."""
    told = {}
    for row in race.filter(pl.col("step") == step).iter_rows(named=True):
        style = "+.2f" if row["score"] == "difference" else ".1f"
        told[row["score"]] = with_interval(row["value"], (row["low"], row["high"]), style).replace("-", "−")
    return told


def _judged(traces: Mapping[str, pl.DataFrame], pairs: MinimalPairs) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    """The traces by run, and paradigm, pair, good and bad sentence of each pair in them."""
    what = "the minimal-pair explorer"
    if not traces:
        raise UserError(f"{what}: there are no runs; give the trace of PairAccuracy of one or more")
    found: dict[str, pl.DataFrame] = {}
    different = []
    for name, trace in traces.items():
        need_columns(trace, COLUMNS, what)
        if trace.is_empty():
            raise UserError(f"{what}: the trace of {name} has no rows; trace PairAccuracy on some pairs first")
        found[str(name)] = trace.with_columns(pl.col("paradigm").cast(pl.String))
        different.append(found[str(name)].select("paradigm", "pair").unique().sort("paradigm", "pair"))
        if not different[-1].equals(different[0]):
            first = next(iter(found))
            raise UserError(f"{what}: {name} was judged on other pairs than {first}; trace both on the same")
    texts = pairs.frame.join(different[0], on=["paradigm", "pair"], how="semi", maintain_order="left")
    if len(texts) != len(different[0]):
        raise UserError(
            f"{what}: {len(different[0]) - len(texts):,} of {len(different[0]):,} judged pairs are not among "
            f"{pairs.name}; give the pairs that were traced"
        )
    return found, texts

"""Minimal pairs, to step through: whether the good or the bad sentence is ahead, since when, and by how much."""

from collections.abc import Mapping
from difflib import SequenceMatcher
from html import escape
from typing import Any

import altair as alt
import ipywidgets as widgets
import polars as pl

from lmdynamics import charts
from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.analysis.onsets import Onset
from lmdynamics.analysis.syntax import WHOLE, judged_right, pair_race
from lmdynamics.charts.linked import Linked, Place
from lmdynamics.charts.pair_race import pairs_at_step, spoken
from lmdynamics.charts.theme import BLUE, VERMILION
from lmdynamics.corpora.gold import MinimalPairs
from lmdynamics.errors import UserError, shortened
from lmdynamics.explorers.checkpoints import CheckpointSlider, nearest
from lmdynamics.explorers.explorer import Explorer
from lmdynamics.explorers.live import Views
from lmdynamics.explorers.saving import SaveRow, check_among, check_start, restored
from lmdynamics.html import CELL, LITERAL

ALL = ""  # paradigms: their average
EVERY = -1  # pairs: their mean
CURSOR = "pairs_step"
OFFERED = 50  # pairs of a paradigm; any other is reached by its number
COLUMNS = ["step", "paradigm", "pair", "good", "bad", "correct"]


class PairExplorer(Explorer):
    """Move through checkpoints, and see how probable the good and the bad sentence of minimal pairs are.

    `traces`: a trace of `PairAccuracy`, or of several runs a mapping by name; `pairs`: the pairs they were measured on.
    `run`, `step`, `paradigm`, `pair` (its number) choose where to start: by default the first run, its last step and
    the average over paradigms. `onset`: where the abilities broke through in the first run, or a mapping by name.

    Raises
    ------
    UserError
        If a column or a number is missing, there are no rows, runs were judged on different pairs, the text of one is
        not in `pairs`, or a start value is not among those there are.
    """

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
        check_start("run", run, self.traces)
        check_start("paradigm", paradigm, self.paradigms)
        if pair is not None:
            of = dict(self.texts.select("pair", "paradigm").iter_rows()).get(pair)
            if of is None or (paradigm or of) != of:
                raise UserError(f"there is no pair {pair} in {'this trace' if paradigm is None else paradigm}")
            paradigm = of
        steps = self._steps(run or first)
        check_start("step", step, steps)
        self._make_controls()
        several = len(self.paradigms) > 1
        start = paradigm or (ALL if several else self.paradigms[0])
        self._put(run or first, start, EVERY if pair is None else pair, steps[-1] if step is None else step)
        self._bind()

    @property
    def rows(self) -> pl.DataFrame:
        """The race that is looked at, at every step."""
        return self._race(self.run.value, self.paradigm.value, self.pair.value)

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        cursor = alt.param(name=CURSOR, value=self.checkpoint.step)
        run, one = self.run.value, self._text(self.pair.value)
        told = [f"run {run}"] * (len(self.traces) > 1) + [f"{name}: “{text}”" for name, text in one.items()]
        made = {"pair_race": charts.pair_race(self.rows, cursor, onset=self.onsets.get(run), caption="\n".join(told))}
        if len(self.paradigms) > 1:
            made["pair_paradigms"] = pairs_at_step(self._by_paradigm(), cursor, self.paradigm.value)
        return made

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data behind the views: of the race at all steps, of the paradigms at the one that is looked at."""
        tables = {"pair_race": self.rows}
        if len(self.paradigms) > 1:
            tables["pair_paradigms"] = self._by_paradigm().filter(pl.col("step") == self.checkpoint.step)
        return tables

    def linked(self) -> Linked:
        steps = self.checkpoint.steps
        places = [Place(f"{step:,}", {CURSOR: step}, self._in_words(step), step, self._shown(step)) for step in steps]
        return Linked("checkpoint at step", places, steps.index(self.checkpoint.step), self.stills())

    def state(self) -> dict[str, str | int]:
        """What is looked at as literals, for `restore`; an empty paradigm is their average, pair -1 the mean."""
        place = {"run": self.run.value, "paradigm": self.paradigm.value, "pair": self.pair.value}
        return {**place, "step": self.checkpoint.step}

    def restore(self, state: Mapping[str, Any]) -> "PairExplorer":
        present = self.state()
        wanted = restored(state, present)
        check_among("run", wanted["run"], list(self.traces))
        check_among("paradigm", wanted["paradigm"], [value for _, value in self.paradigm.options])
        steps = self._steps(wanted["run"])
        if "pair" not in state and wanted["paradigm"] != present["paradigm"]:
            wanted["pair"] = EVERY
        if "step" not in state:  # another run may not have it
            wanted["step"] = nearest(steps, wanted["step"])
        check_among("pair", wanted["pair"], [EVERY, *self._pairs(wanted["paradigm"])])
        check_among("step", wanted["step"], steps)
        self._put(**wanted)
        return self

    def _make_controls(self) -> None:
        narrow = {"style": {"description_width": "80px"}, "layout": widgets.Layout(width="300px")}
        wide = {**narrow, "layout": widgets.Layout(width="440px")}
        named = [(spoken(name), name) for name in self.paradigms]
        options = [(f"all (average of {len(named)})", ALL), *named] if len(named) > 1 else named
        self.run = widgets.Dropdown(options=list(self.traces), description="run", **narrow)
        self.paradigm = widgets.Dropdown(options=options, description="paradigm", **wide)
        self.pair = widgets.Dropdown(description="pair", **wide)
        self.checkpoint = CheckpointSlider([0])
        self.said, self.text = widgets.HTML(), widgets.HTML()
        self.views = Views(self.checkpoint.clicks)
        self.saving = SaveRow(self)
        pickers = [self.run] * (len(self.traces) > 1) + [self.paradigm] * (len(self.paradigms) > 1) + [self.pair]
        chosen = widgets.HBox(pickers, layout=widgets.Layout(flex_flow="wrap"))
        shown = [chosen, self.checkpoint, self.said, self.text, self.views.widget, self.saving.widget]
        self.widget = widgets.VBox(shown)

    def _bind(self) -> None:
        for control in (self.run, self.paradigm, self.pair):
            control.observe(self._picked, names="value")
        self.checkpoint.observe(lambda _: self._putting or self._moved(), names="step")

    def _picked(self, change: Mapping[str, Any]) -> None:
        """Another run, paradigm or pair; pairs belong to a paradigm, so that another one begins with all of its own."""
        if not self._putting:
            pair = EVERY if change["owner"] is self.paradigm else self.pair.value
            self._put(self.run.value, self.paradigm.value, pair, self.checkpoint.step)

    def _put(self, run: str, paradigm: str, pair: int, step: int) -> None:
        """Set every control, then draw once."""
        self._putting = True
        try:
            self.run.value, self.paradigm.value = run, paradigm
            offered = self._pairs(paradigm)[:OFFERED]
            offered += [pair] * (pair != EVERY and pair not in offered)
            good = dict(self.texts.select("pair", "good").iter_rows())
            every = [(f"all {len(self._pairs(paradigm)):,} (mean)" if offered else "pick a paradigm first", EVERY)]
            self.pair.options = every + [(shortened(good[each], 70), each) for each in offered]
            self.pair.value, self.pair.disabled = pair, not offered
            self.checkpoint.offer(self._steps(run), step)
        finally:
            self._putting = False
        self.views.draw(self.stills(), **{CURSOR: self.checkpoint.step})
        self._moved()

    def _moved(self) -> None:
        step = self.checkpoint.step
        self.views.set(**{CURSOR: step})
        self.said.value = f"<span class='{LITERAL}'>{escape(self._in_words(step))}</span>"
        self.text.value = self._shown(step)

    def _steps(self, run: str) -> list[int]:
        return self.traces[run]["step"].unique().sort().to_list()

    def _pairs(self, paradigm: str) -> list[int]:
        """The pairs of a paradigm; those of the average over paradigms are not looked at one by one."""
        return self.texts.filter(pl.col("paradigm") == paradigm)["pair"].to_list()

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
        return self.accuracy[self.run.value].filter(pl.col("paradigm") != WHOLE)

    def _in_words(self, step: int) -> str:
        """Both log-probabilities, their difference and the share of pairs judged right at a step."""
        here = _numbers(self.rows, step)
        run, paradigm, text = self.run.value, self.paradigm.value, self._text(self.pair.value)
        of = f"{run}, step {step:,}" if len(self.traces) > 1 else f"Step {step:,}"
        if text:
            ahead = self.rows.filter(step=step, score="difference")["value"][0] > 0
            return (
                f"{of}: “{text['good']}” {here['good']} nats, “{text['bad']}” {here['bad']} nats; difference "
                f"{here['difference']} nats, {'right' if ahead else 'wrong'} (one pair, no interval)."
            )
        row = self.accuracy[run].filter(step=step, paradigm=paradigm or WHOLE).row(0, named=True)
        mean = "" if paradigm else f" (mean over {len(self.paradigms)} paradigms)"
        return (
            f"{of}: log-probability of the good sentence {here['good']}, of the bad one {here['bad']}, difference "
            f"{here['difference']} nats. Judged right: {row['accuracy']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of "
            f"{row['pairs']:,} pairs{mean}."
        )

    def _shown(self, step: int) -> str:
        """The pair that is looked at, or the first of several, one sentence above the other, as a table."""
        wanted = self.pair.value
        own = pl.col("pair") == wanted if wanted != EVERY else pl.col("paradigm") == self.paradigm.value
        row = (self.texts if self.paradigm.value == ALL else self.texts.filter(own)).row(0, named=True)
        here = _numbers(self._race(self.run.value, row["paradigm"], row["pair"]), step)
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

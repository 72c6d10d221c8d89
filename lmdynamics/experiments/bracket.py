"""The onset of a curve from few checkpoints: what was measured so far decides which checkpoint is measured next.

A curve that rises once is dated between the same two neighbouring checkpoints as by a full trace, with about log2 of
their number. What a curve does between the checkpoints that were not measured is unknown, and is reported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import polars as pl

from lmdynamics.analysis.syntax import accuracy_by_step
from lmdynamics.errors import UserError
from lmdynamics.hub.client import format_bytes
from lmdynamics.hub.suites import SuiteRun, open_run
from lmdynamics.measurements.losses import PairAccuracy
from lmdynamics.measurements.syntax import UAS
from lmdynamics.measurements.trace import Measurement, trace
from lmdynamics.paths import SUITE
from lmdynamics.progress import bar
from lmdynamics.runs.run import Run


@dataclass(frozen=True)
class Rule:
    """When a curve has risen: its `gap` exceeds that of the first checkpoint by more than `margin`, `k` times running.

    `gap`: the value less its control, from the rows of one checkpoint. A first gap below 0 counts as 0. This is the
    rule of `structure_onset` and `capabilities_onset`, without resamples.
    """

    name: str
    gap: Callable[[pl.DataFrame], float]
    margin: float = 0.1
    k: int = 3


def structure_rule(control: str = "shuffled", source: str = "per_relation", margin: float = 0.1) -> Rule:
    """For `UAS`: a source exceeds its control by `margin`."""

    def gap(rows: pl.DataFrame) -> float:
        sums = rows.group_by("source").agg(pl.col("correct").sum() / pl.col("arcs").sum())
        uas = dict(sums.iter_rows())
        return uas[source] - uas[control]

    return Rule(f"structure ({source} against {control})", gap, margin)


def capabilities_rule(margin: float = 0.1, chance: float = 0.5) -> Rule:
    """For `PairAccuracy`: the mean accuracy over paradigms exceeds chance by `margin`."""

    def gap(rows: pl.DataFrame) -> float:
        return accuracy_by_step(rows)["accuracy"].mean() - chance

    return Rule("capabilities", gap, margin)


@dataclass(frozen=True)
class Bracket:
    """Between which checkpoints a curve rises.

    `step`: the first measured checkpoint of the rise, `before`: the last one measured before it. Both are None without
    an onset; `before` alone is None if the first checkpoint is above its control already, so that the onset is at or
    before it. `gaps`: step, gap, risen, of the measured checkpoints. There is no interval over sentences or pairs.
    """

    rule: Rule
    steps: tuple[int, ...]  # of the run
    before: int | None
    step: int | None
    gaps: pl.DataFrame

    @property
    def between(self) -> int:
        """How many checkpoints between `before` and `step` were not measured: 0 for neighbours."""
        if self.before is None or self.step is None:
            return 0
        return self.steps.index(self.step) - self.steps.index(self.before) - 1

    @property
    def unseen(self) -> list[tuple[int, int, int]]:
        """Where a rise and fall could hide: (step, step, count), `count` ≥ `k` checkpoints that were not measured."""
        places = [self.steps.index(step) for step in self.gaps["step"]]
        stop = len(self.steps) - 1 if self.before is None else self.steps.index(self.before)
        return [
            (self.steps[a], self.steps[b], b - a - 1)
            for a, b in pairwise(places)
            if b <= stop and b - a - 1 >= self.rule.k
        ]

    @property
    def unchecked(self) -> list[int]:
        """Checkpoints of the rise that were not measured: it must last `k` checkpoints, from `step` on."""
        if self.before is None or self.step is None:
            return []
        place = self.steps.index(self.step)
        return [step for step in self.steps[place : place + self.rule.k] if step not in self.gaps["step"]]

    def __str__(self) -> str:
        measured = f"{len(self.gaps)} of {len(self.steps)} checkpoints measured"
        if self.step is None:
            last = self.gaps.row(-1, named=True)
            found = f"no onset up to step {last['step']:,}, where the gap to the control is {last['gap']:+.3f}"
        elif self.before is None:
            found = f"onset at or before step {self.step:,}, the first checkpoint, which is above its control already"
        else:
            found = f"onset between steps {self.before:,} and {self.step:,}"
            found += f", with {self.between} checkpoints between them" if self.between else ", which are neighbours"
        lines = [f"{self.rule.name}: {found} ({measured}; no interval over the data)"]
        if hidden := ", ".join(f"between {a:,} and {b:,} ({count})" for a, b, count in self.unseen):
            kind = "a rise" if self.step is None else "an earlier rise"
            lines.append(f"  not excluded: {kind} that falls again among the checkpoints not measured {hidden}")
        if unchecked := ", ".join(f"{step:,}" for step in self.unchecked):
            lines.append(f"  not excluded: a fall right after it, at steps that were not measured: {unchecked}")
        return "\n".join(lines)


def bracket_onset(
    run: Run,
    measurement: Measurement,
    rule: Rule,
    at_most: int = 12,
    *,
    device: str = "cpu",
    progress: bool | None = None,
    cache: bool = True,
) -> Bracket:
    """Measure at most `at_most` checkpoints of a run, until an onset lies between two neighbours.

    `measurement` and `rule` belong together: `UAS` and `structure_rule()`, `PairAccuracy` and `capabilities_rule()`, or
    one's own. Of a published suite only these checkpoints are downloaded (open it with `download=True`).

    Raises UserError if `at_most` is below 4, or where `trace` does.
    """
    if at_most < 4:
        raise UserError(f"at_most is {at_most}; at least 4 checkpoints are needed: two ends, and two to follow a rise")
    steps, gaps = tuple(run.steps), {}
    untrained = steps[0] == 0
    with bar(min(at_most, len(steps)), f"{rule.name} onset", progress, unit="checkpoint") as meter:
        while len(gaps) < at_most:
            place = next_place(_risen(gaps, rule), len(steps), rule.k)
            if place is None or (0 in gaps and not untrained and gaps[0] > rule.margin):
                break
            rows = trace(run, measurement, steps=[steps[place]], device=device, progress=False, cache=cache)
            gaps[place] = float(rule.gap(rows))
            meter.update()
    risen = _risen(gaps, rule)
    table = pl.DataFrame(
        [(steps[place], gaps[place], risen[place]) for place in sorted(gaps)],
        {"step": pl.Int64, "gap": pl.Float64, "risen": pl.Boolean},
        orient="row",
    )
    if not untrained and gaps[0] > rule.margin:
        return Bracket(rule, steps, None, steps[0], table)
    found = _crossing(risen, len(steps), rule.k)
    before, step = (None, None) if found is None else (steps[found[0]], steps[found[1]])
    return Bracket(rule, steps, before, step, table)


def _risen(gaps: Mapping[int, float], rule: Rule) -> dict[int, bool]:
    """Which measured places have risen beyond the first."""
    start = max(gaps.get(0, 0.0), 0.0)
    return {place: gap - start > rule.margin for place, gap in gaps.items()}


def next_place(risen: Mapping[int, bool], count: int, k: int) -> int | None:
    """The place among `count` checkpoints to measure next; None if a rise is dated and `k` times running.

    First both ends; then halfway within the earliest crossing, until its ends are neighbours; then the `k` − 1
    checkpoints after it. Without any crossing, the middle of the widest gap.
    """
    for end in (0, count - 1):
        if end not in risen:
            return end
    crossing = _crossing(risen, count, k)
    if crossing is None and len(risen) < 2:
        return None
    if crossing is None:
        a, b = max(pairwise(sorted(risen)), key=lambda ends: ends[1] - ends[0])
        return (a + b) // 2 if b - a > 1 else None
    low, high = crossing
    if high - low > 1:
        return (low + high) // 2
    return next((place for place in range(high, high + k) if place not in risen), None)


def _crossing(risen: Mapping[int, bool], count: int, k: int) -> tuple[int, int] | None:
    """The earliest two neighbours among the measured places of which the second alone has risen.

    Left out are those between which no rise can begin that lasts for `k` places, by what is measured after them.
    """
    for low, high in pairwise(sorted(risen)):
        if risen[low] or not risen[high]:
            continue
        starts = range(low + 1, high + 1)  # where the rise may begin
        if any(
            start + k <= count and all(risen.get(place, True) for place in range(start, start + k)) for start in starts
        ):
            return low, high
    return None


def report(
    address: str,
    measure: str = "uas",
    treebank: str = "grammar",
    pairs: str = "grammar",
    at_most: int = 12,
    sentences: int = 1_000,
    margin: float = 0.1,
    device: str = "cpu",
    confirm: Callable[[str], bool] | None = None,
) -> None:
    """Print a run's onset: of structure (`uas`) or of grammaticality (`pairs`); of a suite also the bytes downloaded.

    `confirm` is asked before a download, with its size; without it the download starts at once.

    Raises UserError for another measure, if nothing is confirmed, or where `bracket_onset` does.
    """
    if measure not in ("uas", "pairs"):
        raise UserError(f"there is no onset of {measure!r}; choose uas or pairs")
    run = open_run(address, **({"download": True} if address.startswith(SUITE) else {}))
    before = _bytes_to_download(run)
    if before:
        largest = sum(sorted(before.values(), reverse=True)[:at_most])
        cost = f"all {len(run)} checkpoints: {format_bytes(sum(before.values()))} to download; "
        cost += f"{at_most} of them: at most {format_bytes(largest)}"
        print(cost)
        if confirm is not None and not confirm(cost):
            raise UserError("nothing was downloaded")
    if measure == "uas":
        measurement, rule = UAS(run.treebank(treebank, sentences)), structure_rule(margin=margin)
    else:
        measurement, rule = PairAccuracy(run.pairs(pairs)), capabilities_rule(margin)
    print(bracket_onset(run, measurement, rule, at_most, device=device))
    if before:
        print(f"downloaded {format_bytes(sum(before.values()) - sum(_bytes_to_download(run).values()))}")


def _bytes_to_download(run: Run) -> dict[int, int]:
    """By step, the bytes of a suite that are not on this machine; nothing for other runs."""
    missing = run.missing() if isinstance(run, SuiteRun) else {}
    return {step: sum(file.bytes for file in files) for step, files in missing.items()}

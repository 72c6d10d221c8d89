"""How checkpoints are named: from repositories, revisions and folders to steps, by one table of rules.

The rules are data (`data/suites.toml`); one's own go into `my_suites.toml` under `$LMDYNAMICS_HOME`, or are given as a
regular expression. Everything else, on the hub and in folders, is read by the last rule of that table, `any`. A name is
read whole: what stands before or after the step names a trajectory, so that `big-step-1000` and `step3000-rlhf` are
never checkpoints of one run.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from lmdynamics import paths
from lmdynamics.errors import UserError

RULES = "my_suites.toml"  # the file of one's own
SHOWN = 8  # names of a long list that are shown
PLAIN = "step"  # what the trajectory without a name is called where it must be named
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Place:
    """Where a checkpoint belongs: its step, the tokens seen so far where that is known, and of which trajectory."""

    step: int
    tokens: int | None = None
    part: str = ""


@dataclass(frozen=True)
class Rule:
    """How one suite names its checkpoints, and what is known of it; see `data/suites.toml`."""

    name: str
    repository: str
    revision: str = ""
    commit: str = ""
    title: str = ""
    part: str = ""  # the trajectory meant where none is named
    step_unit: int = 1
    tokens_unit: int = 1
    tokens_per_step: int | None = None
    expected: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()  # trajectories that follow one another, in order
    objective: str | None = None
    licence: str = ""
    homepage: str = ""
    example: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
    faults: tuple[str, ...] = ()

    @property
    def by_repository(self) -> bool:
        """Whether each repository is one checkpoint."""
        return not self.revision

    def covers(self, repository: str) -> bool:
        return re.fullmatch(self.repository, repository) is not None

    def has_commits_on(self, revision: str) -> bool:
        """Whether checkpoints are commits on that branch."""
        return bool(self.commit) and re.fullmatch(self.revision, revision) is not None

    def place(self, repository: str, revision: str = "", commit: str = "") -> Place | None:
        """What names say, a commit's being its title; None if they are no checkpoint's."""
        named = (self.repository, repository) if self.by_repository else (self.revision, revision)
        matches = [re.fullmatch(*named), *([re.fullmatch(self.commit, commit)] if self.commit else [])]
        if not all(matches):
            return None
        said = {name: text for match in matches for name, text in match.groupdict().items()}
        if not said["step"]:
            return None
        step = int(said["step"]) * self.step_unit * (1000 if said.get("thousands") else 1)
        tokens = int(float(said["tokens"]) * self.tokens_unit) if said.get("tokens") else None
        if tokens is None and self.tokens_per_step is not None:
            tokens = step * self.tokens_per_step
        return Place(step, tokens, "-".join(said[name] for name in ("part", "phase", "after") if said.get(name)))

    def expected_steps(self) -> list[int]:
        """The steps that should be there; empty if the rule does not say."""
        return sorted({step * self.step_unit for text in self.expected for step in _spread(text)})


def rules() -> list[Rule]:
    """The user's own, then those that are shipped.

    Raises UserError where the user's file is not one of rules.
    """
    found = []
    for path in (paths.home() / RULES, paths.shipped("suites.toml")):
        if path.is_file():
            try:
                tables = tomllib.loads(path.read_text("utf-8"))
                found += [_rule(name, table) for name, table in tables.items()]
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, AttributeError) as broken:
                raise UserError(f"{path} is not a table of naming rules: {broken}") from None
    return found


def rule_for(repository: str, revisions: str | None = None) -> Rule:
    """The rule for a repository, or for a pattern of several (`google/multiberts-seed_0-step_*`).

    `revisions`: a regular expression with a group `step` (and perhaps `tokens`, `part`), instead of any rule's.

    Raises UserError for an expression that is none, or lacks its group.
    """
    if revisions is not None:
        return _rule(repository, {"repository": re.escape(repository), "revision": revisions})
    several = "*" in repository
    for rule in rules():
        if rule.by_repository and several and any(rule.covers(repository.replace("*", text)) for text in ("0", "0k")):
            return rule
        if not several and rule.covers(repository):
            return rule
    if several:
        before, _, after = repository.rpartition("*")
        own = ".*".join(map(re.escape, before.split("*"))) + r"(?P<step>\d+)" + re.escape(after)
        return _rule(repository, {"repository": own})
    raise UserError(f"{repository} fits no naming rule; data/suites.toml should end with one for all others")


@cache
def folder_rule(revisions: str | None = None) -> Rule:
    """The rule for folders on this machine: the one for repositories that no other rule knows."""
    if revisions is not None:
        return rule_for("a folder", revisions)
    return _rule("any", tomllib.loads(paths.shipped("suites.toml").read_text("utf-8"))["any"])


def by_trajectory(
    named: Iterable[tuple[Place, str, str, Thing]], where: str
) -> tuple[dict[str, dict[int, Thing]], dict[str, list[str]]]:
    """Checkpoints by trajectory and step, and their names by trajectory.

    `named`: place, name, what tells two checkpoints apart (a commit, a path), and the checkpoint itself. Two names for
    the same checkpoint count once.

    Raises UserError where two different checkpoints are named like one step.
    """
    found: dict[str, dict[int, Thing]] = {}
    first: dict[tuple[str, int], tuple[str, str]] = {}
    names: dict[str, list[str]] = {}
    for place, name, identity, thing in named:
        other, known = first.setdefault((place.part, place.step), (name, identity))
        if other != name and known != identity:
            pattern = re.sub("[0-9]+", r"(?P<step>\\d+)", re.escape(other).replace(r"\-", "-"), count=1)
            raise UserError(
                f"{where} has two checkpoints of step {place.step:,}: {other} and {name}; rename or remove one, or say "
                f"which names count with revisions= (--revisions), a regular expression such as '{pattern}'"
            )
        found.setdefault(place.part, {}).setdefault(place.step, thing)
        names.setdefault(place.part, []).append(name)
    return {part: dict(sorted(steps.items())) for part, steps in found.items()}, names


def in_order(parts: Iterable[str], rule: Rule) -> list[str]:
    """Names of trajectories: phases in the order of training, where the rule knows it, then the others by name."""
    known = {phase: number for number, phase in enumerate(rule.phases)}

    def place(part: str) -> tuple:
        numbers = [int(text) if text.isdigit() else text for text in re.split(r"(\d+)", part)]
        return known.get(part or PLAIN, len(known)), [(isinstance(each, str), each) for each in numbers]

    return sorted(parts, key=place)


def choose_trajectory(
    found: Mapping[str, Mapping[int, Thing]], asked: str, rule: Rule, where: str
) -> tuple[str, dict[int, Thing], str]:
    """The trajectory that is meant: its name, its checkpoints by step, and how steps were counted on, in words.

    `asked`: its name; "" means the only one, the rule's own, or the one without a name. `step+ext+decay` joins phases:
    one that counts its steps anew is counted on from the last checkpoint of the phase before it.

    Raises UserError where there are several and none is named, or there is none of that name.
    """
    listed = in_order(found, rule)
    known = ", ".join(f"#{part or PLAIN}" for part in listed[:SHOWN]) + ", …" * (len(listed) > SHOWN)
    if not asked:
        if rule.part in found:
            return rule.part, dict(found[rule.part]), ""
        if len(found) == 1:
            return "", dict(*found.values()), ""  # where there is one, its name would only repeat the repository's
        raise UserError(
            f"{where} holds several trajectories: {known}; name one, as in {where}{known.partition(',')[0]}, or say "
            "how names tell the step with revisions= (--revisions)"
        )
    parts = [asked] if asked in found else asked.split("+")
    parts = ["" if part == PLAIN and part not in found else part for part in parts]
    if unknown := [part for part in parts if part not in found]:
        has = known if any(found) else "one without a name: leave that out"
        raise UserError(f"{where} has no trajectory #{unknown[0]}; it has {has}")
    steps: dict[int, Thing] = {}
    counted = []
    for part in parts:
        last = max(steps, default=0)
        anew = bool(steps) and min(found[part]) <= last
        if anew:
            counted.append(f"#{part}, which counts anew, from step {last:,}")
        for step, thing in found[part].items():
            steps.setdefault(step + last * anew, thing)
    return asked if len(parts) > 1 else parts[0], steps, "; ".join(counted)


def describe_left_out(names: Mapping[str, Sequence[str]], used: str, unread: Sequence[str], rule: Rule) -> str:
    """What is there and not used, in words; "" if nothing: other trajectories, and names that tell no step."""
    taken = [used] if used in names else ["" if part == PLAIN else part for part in used.split("+")]
    others = [part for part in in_order(names, rule) if part not in taken and len(names) > 1]
    said = [f"#{part or PLAIN} ({_shortly(names[part], 2)})" for part in others[:SHOWN]]
    if len(others) > SHOWN:
        said.append(f"{len(others) - SHOWN} trajectories more")
    if unread:
        said.append(f"names that tell no step ({_shortly(unread, SHOWN)})")
    return "; ".join(said)


def _shortly(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f", … {len(names)} in all" if len(names) > most else "")


def chosen_steps(there: Sequence[int], wanted: "str | Sequence[int] | None") -> list[int]:
    """Some of the steps that are there: all (None), a list, `log:20` (spread evenly in the logarithm), `0:1000:100`.

    Of `log:N` as many as there are distinct nearest ones, the first and the last among them.

    Raises UserError for a step that is not there, or something that says no steps.
    """
    if wanted is None or wanted == "" or wanted == "all":
        return list(there)
    if isinstance(wanted, str) and (match := re.fullmatch(r"log:(\d+)", wanted)):
        return _log_spaced(there, int(match[1]))
    if isinstance(wanted, str) and (match := re.fullmatch(r"(\d*):(\d*)(?::(\d+))?", wanted)):
        first, last, every = int(match[1] or 0), int(match[2] or max(there)), int(match[3] or 0)
        found = [step for step in there if first <= step <= last and (not every or (step - first) % every == 0)]
        if not found:
            raise UserError(f"no step is in {wanted!r}; there are {len(there)} from {there[0]:,} to {there[-1]:,}")
        return found
    try:
        numbers = [int(part) for part in wanted.split(",")] if isinstance(wanted, str) else [int(s) for s in wanted]
    except (TypeError, ValueError):
        raise UserError(
            f"steps={wanted!r} says no steps; give a list (0,512,143000), log:20, or a range (0:10000:1000)"
        ) from None
    if lacking := sorted(set(numbers) - set(there)):
        raise UserError(f"there is no step {lacking[0]}; the nearest are {nearest(there, lacking[0])}")
    return sorted(set(numbers))


def nearest(there: Iterable[int], step: int) -> str:
    """The three steps that lie nearest to one, for a sentence."""
    return ", ".join(map(str, sorted(sorted(there, key=lambda other: abs(other - step))[:3])))


def _log_spaced(there: Sequence[int], count: int) -> list[int]:
    if count < 1:
        raise UserError(f"log:{count} says no steps; at least log:1 is needed")
    if count >= len(there):
        return list(there)
    if count == 1:
        return [there[-1]]
    low, high = there[0] + 1, there[-1] + 1
    targets = [low * (high / low) ** (i / (count - 1)) - 1 for i in range(count)]
    return sorted({min(there, key=lambda step: abs(step - target)) for target in targets})


def _spread(text: str) -> range:
    first, _, rest = text.partition(":")
    last, _, every = rest.partition(":")
    return range(int(first), int(last or first) + 1, int(every or 1))


def _rule(name: str, table: Mapping[str, Any]) -> Rule:
    lists = {key: tuple(table[key]) for key in ("expected", "faults", "phases") if key in table}
    try:
        rule = Rule(name=name, **{**table, **lists})
    except TypeError as wrong:
        raise UserError(f"the naming rule {name} has a setting it does not know: {wrong}") from None
    for expression in filter(None, (rule.commit, rule.revision, rule.repository)):
        try:
            re.compile(expression)
        except re.error as wrong:
            raise UserError(f"{expression!r} in the rule {name} is not a regular expression: {wrong}") from None
    told = rule.commit or rule.revision or rule.repository
    if "step" not in re.compile(told).groupindex:
        raise UserError(f"{told!r} has no group (?P<step>\\d+), so it does not tell the step of a checkpoint")
    return rule

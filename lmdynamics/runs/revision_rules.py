"""Rules that read the step of a checkpoint from the names of repositories, revisions and folders.

The rules are data (`data/suites.toml`); a user's own are in `my_suites.toml` under `$LMDYNAMICS_HOME`, or given as a
regular expression. All other names, on the hub and in folders, are read by the last rule of the table, `any`. A rule
matches the whole name: text before or after the step names a trajectory, so that `big-step-1000` and `step3000-rlhf`
are never checkpoints of one run.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from lmdynamics import paths
from lmdynamics.errors import UserError

RULES_FILE = "my_suites.toml"  # the user's rules
MAX_LISTED = 8  # names of a long list
UNNAMED = "step"  # stands for the trajectory without a name
Item = TypeVar("Item")


@dataclass(frozen=True)
class Position:
    """A checkpoint's position: its step, the tokens seen so far if known, and its trajectory (`part`)."""

    step: int
    tokens: int | None = None
    part: str = ""


@dataclass(frozen=True)
class Rule:
    """How one suite names its checkpoints, and facts about it; see `data/suites.toml`."""

    name: str
    repository: str
    revision: str = ""
    commit: str = ""
    title: str = ""
    part: str = ""  # the default trajectory
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

    def parse(self, repository: str, revision: str = "", commit: str = "") -> Position | None:
        """The position that these names state (`commit`: its title); None if they do not name a checkpoint."""
        pattern, name = (self.repository, repository) if self.by_repository else (self.revision, revision)
        matches = [re.fullmatch(pattern, name), *([re.fullmatch(self.commit, commit)] if self.commit else [])]
        if not all(matches):
            return None
        groups = {name: text for match in matches for name, text in match.groupdict().items()}
        if not groups["step"]:
            return None
        step = int(groups["step"]) * self.step_unit * (1000 if groups.get("thousands") else 1)
        tokens = int(float(groups["tokens"]) * self.tokens_unit) if groups.get("tokens") else None
        if tokens is None and self.tokens_per_step is not None:
            tokens = step * self.tokens_per_step
        return Position(step, tokens, "-".join(groups[n] for n in ("part", "phase", "after") if groups.get(n)))

    def expected_steps(self) -> list[int]:
        """The steps that the suite should have; empty if the rule does not list them."""
        return sorted({step * self.step_unit for text in self.expected for step in _parse_range(text)})


def rules() -> list[Rule]:
    """The user's rules, then the built-in ones.

    Raises UserError if the user's file does not hold rules.
    """
    all_rules = []
    for path in (paths.home() / RULES_FILE, paths.shipped("suites.toml")):
        if path.is_file():
            try:
                tables = tomllib.loads(path.read_text("utf-8"))
                all_rules += [_rule(name, table) for name, table in tables.items()]
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, AttributeError) as broken:
                raise UserError(f"{path} is not a table of revision rules: {broken}") from None
    return all_rules


def rule_for(repository: str, revisions: str | None = None) -> Rule:
    """The rule for a repository, or for a pattern of several (`google/multiberts-seed_0-step_*`).

    `revisions`: a regular expression with a group `step` (optional: `tokens`, `part`), used instead of the rules.

    Raises UserError for an invalid expression, or one without the group.
    """
    if revisions is not None:
        return _rule(repository, {"repository": re.escape(repository), "revision": revisions})
    starred = "*" in repository
    for rule in rules():
        if rule.by_repository and starred and any(rule.covers(repository.replace("*", text)) for text in ("0", "0k")):
            return rule
        if not starred and rule.covers(repository):
            return rule
    if starred:
        before, _, after = repository.rpartition("*")
        pattern = ".*".join(map(re.escape, before.split("*"))) + r"(?P<step>\d+)" + re.escape(after)
        return _rule(repository, {"repository": pattern})
    raise UserError(f"{repository} matches no revision rule; data/suites.toml should end with one for all other names")


@cache
def folder_rule(revisions: str | None = None) -> Rule:
    """The rule for folders on this machine: that for repositories without a rule of their own."""
    if revisions is not None:
        return rule_for("a folder", revisions)
    return _rule("any", tomllib.loads(paths.shipped("suites.toml").read_text("utf-8"))["any"])


def group_checkpoints(
    named: Iterable[tuple[Position, str, str, Item]], source: str
) -> tuple[dict[str, dict[int, Item]], dict[str, list[str]]]:
    """Checkpoints by trajectory and step, and their names by trajectory.

    `named`: position, name, identity (a commit, a path), and the checkpoint itself. Two names for the same checkpoint
    count once.

    Raises UserError if two different checkpoints have the same step.
    """
    trajectories: dict[str, dict[int, Item]] = {}
    first: dict[tuple[str, int], tuple[str, str]] = {}
    names: dict[str, list[str]] = {}
    for position, name, identity, item in named:
        other, known = first.setdefault((position.part, position.step), (name, identity))
        if other != name and known != identity:
            pattern = re.sub("[0-9]+", r"(?P<step>\\d+)", re.escape(other).replace(r"\-", "-"), count=1)
            raise UserError(
                f"{source} has two checkpoints of step {position.step:,}: {other} and {name}; rename or remove one, or "
                f"choose names with revisions= (--revisions), a regular expression such as '{pattern}'"
            )
        trajectories.setdefault(position.part, {}).setdefault(position.step, item)
        names.setdefault(position.part, []).append(name)
    return {part: dict(sorted(steps.items())) for part, steps in trajectories.items()}, names


def sort_trajectories(parts: Iterable[str], rule: Rule) -> list[str]:
    """Names of trajectories: phases in the order of training, if the rule has it, then the others by name."""
    known = {phase: number for number, phase in enumerate(rule.phases)}

    def sort_key(part: str) -> tuple:
        numbers = [int(text) if text.isdigit() else text for text in re.split(r"(\d+)", part)]
        return known.get(part or UNNAMED, len(known)), [(isinstance(each, str), each) for each in numbers]

    return sorted(parts, key=sort_key)


def choose_trajectory(
    trajectories: Mapping[str, Mapping[int, Item]], name: str, rule: Rule, source: str
) -> tuple[str, dict[int, Item], str]:
    """One trajectory: its name, its checkpoints by step, and a text that states which steps were renumbered.

    `name`: "" means the only one, the rule's default, or the one without a name. `step+ext+decay` joins phases: if the
    steps of one start again, they are renumbered to continue from the last checkpoint of the phase before it.

    Raises UserError if there are several and none is named, or none has that name.
    """
    listed = sort_trajectories(trajectories, rule)
    known = ", ".join(f"#{part or UNNAMED}" for part in listed[:MAX_LISTED]) + ", …" * (len(listed) > MAX_LISTED)
    if not name:
        if rule.part in trajectories:
            return rule.part, dict(trajectories[rule.part]), ""
        if len(trajectories) == 1:
            return "", dict(*trajectories.values()), ""  # the name of a single one would only repeat the repository's
        raise UserError(
            f"{source} holds several trajectories: {known}; name one, as in {source}{known.partition(',')[0]}, or "
            "choose names with revisions= (--revisions)"
        )
    parts = [name] if name in trajectories else name.split("+")
    parts = ["" if part == UNNAMED and part not in trajectories else part for part in parts]
    if unknown := [part for part in parts if part not in trajectories]:
        options = known if any(trajectories) else "one without a name: leave that out"
        raise UserError(f"{source} has no trajectory #{unknown[0]}; it has {options}")
    steps: dict[int, Item] = {}
    renumbered = []
    for part in parts:
        last = max(steps, default=0)
        restarts = bool(steps) and min(trajectories[part]) <= last
        if restarts:
            renumbered.append(f"#{part}, to continue from step {last:,}")
        for step, item in trajectories[part].items():
            steps.setdefault(step + last * restarts, item)
    return name if len(parts) > 1 else parts[0], steps, "; ".join(renumbered)


def describe_unused(names: Mapping[str, Sequence[str]], used: str, unread: Sequence[str], rule: Rule) -> str:
    """Other trajectories, and names without a step, in words; "" if there are none."""
    used_parts = [used] if used in names else ["" if part == UNNAMED else part for part in used.split("+")]
    unused = [part for part in sort_trajectories(names, rule) if part not in used_parts and len(names) > 1]
    texts = [f"#{part or UNNAMED} ({_shortened_list(names[part], 2)})" for part in unused[:MAX_LISTED]]
    if len(unused) > MAX_LISTED:
        texts.append(f"{len(unused) - MAX_LISTED} more trajectories")
    if unread:
        texts.append(f"names without a step ({_shortened_list(unread, MAX_LISTED)})")
    return "; ".join(texts)


def _shortened_list(names: Sequence[str], length: int) -> str:
    return ", ".join(names[:length]) + (f", … {len(names)} in all" if len(names) > length else "")


def select_steps(steps: Sequence[int], selection: "str | Sequence[int] | None") -> list[int]:
    """Some of the steps: all (None), a list, `log:20` (evenly spaced in the logarithm), `0:1000:100`.

    `log:N` selects the steps nearest to N targets, without duplicates; the first and the last are among them.

    Raises UserError for a step that does not exist, or an invalid selection.
    """
    if selection is None or selection == "" or selection == "all":
        return list(steps)
    if isinstance(selection, str) and (match := re.fullmatch(r"log:(\d+)", selection)):
        return _log_spaced(steps, int(match[1]))
    if isinstance(selection, str) and (match := re.fullmatch(r"(\d*):(\d*)(?::(\d+))?", selection)):
        first, last, every = int(match[1] or 0), int(match[2] or max(steps)), int(match[3] or 0)
        matches = [step for step in steps if first <= step <= last and (not every or (step - first) % every == 0)]
        if not matches:
            raise UserError(f"no step is in {selection!r}; there are {len(steps)} from {steps[0]:,} to {steps[-1]:,}")
        return matches
    try:
        numbers = [int(step) for step in (selection.split(",") if isinstance(selection, str) else selection)]
    except (TypeError, ValueError):
        raise UserError(
            f"steps={selection!r} selects no steps; give a list (0,512,143000), log:20, or a range (0:10000:1000)"
        ) from None
    if missing := sorted(set(numbers) - set(steps)):
        raise UserError(f"there is no step {missing[0]}; the nearest are {nearest(steps, missing[0])}")
    return sorted(set(numbers))


def nearest(steps: Iterable[int], step: int) -> str:
    """The three steps nearest to one, for a message."""
    return ", ".join(map(str, sorted(sorted(steps, key=lambda other: abs(other - step))[:3])))


def _log_spaced(steps: Sequence[int], count: int) -> list[int]:
    if count < 1:
        raise UserError(f"log:{count} selects no steps; at least log:1 is needed")
    if count >= len(steps):
        return list(steps)
    if count == 1:
        return [steps[-1]]
    low, high = steps[0] + 1, steps[-1] + 1
    targets = [low * (high / low) ** (i / (count - 1)) - 1 for i in range(count)]
    return sorted({min(steps, key=lambda step: abs(step - target)) for target in targets})


def _parse_range(text: str) -> range:
    first, _, remainder = text.partition(":")
    last, _, every = remainder.partition(":")
    return range(int(first), int(last or first) + 1, int(every or 1))


def _rule(name: str, table: Mapping[str, Any]) -> Rule:
    lists = {key: tuple(table[key]) for key in ("expected", "faults", "phases") if key in table}
    try:
        rule = Rule(name=name, **{**table, **lists})
    except TypeError as wrong:
        raise UserError(f"the revision rule {name} has an unknown setting: {wrong}") from None
    for expression in filter(None, (rule.commit, rule.revision, rule.repository)):
        try:
            re.compile(expression)
        except re.error as wrong:
            raise UserError(f"{expression!r} in the rule {name} is not a regular expression: {wrong}") from None
    expression = rule.commit or rule.revision or rule.repository
    if "step" not in re.compile(expression).groupindex:
        raise UserError(f"{expression!r} has no group (?P<step>\\d+), so it does not capture the step of a checkpoint")
    return rule

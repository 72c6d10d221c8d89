"""Whether a published suite is what it says: from its listings alone, and, of what is here, from the weights.

Published checkpoints have been wrong: the same file under different steps, steps left out, branches moved. Hashes and
sizes tell most of it without a download.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmdynamics import paths
from lmdynamics.corpora.fetch import is_safe
from lmdynamics.progress import bar
from lmdynamics.runs.hub import told_bytes
from lmdynamics.runs.naming import Rule, chosen_steps, rule_for
from lmdynamics.runs.pins import FILE, Pin, list_checkpoints, look, read_address, read_pins

if TYPE_CHECKING:
    from lmdynamics.runs.suites import SuiteRun  # and torch with it, which listings need not

MANY = 6  # faults of a kind, beyond which they are told together
FARTHEST = 1.3  # relative distance of neighbours; of unrelated random weights it is the square root of 2


@dataclass(frozen=True)
class Fault:
    """Something a suite is wrong about. `step`: None where it concerns all of it."""

    kind: str
    step: int | None
    said: str


@dataclass(frozen=True)
class Audit:
    """What was looked at and what was found. `listed`: how many checkpoints there are, of which `steps` were looked at.
    `bytes`: of their weights together, by the listings."""

    name: str
    steps: tuple[int, ...]
    listed: int
    bytes: int
    faults: tuple[Fault, ...]


def audit(address: str, revisions: str | None = None, progress: bool | None = None) -> list[Audit]:
    """Look at every checkpoint of a suite, one audit per trajectory, without downloading weights.

    Kinds of faults: `identical` (the same weights under several steps), `missing step` (the suite's rule expects it),
    `missing weights`, `missing tokenizer`, `size` (weights unlike all others in size), `moved` (a branch points at
    another commit than when it was pinned here), `path` (a file name that leads out of its folder).

    Raises
    ------
    UserError
        For an address that is none, a repository or trajectory that is not there, or no network.
    """
    asked = read_address(address)
    rule = rule_for(asked.repository, revisions)
    found = list_checkpoints(asked, rule)
    parts = [asked.part] if asked.part else sorted(found)
    pinned = _pinned(asked.repository)
    audits = []
    for part in parts:
        pins = found[part]
        steps = chosen_steps(list(pins), asked.steps)
        with bar(len(steps), f"{asked.repository}{'#' * bool(part)}{part}", progress, unit="revision") as shown:
            seen = look([pins[step] for step in steps])
            shown.update(len(steps))
        faults = [*_moved(seen, pinned), *_missing_steps(steps, rule, asked.steps), *faults_of(seen)]
        name = f"{asked.repository}#{part}" if part and len(found) > 1 else asked.repository
        size = sum(file.bytes for pin in seen for file in pin.weights)
        audits.append(Audit(name, tuple(steps), len(pins), size, tuple(faults)))
    return audits


def faults_of(pins: Sequence[Pin]) -> Iterator[Fault]:
    """What listings alone tell."""
    by_content: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for pin in pins:
        if pin.weights:
            by_content[tuple(file.identity for file in pin.weights)].append(pin.step)
        else:
            yield Fault("missing weights", pin.step, f"{pin.repository} {pin.revision} has no weights")
    for steps in by_content.values():
        if len(steps) > 1:
            listed = ", ".join(f"{step:,}" for step in steps)
            yield Fault("identical", steps[1], f"steps {listed} have the same weights, to the byte")
    with_tokenizer = [pin for pin in pins if pin.tokenizer]
    if not with_tokenizer:
        yield Fault("missing tokenizer", None, "no checkpoint has a tokenizer; that of the main branch would be used")
    else:
        for pin in pins:
            if not pin.tokenizer:
                yield Fault("missing tokenizer", pin.step, f"{pin.revision} has no tokenizer, others have")
    yield from _odd_sizes(pins)
    for pin in pins:
        for file in pin.files or ():
            if leads_out(file.path):
                yield Fault("path", pin.step, f"{pin.revision} names a file {file.path!r}; it is never asked for")


def leads_out(path: str) -> bool:
    """Whether a name may lead out of the folder it is joined to; a colon does on some systems."""
    return not is_safe(path) or ":" in path


def _odd_sizes(pins: Sequence[Pin]) -> Iterator[Fault]:
    """Weights unlike most in size, told apart by format and number of files: each of these has a size of its own.

    A file's head may differ by some bytes, so within a thousandth sizes count as equal.
    """
    groups: dict[tuple[str, int], list[tuple[Pin, int]]] = defaultdict(list)
    for pin in pins:
        if pin.weights:
            kind = Path(pin.weights[0].path).suffix
            groups[kind, len(pin.weights)].append((pin, sum(file.bytes for file in pin.weights)))
    for group in groups.values():
        usual = Counter(size for _, size in group).most_common(1)[0][0]
        for pin, size in group:
            if abs(size - usual) > max(usual / 1000, 4096):
                yield Fault(
                    "size", pin.step, f"its weights are {told_bytes(size)}, most others' are {told_bytes(usual)}"
                )


def _missing_steps(steps: Sequence[int], rule: Rule, chosen: str) -> Iterator[Fault]:
    if not chosen:
        for step in sorted(set(rule.expected_steps()) - set(steps)):
            yield Fault("missing step", step, f"the suite should have step {step:,}")


def _pinned(repository: str) -> dict[str, str]:
    """Commits that were pinned here, by repository and revision."""
    found = {}
    for file in (paths.home() / "suites").glob(f"{repository.replace('/', '--').replace('*', '+')}*/{FILE}"):
        for pin in read_pins(file.parent).values():
            found[f"{pin.repository} {pin.revision} {pin.step}"] = pin.commit
    return found


def _moved(pins: Sequence[Pin], pinned: dict[str, str]) -> Iterator[Fault]:
    for pin in pins:
        before = pinned.get(f"{pin.repository} {pin.revision} {pin.step}")
        if before is not None and before != pin.commit:
            said = f"{pin.revision} pointed at {before[:12]} when it was pinned here, now at {pin.commit[:12]}"
            yield Fault("moved", pin.step, f"{said}; ?refresh=yes pins it anew")


def weights_audit(run: "SuiteRun", progress: bool | None = None) -> Audit:
    """Of the checkpoints that are on this machine: parameters that are not finite, and neighbours that are equal or
    as far apart as unrelated ones.

    The distance of two checkpoints is ‖a - b‖ / √(‖a‖ ‖b‖) over all parameters.
    """
    missing = run.missing()
    here = [step for step in run.steps if step not in missing]
    size = sum(file.bytes for step in here for file in run.pins[step].weights)
    faults, before = [], None
    with bar(len(here), f"weights of {run.name}", progress, unit="checkpoint") as shown:
        for step in here:
            weights = {name: tensor.double() for name, tensor in run[step].model().state_dict().items()}
            if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
                faults.append(Fault("not finite", step, f"{broken[0]} and {len(broken) - 1} more hold NaN or infinity"))
            elif before is not None:
                faults += _distance_faults(before, (step, weights))
            before = (step, weights) if not broken else None
            shown.update()
    return Audit(run.name, tuple(here), len(run), size, tuple(faults))


def _distance_faults(before, now) -> Iterator[Fault]:
    (first, old), (step, new) = before, now
    squared, sizes = 0.0, [0.0, 0.0]
    for name in old.keys() & new.keys():
        squared += float((old[name] - new[name]).square().sum())
        sizes = [sizes[0] + float(old[name].square().sum()), sizes[1] + float(new[name].square().sum())]
    distance = math.sqrt(squared / max(math.sqrt(sizes[0] * sizes[1]), 1e-300))
    if old.keys() != new.keys():
        yield Fault("parameters", step, f"it does not have the same parameters as step {first:,}")
    elif distance == 0:
        yield Fault("equal", step, f"its parameters equal those of step {first:,}")
    elif distance > FARTHEST:
        yield Fault(
            "far", step, f"it is as far from step {first:,} (relative distance {distance:.2f}) as another model"
        )


def _rows(faults: Sequence[tuple[str, Fault]]) -> Iterator[tuple[str, str, str, str]]:
    """Suite, kind, step and what was found; many of a kind on one line."""
    alike: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for name, fault in faults:
        alike[name, fault.kind].append(fault)
    for (name, kind), found in alike.items():
        if len(found) > MANY:
            steps = [f"{fault.step:,}" for fault in found if fault.step is not None]
            yield name, kind, f"{len(found)} steps", f"{', '.join(steps[:MANY])}, … {steps[-1]}"
        else:
            yield from ((name, kind, "" if f.step is None else f"{f.step:,}", f.said) for f in found)


def report(address: str, revisions: str | None, weights: bool, as_json: bool) -> int:
    """Print an audit, as a table or as JSON; 0 if the suite is what it says, 1 if not."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lmdynamics.errors import printable

    audits = audit(address, revisions, progress=None)
    inside = None
    if weights:
        from lmdynamics.runs.suites import open_suite

        inside = weights_audit(open_suite(address, revisions=revisions))
    everything = [*audits, *([inside] if inside else [])]
    faults = [(each.name, fault) for each in everything for fault in each.faults]
    if as_json:
        content = {"audits": [asdict(each) for each in audits], "weights": inside and asdict(inside)}
        print(json.dumps(content, indent=1))
        return int(bool(faults))
    console = Console(width=None if Console().is_terminal else 160)
    if faults:
        table = Table("suite", "fault", "step", "what was found")
        for row in _rows(faults):
            table.add_row(*(escape(printable(text)) for text in row))
        console.print(table)
    for each in everything:
        found = len(each.faults)
        said = f"{found} fault{'s' * (found != 1)}" if found else "no fault found"
        steps = f"{len(each.steps)} of {each.listed} checkpoints"
        looked = f"looked into the weights of {steps}" if each is inside else f"looked at the listings of {steps}"
        console.print(f"{each.name}: {looked}, {told_bytes(each.bytes)} of weights: {said}", markup=False)
    if inside and len(inside.steps) < inside.listed:
        console.print(f"not on this machine: {inside.listed - len(inside.steps)} of {inside.listed}", markup=False)
    return int(bool(faults))

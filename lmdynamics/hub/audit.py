"""Audits of a published suite or a folder of checkpoints: faults in its listings and in its tensors.

Published checkpoints have had these faults: the same file under different steps, one shard of another checkpoint,
half of a trajectory equal to the final model, a step 0 of another initialisation, missing steps, moved branches.
Hashes and sizes show most of them without a download; `weights` also reads headers and some values of the files.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lmdynamics import paths
from lmdynamics.errors import UserError
from lmdynamics.hub.checkpoints import REQUESTS, Pin, folder_pin, list_checkpoints, list_files, read_address, read_suite
from lmdynamics.hub.client import format_bytes
from lmdynamics.hub.faults import listing_faults, missing_steps, tensor_faults, weight_identity
from lmdynamics.hub.tensors import Samples, read_samples
from lmdynamics.progress import bar
from lmdynamics.runs import faults
from lmdynamics.runs.faults import Fault
from lmdynamics.runs.folders import find_folder, read_folder
from lmdynamics.runs.revision_rules import UNNAMED, folder_rule, rule_for, select_steps, sort_trajectories

MAX_LISTED = 6  # faults of a kind; more are summarised in one row


@dataclass(frozen=True)
class Audit:
    """The scope of an audit and the faults it found.

    `listed`: how many checkpoints exist; `steps`: those examined. `bytes`: of their weights together, as listed.
    `opened`: steps whose weights were read; `tensors` of each, of `all_tensors`; `read`: bytes that were downloaded.
    `notes`: remarks that are not faults, such as names that are not used.
    """

    name: str
    steps: tuple[int, ...]
    listed: int
    bytes: int
    faults: tuple[Fault, ...]
    notes: tuple[str, ...] = ()
    opened: tuple[int, ...] = ()
    tensors: int = 0
    all_tensors: int = 0
    read: int = 0


def audit(
    address: str, revisions: str | None = None, progress: bool | None = None, *, weights: bool = False
) -> list[Audit]:
    """Audit every checkpoint of a suite or a folder, one audit per trajectory, without downloading weights.

    Kinds of faults: `identical` (the same weights under several steps), `shard` (one of their files), `missing step`,
    `missing weights`, `missing tokenizer`, `size` (weights of another size than most), `moved` (a branch points at
    another commit than when it was pinned here), `path` (a file name that points out of its folder), `trajectories`
    (names of several in one repository). With `weights`, which reads a header and some values of safetensors, and whole
    files on this machine: `not finite`, `parameters`, `equal`, `tensor` (one copied from another step, or that jumps),
    `initialisation` (a first step of another initialisation), `far` (a checkpoint of another model).

    Raises UserError for an invalid address, a missing repository, trajectory or folder, or no network.
    """
    if not address.startswith(paths.SUITE):
        return [_folder_audit(address, revisions, progress, weights)]
    parsed = read_address(address)
    rule = rule_for(parsed.repository, revisions)
    listing = list_checkpoints(parsed, rule)
    parts = [parsed.part] if parsed.part else sort_trajectories(listing.trajectories, rule)
    pinned = _pinned_commits(parsed.repository)
    main = list_files([listing.main])[0] if listing.main else None
    audits = []
    for part in parts:
        suite = listing.trajectory(part or UNNAMED)
        steps = select_steps(list(suite.pins), parsed.steps)
        several = part and len(listing.trajectories) > 1
        name = f"{parsed.repository}#{part}" if several else parsed.repository
        with bar(len(steps), name, progress, unit="revision") as progress_bar:
            pins = list_files([suite.pins[step] for step in steps])
            progress_bar.update(len(steps))
        problems = [*_moved(pins, pinned)] + ([] if parsed.steps else [*missing_steps(steps, rule)])
        if rule.name == "any" and len(listing.trajectories) > 1 and not parsed.part and part == parts[0]:
            listed = ", ".join(f"#{each or UNNAMED} ({len(listing.trajectories[each])} checkpoints)" for each in parts)
            problems.append(Fault("trajectories", None, f"its names belong to several, {listed}: they are not one run"))
        unread = [f"names without a step: {', '.join(listing.unread)}"] * bool(listing.unread and part == parts[0])
        notes = (*unread, *_describe_main(pins, main))
        audits.append(_audit(name, pins, len(suite.pins), problems, main, notes, weights, progress))
    return audits


def _audit(name, pins, listed, problems, main, notes, weights, progress) -> Audit:
    """Compare listed checkpoints, and save the faults found."""
    problems = [*problems, *listing_faults(pins, main)]
    size = sum(file.bytes for pin in pins for file in pin.weights)
    samples: dict[int, Samples] = {}
    if weights:
        unreadable, samples = _read_weights(name, pins, progress)
        problems += [*unreadable, *tensor_faults(samples)]
    faults.save_audit(name, problems, {pin.step: pin.signature for pin in pins}, tuple(samples))
    steps = tuple(pin.step for pin in pins)
    sizes = [(len(each.tensors), len(each.shapes)) for each in samples.values()]
    tensors, all_tensors = max(sizes, default=(0, 0))
    read = sum(each.read() for each in samples.values())
    return Audit(name, steps, listed, size, tuple(problems), tuple(notes), tuple(samples), tensors, all_tensors, read)


def _read_weights(name: str, pins: Sequence[Pin], progress: bool | None) -> tuple[list[Fault], dict[int, Samples]]:
    """Some values of each checkpoint's tensors by step, and a fault for each that cannot be read."""
    samples: dict[int, Samples] = {}
    unread: list[Fault] = []

    def read(pin: Pin) -> Samples | UserError | None:
        try:
            return read_samples(pin)
        except UserError as unreadable:
            return unreadable

    pins, title = [pin for pin in pins if pin.weights], f"weights of {name}"
    with ThreadPoolExecutor(REQUESTS) as threads, bar(len(pins), title, progress, unit="step") as progress_bar:
        for pin, result in zip(pins, threads.map(read, pins), strict=True):
            if isinstance(result, UserError):
                unread.append(Fault("unreadable", pin.step, str(result)))
            elif result is not None:
                samples[pin.step] = result
            progress_bar.update()
    return unread, samples


def _describe_main(pins: Sequence[Pin], main: Pin | None) -> Iterator[str]:
    """Which step the main branch equals, if not the last."""
    if main and main.weights and pins:
        steps = [pin.step for pin in pins if weight_identity(pin) == weight_identity(main)]
        if pins[-1].step not in steps:
            listed = f"step {faults.listed_steps(steps)}" if steps else "no listed step"
            yield f"the branch {main.revision} has the weights of {listed}"


def _folder_audit(address: str, revisions: str | None, progress: bool | None, weights: bool) -> Audit:
    """The audit of a run or a plain folder, with hashes from manifests or computed now."""
    folder, part = find_folder(address)
    content = read_folder(folder, part, revisions)
    if not content.steps:
        raise UserError(f"{folder} has no checkpoints (step-000512/, checkpoint-500/ ...)")
    with bar(len(content.steps), folder.name, progress, unit="checkpoint") as progress_bar:
        pins = []
        for step, path in content.steps.items():
            pins.append(folder_pin(step, path, hashed=True))
            progress_bar.update()
    name = faults.folder_name(folder, part)
    rule, is_run = folder_rule(revisions), (folder / "run.json").exists()
    missing = [] if is_run else [*missing_steps(list(content.steps), rule)]
    return _audit(name, pins, len(pins), missing, None, content.notes, weights, progress)


def _pinned_commits(repository: str) -> dict[str, str]:
    """Commits that are pinned on this machine, by repository, revision and step."""
    folders = (paths.home() / "suites").glob(f"{repository.replace('/', '--').replace('*', '+')}*")
    pins = [pin for folder in folders if (suite := read_suite(folder)) for pin in suite.pins.values()]
    return {f"{pin.repository} {pin.revision} {pin.step}": pin.commit for pin in pins}


def _moved(pins: Sequence[Pin], pinned: dict[str, str]) -> Iterator[Fault]:
    for pin in pins:
        before = pinned.get(f"{pin.repository} {pin.revision} {pin.step}")
        if before is not None and before != pin.commit:
            change = f"{pin.revision} pointed at {before[:12]} when it was pinned here, now at {pin.commit[:12]}"
            yield Fault("moved", pin.step, f"{change}; ?refresh=yes pins the new commit")


def _rows(faults: Sequence[tuple[str, Fault]]) -> Iterator[tuple[str, str, str, str]]:
    """Suite, kind, step and description; many of one kind in one row."""
    groups: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for name, fault in faults:
        groups[name, fault.kind].append(fault)
    for (name, kind), group in groups.items():
        if len(group) > MAX_LISTED:
            steps = [f"{fault.step:,}" for fault in group if fault.step is not None]
            yield name, kind, f"{len(group)} steps", f"{', '.join(steps[:MAX_LISTED])}, … {steps[-1]}"
        else:
            yield from ((name, kind, "" if f.step is None else f"{f.step:,}", f.said) for f in group)


def report(address: str, revisions: str | None, weights: bool, as_json: bool) -> int:
    """Print an audit, as a table or as JSON; return 0 if there is no fault, else 1."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lmdynamics.errors import printable

    audits = audit(address, revisions, weights=weights)
    all_faults = [(each.name, fault) for each in audits for fault in each.faults]
    if as_json:
        print(json.dumps({"audits": [asdict(each) for each in audits]}, indent=1))
        return int(bool(all_faults))
    console = Console(width=None if Console().is_terminal else 160)
    if all_faults:
        table = Table("suite", "fault", "step", "description")
        for row in _rows(all_faults):
            table.add_row(*(escape(printable(text)) for text in row))
        console.print(table)
    for each in audits:
        count = len(each.faults)
        result = f"{count} fault{'s' * (count != 1)}" if count else "no fault found"
        steps = f"{len(each.steps)} of {each.listed} checkpoints"
        scope = f"examined the listings of {steps} ({format_bytes(each.bytes)} of weights)"
        if weights:
            tensors = f"{each.tensors} of {each.all_tensors} tensors"
            scope += f", and {tensors} of {len(each.opened)} checkpoints ({format_bytes(each.read)} downloaded)"
        lines = [f"{each.name}: {scope}: {result}", *(f"{each.name}: {note}" for note in each.notes)]
        if weights and len(each.opened) < len(each.steps):
            lines.append(
                f"{each.name}: weights not read: {len(each.steps) - len(each.opened)} checkpoints; .bin files must be "
                "fetched first"
            )
        for line in lines:
            console.print(printable(line), markup=False, soft_wrap=True)
    return int(bool(all_faults))

"""Whether a published suite, or a folder of checkpoints, is what it says: from listings, and from tensors.

Published checkpoints have been wrong: the same file under different steps, one shard of another checkpoint, half of a
history equal to the final model, a step 0 that later steps do not come from, steps left out, branches moved. Hashes and
sizes show most of it without a download; `weights` reads headers and some values of the files besides.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lmdynamics import paths
from lmdynamics.errors import UserError
from lmdynamics.hub.checkpoints import LISTERS, Pin, folder_pin, list_checkpoints, look, read_address, read_suite
from lmdynamics.hub.client import told_bytes
from lmdynamics.hub.faults import contents, listing_faults, missing_steps, tensor_faults
from lmdynamics.hub.tensors import Samples, read_samples
from lmdynamics.progress import bar
from lmdynamics.runs import faults
from lmdynamics.runs.faults import Fault
from lmdynamics.runs.folders import find_folder, read_folder
from lmdynamics.runs.revision_rules import PLAIN, chosen_steps, folder_rule, in_order, rule_for

MANY = 6  # faults of a kind, beyond which they are told together


@dataclass(frozen=True)
class Audit:
    """What was looked at and what was found.

    `listed`: how many checkpoints there are, of which `steps` were looked at. `bytes`: of their weights together, as
    listed. `opened`: steps of which weights were read, if they were to be; `tensors` of each, of `all_tensors`; `read`,
    bytes of them that came over the network. `notes`: what is no fault, such as names that are not used.
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
    """Look at every checkpoint of a suite or a folder, one audit per trajectory, without downloading weights.

    Kinds of faults: `identical` (the same weights under several steps), `shard` (one of their files), `missing step`,
    `missing weights`, `missing tokenizer`, `size` (weights unlike all others in size), `moved` (a branch points at
    another commit than when it was pinned here), `path` (a file name that leads out of its folder), `trajectories`
    (names of several in one repository). With `weights`, of safetensors a header and some values, and whole files that
    are on this machine: `not finite`, `parameters`, `equal`, `tensor` (one copied from another step, or that jumps),
    `initialisation` (a first step that others do not come from), `far` (a checkpoint of another model).

    Raises UserError for an address that is none, a repository, trajectory or folder that is not there, or no network.
    """
    if not address.startswith(paths.SUITE):
        return [_folder_audit(address, revisions, progress, weights)]
    asked = read_address(address)
    rule = rule_for(asked.repository, revisions)
    listing = list_checkpoints(asked, rule)
    parts = [asked.part] if asked.part else in_order(listing.trajectories, rule)
    pinned = _pinned(asked.repository)
    main = look([listing.main])[0] if listing.main else None
    audits = []
    for part in parts:
        chosen = listing.trajectory(part or PLAIN)
        steps = chosen_steps(list(chosen.pins), asked.steps)
        several = part and len(listing.trajectories) > 1
        name = f"{asked.repository}#{part}" if several else asked.repository
        with bar(len(steps), name, progress, unit="revision") as shown:
            pins = look([chosen.pins[step] for step in steps])
            shown.update(len(steps))
        found = [*_moved(pins, pinned)] + ([] if asked.steps else [*missing_steps(steps, rule)])
        if rule.name == "any" and len(listing.trajectories) > 1 and not asked.part and part == parts[0]:
            listed = ", ".join(f"#{each or PLAIN} ({len(listing.trajectories[each])} checkpoints)" for each in parts)
            found.append(Fault("trajectories", None, f"its names tell of several, {listed}: never one run"))
        unread = [f"names that tell no step: {', '.join(listing.unread)}"] * bool(listing.unread and part == parts[0])
        notes = (*unread, *_likeness_of_main(pins, main))
        audits.append(_audited(name, pins, len(chosen.pins), found, main, notes, weights, progress))
    return audits


def _audited(name, pins, listed, found, main, notes, weights, progress) -> Audit:
    """Compare checkpoints that have been listed, and keep what was found."""
    found = [*found, *listing_faults(pins, main)]
    size = sum(file.bytes for pin in pins for file in pin.weights)
    samples: dict[int, Samples] = {}
    if weights:
        unreadable, samples = _read_weights(name, pins, progress)
        found += [*unreadable, *tensor_faults(samples)]
    faults.keep(name, found, {pin.step: pin.signature for pin in pins}, tuple(samples))
    steps = tuple(pin.step for pin in pins)
    sizes = [(len(each.tensors), len(each.shapes)) for each in samples.values()]
    tensors, of_all = max(sizes, default=(0, 0))
    read = sum(each.read() for each in samples.values())
    return Audit(name, steps, listed, size, tuple(found), tuple(notes), tuple(samples), tensors, of_all, read)


def _read_weights(name: str, pins: Sequence[Pin], progress: bool | None) -> tuple[list[Fault], dict[int, Samples]]:
    """Some values of each checkpoint's tensors by step, and a fault for each that cannot be read."""
    samples: dict[int, Samples] = {}
    found: list[Fault] = []

    def read(pin: Pin) -> Samples | UserError | None:
        try:
            return read_samples(pin)
        except UserError as unreadable:
            return unreadable

    there = [pin for pin in pins if pin.weights]
    with ThreadPoolExecutor(LISTERS) as threads, bar(len(there), f"weights of {name}", progress, unit="step") as shown:
        for pin, result in zip(there, threads.map(read, there), strict=True):
            if isinstance(result, UserError):
                found.append(Fault("unreadable", pin.step, str(result)))
            elif result is not None:
                samples[pin.step] = result
            shown.update()
    return found, samples


def _likeness_of_main(pins: Sequence[Pin], main: Pin | None) -> Iterator[str]:
    """Which step the main branch is, where it is not the last."""
    if main and main.weights and pins:
        steps = [pin.step for pin in pins if contents(pin) == contents(main)]
        if pins[-1].step not in steps:
            listed = f"step {faults.listed_steps(steps)}" if steps else "no step that is listed"
            yield f"the branch {main.revision} has the weights of {listed}"


def _folder_audit(where: str, revisions: str | None, progress: bool | None, weights: bool) -> Audit:
    """Of a run or a plain folder: hashes of its weights, as their manifests say or read anew."""
    folder, part = find_folder(where)
    found = read_folder(folder, part, revisions)
    if not found.steps:
        raise UserError(f"{folder} has no checkpoints (step-000512/, checkpoint-500/ ...)")
    with bar(len(found.steps), folder.name, progress, unit="checkpoint") as shown:
        pins = []
        for step, at in found.steps.items():
            pins.append(folder_pin(step, at, hashed=True))
            shown.update()
    name = faults.folder_name(folder, part)
    missing = [*missing_steps(list(found.steps), folder_rule(revisions))] if not (folder / "run.json").exists() else []
    return _audited(name, pins, len(pins), missing, None, found.notes, weights, progress)


def _pinned(repository: str) -> dict[str, str]:
    """Commits that were pinned here, by repository and revision."""
    folders = (paths.home() / "suites").glob(f"{repository.replace('/', '--').replace('*', '+')}*")
    pins = [pin for folder in folders if (suite := read_suite(folder)) for pin in suite.pins.values()]
    return {f"{pin.repository} {pin.revision} {pin.step}": pin.commit for pin in pins}


def _moved(pins: Sequence[Pin], pinned: dict[str, str]) -> Iterator[Fault]:
    for pin in pins:
        before = pinned.get(f"{pin.repository} {pin.revision} {pin.step}")
        if before is not None and before != pin.commit:
            said = f"{pin.revision} pointed at {before[:12]} when it was pinned here, now at {pin.commit[:12]}"
            yield Fault("moved", pin.step, f"{said}; ?refresh=yes pins it anew")


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

    audits = audit(address, revisions, weights=weights)
    found = [(each.name, fault) for each in audits for fault in each.faults]
    if as_json:
        print(json.dumps({"audits": [asdict(each) for each in audits]}, indent=1))
        return int(bool(found))
    console = Console(width=None if Console().is_terminal else 160)
    if found:
        table = Table("suite", "fault", "step", "what was found")
        for row in _rows(found):
            table.add_row(*(escape(printable(text)) for text in row))
        console.print(table)
    for each in audits:
        count = len(each.faults)
        said = f"{count} fault{'s' * (count != 1)}" if count else "no fault found"
        steps = f"{len(each.steps)} of {each.listed} checkpoints"
        looked = f"looked at the listings of {steps}, {told_bytes(each.bytes)} of weights"
        if weights:
            tensors = f"{each.tensors} of {each.all_tensors} tensors"
            looked += f", and into {tensors} of {len(each.opened)} ({told_bytes(each.read)} downloaded)"
        lines = [f"{each.name}: {looked}: {said}", *(f"{each.name}: {note}" for note in each.notes)]
        if weights and len(each.opened) < len(each.steps):
            lines.append(
                f"{each.name}: not looked into: {len(each.steps) - len(each.opened)} checkpoints; .bin files must be "
                "fetched first"
            )
        for line in lines:
            console.print(printable(line), markup=False, soft_wrap=True)
    return int(bool(found))

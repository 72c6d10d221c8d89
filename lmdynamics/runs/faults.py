"""What is known to be wrong with checkpoints: what listings show, and what an audit found and kept.

A run says it when it is opened, once in a process, from what is at hand: nothing is asked or read for it.
"""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from lmdynamics import files, paths
from lmdynamics.corpora.fetch import is_safe
from lmdynamics.errors import UserError
from lmdynamics.progress import say_once, was_said
from lmdynamics.runs.folders import FolderPin, folder_pin, other_weights
from lmdynamics.runs.hub import told_bytes
from lmdynamics.runs.naming import Rule
from lmdynamics.runs.pins import Pin

SHOWN = 6  # steps of a long list that are shown
SPACED = 0.8  # share of equal gaps from which steps count as evenly spaced
IN_WEIGHTS = ("not finite", "parameters", "equal", "tensor", "initialisation", "far", "unreadable")
UNSAID = ("missing tokenizer",)  # when a run is opened: it is said where a tokenizer is used


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a suite or a folder. `step`: None where it concerns all of it."""

    kind: str
    step: int | None
    said: str


def listed_steps(steps: Sequence[int]) -> str:
    if len(steps) <= SHOWN:
        return " and ".join(filter(None, [", ".join(f"{step:,}" for step in steps[:-1]), f"{steps[-1]:,}"]))
    return f"{', '.join(f'{step:,}' for step in steps[: SHOWN - 2])}, … {steps[-1]:,} ({len(steps)} in all)"


def listing_faults(pins: Sequence[Pin], main: Pin | None = None) -> Iterator[Fault]:
    """What names, sizes and hashes show. `main`: the main branch, where somebody has looked at it."""
    for pin in pins:
        if not pin.weights:
            other = other_weights([file.path for file in pin.files or ()], pin.revision)
            yield Fault("missing weights", pin.step, f"{pin.revision} {other or 'has no weights'}")
    yield from _same_files(pins, main)
    with_tokenizer = [pin for pin in pins if pin.tokenizer]
    if any(isinstance(pin, FolderPin) for pin in pins):
        pass  # one for all may lie above them
    elif not with_tokenizer:
        there = "nor has the main branch" if main else "and there is no main branch"
        there = "that of the main branch is used for all" if main and main.tokenizer else there
        yield Fault("missing tokenizer", None, f"no checkpoint has a tokenizer; {there}")
    else:
        for pin in pins:
            if not pin.tokenizer:
                yield Fault("missing tokenizer", pin.step, f"{pin.revision} has no tokenizer, others have")
    yield from _odd_sizes(pins)
    for pin in pins:
        for file in pin.files or ():
            if leads_out(file.path):
                yield Fault("path", pin.step, f"{pin.revision} names a file {file.path!r}; it is never asked for")


def _same_files(pins: Sequence[Pin], main: Pin | None) -> Iterator[Fault]:
    """Weights that are another step's: all files of a checkpoint, or one of its shards."""
    wholes: dict[tuple[str, ...], list[int]] = defaultdict(list)
    shards: dict[tuple[str, str], list[Pin]] = defaultdict(list)
    for pin in pins:
        if pin.weights:
            content = contents(pin)
            wholes[content].append(pin.step)
            if wholes[content] == [pin.step]:  # of checkpoints that are the same, one speaks for all
                for file in pin.weights:
                    shards[file.path, file.identity].append(pin)
    final, last = contents(main) if main else (), max((pin.step for pin in pins), default=0)
    for content, steps in wholes.items():
        if len(steps) > 1:
            also = [f"the last step, {last:,}"] * (last in steps) + ["the main branch"] * (content == final)
            tail = f": those of {' and of '.join(also)}" if also else ""
            yield Fault("identical", steps[1], f"steps {listed_steps(steps)} have the same weights, to the byte{tail}")
    for (path, _), sharing in shards.items():
        if len(sharing) > 1:
            steps = [pin.step for pin in sharing]
            said = f"{path} is the same file at steps {listed_steps(steps)}, while others of their shards differ"
            yield Fault("shard", steps[0], said)


def contents(pin: Pin) -> tuple[str, ...]:
    """What tells a checkpoint's weights from others."""
    return tuple(file.identity for file in pin.weights)


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


def missing_steps(steps: Sequence[int], rule: Rule) -> Iterator[Fault]:
    """Steps that the suite's rule expects, or, where there is none, that an even spacing leaves out."""
    for step in sorted(set(rule.expected_steps()) - set(steps)):
        yield Fault("missing step", step, f"the suite should have step {step:,}")
    gaps = Counter(after - before for before, after in itertools.pairwise(steps))
    (usual, count) = gaps.most_common(1)[0] if gaps else (0, 0)
    if not rule.expected and count >= max(4, SPACED * gaps.total()):
        for before, after in itertools.pairwise(steps):
            if (after - before) % usual == 0:
                for step in range(before + usual, after, usual):
                    yield Fault("missing step", step, f"step {step:,} is not there; most are {usual:,} apart")


def keep(
    name: str, faults: Iterable[Fault], signatures: Mapping[int, tuple[str, ...]], opened: Sequence[int] = ()
) -> None:
    """Keep what an audit found of checkpoints with these signatures, beside what is known of others.

    `opened`: steps whose weights were read; of the others, what an earlier audit found in their weights still holds.
    """
    known, before = _read(name)
    same = {step for step, signature in signatures.items() if before.get(step) == signature}
    older = [
        fault
        for fault in known
        if fault.step not in (None, *signatures)
        or (fault.kind in IN_WEIGHTS and fault.step in same and fault.step not in opened)
    ]
    seen = {str(step): signature for step, signature in {**before, **signatures}.items()}
    content = {"name": name, "faults": [asdict(fault) for fault in [*older, *faults]], "signatures": seen}
    try:
        files.write_json(_kept(name), content)
    except UserError as unwritable:
        say_once(f"the audit of {name} is not kept: {unwritable}")


def kept(name: str, signatures: Mapping[int, tuple[str, ...]]) -> list[Fault]:
    """What audits found of checkpoints that are still what they were."""
    known, before = _read(name)
    same = {step for step, signature in signatures.items() if before.get(step) == signature}
    return [fault for fault in known if fault.step in same or (fault.step is None and same)]


def _read(name: str) -> tuple[list[Fault], dict[int, tuple[str, ...]]]:
    try:
        content = json.loads(_kept(name).read_text("utf-8"))
        signatures = {int(step): tuple(signature) for step, signature in content["signatures"].items()}
        return [Fault(**said) for said in content["faults"]], signatures
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [], {}


def _kept(name: str) -> Path:
    return paths.cache_dir() / "audits" / f"{quote(name, safe='')[-200:]}.json"


def suite_faults(name: str, pins: Sequence[Pin], rule: Rule | None) -> list[Fault]:
    """What listings at hand show, and what audits found. `rule`: where all of a suite's steps are meant."""
    missing = [] if rule is None else [*missing_steps([pin.step for pin in pins], rule)]
    return [*missing, *listing_faults(pins), *kept(name, {pin.step: pin.signature for pin in pins})]


def folder_faults(folder: Path, part: str, steps: Mapping[int, Path]) -> list[Fault]:
    """What audits found in a folder on this machine."""
    name = folder_name(folder, part)
    if not _kept(name).exists():
        return []
    return kept(name, {step: folder_pin(step, at).signature for step, at in steps.items()})


def folder_name(folder: Path, part: str) -> str:
    return f"{folder.resolve()}#{part}" if part else str(folder.resolve())


def say(name: str, faults: Iterable[Fault], address: str) -> None:
    """Say in one line what is wrong, once in a process."""
    kinds: dict[str, dict[str, None]] = defaultdict(dict)
    for fault in faults:
        if fault.kind not in UNSAID:
            kinds[fault.kind][fault.said] = None
    said = [next(iter(found)) + (f" (and {len(found) - 1} more)" if len(found) > 1 else "") for found in kinds.values()]
    if said:
        say_once(f"{name}: {'; '.join(said)} (`lmdynamics audit {address}` lists all)")


def say_equal(name: str, hashes: Mapping[int, str]) -> None:
    """Say which of a run's checkpoints have the same weights, unless that was said when it was opened."""
    steps: dict[str, list[int]] = defaultdict(list)
    for step, digest in hashes.items():
        steps[digest].append(step)
    for same in steps.values():
        said = f"{name}: steps {listed_steps(same)} have the same weights, to the byte"
        if len(same) > 1 and not was_said(said):
            say_once(said)

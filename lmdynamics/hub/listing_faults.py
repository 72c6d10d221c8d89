"""What is wrong with a suite, as far as listings of its files tell: nothing is downloaded for it."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmdynamics.corpora.fetch import is_safe
from lmdynamics.hub.client import told_bytes
from lmdynamics.hub.pins import FolderPin, Pin
from lmdynamics.runs.faults import Fault, kept, listed_steps
from lmdynamics.runs.folders import other_weights
from lmdynamics.runs.naming import Rule

SPACED = 0.8  # share of equal gaps from which steps count as evenly spaced


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


def suite_faults(name: str, pins: Sequence[Pin], rule: Rule | None) -> list[Fault]:
    """What listings at hand show, and what audits found. `rule`: where all of a suite's steps are meant."""
    missing = [] if rule is None else [*missing_steps([pin.step for pin in pins], rule)]
    return [*missing, *listing_faults(pins), *kept(name, {pin.step: pin.signature for pin in pins})]

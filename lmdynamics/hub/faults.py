"""What is wrong with a suite: as far as listings of its files tell, and as far as its tensors do.

For the listings nothing is downloaded. Each tensor is compared with itself at other steps, in size and in direction:
values that are not finite, copies from another step, checkpoints of another model. Tensors that are constant (norm
weights at initialisation are ones, biases zeros) are left out: two independent initialisations share them. Two
checkpoints are judged by what lies around them: a jump is a fault where other checkpoints, at least as many steps
apart, are alike.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lmdynamics.corpora.fetch import is_safe
from lmdynamics.hub.checkpoints import FolderPin, Pin
from lmdynamics.hub.client import told_bytes
from lmdynamics.hub.tensors import Sample, Samples
from lmdynamics.runs.faults import Fault, kept, listed_steps
from lmdynamics.runs.folders import other_weights
from lmdynamics.runs.revision_rules import Rule

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


UNLIKE, ALIKE = 0.2, 0.8  # cosine of two steps' values; of independent random values it is about 0
LARGER, AS_LARGE = 2.0, 1.25  # ratio of their norms
REACH = 3  # checkpoints on either side that a jump is compared with
GROWN = 0.3  # share of its usual norm from which a tensor counts: one that starts at zero finds its direction first
EARLY = 16  # steps up to which weights may not have moved as far as half precision can show


def tensor_faults(checkpoints: Mapping[int, Samples]) -> Iterator[Fault]:
    """What is wrong with some checkpoints, by step."""
    yield from _not_finite(checkpoints)
    yield from _other_parameters(checkpoints)
    copied: set[tuple[int, str]] = set()
    yield from _copies(checkpoints, copied)
    yield from _jumps(checkpoints, copied)


def _not_finite(checkpoints: Mapping[int, Samples]) -> Iterator[Fault]:
    for step, samples in checkpoints.items():
        if broken := [name for name, sample in samples.tensors.items() if not sample.is_finite]:
            yield Fault("not finite", step, f"{_named(broken)} {_verb(broken, 'hold')} NaN or infinity")


def _other_parameters(checkpoints: Mapping[int, Samples]) -> Iterator[Fault]:
    shapes = {step: frozenset(samples.shapes.items()) for step, samples in checkpoints.items()}
    usual = max(shapes.values(), key=list(shapes.values()).count, default=frozenset())
    for step, own in shapes.items():
        if own != usual:
            names = sorted(name for name, _ in own ^ usual)
            yield Fault("parameters", step, f"not the same parameters as most others have: {_named(names)}")


def _copies(checkpoints: Mapping[int, Samples], copied: set[tuple[int, str]]) -> Iterator[Fault]:
    """Tensors that are the same at several steps, to the bit; those that never change are none."""
    groups: dict[str, dict[int, int]] = {}  # of each tensor that changes: the first step that has what a step has
    for name in sorted({name for samples in checkpoints.values() for name in samples.tensors}):
        there = {step: samples.tensors[name] for step, samples in checkpoints.items() if name in samples.tensors}
        varying = {step: sample for step, sample in there.items() if not sample.is_constant and sample.is_finite}
        first = {step: _first_like(step, name, varying, checkpoints) for step in varying}
        if len(varying) > 1 and len(set(first.values())) > 1:
            groups[name] = first
    if not groups and len(checkpoints) > 1:  # none that changes
        groups = {
            name: dict.fromkeys(checkpoints, min(checkpoints)) for name in next(iter(checkpoints.values())).tensors
        }
    whole = {step: tuple(first.get(step) for first in groups.values()) for step in checkpoints}
    same: dict[tuple, list[int]] = defaultdict(list)
    for step, firsts in whole.items():
        same[firsts].append(step)
    for steps in same.values():
        if len(steps) > 1 and any(first is not None for first in whole[steps[0]]):
            copied |= {(step, name) for step in steps for name in groups}
            why = "; so early, a small learning rate and half precision can explain it" if steps[-1] <= EARLY else ""
            yield Fault("equal", steps[1], f"steps {listed_steps(steps)} have the same values in every tensor{why}")
    parts: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, first in groups.items():
        shared: dict[int, list[int]] = defaultdict(list)
        for step, origin in first.items():
            if not any(whole[step] == whole[other] for other in shared[origin]):  # of equal checkpoints only one
                shared[origin].append(step)
        for steps in shared.values():
            if len(steps) > 1:
                parts[tuple(steps)].append(name)
    for steps, names in parts.items():
        copied |= {(step, name) for step in steps for name in names}
        if steps[-1] > EARLY or not checkpoints[steps[0]].tensors[names[0]].is_half:
            said = f"{_named(names)} {_verb(names, 'is', 'are')} the same at steps {listed_steps(steps)}"
            yield Fault("tensor", steps[0], f"{said}, while other tensors differ")


def _first_like(step: int, name: str, there: Mapping[int, Sample], checkpoints: Mapping[int, Samples]) -> int:
    """The first step at which a tensor is what it is at `step`."""
    own = there[step]
    for other, sample in there.items():
        if other == step:
            break
        if sample.digest == own.digest and sample.shape == own.shape:
            if own.whole and sample.whole:
                alike = own.whole == sample.whole
            else:  # a window may hold words that no text has
                alike = all(
                    checkpoints[step].reread(name, share) == checkpoints[other].reread(name, share)
                    for share in (0.25, 0.75)
                )
            if alike:
                return other
    return step


def _jumps(checkpoints: Mapping[int, Samples], copied: set[tuple[int, str]]) -> Iterator[Fault]:
    """Checkpoints, or single tensors, between which too much changes."""
    jumped: dict[tuple[int, int], dict[str, tuple[float, float]]] = defaultdict(dict)
    compared: dict[tuple[int, int], int] = defaultdict(int)
    for name in sorted({name for samples in checkpoints.values() for name in samples.tensors}):
        track = _track(name, checkpoints)
        for number, (before, after) in enumerate(itertools.pairwise(track)):
            compared[before[0], after[0]] += 1
            near = track[max(0, number - REACH + 1) : number + REACH + 2]
            if _is_jump(before, after, near) and not {(before[0], name), (after[0], name)} & copied:
                jumped[before[0], after[0]][name] = _likeness(before[1], after[1])
    foreign: dict[tuple[int, tuple[str, ...]], list[tuple[int, int]]] = defaultdict(list)
    breaks = sorted(jumped)
    for pair in breaks:
        names = () if len(jumped[pair]) * 2 >= compared[pair] else tuple(jumped[pair])
        # a checkpoint that differs from both sides has two breaks: it is told once, as the later step of the first
        earlier = next((key for key, pairs in foreign.items() if pairs[-1][1] == pair[0] and key[1] == names), None)
        foreign[earlier or (pair[1], names)].append(pair)
    for (step, names), pairs in foreign.items():
        values = [value for pair in pairs for value in jumped[pair].values()]
        cosine, ratio = (float(np.median(column)) for column in zip(*values, strict=True))
        by = f"cosine {cosine:.2f}, size × {ratio:.2g}; other checkpoints as far apart in steps are alike"
        (before, after), several = pairs[0], len(pairs) > 1
        if names:
            where = f"at step {step:,}" if several else f"between steps {before:,} and {after:,}"
            yield Fault("tensor", step, f"{_named(names)} {_verb(names, 'jump')} {where} ({by})")
        elif several:
            yield Fault("far", step, f"its weights are as unlike its neighbours' as another model's ({by})")
        elif before == min(checkpoints):
            said = f"step {after:,} does not come from step {before:,}, which is another initialisation or model"
            yield Fault("initialisation", before, f"{said} ({by})")
        else:
            said = f"from step {step:,} on it is another trajectory than up to step {before:,}"
            yield Fault("far", step, f"{said} ({by})")


def _track(name: str, checkpoints: Mapping[int, Samples]) -> list[tuple[int, np.ndarray]]:
    """A matrix's values by step, where they have grown to about their usual size."""
    there = [(step, samples.tensors[name]) for step, samples in checkpoints.items() if name in samples.tensors]
    there = [(step, one) for step, one in there if one.is_matrix and one.is_finite and not one.is_constant]
    if not there:
        return []
    usual = float(np.median([np.linalg.norm(sample.values) for _, sample in there]))
    size = max((sample.values.size for _, sample in there), default=0)
    return [
        (step, sample.values)
        for step, sample in there
        if np.linalg.norm(sample.values) >= GROWN * usual and sample.values.size == size
    ]


def _is_jump(before, after, near: Sequence[tuple[int, np.ndarray]]) -> bool:
    cosine, ratio = _likeness(before[1], after[1])
    if cosine >= UNLIKE and max(ratio, 1 / ratio) <= LARGER:
        return False
    gap = after[0] - before[0]
    for number, (first, old) in enumerate(near):
        for last, new in near[number + 1 :]:
            if last - first >= gap and (first, last) != (before[0], after[0]):
                other, size = _likeness(old, new)
                if other >= ALIKE and max(size, 1 / size) <= AS_LARGE:
                    return True
    return False


def _likeness(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """Cosine of two vectors, and the ratio of their norms."""
    sizes = np.linalg.norm(old), np.linalg.norm(new)
    return float(old @ new / max(math.prod(sizes), 1e-300)), float(sizes[1] / max(sizes[0], 1e-300))


def _named(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _verb(names: Sequence[str], one: str, many: str = "") -> str:
    return (one if many else f"{one}s") if len(names) == 1 else many or one

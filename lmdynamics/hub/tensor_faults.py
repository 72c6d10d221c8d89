"""Faults that tensors tell: values that are not finite, copies from another step, and checkpoints of another model.

Each tensor is compared with itself at other steps, in size and in direction. Tensors that are constant (norm weights at
initialisation are ones, biases zeros) are left out: two independent initialisations share them. Two checkpoints are
judged by what lies around them: a jump is a fault where other checkpoints, at least as many steps apart, are alike.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lmdynamics.hub.tensors import Sample, Samples
from lmdynamics.runs.faults import Fault, listed_steps

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

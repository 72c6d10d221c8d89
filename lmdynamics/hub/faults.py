"""Faults of a suite that its file listings show, and faults of its tensors.

Listings need no download. Each tensor is compared with itself at other steps, in norm and direction: values that are
not finite, copies from another step, checkpoints of another model. Constant tensors (norm weights at initialisation are
ones, biases zeros) are left out, because independent initialisations share them. A jump between two checkpoints is a
fault only if neighbouring checkpoints, at least as many steps apart, are similar.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lmdynamics.corpora.fetch import is_safe
from lmdynamics.hub.checkpoints import FolderPin, Pin
from lmdynamics.hub.client import format_bytes
from lmdynamics.hub.tensors import Sample, Samples
from lmdynamics.runs.faults import Fault, listed_steps, saved_faults
from lmdynamics.runs.folders import describe_other_format
from lmdynamics.runs.revision_rules import Rule

MIN_EQUAL_GAPS = 0.8  # share of equal gaps from which steps count as evenly spaced


def listing_faults(pins: Sequence[Pin], main: Pin | None = None) -> Iterator[Fault]:
    """Faults that names, sizes and hashes show. `main`: the main branch with its files, if they are listed."""
    for pin in pins:
        if not pin.weights:
            format_text = describe_other_format([file.path for file in pin.files or ()], pin.revision)
            yield Fault("missing weights", pin.step, f"{pin.revision} {format_text or 'has no weights'}")
    yield from _same_files(pins, main)
    with_tokenizer = [pin for pin in pins if pin.tokenizer]
    if any(isinstance(pin, FolderPin) for pin in pins):
        pass  # they may share one in a folder above
    elif not with_tokenizer:
        main_text = "nor has the main branch" if main else "and there is no main branch"
        main_text = "that of the main branch is used for all" if main and main.tokenizer else main_text
        yield Fault("missing tokenizer", None, f"no checkpoint has a tokenizer; {main_text}")
    else:
        for pin in pins:
            if not pin.tokenizer:
                yield Fault("missing tokenizer", pin.step, f"{pin.revision} has no tokenizer, but others have one")
    yield from _odd_sizes(pins)
    for pin in pins:
        for file in pin.files or ():
            if is_outside(file.path):
                yield Fault("path", pin.step, f"{pin.revision} names a file {file.path!r}; it is never downloaded")


def _same_files(pins: Sequence[Pin], main: Pin | None) -> Iterator[Fault]:
    """Weights that equal another step's: all files of a checkpoint, or one of its shards."""
    checkpoints: dict[tuple[str, ...], list[int]] = defaultdict(list)
    shards: dict[tuple[str, str], list[Pin]] = defaultdict(list)
    for pin in pins:
        if pin.weights:
            content = weight_identity(pin)
            checkpoints[content].append(pin.step)
            if checkpoints[content] == [pin.step]:  # of equal checkpoints only the first
                for file in pin.weights:
                    shards[file.path, file.identity].append(pin)
    final, last = weight_identity(main) if main else (), max((pin.step for pin in pins), default=0)
    for content, steps in checkpoints.items():
        if len(steps) > 1:
            also = [f"the last step, {last:,}"] * (last in steps) + ["the main branch"] * (content == final)
            tail = f": those of {' and of '.join(also)}" if also else ""
            yield Fault("identical", steps[1], f"steps {listed_steps(steps)} have the same weights, to the byte{tail}")
    for (path, _), sharing in shards.items():
        if len(sharing) > 1:
            steps = [pin.step for pin in sharing]
            text = f"{path} is the same file at steps {listed_steps(steps)}, while others of their shards differ"
            yield Fault("shard", steps[0], text)


def weight_identity(pin: Pin) -> tuple[str, ...]:
    """Equal for checkpoints with equal weights."""
    return tuple(file.identity for file in pin.weights)


def is_outside(path: str) -> bool:
    """Whether a name may point out of the folder it is joined to; on some systems a colon does."""
    return not is_safe(path) or ":" in path


def _odd_sizes(pins: Sequence[Pin]) -> Iterator[Fault]:
    """Weights of another size than most with the same format and number of files.

    Headers may differ by some bytes, so sizes within a thousandth count as equal.
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
                    "size", pin.step, f"its weights are {format_bytes(size)}, most others' are {format_bytes(usual)}"
                )


def missing_steps(steps: Sequence[int], rule: Rule) -> Iterator[Fault]:
    """Missing steps that the suite's rule expects, or that even spacing implies if the rule lists no steps."""
    for step in sorted(set(rule.expected_steps()) - set(steps)):
        yield Fault("missing step", step, f"the suite should have step {step:,}")
    gaps = Counter(after - before for before, after in itertools.pairwise(steps))
    (usual, count) = gaps.most_common(1)[0] if gaps else (0, 0)
    if not rule.expected and count >= max(4, MIN_EQUAL_GAPS * gaps.total()):
        for before, after in itertools.pairwise(steps):
            if (after - before) % usual == 0:
                for step in range(before + usual, after, usual):
                    yield Fault("missing step", step, f"step {step:,} is missing; most are {usual:,} apart")


def suite_faults(name: str, pins: Sequence[Pin], rule: Rule | None) -> list[Fault]:
    """Faults in these listings, and saved faults of audits. `rule`: only if `pins` are all of the suite's."""
    missing = [] if rule is None else [*missing_steps([pin.step for pin in pins], rule)]
    return [*missing, *listing_faults(pins), *saved_faults(name, {pin.step: pin.signature for pin in pins})]


JUMP_COSINE, SIMILAR_COSINE = 0.2, 0.8  # of two steps' values; of independent random values it is about 0
JUMP_RATIO, SIMILAR_RATIO = 2.0, 1.25  # of their norms
NEIGHBOURS = 3  # checkpoints on either side that a jump is compared with
MIN_NORM = 0.3  # share of a tensor's usual norm; one that starts at zero has no stable direction before
EARLY_STEPS = 16  # up to which changes may be too small for half precision


def tensor_faults(checkpoints: Mapping[int, Samples]) -> Iterator[Fault]:
    """Faults in the tensors of checkpoints by step."""
    yield from _not_finite(checkpoints)
    yield from _other_parameters(checkpoints)
    copied: set[tuple[int, str]] = set()
    yield from _copies(checkpoints, copied)
    yield from _jumps(checkpoints, copied)


def _not_finite(checkpoints: Mapping[int, Samples]) -> Iterator[Fault]:
    for step, samples in checkpoints.items():
        if broken := [name for name, sample in samples.tensors.items() if not sample.is_finite]:
            yield Fault("not finite", step, f"{_list_names(broken)} {_verb(broken, 'hold')} NaN or infinity")


def _other_parameters(checkpoints: Mapping[int, Samples]) -> Iterator[Fault]:
    shapes = {step: frozenset(samples.shapes.items()) for step, samples in checkpoints.items()}
    usual = max(shapes.values(), key=list(shapes.values()).count, default=frozenset())
    for step, parameters in shapes.items():
        if parameters != usual:
            names = sorted(name for name, _ in parameters ^ usual)
            yield Fault("parameters", step, f"its parameters differ from most others': {_list_names(names)}")


def _copies(checkpoints: Mapping[int, Samples], copied: set[tuple[int, str]]) -> Iterator[Fault]:
    """Tensors that are equal bit for bit at several steps, but not at all steps."""
    groups: dict[str, dict[int, int]] = {}  # of each tensor that changes: for each step, the first step with its values
    for name in sorted({name for samples in checkpoints.values() for name in samples.tensors}):
        present = {step: samples.tensors[name] for step, samples in checkpoints.items() if name in samples.tensors}
        varying = {step: sample for step, sample in present.items() if not sample.is_constant and sample.is_finite}
        first = {step: _first_equal(step, name, varying, checkpoints) for step in varying}
        if len(varying) > 1 and len(set(first.values())) > 1:
            groups[name] = first
    if not groups and len(checkpoints) > 1:  # no tensor changes
        groups = {
            name: dict.fromkeys(checkpoints, min(checkpoints)) for name in next(iter(checkpoints.values())).tensors
        }
    origins = {step: tuple(first.get(step) for first in groups.values()) for step in checkpoints}
    equal: dict[tuple, list[int]] = defaultdict(list)
    for step, firsts in origins.items():
        equal[firsts].append(step)
    for steps in equal.values():
        if len(steps) > 1 and any(first is not None for first in origins[steps[0]]):
            copied |= {(step, name) for step in steps for name in groups}
            why = "; so early, a small learning rate and half precision can explain it" * (steps[-1] <= EARLY_STEPS)
            yield Fault("equal", steps[1], f"steps {listed_steps(steps)} have the same values in every tensor{why}")
    parts: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, first in groups.items():
        shared: dict[int, list[int]] = defaultdict(list)
        for step, origin in first.items():
            if not any(origins[step] == origins[other] for other in shared[origin]):  # of equal checkpoints only one
                shared[origin].append(step)
        for steps in shared.values():
            if len(steps) > 1:
                parts[tuple(steps)].append(name)
    for steps, names in parts.items():
        copied |= {(step, name) for step in steps for name in names}
        if steps[-1] > EARLY_STEPS or not checkpoints[steps[0]].tensors[names[0]].is_half:
            text = f"{_list_names(names)} {_verb(names, 'is', 'are')} the same at steps {listed_steps(steps)}"
            yield Fault("tensor", steps[0], f"{text}, while other tensors differ")


def _first_equal(step: int, name: str, samples: Mapping[int, Sample], checkpoints: Mapping[int, Samples]) -> int:
    """The first step at which a tensor has the values of `step`."""
    current = samples[step]
    for other, sample in samples.items():
        if other == step:
            break
        if sample.digest == current.digest and sample.shape == current.shape:
            if current.full_digest and sample.full_digest:
                equal = current.full_digest == sample.full_digest
            else:  # a window may hold only embeddings of tokens that no text has
                equal = all(
                    checkpoints[step].reread(name, share) == checkpoints[other].reread(name, share)
                    for share in (0.25, 0.75)
                )
            if equal:
                return other
    return step


def _jumps(checkpoints: Mapping[int, Samples], copied: set[tuple[int, str]]) -> Iterator[Fault]:
    """Checkpoints, or single tensors, that change too much from one step to the next."""
    jumped: dict[tuple[int, int], dict[str, tuple[float, float]]] = defaultdict(dict)
    compared: dict[tuple[int, int], int] = defaultdict(int)
    for name in sorted({name for samples in checkpoints.values() for name in samples.tensors}):
        series = _tensor_series(name, checkpoints)
        for number, (before, after) in enumerate(itertools.pairwise(series)):
            compared[before[0], after[0]] += 1
            nearby = series[max(0, number - NEIGHBOURS + 1) : number + NEIGHBOURS + 2]
            if _is_jump(before, after, nearby) and not {(before[0], name), (after[0], name)} & copied:
                jumped[before[0], after[0]][name] = _cosine_and_ratio(before[1], after[1])
    foreign: dict[tuple[int, tuple[str, ...]], list[tuple[int, int]]] = defaultdict(list)
    breaks = sorted(jumped)
    for pair in breaks:
        names = () if len(jumped[pair]) * 2 >= compared[pair] else tuple(jumped[pair])
        # a checkpoint that differs from both sides has two breaks: it is reported once, as the later step of the first
        earlier = next((key for key, pairs in foreign.items() if pairs[-1][1] == pair[0] and key[1] == names), None)
        foreign[earlier or (pair[1], names)].append(pair)
    for (step, names), pairs in foreign.items():
        values = [value for pair in pairs for value in jumped[pair].values()]
        cosine, ratio = (float(np.median(column)) for column in zip(*values, strict=True))
        evidence = f"cosine {cosine:.2f}, norm × {ratio:.2g}; other checkpoints as far apart in steps are similar"
        (before, after), several = pairs[0], len(pairs) > 1
        if names:
            interval = f"at step {step:,}" if several else f"between steps {before:,} and {after:,}"
            yield Fault("tensor", step, f"{_list_names(names)} {_verb(names, 'jump')} {interval} ({evidence})")
        elif several:
            yield Fault(
                "far", step, f"its weights differ from its neighbours' as much as another model's would ({evidence})"
            )
        elif before == min(checkpoints):
            text = f"step {after:,} does not continue step {before:,}, which is another initialisation or model"
            yield Fault("initialisation", before, f"{text} ({evidence})")
        else:
            text = f"from step {step:,} on it is another trajectory than up to step {before:,}"
            yield Fault("far", step, f"{text} ({evidence})")


def _tensor_series(name: str, checkpoints: Mapping[int, Samples]) -> list[tuple[int, np.ndarray]]:
    """A matrix's values by step, without steps where its norm is still small."""
    present = [(step, samples.tensors[name]) for step, samples in checkpoints.items() if name in samples.tensors]
    present = [(step, one) for step, one in present if one.is_matrix and one.is_finite and not one.is_constant]
    if not present:
        return []
    usual = float(np.median([np.linalg.norm(sample.values) for _, sample in present]))
    size = max((sample.values.size for _, sample in present), default=0)
    return [
        (step, sample.values)
        for step, sample in present
        if np.linalg.norm(sample.values) >= MIN_NORM * usual and sample.values.size == size
    ]


def _is_jump(before, after, nearby: Sequence[tuple[int, np.ndarray]]) -> bool:
    cosine, ratio = _cosine_and_ratio(before[1], after[1])
    if cosine >= JUMP_COSINE and max(ratio, 1 / ratio) <= JUMP_RATIO:
        return False
    gap = after[0] - before[0]
    for number, (first, old) in enumerate(nearby):
        for last, new in nearby[number + 1 :]:
            if last - first >= gap and (first, last) != (before[0], after[0]):
                cosine, ratio = _cosine_and_ratio(old, new)
                if cosine >= SIMILAR_COSINE and max(ratio, 1 / ratio) <= SIMILAR_RATIO:
                    return True
    return False


def _cosine_and_ratio(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """Cosine of two vectors, and the ratio of their norms."""
    sizes = np.linalg.norm(old), np.linalg.norm(new)
    return float(old @ new / max(math.prod(sizes), 1e-300)), float(sizes[1] / max(sizes[0], 1e-300))


def _list_names(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _verb(names: Sequence[str], singular: str, plural: str = "") -> str:
    return (singular if plural else f"{singular}s") if len(names) == 1 else plural or singular

"""What is known to be wrong with checkpoints: what listings show, and what an audit found and kept.

A run says it when it is opened, once in a process, from what is at hand: nothing is asked or read for it.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from lmdynamics import files, paths
from lmdynamics.errors import UserError
from lmdynamics.progress import print_once, was_printed
from lmdynamics.runs.folders import signature

SHOWN = 6  # steps of a long list that are shown
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
        print_once(f"the audit of {name} is not kept: {unwritable}")


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


def folder_faults(folder: Path, part: str, steps: Mapping[int, Path]) -> list[Fault]:
    """What audits found in a folder on this machine."""
    name = folder_name(folder, part)
    if not _kept(name).exists():
        return []
    return kept(name, {step: signature(at) for step, at in steps.items()})


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
        print_once(f"{name}: {'; '.join(said)} (`lmdynamics audit {address}` lists all)")


def say_equal(name: str, hashes: Mapping[int, str]) -> None:
    """Say which of a run's checkpoints have the same weights, unless that was said when it was opened."""
    steps: dict[str, list[int]] = defaultdict(list)
    for step, digest in hashes.items():
        steps[digest].append(step)
    for same in steps.values():
        said = f"{name}: steps {listed_steps(same)} have the same weights, to the byte"
        if len(same) > 1 and not was_printed(said):
            print_once(said)

"""Known faults of checkpoints, which audits found and saved, and their report when a run is opened.

They are reported once in a process, without a request to the hub and without reading weights.
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

MAX_LISTED = 6  # steps of a long list
WEIGHT_FAULTS = ("not finite", "parameters", "equal", "tensor", "initialisation", "far", "unreadable")
NOT_REPORTED = ("missing tokenizer",)  # when a run is opened; reported when a tokenizer is used


@dataclass(frozen=True)
class Fault:
    """A fault of a suite or a folder. `step`: None if it concerns all of it. `said`: its description."""

    kind: str
    step: int | None
    said: str


def listed_steps(steps: Sequence[int]) -> str:
    if len(steps) <= MAX_LISTED:
        return " and ".join(filter(None, [", ".join(f"{step:,}" for step in steps[:-1]), f"{steps[-1]:,}"]))
    return f"{', '.join(f'{step:,}' for step in steps[: MAX_LISTED - 2])}, … {steps[-1]:,} ({len(steps)} in all)"


def save_audit(
    name: str, faults: Iterable[Fault], signatures: Mapping[int, tuple[str, ...]], opened: Sequence[int] = ()
) -> None:
    """Save the faults that an audit found in checkpoints with these signatures, with known faults of others.

    `opened`: steps whose weights were read; for the others, weight faults from an earlier audit stay valid.
    """
    saved, old = _read(name)
    same = {step for step, signature in signatures.items() if old.get(step) == signature}
    older = [
        fault
        for fault in saved
        if fault.step not in (None, *signatures)
        or (fault.kind in WEIGHT_FAULTS and fault.step in same and fault.step not in opened)
    ]
    known_signatures = {str(step): signature for step, signature in {**old, **signatures}.items()}
    content = {"name": name, "faults": [asdict(fault) for fault in [*older, *faults]], "signatures": known_signatures}
    try:
        files.write_json(_audit_file(name), content)
    except UserError as unwritable:
        print_once(f"the audit of {name} is not saved: {unwritable}")


def saved_faults(name: str, signatures: Mapping[int, tuple[str, ...]]) -> list[Fault]:
    """The saved faults of checkpoints that have not changed since their audit."""
    saved, old = _read(name)
    same = {step for step, signature in signatures.items() if old.get(step) == signature}
    return [fault for fault in saved if fault.step in same or (fault.step is None and same)]


def _read(name: str) -> tuple[list[Fault], dict[int, tuple[str, ...]]]:
    try:
        content = json.loads(_audit_file(name).read_text("utf-8"))
        signatures = {int(step): tuple(signature) for step, signature in content["signatures"].items()}
        return [Fault(**fields) for fields in content["faults"]], signatures
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [], {}


def _audit_file(name: str) -> Path:
    return paths.cache_dir() / "audits" / f"{quote(name, safe='')[-200:]}.json"


def folder_faults(folder: Path, part: str, steps: Mapping[int, Path]) -> list[Fault]:
    """The saved faults of a folder on this machine."""
    name = folder_name(folder, part)
    if not _audit_file(name).exists():
        return []
    return saved_faults(name, {step: signature(path) for step, path in steps.items()})


def folder_name(folder: Path, part: str) -> str:
    return f"{folder.resolve()}#{part}" if part else str(folder.resolve())


def report_faults(name: str, faults: Iterable[Fault], address: str) -> None:
    """Report the faults in one line, once in a process."""
    kinds: dict[str, dict[str, None]] = defaultdict(dict)
    for fault in faults:
        if fault.kind not in NOT_REPORTED:
            kinds[fault.kind][fault.said] = None
    lines = [next(iter(each)) + (f" (and {len(each) - 1} more)" if len(each) > 1 else "") for each in kinds.values()]
    if lines:
        print_once(f"{name}: {'; '.join(lines)} (`lmdynamics audit {address}` lists all)")


def report_equal_weights(name: str, hashes: Mapping[int, str]) -> None:
    """Report which checkpoints of a run have the same weights, unless that was reported when it was opened."""
    steps: dict[str, list[int]] = defaultdict(list)
    for step, digest in hashes.items():
        steps[digest].append(step)
    for same in steps.values():
        message = f"{name}: steps {listed_steps(same)} have the same weights, to the byte"
        if len(same) > 1 and not was_printed(message):
            print_once(message)

"""Which checkpoints of a suite stay on this machine where an address says `keep=N`."""

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from lmdynamics import files
from lmdynamics.hub import client
from lmdynamics.hub.pins import read_pins

FETCHED = "fetched.json"  # steps whose weights came under a `keep`, the oldest first: the others stay


def remember(suite: Path, step: int) -> None:
    """That a checkpoint's weights came under a `keep`: the last one is the one that stays longest."""
    with FileLock(suite / ".lock"):
        steps = [known for known in _fetched(suite) if known != step]
        files.write_json(suite / FETCHED, [*steps, step])


def spare(suite: Path, steps: Sequence[int]) -> None:
    """Checkpoints that came under a `keep` and are wanted for good now: they are not counted among those any more."""
    with FileLock(suite / ".lock"):
        if set(steps) & set(known := _fetched(suite)):
            files.write_json(suite / FETCHED, [step for step in known if step not in steps])


def _fetched(suite: Path) -> list[int]:
    return files.read_json(suite / FETCHED, "a suite") if (suite / FETCHED).exists() else []


def evict(suite: Path, keep: int) -> None:
    """Take away the weights of all but the last `keep` checkpoints that were brought here; others' files stay."""
    from huggingface_hub import scan_cache_dir

    with FileLock(suite / ".lock"):
        steps = _fetched(suite)
        pins = read_pins(suite)
        old = {pins[step].commit for step in steps[:-keep] if step in pins}
        if old:
            cached = scan_cache_dir(client.cache())
            present = {revision.commit_hash for repo in cached.repos for revision in repo.revisions}
            cached.delete_revisions(*sorted(old & present)).execute()
            files.write_json(suite / FETCHED, steps[-keep:])

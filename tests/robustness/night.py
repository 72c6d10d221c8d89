"""A night at its full size: the series with three seeds at smoke and at default as one plan, disturbed in several ways.

    python -m tests.robustness.night FOLDER plain killed dask slurm-local

By hand, and hours on two cores; tests hold the same at a small size. `plain` is left alone; of `killed` the batch
itself is killed five times at random and begun again; a worker of `dask`'s three is killed midway; `slurm-local` is
submitit's executor without SLURM. `plain` and `killed` train everything, each in its own data folder; the others go on
from plain's runs and measurements. In the end all must have the records of `plain`, and no item may have ended twice.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from lmdynamics.records import read_records
from tests.batch.test_executors import dask_cluster

ROOT = Path(__file__).parents[2]
PLAN = f"""\
[[entry]]
notebooks = ["{ROOT}/notebooks/*.ipynb"]
parameters = {{ device = "cpu" }}
grid = {{ seed = [0, 1, 2], profile = ["smoke", "default"] }}
"""
BETWEEN = (120, 420)  # seconds from one kill to the next
KILLS = 5


def begin(folder: Path, way: str, home: str, options: Sequence[str]) -> subprocess.Popen:
    """A batch in a process of its own; what it prints is added to a log beside its folder."""
    (folder / "plan.toml").write_text(PLAN)
    command = [sys.executable, "-m", "lmdynamics.cli", "batch", "--plan", folder / "plan.toml", "--out", folder / way]
    environment = {name: value for name, value in os.environ.items() if name != "LMDYNAMICS_DATA"}
    environment["LMDYNAMICS_HOME"] = str(folder / home)
    with (folder / f"{way}.log").open("a") as log:
        return subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)


def plain(folder: Path) -> int:
    return begin(folder, "plain", "home", ["--workers", "2"]).wait()


def killed(folder: Path) -> int:
    chance = random.Random()
    for kill in range(1, KILLS + 1):
        running, wait = begin(folder, "killed", "home-killed", ["--workers", "2"]), chance.uniform(*BETWEEN)
        time.sleep(wait)
        below = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        running.wait()
        _, alive = psutil.wait_procs(below, timeout=60)
        print(f"kill {kill} after {wait:.0f} s: {len(below)} processes below, {len(alive)} of them left", flush=True)
    return begin(folder, "killed", "home-killed", ["--workers", "2"]).wait()


def dask(folder: Path) -> int:
    """The worker is killed when a third of the items have come to their end."""
    with dask_cluster(folder, workers=3) as (address, workers):
        running = begin(folder, "dask", "home", ["--executor", f"dask://{address}"])
        while running.poll() is None and len(ends(folder / "dask")) < 14:
            time.sleep(1)
        workers[0].kill()
        print(f"a worker was killed after {len(ends(folder / 'dask'))} items", flush=True)
        return running.wait()


def slurm_local(folder: Path) -> int:
    return begin(folder, "slurm-local", "home", ["--executor", "slurm-local", "--workers", "2"]).wait()


WAYS = {"plain": plain, "killed": killed, "dask": dask, "slurm-local": slurm_local}


def ends(out: Path) -> list[str]:
    """The items that have come to their end, once for each time."""
    history = out / "history.jsonl"
    lines = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
    return [line["name"] for line in lines if line["status"] == "finished"]


def records(out: Path) -> dict[tuple[str, str], tuple]:
    """Every record by item and name: its value and its interval."""
    items = [path.parent for path in sorted(out.glob("*/outcome.json"))]
    return {(i.name, r.name): (r.value, r.low, r.high) for i in items for r in read_records(i)}


def compare_to_plain(out: Path, expected: dict[tuple[str, str], tuple]) -> tuple[bool, str]:
    recorded, times = records(out), Counter(ends(out))
    # compared by repr, since nan is not equal to itself
    differing = [key for key in expected | recorded if repr(expected.get(key)) != repr(recorded.get(key))]
    twice = [name for name, count in times.items() if count > 1]
    line = f"{out.name}: {len(times)} items, {len(twice)} of them ended twice; "
    line += f"{len(recorded)} records, {len(differing)} of them not as in plain"
    return not (twice or differing), "\n  ".join([line, *map(str, (*twice, *differing))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for results, logs and runs; a way that is there goes on")
    parser.add_argument("ways", nargs="*", help=f"of {', '.join(WAYS)}, in this order; none only compares")
    arguments = parser.parse_args()
    if unknown := [way for way in arguments.ways if way not in WAYS]:
        parser.error(f"there is no way {unknown[0]!r}; known: {', '.join(WAYS)}")
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    statuses = []
    for way in arguments.ways:
        began = time.monotonic()
        statuses.append(WAYS[way](folder))
        print(f"{way}: status {statuses[-1]} after {(time.monotonic() - began) / 60:.0f} min", flush=True)
    expected = records(folder / "plain")
    compared = [compare_to_plain(folder / way, expected) for way in WAYS if (folder / way).is_dir()]
    print("\n".join(line for _, line in compared))
    return int(any(statuses) or not all(same for same, _ in compared))


if __name__ == "__main__":
    sys.exit(main())

"""What `lmdynamics batch` adds to papermill, and what two processes bring, on the series at profile smoke.

The whole series is made anew each time, training and measuring included: by papermill alone (`papermill IN OUT -p …`,
one notebook after the other, in a process each), and by `lmdynamics batch` with one process and with two. The batch
adds a child process, checks, records, a page for each notebook and the index. Prints the seconds of each notebook and
of all, the ratio to papermill for each round, and how much faster two processes are than one.

    python benchmarks/batch.py [--rounds 1] [NOTEBOOK...]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))


def timed(command: list[str], home: Path) -> float:
    """Seconds of a command that has to succeed."""
    environment = os.environ | {"LMDYNAMICS_HOME": str(home), "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - began


def papermill(notebooks: Sequence[Path], where: Path) -> tuple[float, dict[str, float]]:
    """Seconds for all and for each."""
    each = {}
    for notebook in notebooks:
        out = where / notebook.stem
        out.mkdir(parents=True)
        given = ["-p", "profile", "smoke", "-p", "interactive", "False", "-p", "output_dir", str(out)]
        command = [sys.executable, "-m", "papermill", str(notebook), str(out / notebook.name), *given]
        each[notebook.stem] = timed([*command, "--no-progress-bar"], where / "home")
    return sum(each.values()), each


def batch(notebooks: Sequence[Path], where: Path, workers: int) -> tuple[float, dict[str, float]]:
    command = [sys.executable, "-m", "lmdynamics.cli", "batch", *map(str, notebooks), "--profile", "smoke"]
    seconds = timed([*command, "--out", str(where), "--workers", str(workers)], where / "home")
    outcomes = [json.loads((where / notebook.stem / "outcome.json").read_text()) for notebook in notebooks]
    return seconds, {outcome["notebook"]: outcome["seconds"] for outcome in outcomes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS, metavar="NOTEBOOK")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    ratios, gains = [], []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder)
            alone, of_alone = papermill(options.notebooks, where / "papermill")
            one, of_one = batch(options.notebooks, where / "one", 1)
            two, _ = batch(options.notebooks, where / "two", 2)
        for name, seconds in of_alone.items():
            print(f"{name}: papermill {seconds:.1f} s, batch {of_one[name]:.1f} s, {of_one[name] / seconds:.3f}")
        ratios.append(one / alone)
        gains.append(one / two)
        print(
            f"round {number + 1}: papermill {alone:.0f} s; batch {one:.0f} s, with two processes {two:.0f} s;", end=" "
        )
        print(f"batch over papermill {ratios[-1]:.3f}, two processes {gains[-1]:.2f} times as fast as one", flush=True)
    print(f"median of {options.rounds}: {statistics.median(ratios):.3f}, {statistics.median(gains):.2f} times as fast")


if __name__ == "__main__":
    main()

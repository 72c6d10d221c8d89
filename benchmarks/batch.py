"""What `lmdynamics batch` adds to papermill, and what two processes bring, on the series at profile smoke.

For each notebook, in turns so that a busy machine falls on both: papermill alone (`papermill IN OUT -p …` in a process
of its own) and `lmdynamics batch`, on runs and traces that are there already, so that as little as possible hides what
is added: a child process, checks, records, a page, the index. Then the whole series, made anew, with one process and
with two. Prints the ratio for each notebook and for their sum, and how much faster two processes are than one.

    python benchmarks/batch.py [--rounds 3] [--skip-series] [NOTEBOOK...]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
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


def papermill(notebook: Path, out: Path) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    given = ["-p", "profile", "smoke", "-p", "interactive", "False", "-p", "output_dir", str(out)]
    return [sys.executable, "-m", "papermill", str(notebook), str(out / notebook.name), *given, "--no-progress-bar"]


def batch(notebooks: list[Path], out: Path, workers: int) -> list[str]:
    command = [sys.executable, "-m", "lmdynamics.cli", "batch", *map(str, notebooks), "--profile", "smoke", "--force"]
    return [*command, "--out", str(out), "--workers", str(workers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS, metavar="NOTEBOOK")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-series", action="store_true", help="leave out the comparison of one process with two")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where, bare, ours = Path(folder), 0.0, 0.0
        for notebook in options.notebooks:
            timed(batch([notebook], where / "first", 1), where / "home")  # trains and measures what the rest will find
            pairs = [
                (
                    timed(papermill(notebook, where / "papermill" / notebook.stem), where / "home"),
                    timed(batch([notebook], where / "batch", 1), where / "home"),
                )
                for _ in range(options.rounds)
            ]
            ratios = [mine / alone for alone, mine in pairs]
            alone, mine = (statistics.median(each) for each in zip(*pairs, strict=True))
            bare, ours = bare + alone, ours + mine
            print(
                f"{notebook.stem}: papermill {alone:.1f} s, batch {mine:.1f} s, ratio {statistics.median(ratios):.3f} "
                f"(median of {len(ratios)}; {min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
        print(f"all of them: papermill {bare:.1f} s, batch {ours:.1f} s, ratio {ours / bare:.3f}")
        if not options.skip_series:
            one, two = (timed(batch(options.notebooks, where / f"series-{n}", n), where / f"home-{n}") for n in (1, 2))
            print(f"the series made anew: one process {one:.0f} s, two {two:.0f} s: {one / two:.2f} times as fast")


if __name__ == "__main__":
    main()

"""How long a reader waits: from a key on a checkpoint slider to the last repaint of the charts it moves.

Opens notebooks in a real JupyterLab in headless Chromium, runs all cells, and presses arrow keys on each explorer's
last slider, fifty times, waiting for each move to be drawn. A move ends with the last change of any chart in that
explorer, seen by the page itself (MutationObserver and animation frame). Wanted: median 100 ms, 95 % within 250 ms.
A notebook without a slider that moves a chart, or a slider that moves none, is an error, and the exit status is 1.
Where there is a text box, also from Enter behind a sentence of the reader's own to its arcs (wanted: 300 ms). Printed
beside it: how much larger the kernel has become (Linux; wanted: less than 50 MB over 200 moves).

    python benchmarks/interaction.py [--moves 50] [--profile smoke] [NOTEBOOK...]
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the browser's helpers stand with the tests

from tests.browser.copies import copy_with_parameters
from tests.browser.lab import jupyter_lab, notebook_page
from tests.browser.moves import slider_areas, timed_move, timed_sentences

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))
SENTENCES = 8  # of a reader's own


def kernel_memory(scratch: Path) -> float:
    """MB that the kernels of this JupyterLab hold: their connection files lie below `scratch`."""
    total = 0.0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{scratch}/".encode() in (process / "cmdline").read_bytes().replace(b"\0", b" ") and (
                b"ipykernel" in (process / "cmdline").read_bytes()
            ):
                total += int(re.search(r"VmRSS:\s+(\d+)", (process / "status").read_text())[1]) / 1024
        except (OSError, TypeError):  # it ended, or is about to
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS, metavar="NOTEBOOK")
    parser.add_argument("--moves", type=int, default=50)
    parser.add_argument("--profile", default="smoke")
    options, dead = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as folder:
        root, scratch = Path(folder, "root"), Path(folder, "scratch")
        root.mkdir()
        scratch.mkdir()
        home = os.environ.get("LMDYNAMICS_HOME", str(Path(folder, "home")))
        with jupyter_lab(root, scratch, LMDYNAMICS_HOME=home) as address:
            for path in options.notebooks:
                copy = copy_with_parameters(path, root, {"profile": options.profile})
                with notebook_page() as notebook:
                    notebook.open(address, copy.name)
                    notebook.run_all()
                    areas, before = slider_areas(notebook.page), kernel_memory(scratch)
                    if not areas:
                        dead.append(f"{path.stem}: no slider that moves a chart")
                    for area in areas:
                        keys = ["ArrowLeft", "ArrowRight"]
                        waits = [timed_move(notebook.page, area, keys[i // 3 % 2]) for i in range(options.moves)]
                        drawn = sorted(wait for wait in waits if wait is not None)
                        if not drawn:
                            dead.append(f"{path.stem}, explorer {area}: no move was drawn")
                            continue
                        tail = drawn[min(len(drawn) - 1, round(0.95 * (len(drawn) - 1)))]
                        print(
                            f"{path.stem}, explorer {area}: median {statistics.median(drawn):.0f} ms, 95 % within "
                            f"{tail:.0f} ms, most {drawn[-1]:.0f} ms ({len(drawn)} of {len(waits)} moves were drawn); "
                            f"the kernel has grown by {kernel_memory(scratch) - before:.0f} MB"
                        )
                        own = timed_sentences(notebook.page, area, SENTENCES)
                        drawn = [wait for wait in own if wait is not None]
                        if drawn:
                            print(f"  a sentence of one's own: {', '.join(f'{wait:.0f}' for wait in drawn)} ms")
                        elif own:
                            dead.append(f"{path.stem}, explorer {area}: no sentence of one's own was drawn")
    if dead:
        sys.exit("\n".join(dead))


if __name__ == "__main__":
    main()

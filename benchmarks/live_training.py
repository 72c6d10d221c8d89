"""What it costs to look on: the pace of training `grammar-mlm` while a notebook shows it, and while none does.

One training, in a process of its own, and a real Jupyter kernel that shows the explorer and takes it away again, in
turns of some seconds, so that a busy machine falls on both; this process receives what a page would. Then the same with
`HeldOutLoss` measured at each checkpoint as it lands, the start of the measuring process (`STARTING` seconds) apart.
Prints the slow-down (pace without ÷ pace with, median over pairs of turns), the longest that the page waited for new
steps, and what writing the live rows costs the training process.

    python benchmarks/live_training.py [--seconds 5] [--rounds 8]
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from jupyter_client.manager import start_new_kernel

from lmdynamics.runs.live import LiveLog, read_live
from lmdynamics.training.state import Log

BEGIN = """
from lmdynamics.explorers.training import TrainingExplorer, Watched
from lmdynamics.measurements.losses import HeldOutLoss
from lmdynamics.runs.background import training_of
held_out = Watched(lambda run: HeldOutLoss(run.held_out()), "loss")
training = training_of("grammar-mlm", overrides=["steps=100000", "corpus.sentences=20000"], name="run", device="cpu")
training.start()
"""
SHOW = {
    "live view": "explorer = TrainingExplorer(training)",
    "live view and held-out loss": "explorer = TrainingExplorer(training, {'held-out loss': held_out})",
}
HIDE = "explorer.close()"
STARTING = 15.0  # seconds in which the measuring process starts and catches up with the checkpoints that have landed


def turn(client, run: Path, seconds: float) -> tuple[float, list[float]]:
    """Steps a second of the next seconds, and when new steps came to the page in them."""
    before, until, came, seen = read_live(run), time.perf_counter() + seconds, [], -1
    while (left := until - time.perf_counter()) > 0:
        try:
            message = client.get_iopub_msg(timeout=left)
        except Exception:  # queue.Empty: nothing came
            break
        if message["msg_type"] == "error":
            raise SystemExit("\n".join(message["content"]["traceback"]))
        state = message["content"].get("data", {}).get("state", {}) if message["msg_type"] == "comm_msg" else {}
        rows = next((u["value"] for u in state.get("_py_to_js_updates") or [] if u["name"] == "raw"), [])
        if rows and rows[-1]["step"] > seen:
            seen = rows[-1]["step"]
            came.append(time.perf_counter())
    after = read_live(run)
    took = after["seconds"][-1] - before["seconds"][-1]
    return (len(after) - len(before)) / took if took else 0.0, came


def writing(folder: Path, steps: int = 5000) -> float:
    """Seconds that a step takes longer with `LiveLog` than with `Log`, at 100 steps a second: 50 rows a write."""
    took = []
    for kind in (Log, LiveLog):
        log, loss = kind(folder / "log.parquet"), torch.tensor(1.0)
        began = time.perf_counter()
        for step in range(steps):
            log.add(step, loss, 1e-3, 0.15, 100, step / 100)
            if kind is LiveLog and step % 50 == 0:
                log.flush()
        took.append(time.perf_counter() - began)
    return (took[1] - took[0]) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        print(f"writing live rows: {1e6 * writing(Path(home)):.1f} µs a step")
        run = Path(home) / "runs" / "run"
        manager, client = start_new_kernel(env=os.environ | {"LMDYNAMICS_HOME": home})
        try:
            client.execute_interactive(BEGIN, timeout=120)
            while len(read_live(run)) < 300:  # from there on, checkpoints are far enough apart
                time.sleep(0.1)
            for name, show in SHOW.items():
                ratios, at_start, paces, longest = [], [], [], 0.0
                measures = name != "live view"
                for _ in range(options.rounds):
                    alone, _ = turn(client, run, options.seconds)
                    client.execute_interactive(show, timeout=60)
                    starting, _ = turn(client, run, STARTING if measures else 1.0)
                    beside, came = turn(client, run, options.seconds)
                    client.execute_interactive(HIDE, timeout=60)
                    ratios.append(alone / beside)
                    at_start.append(alone / starting)
                    paces.append((alone, beside))
                    longest = max([longest, *(b - a for a, b in itertools.pairwise(came))])
                pace = [statistics.mean(each) for each in zip(*paces, strict=True)]
                print(
                    f"{name}: {pace[1]:.1f} against {pace[0]:.1f} steps/s, slow-down {statistics.median(ratios):.3f} "
                    f"(median of {len(ratios)}; {min(ratios):.2f} to {max(ratios):.2f}); "
                    f"longest gap between updates {longest:.2f} s"
                )
                if measures:
                    print(
                        f"  its first {STARTING:.0f} s: slow-down {statistics.median(at_start):.3f} "
                        f"({min(at_start):.2f} to {max(at_start):.2f})"
                    )
            client.execute_interactive("training.stop(); training.wait()", timeout=120)
        finally:
            client.stop_channels()
            manager.shutdown_kernel()


if __name__ == "__main__":
    main()

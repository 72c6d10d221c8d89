"""Loss deceleration: fits against scipy's `curve_fit`, a thousand curves, and whether intervals keep their word.

    python benchmarks/deceleration.py [--draws 200] [--curves 1000]

The published curves, and the table of other people's trajectories, need LMDYNAMICS_DATA; without it the curves are made
from the published fits with noise.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.signal import lfilter

from lmdynamics.analysis.broken_power_law import fit
from lmdynamics.analysis.deceleration import fit_deceleration
from lmdynamics.analysis.fits import fit_curves, fits_table
from lmdynamics.analysis.loss_curves import prepare
from lmdynamics.experiments.ladder import published_curves
from lmdynamics.experiments.reading import read_curves
from lmdynamics.paths import real_data_dirs

STARTS = 20
KNOWN = {"loss_at_break": 20 * 3_000**-0.2, "step_at_break": 3_000, "rate_after_break": 0.03}
LADDER = "eval/*-validation/CrossEntropyLoss"


def with_noise(curves: pl.DataFrame, sd: float = 0.003) -> pl.DataFrame:
    noise = np.exp(sd * np.random.default_rng(0).standard_normal(len(curves)))
    return curves.with_columns(pl.col("loss") * noise)


def against_curve_fit(curves: pl.DataFrame) -> None:
    """The same points, the same random starts: time per start, and root mean squared log error of the best."""

    def model(x, b, c0, c1, d, f):
        return np.log(b) - c0 * x - c1 * f * np.log1p((np.exp(x) / np.exp(d)) ** (1 / f))

    print(f"\none smooth break, {STARTS} random starts each; scipy = curve_fit on the published formula")
    columns = ("ms/start", "scipy", "ratio", "RSLE", "scipy", "agree", "scipy", "all ms")
    print(f"{'curve':<10}" + "".join(f"{column:>10}" for column in columns))
    random = np.random.default_rng(0)
    for (name,), rows in curves.group_by("curve", maintain_order=True):
        step, loss = prepare(rows["step"], rows["loss"])
        x, y = np.log(step), np.log(loss)
        places, widths = random.uniform(x[0], x[-1], STARTS), np.exp(random.uniform(np.log(0.1), np.log(1), STARTS))
        theirs = []
        began = time.perf_counter()
        ours = fit(x, np.repeat(y[None], STARTS, axis=0), 1, (places[:, None], widths[:, None])).rss.tolist()
        middle = time.perf_counter()
        for place, width in zip(places, widths, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", (RuntimeWarning, OptimizeWarning))
                try:
                    found, _ = curve_fit(model, x, y, p0=[20, 0.2, -0.1, place, width], maxfev=10_000)
                    theirs.append(((y - model(x, *found)) ** 2).sum())
                except RuntimeError:  # no convergence
                    theirs.append(np.inf)
        end = time.perf_counter()
        whole = time.perf_counter()
        fit_deceleration(rows["step"], rows["loss"], resamples=0)
        whole = 1e3 * (time.perf_counter() - whole)
        per = 1e3 * (middle - began) / STARTS, 1e3 * (end - middle) / STARTS
        rsle = [np.sqrt(min(each) / len(x)) for each in (ours, theirs)]
        best = min(*ours, *(t for t in theirs if np.isfinite(t)))
        agree = [sum(value < best * (1 + 1e-6) for value in each) for each in (ours, theirs)]
        print(
            f"{name:<10}{per[0]:>10.2f}{per[1]:>10.2f}{per[0] / per[1]:>10.2f}{rsle[0]:>10.6f}{rsle[1]:>10.6f}"
            f"{agree[0]:>10}{agree[1]:>10}{whole:>10.0f}"
        )
    print(
        "ours: all starts at once; agree: starts that end at the best of all; all ms: with two breaks, control, verdict"
    )


def many(curves: pl.DataFrame, count: int) -> None:
    """`lmdynamics fit` on a file of many curves, each a published one with other noise."""
    names, random = curves["curve"].unique(maintain_order=True).to_list(), np.random.default_rng(1)
    parts = []
    for i in range(count):
        rows = curves.filter(pl.col("curve") == names[i % len(names)])
        noise = np.exp(0.003 * random.standard_normal(len(rows)))
        parts.append(rows.select(pl.lit(f"{names[i % len(names)]} {i}").alias("curve"), "step", pl.col("loss") * noise))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "many.parquet"
        pl.concat(parts).write_parquet(file)
        command = [sys.executable, "-m", "lmdynamics.cli", "fit", str(file), "--group", "curve"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
    print(f"\n{count:,} curves of {len(curves) // len(names)} points, intervals included: {seconds:.1f} s, one command")
    print(next(line for line in done.stdout.splitlines() if " curves: " in line))


def coverage(draws: int) -> None:
    """How often 95 % intervals hold the truth, and how often one power law is said to have no break."""

    def curve(t, c1):
        return 20 * t**-0.2 * (1 + (t / 3_000) ** (1 / 0.3)) ** (-c1 * 0.3)

    spaced, few, close = (np.unique(np.geomspace(101, 60_000, points).round()) for points in (150, 30, 300))
    raw = np.arange(1, 30_001.0)
    kinds = {
        "150 points, independent noise 1 %": (spaced, 0.01, 0.0, "none"),
        "30 points, independent noise 1 %": (few, 0.01, 0.0, "none"),
        "300 points, noise 1 % with correlation .8": (close, 0.01, 0.8, "none"),
        "every step of 30,000, noise 5 %, log-median": (raw, 0.05, 0.0, "log-median"),
        "every step of 30,000, noise 5 %, log-average": (raw, 0.05, 0.0, "log-average"),
    }
    print(f"\n{draws} draws each: share of 95 % intervals that hold the truth, and how many draws have intervals;")
    print("verdicts where there is no break")
    for kind, (steps, sd, rho, smoothing) in kinds.items():
        truth = KNOWN
        if smoothing == "log-average":  # which moves a break: the truth is what it makes of the curve without noise
            clean = fit_deceleration(steps, curve(steps, -0.17), smoothing=smoothing, resamples=0)
            truth = {name: getattr(clean, name) for name in KNOWN}
        hits, straight, bounded = Counter(), Counter(), 0
        for draw in range(draws):
            random = np.random.default_rng([7, draw])
            noise = lfilter([np.sqrt(1 - rho**2)], [1, -rho], random.standard_normal(len(steps)))
            bent = fit_deceleration(steps, curve(steps, -0.17) * np.exp(sd * noise), smoothing=smoothing)
            if truth.keys() <= bent.intervals.keys():  # some verdicts come without intervals
                bounded += 1
                hits.update(
                    name for name, value in truth.items() if bent.intervals[name][0] <= value <= bent.intervals[name][1]
                )
            flat = fit_deceleration(steps, curve(steps, 0.0) * np.exp(sd * noise), smoothing=smoothing, resamples=0)
            straight[flat.verdict] += 1
        held = ", ".join(
            f"{symbol} {hits[name] / max(1, bounded):.3f}"
            for name, symbol in zip(truth, ("L_d", "t_d", "r_d"), strict=True)
        )
        none = ", ".join(f"{verdict} {count / draws:.3f}" for verdict, count in straight.most_common())
        print(f"{kind:<46} {held} of {bounded}   |   {none}")


def trajectories(folder: Path) -> None:
    """What decelerates and what does not, among other people's curves, and what a decaying learning rate does to it."""
    print("\nother people's curves: verdicts, and medians of those fitted")
    groups = {}
    for file in sorted((folder / "olmo-ladder").glob("*.csv")):
        groups[f"OLMo ladder {file.stem}, 11 sets"] = read_curves(file, loss=LADDER).frame
    for file in sorted((folder / "multi-power-law").glob("*.csv")):
        groups[f"multi-power-law {file.stem}"] = read_curves(file).frame
    decaying = pl.read_csv(folder / "multi-power-law" / "cosine_72000.csv")
    half = decaying.filter(pl.col("lr") > 0.5 * decaying["lr"].max()).select("step", "loss")
    groups["  cosine_72000, until its rate has halved"] = read_curves(half).frame
    pythia = pl.read_csv(folder / "pythia" / "zero_shot_by_step.csv").filter(
        pl.col("metric") == "ppl", pl.col("step") > 0
    )
    pythia = pythia.select(pl.col("model").alias("curve"), "step", loss=pl.col("value").log())
    groups["Pythia, log perplexity of LAMBADA, 16 models"] = pythia.sort("curve", "step")
    groups["modded-nanogpt, 1,507 runs"] = read_curves(folder / "modded-nanogpt" / "val_loss_all_runs.csv").frame
    for name, curves in groups.items():
        began = time.perf_counter()
        table = fits_table(fit_curves(curves, resamples=200, progress=False))
        seconds = time.perf_counter() - began
        told = ", ".join(
            f"{count} {verdict}" for verdict, count in table["verdict"].value_counts(sort=True).iter_rows()
        )
        kept = table.filter(pl.col("verdict") != "not fitted")
        middle = ""
        if len(kept):
            t, before, after = (kept[c].median() for c in ("step_at_break", "rate_before_break", "rate_after_break"))
            middle = f"t_d {t:,.0f}, rate {before:.3f} to {after:.3f}"
        print(f"{name:<50} {told:<66} {middle:<36} {seconds:5.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--curves", type=int, default=1_000)
    given = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    seen, source, real = published_curves()
    print(source)
    seen = seen if real else with_noise(seen)
    against_curve_fit(seen)
    many(seen, given.curves)
    coverage(given.draws)
    for data in real_data_dirs():
        if (data / "trajectories").is_dir():
            trajectories(data / "trajectories")
            break

"""Loss curves of a ladder of sizes, which of their breaks a fit has found, and what Mircea et al. 2025 published.

From the paper (arXiv 2506.05447): fits of eight models and, where they can be had, the curves.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import partial

import numpy as np
import polars as pl
from jaxtyping import Float

from lmdynamics.analysis.deceleration import LOCATED
from lmdynamics.analysis.fits import fits_table, power_laws
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.loss_curves import prepare
from lmdynamics.corpora.tokens import TokenRows, annotated_rows
from lmdynamics.corpora.treebanks import Treebank
from lmdynamics.errors import UserError
from lmdynamics.experiments.reading import read_curves
from lmdynamics.hub.suites import open_run
from lmdynamics.measurements.losses import HeldOutLoss
from lmdynamics.measurements.trace import Measurement, trace
from lmdynamics.paths import SUITE, real_data_dirs, shipped
from lmdynamics.runs.run import Run
from lmdynamics.runs.sweep import sweep

LAST_STEP = 262_144  # of the published runs, up to some hundreds; those of 1B and 7B parameters went on


def published_fits() -> pl.DataFrame:
    """The published table (Mircea et al. 2025) in the columns of `fits_table`, with size, parameters and final_loss.

    It gives no intervals: these columns are null. The models of 1B and 7B parameters were trained by others for longer,
    so that their final losses stand at other steps.
    """
    table = pl.read_csv(shipped("published") / "zsl_bnsl_fits.csv")
    size = pl.col("model").str.extract(r"([\d.]+)[MB]$").cast(pl.Float64)
    unit = pl.when(pl.col("model").str.ends_with("B")).then(1e9).otherwise(1e6)
    renamed = table.select(
        pl.col("model").alias("curve"),
        pl.col("model").alias("size"),
        (size * unit).cast(pl.Int64).alias("parameters"),
        pl.lit("decelerates").alias("verdict"),
        loss_at_break="L_d",
        step_at_break=pl.col("t_d").cast(pl.Float64),
        rate_before_break="c0",
        rate_after_break="r_d",
        final_loss="L_T_measured",
        predicted_loss="L_T_predicted",
        last_step=pl.when(pl.col("model").str.ends_with("M")).then(float(LAST_STEP)),
        **{name: pl.col(name) for name in ("b", "c0", "c1", "log_d1", "f1", "rsle")},
    )
    missing = [pl.lit(None, kind).alias(name) for name, kind in fits_table({}).schema.items() if name not in renamed]
    return renamed.with_columns(missing)


def published_interference() -> pl.DataFrame:
    """Interference and magnitude as published (Mircea et al. 2025), read off the vector figures.

    Rows: metric (interference, magnitude, abs_mean_change, gradient_interference, C_g, ...), interval (doubling,
    one_step, gradient), split (train or eval), model, parameters (Int64), step (of a doubling, where it begins), value
    (losses in nats). The last digits are the drawing's.
    """
    table = pl.read_csv(shipped("published") / "zsl_curves.csv")
    millions = pl.col("model").str.strip_suffix("M").cast(pl.Int64)
    return table.select("metric", "interval", "split", "model", (millions * 10**6).alias("parameters"), "step", "value")


def drawn_from(fits: pl.DataFrame, steps: Float[np.ndarray, " steps"]) -> pl.DataFrame:
    """The curves that some fits describe, at some steps: curve, step, loss. They have no noise: they were not seen."""
    need_columns(fits, ["curve", "b", "c0", "c1", "log_d1", "f1"], "drawing fits")
    x = np.log(steps)
    parts = []
    for curve, b, c0, c1, d, f in fits.select("curve", "b", "c0", "c1", "log_d1", "f1").iter_rows():
        loss = b * np.exp(-c0 * x - c1 * f * np.logaddexp(0, (x - d) / f))
        parts.append(pl.DataFrame({"curve": [curve] * len(x), "step": steps, "loss": loss}))
    return pl.concat(parts)


def published_curves() -> tuple[pl.DataFrame, str, bool]:
    """The published loss curves (curve, step, loss), a sentence on what they are, and whether they were measured.

    The real ones where `trajectories/zsl/smoothed_loss.csv` of the authors' repository lies below one of the folders
    searched for data; otherwise what the printed fits describe, which has neither noise nor misfit.
    """
    for folder in real_data_dirs():
        if (file := folder / "trajectories" / "zsl" / "smoothed_loss.csv").is_file():
            read = read_curves(file)
            return read.frame, f"The authors' smoothed losses of {', '.join(read.names)}.", True
    steps = np.unique(np.geomspace(110, LAST_STEP, 200).round())
    told = (
        "Drawn from the eight printed fits, not measured: fitting them checks the fitter and is no finding. For the "
        "authors' own curves, put their smoothed_loss.csv into trajectories/zsl below the folder that LMDYNAMICS_DATA "
        "names."
    )
    return drawn_from(published_fits(), steps), told, False


NEAR = 1.5  # a break within this factor of the step where the unigram phase ends is that phase's end


def unigram_entropy(rows: TokenRows, special: Collection[int] | None = None) -> float:
    """What a model that knows only how frequent each token is would lose on these rows: nats per predicted token.

    A causal model predicts every token but the first of a row, which is predicted from nothing. With `special`, the
    ids of special tokens, a masked model is meant: it predicts every token that is none of these.
    """
    ids = np.asarray(rows.ids)
    predicted = np.ones(len(ids), bool) if special is None else ~np.isin(ids, list(special))
    if special is None:
        predicted[np.asarray(rows.offsets[:-1])] = False
    counts = np.bincount(ids[predicted])
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def ladder_runs(
    plan: str, profile: str = "default", seeds: Sequence[int] = (0,), changes=(), **options
) -> pl.DataFrame:
    """The runs of a ladder, as `sweep` gives them: condition, seed, run, error.

    `plan`: a sweep's, whose runs are trained where they are not there yet; or addresses of published suites
    (`hf://OWNER/NAME?steps=log:20`), separated by spaces, to which profile, seeds and changes do not apply.
    `options`: of `sweep`.
    """
    if not plan.startswith(SUITE):
        return sweep(plan, profile, seeds, changes, **options)
    rows = [(open_run(address).name, 0, address, None) for address in plan.split()]
    schema = {"condition": pl.String, "seed": pl.Int64, "run": pl.String, "error": pl.String}
    return pl.DataFrame(rows, schema, orient="row")


def rows_of(run: Run, trees: Treebank) -> tuple[TokenRows, pl.DataFrame]:
    """The text of some trees as rows for a run's models, and what each token is; see `annotated_rows`.

    Rows are as long as those it was trained on; a run that was trained elsewhere gets a sentence a row.
    """
    return annotated_rows(trees, run[run.steps[0]].tokenizer, run.recipe.corpus["block_size"] if run.recipe else 0)


def ladder_curves(
    made: pl.DataFrame, treebank: str = "grammar", *, device: str = "cpu", progress: bool | None = False
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Losses of the runs of a ladder over training, and what each run is.

    Returns curves (curve, step, loss) and runs (curve, size, seed, run, parameters, unigram_entropy, final_loss on
    held-out rows with its stderr); a curve is called by size and seed. Losses are those of training: no sentence is
    seen twice in these recipes, so they are held-out losses with other noise. A published suite logs none; its curve is
    the loss on sentences of `treebank` at its checkpoints, from the first step on.

    Raises UserError if no run is complete, or a run logs no loss and there is no text to measure it on.
    """
    whole = made.filter(pl.col("error").is_null())
    if whole.is_empty():
        raise UserError(f"none of the {len(made)} runs is complete" + (f": {made['error'][0]}" if len(made) else ""))
    curves, rows = [], []
    for size, seed, name in whole.select("condition", "seed", "run").iter_rows():
        run, published = open_run(name), name.startswith(SUITE)
        if not published and not len(run.log):
            raise UserError(f"{run.folder} has no log of its losses; train it with `lmdynamics sweep`")
        curve, last = size if published else f"{size} seed {seed}", run[run.steps[-1]]
        held_out = run.held_out(run.treebank(treebank) if published else None)
        measure = partial(trace, run, HeldOutLoss(held_out), device=device)
        log = measure(progress=progress).filter(pl.col("step") > 0) if published else run.log
        curves.append(log.select(pl.lit(curve).alias("curve"), pl.col("step").cast(pl.Int64), "loss"))
        end = measure(steps=[last.step], progress=False).row(0, named=True)
        parameters = sum(p.numel() for p in last.model().parameters())
        special = None if last.objective == "clm" else last.tokenizer.all_special_ids
        entropy = unigram_entropy(held_out, special)
        rows.append((curve, size, seed, name, parameters, entropy, end["loss"], end["stderr"]))
    numbers = dict.fromkeys(("unigram_entropy", "final_loss", "stderr"), pl.Float64)
    names = {"curve": pl.String, "size": pl.String, "seed": pl.Int64, "run": pl.String, "parameters": pl.Int64}
    frame = pl.concat(curves).filter(pl.col("loss").is_finite())
    return frame, pl.DataFrame(rows, {**names, **numbers}, orient="row")


def unigram_phase_ends(curves: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The step at which each curve's averaged loss first falls below the unigram entropy: curve, ends (null: never)."""
    need_columns(runs, ["curve", "unigram_entropy"], "the unigram phase")
    rows = []
    for curve, entropy in runs.select("curve", "unigram_entropy").iter_rows():
        of = curves.filter(pl.col("curve") == curve).sort("step")
        step, loss = prepare(of["step"], of["loss"], "log-average", skip_steps=0)
        below = np.flatnonzero(loss < entropy)
        rows.append((curve, float(step[below[0]]) if len(below) else None))
    return pl.DataFrame(rows, {"curve": pl.String, "ends": pl.Float64}, orient="row")


def which_break(fits: pl.DataFrame, phases: pl.DataFrame) -> pl.DataFrame:
    """Which break each fit found: `fits_table` with `ends` of the unigram phase and `which`.

    `which`: `end of the unigram phase` within a factor of 1.5 of it, `after it`, `before it` (also where it never
    ends), or `none` without a break that was located. A short run's one break is that phase's end: the model has
    learned how frequent each token is, and goes on to what is harder.
    """
    ratio = pl.col("step_at_break") / pl.col("ends")
    which = (
        pl.when(~pl.col("verdict").is_in(LOCATED))
        .then(pl.lit("none"))
        .when(ratio > NEAR)
        .then(pl.lit("after it"))
        .when((ratio < 1 / NEAR) | pl.col("ends").is_null())
        .then(pl.lit("before it"))
        .otherwise(pl.lit("end of the unigram phase"))
    )
    return fits.join(phases, on="curve", how="left", maintain_order="left").with_columns(which.alias("which"))


def as_published(fits: pl.DataFrame) -> str:
    """Whether L_d falls and r_d rises with size, as published: a sentence, from `fits_table` with `parameters`.

    Only curves that decelerate have an L_d and an r_d; where most do not, there is nothing to compare.
    """
    slowing = fits.filter(pl.col("verdict") == "decelerates")
    if 2 * len(slowing) < len(fits) or slowing["parameters"].n_unique() < 3:
        return (
            f"Only {len(slowing)} of {len(fits)} curves decelerate, at {slowing['parameters'].n_unique()} sizes: there "
            "is no L_d and no r_d to follow over sizes."
        )
    said = []
    laws = power_laws(slowing, ["loss_at_break", "rate_after_break"])
    for symbol, falls, row in zip(("L_d", "r_d"), (True, False), laws.to_dicts(), strict=True):
        if row["low"] is None:
            said.append(f"{symbol} is positive in {row['curves']} curves only, of {row['sizes']} sizes")
            continue
        found = f"{symbol} ∝ N^{row['exponent']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        if row["low"] <= 0 <= row["high"]:
            said.append(f"{found}: undecided whether it moves with size")
        else:
            way = "falls" if row["exponent"] < 0 else "rises"
            verdict = "as published" if (way == "falls") == falls else "not as published"
            said.append(f"{found}: {way} with size, {verdict}")
    return "; ".join(said) + f" ({len(slowing)} of {len(fits)} curves decelerate)."


def trace_ladder(
    runs: pl.DataFrame,
    measurement: Measurement,
    *,
    steps: Iterable[int] | None = None,
    device: str = "cpu",
    progress: bool | None = None,
) -> pl.DataFrame:
    """One measurement of every run of a ladder: the rows of `trace`, with `curve` and `size` in front.

    `runs`: curve, size, run, as `ladder_curves` gives them. `steps`: by default 1, 2, 4, …, those a run has.
    """
    need_columns(runs, ["curve", "size", "run"], "tracing a ladder")
    frames = []
    for curve, size, name in runs.select("curve", "size", "run").iter_rows():
        run = open_run(name)
        at = doubling_steps(run) if steps is None else steps
        found = trace(run, measurement, steps=at, device=device, progress=progress)
        frames.append(found.select(pl.lit(curve).alias("curve"), pl.lit(size).alias("size"), pl.all()))
    return pl.concat(frames)


def doubling_steps(run: Run) -> list[int]:
    """The run's checkpoints at 1, 2, 4, … steps.

    Where those end early, as in Pythia at 512, all that are half or double another one; where none is, all.
    """
    steps = {*run.steps} - {0}
    powers = sorted(step for step in steps if step & (step - 1) == 0)
    if powers and 2 * powers[-1] > max(steps):
        return powers
    pairs = sorted(step for step in steps if 2 * step in steps or (step % 2 == 0 and step // 2 in steps))
    return pairs or sorted(steps)

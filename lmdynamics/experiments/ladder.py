"""Loss curves of a ladder of model sizes, the break that each fit found, and the results of Mircea et al. 2025.

From the paper (arXiv 2506.05447): fits of eight models and, if available, the curves.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from lmdynamics.analysis.deceleration import LOCATED
from lmdynamics.analysis.fits import fit_curves, fits_table, null_curves, power_laws
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.analysis.loss_curves import prepare
from lmdynamics.corpora.tokens import TokenRows, annotated_rows, unigram_counts
from lmdynamics.corpora.treebanks import Treebank
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.experiments.reading import read_curves
from lmdynamics.hub.suites import open_run
from lmdynamics.paths import SUITE, real_data_dirs, shipped
from lmdynamics.runs.run import Run
from lmdynamics.runs.sweep import read_plan, sweep

REFERENCE = "reference"  # in the place of a plan: results that are measured already
OWN_PLAN = "grammar-ladder"  # what a reader trains beside them
LAST_STEP = 262_144  # of the published runs, within some hundreds of steps; those of 1B and 7B parameters are longer


def published_fits() -> pl.DataFrame:
    """The published table (Mircea et al. 2025) in the columns of `fits_table`, with size, parameters and final_loss.

    Its intervals are unknown: these columns are null. The models of 1B and 7B parameters were trained by others for
    longer, so their final losses are at other steps.
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
    one_step, gradient), split (train or eval), model, parameters (Int64), step (the start of a doubling), value
    (losses in nats). The last digits are only as precise as the figure that they were read from.
    """
    table = pl.read_csv(shipped("published") / "zsl_curves.csv")
    millions = pl.col("model").str.strip_suffix("M").cast(pl.Int64)
    return table.select("metric", "interval", "split", "model", (millions * 10**6).alias("parameters"), "step", "value")


def curves_from_fits(fits: pl.DataFrame, steps: Float[np.ndarray, " steps"]) -> pl.DataFrame:
    """The curves of some fits at some steps: curve, step, loss. They are computed, so they have no noise."""
    need_columns(fits, ["curve", "b", "c0", "c1", "log_d1", "f1"], "drawing fits")
    x = np.log(steps)
    parts = []
    for curve, b, c0, c1, d, f in fits.select("curve", "b", "c0", "c1", "log_d1", "f1").iter_rows():
        loss = b * np.exp(-c0 * x - c1 * f * np.logaddexp(0, (x - d) / f))
        parts.append(pl.DataFrame({"curve": [curve] * len(x), "step": steps, "loss": loss}))
    return pl.concat(parts)


def published_curves() -> tuple[pl.DataFrame, str, bool]:
    """The published loss curves (curve, step, loss), a sentence on their source, and whether they were measured.

    The measured ones if `trajectories/zsl/smoothed_loss.csv` of the authors' repository is below one of the data
    folders; otherwise curves of the published fits, which have neither noise nor misfit.
    """
    for folder in real_data_dirs():
        if (file := folder / "trajectories" / "zsl" / "smoothed_loss.csv").is_file():
            curves = read_curves(file)
            return curves.frame, f"The authors' smoothed losses of {', '.join(curves.names)}.", True
    steps = np.unique(np.geomspace(110, LAST_STEP, 200).round())
    description = (
        "Computed from the eight published fits, not measured: fitting them only checks the fitting code. For the "
        "authors' own curves, copy their smoothed_loss.csv to trajectories/zsl in the folder LMDYNAMICS_DATA."
    )
    return curves_from_fits(published_fits(), steps), description, False


PHASE_END_FACTOR = 1.5  # a break within this factor of the step where the unigram phase ends is that phase's end


def unigram_entropy(rows: TokenRows, special: Collection[int] | None = None) -> float:
    """The loss of a model that knows only token frequencies on these rows: nats per predicted token.

    A causal model predicts every token except the first of a row. With `special`, the ids of special tokens, the
    model is a masked one: it predicts every other token.
    """
    counts = unigram_counts(rows, special)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def ladder_runs(
    plan: str, profile: str = "default", seeds: Sequence[int] = (0,), changes=(), **options
) -> pl.DataFrame:
    """The runs of a ladder, as in `sweep`: condition, seed, run, error.

    `plan`: of a sweep, whose missing runs are trained; or addresses of published suites
    (`hf://OWNER/NAME?steps=log:20`), separated by spaces, to which profile, seeds and changes do not apply: their seed
    is null.
    `options`: of `sweep`.
    """
    if not plan.startswith(SUITE):
        return sweep(plan, profile, seeds, changes, **options)
    rows = [(open_run(address).name, None, address, None) for address in plan.split()]
    schema = {"condition": pl.String, "seed": pl.Int64, "run": pl.String, "error": pl.String}
    return pl.DataFrame(rows, schema, orient="row")


def tree_rows(run: Run, trees: Treebank) -> tuple[TokenRows, pl.DataFrame]:
    """The text of some trees as rows for a run's models, and the labels of tokens; see `annotated_rows`.

    Rows are as long as the run's training rows; for a run without a recipe, each sentence is a row.
    """
    return annotated_rows(trees, run[run.steps[0]].tokenizer, run.recipe.corpus["block_size"] if run.recipe else 0)


def ladder_curves(results: Mapping[str, pl.DataFrame]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Losses of a ladder over training, and a table of its runs, from the smallest model to the largest.

    `results`: tables of `tables.ladder` (of reference results, or of `measure_sweep`). Returns curves (curve, step,
    loss) and runs (curve, size, seed, parameters, unigram_entropy, final_loss on held-out rows with its stderr);
    the name of a curve has size and seed. Losses are training losses: these recipes repeat no sentence, so they equal
    held-out losses up to noise.
    """
    runs = by_curve(results["runs"]).sort("parameters", "seed", maintain_order=True)
    log = by_curve(results["log"]).select("curve", pl.col("step").cast(pl.Int64), pl.col("loss").cast(pl.Float64))
    order = runs.select("curve", place=pl.int_range(pl.len()))
    log = log.join(order, on="curve").sort("place", "step", maintain_order=True).drop("place")
    return log.filter(pl.col("loss").is_finite()), runs


def by_curve(table: pl.DataFrame) -> pl.DataFrame:
    """A table of a ladder's results with curve and size in the place of condition; seed stays."""
    curve = pl.coalesce(pl.format("{} seed {}", "condition", "seed"), "condition").alias("curve")  # suites have no seed
    return table.select(curve, pl.col("condition").alias("size"), pl.exclude("condition"))


def interval_units(runs: pl.DataFrame) -> str:
    """What `over_seeds` gives the intervals over: seeds, if a size has two runs or more."""
    return "seeds" if runs["size"].is_duplicated().any() else "rows of text"


def run_and_control(
    plan: str, size: str = "", profile: str = "default", seed: int = 0, changes=(), **options
) -> tuple[Run, Run]:
    """A run of a ladder to look into, and another that has learned about as much.

    `size`: by default the first. The other run has the next seed; of suites it is the next in the list, or the same
    one if there is only one. For `reference` both are trained on `grammar-ladder`. `options`: of `sweep`.
    """
    if plan.startswith(SUITE):
        suites = [open_run(address) for address in plan.split()]
        names = [run.name for run in suites]
        if size and size not in names:
            raise UserError(f"size is {size!r}, which is not among these suites{did_you_mean(size, names)}")
        chosen = names.index(size) if size else 0
        return suites[chosen], suites[min(chosen + 1, len(suites) - 1)]
    plan = OWN_PLAN if plan == REFERENCE else plan
    size = size or read_plan(plan).conditions[0].name
    swept = sweep(plan, profile, (seed, seed + 1), changes, only=[size], **options).filter(condition=size)
    if len(failed := swept.drop_nulls("error")):
        raise UserError(f"{size}: {failed['error'][0]}")
    return tuple(open_run(name) for name in swept["run"])


def unigram_phase_ends(curves: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The step at which each curve's averaged loss first falls below the unigram entropy: curve, ends (null: never)."""
    need_columns(runs, ["curve", "unigram_entropy"], "the unigram phase")
    rows = []
    for curve, entropy in runs.select("curve", "unigram_entropy").iter_rows():
        curve_rows = curves.filter(pl.col("curve") == curve).sort("step")
        step, loss = prepare(curve_rows["step"], curve_rows["loss"], "log-average", skip_steps=0)
        below = np.flatnonzero(loss < entropy)
        rows.append((curve, round(step[below[0]]) if len(below) else None))
    return pl.DataFrame(rows, {"curve": pl.String, "ends": pl.Int64}, orient="row")


def which_break(fits: pl.DataFrame, phases: pl.DataFrame) -> pl.DataFrame:
    """The break that each fit found: `fits_table` with `ends` of the unigram phase and `which`.

    `which`: `end of the unigram phase` within a factor of 1.5 of it, `after it`, `before it` (also where it never
    ends), or `none` without a located break. A short run's only break is the end of that phase: the model has learned
    the token frequencies, and then learns harder patterns.
    """
    ratio = pl.col("step_at_break") / pl.col("ends")
    which = (
        pl.when(~pl.col("verdict").is_in(LOCATED))
        .then(pl.lit("none"))
        .when(ratio > PHASE_END_FACTOR)
        .then(pl.lit("after it"))
        .when((ratio < 1 / PHASE_END_FACTOR) | pl.col("ends").is_null())
        .then(pl.lit("before it"))
        .otherwise(pl.lit("end of the unigram phase"))
    )
    return fits.join(phases, on="curve", how="left", maintain_order="left").with_columns(which.alias("which"))


def fits_after_phase(
    curves: pl.DataFrame, runs: pl.DataFrame, smoothing: str = "log-average", seed: int = 0
) -> pl.DataFrame:
    """Fits of all curves from the steps where their unigram phases end: `which_break`, with the columns of `runs`.

    A curve that never leaves the phase is not fitted. A break without an interval (because a level shift fits better)
    is not located: its L_d and r_d may be anything.
    """
    later = after_phase(curves, runs)
    options = {"smoothing": smoothing, "skip_steps": 0, "seed": seed, "progress": False}
    fits = fit_curves(later, **options) if len(later) else {}
    never = UserError("the loss never falls below the unigram entropy")
    every = {curve: fits.get(curve, never) for curve in runs["curve"]}
    table = fits_table(every)
    unbounded = pl.col("verdict").is_in(LOCATED) & pl.col("step_at_break_low").is_null()
    table = table.with_columns(
        verdict=pl.when(unbounded).then(pl.lit("break not located")).otherwise("verdict"),
        reason=pl.when(unbounded).then(pl.col("reason") + "; no interval").otherwise("reason"),
    )
    return which_break(table, unigram_phase_ends(curves, runs)).join(runs, on="curve", maintain_order="left")


def null_fits_after_phase(
    curves: pl.DataFrame, runs: pl.DataFrame, smoothing: str = "log-average", seed: int = 0
) -> pl.DataFrame:
    """The control of `fits_after_phase`: fits of curves that are made without a break (`null_curves`) from its points.

    Without rows if no curve is long enough after the unigram phase.
    """
    try:
        made = null_curves(after_phase(curves, runs), 0, smoothing, seed)
    except UserError:
        return fits_table({})
    return fits_table(fit_curves(made, smoothing=smoothing, skip_steps=0, seed=seed, progress=False))


def after_phase(curves: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The points of each curve after the end of its unigram phase: curve, step, loss."""
    later = curves.join(unigram_phase_ends(curves, runs), on="curve", maintain_order="left")
    return later.filter(pl.col("step") > pl.col("ends")).select("curve", "step", "loss")


def across_breaks(interference: pl.DataFrame, fits: pl.DataFrame) -> pl.DataFrame:
    """Mean D over the doublings that end before each run's break, and over those that begin after it.

    `interference`: curve, size, seed, step, until, interference; `fits`: rows of `fits_after_phase`. Rows: size, seed,
    parameters, before, after, difference, of the runs with a located break and doublings on both sides of it.
    """
    breaks = fits.filter(pl.col("which") != "none").select("curve", "parameters", "step_at_break")
    d = interference.join(breaks, on="curve", maintain_order="left")
    means = d.group_by("size", "seed", "parameters", maintain_order=True).agg(
        before=pl.col("interference").filter(pl.col("until") <= pl.col("step_at_break")).mean(),
        after=pl.col("interference").filter(pl.col("step") >= pl.col("step_at_break")).mean(),
    )
    return means.with_columns(difference=pl.col("after") - pl.col("before")).drop_nulls("difference")


def as_published(fits: pl.DataFrame) -> str:
    """A sentence on whether L_d falls and r_d rises with size, as published, from `fits_table` with `parameters`.

    Only curves that decelerate have L_d and r_d; if most do not, there is no comparison.
    """
    slowing = fits.filter(pl.col("verdict") == "decelerates")
    sizes = slowing["parameters"].n_unique()
    if 2 * len(slowing) < len(fits) or sizes < 3:
        where = f"at {sizes} size{'s' * (sizes != 1)}"
        return f"{len(slowing)} of {len(fits)} curves decelerate, {where}: too few to compare L_d and r_d over sizes."
    sentences = []
    laws = power_laws(slowing, ["loss_at_break", "rate_after_break"])
    for symbol, falls, row in zip(("L_d", "r_d"), (True, False), laws.to_dicts(), strict=True):
        if row["low"] is None:
            sentences.append(f"{symbol} is positive in {row['curves']} curves only, of {row['sizes']} sizes")
            continue
        law_text = f"{symbol} ∝ N^{row['exponent']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        if row["low"] <= 0 <= row["high"]:
            sentences.append(f"{law_text}: undecided whether it changes with size")
        else:
            direction = "falls" if row["exponent"] < 0 else "rises"
            verdict = "as published" if (direction == "falls") == falls else "not as published"
            sentences.append(f"{law_text}: {direction} with size, {verdict}")
    return "; ".join(sentences) + f" ({len(slowing)} of {len(fits)} curves decelerate)."


def doubling_steps(run: Run) -> list[int]:
    """The run's checkpoints at 1, 2, 4, … steps.

    If those end early, as in Pythia at 512: all that are half or twice another one; if there are none, all.
    """
    steps = {*run.steps} - {0}
    powers = sorted(step for step in steps if step & (step - 1) == 0)
    if powers and 2 * powers[-1] > max(steps):
        return powers
    pairs = sorted(step for step in steps if 2 * step in steps or (step % 2 == 0 and step // 2 in steps))
    return pairs or sorted(steps)

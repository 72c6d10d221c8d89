"""What Mircea et al. 2025 (arXiv 2506.05447) published: fits of eight models, and where they can be had, the curves."""

import numpy as np
import polars as pl
from jaxtyping import Float

from lmdynamics.analysis.fits import fits_table
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.experiments.reading import read_curves
from lmdynamics.paths import real_data_dirs, shipped

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

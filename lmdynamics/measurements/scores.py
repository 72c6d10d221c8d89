"""How well predictions fit labels, by the names that tasks use: accuracy, f1, matthews, pearson, spearman."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int64


def accuracy(gold: Int64[np.ndarray, " n"], said: Int64[np.ndarray, " n"]) -> float:
    """Share of examples that are right."""
    return float((gold == said).mean())


def f1(gold: Int64[np.ndarray, " n"], said: Int64[np.ndarray, " n"]) -> float:
    """Harmonic mean of precision and recall of label 1; 0 where none is found or there is none."""
    found = int(((gold == 1) & (said == 1)).sum())
    return 2 * found / max(1, int((gold == 1).sum() + (said == 1).sum()))


def matthews(gold: Int64[np.ndarray, " n"], said: Int64[np.ndarray, " n"]) -> float:
    """Correlation of two binary labellings (Matthews 1975); 0 if either is constant."""
    return pearson((gold == 1).astype(float), (said == 1).astype(float))


def pearson(gold: Float64[np.ndarray, " n"], said: Float64[np.ndarray, " n"]) -> float:
    """Linear correlation; 0 if either side is constant, as a model that always says the same knows nothing."""
    from scipy.stats import pearsonr

    return float(pearsonr(gold, said).statistic) if np.ptp(gold) and np.ptp(said) else 0.0


def spearman(gold: Float64[np.ndarray, " n"], said: Float64[np.ndarray, " n"]) -> float:
    """Correlation of ranks; 0 if either side is constant."""
    from scipy.stats import spearmanr

    return float(spearmanr(gold, said).statistic) if np.ptp(gold) and np.ptp(said) else 0.0


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    score.__name__: score for score in (accuracy, f1, matthews, pearson, spearman)
}

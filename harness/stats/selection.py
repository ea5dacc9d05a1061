"""How alike chosen sets are, and what a score goes along with or tells apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

Chosen = npt.NDArray[np.bool_]


def jaccard(first: Chosen, second: Chosen) -> float:
    """What two sets share, of all that either has [N]; 1.0 for two empty ones."""
    if first.shape != second.shape:
        raise ValueError(f"sets of shapes {first.shape!r}, {second.shape!r}; expected the same")
    either = int((first | second).sum())
    return float((first & second).sum() / either) if either else 1.0


def stability(sets: Sequence[Chosen]) -> float:
    """Mean overlap of all pairs of sets, such as one selector's under several seeds."""
    if len(sets) < 2:
        raise ValueError(f"{len(sets)!r} sets; expected at least 2")
    return float(np.mean([jaccard(a, b) for a, b in itertools.combinations(sets, 2)]))


def overlap_of_random(n: int, first: int, second: int) -> float:
    """What two random sets of these sizes, out of n, share: k/(a + b - k) at the mean k = ab/n."""
    shared = first * second / n
    return shared / (first + second - shared) if first + second else 1.0


def rank_correlation(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Spearman's rank correlation, such as of scores and lengths; nan where one is constant."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def roc_area(scores: npt.ArrayLike, high: Chosen) -> float:
    """P(a score of `high` > one of the others), ties half; nan where either side is empty.

    The area under the ROC curve, by ranks: Mann and Whitney's U / (n_high n_low).
    """
    values, n = np.asarray(scores, dtype=np.float64), int(high.sum())
    if values.shape != high.shape or not np.isfinite(values).all():
        raise ValueError(
            f"scores of shape {values.shape!r}; expected finite ones of shape {high.shape!r}"
        )
    if n in (0, high.size):
        return float("nan")
    above = stats.rankdata(values)[high].sum() - n * (n + 1) / 2
    return float(above / (n * (high.size - n)))

"""Overlap of chosen sets, and what a score correlates with or separates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

Chosen = npt.NDArray[np.bool_]


def jaccard(first: Chosen, second: Chosen) -> float:
    """|A and B| / |A or B| of two sets [N]; 1.0 for two empty ones."""
    if first.shape != second.shape:
        raise ValueError(f"sets of shapes {first.shape!r}, {second.shape!r}; expected the same")
    either = int((first | second).sum())
    return float((first & second).sum() / either) if either else 1.0


def stability(sets: Sequence[Chosen]) -> float:
    """Mean overlap of all pairs of sets, such as one selector's under several seeds."""
    if len(sets) < 2:
        raise ValueError(f"{len(sets)!r} sets; expected at least 2")
    return float(np.mean([jaccard(a, b) for a, b in itertools.combinations(sets, 2)]))


def rank_correlation(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Spearman's rank correlation, such as of scores and lengths; nan where one is constant."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def placements(scores: npt.ArrayLike, others: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """For every score, the share of `others` above it, ties half.

    Their mean is P(other > score): the area under the ROC curve, Mann and Whitney's U / (n m), of
    any group of scores against the same others (DeLong and others 1988).
    """
    values, against = np.asarray(scores, dtype=np.float64), np.sort(np.asarray(others, np.float64))
    if not against.size or not (np.isfinite(values).all() and np.isfinite(against).all()):
        raise ValueError(
            f"scores of shape {values.shape!r}; expected finite ones against at least 1"
        )
    below = np.searchsorted(against, values, side="left")
    upto = np.searchsorted(against, values, side="right")
    shares: npt.NDArray[np.float64] = 1 - (below + upto) / (2 * against.size)
    return shares

"""Corrections for many comparisons, and the verdicts that follow from them.

A verdict needs both an adjusted p below alpha and an adjusted interval that excludes 0.

Holm (primary metric, familywise error). The comparison with the k-th smallest of m p-values gets
its interval at level alpha / (m - k + 1), the level at which Holm's step-down tests it; tied
p-values share the smallest level. For t tests the interval excludes 0 exactly where that step
rejects. These intervals agree with Holm's decision; they do not all cover at once with 1 - alpha
(only alpha / m for each would promise that).

Benjamini-Hochberg (method x task grid, exploratory, false discovery rate). With r of m rejected,
all intervals are at level max(r, 1) alpha / m: among the rejected ones, at most alpha are expected
to miss (Benjamini and Yekutieli, JASA 100, 2005).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from statsmodels.stats.multitest import multipletests

from harness.stats.grid import FloatArray
from harness.stats.paired import Difference, Verdict


def holm(family: Sequence[Difference], alpha: float = 0.05) -> list[Difference]:
    """The family with `p_holm`, adjusted intervals and verdicts."""
    if not family:
        return []
    p = _p_values(family)
    adjusted = multipletests(p, alpha=alpha, method="holm")[1]
    smaller = (p[None, :] < p[:, None]).sum(axis=1)
    levels = alpha / (len(p) - smaller)
    return [
        _decide(dataclasses.replace(one, p_holm=float(value)), float(value), float(level), alpha)
        for one, value, level in zip(family, adjusted, levels, strict=True)
    ]


def benjamini_hochberg(family: Sequence[Difference], alpha: float = 0.05) -> list[Difference]:
    """The family with `p_bh`, adjusted intervals and (exploratory) verdicts."""
    if not family:
        return []
    p = _p_values(family)
    adjusted = multipletests(p, alpha=alpha, method="fdr_bh")[1]
    level = max(int((adjusted < alpha).sum()), 1) * alpha / len(p)
    return [
        _decide(dataclasses.replace(one, p_bh=float(value)), float(value), level, alpha)
        for one, value in zip(family, adjusted, strict=True)
    ]


def _p_values(family: Sequence[Difference]) -> FloatArray:
    p = np.array([one.p for one in family], dtype=np.float64)
    if not np.isfinite(p).all():
        raise ValueError(f"p-values {p.tolist()!r}; expected a finite p for every comparison")
    return p


def _decide(one: Difference, p: float, level: float, alpha: float) -> Difference:
    low, high = one.spread.interval(level)
    verdict: Verdict = "tie"
    if p < alpha and low > 0.0:
        verdict = "better"
    elif p < alpha and high < 0.0:
        verdict = "worse"
    return dataclasses.replace(one, adjusted_low=low, adjusted_high=high, verdict=verdict)

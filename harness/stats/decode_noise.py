"""How far an accuracy moves when one checkpoint is only evaluated again.

Over R repetitions the accuracy has the standard deviation s (ddof = 1). Its interval is the one for
normal accuracies, from s sqrt((R-1)/q(1-alpha/2)) to s sqrt((R-1)/q(alpha/2)), with q the quantiles
of chi-square with R - 1 degrees of freedom.

Sampled answers move by chance alone. With n items, K decodes and p_i the probability that a
decode of item i is right, independent decodes give

    SD = sqrt(mean over items p_i (1 - p_i) / (n K)),

and over T tasks the square root of the sum of the squares, divided by T. p_i is the share of right
ones among the R K decodes of item i, whose p_i (1 - p_i) is too small by (R K - 1)/(R K) on
average; that factor is taken out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.stats.grid import FloatArray

Bools = npt.NDArray[np.bool_]
#: Accuracies that are closer than this are the same but for rounding.
_ZERO = 1e-12


@dataclass(frozen=True)
class Repeated:
    """Accuracy over repetitions: mean, `sd` with interval, extremes, and how many items changed.

    `binomial_sd` is what independent sampling of these items gives, nan for greedy answers; the
    interval is nan where all accuracies are the same, since the formula then says nothing.
    """

    accuracy: float
    sd: float
    sd_low: float
    sd_high: float
    low: float
    high: float
    n_items: int
    n_decodes: int
    verdicts_changed: int
    texts_changed: int
    binomial_sd: float


def repeated(
    correct: Mapping[str, Bools],
    texts: Mapping[str, npt.NDArray[Any]],
    sampled: bool,
    alpha: float = 0.05,
) -> Repeated:
    """The mean over tasks of verdicts and texts, each task -> [R, n_t, K]."""
    accuracies = by_repetition(correct)
    same = float(np.ptp(accuracies)) < _ZERO
    sd = 0.0 if same else float(accuracies.std(ddof=1))
    low, high = sd_interval(sd, len(accuracies), alpha)
    shapes = [table.shape for table in correct.values()]
    return Repeated(
        accuracy=float(accuracies.mean()),
        sd=sd,
        sd_low=low,
        sd_high=high,
        low=float(accuracies.min()),
        high=float(accuracies.max()),
        n_items=sum(n_items for _, n_items, _ in shapes),
        n_decodes=shapes[0][2],
        verdicts_changed=sum(changed(table) for table in correct.values()),
        texts_changed=sum(changed(table) for table in texts.values()),
        binomial_sd=binomial_sd(correct) if sampled else math.nan,
    )


def by_repetition(correct: Mapping[str, Bools]) -> FloatArray:
    """Accuracy by repetition [R]: the mean over tasks of the mean over items and decodes."""
    for task, table in correct.items():
        if table.ndim != 3 or table.shape[0] < 2 or table.size == 0:
            raise ValueError(
                f"task {task!r} has shape {table.shape!r}; expected [repetitions, items, decodes] "
                "with at least 2 repetitions"
            )
    means: FloatArray = np.mean([table.mean(axis=(1, 2)) for table in correct.values()], axis=0)
    return means


def sd_interval(sd: float, repetitions: int, alpha: float = 0.05) -> tuple[float, float]:
    """Chi-square interval for the standard deviation of normal numbers; nan where `sd` is 0."""
    if sd == 0.0:
        return math.nan, math.nan
    df = repetitions - 1
    few, many = stats.chi2.ppf([alpha / 2, 1 - alpha / 2], df)
    return sd * math.sqrt(df / many), sd * math.sqrt(df / few)


def binomial_sd(correct: Mapping[str, Bools]) -> float:
    """Standard deviation of the mean over tasks where every decode is an independent draw."""
    variance = 0.0
    for table in correct.values():
        repetitions, n_items, n_decodes = table.shape
        draws = repetitions * n_decodes
        p = table.mean(axis=(0, 2))
        spread = float((p * (1 - p)).mean()) * draws / (draws - 1)
        variance += spread / (n_items * n_decodes)
    return math.sqrt(variance) / len(correct)


def changed(values: npt.NDArray[Any]) -> int:
    """Items of [R, n, K] whose decodes were not the same in all repetitions, in whatever order."""
    ordered = np.sort(values, axis=2)
    return int((ordered != ordered[:1]).any(axis=(0, 2)).sum())

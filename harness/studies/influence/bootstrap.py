"""Percentile bootstrap intervals of means over queries; every draw comes from a generator given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DRAWS = 10_000
LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval."""

    mean: float
    low: float
    high: float


def weighted(values: Floats, weights: Floats) -> Interval:
    """Mean of `values` [n] and its interval from resamples given by their weights [draws, n]."""
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"values have shape {values.shape}; expected two or more finite numbers")
    low, high = np.quantile(weights @ values, LEVELS)
    return Interval(float(values.mean()), float(low), float(high))


def shares(rng: np.random.Generator, draws: int, n: int) -> Floats:
    """Weights [draws, n] of resamples of size n with replacement; each line sums to 1."""
    return rng.multinomial(n, np.full(n, 1 / n), size=draws) / n

"""Crossed percentile bootstrap: seeds and items resampled independently.

The second method, and the one for statistics without a formula. All methods share the same draws of
seeds and items, so differences between them are paired. It is too narrow with few seeds and real
seed variance; the two-way interval is the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.stats.outcome import FloatArray

#: Replicates computed at once: bounds the memory of the item weights, [500, n] doubles.
_CHUNK = 500


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals of M methods, each array [M]; differences are to the reference."""

    mean: FloatArray
    ci_low: FloatArray
    ci_high: FloatArray
    diff: FloatArray
    diff_low: FloatArray
    diff_high: FloatArray


def bootstrap(
    tables: Mapping[str, FloatArray],
    rng: np.random.Generator,
    reference: int = 0,
    alpha: float = 0.05,
    draws: int = 10_000,
) -> Bootstrap:
    """Intervals for M methods on the same seeds and items; tables are task -> [M, R, n_t].

    `reference` is the method that the differences are to.
    """
    replicates = replicate(tables, rng, draws)
    mean = np.mean([table.mean(axis=(1, 2)) for table in tables.values()], axis=0)
    paired = replicates - replicates[:, [reference]]
    levels = [alpha / 2.0, 1.0 - alpha / 2.0]
    low, high = np.quantile(replicates, levels, axis=0)
    diff_low, diff_high = np.quantile(paired, levels, axis=0)
    return Bootstrap(mean, low, high, mean - mean[reference], diff_low, diff_high)


def replicate(
    tables: Mapping[str, FloatArray], rng: np.random.Generator, draws: int = 10_000
) -> FloatArray:
    """Bootstrap replicates [B, M] of the mean over tasks, items and seeds."""
    shapes = {table.shape[:2] for table in tables.values()}
    if len(shapes) != 1 or any(table.ndim != 3 for table in tables.values()):
        found = {task: table.shape for task, table in tables.items()}
        raise ValueError(f"tables have shapes {found!r}; expected [methods, seeds, items] each")
    if not all(np.isfinite(table).all() for table in tables.values()):
        raise ValueError("tables have missing values (nan); expected complete seeds only")
    ((methods, n_seeds),) = shapes
    total = np.zeros((draws, methods))
    # One draw of seeds serves all tasks: the same training runs stand behind all of them.
    seeds = _weights(rng, draws, n_seeds)
    for table in tables.values():
        n_items = table.shape[2]
        flat = table.reshape(methods * n_seeds, n_items).T
        for start in range(0, draws, _CHUNK):
            some = seeds[start : start + _CHUNK]
            by_seed = (_weights(rng, len(some), n_items) @ flat).reshape(-1, methods, n_seeds)
            total[start : start + _CHUNK] += np.einsum("bms,bs->bm", by_seed, some)
    return total / len(tables)


def _weights(rng: np.random.Generator, draws: int, n: int) -> FloatArray:
    """Shares [B, n] of a resample of size n with replacement; each line sums to 1."""
    picked = rng.integers(0, n, size=(draws, n))
    picked += np.arange(draws)[:, None] * n
    weights: FloatArray = np.bincount(picked.ravel(), minlength=draws * n).reshape(draws, n) / n
    return weights

"""Crossed bootstrap: seeds and items resampled independently.

The second method, for comparison: the two-way interval is the default, since percentiles of these
replicates are too narrow with few seeds and real seed variance. All methods share the same draws of
seeds and items, so that differences between them are paired. Where items come in clusters, whole
clusters are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.stats.cluster import Clusters, blocks, codes
from harness.stats.grid import FloatArray, IntArray

#: Replicates computed at once: bounds the memory of the item weights, [500, n] doubles.
_CHUNK = 500


def replicate(
    tables: Mapping[str, FloatArray],
    rng: np.random.Generator,
    draws: int = 10_000,
    clusters: Clusters | None = None,
) -> FloatArray:
    """Bootstrap replicates [B, M] of the mean over tasks and seeds; tables task -> [M, R, n_t].

    `clusters` names each item's cluster.
    """
    shapes = {table.shape[:2] for table in tables.values()}
    if len(shapes) != 1 or any(table.ndim != 3 for table in tables.values()):
        each = {task: table.shape for task, table in tables.items()}
        raise ValueError(f"tables have shapes {each!r}; expected [methods, seeds, items] each")
    if not all(np.isfinite(table).all() for table in tables.values()):
        raise ValueError("tables have missing values (nan); expected complete seeds only")
    if len(blocks(list(tables), clusters)) < len(tables):
        raise ValueError("clusters span tasks; expected each in one task: draws are made by task")
    ((methods, n_seeds),) = shapes
    groups = {
        task: _grouped(table, None if clusters is None else codes(clusters[task]))
        for task, table in tables.items()
    }
    # One draw of seeds for all tasks: the same training runs are behind all of them.
    seeds = rng.integers(0, n_seeds, size=(draws, n_seeds))
    parts = []
    for start in range(0, draws, _CHUNK):
        drawn = seeds[start : start + _CHUNK, None, :]
        runs = np.empty((len(drawn), methods, len(tables), n_seeds))
        for at, (sums, sizes) in enumerate(groups.values()):
            weights = _weights(rng, len(drawn), len(sizes))
            by_seed = weights @ sums / (weights @ sizes)[:, None]
            by_seed = by_seed.reshape(-1, methods, n_seeds)
            runs[:, :, at] = np.take_along_axis(by_seed, drawn, axis=2)
        parts.append(runs.mean(axis=(-2, -1)))
    return np.concatenate(parts)


def _grouped(table: FloatArray, code: IntArray | None) -> tuple[FloatArray, FloatArray]:
    """Sums [G, M R] of accuracy over the items of each cluster, and their sizes [G]."""
    flat = table.reshape(-1, table.shape[2]).T
    if code is None:
        return flat, np.ones(len(flat))
    sums = np.zeros((int(code.max()) + 1, flat.shape[1]))
    np.add.at(sums, code, flat)
    return sums, np.bincount(code).astype(np.float64)


def _weights(rng: np.random.Generator, draws: int, n: int) -> FloatArray:
    """How often each of n is drawn in resamples of size n with replacement [B, n]."""
    picked = rng.integers(0, n, size=(draws, n))
    picked += np.arange(draws)[:, None] * n
    counts = np.bincount(picked.ravel(), minlength=draws * n).reshape(draws, n)
    return counts.astype(np.float64)

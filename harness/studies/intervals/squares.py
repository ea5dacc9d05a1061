"""Mean squares of many tables at once: what `harness.stats` computes of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Squares(NamedTuple):
    """Of M tables [R, n]: the mean [M], its parts of variance [M], the means by seed [M, R].

    The parts are V_r, V_i and V_e of `harness.stats.interval`. `items` counts the columns:
    clusters where there are any.
    """

    mean: Floats
    v_r: Floats
    v_i: Floats
    v_e: Floats
    by_seed: Floats
    items: int

    @property
    def seeds(self) -> int:
        """Rows of a table."""
        return int(self.by_seed.shape[1])


def squares(tables: npt.ArrayLike, clusters: Sequence[int] = ()) -> Squares:
    """Two-way analysis of variance of tables [M, R, n]; items of one cluster are side by side."""
    table = np.asarray(tables, dtype=np.float64)
    if clusters:
        table = scores(table, clusters)
    _, seeds, items = table.shape
    by_seed, by_item = table.mean(axis=2), table.mean(axis=1)
    mean = by_seed.mean(axis=1)
    residual = table - by_seed[:, :, None]
    residual -= (by_item - mean[:, None])[:, None, :]
    within = np.einsum("mri,mri->m", residual, residual)
    v_r = by_seed.var(axis=1, ddof=1) / seeds
    v_i = by_item.var(axis=1, ddof=1) / items
    v_e = within / ((seeds - 1) * (items - 1) * seeds * items)
    return Squares(mean, v_r, v_i, v_e, by_seed, items)


def scores(tables: Floats, clusters: Sequence[int]) -> Floats:
    """Tables [M, R, G] that stand for [M, R, n] (`harness.stats.cluster`)."""
    codes = np.asarray(clusters)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    by_seed = tables.mean(axis=2, keepdims=True)
    sums = np.add.reduceat(tables - by_seed, starts, axis=2)
    found: Floats = by_seed + sums * (len(starts) / len(codes))
    return found

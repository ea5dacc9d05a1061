"""How much the rows agree on which examples are worth keeping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.reporting import numbers
from harness.reporting.figures.heat import CELL, heat, hundredths
from harness.reporting.figures.pool_facts import middle
from harness.reporting.figures.style import GREY, row_label
from harness.reporting.results import BASE, FULL, Results
from harness.stats import jaccard, overlap_of_random, stability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 4.1
"""Inches that the title needs even over two rows."""
Sets = dict[int, npt.NDArray[np.bool_]]
"""A row's choice by seed; seeds that chose the same share one array."""


def overlap(results: Results, table: pd.DataFrame) -> Figure | None:
    """Jaccard overlap of the sets that any two rows chose, mean over common seeds."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    fraction = middle(results)
    sets = chosen_sets(results, fraction)
    if len(sets) < 2:
        return None
    rows = list(sets)
    values = overlaps(sets)
    names = [row_label(row, 26) for row in rows]
    side, margin = CELL * len(rows), 0.3 + 0.072 * max(map(len, names))
    size = (max(side + margin + 0.9, LEAST), max(0.8 * side + 0.7, 0.6 * LEAST))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    lower = np.where(np.tri(len(rows), dtype=bool), values, math.nan)
    heat(axis, lower, range(len(rows)), [], lambda value: hundredths(value, ""))
    axis.set_yticks(range(len(rows)), names)
    for i, name in enumerate(names):  # columns are named where there is room for it
        axis.text(i + 0.62, i, name, va="center_baseline", fontsize=8.5)
        axis.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=GREY,
                                 linewidth=0.8, zorder=3))  # fmt: skip
    axis.set_title(_said(results, fraction, sets), loc="left", fontsize=8.5)
    return figure


def chosen_sets(results: Results, fraction: float) -> dict[str, Sets]:
    """Who chose what, by row and seed, on the same order of examples; rows that choose only."""
    found: dict[str, Sets] = {}
    order: pd.Index[Any] | None = None
    for row in results.rows:
        if row in (BASE, FULL):
            continue
        same: dict[int, npt.NDArray[np.bool_]] = {}
        for seed, frame in results.selections(row, fraction).items():
            order = pd.Index(frame["id"]) if order is None else order
            if id(frame) not in same:
                same[id(frame)] = _aligned(frame, order, row)
            found.setdefault(row, {})[seed] = same[id(frame)]
    return found


def _aligned(frame: pd.DataFrame, order: pd.Index[Any], row: str) -> npt.NDArray[np.bool_]:
    """Chosen flags in a common order of ids."""
    ids = pd.Index(frame["id"])
    if not ids.equals(order):
        if len(ids) != len(order) or set(ids) != set(order):
            raise ValueError(f"row {row!r} chose among other ids; expected those of the first row")
        frame = frame.set_index("id").loc[order]
    chosen: npt.NDArray[np.bool_] = frame["chosen"].to_numpy(dtype=bool)
    return chosen


def overlaps(sets: Mapping[str, Sets]) -> npt.NDArray[np.float64]:
    """Mean overlap over common seeds [rows, rows]; the diagonal is stability between seeds.

    nan where two rows have no seed in common, and on the diagonal of a row whose choice does not
    depend on the seed.
    """
    rows = list(sets)
    found = np.full((len(rows), len(rows)), math.nan)
    for i, first in enumerate(rows):
        for j, second in enumerate(rows[:i]):
            pairs = [(sets[first][s], sets[second][s]) for s in sets[first] if s in sets[second]]
            known = {(id(a), id(b)): (a, b) for a, b in pairs}
            each = {key: jaccard(a, b) for key, (a, b) in known.items()}
            if pairs:
                found[i, j] = found[j, i] = np.mean([each[id(a), id(b)] for a, b in pairs])
        several = list(sets[first].values())
        if len({id(one) for one in several}) > 1:
            found[i, i] = stability(several)
    return found


def _said(results: Results, fraction: float, sets: Mapping[str, Sets]) -> str:
    """What the numbers are, and what chance would give."""
    some = next(iter(next(iter(sets.values())).values()))
    random = overlap_of_random(len(some), int(some.sum()), int(some.sum()))
    said = f"Jaccard overlap, {numbers.percent(fraction)} kept; random sets: {random:.2f}"
    varied = any(len({id(one) for one in each.values()}) > 1 for each in sets.values())
    return said + ("\nframed: the same row under other seeds" if varied else "")

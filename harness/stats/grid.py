"""Outcome tables: accuracies by seed and item, and the pivot that builds them from long records.

Nothing is imputed. A seed counts for a row only when every item of the task is there, with as many
decodes as the row's other seeds have; what falls short is named, so that a report can show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

FloatArray = npt.NDArray[np.float64]
Line = tuple[str, float]

COLUMNS = ("row", "fraction", "seed", "task", "item", "decode", "correct")
#: Rows that are one fixed checkpoint (nothing was trained), so that their seed means nothing.
FIXED = ("base",)


@dataclass(frozen=True)
class Outcome:
    """Accuracies (mean over decodes) of one row at one fraction: task -> [R seeds, n_t items].

    All tasks share the same seeds, in the same order. A `fixed` outcome is one checkpoint without a
    training seed; in a paired difference its single table stands against every seed of the other.
    `clusters` names the cluster of every item; None where items are independent.
    """

    seeds: tuple[int, ...]
    tables: Mapping[str, FloatArray]
    items: Mapping[str, tuple[str, ...]]
    fixed: bool = False
    clusters: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if not self.tables:
            raise ValueError("tables is empty; expected at least one task")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds!r} repeat; expected distinct seeds")
        if self.fixed and len(self.seeds) != 1:
            raise ValueError(f"seeds {self.seeds!r} of a fixed checkpoint; expected exactly one")
        for task, table in self.tables.items():
            check_table(table, task, len(self.seeds))
            if len(self.items[task]) != table.shape[1]:
                raise ValueError(
                    f"task {task!r} names {len(self.items[task])!r} items; "
                    f"expected {table.shape[1]}, the columns of its table"
                )
            if self.clusters is not None:
                _check_clusters(self.clusters[task], task, table.shape[1])

    @classmethod
    def of(
        cls,
        tables: Mapping[str, npt.ArrayLike] | npt.ArrayLike,
        seeds: Sequence[int] | None = None,
        items: Mapping[str, Sequence[str]] | None = None,
        fixed: bool = False,
        clusters: Mapping[str, Sequence[str]] | None = None,
    ) -> Outcome:
        """Build from arrays; one bare array is the task "task", seeds and items count from 0."""
        named = tables if isinstance(tables, Mapping) else {"task": tables}
        arrays = {task: np.asarray(table, dtype=np.float64) for task, table in named.items()}
        for task, table in arrays.items():
            if table.ndim != 2:
                raise ValueError(
                    f"task {task!r} has shape {table.shape!r}; expected [seeds, items]"
                )
        rows = next(iter(arrays.values())).shape[0] if arrays else 0
        names = {
            task: tuple(items[task]) if items else tuple(map(str, range(table.shape[1])))
            for task, table in arrays.items()
        }
        labels = None if clusters is None else {task: tuple(clusters[task]) for task in arrays}
        return cls(tuple(range(rows) if seeds is None else seeds), arrays, names, fixed, labels)

    def only(self, task: str) -> Outcome:
        """The same seeds on one task."""
        labels = None if self.clusters is None else {task: self.clusters[task]}
        tables, items = {task: self.tables[task]}, {task: self.items[task]}
        return Outcome(self.seeds, tables, items, self.fixed, labels)

    @property
    def seed_means(self) -> FloatArray:
        """Accuracy by seed [R]: the mean over tasks of the mean over items."""
        return seed_means(self.tables)


def check_table(table: FloatArray, task: str, n_seeds: int, low: float = 0.0) -> None:
    """Refuse a table that no interval can be computed from; values must lie in [low, 1]."""
    if table.ndim != 2 or table.shape[0] != n_seeds or n_seeds < 1:
        raise ValueError(
            f"task {task!r} has shape {table.shape!r}; expected [{n_seeds} seeds, items]"
        )
    if table.shape[1] < 2:
        raise ValueError(
            f"task {task!r} has {table.shape[1]!r} item(s); expected at least 2: "
            "the variance between items cannot be known from fewer"
        )
    if not np.isfinite(table).all():
        raise ValueError(f"task {task!r} has missing values (nan); expected complete seeds only")
    if table.min() < low or table.max() > 1.0:
        worst = float(table.min() if table.min() < low else table.max())
        raise ValueError(f"task {task!r} has the value {worst!r}; expected [{low:g}, 1]")


def _check_clusters(labels: Sequence[str], task: str, n_items: int) -> None:
    if len(labels) != n_items:
        raise ValueError(f"task {task!r} has {len(labels)!r} clusters named; expected {n_items}")
    if len(set(labels)) < 2:
        raise ValueError(
            f"task {task!r} has all items in the cluster {labels[0]!r}; expected at least 2: "
            "the variance between clusters cannot be known from one"
        )


def seed_means(tables: Mapping[str, FloatArray]) -> FloatArray:
    """Mean over tasks (equal weights) of the mean over items, by seed [R]."""
    means: FloatArray = np.mean([table.mean(axis=1) for table in tables.values()], axis=0)
    return means


@dataclass(frozen=True)
class Grid:
    """Every outcome of an experiment: accuracy[line, seed, item], nan where a cell falls short."""

    lines: tuple[Line, ...]
    seeds: tuple[int, ...]
    tasks: Mapping[str, slice]
    items: tuple[str, ...]
    accuracy: FloatArray
    present: npt.NDArray[np.bool_]

    def outcome(self, line: Line, tasks: Sequence[str]) -> tuple[Outcome | None, tuple[int, ...]]:
        """The complete seeds of a line on these tasks, and the seeds that had only a part of them.

        None where no seed is complete.
        """
        at = self.lines.index(line)
        parts = [self.accuracy[at, :, self.tasks[task]] for task in tasks]
        whole = np.all([np.isfinite(part).all(axis=1) for part in parts], axis=0)
        broken = tuple(np.array(self.seeds)[self.present[at] & ~whole].tolist())
        if not whole.any():
            return None, broken
        outcome = Outcome(
            seeds=tuple(np.array(self.seeds)[whole].tolist()),
            tables={task: part[whole] for task, part in zip(tasks, parts, strict=True)},
            items={task: self.items[self.tasks[task]] for task in tasks},
            fixed=line[0] in FIXED,
        )
        return outcome, broken


def pivot(outcomes: pd.DataFrame) -> Grid:
    """Turn long outcomes (one line per decode; columns `COLUMNS`) into a dense grid.

    Sorted throughout: the order of the lines of `outcomes` does not matter.
    """
    _check_columns(outcomes)
    line, lines = _codes(outcomes, ["row", "fraction"])
    seed, seeds = _codes(outcomes, ["seed"])
    cell, cells = _codes(outcomes, ["task", "item"])
    shape = (len(lines), len(seeds), len(cells))
    at = (line * shape[1] + seed) * shape[2] + cell
    decode, decodes = _codes(outcomes, ["decode"])
    if np.unique(at * len(decodes) + decode).size != len(outcomes):
        twice = outcomes[outcomes.duplicated(list(COLUMNS[:-1]))].iloc[0].to_dict()
        raise ValueError(f"outcomes has {twice!r} more than once; expected one line per decode")
    correct = outcomes["correct"].to_numpy(dtype=np.float64)
    size = int(np.prod(shape))
    total = np.bincount(at, weights=correct, minlength=size).reshape(shape)
    count = np.bincount(at, minlength=size).reshape(shape)
    tasks = _slices([str(task) for task, _ in cells])
    short = np.ones(shape, dtype=bool)
    for part in tasks.values():
        counts = count[:, :, part]
        # Rows may differ in decodes (base is evaluated once); the seeds of one row may not.
        short[:, :, part] = (counts == 0) | (counts < counts.max(axis=(1, 2), keepdims=True))
    present = np.asarray((count > 0).any(axis=2))
    accuracy = np.where(short, np.nan, total / np.maximum(count, 1))
    for task, part in tasks.items():
        if np.isnan(accuracy[:, :, part]).any(axis=2).all():
            raise ValueError(
                f"task {task!r}: no row and seed has all of its {part.stop - part.start!r} items; "
                "expected the same items for every row"
            )
    return Grid(
        lines=tuple((str(row), float(fraction)) for row, fraction in lines),
        seeds=tuple(int(value) for (value,) in seeds),
        tasks=MappingProxyType(tasks),
        items=tuple(str(item) for _, item in cells),
        accuracy=accuracy,
        present=present,
    )


def _check_columns(outcomes: pd.DataFrame) -> None:
    missing = [name for name in COLUMNS if name not in outcomes.columns]
    if missing:
        raise ValueError(f"outcomes lacks the columns {missing!r}; expected {list(COLUMNS)}")
    if outcomes.empty:
        raise ValueError("outcomes has 0 lines; expected at least one finished cell")
    for name in COLUMNS:
        if outcomes[name].isna().any():
            raise ValueError(f"outcomes column {name!r} has missing values; expected none")
    correct = outcomes["correct"].to_numpy(dtype=np.float64)
    if ((correct != 0.0) & (correct != 1.0)).any():
        worst = float(correct[(correct != 0.0) & (correct != 1.0)][0])
        raise ValueError(f"outcomes column 'correct' has {worst!r}; expected true or false")


def _codes(
    outcomes: pd.DataFrame, names: Sequence[str]
) -> tuple[npt.NDArray[np.int64], list[tuple[Any, ...]]]:
    """Dense integer codes of a combination of columns, in sorted order, and what they stand for."""
    code = np.zeros(len(outcomes), dtype=np.int64)
    levels = []
    for name in names:
        part, level = pd.factorize(outcomes[name], sort=True)
        code = code * len(level) + part
        levels.append(list(level))
    used, code = np.unique(code, return_inverse=True)
    sizes = [len(level) for level in levels]
    indices = np.unravel_index(used, sizes)
    columns = [[level[i] for i in index] for level, index in zip(levels, indices, strict=True)]
    return code.astype(np.int64), list(zip(*columns, strict=True))


def _slices(tasks: Sequence[str]) -> dict[str, slice]:
    """Where each task lies in the sorted items."""
    names, first = np.unique(np.array(tasks), return_index=True)
    stops = [*first[1:].tolist(), len(tasks)]
    return {
        str(name): slice(int(start), int(stop))
        for name, start, stop in zip(names, first, stops, strict=True)
    }

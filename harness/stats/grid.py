"""Outcome tables: accuracies by row, seed and item, and the complete tables to be cut from them.

Nothing is imputed, and what is left out is named. There are two rules for what is complete.
`Grid.outcome` keeps the seeds that have every item: in an experiment all of them are planned.
`Grid.largest` keeps the seeds and items that together hold the most results: anybody's table.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
#: A row of an experiment at one fraction.
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

    seeds: tuple[Any, ...]
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
            _check_table(table, task, len(self.seeds))
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
        n_seeds = next(iter(arrays.values())).shape[0] if arrays else 0
        names = {
            task: tuple(items[task]) if items else tuple(map(str, range(table.shape[1])))
            for task, table in arrays.items()
        }
        labels = None if clusters is None else {task: tuple(clusters[task]) for task in arrays}
        return cls(tuple(range(n_seeds) if seeds is None else seeds), arrays, names, fixed, labels)

    def only(self, task: str) -> Outcome:
        """The same seeds on one task."""
        labels = None if self.clusters is None else {task: self.clusters[task]}
        tables, items = {task: self.tables[task]}, {task: self.items[task]}
        return Outcome(self.seeds, tables, items, self.fixed, labels)

    @property
    def seed_means(self) -> FloatArray:
        """Accuracy by seed [R]: the mean over tasks of the mean over items."""
        return seed_means(self.tables)


def _check_table(table: FloatArray, task: str, n_seeds: int) -> None:
    """Refuse a table that no interval can be computed from."""
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
    if table.min() < 0.0 or table.max() > 1.0:
        worst = float(table.min() if table.min() < 0.0 else table.max())
        raise ValueError(f"task {task!r} has the value {worst!r}; expected [0, 1]")


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
class LeftOut:
    """What rows have and a complete table does without: seeds by name, items by task."""

    seeds: tuple[Any, ...]
    items: Mapping[str, int]

    def __bool__(self) -> bool:
        return bool(self.seeds or self.items)


@dataclass(frozen=True)
class Grid:
    """All outcomes: accuracy[line, seed, item], nan where a cell falls short of its decodes.

    A line is a row at one fraction. Rows in `fixed` have no seed of their own and stand at some one
    seed. `decodes` [line, seed, item] counts what was recorded.
    """

    lines: tuple[Line, ...]
    seeds: tuple[Any, ...]
    tasks: Mapping[str, slice]
    items: tuple[str, ...]
    accuracy: FloatArray
    decodes: IntArray
    fixed: frozenset[str]
    clusters: tuple[str, ...] | None = None

    def recorded(self, line: Line) -> BoolArray:
        """The seeds of which anything was recorded [seed]."""
        return np.asarray((self.decodes[self.lines.index(line)] > 0).any(axis=1))

    def present(self, line: Line) -> BoolArray:
        """Where there is a result [seed, item]."""
        return np.asarray(~np.isnan(self.accuracy[self.lines.index(line)]))

    def named(self, seeds: BoolArray) -> tuple[Any, ...]:
        """The names of seeds."""
        return tuple(self.seeds[i] for i in np.flatnonzero(seeds))

    def outcome(self, line: Line, tasks: Sequence[str]) -> tuple[Outcome | None, tuple[Any, ...]]:
        """The complete seeds of a line on these tasks, and the seeds that had only a part of them.

        None where no seed is complete.
        """
        items = self._items(tasks)
        whole = np.asarray(self.present(line)[:, items].all(axis=1))
        broken = self.named(self.recorded(line) & ~whole)
        return (self._cut(line, whole, items, tasks) if whole.any() else None), broken

    def largest(
        self, lines: Sequence[Line], tasks: Sequence[str]
    ) -> tuple[tuple[Outcome, ...], LeftOut] | None:
        """The same seeds and items of every line, and what that leaves out; None without any.

        Of seeds, taken in the order of how complete they are, as many are kept as leave the most
        results. A fixed line has its one table; tasks in which nothing is shared are left out.

        Raises:
            ValueError: the lines have no seed, or fewer than two items of a task, in common.
        """
        trained = [line for line in lines if line[0] not in self.fixed] or lines
        had = [self.recorded(line) for line in trained]
        seeds = np.all(had, axis=0)
        if not seeds.any():
            each = [
                f"{row!r} has seeds {', '.join(map(str, self.named(own)))}"
                for (row, _), own in zip(trained, had, strict=True)
            ]
            raise ValueError(
                f"no seed in common: {'; '.join(each)}; expected at least one that both have"
            )
        present = np.ones((int(seeds.sum()), len(self.items)), dtype=bool)
        for line in lines:
            present &= self.present(line)[self._seeds(line, seeds)]
        shared = [task for task in tasks if present[:, self.tasks[task]].any()]
        if not shared:
            return None
        seeds[seeds], items = self._most(lines, present & self._items(shared), shared)
        more = np.any(had, axis=0) & ~seeds
        lost = np.any([self.present(line).any(axis=0) for line in lines], axis=0) & ~items
        n_lost = {task: int(lost[self.tasks[task]].sum()) for task in tasks}
        left_out = LeftOut(self.named(more), {task: n for task, n in n_lost.items() if n})
        cuts = (self._cut(line, self._seeds(line, seeds), items, shared) for line in lines)
        return tuple(cuts), left_out

    def _most(
        self, lines: Sequence[Line], present: BoolArray, tasks: Sequence[str]
    ) -> tuple[BoolArray, BoolArray]:
        """Seeds and items of the largest complete table within `present` [R, N]."""
        able = np.sum([present[:, self.tasks[task]].sum(axis=1) >= 2 for task in tasks], axis=0)
        order = np.lexsort((-present.sum(axis=1), -able))
        # Row k: the items that the k + 1 most complete seeds all have.
        shared = np.logical_and.accumulate(present[order], axis=0)
        cells = shared.sum(axis=1) * np.arange(1, len(order) + 1)
        for task in tasks:
            n_items = shared[:, self.tasks[task]].sum(axis=1)
            if n_items[0] < 2:
                names, several = " and ".join(repr(row) for row, _ in lines), len(lines) > 1
                raise ValueError(
                    f"task {task!r}: {names} {'have' if several else 'has'} {n_items[0]} item(s)"
                    f"{' in common' if several else ''}; expected at least 2: the variance between "
                    "items cannot be known from fewer"
                )
            cells = np.where(n_items < 2, -1, cells)
        # The last of equal ones: more seeds.
        best = len(cells) - 1 - int(cells[::-1].argmax())
        seeds = np.zeros(len(order), dtype=bool)
        seeds[order[: best + 1]] = True
        return seeds, shared[best]

    def _cut(self, line: Line, seeds: BoolArray, items: BoolArray, tasks: Sequence[str]) -> Outcome:
        accuracy = self.accuracy[self.lines.index(line)][seeds]
        first = {task: self.tasks[task].start for task in tasks}
        at = {task: np.flatnonzero(items[self.tasks[task]]) + first[task] for task in tasks}
        labels = self.clusters
        return Outcome(
            seeds=self.named(seeds),
            tables={task: accuracy[:, at[task]] for task in tasks},
            items={task: tuple(self.items[i] for i in at[task]) for task in tasks},
            fixed=line[0] in self.fixed,
            clusters=labels
            if labels is None
            else {task: tuple(labels[i] for i in at[task]) for task in tasks},
        )

    def _seeds(self, line: Line, seeds: BoolArray) -> BoolArray:
        """Where a line stands for these seeds: at some one seed if it is fixed."""
        return self.recorded(line) if line[0] in self.fixed else seeds

    def _items(self, tasks: Collection[str]) -> BoolArray:
        wanted = np.zeros(len(self.items), dtype=bool)
        for task in tasks:
            wanted[self.tasks[task]] = True
        return wanted


def pivot(
    outcomes: pd.DataFrame,
    fixed: Collection[str] = FIXED,
    usual_decodes: bool = False,
) -> Grid:
    """Turn long outcomes (one per decode; columns `COLUMNS`) into a dense grid.

    Sorted throughout (categories in their own order): the order of `outcomes` does not matter. A
    column `cluster`, where there is one, names each item's. `fixed` are rows without a seed of
    their own. A cell falls short where it has fewer decodes than others of its line and task: than
    any of them, or, with `usual_decodes`, than most.
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
        raise ValueError(f"outcomes has {twice!r} more than once; expected one row per decode")
    correct = outcomes["correct"].to_numpy(dtype=np.float64)
    size = int(np.prod(shape))
    total = np.bincount(at, weights=correct, minlength=size).reshape(shape)
    count = np.bincount(at, minlength=size).reshape(shape)
    sizes = Counter(task for task, _ in cells)
    stops = itertools.accumulate(sizes.values())
    tasks = {
        task: slice(stop - n, stop) for (task, n), stop in zip(sizes.items(), stops, strict=True)
    }
    short = np.ones(shape, dtype=bool)
    for part in tasks.values():
        counts = count[:, :, part]
        # Rows may differ in decodes (base is evaluated once); the seeds of one row may not.
        required = _usual(counts) if usual_decodes else counts.max(axis=(1, 2), keepdims=True)
        short[:, :, part] = (counts == 0) | (counts < required)
    return Grid(
        lines=tuple((str(row), float(fraction)) for row, fraction in lines),
        seeds=tuple(value for (value,) in seeds),
        tasks=MappingProxyType(tasks),
        items=tuple(item for _, item in cells),
        accuracy=np.where(short, np.nan, total / np.maximum(count, 1)),
        decodes=count,
        fixed=frozenset(fixed),
        clusters=_clusters(outcomes, cell),
    )


def _usual(counts: IntArray) -> IntArray:
    """The most common number of decodes of each line [L, 1, 1]; the larger of two."""
    often = [np.bincount(part[part > 0], minlength=1)[::-1] for part in counts]
    usual = [len(times) - 1 - int(times.argmax()) for times in often]
    return np.array(usual)[:, None, None]


def _clusters(outcomes: pd.DataFrame, cell: IntArray) -> tuple[str, ...] | None:
    """The cluster of every cell, in a column that is the same in all rows of it."""
    if "cluster" not in outcomes.columns:
        return None
    first = np.unique(cell, return_index=True)[1]
    return tuple(outcomes["cluster"].iloc[first])


def _check_columns(outcomes: pd.DataFrame) -> None:
    missing = [name for name in COLUMNS if name not in outcomes.columns]
    if missing:
        raise ValueError(f"outcomes lacks the columns {missing!r}; expected {list(COLUMNS)}")
    if outcomes.empty:
        raise ValueError("outcomes has 0 rows; expected at least one finished cell")
    for name in COLUMNS:
        if outcomes[name].isna().any():
            raise ValueError(f"outcomes column {name!r} has missing values; expected none")
    correct = outcomes["correct"].to_numpy(dtype=np.float64)
    if ((correct != 0.0) & (correct != 1.0)).any():
        worst = float(correct[(correct != 0.0) & (correct != 1.0)][0])
        raise ValueError(f"outcomes column 'correct' has {worst!r}; expected true or false")


def _codes(outcomes: pd.DataFrame, names: Sequence[str]) -> tuple[IntArray, list[tuple[Any, ...]]]:
    """Dense integer codes of a combination of columns, in sorted order, and what they stand for."""
    code = np.zeros(len(outcomes), dtype=np.int64)
    levels = []
    for name in names:
        part, level = pd.factorize(outcomes[name], sort=True)
        code = code * len(level) + part
        levels.append(level.tolist())
    used, code = np.unique(code, return_inverse=True)
    indices = np.unravel_index(used, [len(level) for level in levels])
    columns = [[level[i] for i in index] for level, index in zip(levels, indices, strict=True)]
    return code.astype(np.int64), list(zip(*columns, strict=True))

"""A table's columns as codes, checked against each other: repeated rows, seeds, clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from harness.reporting.outcomes.reader import Codes, Labels, correct, labels, load, ordered
from harness.stats.grid import FloatArray

ONLY_TASK = "all"
"""Name of the task where the table has no column for it."""
_KEY = ("method", "seed", "task", "item", "decode")


@dataclass(frozen=True)
class Columns:
    """One entry per row. A cell is an item of a task: `cell` are positions in `cells`.

    `cells` holds the codes of task and item, sorted by both; `cluster` is by cell. `rows` are the
    positions of rows that count, `repeated` those that repeat an earlier one, with that one.
    """

    method: Labels
    seed: Labels
    task: Labels
    item: Labels
    cell: Codes
    cells: tuple[Codes, Codes]
    cluster: tuple[str, ...] | None
    correct: FloatArray
    rows: Codes
    repeated: Mapping[str, list[tuple[int, int]]]


def read_columns(path: Path) -> Columns:
    """Read a file and check every value.

    Raises:
        ValueError: a value cannot be used; the message names file, row, column and value.
    """
    frame = load(path)
    value = correct(path, frame)
    method = labels(path, frame, "method")
    seed = _seeds(path, frame, method)
    task = _given(path, frame, "task") or _only(frame, ONLY_TASK)
    decode = _given(path, frame, "decode") or _only(frame, "0")
    item = ordered(labels(path, frame, "item"))
    used, cell = np.unique(task.codes * len(item.names) + item.codes, return_inverse=True)
    key = np.zeros(len(frame), dtype=np.int64)
    for codes in (method.codes, seed.codes + 1, cell, decode.codes):
        key = key * (int(codes.max()) + 1) + codes
    rows, repeated = _distinct(path, frame, key, value)
    of: dict[str, list[tuple[int, int]]] = {}
    for row, other in repeated:
        pair = (int(frame.index[row]), int(frame.index[other]))
        of.setdefault(method.names[method.codes[row]], []).append(pair)
    return Columns(
        method=method,
        seed=seed,
        task=task,
        item=item,
        cell=cell,
        cells=np.divmod(used, len(item.names)),
        cluster=_clusters(path, frame, cell, len(used)),
        correct=value,
        rows=rows,
        repeated=of,
    )


def _given(path: Path, frame: pd.DataFrame, name: str) -> Labels | None:
    """A column that need not be there; one that is empty throughout is not there."""
    if name not in frame.columns:
        return None
    found = labels(path, frame, name, gaps=True)
    return labels(path, frame, name) if found.names else None


def _only(frame: pd.DataFrame, name: str) -> Labels:
    return Labels(np.zeros(len(frame), dtype=np.int64), (name,))


def _seeds(path: Path, frame: pd.DataFrame, method: Labels) -> Labels:
    """Seeds, code -1 where a method has none; a method has them in all of its rows or in none."""
    if "seed" not in frame.columns:
        return Labels(np.full(len(frame), -1, dtype=np.int64), ())
    found = ordered(labels(path, frame, "seed", gaps=True))
    without = found.codes < 0
    mixed = np.intersect1d(method.codes[without], method.codes[~without])
    if len(mixed):
        row = frame.index[without & np.isin(method.codes, mixed)][0]
        name = method.names[mixed[0]]
        raise ValueError(
            f"{path}: row {row}, column 'seed' is empty; expected a seed in every row of "
            f"{name!r}, since other rows of it have one"
        )
    return found


def _distinct(
    path: Path, frame: pd.DataFrame, key: Codes, value: FloatArray
) -> tuple[Codes, list[tuple[int, int]]]:
    """Positions of rows without repetitions, and each repetition with what it repeats.

    A row that repeats another counts once; two that contradict each other are refused.
    """
    _, first, back = np.unique(key, return_index=True, return_inverse=True)
    if len(first) == len(key):
        return np.arange(len(key)), []
    repeats = np.flatnonzero(first[back] != np.arange(len(key)))
    others = first[back[repeats]]
    against = np.flatnonzero(value[repeats] != value[others])
    if len(against):
        row, other = repeats[against[0]], others[against[0]]
        names = [name for name in _KEY if name in frame.columns]
        raise ValueError(
            f"{path}: row {frame.index[row]}, column 'correct' is {int(value[row])}, but row "
            f"{frame.index[other]} has {int(value[other])} for the same {', '.join(names[:-1])} "
            f"and {names[-1]}; expected one row for each (several answers to an item need a "
            "column 'decode')"
        )
    return np.sort(first), list(zip(repeats.tolist(), others.tolist(), strict=True))


def _clusters(path: Path, frame: pd.DataFrame, cell: Codes, n_cells: int) -> tuple[str, ...] | None:
    """The cluster of every item; an item that is in two is refused."""
    found = _given(path, frame, "cluster")
    if found is None:
        return None
    own = np.zeros(n_cells, dtype=np.int64)
    own[cell] = found.codes
    wrong = np.flatnonzero(own[cell] != found.codes)
    if len(wrong):
        row, item = frame.index[wrong[0]], frame["item"].iloc[wrong[0]]
        raise ValueError(
            f"{path}: row {row}, column 'cluster' is {found.names[found.codes[wrong[0]]]!r}, but "
            f"item {item!r} is in {found.names[own[cell[wrong[0]]]]!r} elsewhere; expected one "
            "cluster for each item"
        )
    return tuple(found.names[code] for code in own)

"""Results by method, seed and item, and what of them is missing, counted by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.reporting.numbers import plural
from harness.reporting.outcomes.columns import ONLY_TASK, Columns, read_columns
from harness.reporting.outcomes.reader import Codes
from harness.stats.grid import FloatArray

SHOWN = 3
"""Names that a note gives as examples."""

Mask = npt.NDArray[np.bool_]
Gaps = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Arm:
    """One method: accuracy (mean over decodes) [seeds, items], nan where there is no result.

    `fixed`: its rows have no seed although other methods' have: one checkpoint, not trained here.
    """

    seeds: tuple[int, ...]
    accuracy: FloatArray
    fixed: bool = False

    @property
    def present(self) -> Mask:
        """Where there is a result."""
        found: Mask = ~np.isnan(self.accuracy)
        return found


@dataclass(frozen=True)
class Measured:
    """An outcomes table. Seeds of arms are positions in `seeds`, tasks are ranges of `items`.

    `seeds` is empty where the table names none: every method then has one run of unknown seed.
    `gaps` counts what is missing or repeated, by method; `notes` says it in words.
    """

    source: str
    arms: Mapping[str, Arm]
    seeds: tuple[str, ...]
    tasks: Mapping[str, slice]
    items: tuple[str, ...]
    clusters: tuple[str, ...] | None
    n_rows: int
    gaps: Gaps
    notes: tuple[str, ...]

    def arm(self, method: str) -> Arm:
        """A method by name."""
        if method not in self.arms:
            raise ValueError(
                f"{self.source}: no method {method!r}; expected one of {', '.join(self.arms)}"
            )
        return self.arms[method]

    def named(self, seeds: Sequence[int]) -> str:
        """`seed 4`, `seeds 4, 5`."""
        names = ", ".join(self.seeds[seed] for seed in seeds)
        return f"seed {names}" if len(seeds) == 1 else f"seeds {names}"

    def of_task(self, task: str) -> str:
        """` of gsm8k`; empty where the table has no tasks."""
        return "" if list(self.tasks) == [ONLY_TASK] else f" of {task}"


def read(path: Path) -> Measured:
    """Read and check a .parquet, .csv or .jsonl file.

    Its columns: `method`, `item`, `correct` (0 or 1), and optionally `seed`, `decode`, `task`,
    `cluster`. Raises ValueError naming file, row, column and value where one cannot be used.
    """
    columns = read_columns(Path(path))
    of_task, of_item = columns.cells
    bounds = np.searchsorted(of_task, np.arange(len(columns.task.names) + 1)).tolist()
    tasks = {name: slice(*bounds[i : i + 2]) for i, name in enumerate(columns.task.names)}
    arms: dict[str, Arm] = {}
    gaps: Gaps = {name: {} for name in columns.method.names}
    notes: list[str] = []
    for name, rows in _by_method(columns):
        if repeated := columns.repeated.get(name):
            gaps[name]["duplicates"] = len(repeated)
            notes.append(
                f"{name}: {plural(len(repeated), 'row')} repeated, each counted once (first: row "
                f"{repeated[0][0]} repeats row {repeated[0][1]})"
            )
        arms[name], short = _arm(columns, rows, tasks)
        if short:
            gaps[name]["decodes"] = short
            notes.append(
                f"{name}: {plural(short, 'result')} left out for fewer decodes than its others have"
            )
    found = Measured(
        source=str(path),
        arms=arms,
        seeds=columns.seed.names,
        tasks=tasks,
        items=tuple(columns.item.names[i] for i in of_item),
        clusters=columns.cluster,
        n_rows=len(columns.correct),
        gaps=gaps,
        notes=tuple(notes),
    )
    for name in arms:
        lacks, said = _lacks(found, name)
        gaps[name] |= lacks
        notes += said
    gaps = {name: entry for name, entry in gaps.items() if entry}
    return Measured(**{**vars(found), "gaps": gaps, "notes": tuple(notes)})


def _by_method(columns: Columns) -> list[tuple[str, Codes]]:
    """The rows of every method, methods in the order in which they first appear."""
    codes = columns.method.codes[columns.rows]
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(columns.method.names) + 1))
    rows = columns.rows[order]
    return [(name, rows[bounds[i] : bounds[i + 1]]) for i, name in enumerate(columns.method.names)]


def _arm(columns: Columns, rows: Codes, tasks: Mapping[str, slice]) -> tuple[Arm, int]:
    """One method's table, and how many results were left out for having too few decodes."""
    seeds, at_seed = np.unique(columns.seed.codes[rows], return_inverse=True)
    shape = (len(seeds), len(columns.cells[0]))
    at = at_seed * shape[1] + columns.cell[rows]
    size = shape[0] * shape[1]
    right = np.bincount(at, weights=columns.correct[rows], minlength=size).reshape(shape)
    decodes = np.bincount(at, minlength=size).reshape(shape)
    short = np.zeros(shape, dtype=bool)
    for part in tasks.values():
        counts = decodes[:, part]
        # The most common number of decodes is what a result should have; the larger of two.
        often = np.bincount(counts[counts > 0])[::-1]
        usual = len(often) - 1 - int(often.argmax()) if len(often) else 0
        short[:, part] = (counts > 0) & (counts < usual)
    accuracy = np.where(short | (decodes == 0), np.nan, right / np.maximum(decodes, 1))
    fixed = bool(seeds[0] < 0 and columns.seed.names)
    return Arm(tuple(np.maximum(seeds, 0).tolist()), accuracy, fixed), int(short.sum())


def _lacks(found: Measured, name: str) -> tuple[dict[str, Any], list[str]]:
    """What a method lacks of the seeds, items and results that others have: counts, and words."""
    arm = found.arms[name]
    gaps: dict[str, Any] = {}
    notes: list[str] = []
    trained = {seed for other in found.arms.values() if not other.fixed for seed in other.seeds}
    absent = sorted(trained - set(arm.seeds))
    if arm.fixed:
        notes.append(f"{name}: no seed: one fixed checkpoint, set against every seed of others")
    elif absent:
        gaps["seeds"] = [found.seeds[seed] for seed in absent]
        notes.append(f"{name}: {found.named(absent)} missing")
    there: Mask = np.any(arm.present, axis=0)
    for task, part in found.tasks.items():
        lost = np.flatnonzero(~there[part]) + part.start
        if len(lost):
            gaps.setdefault("items", {})[task] = len(lost)
            names = [found.items[i] for i in lost[:SHOWN]] + ["..."] * (len(lost) > SHOWN)
            notes.append(
                f"{name}: {len(lost)} of {plural(part.stop - part.start, 'item')}"
                f"{found.of_task(task)} missing ({', '.join(names)})"
            )
    holes = (~arm.present & there).sum(axis=1).tolist()
    if any(holes):
        gaps["cells"] = sum(holes)
        each = [
            f"{n} of seed {found.seeds[seed]}"
            for seed, n in zip(arm.seeds, holes, strict=True)
            if n
        ]
        notes.append(f"{name}: {plural(sum(holes), 'single result')} missing ({', '.join(each)})")
    return gaps, notes

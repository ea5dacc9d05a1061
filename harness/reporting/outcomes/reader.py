"""A table of anybody's outcomes, read from a file: each value checked, what is missing named."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.reporting.numbers import plural
from harness.stats import Grid, pivot

REQUIRED = ("method", "item", "correct")
OPTIONAL = ("seed", "decode", "task", "cluster")
COLUMNS = (*REQUIRED, *OPTIONAL)
ONLY_TASK = "all"
"""Name of the task where the table has no column for it."""
SHOWN = 3
"""Names that a note gives as examples."""
_RIGHT = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
_NESTED = (list, dict, tuple, np.ndarray)

Gaps = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class OutcomeTable:
    """A table of outcomes: methods are the rows of `grid`, all at the fraction 1.

    `gaps` counts what is missing or repeated, by method; `notes` say it in words. A method without
    seeds, where others have them, is one fixed checkpoint.
    """

    source: str
    grid: Grid
    n_rows: int
    gaps: Gaps
    notes: tuple[str, ...]

    @property
    def methods(self) -> dict[str, tuple[str, float]]:
        """Lines of the grid by method, in the order of the table."""
        return {line[0]: line for line in self.grid.lines}


def read(path: Path) -> OutcomeTable:
    """Read and check a .parquet, .csv or .jsonl file.

    Its columns: `method`, `item`, `correct` (0 or 1), and optionally `seed`, `decode`, `task`,
    `cluster`. Raises ValueError naming file, row, column and value where one cannot be used.
    """
    path = Path(path)
    frame = _load(path)
    outcomes = pd.DataFrame({"fraction": 1.0, "correct": _correct(path, frame)}, index=frame.index)
    outcomes["row"] = _names(path, frame, "method")
    outcomes["seed"], fixed = _seeds(path, frame, outcomes["row"])
    outcomes["task"] = _optional(path, frame, "task", ONLY_TASK)
    outcomes["item"] = _ordered(_names(path, frame, "item"))
    outcomes["decode"] = _optional(path, frame, "decode", "0")
    if (cluster := _optional(path, frame, "cluster")) is not None:
        outcomes["cluster"] = cluster
        _check_clusters(path, outcomes)
    repeats = _repeats(path, frame, outcomes)
    grid = pivot(outcomes.drop(index=list(repeats)), fixed=fixed, usual_decodes=True)
    gaps, notes = _gaps(grid, outcomes["row"], repeats)
    return OutcomeTable(str(path), grid, len(frame), gaps, tuple(notes))


def _gaps(
    grid: Grid, methods: pd.Series[Any], repeats: Mapping[int, int]
) -> tuple[Gaps, list[str]]:
    """What every method repeats, and lacks of what others have: counts, and words."""
    gaps: Gaps = {method: {} for method, _ in grid.lines}
    notes: list[str] = []
    repeated: dict[str, list[int]] = {}
    for row, method in methods[list(repeats)].items():
        repeated.setdefault(method, []).append(row)
    for at, (method, _) in enumerate(grid.lines):
        if again := repeated.get(method):
            gaps[method]["duplicates"] = len(again)
            notes.append(
                f"{method}: {plural(len(again), 'row')} repeated, each counted once (first: row "
                f"{again[0]} repeats row {repeats[again[0]]})"
            )
        short = int(((grid.decodes[at] > 0) & np.isnan(grid.accuracy[at])).sum())
        if short:
            gaps[method]["decodes"] = short
            notes.append(
                f"{method}: {plural(short, 'result')} left out: fewer decodes than its other "
                "results have"
            )
    for line in grid.lines:
        lacking, words = _lacking(grid, line)
        gaps[line[0]] |= lacking
        notes += words
    return {method: entry for method, entry in gaps.items() if entry}, notes


def _lacking(grid: Grid, line: tuple[str, float]) -> tuple[dict[str, Any], list[str]]:
    """What a method lacks of the seeds, items and results that others have."""
    method, present, recorded = line[0], grid.present(line), grid.recorded(line)
    gaps: dict[str, Any] = {}
    notes: list[str] = []
    trained = [grid.recorded(other) for other in grid.lines if other[0] not in grid.fixed]
    if method in grid.fixed:
        notes.append(f"{method}: no seed: one fixed checkpoint, compared with every seed of others")
    elif missing := grid.named(np.any(trained, axis=0) & ~recorded):
        gaps["seeds"] = list(missing)
        notes.append(f"{method}: {seeds_named(missing)} missing")
    there = np.asarray(present.any(axis=0))
    for task, items in grid.tasks.items():
        absent = [grid.items[i] for i in np.flatnonzero(~there[items]) + items.start]
        if absent:
            gaps.setdefault("items", {})[task] = len(absent)
            size = f"{plural(items.stop - items.start, 'item')}{of_task(grid, task)}"
            notes.append(f"{method}: {len(absent)} of {size} missing ({first(absent)})")
    holes = (~present & there).sum(axis=1) * recorded
    if holes.any():
        gaps["cells"] = int(holes.sum())
        each = [f"{n} of seed {s}" for s, n in zip(grid.seeds, holes, strict=True) if n]
        count = plural(gaps["cells"], "single result")
        notes.append(f"{method}: {count} missing ({', '.join(each)})")
    return gaps, notes


def first(names: Sequence[str]) -> str:
    """The first few names, as examples."""
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])


def seeds_named(seeds: tuple[str, ...]) -> str:
    """`seed 4`, `seeds 4, 5`."""
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(seeds)}"


def of_task(grid: Grid, task: str) -> str:
    """` of gsm8k`; empty where the table has no tasks."""
    return "" if list(grid.tasks) == [ONLY_TASK] else f" of {task}"


def _load(path: Path) -> pd.DataFrame:
    """The known columns of a file as they are; the index is the row's number, from 1.

    JSON lines are numbered as lines of the file, other rows as rows of data.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a .parquet, .csv or .jsonl file")
    readers = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: ends in {path.suffix!r}; expected .parquet, .csv or .jsonl")
    frame = reader(path)
    absent = [name for name in REQUIRED if name not in frame.columns]
    if absent:
        raise ValueError(
            f"{path}: has no column {', '.join(map(repr, absent))}; expected {', '.join(REQUIRED)} "
            f"(and, where there are any, {', '.join(OPTIONAL)})"
        )
    if frame.empty:
        raise ValueError(f"{path}: has no rows; expected one per method, item, seed and decode")
    return frame


def _parquet(path: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name in COLUMNS]
        frame = file.read(columns=names).to_pandas(ignore_metadata=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a Parquet file") from None
    return _numbered(frame)


def _csv(path: Path) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # Rows longer than the header only warn, and not even that where columns are chosen.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                path,
                dtype=str,
                na_filter=False,
                index_col=False,
                skipinitialspace=True,
                encoding="utf-8-sig",
            )
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: is empty; expected a header and rows") from None
    except (ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read ({reason}); expected CSV in UTF-8") from None
    frame.columns = frame.columns.str.strip()
    return _numbered(frame)


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return frame


def _jsonl(path: Path) -> pd.DataFrame:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected JSON in UTF-8") from None
    numbered = {number: line for number, line in enumerate(lines, 1) if line.strip()}
    try:
        rows = json.loads(f"[{','.join(numbered.values())}]")  # five times as fast as one by one
    except json.JSONDecodeError:
        rows = []
    if len(rows) != len(numbered) or not all(type(row) is dict for row in rows):
        rows = [_row(path, number, line) for number, line in numbered.items()]
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    columns = {name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names}
    frame = pd.DataFrame(columns)
    frame.index = pd.Index(numbered, dtype=np.int64)
    return frame


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: row {number} is not JSON ({error.msg} at character {error.pos + 1}); "
            "expected one object per line"
        ) from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}: row {number} is {line.strip()[:40]!r}; expected an object")
    return row


def _names(path: Path, frame: pd.DataFrame, name: str, *, gaps: bool = False) -> pd.Categorical:
    """A column of names: texts, or numbers, which stand for their text (1, 1.0 and "1" are one).

    Categories are in the order in which they first appear. `gaps`: values may be empty.
    """
    values = frame[name]
    _refuse_nested(path, values, "a text or a number")
    codes, levels = pd.factorize(values)
    texts = [_text(level) for level in levels]
    names = list(dict.fromkeys(filter(None, texts)))
    position = {name: code for code, name in enumerate(names)}
    codes = np.array([*(position.get(text, -1) for text in texts), -1])[codes]  # -1: empty
    if not gaps and (codes < 0).any():
        raise ValueError(_about(path, values[codes < 0], "a value in every row"))
    return pd.Categorical.from_codes(codes, names, ordered=True)


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _ordered(names: pd.Categorical) -> pd.Categorical:
    """The same names in sorted order, as numbers where all of them are whole numbers."""
    whole = all(name.removeprefix("-").isdecimal() for name in names.categories)
    order = sorted(names.categories, key=lambda name: (int(name) if whole else 0, name))
    return names.set_categories(order, ordered=True)


def _optional(
    path: Path, frame: pd.DataFrame, name: str, default: str | None = None
) -> pd.Categorical | None:
    """A column that need not be there; one that is empty throughout is not there."""
    if name in frame.columns and len(_names(path, frame, name, gaps=True).categories):
        return _names(path, frame, name)
    return None if default is None else pd.Categorical([default] * len(frame))


def _seeds(
    path: Path, frame: pd.DataFrame, method: pd.Series[Any]
) -> tuple[pd.Categorical, frozenset[str]]:
    """Seeds, and the methods that have none (the first seed stands for theirs).

    A method has seeds in all of its rows or in none.
    """
    named = "seed" in frame.columns
    seeds = _ordered(_names(path, frame, "seed", gaps=True)) if named else pd.Categorical([])
    if not len(seeds.categories):
        return pd.Categorical(["0"] * len(frame)), frozenset()
    without = seeds.isna()
    fixed = frozenset(method[without])
    mixed = method[without & method.isin(set(method[~without]))]
    if len(mixed):
        raise ValueError(
            f"{path}: row {mixed.index[0]}, column 'seed' is empty; expected a seed in every row "
            f"of {mixed.iloc[0]!r}, since other rows of it have one"
        )
    return pd.Categorical.from_codes(np.maximum(seeds.codes, 0), dtype=seeds.dtype), fixed


def _repeats(path: Path, frame: pd.DataFrame, outcomes: pd.DataFrame) -> dict[int, int]:
    """Rows that repeat an earlier one, with that one; those that contradict it are refused."""
    key = ["row", "seed", "task", "item", "decode"]
    group = outcomes.groupby(key, observed=True, sort=False).ngroup()
    _, first, back = np.unique(group, return_index=True, return_inverse=True)
    original = first[back]
    repeats = np.flatnonzero(original != np.arange(len(group)))
    correct, rows = outcomes["correct"].to_numpy(), frame.index.to_numpy()
    against = repeats[correct[repeats] != correct[original[repeats]]]
    if len(against):
        row, other = against[0], original[against[0]]
        names = [name for name in ("method", *key[1:]) if name in frame.columns]
        raise ValueError(
            f"{path}: row {rows[row]}, column 'correct' is {int(correct[row])}, but row "
            f"{rows[other]} has {int(correct[other])} for the same {', '.join(names[:-1])} and "
            f"{names[-1]}; expected one row for each (several answers to an item need a column "
            "'decode')"
        )
    return dict(zip(rows[repeats].tolist(), rows[original[repeats]].tolist(), strict=True))


def _check_clusters(path: Path, outcomes: pd.DataFrame) -> None:
    """Refuse an item that is in two clusters."""
    codes = outcomes["cluster"].cat.codes
    by_item = codes.groupby([outcomes["task"], outcomes["item"]], observed=True).transform("last")
    wrong = outcomes[by_item != codes]
    if len(wrong):
        other = outcomes["cluster"].cat.categories[by_item[wrong.index[0]]]
        raise ValueError(
            f"{path}: row {wrong.index[0]}, column 'cluster' is {wrong['cluster'].iloc[0]!r}, but "
            f"item {wrong['item'].iloc[0]!r} is in {other!r} elsewhere; expected one cluster for "
            "each item"
        )


def _correct(path: Path, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The outcomes as 0 and 1."""
    values = frame["correct"]
    _refuse_nested(path, values, "0 or 1 (or true, false)")
    codes, levels = pd.factorize(values)
    verdicts = [_RIGHT.get(str(level).strip().lower(), math.nan) for level in levels]
    correct: npt.NDArray[np.float64] = np.array([*verdicts, math.nan])[codes]
    if np.isnan(correct).any():
        raise ValueError(_about(path, values[np.isnan(correct)], "0 or 1 (or true, false)"))
    return correct


def _refuse_nested(path: Path, values: pd.Series[Any], expected: str) -> None:
    """Lists and objects, which JSON and Parquet can hold."""
    if values.dtype != object:
        return
    odd = {kind for kind in set(map(type, values)) if issubclass(kind, _NESTED)}
    if odd:
        raise ValueError(_about(path, values[[type(v) in odd for v in values]], expected))


def _about(path: Path, bad: pd.Series[Any], expected: str) -> str:
    """The message for values that cannot be used: the first one, and how many there are."""
    value = bad.iloc[0]
    value = value.item() if isinstance(value, np.generic) else value
    empty = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    state = "is empty" if empty or value is pd.NA else f"is {value!r}"
    others = f" ({len(bad) - 1} more such rows)" if len(bad) > 1 else ""
    return f"{path}: row {bad.index[0]}, column {bad.name!r} {state}{others}; expected {expected}"

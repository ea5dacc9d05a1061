"""The columns of an outcomes table as they lie in a file, each value checked where it comes in."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

REQUIRED = ("method", "item", "correct")
OPTIONAL = ("seed", "decode", "task", "cluster")
COLUMNS = (*REQUIRED, *OPTIONAL)
_RIGHT = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}

_NESTED = (list, dict, tuple, np.ndarray)

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """A column of names: `names[codes]` are its values; -1 where it is empty."""

    codes: Codes
    names: tuple[str, ...]


def load(path: Path) -> pd.DataFrame:
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
    data = path.read_bytes()
    fast = _uniform(data)
    if fast is not None:
        return fast
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected JSON in UTF-8") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    rows = [_row(path, number, line) for number, line in numbered]
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    columns = {name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names}
    frame = pd.DataFrame(columns)
    frame.index = pd.Index([number for number, _ in numbered])
    return frame


def _uniform(data: bytes) -> pd.DataFrame | None:
    """Lines that all have the first one's columns and types, ten times as fast; None for others."""
    import pyarrow as pa
    import pyarrow.json

    try:
        first = dict(json.loads(data[: data.index(b"\n")]))
        types = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
        # Named types: left to itself, the reader takes texts that look like dates for dates.
        schema = pa.schema([(name, types[type(first[name])]) for name in COLUMNS if name in first])
        options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        blocks = pa.json.ReadOptions(block_size=1 << 24)
        table = pa.json.read_json(pa.BufferReader(data), blocks, options)
    except (ValueError, TypeError, KeyError, pa.ArrowException):
        return None
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if table.num_rows != lines or any(column.null_count for column in table.columns):
        return None
    return _numbered(table.to_pandas())


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


def labels(path: Path, frame: pd.DataFrame, name: str, *, gaps: bool = False) -> Labels:
    """A column of names: texts, or numbers, which stand for their text (1, 1.0 and "1" are one).

    `gaps`: empty values are allowed, and get the code -1.
    """
    values = frame[name]
    _refuse_nested(path, values, "a text or a number")
    codes, levels = pd.factorize(values)
    texts = [_text(level) for level in levels]
    names = tuple(dict.fromkeys(text for text in texts if text))
    at = {text: code for code, text in enumerate(names)}
    # The last entry serves the code -1.
    renumbered = np.array([at.get(text, -1) for text in texts] + [-1], dtype=np.int64)
    codes = renumbered[codes]
    if not gaps and (codes < 0).any():
        raise ValueError(_about(path, values[codes < 0], "a value in every row"))
    return Labels(codes, names)


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def ordered(found: Labels) -> Labels:
    """The same column with its names sorted, as numbers where all of them are whole numbers."""
    whole = all(name.removeprefix("-").isdecimal() for name in found.names)
    order = sorted(range(len(found.names)), key=lambda i: _key(found.names[i], whole))
    rank = np.empty(len(order) + 1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    rank[-1] = -1
    return Labels(rank[found.codes], tuple(found.names[i] for i in order))


def _key(name: str, whole: bool) -> tuple[int, str]:
    return (int(name) if whole else 0, name)


def correct(path: Path, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The outcomes as 0 and 1."""
    values = frame["correct"]
    _refuse_nested(path, values, "0 or 1 (or true, false)")
    codes, levels = pd.factorize(values)
    known = [_RIGHT.get(str(level).strip().lower(), math.nan) for level in levels]
    found: npt.NDArray[np.float64] = np.array([*known, math.nan])[codes]
    if np.isnan(found).any():
        raise ValueError(_about(path, values[np.isnan(found)], "0 or 1 (or true, false)"))
    return found


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
    said = "is empty" if empty or value is pd.NA else f"is {value!r}"
    others = f" ({len(bad) - 1} more such rows)" if len(bad) > 1 else ""
    return f"{path}: row {bad.index[0]}, column {bad.name!r} {said}{others}; expected {expected}"

"""Subsets: chosen example ids, best first, with what the selector recorded about every example."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool
from harness.selection.selector import Positions

SUBSET = "subset.parquet"
SCORES = "scores.parquet"


def budget_of(fraction: float, n: int) -> int:
    """Examples that a fraction of a pool of `n` means: rounded half up, at least one."""
    return max(1, int(fraction * n + 0.5))


def write_subset(folder: Path, pool: Pool, positions: Positions) -> None:
    """Write the chosen ids, best first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = [pool.ids[p] for p in positions]
    pq.write_table(pa.table({"id": pa.array(ids, pa.string())}), folder / SUBSET)


def read_subset(folder: Path) -> tuple[str, ...]:
    """Chosen ids, best first."""
    import pyarrow.parquet as pq

    return tuple(pq.read_table(folder / SUBSET).column("id").to_pylist())


def write_scores(folder: Path, pool: Pool, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write one row per example id with the named columns; ValueError on a wrong shape."""
    for name, values in columns.items():
        if values.shape != (len(pool),):
            raise ValueError(
                f"recorded column {name!r} has shape {values.shape}; expected ({len(pool)},)"
            )
    write_table(folder / SCORES, {"id": np.asarray(pool.ids, dtype=object), **columns})


def write_table(path: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write columns of equal length; ValueError where they differ."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path.name}: columns have lengths {lengths}; expected the same")
    table = {name: pa.array(np.asarray(values)) for name, values in columns.items()}
    pq.write_table(pa.table(table), path, compression="zstd")


def read_scores(folder: Path) -> dict[str, list[Any]]:
    """Columns of `scores.parquet`; empty where the selector recorded nothing."""
    import pyarrow.parquet as pq

    if not (folder / SCORES).exists():
        return {}
    return dict(pq.read_table(folder / SCORES).to_pydict())

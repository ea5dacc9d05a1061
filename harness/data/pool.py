"""The pool: tokenised examples in a fixed order, made once and used by every later stage.

Selectors and the trainer read the very same `input_ids` and `labels`, so a template mismatch or a
shifted mask between "what was scored" and "what was trained on" cannot happen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


IGNORED = -100
"""Label of a position that carries no loss (transformers' convention)."""

Tokens = npt.NDArray[np.int32]
TOKEN_FIELDS = ("input_ids", "labels")


@dataclass(frozen=True)
class Pool:
    """Tokenised examples of one data set; example `i` is row `i` of every field.

    `labels[i][t]` is the token at position `t`, or -100 where the position carries no loss (the
    prompt); the model does the shift by one. `truncated[i]` tells that the response was cut at the
    token limit. Query sets are pools too.
    """

    ids: tuple[str, ...]
    input_ids: tuple[Tokens, ...] = field(repr=False)
    labels: tuple[Tokens, ...] = field(repr=False)
    columns: Mapping[str, tuple[Any, ...]] = field(repr=False, default_factory=dict)
    truncated: tuple[bool, ...] = field(repr=False, default=())

    def __post_init__(self) -> None:
        n = len(self.ids)
        if not self.truncated:
            object.__setattr__(self, "truncated", (False,) * n)
        sizes = {
            "input_ids": len(self.input_ids),
            "labels": len(self.labels),
            "truncated": len(self.truncated),
            **{f"column {name!r}": len(values) for name, values in self.columns.items()},
        }
        for name, size in sizes.items():
            if size != n:
                raise ValueError(f"pool {name} has {size} rows; expected {n}, one per id")
        if len(set(self.ids)) != n:
            twice = sorted({i for i in self.ids if self.ids.count(i) > 1})[:5]
            raise ValueError(f"pool ids {twice} occur more than once; expected unique ids")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def response_lengths(self) -> npt.NDArray[np.int64]:
        """Trainable tokens of each example, shape [n]."""
        counts = [int((labels != IGNORED).sum()) for labels in self.labels]
        return np.array(counts, dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, tokens and labels: what a cached signal of this pool belongs to."""
        digest = hashlib.sha256()
        for name, tokens, labels in zip(self.ids, self.input_ids, self.labels, strict=True):
            digest.update(f"{name}\0{len(tokens)}\0".encode())
            digest.update(np.ascontiguousarray(tokens, dtype="<i4").tobytes())
            digest.update(np.ascontiguousarray(labels, dtype="<i4").tobytes())
        return digest.hexdigest()

    def column(self, name: str) -> tuple[Any, ...]:
        """Values of one text column; ValueError names the columns that exist."""
        if name not in self.columns:
            have = ", ".join(sorted(self.columns)) or "none"
            raise ValueError(f"pool column {name!r} does not exist; expected one of: {have}")
        return self.columns[name]

    def prompt_ids(self, position: int) -> Tokens:
        """Tokens of one example before its first trainable token."""
        trainable = np.flatnonzero(self.labels[position] != IGNORED)
        end = int(trainable[0]) if len(trainable) else len(self.labels[position])
        return self.input_ids[position][:end]

    def take(self, positions: Iterable[int] | npt.NDArray[np.int64]) -> Pool:
        """The examples at `positions`, in that order."""
        chosen = [int(p) for p in positions]
        return Pool(
            ids=tuple(self.ids[p] for p in chosen),
            input_ids=tuple(self.input_ids[p] for p in chosen),
            labels=tuple(self.labels[p] for p in chosen),
            columns={
                name: tuple(values[p] for p in chosen) for name, values in self.columns.items()
            },
            truncated=tuple(self.truncated[p] for p in chosen),
        )

    def take_ids(self, ids: Sequence[str]) -> Pool:
        """The examples named by `ids`, in that order; ValueError names an unknown id."""
        where = {name: position for position, name in enumerate(self.ids)}
        unknown = [name for name in ids if name not in where]
        if unknown:
            raise ValueError(f"ids {unknown[:5]!r} are not in the pool of {len(self)} examples")
        return self.take([where[name] for name in ids])

    def save(self, folder: Path) -> None:
        """Write `pool.parquet` into `folder`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        clash = set(self.columns) & {"id", "truncated", *TOKEN_FIELDS}
        if clash:
            raise ValueError(f"pool columns {sorted(clash)} are reserved names; rename them")
        tokens = pa.list_(pa.int32())
        table = {
            "id": pa.array(self.ids, pa.string()),
            "input_ids": pa.array([t.tolist() for t in self.input_ids], tokens),
            "labels": pa.array([t.tolist() for t in self.labels], tokens),
            "truncated": pa.array(self.truncated, pa.bool_()),
            **{name: pa.array(list(values)) for name, values in self.columns.items()},
        }
        pq.write_table(pa.table(table), folder / "pool.parquet", compression="zstd")

    @classmethod
    def load(cls, folder: Path) -> Pool:
        """Read what `save` wrote."""
        import pyarrow.parquet as pq

        table = pq.read_table(folder / "pool.parquet")
        fixed = {"id", "truncated", *TOKEN_FIELDS}

        def tokens(name: str) -> tuple[Tokens, ...]:
            return tuple(np.asarray(row.as_py(), dtype=np.int32) for row in table.column(name))

        return cls(
            ids=tuple(table.column("id").to_pylist()),
            input_ids=tokens("input_ids"),
            labels=tokens("labels"),
            columns={
                name: tuple(table.column(name).to_pylist())
                for name in table.column_names
                if name not in fixed
            },
            truncated=tuple(table.column("truncated").to_pylist()),
        )


def tokens_of(pool: Pool) -> int:
    """Tokens of a pool, prompts included."""
    return sum(len(ids) for ids in pool.input_ids)


def collate(pool: Pool, positions: Sequence[int], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded batch: `input_ids`, `attention_mask` and `labels`, each int64 [b, T]."""
    import torch

    width = max(len(pool.input_ids[p]) for p in positions)
    shape = (len(positions), width)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for row, p in enumerate(positions):
        n = len(pool.input_ids[p])
        input_ids[row, :n] = torch.from_numpy(pool.input_ids[p].astype(np.int64))
        attention_mask[row, :n] = 1
        labels[row, :n] = torch.from_numpy(pool.labels[p].astype(np.int64))
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def drawn(pool: Pool, size: int | None, seed: int) -> Pool:
    """`size` examples without replacement, in pool order; all of them for None or too large."""
    if size is None or size >= len(pool):
        return pool
    chosen = np.random.default_rng([seed, 101]).choice(len(pool), size, replace=False)
    return pool.take(np.sort(chosen))

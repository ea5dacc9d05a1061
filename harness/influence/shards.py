"""Scores in parts, each kept in a folder as soon as it is finished.

A part is one .npy file, written under a temporary name and renamed, so that it exists completely or
not at all, whatever kills the process. `key.json` says what the parts belong to: the content of
pool, queries, curvature and weights, the options and the method. Parts of anything else are
removed, with a warning that names what differs, and never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from harness.experiment.records import write_atomic

KEY = "key.json"
LOCK = "lock"
PART = re.compile(r"\d+-\d+\.npy(\.tmp)?")
SEEN = 1024
"""Entries of every tensor that its digest reads one by one; of all others, the sum."""


class Shards:
    """The finished parts in `folder`, all of one `key`; what belongs to another key is removed."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._folder = folder
        path = folder / KEY
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            differ = sorted(name for name in {*old, *key} if old.get(name) != key.get(name))
            if not differ:
                return
            warnings.warn(
                f"{folder}: holds scores that differ in {', '.join(differ)}; starting anew",
                stacklevel=4,
            )
            self.clear()
        write_atomic(path, json.dumps(key, indent=1, sort_keys=True).encode())

    def get(self, block: int, number: int) -> npt.NDArray[np.float64] | None:
        """Scores of one part, or None where it is not finished."""
        path = self._path(block, number)
        return np.load(path) if path.exists() else None

    def put(self, block: int, number: int, scores: npt.NDArray[np.float64]) -> None:
        """Keep the scores of one part."""
        path = self._path(block, number)
        work = path.with_name(f"{path.name}.tmp")
        with work.open("wb") as file:
            np.save(file, scores)
        os.replace(work, path)

    def clear(self) -> None:
        """Remove what this class wrote, and nothing else."""
        (self._folder / KEY).unlink()
        for path in self._folder.iterdir():
            if PART.fullmatch(path.name):
                path.unlink()

    def _path(self, block: int, number: int) -> Path:
        return self._folder / f"{block:03d}-{number:06d}.npy"


@contextmanager
def kept(folder: Path, key: Mapping[str, Any]) -> Iterator[Shards]:
    """The shards in `folder`, for one process at a time.

    ValueError where the folder holds other things, or where another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ours = (LOCK, f"{KEY}.tmp")
    others = [path.name for path in folder.iterdir() if path.name not in ours]
    if others and not (folder / KEY).exists():
        raise ValueError(
            f"{folder} holds {sorted(others)[0]!r} and no {KEY}; expected an empty folder, or one "
            "that scores were kept in before"
        )
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process is writing scores to {folder}; expected one at a time"
        ) from None
    try:
        yield Shards(folder, key)
    finally:
        lock.release()


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes, precisions, some entries and exact sums of named tensors.

    Reads everything once and hashes little: any training step changes it. Sums are of the bits as
    integers, so that neither threads nor devices change them.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        flat = tensor.detach().reshape(-1)
        whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = flat.view(whole[flat.element_size()])
        step = max(1, len(bits) // SEEN)
        total = int(bits.sum(dtype=torch.int64))
        found.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0{total}\0".encode())
        found.update(bits[::step].cpu().numpy().tobytes())
    return found.hexdigest()

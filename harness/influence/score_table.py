"""Scores of a whole pool, one row per example id: shard by shard, and resumed where they stopped.

The pool is scored longest example first, cut into shards of whole batches. So a shard's batches are
those of the whole pool, and neither the size of a shard nor where a run was interrupted changes a
bit of the result. Beside tokens and result, memory holds one batch.

A finished shard is one .npy file, written under a temporary name and renamed, so that it exists
completely or not at all, whatever kills the process. `key.json` says what the shards belong to: the
content of pool, queries, curvature and weights, the options and the method. Shards of anything else
are removed, with a warning that names what differs, and never mixed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from harness.data.pool import Pool
from harness.experiment.records import write_atomic
from harness.influence.batches import Progress, by_length, device_of
from harness.influence.costs import scoring_passes
from harness.influence.curvature.base import Curvature
from harness.influence.directional import directional_scores
from harness.influence.gradients import query_gradients
from harness.influence.layers import Gradients, check_attention
from harness.influence.options import scoring_method
from harness.influence.query_influence import block_size

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
SHARD = 128
"""Examples per shard."""
KEY = "key.json"
LOCK = "lock"
SHARD_FILE = re.compile(r"\d+-\d+\.npy(\.tmp)?")
SAMPLED = 1024
"""Entries of every tensor that its digest reads one by one; of the rest, the sum."""

Matrix = npt.NDArray[np.float64]


def scores(
    model: nn.Module,
    curvature: Curvature,
    pool: Pool,
    queries: Pool,
    *,
    aggregate: str | None = "mean",
    method: str = "auto",
    progress: Progress | None = None,
    shards: Path | str | None = None,
    shard_size: int = SHARD,
) -> pd.DataFrame:
    """Influence of every example of `pool` on `queries`, indexed by example id, in pool order.

    grad f_v^T (H + damping)^-1 grad(-L_d), with f_v the mean log-probability of the labelled tokens
    of a query. Higher: training more on the example raises the queries' log-probability.

    Args:
        model: at the weights that `curvature` was fitted at.
        curvature: see `fit`; its options say which layers and which loss count.
        pool: the examples to score; for "ekfac+cg" the pool that the curvature was fitted on.
        queries: prompt and completion of every query, the completion labelled.
        aggregate: "mean" or "sum" over queries, a column `score`; None: a column per query id.
        method: "ghost", "forward", or "auto" for the cheaper one (see `directional_scores`).
        shards: a folder that keeps finished shards; a killed run continues from there. Shards that
            belong to anything else are replaced, with a warning.
        shard_size: examples per shard, rounded up to whole batches.

    `attrs` of the table: options, examples, queries, aggregate, method, what the curvature reports,
    cost in forward passes, shards (all, and how many were found), seconds per part.

    Raises:
        ValueError: an empty pool or query set, layers that differ from the curvature's, or an
            attention kernel without the derivatives that `method` needs.
    """
    import pandas as pd

    for name, examples in (("pool", pool), ("query set", queries)):
        if len(examples) == 0:
            raise ValueError(f"the {name} is empty; expected at least one example")
    if aggregate not in ("mean", "sum", None):
        raise ValueError(f"aggregate is {aggregate!r}; expected 'mean', 'sum' or None")
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size!r}; expected at least 1")
    method = scoring_method(method)
    if method == "forward":
        check_attention(model)  # before anything is computed
    run = _Run(model, curvature, pool, queries, aggregate, method, shard_size)
    values = run.scores(None if shards is None else Path(shards), progress)
    columns = list(queries.ids) if aggregate is None else ["score"]
    table = pd.DataFrame(values, index=pd.Index(pool.ids, name="id"), columns=columns)
    table.attrs = {
        "options": dataclasses.asdict(curvature.options),
        "examples": len(pool),
        "queries": len(queries),
        "aggregate": aggregate,
        "method": method,
        "curvature": curvature.report(),
        "forward_passes": scoring_passes(method, len(columns)),
        "shards": {"total": run.total, "found": run.found},
        "seconds": run.seconds,
    }
    return table


@dataclasses.dataclass
class _Run:
    """One call of `scores`: blocks of queries times parts of the pool."""

    model: nn.Module
    curvature: Curvature
    pool: Pool
    queries: Pool
    aggregate: str | None
    method: str
    shard_size: int
    found: int = 0

    def __post_init__(self) -> None:
        batch = self.curvature.options.batch_size
        # The order of `batches`, so that every shard has whole batches of the pool.
        self.parts = by_length(self.pool, -(-self.shard_size // batch) * batch)
        count = len(self.queries)
        step = count if self.aggregate is not None else block_size(self.curvature)
        self.blocks = [range(i, min(i + step, count)) for i in range(0, count, step)]
        self.total = len(self.blocks) * len(self.parts)
        self.seconds = {"directions": 0.0, "scores": 0.0}

    def scores(self, folder: Path | None, progress: Progress | None) -> Matrix:
        """[n, queries], or [n, 1] where they are aggregated; in pool order."""
        columns = len(self.queries) if self.aggregate is None else 1
        table = np.zeros((len(self.pool), columns))
        with nullcontext() if folder is None else locked(folder, self.key()) as shards:
            missing = []
            for number, part in product(range(len(self.blocks)), range(len(self.parts))):
                finished = None if shards is None else shards.get(number, part)
                if finished is None:
                    missing.append((number, part))
                else:
                    table[self.parts[part], self._columns(number)] = finished
            self.found = self.total - len(missing)
            block: int | None = None
            directions: Gradients = {}
            watched: Iterable[tuple[int, int]] = missing
            if progress is not None and missing:
                watched = progress(missing, "scores", len(missing))
            for number, part in watched:
                start = time.perf_counter()
                if number != block:
                    block, directions = number, {}  # of one block at a time
                    directions = self._directions(self.blocks[number], progress)
                    self.seconds["directions"] += time.perf_counter() - start
                    start = time.perf_counter()
                examples = self.pool.take(self.parts[part])
                options = self.curvature.options
                values = directional_scores(
                    self.model, examples, directions, options, method=self.method
                )
                table[self.parts[part], self._columns(number)] = values
                if shards is not None:
                    shards.put(number, part, values)
                self.seconds["scores"] += time.perf_counter() - start
        return table

    def _directions(self, block: range, progress: Progress | None) -> Gradients:
        """(H + damping)^-1 times the gradients of these queries."""
        gradients = query_gradients(
            self.model,
            self.queries.take(block),
            self.curvature.options,
            aggregate=self.aggregate,
            progress=progress,
        )
        if self.aggregate is not None:
            gradients = {name: gradient[None] for name, gradient in gradients.items()}
        return self.curvature.apply(gradients, model=self.model, pool=self.pool, progress=progress)

    def _columns(self, block: int) -> slice:
        queries = self.blocks[block]
        return slice(queries.start, queries.stop) if self.aggregate is None else slice(0, 1)

    def key(self) -> dict[str, Any]:
        """What a score depends on, by content."""
        return {
            "format": FORMAT,
            "aggregate": self.aggregate,
            "attention": getattr(getattr(self.model, "config", None), "_attn_implementation", None),
            "curvature": digest(self.curvature.tensors().items()),
            "device": device_of(self.model).type,
            "method": self.method,
            "options": dataclasses.asdict(self.curvature.options),
            "pool": self.pool.fingerprint,
            "queries": self.queries.fingerprint,
            "query block": len(self.blocks[0]),
            "shard size": len(self.parts[0]),
            "torch": torch.__version__,
            "weights": weights_digest(self.model),
        }


class Shards:
    """The finished shards in `folder`, all of one `key`; shards of another key are removed."""

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
            path.unlink()
            for shard in folder.iterdir():
                if SHARD_FILE.fullmatch(shard.name):
                    shard.unlink()
        write_atomic(path, json.dumps(key, indent=1, sort_keys=True).encode())

    def get(self, block: int, part: int) -> Matrix | None:
        """Scores of one shard, or None where it is not finished."""
        path = self._path(block, part)
        return np.load(path) if path.exists() else None

    def put(self, block: int, part: int, values: Matrix) -> None:
        """Keep the scores of one shard."""
        path = self._path(block, part)
        temporary = path.with_name(f"{path.name}.tmp")
        with temporary.open("wb") as file:
            np.save(file, values)
        os.replace(temporary, path)

    def _path(self, block: int, part: int) -> Path:
        return self._folder / f"{block:03d}-{part:06d}.npy"


@contextmanager
def locked(folder: Path, key: Mapping[str, Any]) -> Iterator[Shards]:
    """The shards in `folder`, for one process at a time.

    ValueError where the folder holds other things, or where another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ours = (LOCK, f"{KEY}.tmp")
    others = [path.name for path in folder.iterdir() if path.name not in ours]
    if others and not (folder / KEY).exists():
        raise ValueError(
            f"{folder} holds {min(others)!r} and no {KEY}; expected an empty folder, or one that "
            "scores were kept in before"
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


def weights_digest(model: nn.Module) -> str:
    """A cheap fingerprint of all parameters and buffers of a model."""
    return digest([*model.named_parameters(), *model.named_buffers()])


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes, precisions, some entries and exact sums of named tensors.

    Reads everything once and hashes little: any training step changes it. Sums are of the bits as
    integers, so that neither threads nor devices change them.
    """
    hasher = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        flat = tensor.detach().reshape(-1)
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = flat.view(integers[flat.element_size()])
        step = max(1, len(bits) // SAMPLED)
        total = int(bits.sum(dtype=torch.int64))
        hasher.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0{total}\0".encode())
        hasher.update(bits[::step].cpu().numpy().tobytes())
    return hasher.hexdigest()

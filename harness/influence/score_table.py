"""Scores of a whole pool, one row per example id: shard by shard, and continued where it stopped.

The pool goes through longest first, cut into shards of whole batches. So a shard's batches are
those of the whole pool, and neither the size of a shard nor where a run was interrupted changes a
bit of the result. Beside tokens and result, memory holds one batch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness.data.pool import Pool
from harness.influence.batches import Progress, device_of
from harness.influence.choice import Choice, chosen
from harness.influence.curvature.base import Curvature
from harness.influence.directional import Scorer, scorer
from harness.influence.gradients import query_gradients
from harness.influence.layers import check_attention
from harness.influence.query_influence import QUERY_ELEMENTS
from harness.influence.shards import Shards, digest, kept

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
SHARD = 128
"""Examples per shard."""

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
        method: "forward", "central", "ghost", or "auto" for the cheapest (see choice.py).
        shards: a folder that keeps finished shards; a killed run continues from there. Shards that
            belong to anything else are replaced, with a warning.
        shard_size: examples per shard, rounded up to whole batches.

    `attrs` of the table: options, examples, queries, aggregate, method, reason, what the curvature
    reports, cost in forward passes, shards (all, and how many were found), seconds per part.

    Raises:
        ValueError: an empty pool or query set, layers that differ from the curvature's, or an
            attention kernel without the derivatives that `method` needs.
    """
    import pandas as pd

    _check(pool, queries, aggregate, shard_size)
    count = len(queries) if aggregate is None else 1
    choice = chosen(model, method, count)
    if choice.method == "forward":
        check_attention(model)  # before anything is computed
    run = _Run(model, curvature, pool, queries, aggregate, choice.method, shard_size)
    found = run.scores(None if shards is None else Path(shards), progress)
    names = list(queries.ids) if aggregate is None else ["score"]
    table = pd.DataFrame(found, index=pd.Index(pool.ids, name="id"), columns=names)
    table.attrs = _attrs(run, choice)
    return table


def _check(pool: Pool, queries: Pool, aggregate: str | None, shard_size: int) -> None:
    for name, examples in (("pool", pool), ("query set", queries)):
        if len(examples) == 0:
            raise ValueError(f"the {name} is empty; expected at least one example")
    if aggregate not in ("mean", "sum", None):
        raise ValueError(f"aggregate is {aggregate!r}; expected 'mean', 'sum' or None")
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size!r}; expected at least 1")


def _attrs(run: _Run, choice: Choice) -> dict[str, Any]:
    return {
        "options": dataclasses.asdict(run.curvature.options),
        "examples": len(run.pool),
        "queries": len(run.queries),
        "aggregate": run.aggregate,
        "method": choice.method,
        "reason": choice.reason,
        "curvature": run.curvature.report(),
        "forward_passes": choice.operations,
        "shards": {"total": run.total, "found": run.found},
        "seconds": run.seconds,
    }


@dataclasses.dataclass
class _Run:
    """One call of `scores`: blocks of queries times shards of the pool."""

    model: nn.Module
    curvature: Curvature
    pool: Pool
    queries: Pool
    aggregate: str | None
    method: str
    shard_size: int
    found: int = 0
    total: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        batch = self.curvature.options.batch_size
        size = -(-self.shard_size // batch) * batch
        # The order of `batches`, which cuts every shard into the batches of the whole pool.
        order = np.argsort([-len(tokens) for tokens in self.pool.input_ids], kind="stable")
        self.parts = [order[start : start + size] for start in range(0, len(order), size)]
        width = sum(out * columns for out, columns in self.curvature.shapes.values())
        limit = max(1, QUERY_ELEMENTS // width)
        self.blocks = [
            range(start, min(start + limit, len(self.queries)))
            for start in range(0, len(self.queries), limit)
        ]
        if self.aggregate is not None:
            self.blocks = [range(len(self.queries))]
        self.total = len(self.blocks) * len(self.parts)
        self.seconds = {"directions": 0.0, "scores": 0.0}

    def scores(self, folder: Path | None, progress: Progress | None) -> Matrix:
        """[n, queries], or [n, 1] where they are aggregated; in pool order."""
        width = len(self.queries) if self.aggregate is None else 1
        table = np.zeros((len(self.pool), width))
        with nullcontext() if folder is None else kept(folder, self.key()) as shards:
            missing = self._fill(table, shards)
            self.found = self.total - sum(len(parts) for parts in missing.values())
            steps = sum(self._steps(block, part) for block, p in missing.items() for part in p)
            with _Overall(progress, steps) as overall:
                for block, parts in missing.items():
                    self._block(table, block, parts, shards, progress, overall)
        return table

    def _fill(self, table: Matrix, shards: Shards | None) -> dict[int, list[int]]:
        """Put what is finished into `table`; return the shards that are missing, by block."""
        missing: dict[int, list[int]] = {}
        for block in range(len(self.blocks)):
            for part, positions in enumerate(self.parts):
                known = None if shards is None else shards.get(block, part)
                if known is None:
                    missing.setdefault(block, []).append(part)
                else:
                    table[positions, self._columns(block)] = known
        return missing

    def _steps(self, block: int, part: int) -> int:
        """Batches that scoring this shard takes; central differences go through it by column."""
        columns = len(self.blocks[block]) if self.aggregate is None else 1
        times = columns if self.method == "central" else 1
        return -(-len(self.parts[part]) // self.curvature.options.batch_size) * times

    def _block(
        self,
        table: Matrix,
        block: int,
        parts: list[int],
        shards: Shards | None,
        progress: Progress | None,
        overall: _Overall,
    ) -> None:
        start = time.perf_counter()
        score = self._scorer(self.blocks[block], progress)
        middle = time.perf_counter()
        self.seconds["directions"] += middle - start
        for part in parts:
            found = score(self.pool.take(self.parts[part]), overall.tick)
            table[self.parts[part], self._columns(block)] = found
            if shards is not None:
                shards.put(block, part, found)
        self.seconds["scores"] += time.perf_counter() - middle

    def _scorer(self, block: range, progress: Progress | None) -> Scorer:
        """Scores along (H + damping)^-1 times the gradients of these queries."""
        options = self.curvature.options
        queries = self.queries.take(block)
        gradients = query_gradients(
            self.model, queries, options, aggregate=self.aggregate, progress=progress
        )
        if self.aggregate is not None:
            gradients = {name: gradient[None] for name, gradient in gradients.items()}
        directions = self.curvature.apply(
            gradients, model=self.model, pool=self.pool, progress=progress
        )
        return scorer(self.model, self.pool, directions, options, method=self.method)

    def _columns(self, block: int) -> slice:
        chosen = self.blocks[block]
        return slice(chosen.start, chosen.stop) if self.aggregate is None else slice(0, 1)

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


def weights_digest(model: nn.Module) -> str:
    """A cheap fingerprint of all parameters and buffers of a model."""
    return digest([*model.named_parameters(), *model.named_buffers()])


class _Overall:
    """One progress bar over all shards: every shard's batches tick it on."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        shown: Iterable[int] = range(total)
        if progress is not None and total:
            shown = progress(shown, "scores", total)
        self._steps = iter(shown)
        self.tick: Progress = self._tick

    def __enter__(self) -> _Overall:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            for _ in self._steps:  # lets the bar end
                pass

    def _tick(self, iterable: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        for item in iterable:
            yield item
            next(self._steps, None)

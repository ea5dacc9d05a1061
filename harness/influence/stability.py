"""How much a selection depends on the queries that happened to flip: a bootstrap over queries.

A replicate draws as many queries of C, and of I, with replacement, and recomputes s and r:

    s(d) = mean (or sum) over the drawn queries of infl(v, d)      r(d) = mean of rank(d) / n

both from the columns infl(v, .), so that nothing is computed twice. The same rule then chooses, and
its set is compared with the one chosen on all queries by Jaccard overlap |A & B| / |A | B|. Where
the columns belong to a sample of the queries, the overlap describes a choice by that few, and is
rather too low for a choice whose s rests on all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.jaccard import expected_jaccard

Columns = Mapping[str, npt.NDArray[Any]]
"""infl(v, d) of the queries of each side: "C" and "I", [n, q]."""
Table = Mapping[str, npt.NDArray[Any]]
"""Columns id, s_C, r_C, s_I, r_I (of the sides there are), [n]."""
REPLICATES = 1000
BLOCK_ELEMENTS = 1 << 22
"""Scores of replicates held at once, per side."""


@dataclass(frozen=True)
class Stability:
    """Mean Jaccard overlap of replicates with the full set, its percentile interval [low, high].

    `expected`: mean overlap of random sets of that size with it. `kept` [n]: share of the
    replicates that keep each example.
    """

    jaccard: float
    low: float
    high: float
    expected: float
    replicates: int
    kept: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Budgets:
    """Stability of an order of dropping, for every number of kept examples.

    `budgets`: columns kept (1 to n), jaccard, low, high and random, as in `Stability`. `place_low`,
    `place_high` [n]: the interval of each example's place, 0 dropped first.
    """

    budgets: dict[str, npt.NDArray[Any]]
    place_low: npt.NDArray[np.float64]
    place_high: npt.NDArray[np.float64]


def set_stability(
    ids: Sequence[str],
    columns: Columns,
    choose: Callable[[Table], Set[str]],
    *,
    rng: np.random.Generator,
    replicates: int = REPLICATES,
    aggregate: str = "mean",
    level: float = 0.95,
) -> Stability:
    """Stability of the set of ids that `choose` takes from a table."""
    where = {name: position for position, name in enumerate(ids)}

    def flags(table: Table) -> npt.NDArray[np.bool_]:
        chosen = np.zeros(len(ids), dtype=bool)
        chosen[[where[name] for name in choose(table)]] = True
        return chosen

    full = flags(whole(ids, columns, aggregate))
    overlaps, kept = np.empty(replicates), np.zeros(len(ids))
    for b, table in enumerate(replicated(ids, columns, rng, replicates, aggregate)):
        chosen = flags(table)
        union = int((chosen | full).sum())
        overlaps[b] = int((chosen & full).sum()) / union if union else 1.0
        kept += chosen
    low, high = np.quantile(overlaps, [(1 - level) / 2, (1 + level) / 2])
    return Stability(
        float(overlaps.mean()),
        float(low),
        float(high),
        expected_jaccard(len(ids), int(full.sum()), int(full.sum())),
        replicates,
        kept / replicates,
    )


def order_stability(
    ids: Sequence[str],
    columns: Columns,
    order: Callable[[Table], npt.NDArray[np.int64]],
    *,
    rng: np.random.Generator,
    replicates: int = REPLICATES,
    aggregate: str = "mean",
    level: float = 0.95,
) -> Budgets:
    """The same for every number of kept examples at once.

    `order(table)`: positions in the order in which examples are dropped. Holds 8 bytes per example
    and replicate.
    """
    n = len(ids)

    def places(table: Table) -> npt.NDArray[np.int64]:
        positions = np.empty(n, dtype=np.int64)
        positions[order(table)] = np.arange(n)
        return positions

    full = places(whole(ids, columns, aggregate))
    kept = np.arange(1, n + 1)
    overlaps = np.empty((replicates, n), dtype=np.float32)
    resampled = np.empty((replicates, n), dtype=np.int32)
    for b, table in enumerate(replicated(ids, columns, rng, replicates, aggregate)):
        # Keeping k drops the first n - k: both keep an example whose earlier place is not below.
        resampled[b] = places(table)
        both = np.cumsum(np.bincount(np.minimum(full, resampled[b]), minlength=n)[::-1])
        overlaps[b] = both / (2 * kept - both)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(overlaps, tails, axis=0).astype(np.float64)
    budgets = {
        "kept": kept,
        "jaccard": overlaps.mean(axis=0, dtype=np.float64),
        "low": low,
        "high": high,
        "random": np.array([expected_jaccard(n, k, k) for k in kept.tolist()]),
    }
    return Budgets(budgets, *np.quantile(resampled, tails, axis=0).astype(np.float64))


def whole(ids: Sequence[str], columns: Columns, aggregate: str = "mean") -> Table:
    """The table of all queries, each once."""
    once = {name: np.ones((1, values.shape[1])) for name, values in columns.items()}
    return next(_tables(ids, _prepared(columns), once, aggregate))


def replicated(
    ids: Sequence[str],
    columns: Columns,
    rng: np.random.Generator,
    replicates: int = REPLICATES,
    aggregate: str = "mean",
) -> Iterator[Table]:
    """One table per draw of the queries."""
    if replicates < 1:
        raise ValueError(f"replicates is {replicates!r}; expected at least 1")
    counts = {}
    for name, values in columns.items():
        q = values.shape[1]
        counts[name] = rng.multinomial(q, np.full(q, 1 / q), size=replicates).astype(np.float64)
    yield from _tables(ids, _prepared(columns), counts, aggregate)


def _prepared(columns: Columns) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """infl and rank / n of each side, [n, q] in double precision."""
    from scipy.stats import rankdata

    if not columns:
        raise ValueError("there are no columns; expected those of C, of I, or both")
    prepared = {}
    for name, values in columns.items():
        if values.ndim != 2 or values.shape[1] == 0:
            raise ValueError(
                f"columns of {name} have shape {values.shape}; expected (examples, queries)"
            )
        ranks = rankdata(values, method="average", axis=0) / len(values)
        prepared[name] = values.astype(np.float64), ranks
    return prepared


def _tables(
    ids: Sequence[str],
    prepared: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    counts: Mapping[str, npt.NDArray[np.float64]],
    aggregate: str,
) -> Iterator[Table]:
    """One table per row of `counts`: how often each query of a side was drawn, [b, q]."""
    if aggregate not in ("mean", "sum"):
        raise ValueError(f"aggregate is {aggregate!r}; expected 'mean' or 'sum'")
    total = len(next(iter(counts.values())))
    step = max(1, BLOCK_ELEMENTS // max(1, len(ids)))
    names = np.asarray(ids, dtype=object)
    for start in range(0, total, step):
        block: dict[str, npt.NDArray[np.float64]] = {}
        for side, (values, ranks) in prepared.items():
            drawn = counts[side][start : start + step]
            q = values.shape[1]
            block[f"s_{side}"] = drawn @ values.T / (q if aggregate == "mean" else 1)
            block[f"r_{side}"] = drawn @ ranks.T / q
        for row in range(min(step, total - start)):
            yield {"id": names, **{name: values[row] for name, values in block.items()}}

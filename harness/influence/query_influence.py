"""Influence of every pool example on two sets of queries: s_C, s_I and their rank versions.

    infl(v, d) = grad f_v^T (H + damping)^-1 grad(-L_d)       > 0: training more on d raises f_v
    s_C(d) = mean over C of infl(v, d)
    r_C(d) = mean over v in C of (rank of d in infl(v, .)) / n

f_v is the mean log-probability of a query's completion: the right one for the queries of C (wrong
before, right after fine-tuning), the wrong one for those of I (right before, wrong after); of
several completions, their weighted sum (see completions.py). This is our reconstruction of
2510.06108; every choice in it is an option and is recorded in the table's `attrs`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness.data.pool import Pool
from harness.influence.batches import Progress
from harness.influence.completions import Completions
from harness.influence.curvature.base import Curvature
from harness.influence.curvature.fit import fit
from harness.influence.directional import directional_scores
from harness.influence.layers import Gradients
from harness.influence.options import CurvatureOptions, scoring_method

if TYPE_CHECKING:
    import pandas as pd

QUERY_ELEMENTS = 1 << 28
"""Entries of preconditioned query gradients held at once (1 GiB in single precision)."""


def per_query_scores(
    model: nn.Module,
    curvature: Curvature,
    pool: Pool,
    queries: Pool | Completions,
    *,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """infl(v, d) of every example d on every query v, shape [n, q].

    One forward and backward pass over the pool per block of queries, as large as `QUERY_ELEMENTS`
    allows: small models need one pass.
    """
    return _influence(model, curvature, pool, [Completions.of(queries)], None, progress)


def _influence(
    model: nn.Module,
    curvature: Curvature,
    pool: Pool,
    sets: Sequence[Completions],
    more: Gradients | None,
    progress: Progress | None,
) -> npt.NDArray[np.float64]:
    """infl(v, d) for the queries of all sets in turn, then scores along the directions `more`.

    Shape [n, sum of q + k], in as few passes as memory allows.
    """
    options = curvature.options
    size = block_size(curvature)
    queries = [(j, v) for j, completions in enumerate(sets) for v in range(len(completions))]
    parts = []
    for start in range(0, len(queries), size):
        block = queries[start : start + size]
        chosen = [part.take([v for k, v in block if k == j]) for j, part in enumerate(sets)]
        gradients = _joined([part.gradients(model, options) for part in chosen if len(part)])
        directions = curvature.apply(gradients, model=model, pool=pool, progress=progress)
        if more is not None and start + size >= len(queries):
            directions = _joined([directions, more])
        parts.append(
            directional_scores(model, pool, directions, options, method="ghost", progress=progress)
        )
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(pool), 0))


def block_size(curvature: Curvature) -> int:
    """Queries per pass over the pool."""
    width = sum(out * columns for out, columns in curvature.shapes.values())
    return max(1, QUERY_ELEMENTS // width)


def _joined(parts: Sequence[Gradients]) -> Gradients:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def influence_scores(
    model: nn.Module,
    pool: Pool,
    correct: Pool | Completions | None,
    incorrect: Pool | Completions | None,
    options: CurvatureOptions | None = None,
    *,
    curvature: Curvature | None = None,
    aggregate: str = "mean",
    max_queries: int | None = 64,
    query_seed: int = 0,
    method: str = "auto",
    columns: dict[str, npt.NDArray[np.float32]] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Table id, s_C, r_C, s_I, r_I: one row per example, in pool order; higher = more influence.

    `correct` (C) and `incorrect` (I) hold prompt and completion of each query, the completion
    labelled; or `Completions`, for several per query. None: that side is left out and has no
    columns. An empty side raises ValueError.
    `curvature`: one fitted before at these weights, with its own options. `aggregate`: "mean" or
    "sum" over queries, for s_C and s_I, which use every query; the ranks use at most `max_queries`
    per side, drawn with `query_seed` (None: all). `method` of s_C and s_I: "backward" takes them in
    the pass that the ranks need anyway, and so does "auto"; "ghost" and "forward" (see
    `directional_scores`) take a pass of their own, to the same numbers up to rounding. `columns` is
    filled with infl(v, d) of the queries behind the ranks of each side, [n, q].

    `attrs` of the table: options, n_C, n_I, the ids behind the ranks, seconds per part, and what
    the curvature reports (residuals of solves, error of sampling).
    """
    import pandas as pd

    both = (("C", correct), ("I", incorrect))
    sides = {name: Completions.of(side) for name, side in both if side is not None}
    _check_sides(sides, aggregate, max_queries)
    method = "backward" if method in ("auto", "backward") else scoring_method(method)
    seconds: dict[str, float] = {}
    if curvature is None:
        with _timed(seconds, "curvature"):
            curvature = fit(model, pool, options, progress=progress)
    elif options is not None and options != curvature.options:
        raise ValueError("options differ from those of the curvature given; expected one of them")
    options = curvature.options
    drawn = _drawn(sides, max_queries, query_seed)
    with _timed(seconds, "directions"):
        means = _mean_directions(model, curvature, pool, sides, aggregate, progress)
    with _timed(seconds, "ranks"):
        more = means if method == "backward" else None
        by_query = _influence(model, curvature, pool, list(drawn.values()), more, progress)
    with _timed(seconds, "scores"):
        if method == "backward":
            scores = by_query[:, -len(sides) :]
        else:
            scores = directional_scores(
                model, pool, means, options, method=method, progress=progress
            )
    table = pd.DataFrame({"id": list(pool.ids)})
    start = 0
    for column, (name, side) in enumerate(drawn.items()):
        table[f"s_{name}"] = scores[:, column]
        side_scores = by_query[:, start : start + len(side)]
        table[f"r_{name}"] = rank_scores(side_scores)
        if columns is not None:
            columns[name] = side_scores.astype(np.float32)
        start += len(side)
    table.attrs = {
        **{f"n_{name}": len(side) for name, side in sides.items()},
        "options": dataclasses.asdict(options),
        "aggregate": aggregate,
        "method": method,
        "query_seed": query_seed,
        "passes": -(-sum(map(len, drawn.values())) // block_size(curvature)),
        "rank_queries": {name: list(side.ids) for name, side in drawn.items()},
        "curvature": curvature.report(),
        "seconds": seconds,
    }
    return table


def rank_scores(influence: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over queries of each example's rank / n, from infl [n, q]; shape [n], in (0, 1].

    Rank 1 is the least influence on that query; ties share their average rank.
    """
    from scipy.stats import rankdata

    ranks: npt.NDArray[np.float64] = rankdata(influence, method="average", axis=0)
    share: npt.NDArray[np.float64] = (ranks / len(influence)).mean(axis=1)
    return share


def _check_sides(sides: dict[str, Completions], aggregate: str, max_queries: int | None) -> None:
    meaning = {
        "C": "wrong before and right after fine-tuning",
        "I": "right before and wrong after fine-tuning",
    }
    if not sides:
        raise ValueError("neither C nor I was given; expected at least one set of queries")
    for name, side in sides.items():
        if len(side) == 0:
            raise ValueError(
                f"query set {name} is empty: no query was {meaning[name]}; expected at least one. "
                "Ask more queries, or for scores that do not need this side"
            )
    if aggregate not in ("mean", "sum"):
        raise ValueError(f"aggregate is {aggregate!r}; expected 'mean' or 'sum'")
    if max_queries is not None and max_queries < 1:
        raise ValueError(f"max_queries is {max_queries!r}; expected at least 1, or None for all")


def _mean_directions(
    model: nn.Module,
    curvature: Curvature,
    pool: Pool,
    sides: dict[str, Completions],
    aggregate: str,
    progress: Progress | None,
) -> Gradients:
    """u = (H + damping)^-1 times the aggregated query gradient; layer -> [sides, out, in (+ 1)]."""
    means = [side.direction(model, curvature.options, aggregate) for side in sides.values()]
    stacked = {name: torch.stack([mean[name] for mean in means]) for name in means[0]}
    return curvature.apply(stacked, model=model, pool=pool, progress=progress)


def _drawn(sides: dict[str, Completions], limit: int | None, seed: int) -> dict[str, Completions]:
    """At most `limit` queries of each side, in their own order, each side with its own stream."""
    kept: dict[str, Completions] = {}
    for name, side in sides.items():
        if limit is not None and len(side) > limit:
            rng = np.random.default_rng([seed, ord(name)])
            side = side.take(np.sort(rng.choice(len(side), size=limit, replace=False)))
        kept[name] = side
    return kept


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = time.perf_counter() - start

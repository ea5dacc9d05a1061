"""Keep what looks like the queries: RDS+ (2503.01807).

An example is the weighted mean of its last-layer states over prompt and response, later positions
weighing more; it is compared with every query by cosine. Queries then take turns, each taking its
best example that is still free. That is a set method: no single score per example, and with a
budget below the number of queries only the first ones get a turn.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness import Context, Features, Pool, Positions, QuerySet, Request, Selector

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Embedding(Selector):
    """Chooses by cosine to the query set.

    `pool`: how states become one vector, "weighted" (w_i = i / sum_j j), "mean" or "last".
    `aggregate`: "round-robin" over queries in their order, or "mean-max", the highest mean cosine
    over all queries. `encoder`: a sentence-transformers model to use instead of the base model.
    """

    pool: Literal["weighted", "mean", "last"] = "weighted"
    aggregate: Literal["round-robin", "mean-max"] = "round-robin"
    encoder: str | None = None

    def requests(self) -> tuple[Request[Any], ...]:
        """Hidden states of the base model, unless another encoder is named."""
        if self.encoder is not None:
            return (QuerySet(),)
        return Features("pool"), Features("queries")

    def select(self, pool: Pool, budget: int, context: Context) -> Positions:
        """Positions in the order in which they are taken."""
        if self.encoder is None:
            tables = context.get(Features("queries")), context.get(Features("pool"))
            vectors: list[npt.NDArray[Any]] = [table.states(self.pool) for table in tables]
        else:
            pools = context.get(QuerySet()), pool
            vectors = [_encoded(self.encoder, texts, context.device) for texts in pools]
        queries, examples = map(_unit, vectors)
        cosine = queries @ examples.T
        context.record(mean_cosine=cosine.mean(axis=0), max_cosine=cosine.max(axis=0))
        if self.aggregate == "mean-max":
            return np.argsort(-cosine.mean(axis=0), kind="stable")[:budget].astype(np.int64)
        return _round_robin(cosine, budget)


def _unit(vectors: npt.NDArray[Any]) -> Vectors:
    """Unit vectors [n, d]."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: Vectors = vectors.astype(np.float64) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return unit


def _round_robin(cosine: Vectors, budget: int) -> Positions:
    order = np.argsort(-cosine, axis=1, kind="stable")
    upcoming = np.zeros(len(order), dtype=np.int64)
    free = np.ones(cosine.shape[1], dtype=bool)
    taken: list[int] = []
    while len(taken) < budget:
        query = len(taken) % len(order)
        while not free[order[query, upcoming[query]]]:
            upcoming[query] += 1
        best = int(order[query, upcoming[query]])
        free[best] = False
        taken.append(best)
    return np.array(taken, dtype=np.int64)


def _encoded(name: str, pool: Pool, device: str) -> Vectors:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"encoder = {name!r} needs the package sentence-transformers; "
            "install it with: pip install sentence-transformers"
        ) from error
    pairs = zip(pool.column("prompt"), pool.column("response"), strict=True)
    texts = [f"{prompt}\n{response}" for prompt, response in pairs]
    return np.asarray(SentenceTransformer(name, device=device).encode(texts), dtype=np.float64)

"""Keep what looks like the queries: RDS+ (2503.01807).

An example is the weighted mean of its last-layer states over prompt and response, later positions
weighing more; it is compared with every query by cosine. Queries then take turns, each taking its
best example that is still free. That is a set method: no single score per example, and with a
budget below the number of queries only the first ones get a turn.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from harness import Context, Pool, Positions, Selector

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Embedding(Selector):
    """Chooses by cosine to the query set.

    `pool`: how states become one vector, "weighted" (w_i = i / sum_j j), "mean" or "last".
    `aggregate`: "round-robin" over queries in their order, or "mean-max", the highest mean cosine
    over all queries. `encoder`: a sentence-transformers model to use instead of the base model.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "queryset")

    pool: Literal["weighted", "mean", "last"] = "weighted"
    aggregate: Literal["round-robin", "mean-max"] = "round-robin"
    encoder: str | None = None

    def requirements(self) -> tuple[str, ...]:
        """States of the base model, unless an encoder stands in for it."""
        return self.needs if self.encoder is None else ("queryset",)

    def select(self, pool: Pool, budget: int, context: Context) -> Positions:
        """Positions in the order in which they are taken."""
        examples = self._vectors(pool, context)
        queries = self._vectors(context.queryset, context)
        cosine = queries @ examples.T
        context.record(mean_cosine=cosine.mean(axis=0), max_cosine=cosine.max(axis=0))
        if self.aggregate == "mean-max":
            return np.argsort(-cosine.mean(axis=0), kind="stable")[:budget].astype(np.int64)
        return _round_robin(cosine, budget)

    def _vectors(self, pool: Pool, context: Context) -> Vectors:
        """Unit vectors [n, d]."""
        if self.encoder is None:
            vectors = context.features.states(pool, self.pool).astype(np.float64)
        else:
            vectors = _encoded(self.encoder, pool, context.device)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float64).tiny)
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

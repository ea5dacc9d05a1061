"""The query function f_v: a query's completions, each with a weight.

    f_v = sum over completions j of v of  weight_j * (mean log-probability of the tokens of j)

For the queries that fine-tuning fixed (C) and broke (I), with f(S) the mean, or by option the sum,
over a set S of a query's decodes:

    whose       C, wrong before and right after         I, right before and wrong after
    after       f(right after)                          f(wrong after)
    before      -f(wrong before)                        -f(right before)
    contrast    f(right after) - f(wrong before)        f(wrong after) - f(right before)

So high s_C always means "pushes towards right answers" and high s_I "pushes towards wrong ones". A
decode that occurs twice counts twice. A query is left out where a side that is needed has only
empty completions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness.data.pool import IGNORED, Pool, Tokens
from harness.data.queries import Queries
from harness.influence.gradients import query_gradients
from harness.influence.layers import Gradients
from harness.influence.options import CurvatureOptions

WHOSE = ("after", "before", "contrast")
Chosen = list[tuple[Tokens, float]]
"""Completions of one query with their weights."""


@dataclass(frozen=True)
class Completions:
    """Completions of some queries: `pool` holds one example each, prompt and labelled completion.

    `ids`: of the queries. `owner` [m]: position in `ids` of each completion's query; every query
    has at least one. `weights` [m]: of the completions in f_v.
    """

    pool: Pool
    ids: tuple[str, ...]
    owner: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if not len(self.pool) == len(self.owner) == len(self.weights):
            raise ValueError(
                f"{len(self.pool)} completions with {len(self.owner)} owners and "
                f"{len(self.weights)} weights; expected one each"
            )
        if not np.array_equal(np.unique(self.owner), np.arange(len(self.ids))):
            raise ValueError("owners of completions; expected every query at least once")

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.ids)

    @classmethod
    def of(cls, queries: Pool | Completions) -> Completions:
        """A pool as one completion per query, of weight 1."""
        if isinstance(queries, Completions):
            return queries
        n = len(queries)
        return cls(queries, queries.ids, np.arange(n), np.ones(n))

    def take(self, positions: Iterable[int] | npt.NDArray[np.int64]) -> Completions:
        """The queries at `positions`, in that order, with all their completions."""
        chosen = [int(p) for p in positions]
        rows = [np.flatnonzero(self.owner == p) for p in chosen]
        flat = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        owner = np.repeat(np.arange(len(chosen)), [len(part) for part in rows])
        ids = tuple(self.ids[p] for p in chosen)
        return Completions(self.pool.take(flat), ids, owner, self.weights[flat])

    def gradients(self, model: nn.Module, options: CurvatureOptions) -> Gradients:
        """Gradient of every f_v: layer -> [q, out, in (+ 1)]."""
        turns = _turns(self.owner)
        total: Gradients = {}
        for turn in range(int(turns.max(initial=-1)) + 1):
            # One completion of each query at a time holds no more than twice the result.
            rows = np.flatnonzero(turns == turn)
            rows = rows[np.argsort(self.owner[rows])]
            part = query_gradients(model, self.pool.take(rows), options)
            for name, gradient in part.items():
                weights = torch.as_tensor(self.weights[rows]).to(gradient)
                gradient.mul_(weights[:, None, None])
                if turn == 0:
                    total[name] = gradient
                else:
                    owner = torch.as_tensor(self.owner[rows], device=gradient.device)
                    total[name].index_add_(0, owner, gradient)
        return total

    def direction(self, model: nn.Module, options: CurvatureOptions, aggregate: str) -> Gradients:
        """Gradient of the "mean" or "sum" of f_v over queries: layer -> [out, in (+ 1)].

        One pass; single gradients are not kept.
        """
        total: Gradients = {}
        share = 1.0 if aggregate == "sum" else 1.0 / len(self)
        for weight in np.unique(self.weights):
            rows = np.flatnonzero(self.weights == weight)
            part = query_gradients(model, self.pool.take(rows), options, aggregate="sum")
            for name, gradient in part.items():
                gradient.mul_(weight * share)
                total[name] = total[name] + gradient if name in total else gradient
        return total


def flipped(
    queries: Queries,
    side: str,
    *,
    whose: str = "after",
    completion: str = "own",
    decodes: str = "mean",
) -> Completions:
    """The completions of side "C" or "I"; no query where no answer flipped that way.

    `whose`: see above. `completion`: the right answer of C is the model's "own" or the "reference"
    one of the query set. `decodes`: f_v is the "mean" or the "sum" over decodes.
    """
    check_choice(whose, completion, decodes)
    after, before = queries.after, queries.before
    right_after = side == "C"

    def later(v: int) -> list[Tokens]:
        if side == "C" and completion == "reference":
            labels = queries.pool.labels[v]
            return [queries.pool.input_ids[v][labels != IGNORED]]
        return [after.tokens[v][k] for k in np.flatnonzero(after.right[v] == right_after)]

    def earlier(v: int) -> list[Tokens]:
        return [before.tokens[v][k] for k in np.flatnonzero(before.right[v] != right_after)]

    terms: list[tuple[Callable[[int], list[Tokens]], float]] = []
    if whose in ("after", "contrast"):
        terms.append((later, 1.0))
    if whose in ("before", "contrast"):
        terms.append((earlier, -1.0))
    by_query: list[tuple[int, Chosen]] = []
    for v in (queries.C if side == "C" else queries.I).tolist():
        parts = [([t for t in take(v) if len(t)], sign) for take, sign in terms]
        if all(tokens for tokens, _ in parts):
            chosen = [
                (completion, sign if decodes == "sum" else sign / len(tokens))
                for tokens, sign in parts
                for completion in tokens
            ]
            by_query.append((v, chosen))
    return _completions(queries.pool, by_query)


def check_choice(whose: str, completion: str, decodes: str) -> None:
    """ValueError where an option of `flipped` is unknown, or two contradict each other."""
    for name, value, allowed in (
        ("whose", whose, WHOSE),
        ("completion", completion, ("own", "reference")),
        ("decodes", decodes, ("mean", "sum")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")
    if whose == "before" and completion == "reference":
        raise ValueError(
            "completion is 'reference' with whose = 'before', which looks at no right answer of C; "
            "expected completion = 'own'"
        )


def _completions(pool: Pool, by_query: Sequence[tuple[int, Chosen]]) -> Completions:
    """Prompts and completions as examples; a query's only completion has the query's id."""
    ids, input_ids, labels, owner, weights = [], [], [], [], []
    for number, (v, chosen) in enumerate(by_query):
        prompt = pool.prompt_ids(v)
        for j, (tokens, weight) in enumerate(chosen):
            ids.append(pool.ids[v] if len(chosen) == 1 else f"{pool.ids[v]}\N{SECTION SIGN}{j}")
            row = np.concatenate([prompt, tokens]).astype(np.int32)
            label = row.copy()
            label[: len(prompt)] = IGNORED
            input_ids.append(row)
            labels.append(label)
            owner.append(number)
            weights.append(weight)
    return Completions(
        Pool(tuple(ids), tuple(input_ids), tuple(labels)),
        tuple(pool.ids[v] for v, _ in by_query),
        np.array(owner, dtype=np.int64),
        np.array(weights, dtype=np.float64),
    )


def _turns(owner: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many completions of the same query come before each one."""
    counts: dict[int, int] = {}
    turns = []
    for v in owner.tolist():
        turns.append(counts.get(v, 0))
        counts[v] = turns[-1] + 1
    return np.array(turns, dtype=np.int64)

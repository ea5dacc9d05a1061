"""Small pools and contexts for selectors: only what a test hands in is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from harness import influence
from harness.data.pool import Pool
from harness.selection import toy
from harness.selection.context import Context
from harness.selection.plugins import build
from harness.selection.requests import ChosenBy, Request
from harness.selection.selector import Scores, Selector

MakePool = Callable[..., Pool]
MakeContext = Callable[..., Context]


@pytest.fixture
def make_pool() -> MakePool:
    """A pool from response lengths and columns; every prompt is one token."""

    def make(lengths: Sequence[int], prefix: str = "e", **columns: Sequence[Any]) -> Pool:
        labels = [np.array([-100] + [5] * n, dtype=np.int32) for n in lengths]
        return Pool(
            ids=tuple(f"{prefix}{i}" for i in range(len(lengths))),
            input_ids=tuple(np.full(n + 1, 5, dtype=np.int32) for n in lengths),
            labels=tuple(labels),
            columns={name: tuple(values) for name, values in columns.items()},
        )

    return make


@pytest.fixture
def make_context() -> MakeContext:
    """A context that answers the selector's requests with the given results.

    Results are named after the class of the request (and after the row, for `ChosenBy`); a function
    is called with the request.
    """

    def make(selector: Selector, seed: int = 0, **results: Any) -> Context:
        def load(request: Request[Any]) -> Any:
            name = request.row if isinstance(request, ChosenBy) else type(request).__name__
            result = results[name]
            return result(request) if callable(result) else result

        rng = np.random.default_rng(seed) if selector.stochastic else None
        return Context(selector.requests(), load, rng=rng)

    return make


@pytest.fixture(scope="session")
def query() -> Pool:
    """One query of the made-up query set."""
    return toy.make_queries().pool.take([2])


@pytest.fixture(scope="session")
def tokens(query: Pool) -> Pool:
    """Eleven examples of the made-up pool; the twelfth is the query."""
    made = toy.make_pool().take(np.arange(11))
    return Pool(
        ids=(*made.ids, *query.ids),
        input_ids=(*made.input_ids, *query.input_ids),
        labels=(*made.labels, *query.labels),
    )


@pytest.fixture
def scored(tokens: Pool, query: Pool, make_context: MakeContext) -> Callable[..., Any]:
    """Scores of a selector on `tokens` with the made-up models, and the context afterwards."""

    def score(name: str, **params: Any) -> tuple[Scores, Context]:
        selector: Any = build(name, params)
        context = make_context(
            selector,
            ReferenceModel=lambda request: toy.models()[1],
            FittedCurvature=lambda request: influence.fit(toy.models()[1], tokens, request.options),
            Trajectory=toy.trajectory(),
            QuerySet=query,
        )
        return selector.score(tokens, context), context

    return score

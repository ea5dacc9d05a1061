"""Small pools and contexts for selectors: only what a test hands in is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness import influence
from harness.data.pool import Pool
from harness.selection import toy
from harness.selection.context import Context
from harness.selection.plugins import build
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
    """A context of the given things, with the selector's declared needs."""

    def make(selector: Selector, seed: int = 0, **things: Any) -> Context:
        return Context(
            {
                name.replace("row_", "row:"): lambda value=value: value
                for name, value in things.items()
            },
            needs=selector.requirements(),
            rng=np.random.default_rng(seed) if selector.stochastic else None,
        )

    return make


@pytest.fixture
def fake_features() -> Callable[..., Any]:
    """Features that return given losses, or given states per pool id prefix."""

    def make(losses: Any = None, states: Any = None) -> Any:
        return SimpleNamespace(
            losses=lambda pool: [np.asarray(row, np.float32) for row in losses],
            states=lambda pool, weighting: np.asarray(
                states[pool.ids[0][0], weighting], np.float32
            ),
        )

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
            reference=toy.models()[1],
            curvature=lambda **options: influence.fit(
                toy.models()[1], tokens, influence.CurvatureOptions(**options)
            ),
            trajectory=toy.trajectory(),
            queryset=query,
        )
        return selector.score(tokens, context), context

    return score

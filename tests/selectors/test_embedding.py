"""Embedding: cosine, round-robin, mean-max, the optional encoder."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness import QuerySet
from harness.selection.features import FeatureTable
from harness.selection.plugins import build

# Directions in degrees; examples have different norms, which must not matter.
EXAMPLES, NORMS, QUERIES = [0, 20, 40, 90, 100], [1, 9, 1, 0.2, 5], [10, 95]


def vectors(degrees: list[int]) -> Any:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture
def features() -> Any:
    pool = {
        "weighted": vectors(EXAMPLES) * np.array(NORMS)[:, None],
        "last": vectors(EXAMPLES[::-1]),
    }
    return tables(pool, {"weighted": vectors(QUERIES) * 3, "last": vectors(QUERIES)})


def tables(pool: Any, queries: Any) -> Any:
    """What answers a request for features, from states by weighting."""
    states = {"pool": pool, "queries": queries}
    return lambda request: FeatureTable((), states[request.of])


def test_round_robin(make_pool: Any, make_context: Any, features: Any) -> None:
    # Query 10: 0 and 20 tie at 10 degrees up to rounding, then 40; query 95: 90 and 100, then 40.
    selector = build("embedding", {})
    context = make_context(selector, Features=features)
    chosen = selector.select(make_pool([1] * 5), 5, context).tolist()
    assert set(chosen[0::2][:2]) == {0, 1}
    assert set(chosen[1::2]) == {3, 4}
    assert chosen[4] == 2
    assert selector.select(make_pool([1] * 5), 3, context).tolist() == chosen[:3]


def test_a_taken_example_is_passed_over(make_pool: Any, make_context: Any) -> None:
    features = tables({"mean": vectors([0, 30, 80])}, {"mean": vectors([1, 2])})
    selector = build("embedding", {"pool": "mean"})
    context = make_context(selector, Features=features)
    assert selector.select(make_pool([1] * 3), 3, context).tolist() == [0, 1, 2]


def test_mean_max(make_pool: Any, make_context: Any, features: Any) -> None:
    # The mean of two unit queries at 10 and 95 degrees points to 52.5 degrees: nearest 40, 20, 90.
    selector = build("embedding", {"aggregate": "mean-max"})
    context = make_context(selector, Features=features)
    chosen = selector.select(make_pool([1] * 5), 3, context).tolist()
    assert chosen == [2, 1, 3]
    expected = (np.cos(np.deg2rad(30)) + np.cos(np.deg2rad(55))) / 2
    assert context.columns["mean_cosine"][2] == pytest.approx(expected)


def test_pooling_is_passed_on(make_pool: Any, make_context: Any, features: Any) -> None:
    selector = build("embedding", {"pool": "last", "aggregate": "mean-max"})
    chosen = selector.select(make_pool([1] * 5), 1, make_context(selector, Features=features))
    assert chosen.tolist() == [2]


def test_encoder(make_pool: Any, make_context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, device: str) -> Any:
        assert (name, device) == ("tiny", "cpu")
        return SimpleNamespace(encode=lambda texts: vectors([int(t.split("\n")[1]) for t in texts]))

    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    selector = build("embedding", {"encoder": "tiny"})
    assert selector.requests() == (QuerySet(),)
    pool = make_pool([1] * 3, prompt=["a"] * 3, response=["80", "10", "40"])
    queryset = make_pool([1], prefix="q", prompt=["b"], response=["0"])
    context = make_context(selector, QuerySet=queryset)
    assert selector.select(pool, 3, context).tolist() == [1, 2, 0]


def test_encoder_without_its_package(
    make_pool: Any, make_context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    selector = build("embedding", {"encoder": "tiny"})
    with pytest.raises(ImportError, match="pip install sentence-transformers"):
        selector.select(make_pool([1]), 1, make_context(selector, QuerySet=make_pool([1, 1])))

"""Random: uniform, stratified shares, matched length histogram."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.selection.plugins import build


def test_is_uniform(make_pool: Any, make_context: Any) -> None:
    pool, selector = make_pool([1] * 6), build("random", {})
    context = make_context(selector)
    counts = np.zeros(6)
    for _ in range(600):
        np.add.at(counts, selector.select(pool, 2, context), 1)
    assert counts.sum() == 1200
    assert stats.chisquare(counts).pvalue > 0.01


def test_seed_decides(make_pool: Any, make_context: Any) -> None:
    pool, selector = make_pool([1] * 50), build("random", {})
    draws = [selector.select(pool, 10, make_context(selector, seed)).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_strata_get_their_shares(make_pool: Any, make_context: Any) -> None:
    # 10, 5 and 5 of 20, budget 6: exact shares 3, 1.5 and 1.5; one of the halves is rounded up.
    source = ["a"] * 10 + ["b"] * 5 + ["c"] * 5
    pool, selector = make_pool([1] * 20, source=source), build("random", {"stratify": "source"})
    seen = set()
    for seed in range(20):
        chosen = selector.select(pool, 6, make_context(selector, seed))
        counts = Counter(source[p] for p in chosen)
        assert counts["a"] == 3
        seen.add((counts["b"], counts["c"]))
    assert seen == {(1, 2), (2, 1)}


def test_unknown_column_is_named(make_pool: Any, make_context: Any) -> None:
    selector = build("random", {"stratify": "topic"})
    with pytest.raises(ValueError, match="'topic' does not exist; expected one of: source"):
        selector.select(make_pool([1, 2], source="ab"), 1, make_context(selector))


def test_matches_the_length_histogram(make_pool: Any, make_context: Any) -> None:
    # Two bins: lengths 1-10 and 11-20. The other row chose one short and four long responses.
    pool = make_pool(range(1, 21))
    selector = build("random", {"match": "length", "of": "length", "bins": 2})
    chosen = ("e0", "e19", "e18", "e17", "e16")
    draws = set()
    for seed in range(10):
        context = make_context(selector, seed, length=chosen)
        positions = selector.select(pool, 5, context)
        assert (positions < 10).sum() == 1
        draws |= set(positions.tolist())
    assert len(draws) > 10


def test_matching_needs_the_same_budget(make_pool: Any, make_context: Any) -> None:
    selector = build("random", {"match": "length", "of": "length"})
    context = make_context(selector, length=("e0", "e1"))
    with pytest.raises(ValueError, match="row 'length' chose 2 examples; expected the budget 3"):
        selector.select(make_pool([1, 2, 3, 4]), 3, context)


@pytest.mark.parametrize(
    "params",
    [
        {"match": "length"},
        {"of": "x"},
        {"match": "length", "of": "x", "stratify": "y"},
        {"bins": 0},
    ],
)
def test_refuses(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"selector 'random': .*; expected"):
        build("random", params)

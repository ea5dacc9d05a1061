"""Perplexity: the mean over response tokens, and the five bands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.selection.features import FeatureTable
from harness.selection.plugins import build

# Means 4, 1, 6, 2, 5, 3: example 2 is the most surprising, example 1 the least.
LOSSES = [[4.0], [0.5, 1.5], [6.0, 6.0, 6.0], [1.0, 3.0], [5.0], [2.0, 4.0]]


def table(losses: Any) -> FeatureTable:
    return FeatureTable(tuple(np.asarray(row, np.float32) for row in losses), {})


@pytest.mark.parametrize(
    ("band", "expected"),
    [
        ("top", [2, 4, 0, 5, 3, 1]),
        ("bottom", [1, 3, 5, 0, 4, 2]),
        ("lowest", [1, 3, 5, 0, 4, 2]),
        ("middle", [5, 0, 3, 4, 1, 2]),  # 3 before 4, then 2 before 5, then 1 before 6
        ("from-third", [4, 0, 5, 3, 1, 2]),  # int(0.33 * 6) = 1: the second highest comes first
    ],
)
def test_bands(make_pool: Any, make_context: Any, band: str, expected: list[int]) -> None:
    pool = make_pool([len(row) for row in LOSSES])
    selector = build("perplexity", {"band": band})
    context = make_context(selector, Features=table(LOSSES))
    for budget in range(1, 7):
        assert selector.select(pool, budget, context).tolist() == expected[:budget]
    assert context.columns["nll"].tolist() == [4, 1, 6, 2, 5, 3]


def test_middle_is_the_central_band_by_quantile(make_pool: Any, make_context: Any) -> None:
    losses = [[float(i * i)] for i in range(101)]
    selector = build("perplexity", {})
    context = make_context(selector, Features=table(losses))
    chosen = selector.select(make_pool([1] * 101), 51, context)
    assert sorted(chosen.tolist()) == list(range(25, 76))

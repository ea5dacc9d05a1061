"""GradCos: what comes first, and options."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness import influence
from harness.selection import toy


def test_an_example_that_is_the_query_comes_first(scored: Any) -> None:
    found, _ = scored("gradcos")
    assert found.argmax() == 11
    assert np.abs(found).max() <= 1 + 1e-6


def test_options_reach_the_scores(scored: Any, tokens: Any, query: Any) -> None:
    options = influence.CurvatureOptions("identity", layers="mlp")
    expected = influence.cosine_scores(toy.models()[1], tokens, query, options)
    found, context = scored("gradcos", layers="mlp")
    np.testing.assert_array_equal(found, expected)
    assert context.operations == 6 * (sum(map(len, tokens.input_ids)) + len(query.input_ids[0]))

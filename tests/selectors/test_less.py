"""LESS: the warm-up that it asks for, and what comes first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness import influence
from harness.selection import toy
from harness.selection.plugins import build
from harness.selection.requests import Trajectory


def test_an_example_that_is_the_query_comes_first(scored: Any) -> None:
    assert scored("less")[0].argmax() == 11


def test_options_reach_the_scores(scored: Any, tokens: Any, query: Any) -> None:
    options = influence.CurvatureOptions("identity", layers="mlp", loss="sum")
    expected = influence.less_scores(toy.trajectory(), tokens, query, options)
    found, context = scored("less", layers="mlp", loss="sum")
    np.testing.assert_array_equal(found, expected)
    # Two checkpoints, each with a forward and a backward pass: 6 operations per token.
    passed = sum(map(len, tokens.input_ids)) + len(query.input_ids[0])
    assert context.operations == 2 * 6 * passed


def test_the_run_it_looks_along() -> None:
    assert build("less", {}).requests()[0] == Trajectory(0.05, 64, 4.0, 4, True, 0)
    params = {"share": 0.5, "epochs": 2.0, "checkpoints": 3, "seed": 9, "minimum": 8}
    assert build("less", params).requests()[0] == Trajectory(0.5, 8, 2.0, 3, True, 9)


def test_an_impossible_run_is_refused() -> None:
    with pytest.raises(ValueError, match="share is 2"):
        build("less", {"share": 2.0})
    with pytest.raises(ValueError, match="checkpoints is 0"):
        build("less", {"checkpoints": 0})

"""Self-influence: which end is kept, and options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness import influence
from harness.selection import toy
from harness.selection.plugins import build


def test_the_low_ones_are_kept_unless_told(scored: Any, tokens: Any) -> None:
    """Without curvature it is the squared length of the gradient."""
    options = influence.CurvatureOptions("identity", layers="mlp")
    gradients = influence.example_gradients(toy.models()[1], tokens, options).values()
    lengths = sum(g.double().square().sum((1, 2)).numpy() for g in gradients)
    low, context = scored("self_influence", curvature="identity", layers="mlp")
    np.testing.assert_allclose(low, -lengths, rtol=1e-5)
    np.testing.assert_allclose(context.columns["self_influence"], lengths, rtol=1e-5)
    high, _ = scored("self_influence", curvature="identity", layers="mlp", order="high")
    np.testing.assert_array_equal(high, -low)
    assert context.operations == 6 * sum(map(len, tokens.input_ids))


def test_options_reach_the_curvature(scored: Any, tokens: Any) -> None:
    params = {"fisher": "empirical", "damping": 0.5, "layers": "attention", "loss": "sum"}
    options = influence.CurvatureOptions(**params)  # type: ignore[arg-type]
    model = toy.models()[1]
    expected = influence.self_influence(model, influence.fit(model, tokens, options), tokens)
    found, context = scored("self_influence", **params)
    np.testing.assert_array_equal(found, -expected)
    assert context.operations == 6 * sum(map(len, tokens.input_ids))


def test_a_kind_that_solves_with_passes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"curvature is 'ekfac\+cg', which solves with passes"):
        build("self_influence", {"curvature": "ekfac+cg"})


def test_refuses() -> None:
    with pytest.raises(ValueError, match="damping is -1"):
        build("self_influence", {"damping": -1.0})

"""Influence of training examples on queries: curvature, query gradients, directional scores.

Everything is about one model at one set of weights (the reference checkpoint), never about a
training run. Importing this package does not import torch: the names below load when first used.

    curvature = fit(model, pool, CurvatureOptions(kind="ekfac"))
    table = influence_scores(model, pool, right_answers, wrong_answers, curvature=curvature)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness.influence.options import CurvatureOptions, SamplingError

if TYPE_CHECKING:
    from harness.influence.curvature import Curvature, fit
    from harness.influence.directional import directional_scores
    from harness.influence.fisher import fisher_products
    from harness.influence.gradients import example_gradients, query_gradients
    from harness.influence.sampling import sampling_error
    from harness.influence.scores import influence_scores, per_query_scores
    from harness.influence.trajectory import (
        Checkpoint,
        Moments,
        cosine_scores,
        less_scores,
        self_influence,
        tracin_scores,
    )

_HOME = {
    "Checkpoint": "trajectory",
    "Curvature": "curvature",
    "Moments": "trajectory",
    "cosine_scores": "trajectory",
    "directional_scores": "directional",
    "example_gradients": "gradients",
    "fisher_products": "fisher",
    "fit": "curvature",
    "influence_scores": "scores",
    "less_scores": "trajectory",
    "per_query_scores": "scores",
    "query_gradients": "gradients",
    "sampling_error": "sampling",
    "self_influence": "trajectory",
    "tracin_scores": "trajectory",
}

__all__ = [
    "Checkpoint",
    "Curvature",
    "CurvatureOptions",
    "Moments",
    "SamplingError",
    "cosine_scores",
    "directional_scores",
    "example_gradients",
    "fisher_products",
    "fit",
    "influence_scores",
    "less_scores",
    "per_query_scores",
    "query_gradients",
    "sampling_error",
    "self_influence",
    "tracin_scores",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package stays light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

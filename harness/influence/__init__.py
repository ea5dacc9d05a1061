"""Influence of training examples on queries: curvature, query gradients, directional scores.

Everything is about one model at one set of weights (the reference checkpoint), never about a
training run. Importing this package does not import torch: the names below load when first used.

    pool = influence.examples("pool.jsonl", tokenizer)
    queries = influence.examples("queries.jsonl", tokenizer)
    curvature = influence.fit(model, pool, kind="ekfac")
    table = influence.scores(model, curvature, pool, queries)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness.influence.options import CurvatureOptions, SamplingError

if TYPE_CHECKING:
    from harness.influence.completions import Completions, flipped
    from harness.influence.curvature import Curvature, fit
    from harness.influence.directional import directional_scores
    from harness.influence.fisher import fisher_products
    from harness.influence.flips import influence_scores, per_query_scores
    from harness.influence.gradients import example_gradients, query_gradients
    from harness.influence.rows import examples
    from harness.influence.sampling import sampling_error
    from harness.influence.stability import order_stability, set_stability
    from harness.influence.table import scores
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
    "Completions": "completions",
    "Curvature": "curvature",
    "Moments": "trajectory",
    "cosine_scores": "trajectory",
    "directional_scores": "directional",
    "example_gradients": "gradients",
    "examples": "rows",
    "fisher_products": "fisher",
    "fit": "curvature",
    "flipped": "completions",
    "influence_scores": "flips",
    "less_scores": "trajectory",
    "order_stability": "stability",
    "per_query_scores": "flips",
    "query_gradients": "gradients",
    "sampling_error": "sampling",
    "scores": "table",
    "self_influence": "trajectory",
    "set_stability": "stability",
    "tracin_scores": "trajectory",
}

__all__ = [
    "Checkpoint",
    "Completions",
    "Curvature",
    "CurvatureOptions",
    "Moments",
    "SamplingError",
    "cosine_scores",
    "directional_scores",
    "example_gradients",
    "examples",
    "fisher_products",
    "fit",
    "flipped",
    "influence_scores",
    "less_scores",
    "order_stability",
    "per_query_scores",
    "query_gradients",
    "sampling_error",
    "scores",
    "self_influence",
    "set_stability",
    "tracin_scores",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package stays light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

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
    from harness.influence.curvature.base import Curvature
    from harness.influence.curvature.conjugate_gradients import fisher_products
    from harness.influence.curvature.fit import fit, sampling_error
    from harness.influence.directional import directional_scores
    from harness.influence.from_files import examples
    from harness.influence.gradient_scores import (
        Checkpoint,
        Moments,
        cosine_scores,
        less_scores,
        self_influence,
        tracin_scores,
    )
    from harness.influence.gradients import example_gradients, query_gradients
    from harness.influence.query_influence import influence_scores, per_query_scores
    from harness.influence.score_table import scores
    from harness.influence.stability import order_stability, set_stability

_MODULES = {
    "completions": "Completions flipped",
    "curvature.base": "Curvature",
    "curvature.conjugate_gradients": "fisher_products",
    "curvature.fit": "fit sampling_error",
    "directional": "directional_scores",
    "from_files": "examples",
    "gradient_scores": "Checkpoint Moments cosine_scores less_scores self_influence tracin_scores",
    "gradients": "example_gradients query_gradients",
    "query_influence": "influence_scores per_query_scores",
    "score_table": "scores",
    "stability": "order_stability set_stability",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

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
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)

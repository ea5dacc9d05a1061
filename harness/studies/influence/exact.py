"""Influence with the exact inverse of the damped Fisher matrix: what no approximation stands in.

With g_s the gradients under drawn labels, S of them, and D the damping of EK-FAC (a multiple of
each layer's mean eigenvalue), the Fisher matrix is F = 1/S sum_s g_s g_s^T, between layers too.
Its rank is at most S, so that the inverse follows from products of gradients alone (the identity of
Sherman, Morrison and Woodbury):

    p^T (F + D)^-1 q = p^T D^-1 q - k_p^T (S I + K)^-1 k_q
    K = [g_s^T D^-1 g_t],  k_p = [g_s^T D^-1 p]

Holds the gradients of the pool and all drawn ones at once: for small models and pools.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool
from harness.influence.options import CurvatureOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

DRAWS = 2
"""Labels drawn for every example."""


def exact_scores(
    model: nn.Module,
    pool: Pool,
    queries: Pool,
    options: CurvatureOptions,
    draws: int = DRAWS,
) -> npt.NDArray[np.float64]:
    """infl(v, d), [n, q], with the Fisher matrix of `draws` label draws per example.

    `options`: of EK-FAC; its mean eigenvalues scale the damping, which must be above 0.
    """
    import torch

    from harness.influence import example_gradients, fit, query_gradients
    from harness.influence.batches import draw_seed

    if not options.damping > 0:
        raise ValueError(f"damping is {options.damping!r}; expected more than 0")
    curvature = fit(model, pool, replace(options, kind="ekfac"))
    damping = {
        name: options.damping * float(basis.eigenvalues.mean())
        for name, basis in curvature.parts.items()
    }

    def scaled(gradients: Mapping[str, Tensor]) -> Tensor:
        """D^-1/2 times gradients, all layers side by side, [k, parameters]."""
        parts = [gradients[name].flatten(1) / value**0.5 for name, value in damping.items()]
        return torch.cat(parts, dim=1)

    drawn = [_relabelled(model, pool, draw_seed(options.seed, k)) for k in range(draws)]
    sampled = torch.cat([scaled(example_gradients(model, part, options)) for part in drawn])
    own = scaled(example_gradients(model, pool, options))
    asked = scaled(query_gradients(model, queries, options))
    among, right = (sampled @ sampled.T).double(), (sampled @ asked.T).double()
    among.diagonal().add_(len(sampled))
    inner = torch.linalg.solve(among, right)
    # Pool gradients are of losses, query gradients of log-probabilities: hence the sign.
    found = (own @ sampled.T).double() @ inner - (own @ asked.T).double()
    scores: npt.NDArray[np.float64] = found.cpu().numpy()
    return scores


def _relabelled(model: nn.Module, pool: Pool, seed: int) -> Pool:
    """The pool with labels drawn from the model's own distribution; the inputs stay."""
    import torch

    from harness.influence.batches import batches, device_of, model_inputs, sampled_labels
    from harness.influence.layers import evaluating

    labels = list(pool.labels)
    with evaluating(model), torch.no_grad():
        for batch in batches(pool, 64, device_of(model)):
            found = sampled_labels(model(**model_inputs(model, batch)).logits, batch, seed)
            for row, position in enumerate(batch.positions):
                drawn = found[row, : len(pool.labels[position])].cpu().numpy()
                labels[position] = drawn.astype(np.int32)
    return replace(pool, labels=tuple(labels))

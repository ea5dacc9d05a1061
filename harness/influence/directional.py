"""Scores without gradients of the pool: the derivative of every example's loss along directions.

The score of example d along u is  d/de f_d(theta + e u) = -<grad L_d, u>  at e = 0, f_d = -L_d:
what a step along u would gain on d. It needs no backward pass and keeps no activations. "forward"
takes it by forward-mode differentiation, exact up to rounding; "central" by a central difference,
cheaper in memory, whose step is chosen on a sample and accepted only if it agrees with forward mode
there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from harness.influence.batches import (
    Batch,
    Progress,
    batches,
    device_of,
    example_losses,
    model_inputs,
)
from harness.influence.layers import evaluating, match, tracked_layers
from harness.influence.options import CurvatureOptions
from harness.pool import Pool

DIRECTIONS_AT_ONCE = 8
STEPS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""Tried steps, as the length of e u relative to that of the tracked weights."""
SAMPLE = 32
AGREEMENT = 0.999
"""Lowest Spearman correlation with forward mode at which a central difference is accepted."""

Parameters = dict[str, Tensor]


def directional_scores(
    model: nn.Module,
    pool: Pool,
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    *,
    method: str = "forward",
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """-<grad L_d, u_j> for every example d and direction u_j, shape [n, k].

    `directions`: layer -> [k, out, in (+ 1)], for exactly the layers that `options` tracks; the
    loss L_d is that of `options.loss`. `method`: "forward" or "central".
    """
    layers = tracked_layers(model, options.layers, options.head)
    match(layers, directions)
    if method not in ("forward", "central"):
        raise ValueError(f"method is {method!r}; expected 'forward' or 'central'")
    weights: Parameters = {}
    tangents: Parameters = {}
    for layer in layers:
        if directions[layer.name].ndim != 3:
            raise ValueError(
                f"direction of layer {layer.name!r} has shape "
                f"{tuple(directions[layer.name].shape)}; expected [directions, out, in]"
            )
        weights |= layer.parameters()
        tangents |= layer.split(directions[layer.name].to(layer.module.weight))
    # Gradients are not wanted in any form: without them forward mode stores nothing.
    with evaluating(model), torch.no_grad():
        if method == "forward":
            return _forward(model, pool, weights, tangents, options, progress)
        return _central(model, pool, weights, tangents, options, progress)


def _losses(model: nn.Module, weights: Parameters, batch: Batch, reduction: str) -> Tensor:
    output: Any = functional_call(model, weights, (), model_inputs(model, batch))
    return example_losses(output.logits, batch.labels, reduction)


def _forward(
    model: nn.Module,
    pool: Pool,
    weights: Parameters,
    tangents: Parameters,
    options: CurvatureOptions,
    progress: Progress | None,
) -> npt.NDArray[np.float64]:
    _load_forward_mode()
    count = len(next(iter(tangents.values())))
    scores = np.zeros((len(pool), count))
    for batch in batches(pool, options.batch_size, device_of(model), progress, "scores"):

        def along(direction: Parameters, batch: Batch = batch) -> Tensor:
            _, derivative = jvp(
                lambda point: _losses(model, point, batch, options.loss), (weights,), (direction,)
            )
            return derivative

        # One direction needs no vmap; with several the undifferentiated pass is shared.
        if count == 1:
            slopes = along({name: tangent[0] for name, tangent in tangents.items()})[None]
        else:
            slopes = vmap(along, chunk_size=DIRECTIONS_AT_ONCE)(tangents)
        scores[batch.positions] = -slopes.T.double().cpu().numpy()
    return scores


def _load_forward_mode() -> None:
    """The first forward-mode call compiles torch's decompositions, which warns of its own means."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", DeprecationWarning)
        jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))


def _central(
    model: nn.Module,
    pool: Pool,
    weights: Parameters,
    tangents: Parameters,
    options: CurvatureOptions,
    progress: Progress | None,
) -> npt.NDArray[np.float64]:
    sample = pool.take(np.linspace(0, len(pool) - 1, min(SAMPLE, len(pool))).astype(np.int64))
    exact = _forward(model, sample, weights, tangents, options, None)
    scores = np.zeros((len(pool), exact.shape[1]))
    for column in range(exact.shape[1]):
        direction = {name: tangent[column] for name, tangent in tangents.items()}
        if _length(direction) == 0:
            continue
        step = _step(model, sample, weights, direction, options, exact[:, column])
        scores[:, column] = _difference(model, pool, weights, direction, step, options, progress)
    return scores


def _step(
    model: nn.Module,
    sample: Pool,
    weights: Parameters,
    direction: Parameters,
    options: CurvatureOptions,
    exact: npt.NDArray[np.float64],
) -> float:
    """The step whose differences come closest to forward mode; RuntimeError if none is good."""
    from scipy.stats import spearmanr

    unit = _length(weights) / _length(direction)
    tried = []
    for relative in STEPS:
        found = _difference(model, sample, weights, direction, relative * unit, options, None)
        tried.append((float(np.linalg.norm(found - exact)), relative * unit, found))
    error, step, found = min(tried, key=lambda trial: trial[:2])
    agreement = float(spearmanr(found, exact).statistic) if len(exact) > 2 else 1.0
    if not agreement >= AGREEMENT:
        raise RuntimeError(
            f"central differences disagree with forward mode: Spearman {agreement:.4f} on "
            f"{len(exact)} examples at the best of {len(STEPS)} steps ({step:.3g}, error "
            f"{error:.3g}); expected at least {AGREEMENT}. Use method = 'forward'"
        )
    return step


def _difference(
    model: nn.Module,
    pool: Pool,
    weights: Parameters,
    direction: Parameters,
    step: float,
    options: CurvatureOptions,
    progress: Progress | None,
) -> npt.NDArray[np.float64]:
    """-(L(theta + e u) - L(theta - e u)) / 2e of every example, shape [n]."""
    ahead, behind = (
        {name: weight + sign * step * direction[name] for name, weight in weights.items()}
        for sign in (1.0, -1.0)
    )
    scores = np.zeros(len(pool))
    for batch in batches(pool, options.batch_size, device_of(model), progress, "scores"):
        rise = _losses(model, ahead, batch, options.loss) - _losses(
            model, behind, batch, options.loss
        )
        scores[batch.positions] = (-rise / (2 * step)).double().cpu().numpy()
    return scores


def _length(parameters: Parameters) -> float:
    return math.sqrt(sum(float(p.double().square().sum()) for p in parameters.values()))

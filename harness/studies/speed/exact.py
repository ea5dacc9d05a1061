"""Exact scores: every example's gradient by plain autograd in double precision, unpadded.

Nothing here is shared with any engine but its own fitted factors: with Q_A, Q_S and Lambda of an
engine, u = Q_S [(Q_S^T q Q_A) / (Lambda + damping * mean Lambda)] Q_A^T for the mean query gradient
q of f = -L, and the score of d is -<grad L_d, u>.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.data.pool import IGNORED, Pool
from harness.influence.layers import Layer, tracked_layers
from harness.studies.speed.workload import Workload, load, load_model

EXAMPLES = 256
"""Examples that are scored exactly, spread evenly over the pool."""
LARGE, TOKENS = 10**8, 3 << 14
"""Of models of so many parameters only examples of so many tokens in all."""
LONG = 4096
"""Tokens from which on what double precision keeps of attention is made again layer by layer."""

Factors = Mapping[str, tuple[Tensor, Tensor, Tensor]]


def positions(pool: int, count: int = EXAMPLES) -> npt.NDArray[np.int64]:
    """Where in a pool of this size the exactly scored examples stand."""
    return np.linspace(0, pool - 1, min(count, pool)).round().astype(np.int64)


def scores(
    source: Path, workload: Workload, factors: Mapping[str, Factors], damping: float
) -> dict[str, npt.NDArray[np.float64]]:
    """Engine -> exact scores under its own factors of the examples at `positions`."""
    pool, queries = load(source)
    model = load_model(source, workload, "sdpa").double()
    if workload.max_tokens >= LONG:
        model.gradient_checkpointing_enable()
        model.train()  # which checkpoints ask for; nothing is dropped out
    layers = tracked_layers(model)
    wanted = _mean(model, queries, layers)
    along = {
        engine: {
            layer.name: _solved(wanted[layer.name], own[layer.name], damping) for layer in layers
        }
        for engine, own in factors.items()
    }
    size = sum(parameter.numel() for parameter in model.parameters())
    few = max(2, TOKENS // workload.max_tokens)
    chosen = positions(len(pool), few if size >= LARGE else EXAMPLES)
    found = {engine: np.zeros(len(chosen)) for engine in factors}
    for row, position in enumerate(chosen):
        gradient = _gradient(model, pool, int(position), layers)
        for engine, direction in along.items():
            found[engine][row] = -sum(
                float((gradient[name] * u).sum()) for name, u in direction.items()
            )
    return found


def _mean(model: nn.Module, queries: Pool, layers: tuple[Layer, ...]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for position in range(len(queries)):
        for name, part in _gradient(model, queries, position, layers).items():
            total[name] = total.get(name, 0) - part / len(queries)
    return total


def _solved(gradient: Tensor, factors: tuple[Tensor, Tensor, Tensor], damping: float) -> Tensor:
    inputs, outputs, values = (part.double().to(gradient.device) for part in factors)
    turned = outputs.T @ gradient @ inputs
    solved: Tensor = outputs @ (turned / (values + damping * values.mean())) @ inputs.T
    return solved


def _gradient(
    model: Any, pool: Pool, position: int, layers: tuple[Layer, ...]
) -> dict[str, Tensor]:
    """Gradient of the mean token loss: layer -> [out, in (+ 1)]."""
    device = layers[0].module.weight.device
    tokens = torch.from_numpy(pool.input_ids[position].astype(np.int64)).to(device)[None]
    labels = torch.from_numpy(pool.labels[position].astype(np.int64)).to(device)
    kept = labels[1:] != IGNORED
    (where,) = torch.where(kept)
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=where).logits[0]
    loss = cross_entropy(logits, labels[1:][kept])
    weights = [
        p for layer in layers for p in (layer.module.weight, layer.module.bias) if p is not None
    ]
    parts = iter(torch.autograd.grad(loss, weights))
    found = {}
    for layer in layers:
        weight = next(parts)
        bias = [] if layer.module.bias is None else [next(parts)[:, None]]
        found[layer.name] = torch.cat([weight, *bias], dim=1)
    return found

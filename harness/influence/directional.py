"""Scores without gradients of the pool: the derivative of every example's loss along directions.

The score of example d along u is  d/de f_d(theta + e u) = -<grad L_d, u>  at e = 0, f_d = -L_d:
what a step along u would gain on d. It needs no backward pass and keeps no activations.

"forward" takes it by forward-mode differentiation, exact up to rounding. Only the last hidden
states are differentiated so; behind them the gradient of the loss is known in closed form.

"central" takes two forward passes per direction, (f_d(theta + e u) - f_d(theta - e u)) / 2e, by
whatever kernels run forward fastest. Too large a step e errs by curvature, too small a one by
rounding: it is chosen on a sample of the pool, where the exact scores come from gradients, and
accepted only if it agrees with them there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from harness.data.pool import Pool
from harness.influence.batches import (
    Batch,
    Progress,
    batches,
    device_of,
    example_losses,
    model_inputs,
)
from harness.influence.choice import chosen
from harness.influence.ghost import products
from harness.influence.gradients import head_gradient
from harness.influence.head import captured, is_plain, token_losses
from harness.influence.kernels.attention import fused_attention
from harness.influence.kernels.matmul import frozen
from harness.influence.layers import (
    Layer,
    check_attention,
    evaluating,
    match,
    output_layer,
    tracked_layers,
)
from harness.influence.options import CurvatureOptions

DIRECTIONS_AT_ONCE = 8
STEPS = (1e-2, 3e-3, 1e-3, 3e-4)
"""Tried steps, as the length of e u relative to that of the tracked weights."""
SAMPLE = 32
AGREEMENT = 0.9999
"""Lowest correlation with the exact scores at which a central difference is accepted."""

Parameters = dict[str, Tensor]


Scorer = Callable[[Pool, Progress | None], npt.NDArray[np.float64]]
"""`score(part of the pool, progress)`: scores of its examples along every direction, [n, k]."""


def directional_scores(
    model: nn.Module,
    pool: Pool,
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    *,
    method: str = "auto",
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """-<grad L_d, u_j> for every example d and direction u_j, shape [n, k].

    `directions`: layer -> [k, out, in (+ 1)], for exactly the layers that `options` tracks; the
    loss L_d is that of `options.loss`. `method`: "forward", "central", "ghost" (see ghost.py), or
    "auto": what choice.py finds the cheapest for this model and so many directions.
    """
    return scorer(model, pool, directions, options, method=method)(pool, progress)


def scorer(
    model: nn.Module,
    pool: Pool,
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    *,
    method: str = "auto",
) -> Scorer:
    """What scores parts of `pool`, as `directional_scores` does the whole.

    All that depends on the pool as a whole is done here: the steps of central differences.
    """
    layers = tracked_layers(model, options.layers, options.head)
    match(layers, directions)
    for layer in layers:
        if directions[layer.name].ndim != 3:
            raise ValueError(
                f"direction of layer {layer.name!r} has shape "
                f"{tuple(directions[layer.name].shape)}; expected [directions, out, in]"
            )
    method = chosen(model, method, len(directions[layers[0].name])).method
    if method == "ghost":
        return lambda part, progress: products(model, part, directions, options, progress=progress)
    take: Scorer
    if method == "forward":
        check_attention(model)
        take = partial(_forward, model, layers, directions, options)
    else:
        with evaluating(model), torch.no_grad():
            take = partial(_differences, _central(model, pool, layers, directions, options))

    def score(part: Pool, progress: Progress | None) -> npt.NDArray[np.float64]:
        # Gradients are not wanted in any form: without them forward mode stores nothing.
        with evaluating(model), torch.no_grad():
            return take(part, progress)

    return score


def parameters_and_tangents(
    layers: tuple[Layer, ...], directions: Mapping[str, Tensor]
) -> tuple[Parameters, Parameters]:
    """Weights and directions [k, ...] by the names of the model's parameters."""
    weights: Parameters = {}
    tangents: Parameters = {}
    for layer in layers:
        weights |= layer.parameters()
        tangents |= layer.split(directions[layer.name].to(layer.module.weight))
    return weights, tangents


def _hidden(model: nn.Module, head: nn.Linear, weights: Parameters, batch: Batch) -> Tensor | None:
    """Last hidden states [b, T, d]; None where logits are not just the head applied to them."""
    with captured(head) as capture:
        output: Any = functional_call(model, weights, (), model_inputs(model, batch))
    if capture.hidden is None or not is_plain(head, capture.hidden, output.logits):
        return None
    return capture.hidden


def _head(model: nn.Module, layers: tuple[Layer, ...]) -> nn.Linear | None:
    """The head, where it is untracked: then all that is behind the hidden states may be known."""
    head = output_layer(model)
    if not isinstance(head, nn.Linear) or any(layer.module is head for layer in layers):
        return None
    return head


def _plain_head(model: nn.Module, layers: tuple[Layer, ...], batch: Batch) -> nn.Linear | None:
    """The head where it is that, found out by a pass without derivatives, which round otherwise."""
    head = _head(model, layers)
    return None if head is None or _hidden(model, head, {}, batch) is None else head


def _losses(
    model: nn.Module, head: nn.Linear | None, weights: Parameters, batch: Batch, reduction: str
) -> Tensor:
    """Loss of every example, [b], in double precision."""
    hidden = None if head is None else _hidden(model, head, weights, batch)
    if head is None or hidden is None:
        output: Any = functional_call(model, weights, (), model_inputs(model, batch))
        return example_losses(output.logits, batch.labels, reduction)
    mask = batch.carrying
    losses = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    losses[mask] = token_losses(head, hidden[mask], batch.labels[:, 1:][mask[:, :-1]])
    total = losses.sum(dim=1)
    return total if reduction == "sum" else total / mask.sum(dim=1)


def _forward(
    model: nn.Module,
    layers: tuple[Layer, ...],
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    pool: Pool,
    progress: Progress | None,
) -> npt.NDArray[np.float64]:
    load_forward_mode()
    weights, tangents = parameters_and_tangents(layers, directions)
    scores = np.zeros((len(pool), len(next(iter(tangents.values())))))
    head, checked = None, False
    for batch in batches(pool, options.batch_size, device_of(model), progress, "scores"):
        if not checked:
            head, checked = _plain_head(model, layers, batch), True
        slopes = _slopes(model, head, weights, tangents, batch, options.loss)
        scores[batch.positions] = -slopes.T.double().cpu().numpy()
    return scores


def _slopes(
    model: nn.Module,
    head: nn.Linear | None,
    weights: Parameters,
    tangents: Parameters,
    batch: Batch,
    reduction: str,
) -> Tensor:
    """Derivative of every example's loss along every direction, [k, b]."""

    def value(point: Parameters) -> Tensor:
        if head is None:
            return _losses(model, None, point, batch, reduction)
        with captured(head) as capture:
            functional_call(model, point, (), model_inputs(model, batch))
        assert capture.hidden is not None
        return capture.hidden

    def along(direction: Parameters) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = jvp(value, (weights,), (direction,))
        return found

    # One direction needs no vmap; with several the undifferentiated pass is shared.
    if len(next(iter(tangents.values()))) == 1:
        values, slopes = along({name: tangent[0] for name, tangent in tangents.items()})
        slopes = slopes[None]
    else:
        values, slopes = vmap(along, chunk_size=DIRECTIONS_AT_ONCE)(tangents)
        values = values[0]
    if head is None:
        return slopes
    at = head_gradient(head, values, batch, reduction, None)
    return torch.einsum("kbtd,btd->kb", slopes, at)


def load_forward_mode() -> None:
    """The first forward-mode call compiles torch's decompositions, which warns of its own means."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", DeprecationWarning)
        jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))


def _central(
    model: nn.Module,
    pool: Pool,
    layers: tuple[Layer, ...],
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
) -> list[Callable[..., npt.NDArray[np.float64]] | None]:
    """For every direction what takes its differences, the step chosen; None where it is zero."""
    sample = pool.take(np.linspace(0, len(pool) - 1, min(SAMPLE, len(pool))).astype(np.int64))
    exact = products(model, sample, directions, options)
    weights, tangents = parameters_and_tangents(layers, directions)
    found: list[Callable[..., npt.NDArray[np.float64]] | None] = []
    for column in range(exact.shape[1]):
        direction = {name: tangent[column] for name, tangent in tangents.items()}
        if _length(direction) == 0:
            found.append(None)
            continue
        difference = partial(_difference, model, layers, weights, direction, options=options)
        unit = _length(weights) / _length(direction)
        step = _step(difference, sample, unit, exact[:, column])
        found.append(partial(difference, step=step))
    return found


def _differences(
    differences: Sequence[Callable[..., npt.NDArray[np.float64]] | None],
    pool: Pool,
    progress: Progress | None,
) -> npt.NDArray[np.float64]:
    scores = np.zeros((len(pool), len(differences)))
    for column, difference in enumerate(differences):
        if difference is not None:
            scores[:, column] = difference(pool, progress=progress)
    return scores


def _step(
    difference: Callable[..., npt.NDArray[np.float64]],
    sample: Pool,
    unit: float,
    exact: npt.NDArray[np.float64],
) -> float:
    """The step whose differences come closest to the exact scores; RuntimeError if none is good."""
    tried = []
    for relative in STEPS:
        found = difference(sample, step=relative * unit)
        tried.append((float(np.linalg.norm(found - exact)), relative * unit, found))
        if len(tried) > 1 and tried[-1][0] > tried[-2][0]:
            break  # rounding has taken over
    error, step, found = min(tried, key=lambda trial: trial[:2])
    agreement = float(np.corrcoef(found, exact)[0, 1]) if len(exact) > 2 else 1.0
    if not agreement >= AGREEMENT:
        raise RuntimeError(
            f"central differences disagree with exact scores: correlation {agreement:.5f} on "
            f"{len(exact)} examples at the best of {len(tried)} steps ({step:.3g}, error "
            f"{error:.3g}); expected at least {AGREEMENT}. Use method = 'ghost' or 'forward'"
        )
    return step


def _difference(
    model: nn.Module,
    layers: tuple[Layer, ...],
    weights: Parameters,
    direction: Parameters,
    pool: Pool,
    *,
    step: float,
    options: CurvatureOptions,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """-(L(theta + e u) - L(theta - e u)) / 2e of every example, shape [n]."""
    ahead, behind = (
        {name: weight + sign * step * direction[name] for name, weight in weights.items()}
        for sign in (1.0, -1.0)
    )
    scores = np.zeros(len(pool))
    head = _head(model, layers)
    with fused_attention(model), frozen(model):
        for batch in batches(pool, options.batch_size, device_of(model), progress, "scores"):
            rise = _losses(model, head, ahead, batch, options.loss)
            rise -= _losses(model, head, behind, batch, options.loss)
            scores[batch.positions] = (-rise / (2 * step)).cpu().numpy()
    return scores


def _length(parameters: Parameters) -> float:
    return math.sqrt(sum(float(p.double().square().sum()) for p in parameters.values()))

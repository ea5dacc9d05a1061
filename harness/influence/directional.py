"""Scores of examples: the derivative of every example's loss along directions in weight space.

The score of example d along u is  d/de f_d(theta + e u) = -<grad L_d, u>  at e = 0, f_d = -L_d: the
gain on d of a step along u. Both ways to it are exact up to rounding.

"ghost" sums <delta a^T, u> over layers, from each layer's inputs a and output gradients delta: one
forward and one backward pass, whatever the number of directions, without weight gradients of the
batch. The cheaper way, and what "auto" means.

"forward" differentiates forward along u: no backward pass, and no activations are kept. Only the
last hidden states are differentiated so; behind them the gradient of the loss is known in closed
form. It needs an attention kernel with forward-mode derivatives.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from harness.data.pool import Pool
from harness.influence.batches import Batch, Progress, batches, device_of, model_inputs
from harness.influence.gradients import Trace, gradient_at, stream
from harness.influence.head import captured, is_plain
from harness.influence.layers import (
    Gradients,
    Layer,
    check_attention,
    evaluating,
    match,
    output_layer,
    tracked_layers,
)
from harness.influence.options import CurvatureOptions, scoring_method

DIRECTIONS_AT_ONCE = 8
"""Directions that forward mode takes through the model at once."""

Parameters = dict[str, Tensor]


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
    loss L_d is that of `options.loss`. `method`: "ghost", "forward" or "auto", see above.
    """
    layers = tracked_layers(model, options.layers, options.head)
    match(layers, directions)
    for layer in layers:
        if directions[layer.name].ndim != 3:
            raise ValueError(
                f"direction of layer {layer.name!r} has shape "
                f"{tuple(directions[layer.name].shape)}; expected [directions, out, in]"
            )
    forward = scoring_method(method) == "forward"
    if forward:
        check_attention(model)
        load_forward_mode()
    along = {x.name: directions[x.name].to(x.module.weight) for x in layers}
    scores = np.zeros((len(pool), len(along[layers[0].name])))
    head, checked = None, False
    with evaluating(model):
        for batch in batches(pool, options.batch_size, device_of(model), progress, "scores"):
            if forward and not checked:
                head, checked = _plain_head(model, layers, batch), True
            if forward:
                slopes = _slopes(model, layers, head, along, batch, options.loss)
            else:
                slopes = _products(model, layers, along, batch, options.loss)
            scores[batch.positions] = -slopes.double().cpu().numpy()
    return scores


def _products(
    model: nn.Module, layers: tuple[Layer, ...], along: Gradients, batch: Batch, reduction: str
) -> Tensor:
    """<grad L_d, u_j> of the examples of a batch, [b, k], by one backward pass."""
    sums: list[Tensor] = []  # stays on the device: a GPU must not be waited for layer by layer

    def add(name: str, trace: Trace) -> None:
        products = trace.along(along[name]).double()
        sums[:] = [sums[0].add_(products) if sums else products]

    stream(model, layers, batch, reduction, add)
    return sums[0]


def _slopes(
    model: nn.Module,
    layers: tuple[Layer, ...],
    head: nn.Linear | None,
    along: Gradients,
    batch: Batch,
    reduction: str,
) -> Tensor:
    """<grad L_d, u_j> of the examples of a batch, [b, k], by forward mode."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(along[layers[0].name]), DIRECTIONS_AT_ONCE):
            chosen = {name: u[start : start + DIRECTIONS_AT_ONCE] for name, u in along.items()}
            root, tangents = pushforward(model, layers, head, chosen, batch)
            gradient = gradient_at(root, head, batch, reduction)
            parts.append(torch.einsum("kbtd,btd->bk", tangents, gradient))
    return torch.cat(parts, dim=1)


def _plain_head(model: nn.Module, layers: tuple[Layer, ...], batch: Batch) -> nn.Linear | None:
    """The head, where it is untracked and logits are just the head of the last hidden states.

    Found by a pass without derivatives, with which rounding differs.
    """
    head = output_layer(model)
    if not isinstance(head, nn.Linear) or any(layer.module is head for layer in layers):
        return None
    with torch.no_grad(), captured(head) as capture:
        logits = model(**model_inputs(model, batch)).logits
    return head if capture.hidden is not None and is_plain(head, capture.hidden, logits) else None


def pushforward(
    model: nn.Module,
    layers: tuple[Layer, ...],
    head: nn.Linear | None,
    directions: Mapping[str, Tensor],
    batch: Batch,
) -> tuple[Tensor, Tensor]:
    """The root [b, T, d] and its derivatives [k, b, T, d] along `directions` of the weights.

    The root is the input of `head`, or the logits (None), as in `gradients.Pullback`.
    """
    weights: Parameters = {}
    tangents: Parameters = {}
    for layer in layers:
        weights |= layer.parameters()
        tangents |= layer.split(directions[layer.name].to(layer.module.weight))

    def root(point: Parameters) -> Tensor:
        inputs = model_inputs(model, batch)
        if head is None:
            logits: Tensor = functional_call(model, point, (), inputs).logits
            return logits
        with captured(head) as capture:
            functional_call(model, point, (), inputs)
        assert capture.hidden is not None
        return capture.hidden

    def along(direction: Parameters) -> tuple[Tensor, Tensor]:
        values: tuple[Tensor, Tensor] = jvp(root, (weights,), (direction,))
        return values

    if len(next(iter(tangents.values()))) == 1:  # one direction needs no vmap
        values, slopes = along({name: tangent[0] for name, tangent in tangents.items()})
        return values, slopes[None]
    values, slopes = vmap(along)(tangents)  # the undifferentiated pass is shared
    return values[0], slopes


def load_forward_mode() -> None:
    """The first forward-mode call compiles torch's decompositions, which warns of its own means."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", DeprecationWarning)
        jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))

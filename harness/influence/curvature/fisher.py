"""Products of the Fisher matrix with directions: one pass over the pool for any number of them.

    exact       F u = mean over n of  w_n^2 sum over t of  J_nt^T (diag(p_nt) - p_nt p_nt^T) J_nt u
    drawn       F u = mean over n and R draws r of  G_nr <G_nr, u>
    empirical   F u = mean over n of  G_n <G_n, u>

J_nt: derivative of the logits at loss-carrying position t with respect to all tracked weights
together; w_n = 1 / T_n for the mean over T_n tokens, 1 for the sum. G_nr: gradient of the loss
under the r-th draw of labels from the model; the first draw is the one that ekfac's eigenvalues are
made of (see kronecker.py). Its expectation is the exact product. All of them reach between layers.

Drawn (`options.cg_draws`) and empirical: per batch one pass forward, and one backward for each set
of labels, whatever the number of directions. Exact (`cg_draws` None): forward mode takes a
direction to the last hidden states, the head is known in closed form and runs on loss-carrying
positions only, and one backward pass takes the result back to the weights. Per batch, two passes
forward are shared by all directions; each costs its derivative and one pass backward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from harness.influence.batches import draw_seed, model_inputs
from harness.influence.directional import load_forward_mode, parameters_and_tangents
from harness.influence.gradients import pullback, root_gradient
from harness.influence.head import captured, hidden_curvature, softmax_curvature
from harness.influence.kernels.lanes import Lane, Sums, spread
from harness.influence.kernels.matmul import wide
from harness.influence.layers import Gradients, check_attention, match, tracked_layers
from harness.influence.trace import FEW, Trace

if TYPE_CHECKING:
    from harness.data.pool import Pool
    from harness.influence.batches import Batch, Progress
    from harness.influence.layers import Layer
    from harness.influence.options import CurvatureOptions

COLUMNS = 8
"""Directions that forward mode takes through the model at once."""

Parameters = dict[str, Tensor]


def fisher_products(
    model: nn.Module,
    pool: Pool,
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    *,
    progress: Progress | None = None,
    description: str = "curvature products",
) -> Gradients:
    """F u_j for `directions`, layer -> [k, out, in (+ 1)]; the same shapes, single precision or up.

    F is the Fisher matrix of `options.fisher`, `options.cg_draws` and `options.loss` over the whole
    `pool`, undamped.
    """
    layers = tracked_layers(model, options.layers, options.head)
    match(layers, directions)
    exact = options.fisher == "true" and options.cg_draws is None
    if exact:
        check_attention(model)
        load_forward_mode()
    product = _expected if exact else _sampled
    sums = Sums(
        lambda: {name: torch.zeros_like(u, dtype=wide(u.dtype)) for name, u in directions.items()}
    )

    def work(lane: Lane, batch: Batch) -> None:
        with torch.no_grad():
            product(lane, batch, directions, options, sums.of(lane.number))

    # Forward mode knows one derivative at a time in the whole process.
    spread(model, layers, pool, options, work, progress, description, alone=exact)
    return {name: total.div_(len(pool)) for name, total in sums.total().items()}


def _sampled(
    lane: Lane,
    batch: Batch,
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    totals: Gradients,
) -> None:
    """Sums of example gradients, weighted by their products with the directions."""
    seeds: list[int | None] = [None]
    if options.fisher == "true" and options.cg_draws is not None:
        seeds = [draw_seed(options.seed, number) for number in range(options.cg_draws)]
    found: dict[str, Trace] = {}
    pull = pullback(lane.model, lane.layers, batch, found.__setitem__)
    for number, seed in enumerate(seeds, 1):
        pull(root_gradient(pull, batch, options.loss, seed), again=number < len(seeds))
        _add_products(found, directions, 1 / len(seeds), totals)
        found.clear()


def _add_products(
    found: Mapping[str, Trace], directions: Mapping[str, Tensor], weight: float, totals: Gradients
) -> None:
    """Add weight sum over n of  G_n <G_n, u_j>; the gradients exist in bounded blocks only."""
    along = sum(trace.along(directions[name]) for name, trace in found.items())
    assert isinstance(along, Tensor)
    along = along * weight
    for name, trace in found.items():
        if along.shape[1] > FEW:
            for rows, block in trace.gradients():
                totals[name] += (along[rows].T @ block.flatten(1)).view_as(totals[name])
            continue
        for total, weights in zip(totals[name], along.T, strict=True):
            total += _scaled(trace, weights).total()


def _scaled(trace: Trace, weights: Tensor) -> Trace:
    """The trace of losses times `weights` [b]."""
    factor = weights[:, None, None]
    embedded = tuple((tokens, deltas * factor) for tokens, deltas in trace.embedded)
    return dataclasses.replace(trace, deltas=trace.deltas * factor, embedded=embedded)


def _expected(
    lane: Lane,
    batch: Batch,
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    totals: Gradients,
) -> None:
    column = 0

    def add(name: str, trace: Trace) -> None:
        totals[name][column] += trace.total()

    pull = pullback(lane.model, lane.layers, batch, add)
    mask = batch.carrying
    counts = mask.sum(dim=1, keepdim=True).double()
    by_example = counts.square().reciprocal() if options.loss == "mean" else torch.ones_like(counts)
    weights = by_example.expand_as(mask)[mask]
    root = pull.root.detach()
    count = len(directions[lane.layers[0].name])
    for start in range(0, count, COLUMNS):
        chosen = {name: u[start : start + COLUMNS] for name, u in directions.items()}
        moved = _pushed(lane.model, lane.layers, batch, pull.head, chosen)[:, mask]
        if pull.head is None:
            p = root[mask].to(wide(root.dtype)).softmax(dim=1)
            parts = [softmax_curvature(p, tangent.to(p.dtype), weights) for tangent in moved]
        else:
            parts = list(hidden_curvature(pull.head, root[mask], moved, weights))
        for part in parts:
            gradient = torch.zeros_like(root)
            gradient[mask] = part.to(root.dtype)
            pull(gradient, again=column + 1 < count)
            column += 1


def _pushed(
    model: nn.Module,
    layers: tuple[Layer, ...],
    batch: Batch,
    head: nn.Linear | None,
    directions: Mapping[str, Tensor],
) -> Tensor:
    """Derivatives [k, b, T, d] of the last hidden states along `directions`, or of the logits."""
    weights, tangents = parameters_and_tangents(layers, directions)

    def value(point: Parameters) -> Tensor:
        if head is None:
            logits: Tensor = functional_call(model, point, (), model_inputs(model, batch)).logits
            return logits
        with captured(head) as capture:
            functional_call(model, point, (), model_inputs(model, batch))
        assert capture.hidden is not None
        return capture.hidden

    def slope(direction: Parameters) -> Tensor:
        found: Tensor = jvp(value, (weights,), (direction,))[1]
        return found

    if len(directions[layers[0].name]) == 1:  # one direction needs no vmap
        return slope({name: tangent[0] for name, tangent in tangents.items()})[None]
    slopes: Tensor = vmap(slope)(tangents)
    return slopes

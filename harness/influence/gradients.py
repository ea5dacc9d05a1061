"""Gradients of single examples, layer by layer, from one forward and one backward pass per batch.

Examples of a batch do not see each other, so the gradient of the *summed* loss with respect to a
layer's outputs [b, T, out] holds every example's own output gradients. With the layer's inputs
[b, T, in] the full weight gradient of example n is

    G_n = sum over positions t of  delta_nt  a_nt^T        ([out, in (+ 1)], bias by a constant 1)

over *all* positions: the loss stands on response tokens only, but prompt positions reach it through
keys and values, and leaving them out would not be the gradient that autograd computes. Padding has
delta = 0. For a head whose weight is also the embedding, the embedding's part is added.

Nothing is left on the model: no `.grad`, no hooks, no change of weights or modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.influence.batches import (
    Batch,
    Progress,
    batches,
    device_of,
    example_losses,
    model_inputs,
)
from harness.influence.layers import Gradients, Layer, evaluating, tracked_layers
from harness.influence.options import CurvatureOptions
from harness.pool import Pool

BLOCK_ELEMENTS = 1 << 25
"""Per-example gradient entries held at once (128 MiB in single precision)."""

Labeller = Callable[[Tensor, Batch], Tensor]


@dataclass(frozen=True)
class Trace:
    """What one layer saw in one batch: `inputs` [b, T, in (+ 1)], `deltas` [b, T, out].

    `embedded`: for a tied head, token ids [b, T] and the gradient [b, T, in] at each embedding.
    """

    inputs: Tensor
    deltas: Tensor
    embedded: tuple[tuple[Tensor, Tensor], ...] = ()

    def rotated(self, outputs: Tensor, inputs: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of `outputs`^T G_n `inputs`, multiplied in the cheaper order."""
        tokens, out = self.deltas.shape[1:]
        width = self.inputs.shape[-1]
        before = tokens * (out * out + width * width)
        if self.embedded or before > out * width * (out + width):
            for rows, block in self.gradients():
                yield rows, outputs.T @ block @ inputs
        else:
            yield from Trace(self.inputs @ inputs, self.deltas @ outputs).gradients()

    def gradients(self) -> Iterator[tuple[slice, Tensor]]:
        """Per-example gradients in bounded blocks: rows of the batch, [rows, out, in (+ 1)]."""
        out, width = self.deltas.shape[-1], self.inputs.shape[-1]
        step = max(1, BLOCK_ELEMENTS // (out * width))
        for start in range(0, len(self.inputs), step):
            rows = slice(start, start + step)
            block = self.deltas[rows].transpose(1, 2) @ self.inputs[rows]
            for tokens, deltas in self.embedded:
                index = tokens[rows].unsqueeze(-1).expand_as(deltas[rows])
                block[..., : deltas.shape[-1]].scatter_add_(1, index, deltas[rows])
            yield rows, block

    def total(self) -> Tensor:
        """Gradient summed over the batch, [out, in (+ 1)], without per-example matrices."""
        total = self.deltas.flatten(0, 1).T @ self.inputs.flatten(0, 1)
        for tokens, deltas in self.embedded:
            total[:, : deltas.shape[-1]].index_add_(0, tokens.flatten(), deltas.flatten(0, 1))
        return total


def traces(
    model: nn.Module,
    layers: tuple[Layer, ...],
    batch: Batch,
    reduction: str,
    labeller: Labeller | None = None,
) -> dict[str, Trace]:
    """Inputs and output gradients of every tracked layer for the examples' own losses.

    `labeller(logits, batch)` may replace the labels (the true Fisher draws them). Weight gradients
    are never formed: the backward pass is asked for the layers' outputs only.
    """
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if module in outputs:
            raise ValueError(
                f"a tracked {type(module).__name__} runs twice in one forward pass; expected once"
            )
        if args[0].ndim != batch.input_ids.ndim + isinstance(module, nn.Linear):
            raise ValueError(
                f"a tracked {type(module).__name__} gets inputs of shape {tuple(args[0].shape)}; "
                "expected [batch, tokens, width]"
            )
        if not output.requires_grad:
            output.requires_grad_(True)  # frozen weights: the graph starts here
        inputs[module], outputs[module] = args[0].detach(), output

    watched = [module for layer in layers for module in (layer.module, *layer.tied)]
    hooks = [module.register_forward_hook(record) for module in watched]
    try:
        with torch.enable_grad():
            logits = model(**model_inputs(model, batch)).logits
            labels = batch.labels if labeller is None else labeller(logits, batch)
            loss = example_losses(logits, labels, reduction).sum()
    finally:
        for hook in hooks:
            hook.remove()
    silent = [layer.name for layer in layers if layer.module not in outputs]
    if silent:
        raise ValueError(f"layers {silent[:5]} did not run in the forward pass; expected all")
    grads = torch.autograd.grad(loss, [outputs[module] for module in watched])
    deltas = dict(zip(watched, grads, strict=True))
    extended: dict[object, Tensor] = {}  # query, key and value read one and the same input
    found = {}
    for layer in layers:
        seen = inputs[layer.module]
        key = (seen.data_ptr(), seen.shape, seen.stride(), layer.shape[1])
        if key not in extended:
            extended[key] = layer.extend(seen)
        tied = tuple((inputs[module], deltas[module]) for module in layer.tied)
        found[layer.name] = Trace(extended[key], deltas[layer.module], tied)
    return found


def example_gradients(
    model: nn.Module, pool: Pool, options: CurvatureOptions, *, progress: Progress | None = None
) -> Gradients:
    """Gradient of every example's loss: layer -> [n, out, in (+ 1)]; for small pools."""
    layers = tracked_layers(model, options.layers, options.head)
    found = {
        layer.name: layer.module.weight.new_zeros(len(pool), *layer.shape).detach()
        for layer in layers
    }
    with evaluating(model):
        for batch in batches(
            pool, options.batch_size, device_of(model), progress, "example gradients"
        ):
            for name, trace in traces(model, layers, batch, options.loss).items():
                for rows, block in trace.gradients():
                    found[name][torch.from_numpy(batch.positions[rows])] = block
    return found


def query_gradients(
    model: nn.Module,
    queries: Pool,
    options: CurvatureOptions,
    *,
    aggregate: str | None = None,
    progress: Progress | None = None,
) -> Gradients:
    """Gradient of f_v, the mean log-probability of the tokens of a query's completion.

    `aggregate` None: one per query, layer -> [q, out, in (+ 1)]; "mean" or "sum": over all queries,
    layer -> [out, in (+ 1)], without keeping single ones. f_v is a mean over tokens whatever
    `options.loss` says about the pool.
    """
    if len(queries) == 0:
        raise ValueError("the query set is empty; expected at least one query")
    by_token = CurvatureOptions(
        kind="identity", layers=options.layers, head=options.head, batch_size=options.batch_size
    )
    if aggregate is None:
        losses = example_gradients(model, queries, by_token, progress=progress)
        return {name: gradient.neg_() for name, gradient in losses.items()}
    if aggregate not in ("mean", "sum"):
        raise ValueError(f"aggregate is {aggregate!r}; expected 'mean', 'sum' or None")
    layers = tracked_layers(model, options.layers, options.head)
    weight = -1.0 / len(queries) if aggregate == "mean" else -1.0
    total = {layer.name: layer.module.weight.new_zeros(layer.shape).detach() for layer in layers}
    with evaluating(model):
        for batch in batches(
            queries, options.batch_size, device_of(model), progress, "query gradients"
        ):
            for name, trace in traces(model, layers, batch, "mean").items():
                total[name] += weight * trace.total()
    return total

"""Gradients of single examples, layer by layer, from one forward and one backward pass per batch.

Examples of a batch do not see each other, so the gradient of the *summed* loss with respect to a
layer's outputs [b, T, out] holds every example's own output gradients. With the layer's inputs
[b, T, in] the full weight gradient of example n is

    G_n = sum over positions t of  delta_nt  a_nt^T        ([out, in (+ 1)], bias by a constant 1)

over *all* positions: the loss is on response tokens only, but prompt positions reach it through
keys and values, and without them it would not be the gradient that autograd computes. Padding has
delta = 0. For a head whose weight is also the embedding, the embedding's part is added (also where
`padding_idx` keeps a row from autograd: the loss does depend on it).

G_n is formed, if at all, for a bounded number of examples at a time. Nothing is left on the model:
no `.grad`, no hooks, no change of weights or modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.data.pool import Pool
from harness.influence.batches import (
    Batch,
    Progress,
    batches,
    device_of,
    example_losses,
    model_inputs,
    sampled_labels,
    uniforms,
)
from harness.influence.head import captured, embedding_scale, hidden_gradients, is_plain
from harness.influence.layers import (
    Gradients,
    Layer,
    evaluating,
    fused_norms,
    output_layer,
    tracked_layers,
    wide,
)
from harness.influence.options import CurvatureOptions

BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Per-example gradient entries held at once (8 MiB in single precision on a CPU); a GPU is idle
between small products."""
FEW = 3
"""Directions up to which their products with the inputs are cheaper than example gradients."""


@dataclass(frozen=True)
class Trace:
    """What one layer saw in one batch: `inputs` [b, T, in (+ 1)], `deltas` [b, T, out].

    `embedded`: for a tied head, token ids [b, T] and the gradient [b, T, in] at each embedding.
    `source`: the first layer of the model that reads these inputs; layers of one source share them.
    """

    inputs: Tensor
    deltas: Tensor
    embedded: tuple[tuple[Tensor, Tensor], ...] = ()
    source: str = ""

    def along(self, directions: Tensor) -> Tensor:
        """<G_n, u_j> of every example, [b, k], for `directions` [k, out, in (+ 1)].

        Few directions multiply the inputs, which spares the example gradients.
        """
        directions = directions.to(self.inputs.dtype)
        if len(directions) > FEW or self.embedded:
            columns = directions.flatten(1).T
            return torch.cat([block.flatten(1) @ columns for _, block in self.gradients()])
        # On the side where the product is narrower.
        first, second = self.inputs, self.deltas.flatten(1)
        if self.deltas.shape[-1] > self.inputs.shape[-1]:
            first, second, directions = self.deltas, self.inputs.flatten(1), directions.mT
        products = [torch.linalg.vecdot((first @ u.T).flatten(1), second) for u in directions]
        return torch.stack(products, dim=1)

    def gradients(self) -> Iterator[tuple[slice, Tensor]]:
        """Per-example gradients in bounded blocks: rows of the batch, [rows, out, in (+ 1)]."""
        step = rows_at_once(self.deltas.shape[-1] * self.inputs.shape[-1], self.inputs.device)
        for start in range(0, len(self.inputs), step):
            rows = slice(start, start + step)
            block = self.deltas[rows].mT @ self.inputs[rows]
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


Consumer = Callable[[str, Trace], None]
"""`consume(layer name, trace)`."""


def rows_at_once(entries: int, device: torch.device) -> int:
    """How many examples' gradients, of that many entries each, are held together."""
    return max(1, BLOCK_ELEMENTS.get(device.type, BLOCK_ELEMENTS["cpu"]) // entries)


def stream(
    model: nn.Module,
    layers: tuple[Layer, ...],
    batch: Batch,
    reduction: str,
    consume: Consumer,
    *,
    draw: int | None = None,
) -> None:
    """Hand every tracked layer's `Trace` for the examples' own losses to `consume(name, trace)`.

    Traces come last layer first, as the backward pass reaches them, and are forgotten afterwards.
    `draw`: a seed; labels are then sampled from the model (the true Fisher) instead of taken from
    the data. Weight gradients are never formed: the backward pass goes to the layers' outputs only.
    Where the output layer is not tracked it runs on loss-carrying positions alone.
    """
    pull = Pullback(model, layers, batch, consume)
    pull(gradient_at(pull.root, pull.head, batch, reduction, draw))


def gradient_at(
    root: Tensor, head: nn.Linear | None, batch: Batch, reduction: str, draw: int | None = None
) -> Tensor:
    """Gradient of the summed losses at `root`: hidden states before `head`, or logits (None)."""
    if head is None:
        targets = batch.labels if draw is None else sampled_labels(root, batch, draw)
        logits = root.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = example_losses(logits, targets, reduction).sum()
        return torch.autograd.grad(loss, [logits])[0]
    mask = batch.carrying
    counts = mask.sum(dim=1, keepdim=True).double()
    weights = (1 / counts if reduction == "mean" else counts.new_ones(counts.shape)).expand_as(mask)
    uniform = None if draw is None else uniforms(batch, draw)
    labels = batch.labels[:, 1:][mask[:, :-1]]
    with torch.no_grad():
        gradient = torch.zeros_like(root)
        states = root.detach()[mask]
        gradient[mask] = hidden_gradients(head, states, labels, weights[mask], uniform)
    return gradient


def traces(
    model: nn.Module,
    layers: tuple[Layer, ...],
    batch: Batch,
    reduction: str,
    *,
    draw: int | None = None,
) -> dict[str, Trace]:
    """The traces of all layers at once, in model order; see `stream`."""
    by_layer: dict[str, Trace] = {}
    stream(model, layers, batch, reduction, by_layer.__setitem__, draw=draw)
    return {layer.name: by_layer[layer.name] for layer in layers}


class _Tap(torch.autograd.Function):  # type: ignore[misc]
    """The identity; its backward pass hands the gradient on to `arrived`.

    The graph hangs on `anchor`, a scalar that every tap depends on, so that a backward pass towards
    it visits all taps and nothing that does not lead to one.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, arrived: Callable[[Tensor], None]
    ) -> Tensor:
        ctx.arrived = arrived
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.arrived(grads[0])
        return grads[0], grads[0].new_zeros(()), None


class Pullback:
    """A forward pass that gradients at its end, `root`, can be taken back through.

    `root`: the last hidden states [b, T, d] before `head`, where the output layer is untracked and
    nothing else follows them (it then ran on the first position only); else the logits, `head`
    None. A tap behind every tracked layer and tied embedding catches what passes there.
    """

    root: Tensor
    head: nn.Linear | None = None

    def __init__(
        self, model: nn.Module, layers: tuple[Layer, ...], batch: Batch, consume: Consumer
    ) -> None:
        self._model, self._layers, self._batch, self._consume = model, layers, batch, consume
        self._owner = {m: layer for layer in layers for m in (layer.module, *layer.tied)}
        self._again = False
        weight = layers[0].module.weight
        self._anchor = torch.zeros((), dtype=weight.dtype, device=weight.device, requires_grad=True)
        head = output_layer(model)
        if isinstance(head, nn.Linear) and all(layer.module is not head for layer in layers):
            with captured(head) as capture:
                logits = self._forward()
            if capture.hidden is not None and is_plain(head, capture.hidden, logits):
                self.root, self.head = capture.hidden, head
                return
        self.root = self._forward()

    def _forward(self) -> Tensor:
        """The logits."""
        self._inputs: dict[nn.Module, Tensor] = {}
        self._deltas: dict[nn.Module, Tensor] = {}
        self._extended: dict[str, Tensor] = {}
        self._readers: dict[object, str] = {}
        self._sources: dict[nn.Module, str] = {}
        self._scales: dict[nn.Module, float] = {}
        norms = fused_norms(self._model) if self._anchor.is_cuda else nullcontext()
        hooks = [module.register_forward_hook(self._record) for module in self._owner]
        try:
            with torch.enable_grad(), norms:
                logits: Tensor = self._model(**model_inputs(self._model, self._batch)).logits
        finally:
            for hook in hooks:
                hook.remove()
        silent = [layer.name for layer in self._layers if layer.module not in self._inputs]
        if silent:
            raise ValueError(f"layers {silent[:5]} did not run in the forward pass; expected all")
        return logits

    def __call__(self, gradient: Tensor, *, again: bool = False) -> None:
        """Hand every layer's trace for this `gradient` at the root to the consumer.

        `again`: the pass is kept for further calls; the last call frees it layer by layer.
        """
        self._again = again
        torch.autograd.grad(self.root, [self._anchor], gradient, retain_graph=again)

    def _record(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if module in self._inputs:
            raise ValueError(
                f"a tracked {type(module).__name__} runs twice in one forward pass; expected once"
            )
        if args[0].ndim != self._batch.input_ids.ndim + isinstance(module, nn.Linear):
            raise ValueError(
                f"a tracked {type(module).__name__} gets inputs of shape {tuple(args[0].shape)}; "
                "expected [batch, tokens, width]"
            )
        layer, inputs = self._owner[module], args[0].detach()
        if isinstance(module, nn.Embedding):
            self._scales[module] = embedding_scale(module, inputs, output)
        # Kept until the backward pass, so that no later input can take its address.
        self._inputs[module] = inputs
        if module is layer.module:
            # Query, key and value read the same input: what is made of it is shared.
            key = (inputs.data_ptr(), inputs.shape, inputs.stride(), layer.shape[1])
            self._sources[module] = self._readers.setdefault(key, layer.name)
        tapped: Tensor = _Tap.apply(output, self._anchor, partial(self._arrived, module))
        return tapped

    def _arrived(self, module: nn.Module, delta: Tensor) -> None:
        layer = self._owner[module]
        self._deltas[module] = delta
        if any(m not in self._deltas for m in (layer.module, *layer.tied)):
            return  # a tied embedding comes last
        take = self._inputs.__getitem__ if self._again else self._inputs.pop
        tied = tuple((take(m), self._deltas.pop(m) * self._scales[m]) for m in layer.tied)
        inputs, deltas = take(layer.module), self._deltas.pop(layer.module)
        source = self._sources[layer.module]
        if layer.module.bias is not None:
            if source not in self._extended:  # kept for the next reader of this source
                self._extended = {source: layer.extend(inputs)}
            inputs = self._extended[source]
        with torch.no_grad():
            self._consume(layer.name, Trace(inputs, deltas, tied, source))


def example_gradients(
    model: nn.Module, pool: Pool, options: CurvatureOptions, *, progress: Progress | None = None
) -> Gradients:
    """Gradient of every example's loss: layer -> [n, out, in (+ 1)]; for small pools."""
    layers = tracked_layers(model, options.layers, options.head)
    gradients = {layer.name: layer.zeros(len(pool)) for layer in layers}
    device, description = device_of(model), "example gradients"
    with evaluating(model):
        for batch in batches(pool, options.batch_size, device, progress, description):

            def keep(name: str, trace: Trace, positions: Any = batch.positions) -> None:
                for rows, block in trace.gradients():
                    gradients[name][torch.from_numpy(positions[rows])] = block

            stream(model, layers, batch, options.loss, keep)
    return gradients


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
    if aggregate not in ("mean", "sum", None):
        raise ValueError(f"aggregate is {aggregate!r}; expected 'mean', 'sum' or None")
    if aggregate is None:
        by_token = CurvatureOptions(
            kind="identity", layers=options.layers, head=options.head, batch_size=options.batch_size
        )
        losses = example_gradients(model, queries, by_token, progress=progress)
        return {name: gradient.neg_() for name, gradient in losses.items()}
    layers = tracked_layers(model, options.layers, options.head)
    weight = -1.0 / len(queries) if aggregate == "mean" else -1.0
    total = {x.name: x.zeros(dtype=wide(x.module.weight.dtype)) for x in layers}

    def add(name: str, trace: Trace) -> None:
        total[name] += weight * trace.total()

    device, description = device_of(model), "query gradients"
    with evaluating(model):
        for batch in batches(queries, options.batch_size, device, progress, description):
            stream(model, layers, batch, "mean", add)
    return total

"""Gradients of single examples, layer by layer, from one forward and one backward pass per batch.

Examples of a batch do not see each other, so the gradient of the *summed* loss with respect to a
layer's outputs [b, T, out] holds every example's own output gradients. With the layer's inputs
[b, T, in] the full weight gradient of example n is

    G_n = sum over positions t of  delta_nt  a_nt^T        ([out, in (+ 1)], bias by a constant 1)

over *all* positions: the loss stands on response tokens only, but prompt positions reach it through
keys and values, and leaving them out would not be the gradient that autograd computes. Padding has
delta = 0. For a head whose weight is also the embedding, the embedding's part is added (also where
`padding_idx` keeps a row from autograd: the loss does depend on it).

Nothing is left on the model: no `.grad`, no hooks, no change of weights or modes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from harness.data.pool import Pool
from harness.influence.batches import (
    Batch,
    Progress,
    example_losses,
    model_inputs,
    sampled_labels,
    uniforms,
)
from harness.influence.head import captured, hidden_gradients, is_plain
from harness.influence.kernels.attention import fused_attention
from harness.influence.kernels.lanes import Lane, Sums, spread
from harness.influence.kernels.matmul import frozen, wide
from harness.influence.kernels.norms import fused_norms
from harness.influence.layers import Gradients, Layer, output_layer, tracked_layers
from harness.influence.options import CurvatureOptions
from harness.influence.trace import Consumer, Trace

WORTH = 0.8
"""Share of positions below which it pays to leave out those that carry no loss."""


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
    `draw`: a seed; labels are then drawn from the model (the true Fisher) instead of taken from the
    data. Weight gradients are never formed: the backward pass is asked for the layers' outputs
    only. Where the output layer is not tracked it runs on loss-carrying positions alone.
    """
    pull = pullback(model, layers, batch, consume)
    pull(root_gradient(pull, batch, reduction, draw))


@dataclass(frozen=True)
class Pullback:
    """A forward pass that gradients at its end, `root`, can be taken back through.

    `root`: the last hidden states [b, T, d] before `head`, where the output layer is untracked and
    all there is behind them (it then ran on the first position only); else the logits, `head` None.
    """

    root: Tensor
    head: nn.Linear | None
    tapped: _Tapped

    def __call__(self, gradient: Tensor, *, again: bool = False) -> None:
        """Hand every layer's trace for this `gradient` at the root to the consumer.

        `again`: the pass is kept for further calls; the last call lets go of it layer by layer.
        """
        self.tapped.backward(self.root, gradient, again)


def pullback(
    model: nn.Module, layers: tuple[Layer, ...], batch: Batch, consume: Consumer
) -> Pullback:
    """Run the model on a batch, ready for `stream`-like passes backward."""
    head = output_layer(model)
    with fused_attention(model):
        if isinstance(head, nn.Linear) and all(layer.module is not head for layer in layers):
            with captured(head) as capture, _Tapped(model, layers, batch, consume) as tapped:
                logits = tapped.forward()
            if capture.hidden is not None and is_plain(head, capture.hidden, logits):
                return Pullback(capture.hidden, head, tapped)
        with _Tapped(model, layers, batch, consume) as tapped:
            return Pullback(tapped.forward(), None, tapped)


def root_gradient(pull: Pullback, batch: Batch, reduction: str, draw: int | None) -> Tensor:
    """Gradient of the summed losses at the root; `draw` as in `stream`."""
    if pull.head is not None:
        return head_gradient(pull.head, pull.root, batch, reduction, draw)
    labels = batch.labels if draw is None else sampled_labels(pull.root, batch, draw)
    logits = pull.root.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = example_losses(logits, labels, reduction).sum()
    return torch.autograd.grad(loss, [logits])[0]


def traces(
    model: nn.Module,
    layers: tuple[Layer, ...],
    batch: Batch,
    reduction: str,
    *,
    draw: int | None = None,
) -> dict[str, Trace]:
    """The traces of all layers at once, in model order; see `stream`."""
    found: dict[str, Trace] = {}
    stream(model, layers, batch, reduction, found.__setitem__, draw=draw)
    return {layer.name: found[layer.name] for layer in layers}


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


class _Tapped:
    """A forward and a backward pass with a tap behind every tracked layer and tied embedding."""

    def __init__(
        self, model: nn.Module, layers: tuple[Layer, ...], batch: Batch, consume: Consumer
    ) -> None:
        self._model, self._layers, self._batch, self._consume = model, layers, batch, consume
        self._owner = {m: layer for layer in layers for m in (layer.module, *layer.tied)}
        self._inputs: dict[nn.Module, Tensor] = {}
        self._deltas: dict[nn.Module, Tensor] = {}
        self._extended: dict[str, Tensor] = {}
        self._readers: dict[object, str] = {}
        self._sources: dict[nn.Module, str] = {}
        self._scales: dict[nn.Module, float] = {}
        self._hooks: list[Any] = []
        self._again = False
        self._carrying = batch.carrying
        self._kept = _front(self._carrying)
        self._behind = False
        weight = layers[0].module.weight
        self._anchor = torch.zeros((), dtype=weight.dtype, device=weight.device, requires_grad=True)

    def __enter__(self) -> Self:
        self._hooks = [module.register_forward_hook(self._record) for module in self._owner]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def forward(self) -> Tensor:
        """The logits."""
        with torch.enable_grad(), frozen(self._model), fused_norms(self._model):
            logits: Tensor = self._model(**model_inputs(self._model, self._batch)).logits
        silent = [layer.name for layer in self._layers if layer.module not in self._inputs]
        if silent:
            raise ValueError(f"layers {silent[:5]} did not run in the forward pass; expected all")
        return logits

    def backward(self, root: Tensor, gradient: Tensor, again: bool) -> None:
        """Every layer is consumed when this returns; `again`: and can be once more."""
        self._again = again
        self._behind = self._kept is not None  # the last attention: found out layer by layer
        torch.autograd.grad(root, [self._anchor], gradient, retain_graph=again)

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
            self._scales[module] = scale_of(module, inputs, output)
        # Kept as it is until the backward pass, so that no later input can take its address.
        self._inputs[module] = inputs
        if module is layer.module:
            # Query, key and value read one and the same input: what is made of it is shared.
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
        inputs, own = take(layer.module), self._deltas.pop(layer.module)
        source = self._sources[layer.module]
        with torch.no_grad():
            if self._behind:
                self._behind = not (tied or bool(own[~self._carrying].any()))
            mask = self._carrying
            if self._behind and self._kept is not None:
                own, mask = _taken(own, self._kept), mask.gather(1, self._kept)
            inputs = self._seen(layer, source, inputs)
            self._consume(layer.name, Trace(inputs, own, mask, tied, source))

    def _seen(self, layer: Layer, source: str, inputs: Tensor) -> Tensor:
        """Inputs as a trace has them; the last source's are kept for its next reader."""
        narrow = self._kept if self._behind else None
        if narrow is None and layer.module.bias is None:
            return inputs
        key = f"{source}{' narrow' if narrow is not None else ''}"
        if key not in self._extended:
            chosen = inputs if narrow is None else _taken(inputs, narrow)
            self._extended = {key: layer.extend(chosen)}
        return self._extended[key]


def _front(carrying: Tensor) -> Tensor | None:
    """For every row of [b, T] the positions that carry loss, then others up to a common number.

    None where that leaves out too little to pay.
    """
    count = int(carrying.sum(dim=1).max())
    if count > WORTH * carrying.shape[1]:
        return None
    return carrying.int().argsort(dim=1, descending=True, stable=True)[:, :count]


def _taken(values: Tensor, positions: Tensor) -> Tensor:
    """`values` [b, T, d] at `positions` [b, t]; whole rows are copied, which `gather` does not."""
    rows = positions + torch.arange(len(values), device=values.device)[:, None] * values.shape[1]
    return values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, positions.shape)


def scale_of(module: nn.Embedding, tokens: Tensor, output: Tensor) -> float:
    """What an embedding multiplies its rows by; ValueError where it does anything else to them."""
    scale = torch.as_tensor(getattr(module, "embed_scale", 1.0)).to(module.weight.dtype)
    rows = module.weight.detach()[tokens[:, :1]] * scale.to(module.weight.device)
    tolerance = 4 * torch.finfo(rows.dtype).eps * float(rows.abs().max())
    if scale.ndim or not bool((rows - output[:, :1].detach()).abs().max() <= tolerance):
        raise ValueError(
            f"the embedding, a {type(module).__name__}, gives more than rows of its weight; "
            "expected a table, or head = False"
        )
    return float(scale)


def head_gradient(
    head: nn.Linear, hidden: Tensor, batch: Batch, reduction: str, draw: int | None
) -> Tensor:
    """Gradient of the summed losses at the last hidden states, [b, T, d]."""
    mask = batch.carrying
    counts = mask.sum(dim=1, keepdim=True).double()
    weights = (1 / counts if reduction == "mean" else counts.new_ones(counts.shape)).expand_as(mask)
    uniform = None if draw is None else uniforms(batch, draw)
    labels = batch.labels[:, 1:][mask[:, :-1]]
    with torch.no_grad():
        states = hidden.detach()[mask]
        found = torch.zeros_like(hidden)
        found[mask] = hidden_gradients(head, states, labels, weights[mask], uniform)
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

    def work(lane: Lane, batch: Batch) -> None:
        def keep(name: str, trace: Trace) -> None:
            for rows, block in trace.gradients():
                found[name][torch.from_numpy(batch.positions[rows])] = block

        stream(lane.model, lane.layers, batch, options.loss, keep)

    spread(model, layers, pool, options, work, progress, "example gradients")
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

    def zeros() -> Gradients:
        weights = {layer: layer.module.weight.detach() for layer in layers}
        return {x.name: w.new_zeros(x.shape, dtype=wide(w.dtype)) for x, w in weights.items()}

    sums = Sums(zeros)

    def work(lane: Lane, batch: Batch) -> None:
        total = sums.of(lane.number)

        def add(name: str, trace: Trace) -> None:
            total[name] += weight * trace.total()

        stream(lane.model, lane.layers, batch, "mean", add)

    spread(model, layers, queries, options, work, progress, "query gradients")
    return sums.total()

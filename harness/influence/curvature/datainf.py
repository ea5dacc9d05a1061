"""DataInf (2310.00902): the inverse of a mean of rank-one matrices, by the mean of the inverses.

For every tracked layer l with d_l weights and the gradients g_i of n examples,

    H_l^-1 v  ~  1/n sum_i (lambda_l + g_i g_i^T)^-1 v
              =  1/n sum_i (v - (g_i^T v) / (lambda_l + |g_i|^2) g_i) / lambda_l

    lambda_l  =  damping * mean_i |g_i|^2 / d_l

exact for one example. The mean of |g_i|^2 / d_l is the mean eigenvalue of the layer's Fisher matrix
mean_i g_i g_i^T, so that damping means what it does for every other kind, and 0.1 is the paper's
choice. Made for LoRA adapters, whose layers are small; allowed for any.

- The paper takes the pool's own labels: fisher = "empirical". "true" draws them from the model.
- Fitting is one pass over the pool for |g_i|^2. Solving is another, for any number of directions:
  it needs the model at the same weights and the same pool, and keeps nothing per example.
- Example gradients are formed in bounded blocks where directions are many, and else not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from harness.influence.batches import batches, device_of
from harness.influence.curvature.base import Curvature
from harness.influence.curvature.covariance import groups
from harness.influence.gradients import stream
from harness.influence.kernels.matmul import linear, outer
from harness.influence.layers import evaluating, tracked_layers
from harness.influence.trace import FEW, Consumer, Trace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data.pool import Pool
    from harness.influence.batches import Progress
    from harness.influence.layers import Gradients, Layer
    from harness.influence.options import CurvatureOptions


@dataclass(frozen=True)
class DataInf(Curvature):
    """`squares`: layer -> mean squared length of an example's gradient, in double precision."""

    kind: ClassVar[str] = "datainf"
    squares: Mapping[str, Tensor]

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        pool: Pool,
        options: CurvatureOptions,
        *,
        progress: Progress | None = None,
    ) -> Self:
        """The mean squared length of the gradients of every layer."""
        layers = tracked_layers(model, options.layers, options.head)
        totals: dict[str, Tensor] = {}
        for layer in layers:
            totals[layer.name] = layer.module.weight.new_zeros((), dtype=torch.float64).detach()

        def add(name: str, trace: Trace) -> None:
            totals[name] += squared_lengths(trace).sum()

        for group in groups(layers, pool, options):
            _pass(model, group, pool, options, add, progress, "gradient lengths")
        shapes = {layer.name: layer.shape for layer in layers}
        squares = {name: total.cpu() / len(pool) for name, total in totals.items()}
        return cls(options, shapes, len(pool), squares)

    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """Never: a single layer cannot be solved from what is stored."""
        raise ValueError(
            f"layer {name!r}: datainf solves with a pass over the data; "
            "expected apply(gradients, model=..., pool=...)"
        )

    def damping_of(self, name: str) -> float:
        """lambda of a layer; ValueError where it is 0."""
        out, width = self.shapes[name]
        found = self.options.damping * float(self.squares[name]) / (out * width)
        if not found > 0:
            raise ValueError(
                f"layer {name!r}: the mean squared gradient is {float(self.squares[name])} and "
                f"damping {self.options.damping!r}; expected both above 0 (lora_A has no gradient "
                "while lora_B is 0)"
            )
        return found

    def _solved(
        self,
        gradients: Mapping[str, Tensor],
        model: nn.Module | None,
        pool: Pool | None,
        progress: Progress | None,
    ) -> Gradients:
        model, sample = self._refitted_on(model, pool)
        damping = {name: self.damping_of(name) for name in gradients}
        along = {
            name: part.detach().reshape(-1, *self.shapes[name]) for name, part in gradients.items()
        }
        found = {name: torch.zeros_like(part, dtype=torch.float64) for name, part in along.items()}

        def subtract(name: str, trace: Trace) -> None:
            _project(trace, along[name], damping[name], found[name])

        layers = tracked_layers(model, self.options.layers, self.options.head)
        for group in groups(layers, sample, self.options):
            _pass(model, group, sample, self.options, subtract, progress, "inverse curvature")
        for name, total in found.items():
            total.div_(-self.examples).add_(along[name]).div_(damping[name])
        return {name: found[name].to(part).view_as(part) for name, part in gradients.items()}

    def tensors(self) -> dict[str, Tensor]:
        """One number per layer."""
        return {f"{name}/square": square for name, square in self.squares.items()}

    @classmethod
    def restore(
        cls,
        options: CurvatureOptions,
        shapes: Mapping[str, tuple[int, int]],
        examples: int,
        tensors: Mapping[str, Tensor],
    ) -> Self:
        """The inverse of `tensors`."""
        squares = {name: tensors[f"{name}/square"] for name in shapes}
        return cls(options, shapes, examples, squares)


def squared_lengths(trace: Trace) -> Tensor:
    """|G_n|^2 of every example, [b], in double precision.

    From the products of positions with positions where that is less work than the gradients:
    |sum_t delta_t a_t^T|^2 = sum_st (delta_s . delta_t) (a_s . a_t).
    """
    tokens, out = trace.deltas.shape[1:]
    width = trace.inputs.shape[-1]
    if trace.embedded or tokens * (out + width) > out * width:
        blocks = [block.double().square().sum(dim=(1, 2)) for _, block in trace.gradients()]
        return torch.cat(blocks)
    deltas = trace.deltas @ trace.deltas.mT
    inputs = trace.inputs @ trace.inputs.mT
    return (deltas.double() * inputs.double()).sum(dim=(1, 2)).clamp(min=0)


def _project(trace: Trace, along: Tensor, damping: float, total: Tensor) -> None:
    """Adds sum_n <G_n, u_j> / (damping + |G_n|^2) G_n to `total` [k, out, in (+ 1)]."""
    along = along.to(trace.deltas)
    if len(along) <= FEW and not trace.embedded:
        weights = trace.along(along).double() / (damping + squared_lengths(trace))[:, None]
        for column, weight in zip(total, weights.to(trace.deltas).unbind(1), strict=True):
            column += outer(trace.deltas * weight[:, None, None], trace.inputs)
        return
    columns = along.flatten(1)
    for _, block in trace.gradients():
        rows = block.flatten(1)
        lengths = rows.square().sum(dim=1, dtype=torch.float64)
        weights = linear(rows, columns).double() / (damping + lengths)[:, None]
        total += linear(weights.to(rows).T, rows.T).view_as(total)


def _pass(
    model: nn.Module,
    layers: tuple[Layer, ...],
    pool: Pool,
    options: CurvatureOptions,
    consume: Consumer,
    progress: Progress | None,
    description: str,
) -> None:
    """One forward and backward pass over `pool`, with the labels that `options.fisher` asks for."""
    draw = options.seed if options.fisher == "true" else None
    with evaluating(model):
        for batch in batches(pool, options.batch_size, device_of(model), progress, description):
            stream(model, layers, batch, options.loss, consume, draw=draw)

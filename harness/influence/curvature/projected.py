"""The Fisher matrix of randomly projected gradients, full within each layer.

For every layer, P_A [r, in (+ 1)] and P_S [r', out] with orthonormal rows of random directions (a
Kronecker projection as in LoGra, 2405.13954; random projection of gradients as in TRAK,
2303.14186), `options.rank` rows each or as many as the side has:

    g_n = vec(P_S G_n P_A^T)        F = mean over examples of g_n g_n^T
    H^-1 V  ~  P_S^T [ (F + damping * mean eigenvalue of F)^-1 (P_S V P_A^T) ] P_A

Inputs and output gradients are projected before the sum over tokens, so that full gradients are
never formed. The direction stands in full space, where every way of scoring takes it. F holds
(r r')^2 entries per layer in double precision: 0.5 MB at rank 16, 134 MB at rank 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from harness.influence.batches import batches, device_of, seeded
from harness.influence.curvature.base import Curvature
from harness.influence.curvature.covariance import groups
from harness.influence.gradients import stream
from harness.influence.kernels.matmul import linear, outer, wide
from harness.influence.layers import evaluating, tracked_layers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data.pool import Pool
    from harness.influence.batches import Progress
    from harness.influence.layers import Layer
    from harness.influence.options import CurvatureOptions
    from harness.influence.trace import Trace


@dataclass(frozen=True)
class Projection:
    """One layer: orthonormal rows P_A = `inputs`, P_S = `outputs`, and the `fisher` matrix F.

    F is [r' r, r' r], rows of P_S first, in double precision.
    """

    inputs: Tensor
    outputs: Tensor
    fisher: Tensor


@dataclass(frozen=True)
class Projected(Curvature):
    """Damped Fisher matrices of projected gradients, one per layer."""

    kind: ClassVar[str] = "projected"
    projections: Mapping[str, Projection]
    _factors: dict[str, Tensor] = field(
        default_factory=dict, init=False, compare=False, repr=False, kw_only=True
    )

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        pool: Pool,
        options: CurvatureOptions,
        *,
        progress: Progress | None = None,
    ) -> Self:
        """One pass over the pool, or one for every group of layers where memory is limited."""
        layers = tracked_layers(model, options.layers, options.head)
        found: dict[str, Projection] = {}
        for group in groups(layers, pool, options, lambda layer: held(layer, options.rank)):
            found |= _fit(model, group, pool, options, progress)
        shapes = {layer.name: layer.shape for layer in layers}
        return cls(options, shapes, len(pool), found)

    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """Project, solve, and take the solution back into the full space."""
        projection, factor = self.projections[name], self._factor(name).to(gradient.device)
        inputs, outputs = (
            side.to(device=gradient.device, dtype=wide(gradient.dtype))
            for side in (projection.inputs, projection.outputs)
        )
        small = outputs @ gradient.to(wide(gradient.dtype)) @ inputs.T
        columns = small.reshape(-1, small.shape[-2] * small.shape[-1]).double()
        solved = torch.cholesky_solve(columns.T, factor).T.reshape(small.shape)
        return outputs.T @ solved.to(wide(gradient.dtype)) @ inputs

    def _factor(self, name: str) -> Tensor:
        """Cholesky factor of the damped Fisher matrix, formed once."""
        if name not in self._factors:
            fisher = self.projections[name].fisher
            damped = fisher.clone()
            damped.diagonal().add_(self.options.damping * fisher.diagonal().mean())
            factor, failed = torch.linalg.cholesky_ex(damped)
            rounding = len(fisher) * torch.finfo(fisher.dtype).eps * fisher.diagonal().max()
            if failed or not bool((factor.diagonal().square() > rounding).all()):
                raise ValueError(
                    f"layer {name!r}: the projected Fisher matrix is singular with damping "
                    f"{self.options.damping!r}; expected a higher damping, a lower rank, or a "
                    "layer that the loss depends on"
                )
            self._factors[name] = factor
        return self._factors[name]

    def tensors(self) -> dict[str, Tensor]:
        """Three matrices per layer."""
        return {
            f"{name}/{side}": getattr(projection, side)
            for name, projection in self.projections.items()
            for side in ("inputs", "outputs", "fisher")
        }

    @classmethod
    def restore(
        cls,
        options: CurvatureOptions,
        shapes: Mapping[str, tuple[int, int]],
        examples: int,
        tensors: Mapping[str, Tensor],
    ) -> Self:
        """The inverse of `tensors`."""
        projections = {
            name: Projection(
                *(tensors[f"{name}/{side}"] for side in ("inputs", "outputs", "fisher"))
            )
            for name in shapes
        }
        return cls(options, shapes, examples, projections)


def held(layer: Layer, rank: int) -> int:
    """Bytes that fitting a layer holds for itself."""
    out, width = layer.shape
    rows, columns = min(rank, out), min(rank, width)
    size: int = layer.module.weight.element_size()
    return 8 * (rows * columns) ** 2 + size * (rows * out + columns * width)


def projections(layer: Layer, options: CurvatureOptions) -> tuple[Tensor, Tensor]:
    """P_A and P_S, from `options.seed` and the layer's name; single precision or up."""
    weight = layer.module.weight
    dtype = wide(weight.dtype)
    sides = []
    for side, size in zip(("outputs", "inputs"), layer.shape, strict=True):
        generator = seeded(options.seed, f"{layer.name}/{side}")
        normal = torch.randn(
            size, min(options.rank, size), generator=generator, dtype=torch.float64
        )
        sides.append(torch.linalg.qr(normal)[0].T.to(device=weight.device, dtype=dtype))
    return sides[1], sides[0]


def _fit(
    model: nn.Module,
    layers: tuple[Layer, ...],
    pool: Pool,
    options: CurvatureOptions,
    progress: Progress | None,
) -> dict[str, Projection]:
    sides = {layer.name: projections(layer, options) for layer in layers}
    sums = {
        name: inputs.new_zeros(2 * (len(inputs) * len(outputs),), dtype=torch.float64)
        for name, (inputs, outputs) in sides.items()
    }

    def add(name: str, trace: Trace) -> None:
        inputs, outputs = sides[name]
        if trace.embedded:
            parts = (outputs @ block.to(inputs.dtype) @ inputs.T for _, block in trace.gradients())
            found = torch.cat([part.flatten(1) for part in parts])
        else:
            right = linear(trace.inputs.to(inputs.dtype), inputs)
            left = linear(trace.deltas.to(outputs.dtype), outputs)
            found = (left.transpose(1, 2) @ right).flatten(1)
        sums[name].add_(outer(found, found))

    draw = options.seed if options.fisher == "true" else None
    with evaluating(model):
        for batch in batches(
            pool, options.batch_size, device_of(model), progress, "projected gradients"
        ):
            stream(model, layers, batch, options.loss, add, draw=draw)
    return {name: Projection(*sides[name], total.div_(len(pool))) for name, total in sums.items()}

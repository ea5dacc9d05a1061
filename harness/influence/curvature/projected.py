"""The Fisher matrix of randomly projected gradients, full within each layer.

For every layer, P_A [r, in (+ 1)] and P_S [r', out] with orthonormal rows of random directions (a
Kronecker projection as in LoGra, 2405.13954; random projection of gradients as in TRAK,
2303.14186), `options.rank` rows each or as many as the side has:

    g_n = vec(P_S G_n P_A^T)        F = mean over examples of g_n g_n^T
    H^-1 V  ~  P_S^T [ (F + damping * mean eigenvalue of F)^-1 (P_S V P_A^T) ] P_A

Inputs and output gradients are projected before the sum over tokens, so that full gradients are
never formed. Solutions are in the full space, where every way of scoring takes them. F holds
(r r')^2 entries per layer in double precision: 0.5 MB at rank 16, 134 MB at rank 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from harness.influence.batches import batches, device_of, seeded
from harness.influence.curvature.base import Curvature
from harness.influence.gradients import Trace, stream
from harness.influence.layers import evaluating, wide

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data.pool import Pool
    from harness.influence.batches import Progress
    from harness.influence.layers import Layer, Layers
    from harness.influence.options import CurvatureOptions


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
    part: ClassVar[type] = Projection
    parts: Mapping[str, Projection]
    _factors: dict[str, Tensor] = field(
        default_factory=dict, init=False, compare=False, repr=False, kw_only=True
    )

    @classmethod
    def _fit(
        cls,
        model: nn.Module,
        layers: Layers,
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
                blocks = (block.to(inputs.dtype) for _, block in trace.gradients())
                projected = torch.cat([(outputs @ x @ inputs.T).flatten(1) for x in blocks])
            else:
                right = trace.inputs.to(inputs.dtype) @ inputs.T
                left = trace.deltas.to(outputs.dtype) @ outputs.T
                projected = (left.mT @ right).flatten(1)
            sums[name].add_(projected.T @ projected)

        device, description = device_of(model), "projected gradients"
        with evaluating(model):
            for batch in batches(pool, options.batch_size, device, progress, description):
                stream(model, layers, batch, options.loss, add, draw=options.label_seed)
        return {name: Projection(*sides[name], x.div_(len(pool))) for name, x in sums.items()}

    @classmethod
    def held(cls, layer: Layer, options: CurvatureOptions) -> int:
        """The sum of projected gradients in double precision, and the projections."""
        out, width = layer.shape
        rows, columns = min(options.rank, out), min(options.rank, width)
        size: int = layer.module.weight.element_size()
        return 8 * (rows * columns) ** 2 + size * (rows * out + columns * width)

    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """Project, solve, and take the solution back into the full space."""
        projection, factor = self.parts[name], self._factor(name).to(gradient.device)
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
            fisher = self.parts[name].fisher
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

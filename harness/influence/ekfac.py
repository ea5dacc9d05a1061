"""EK-FAC: the Gauss-Newton matrix of a linear layer in a Kronecker eigenbasis (2308.03296).

For every tracked layer, with a the layer's input (1 appended for a bias) and delta the gradient of
an example's loss with respect to the layer's output:

    A = mean of a a^T,  S = mean of delta delta^T     over all loss-carrying positions of the pool
    A = Q_A diag Q_A^T,  S = Q_S diag Q_S^T
    Lambda_ij = mean over examples n of (Q_S^T G_n Q_A)_ij^2
    H^-1 V  ~  Q_S [ (Q_S^T V Q_A) / (Lambda + damping * mean Lambda) ] Q_A^T

- Loss-carrying positions are those that predict a response token. Prompt positions, though their
  keys and values pass gradients, and padding stay out of A and S. G_n is the full gradient of the
  example (see gradients.py), so Lambda knows of every path to the loss.
- fisher = "true": the loss is that of labels drawn from the model at each position. "empirical": of
  the pool's own labels.
- G_n and delta belong to the loss of `options.loss`. For the mean over T_n tokens the expected G_n
  G_n^T is 1/T_n times the Gauss-Newton matrix of that loss: between examples of equal length a
  common factor (which cancels in the ranking, damping being relative), between unequal ones a
  lighter weight for the longer. For the sum over tokens it is that matrix exactly.
- Two passes of forward and backward over the pool, with the same labels; sums in double precision.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from harness.influence.batches import batches, device_of, sampled_labels
from harness.influence.curvature import Curvature
from harness.influence.gradients import traces
from harness.influence.layers import evaluating, tracked_layers
from harness.influence.options import CurvatureOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from harness.influence.batches import Batch, Progress
    from harness.influence.gradients import Trace
    from harness.influence.layers import Layer
    from harness.pool import Pool


@dataclass(frozen=True)
class Basis:
    """One layer: eigenvectors as columns of `inputs` and `outputs`, `eigenvalues` = Lambda."""

    inputs: Tensor
    outputs: Tensor
    eigenvalues: Tensor


@dataclass(frozen=True)
class EKFAC(Curvature):
    """Eigenvalue-corrected Kronecker factors, one basis per layer."""

    kind: ClassVar[str] = "ekfac"
    bases: Mapping[str, Basis]

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        pool: Pool,
        options: CurvatureOptions,
        *,
        progress: Progress | None = None,
    ) -> Self:
        """Covariances, their eigenvectors, then Lambda."""
        layers = tracked_layers(model, options.layers, options.head)
        factors = covariances(model, pool, options, progress=progress)
        rotations = {}
        for layer in layers:
            dtype = layer.module.weight.dtype
            inputs, outputs = (torch.linalg.eigh(factor)[1] for factor in factors[layer.name])
            rotations[layer.name] = (inputs.to(dtype), outputs.to(dtype))
        eigenvalues = _corrected(model, layers, pool, options, rotations, progress)
        bases = {
            layer.name: Basis(*rotations[layer.name], eigenvalues[layer.name]) for layer in layers
        }
        shapes = {layer.name: layer.shape for layer in layers}
        return cls(options, shapes, len(pool), bases)

    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """Rotate, divide by the damped eigenvalues, rotate back."""
        basis = self.bases[name]
        inputs, outputs, eigenvalues = (
            tensor.to(gradient.device)
            for tensor in (basis.inputs, basis.outputs, basis.eigenvalues)
        )
        damped = eigenvalues + self.options.damping * eigenvalues.mean()
        rounding = torch.finfo(eigenvalues.dtype).eps * eigenvalues.max()
        if not bool((damped > (0 if self.options.damping else rounding)).all()):
            raise ValueError(
                f"layer {name!r}: corrected eigenvalues of 0 with damping "
                f"{self.options.damping!r} cannot be inverted; expected a higher damping, or a "
                "layer that the loss depends on"
            )
        rotated = outputs.T @ gradient @ inputs
        return outputs @ (rotated / damped) @ inputs.T

    def tensors(self) -> dict[str, Tensor]:
        """Three matrices per layer."""
        return {
            f"{name}/{field}": getattr(basis, field)
            for name, basis in self.bases.items()
            for field in ("inputs", "outputs", "eigenvalues")
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
        bases = {
            name: Basis(
                tensors[f"{name}/inputs"],
                tensors[f"{name}/outputs"],
                tensors[f"{name}/eigenvalues"],
            )
            for name in shapes
        }
        return cls(options, shapes, examples, bases)


def covariances(
    model: nn.Module, pool: Pool, options: CurvatureOptions, *, progress: Progress | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """A [in (+ 1), in (+ 1)] and S [out, out] of every tracked layer, in double precision."""
    layers = tracked_layers(model, options.layers, options.head)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in layers:
        out, width = layer.shape
        empty = layer.module.weight.detach().new_zeros((), dtype=torch.float64)
        sums[layer.name] = (empty.new_zeros(width, width), empty.new_zeros(out, out))
    positions = 0
    for batch, found in _pass(model, layers, pool, options, progress, "covariances"):
        mask = batch.carrying
        positions += int(mask.sum())
        products: dict[int, Tensor] = {}  # layers that read the same input share its product
        for name, trace in found.items():
            if id(trace.inputs) not in products:
                inputs = trace.inputs[mask]
                products[id(trace.inputs)] = inputs.T @ inputs
            deltas = trace.deltas[mask]
            sums[name][0].add_(products[id(trace.inputs)])
            sums[name][1].add_(deltas.T @ deltas)
    return {name: (a / positions, s / positions) for name, (a, s) in sums.items()}


def _corrected(
    model: nn.Module,
    layers: tuple[Layer, ...],
    pool: Pool,
    options: CurvatureOptions,
    rotations: Mapping[str, tuple[Tensor, Tensor]],
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Lambda [out, in (+ 1)] of every layer: mean square of the rotated example gradients."""
    sums = {
        layer.name: layer.module.weight.detach().new_zeros(layer.shape, dtype=torch.float64)
        for layer in layers
    }
    for _, found in _pass(model, layers, pool, options, progress, "eigenvalues"):
        for name, trace in found.items():
            inputs, outputs = rotations[name]
            for _, block in trace.rotated(outputs, inputs):
                sums[name].add_(block.square_().sum(dim=0))
    dtype = {layer.name: layer.module.weight.dtype for layer in layers}
    return {name: (total / len(pool)).to(dtype[name]) for name, total in sums.items()}


def _pass(
    model: nn.Module,
    layers: tuple[Layer, ...],
    pool: Pool,
    options: CurvatureOptions,
    progress: Progress | None,
    description: str,
) -> Iterator[tuple[Batch, dict[str, Trace]]]:
    """One forward and backward pass with the labels that `options.fisher` asks for."""
    labeller = (
        functools.partial(sampled_labels, seed=options.seed) if options.fisher == "true" else None
    )
    with evaluating(model):
        for batch in batches(pool, options.batch_size, device_of(model), progress, description):
            yield batch, traces(model, layers, batch, options.loss, labeller)

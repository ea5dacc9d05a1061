"""Kronecker-factored curvature: K-FAC, EK-FAC (2308.03296) and the diagonal of the Fisher matrix.

For every tracked layer, with a the layer's input (1 appended for a bias) and delta the gradient of
an example's loss with respect to the layer's output:

    A = mean of a a^T,  S = mean of delta delta^T     over all loss-carrying positions
    A = Q_A diag(alpha) Q_A^T,  S = Q_S diag(sigma) Q_S^T
    H^-1 V  ~  Q_S [ (Q_S^T V Q_A) / (Lambda + damping * mean Lambda) ] Q_A^T

    kfac      Lambda_ij = mean length * sigma_i alpha_j
    ekfac     Lambda_ij = mean over examples n of (Q_S^T G_n Q_A)_ij^2
    diagonal  the same with Q_S = Q_A = 1

- Loss-carrying positions are those that predict a response token. Prompt positions, though their
  keys and values pass gradients, and padding stay out of A and S. G_n is the full gradient of the
  example (see gradients.py), so that ekfac's Lambda knows of every path to the loss.
- fisher = "true": the loss is that of labels drawn from the model at each position. "empirical": of
  the pool's own labels.
- G_n and delta belong to the loss of `options.loss`. For the mean over T_n tokens the expected G_n
  G_n^T is 1/T_n times the Gauss-Newton matrix of that loss: between examples of equal length a
  common factor (which cancels in the ranking, damping being relative), between unequal ones a
  lighter weight for the longer. For the sum over tokens it is that matrix exactly.
- Sums are in double precision; what is kept and solved with is in single or up. A and S take one
  pass of forward and backward over `options.basis_sample` examples: eigenvectors need far fewer
  than eigenvalues. ekfac's Lambda takes one pass over the whole pool, with the same labels; a
  small sample is seen once for both (see covariance.py).
- `options.memory_gib` fits groups of layers one after the other, each with passes of its own.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from harness.influence.curvature.base import Curvature
from harness.influence.curvature.covariance import (
    Kept,
    Layers,
    basis_sample,
    factors,
    groups,
    is_kept,
    stream_labelled,
)
from harness.influence.head import HALF
from harness.influence.kernels.lanes import Lane, Sums, spread
from harness.influence.kernels.matmul import linear, products, wide
from harness.influence.layers import tracked_layers
from harness.influence.options import CurvatureOptions
from harness.influence.trace import rows_at_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from harness.data.pool import Pool
    from harness.influence.batches import Batch, Progress
    from harness.influence.trace import Consumer, Trace


AT_ONCE = 4
"""Decompositions side by side on a GPU."""


@dataclass(frozen=True)
class Basis:
    """One layer: eigenvectors as columns of `inputs` and `outputs` (None: the identity).

    `eigenvalues`: Lambda, [out, in (+ 1)].
    """

    inputs: Tensor | None
    outputs: Tensor | None
    eigenvalues: Tensor

    def to(self, matrix: Tensor) -> Basis:
        """The same on the device and in the precision of `matrix`."""
        like = {"device": matrix.device, "dtype": matrix.dtype}
        inputs, outputs = (q if q is None else q.to(**like) for q in (self.inputs, self.outputs))
        return Basis(inputs, outputs, self.eigenvalues.to(**like))


@dataclass(frozen=True)
class Kronecker(Curvature):
    """Damped eigenvalues in a basis of products of eigenvectors, one basis per layer."""

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
        """The bases of all layers, group by group where memory is limited."""
        layers = tracked_layers(model, options.layers, options.head)
        bases: dict[str, Basis] = {}
        for group in groups(layers, pool, options):
            bases |= cls._fit(model, group, pool, options, progress)
        shapes = {layer.name: layer.shape for layer in layers}
        return cls(options, shapes, len(pool), bases)

    @classmethod
    @abc.abstractmethod
    def _fit(
        cls,
        model: nn.Module,
        layers: Layers,
        pool: Pool,
        options: CurvatureOptions,
        progress: Progress | None,
    ) -> dict[str, Basis]:
        """The bases of some layers."""

    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """Rotate, divide by the damped eigenvalues, rotate back."""
        gradient = gradient.to(wide(gradient.dtype))
        basis = self.bases[name].to(gradient)
        damped = self.damped(name).to(gradient)
        inputs, outputs = basis.inputs, basis.outputs
        if inputs is None or outputs is None:
            return gradient / damped
        return outputs @ ((outputs.T @ gradient @ inputs) / damped) @ inputs.T

    def damped(self, name: str) -> Tensor:
        """Lambda plus damping, [out, in (+ 1)]; ValueError where it cannot be inverted."""
        eigenvalues = self.bases[name].eigenvalues
        damped = eigenvalues + self.options.damping * eigenvalues.mean()
        rounding = torch.finfo(eigenvalues.dtype).eps * eigenvalues.max()
        if not bool((damped > (0 if self.options.damping else rounding)).all()):
            raise ValueError(
                f"layer {name!r}: eigenvalues of 0 with damping {self.options.damping!r} cannot be "
                "inverted; expected a higher damping, or a layer that the loss depends on"
            )
        return damped

    def tensors(self) -> dict[str, Tensor]:
        """Up to three matrices per layer."""
        return {
            f"{name}/{field}": getattr(basis, field)
            for name, basis in self.bases.items()
            for field in ("inputs", "outputs", "eigenvalues")
            if getattr(basis, field) is not None
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
                tensors.get(f"{name}/inputs"),
                tensors.get(f"{name}/outputs"),
                tensors[f"{name}/eigenvalues"],
            )
            for name in shapes
        }
        return cls(options, shapes, examples, bases)


@dataclass(frozen=True)
class EKFAC(Kronecker):
    """Eigenvalue-corrected Kronecker factors."""

    kind: ClassVar[str] = "ekfac"

    @classmethod
    def _fit(
        cls,
        model: nn.Module,
        layers: Layers,
        pool: Pool,
        options: CurvatureOptions,
        progress: Progress | None,
    ) -> dict[str, Basis]:
        sample = basis_sample(layers, pool, options)
        kept: Kept | None = {} if is_kept(layers, sample, options) else None
        found = factors(model, layers, sample, options, kept=kept, progress=progress)
        dtypes = {layer.name: layer.module.weight.dtype for layer in layers}
        sides = [(x, dtypes[name]) for name, f in found.items() for x in (f.inputs, f.outputs)]
        vectors = decomposed(sides)
        rotations: dict[str, tuple[Tensor, Tensor] | None] = {
            name: (vectors[id(factor.inputs)], vectors[id(factor.outputs)])
            for name, factor in found.items()
        }
        del sides, found
        values = _corrected(model, layers, pool, options, rotations, progress, sample, kept)
        bases: dict[str, Basis] = {}
        for name, rotation in rotations.items():
            inputs, outputs = rotation or (None, None)
            bases[name] = Basis(inputs, outputs, values[name])
        return bases


@dataclass(frozen=True)
class KFAC(Kronecker):
    """Kronecker factors with the products of their own eigenvalues."""

    kind: ClassVar[str] = "kfac"

    @classmethod
    def _fit(
        cls,
        model: nn.Module,
        layers: Layers,
        pool: Pool,
        options: CurvatureOptions,
        progress: Progress | None,
    ) -> dict[str, Basis]:
        bases = {}
        sample = basis_sample(layers, pool, options)
        for name, factor in factors(model, layers, sample, options, progress=progress).items():
            alpha, inputs = torch.linalg.eigh(factor.inputs)
            sigma, outputs = torch.linalg.eigh(factor.outputs)
            values = factor.length * sigma.clamp(min=0)[:, None] * alpha.clamp(min=0)
            bases[name] = Basis(*(tensor.to(factor.dtype) for tensor in (inputs, outputs, values)))
        return bases


@dataclass(frozen=True)
class Diagonal(Kronecker):
    """The diagonal of the Fisher matrix: mean squares of the example gradients."""

    kind: ClassVar[str] = "diagonal"

    @classmethod
    def _fit(
        cls,
        model: nn.Module,
        layers: Layers,
        pool: Pool,
        options: CurvatureOptions,
        progress: Progress | None,
    ) -> dict[str, Basis]:
        unrotated: dict[str, tuple[Tensor, Tensor] | None] = {layer.name: None for layer in layers}
        values = _corrected(model, layers, pool, options, unrotated, progress)
        return {name: Basis(None, None, value) for name, value in values.items()}


def decomposed(covariances: Sequence[tuple[Tensor, torch.dtype]]) -> dict[int, Tensor]:
    """Eigenvectors by the `id` of a covariance, in the precision beside it: of a shared one once.

    On a GPU, which no single decomposition fills, several at a time: of 4,864 dimensions in single
    precision one takes an H200 0.18 s, four together 0.46 s (0.21 s each in double precision).
    """
    distinct = {id(matrix): (matrix, dtype) for matrix, dtype in covariances}
    if covariances[0][0].device.type != "cuda":
        return {key: eigenvectors(*given) for key, given in distinct.items()}
    # The first call loads the library, which torch must not be asked for by two threads at once.
    torch.linalg.eigh(torch.eye(2, device=covariances[0][0].device))
    torch.cuda.synchronize()

    def aside(given: tuple[Tensor, torch.dtype]) -> Tensor:
        stream = torch.cuda.Stream(given[0].device)
        with torch.cuda.stream(stream):
            found = eigenvectors(*given)
            stream.synchronize()
        return found

    with ThreadPoolExecutor(AT_ONCE) as workers:
        return dict(zip(distinct, workers.map(aside, distinct.values()), strict=True))


def eigenvectors(covariance: Tensor, dtype: torch.dtype) -> Tensor:
    """Eigenvectors of a covariance in double precision, as columns in `dtype`.

    Those that are kept in 16 bits are found in single precision, whose errors that rounding hides;
    small numbers are scaled up before, and what does not converge so is done in double.
    """
    scale = covariance.diagonal().max()
    if dtype in HALF and bool(scale > 0):
        try:
            return torch.linalg.eigh((covariance / scale).float())[1].to(dtype)
        except torch.linalg.LinAlgError:
            pass
    return torch.linalg.eigh(covariance)[1].to(dtype)


def _corrected(
    model: nn.Module,
    layers: Layers,
    pool: Pool,
    options: CurvatureOptions,
    rotations: Mapping[str, tuple[Tensor, Tensor] | None],
    progress: Progress | None,
    sample: Pool | None = None,
    kept: Kept | None = None,
) -> dict[str, Tensor]:
    """Lambda [out, in (+ 1)] of every layer: mean square of the rotated example gradients.

    `kept`: traces of all examples of `sample`, which then need no second pass.
    """

    def zeros() -> dict[str, Tensor]:
        like = {layer.name: layer.module.weight.detach() for layer in layers}
        return {
            layer.name: like[layer.name].new_zeros(layer.shape, dtype=torch.float64)
            for layer in layers
        }

    sums = Sums(zeros)

    def work(lane: Lane, batch: Batch) -> None:
        stream_labelled(lane, batch, options, _adder(sums.of(lane.number), rotations))

    rest = pool
    if sample is not None and kept is not None:
        done = set(sample.ids)
        rest = pool.take([i for i, name in enumerate(pool.ids) if name not in done])
        for number in sorted(kept):
            for traces in kept.pop(number):
                add = _adder(sums.of(0), rotations)
                for name, trace in traces.items():
                    add(name, trace)
    spread(model, layers, rest, options, work, progress, "eigenvalues")
    dtype = {layer.name: wide(layer.module.weight.dtype) for layer in layers}
    return {name: (total / len(pool)).to(dtype[name]) for name, total in sums.total().items()}


def _adder(
    total: Mapping[str, Tensor], rotations: Mapping[str, tuple[Tensor, Tensor] | None]
) -> Consumer:
    """Adds squares of the rotated gradients of one batch, layer by layer, to `total`."""
    turned: dict[str, Tensor] = {}

    def add(name: str, trace: Trace) -> None:
        for block in rotated(trace, rotations[name], turned):
            total[name].add_(block.square_().sum(dim=0, dtype=wide(block.dtype)))

    return add


def rotated(
    trace: Trace, rotation: tuple[Tensor, Tensor] | None, turned: dict[str, Tensor]
) -> Iterator[Tensor]:
    """Blocks of Q_S^T G_n Q_A, each side turned before or after the sum over tokens.

    Before costs tokens x width^2 a side, after costs rows x columns x width: by the shorter of
    tokens and the other dimension. `turned` keeps the turned inputs of the last source.
    """
    if rotation is None:
        yield from (block for _, block in trace.gradients())
        return
    inputs, outputs = (side.to(trace.inputs.dtype) for side in rotation)
    if trace.embedded:
        yield from (outputs.T @ block @ inputs for _, block in trace.gradients())
        return
    tokens, out = trace.deltas.shape[1:]
    early_inputs, early_outputs = tokens <= 2 * out, tokens <= 2 * trace.inputs.shape[-1]
    right = trace.inputs
    if early_inputs:
        key = f"{trace.source} of {trace.inputs.shape[1]}"
        if key not in turned:
            turned.clear()
            turned[key] = linear(trace.inputs, inputs.T)
        right = turned[key]
    left = linear(trace.deltas, outputs.T) if early_outputs else trace.deltas
    step = rows_at_once(out * right.shape[-1], left.device)
    for start in range(0, len(left), step):
        block = products(left[start : start + step], right[start : start + step])
        if not early_inputs:
            block = linear(block, inputs.T)
        yield block if early_outputs else outputs.T @ block

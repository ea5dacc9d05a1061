"""EK-FAC: Kronecker-factored curvature with corrected eigenvalues (2308.03296).

For every tracked layer, with a the layer's input (1 appended for a bias) and delta the gradient of
an example's loss with respect to the layer's output:

    A = mean of a a^T,  S = mean of delta delta^T     over all loss-carrying positions
    A = Q_A diag(alpha) Q_A^T,  S = Q_S diag(sigma) Q_S^T
    Lambda_ij = mean over examples n of (Q_S^T G_n Q_A)_ij^2
    H^-1 V  ~  Q_S [ (Q_S^T V Q_A) / (Lambda + damping * mean Lambda) ] Q_A^T

- Loss-carrying positions are those that predict a response token. Prompt positions, though their
  keys and values pass gradients, and padding stay out of A and S. G_n is the full gradient of the
  example (see gradients.py), so that Lambda includes every path to the loss.
- fisher = "true": the loss is that of labels sampled from the model at each position. "empirical":
  of the pool's own labels.
- G_n and delta belong to the loss of `options.loss`. For the mean over T_n tokens the expected G_n
  G_n^T is 1/T_n times the Gauss-Newton matrix of that loss: between examples of equal length a
  common factor (which cancels in the ranking, damping being relative), between unequal ones a
  lighter weight for the longer. For the sum over tokens it is that matrix exactly.
- Sums are in double precision; what is stored and solved with is in single or better. A and S take
  one forward and backward pass over `options.basis_sample` examples: eigenvectors need far fewer
  than eigenvalues. Lambda takes one pass over the whole pool, with the same labels.
- `options.memory_gib` fits groups of layers one after the other, each with passes of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from harness.data.pool import IGNORED, Pool, drawn
from harness.influence.batches import batches, device_of
from harness.influence.curvature.base import Curvature
from harness.influence.gradients import Consumer, Trace, rows_at_once, stream
from harness.influence.layers import Layer, Layers, evaluating, wide
from harness.influence.options import FEWEST, POSITIONS_PER_DIMENSION, CurvatureOptions

if TYPE_CHECKING:
    from harness.influence.batches import Progress

AT_ONCE = 4
"""Eigendecompositions side by side on a GPU."""

Rotations = Mapping[str, tuple[Tensor, Tensor]]
"""Layer -> Q_A and Q_S, eigenvectors as columns."""


@dataclass(frozen=True)
class Basis:
    """One layer: eigenvectors as columns of `inputs` and `outputs`; `eigenvalues` Lambda."""

    inputs: Tensor
    outputs: Tensor
    eigenvalues: Tensor

    def to(self, matrix: Tensor) -> Basis:
        """The same on the device and in the precision of `matrix`."""
        return Basis(*(part.to(matrix) for part in (self.inputs, self.outputs, self.eigenvalues)))


@dataclass(frozen=True)
class EKFAC(Curvature):
    """Damped eigenvalues in a basis of products of eigenvectors, one basis per layer."""

    kind: ClassVar[str] = "ekfac"
    part: ClassVar[type] = Basis
    parts: Mapping[str, Basis]

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
        covariances = factors(model, layers, sample, options, progress=progress)
        dtypes = {layer.name: layer.module.weight.dtype for layer in layers}
        sides = [
            (x, dtypes[name]) for name, f in covariances.items() for x in (f.inputs, f.outputs)
        ]
        vectors = decomposed(sides)
        rotations = {
            name: (vectors[id(factor.inputs)], vectors[id(factor.outputs)])
            for name, factor in covariances.items()
        }
        del sides, covariances
        eigenvalues = _corrected(model, layers, pool, options, rotations, progress)
        return {name: Basis(*sides, eigenvalues[name]) for name, sides in rotations.items()}

    @classmethod
    def held(cls, layer: Layer, options: CurvatureOptions) -> int:
        """Sums in double precision, and eigenvectors."""
        out, width = layer.shape
        entries = out * out + width * width + out * width
        return (8 + int(layer.module.weight.element_size())) * entries

    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """Rotate, divide by the damped eigenvalues, rotate back."""
        gradient = gradient.to(wide(gradient.dtype))
        basis = self.parts[name].to(gradient)
        damped = self.damped(name).to(gradient)
        inputs, outputs = basis.inputs, basis.outputs
        return outputs @ ((outputs.T @ gradient @ inputs) / damped) @ inputs.T

    def damped(self, name: str) -> Tensor:
        """Lambda plus damping, [out, in (+ 1)]; ValueError where it cannot be inverted."""
        eigenvalues = self.parts[name].eigenvalues
        damped = eigenvalues + self.options.damping * eigenvalues.mean()
        rounding = torch.finfo(eigenvalues.dtype).eps * eigenvalues.max()
        if not bool((damped > (0 if self.options.damping else rounding)).all()):
            raise ValueError(
                f"layer {name!r}: eigenvalues of 0 with damping {self.options.damping!r} cannot be "
                "inverted; expected a higher damping, or a layer that the loss depends on"
            )
        return damped


@dataclass(frozen=True)
class Factors:
    """A [in (+ 1), in (+ 1)] and S [out, out] of a layer, in double precision.

    Layers that read the same input share one A.
    """

    inputs: Tensor
    outputs: Tensor


def factors(
    model: nn.Module,
    layers: Layers,
    sample: Pool,
    options: CurvatureOptions,
    *,
    progress: Progress | None = None,
) -> dict[str, Factors]:
    """Covariances of every layer's inputs and output gradients over `sample`."""
    readers: dict[str, str] = {}  # layer -> the first layer that reads the same input
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for layer in layers:
        out, width = layer.shape
        empty = layer.module.weight.detach().new_zeros((), dtype=torch.float64)
        inputs[layer.name] = empty.new_zeros(width, width)
        outputs[layer.name] = empty.new_zeros(out, out)

    def add(carrying: Tensor, name: str, trace: Trace) -> None:
        readers[name] = trace.source
        if trace.source == name:
            states = trace.inputs[carrying]
            inputs[name].add_(states.T @ states)
        deltas = trace.deltas[carrying]
        outputs[name].add_(deltas.T @ deltas)

    with evaluating(model):
        for batch in batches(sample, options.batch_size, device_of(model), progress, "covariances"):
            consume = partial(add, batch.carrying)
            stream(model, layers, batch, options.loss, consume, draw=options.label_seed)
    positions = sum(int((labels[1:] != IGNORED).sum()) for labels in sample.labels)
    for matrix in (*inputs.values(), *outputs.values()):
        matrix.div_(positions)
    return {x.name: Factors(inputs[readers[x.name]], outputs[x.name]) for x in layers}


def basis_sample(layers: Layers, pool: Pool, options: CurvatureOptions) -> Pool:
    """The examples of `pool` that the eigenvectors of `layers` are taken from."""
    return drawn(pool, basis_examples(layers, pool, options), options.seed + 1)


def basis_examples(layers: Layers, pool: Pool, options: CurvatureOptions) -> int:
    """How many examples of `pool` the eigenvectors of `layers` are taken from."""
    if options.basis_sample is None:
        return len(pool)
    if options.basis_sample != "auto":
        return min(options.basis_sample, len(pool))
    widest = max(max(layer.shape) for layer in layers)
    needed = POSITIONS_PER_DIMENSION * widest / float(pool.response_lengths.mean())
    return min(len(pool), max(FEWEST, int(np.ceil(needed))))


def decomposed(covariances: Sequence[tuple[Tensor, torch.dtype]]) -> dict[int, Tensor]:
    """Eigenvectors as columns, by the `id` of a covariance, in the precision beside it.

    Covariances that layers share are decomposed once. On a GPU, which no single decomposition
    fills, several at a time: of 4,864 dimensions one took an H200 0.18 s, four together 0.46 s.
    """
    distinct = {id(matrix): (matrix, dtype) for matrix, dtype in covariances}
    if covariances[0][0].device.type != "cuda":
        return {key: torch.linalg.eigh(x)[1].to(dtype) for key, (x, dtype) in distinct.items()}
    # The first call loads the library, which fails if two threads ask for it at once.
    torch.linalg.eigh(torch.eye(2, device=covariances[0][0].device))
    torch.cuda.synchronize()

    def on_a_stream(pair: tuple[Tensor, torch.dtype]) -> Tensor:
        stream = torch.cuda.Stream(pair[0].device)
        with torch.cuda.stream(stream):
            vectors = torch.linalg.eigh(pair[0])[1].to(pair[1])
            stream.synchronize()
        return vectors

    with ThreadPoolExecutor(AT_ONCE) as workers:
        return dict(zip(distinct, workers.map(on_a_stream, distinct.values()), strict=True))


def _corrected(
    model: nn.Module,
    layers: Layers,
    pool: Pool,
    options: CurvatureOptions,
    rotations: Rotations,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Lambda [out, in (+ 1)] of every layer: mean square of the rotated example gradients."""
    squares = {layer.name: layer.zeros(dtype=torch.float64) for layer in layers}
    with evaluating(model):
        for batch in batches(pool, options.batch_size, device_of(model), progress, "eigenvalues"):
            add = _adder(squares, rotations)
            stream(model, layers, batch, options.loss, add, draw=options.label_seed)
    dtypes = {layer.name: wide(layer.module.weight.dtype) for layer in layers}
    return {name: (total / len(pool)).to(dtypes[name]) for name, total in squares.items()}


def _adder(squares: Mapping[str, Tensor], rotations: Rotations) -> Consumer:
    """Adds squares of the rotated gradients of one batch, layer by layer, to `squares`."""
    rotated_inputs: dict[str, Tensor] = {}

    def add(name: str, trace: Trace) -> None:
        for block in rotated(trace, *rotations[name], rotated_inputs):
            squares[name].add_(block.square_().sum(dim=0, dtype=wide(block.dtype)))

    return add


def rotated(
    trace: Trace, inputs: Tensor, outputs: Tensor, rotated_inputs: dict[str, Tensor]
) -> Iterator[Tensor]:
    """Blocks of Q_S^T G_n Q_A, each side rotated before or after the sum over tokens.

    Before costs tokens x width^2 a side, after costs rows x columns x width: by the smaller of
    tokens and the other dimension. `rotated_inputs` keeps those of the last source.
    """
    inputs, outputs = inputs.to(trace.inputs.dtype), outputs.to(trace.inputs.dtype)
    if trace.embedded:
        yield from (outputs.T @ block @ inputs for _, block in trace.gradients())
        return
    tokens, out = trace.deltas.shape[1:]
    early_inputs, early_outputs = tokens <= 2 * out, tokens <= 2 * trace.inputs.shape[-1]
    right = trace.inputs
    if early_inputs:
        if trace.source not in rotated_inputs:
            rotated_inputs.clear()
            rotated_inputs[trace.source] = trace.inputs @ inputs
        right = rotated_inputs[trace.source]
    left = trace.deltas @ outputs if early_outputs else trace.deltas
    step = rows_at_once(out * right.shape[-1], left.device)
    for start in range(0, len(left), step):
        block = left[start : start + step].mT @ right[start : start + step]
        if not early_inputs:
            block = block @ inputs
        yield block if early_outputs else outputs.T @ block

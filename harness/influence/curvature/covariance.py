"""Covariances of what the tracked layers read and of the gradients at what they give.

Where the sample that they come from is small (64 of the testbed's 768 examples), its traces stay
until eigenvectors are known, so that its examples go through the model once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.data.pool import IGNORED, Pool, drawn, tokens_of
from harness.influence.gradients import stream
from harness.influence.kernels.lanes import Lane, Sums, spread
from harness.influence.kernels.matmul import outer, wide
from harness.influence.options import FEWEST, POSITIONS_PER_DIMENSION, CurvatureOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.influence.batches import Batch, Progress
    from harness.influence.layers import Layer
    from harness.influence.trace import Consumer, Trace

KEPT_BYTES = 1 << 27
"""Size up to which the traces of a sample are kept."""

Layers = tuple["Layer", ...]
Kept = dict[int, list[dict[str, "Trace"]]]
"""Traces of whole batches, by lane."""


@dataclass(frozen=True)
class Factors:
    """A [in (+ 1), in (+ 1)] and S [out, out] of a layer, in double precision.

    `length`: mean number of loss-carrying positions per example; `dtype`: of what is kept. Layers
    that read the same input share one A.
    """

    inputs: Tensor
    outputs: Tensor
    length: float
    dtype: torch.dtype


def factors(
    model: nn.Module,
    layers: Layers,
    sample: Pool,
    options: CurvatureOptions,
    *,
    kept: Kept | None = None,
    progress: Progress | None = None,
) -> dict[str, Factors]:
    """Covariances of every layer's inputs and output gradients over `sample`.

    `kept` receives the traces they are made of.
    """
    readers: dict[str, str] = {}  # layer -> the first layer that reads the same input

    def zeros() -> dict[str, Tensor]:
        found = {}
        for layer in layers:
            out, width = layer.shape
            empty = layer.module.weight.detach().new_zeros((), dtype=torch.float64)
            found[f"inputs of {layer.name}"] = empty.new_zeros(width, width)
            found[f"outputs of {layer.name}"] = empty.new_zeros(out, out)
        return found

    sums = Sums(zeros)

    def work(lane: Lane, batch: Batch) -> None:
        total = sums.of(lane.number)
        traces: dict[str, Trace] = {}

        def add(name: str, trace: Trace) -> None:
            readers[name] = trace.source
            if trace.source == name:
                seen = trace.inputs[trace.carrying]
                total[f"inputs of {name}"].add_(outer(seen, seen))
            deltas = trace.deltas[trace.carrying]
            total[f"outputs of {name}"].add_(outer(deltas, deltas))
            if kept is not None:
                traces[name] = trace

        stream_labelled(lane, batch, options, add)
        if kept is not None:
            kept.setdefault(lane.number, []).append(traces)

    spread(model, layers, sample, options, work, progress, "covariances")
    total = sums.total()
    positions = sum(int((labels[1:] != IGNORED).sum()) for labels in sample.labels)
    for matrix in total.values():
        matrix.div_(positions)
    return {
        layer.name: Factors(
            total[f"inputs of {readers[layer.name]}"],
            total[f"outputs of {layer.name}"],
            positions / len(sample),
            wide(layer.module.weight.dtype),
        )
        for layer in layers
    }


def stream_labelled(lane: Lane, batch: Batch, options: CurvatureOptions, consume: Consumer) -> None:
    """One forward and backward pass with the labels that `options.fisher` asks for."""
    draw = options.seed if options.fisher == "true" else None
    stream(lane.model, lane.layers, batch, options.loss, consume, draw=draw)


def basis_sample(layers: Layers, pool: Pool, options: CurvatureOptions) -> Pool:
    """The examples of `pool` that the eigenvectors of `layers` are taken from."""
    return drawn(pool, basis_examples(layers, pool, options), options.seed + 1)


def is_kept(layers: Layers, sample: Pool, options: CurvatureOptions) -> bool:
    """Whether a fit keeps the traces of the sample of its eigenvectors."""
    if options.memory_gib is not None:
        return False
    floats = sum(sum(layer.shape) for layer in layers)
    size: int = layers[0].module.weight.element_size()
    return tokens_of(sample) * floats * size <= KEPT_BYTES


def basis_examples(layers: Layers, pool: Pool, options: CurvatureOptions) -> int:
    """How many examples of `pool` the eigenvectors of `layers` are taken from."""
    if options.basis_sample is None:
        return len(pool)
    if options.basis_sample != "auto":
        return min(options.basis_sample, len(pool))
    widest = max(max(layer.shape) for layer in layers)
    needed = POSITIONS_PER_DIMENSION * widest / float(pool.response_lengths.mean())
    return min(len(pool), max(FEWEST, int(np.ceil(needed))))


def groups(
    layers: Layers, pool: Pool, options: CurvatureOptions, own: Callable[[Layer], int] | None = None
) -> Sequence[Layers]:
    """Layers in order, cut so that each group's factors and activations fit `memory_gib`.

    Counted per layer: what one batch of the longest examples leaves behind, and the bytes of `own`,
    by default sums in double precision and eigenvectors. A layer too large for the limit has a
    group to itself.
    """
    if options.memory_gib is None:
        return [layers]
    lengths = sorted((len(tokens) for tokens in pool.input_ids), reverse=True)
    tokens = lengths[0] * min(options.batch_size, len(lengths))
    found: list[list[Layer]] = [[]]
    held = 0.0
    for layer in layers:
        out, width = layer.shape
        size = layer.module.weight.element_size()
        factors = (8 + size) * (out * out + width * width + out * width)
        need = (own(layer) if own else factors) + 2 * size * tokens * (out + width)
        if found[-1] and held + need > options.memory_gib * 2**30:
            found.append([])
            held = 0.0
        found[-1].append(layer)
        held += need
    return [tuple(group) for group in found]

"""Selection scores from gradients at one model or along a training run; no curvature but Adam's.

With g_d the gradient of example d's loss, q the mean gradient of the queries' losses (mean over the
tokens of their reference responses), theta_i the checkpoints and eta_i the mean learning rate of
the steps since the checkpoint before:

    TracIn (TracInCP, 2002.08484)   sum_i eta_i <g_d(theta_i), q(theta_i)>
    LESS (2402.04333)               sum_i eta_i cos(Gamma_d(theta_i), q(theta_i))
    cosine (GradCos, 2006.04528)    cos(g_d, q)
    self-influence (1703.04730)     g_d^T (H + damping)^-1 g_d

Gamma_d is the step that AdamW would take on d alone after t steps, without learning rate and decay:

    Gamma_d = m / (sqrt(v) + eps),   m = (b1 m_t + (1 - b1) g_d) / (1 - b1^(t+1)),
                                     v = (b2 v_t + (1 - b2) g_d^2) / (1 - b2^(t+1))

with m_t, v_t the optimizer's own moments: d's gradient is mixed in, so Gamma_d is not linear in it.
The paper writes the corrections with exponent t; its published code leaves them out and has eps
under the root. A common factor of m or of sqrt(v) cancels in the cosine, so these differ only where
sqrt(v) is of the size of eps. Other differences from the published LESS: exact gradients, no random
projection; the query set is one task (no maximum over subtasks); the cosine is with the mean query
gradient (as in the paper; its code takes the mean of the cosines with single queries).

One pass over the pool per checkpoint; one model and one block of example gradients in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from harness.data.pool import Pool
from harness.influence.batches import Progress, batches, device_of
from harness.influence.curvature.base import Curvature
from harness.influence.directional import directional_scores
from harness.influence.gradients import query_gradients, traces
from harness.influence.layers import Gradients, Layer, evaluating, match, tracked_layers
from harness.influence.options import CurvatureOptions

Change = Callable[[str, Tensor], Tensor]
"""`change(layer, block)` turns example gradients [rows, out, in (+ 1)] into what is compared."""


@dataclass(frozen=True)
class Moments:
    """AdamW's state after `steps` steps, uncorrected, by name of the parameter."""

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@dataclass(frozen=True)
class Checkpoint:
    """A model along a training run, loaded only when asked for.

    `step`: steps done. `rate`: mean learning rate of the steps since the checkpoint before.
    `model()`: the model, on its device. `moments()`: AdamW's state.
    """

    step: int
    rate: float
    model: Callable[[], nn.Module]
    moments: Callable[[], Moments]


def tracin_scores(
    checkpoints: Sequence[Checkpoint],
    pool: Pool,
    queries: Pool,
    options: CurvatureOptions | None = None,
    *,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """sum_i eta_i <g_d, q> over `checkpoints`, shape [n]; higher = training on d helps queries.

    `options`: layers, head, loss (of the pool) and batch size; its curvature has no effect.
    """
    options = options or CurvatureOptions(kind="identity")
    scores = np.zeros(len(pool))
    for checkpoint in _checked(checkpoints):
        model = checkpoint.model()
        direction = query_gradients(model, queries, options, aggregate="mean", progress=progress)
        # Two signs cancel: the direction raises -L of the queries, the score is of -L of the pool.
        along = {name: part[None] for name, part in direction.items()}
        products = directional_scores(model, pool, along, options, progress=progress)
        scores += checkpoint.rate * products[:, 0]
    return scores


def less_scores(
    checkpoints: Sequence[Checkpoint],
    pool: Pool,
    queries: Pool,
    options: CurvatureOptions | None = None,
    *,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """sum_i eta_i cos(Gamma_d, q) over `checkpoints`, shape [n]; `options` as for `tracin_scores`.

    ValueError where a checkpoint keeps no moments for a tracked layer.
    """
    options = options or CurvatureOptions(kind="identity")
    scores = np.zeros(len(pool))
    for checkpoint in _checked(checkpoints):
        model = checkpoint.model()
        layers = tracked_layers(model, options.layers, options.head)
        step = adam_step(layers, checkpoint.moments(), device_of(model))
        scores += checkpoint.rate * _cosines(model, pool, queries, options, step, progress)
    return scores


def cosine_scores(
    model: nn.Module,
    pool: Pool,
    queries: Pool,
    options: CurvatureOptions | None = None,
    *,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """cos(g_d, q) of every example, shape [n]; `options` as for `tracin_scores`.

    An example whose gradient is exactly 0 has cosine 0.
    """
    options = options or CurvatureOptions(kind="identity")
    return _cosines(model, pool, queries, options, lambda name, block: block, progress)


def self_influence(
    model: nn.Module,
    curvature: Curvature,
    pool: Pool,
    *,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """g_d^T (H + damping)^-1 g_d of every example, shape [n], at least 0.

    How far training on d alone moves d's own loss. `curvature` is one that solves layer by layer,
    fitted at the model's present weights; its options say which layers and which loss.
    """
    options = curvature.options
    layers = tracked_layers(model, options.layers, options.head)
    scores = np.zeros(len(pool))
    for name, rows, block in _blocks(model, layers, pool, options, progress, "self-influence"):
        solved = curvature.solve(name, block)
        scores[rows] += (block * solved).sum(dim=(1, 2), dtype=torch.float64).cpu().numpy()
    return scores


def adam_step(layers: tuple[Layer, ...], moments: Moments, device: torch.device) -> Change:
    """The map from example gradients to Gamma; ValueError where a layer has no moments."""
    state = {layer.name: _state(layer, moments, device) for layer in layers}
    decay_first, decay_second = moments.betas
    steps = moments.steps + 1
    correct_first, correct_second = 1 - decay_first**steps, 1 - decay_second**steps

    def step(name: str, block: Tensor) -> Tensor:
        first, second = state[name]
        mean = (decay_first * first + (1 - decay_first) * block).div_(correct_first)
        square = (decay_second * second + (1 - decay_second) * block.square()).div_(correct_second)
        return mean.div_(square.sqrt_().add_(moments.eps))

    return step


def _state(layer: Layer, moments: Moments, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both moments of one layer as matrices [out, in (+ 1)]."""
    matrices = []
    for values in (moments.first, moments.second):
        parts = []
        for name in layer.parameters():
            if name not in values:
                raise ValueError(
                    f"the checkpoint keeps no moments of {name!r}; expected to track only linear "
                    "layers that were trained, without the head"
                )
            value = values[name].to(device=device, dtype=layer.module.weight.dtype)
            parts.append(value if value.ndim == 2 else value[:, None])
        matrices.append(torch.cat(parts, dim=1))
    return matrices[0], matrices[1]


def _cosines(
    model: nn.Module,
    pool: Pool,
    queries: Pool,
    options: CurvatureOptions,
    change: Change,
    progress: Progress | None,
) -> npt.NDArray[np.float64]:
    """cos(change(g_d), q), shape [n]."""
    layers = tracked_layers(model, options.layers, options.head)
    direction = _loss_gradient(model, layers, queries, options, progress)
    products, squares = np.zeros(len(pool)), np.zeros(len(pool))
    for name, rows, block in _blocks(model, layers, pool, options, progress, "gradient cosines"):
        changed = change(name, block).flatten(1)
        products[rows] += (changed @ direction[name].flatten()).double().cpu().numpy()
        squares[rows] += changed.square().sum(dim=1, dtype=torch.float64).cpu().numpy()
    length = np.sqrt(squares)
    cosines = np.zeros(len(pool))
    np.divide(products, length, out=cosines, where=length > 0)
    return cosines


def _loss_gradient(
    model: nn.Module,
    layers: tuple[Layer, ...],
    queries: Pool,
    options: CurvatureOptions,
    progress: Progress | None,
) -> Gradients:
    """q divided by its length, over all layers at once."""
    mean = query_gradients(model, queries, options, aggregate="mean", progress=progress)
    match(layers, mean)
    squares = [float(part.square().sum(dtype=torch.float64)) for part in mean.values()]
    length = float(np.sqrt(sum(squares)))
    if not length > 0:
        raise ValueError(f"the mean query gradient has length {length}; expected more than 0")
    return {name: -part / length for name, part in mean.items()}


def _blocks(
    model: nn.Module,
    layers: tuple[Layer, ...],
    pool: Pool,
    options: CurvatureOptions,
    progress: Progress | None,
    description: str,
) -> Iterator[tuple[str, npt.NDArray[np.int64], Tensor]]:
    """Layer, positions in the pool, and the gradients of these examples [rows, out, in (+ 1)]."""
    device = device_of(model)
    with evaluating(model):
        for batch in batches(pool, options.batch_size, device, progress, description):
            for name, trace in traces(model, layers, batch, options.loss).items():
                for rows, block in trace.gradients():
                    yield name, batch.positions[rows], block


def _checked(checkpoints: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
    if not checkpoints:
        raise ValueError("there are no checkpoints; expected at least one")
    return checkpoints

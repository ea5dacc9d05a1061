"""Scores from activations and output gradients: <G_n, U> without weight gradients of the batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from harness.data.pool import Pool
from harness.influence.batches import Batch, Progress
from harness.influence.gradients import stream
from harness.influence.kernels.lanes import Lane, spread
from harness.influence.layers import match, tracked_layers
from harness.influence.options import CurvatureOptions
from harness.influence.trace import Trace


def products(
    model: nn.Module,
    pool: Pool,
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    *,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """-<grad L_d, u_j>, [n, k], from every example's own gradient: for many directions at once.

    Equals `directional_scores` up to rounding. One forward and backward pass, whatever k is.
    """
    layers = tracked_layers(model, options.layers, options.head)
    match(layers, directions)
    turned = {x.name: directions[x.name].to(x.module.weight.dtype) for x in layers}
    scores = np.zeros((len(pool), len(directions[layers[0].name])))

    def work(lane: Lane, batch: Batch) -> None:
        sums: list[Tensor] = []  # stays on the device: a GPU must not be waited for layer by layer

        def take(name: str, trace: Trace) -> None:
            along = trace.along(turned[name]).double()
            sums[:] = [sums[0].add_(along) if sums else along]

        stream(lane.model, lane.layers, batch, options.loss, take)
        scores[batch.positions] = -sums[0].cpu().numpy()

    spread(model, layers, pool, options, work, progress, "influence per query")
    return scores

"""Scores from activations and output gradients: <G_n, U> without weight gradients of the batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from harness.influence.batches import Batch, Progress
from harness.influence.gradients import stream
from harness.influence.lanes import Lane, spread
from harness.influence.layers import match, tracked_layers
from harness.influence.options import CurvatureOptions
from harness.influence.trace import Trace
from harness.pool import Pool


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
    scores = np.zeros((len(pool), len(directions[layers[0].name])))

    def work(lane: Lane, batch: Batch) -> None:
        def take(name: str, trace: Trace) -> None:
            scores[batch.positions] -= trace.along(directions[name]).double().cpu().numpy()

        stream(lane.model, lane.layers, batch, options.loss, take)

    spread(model, layers, pool, options, work, progress, "influence per query")
    return scores

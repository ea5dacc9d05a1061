"""Scores from activations and output gradients: <G_n, U> without weight gradients of the batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from harness.influence.batches import Batch, Progress, batches, device_of
from harness.influence.gradients import Trace, stream
from harness.influence.layers import evaluating, match, tracked_layers
from harness.influence.options import CurvatureOptions
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
    with evaluating(model):
        for batch in batches(
            pool, options.batch_size, device_of(model), progress, "influence per query"
        ):

            def take(name: str, trace: Trace, batch: Batch = batch) -> None:
                scores[batch.positions] -= trace.along(directions[name]).double().cpu().numpy()

            stream(model, layers, batch, options.loss, take)
    return scores

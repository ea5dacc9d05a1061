"""Ground truth: the base fine-tuned on part of the pool, and what it then makes of the queries."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool
from harness.experiment.stage import Stage
from harness.experiment.store import Store
from harness.running.workspace import Workspace, device, load_model, seed_for
from harness.studies.influence.protocol import RetrainingRecipe

if TYPE_CHECKING:
    from torch import nn

OUTCOMES = "outcomes.parquet"


def build(recipe: RetrainingRecipe, work: Workspace) -> dict[str, Any]:
    """Write the log-probability of every query's reference response; the weights are dropped.

    Retrainings with the same seed see their examples in the same order of positions.
    """
    import pandas as pd

    from harness.training.train import train

    pool, queries = work.pool().take_ids(recipe.keep), work.pool("queryset")
    seed, folder, where = seed_for("retrain", recipe.seed), work.folder / "model", device()
    log = train(work.parent("model"), pool, recipe.train, seed, folder, work.progress, device=where)
    values = log_probabilities(load_model(folder, where), queries)
    shutil.rmtree(folder)
    table = pd.DataFrame({"id": list(queries.ids), "log_probability": values})
    table.to_parquet(work.folder / OUTCOMES, index=False)
    return {"examples": len(pool), "steps": log.steps, "final_loss": log.final_loss}


def log_probabilities(model: nn.Module, queries: Pool) -> npt.NDArray[np.float64]:
    """Mean log-probability of each query's response tokens, [q]."""
    import torch

    from harness.influence.batches import batches, device_of, example_losses, model_inputs

    found = np.empty(len(queries))
    with torch.no_grad():
        for batch in batches(queries, 64, device_of(model)):
            logits = model(**model_inputs(model, batch)).logits
            losses = example_losses(logits, batch.labels, "mean")
            found[batch.positions] = -losses.cpu().numpy()
    return found


def outcomes(stage: Stage, store: Store, ids: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """The stored log-probabilities of a retraining, for the queries `ids`, [q]."""
    import pandas as pd

    table = pd.read_parquet(store.folder(stage) / OUTCOMES)
    if tuple(table["id"]) != ids:
        raise ValueError(f"{stage.label}: queries {list(table['id'])[:3]}...; expected {ids[:3]}")
    values: npt.NDArray[np.float64] = table["log_probability"].to_numpy(np.float64)
    return values

"""What a row's selection and training cost: the sum over the stages below, whoever paid first."""

from __future__ import annotations

from collections import Counter
from typing import Any

from harness.experiment.stage import Stage
from harness.experiment.store import Artefact, Store
from harness.influence.costs import BOTH
from harness.running.workspace import parameters_of

PARTS = {
    "scores": "choose",
    "subset": "choose",
    "checkpoint": "reference",
    "trajectory": "trajectory",
    "answers": "answers",
    "features": "features",
    "decodes": "decodes",
    "curvature": "curvature",
    "influence": "influence",
}
"""Kinds of stages that a selection pays for, and the part of its cost that they are."""


def selection_cost(subset: Stage, store: Store) -> dict[str, Any]:
    """What choosing cost: seconds in all and by part, and estimated FLOPs.

    FLOPs are None where the model's size is unknown: 2 per parameter and token for a forward pass,
    6 with the backward pass.
    """
    seconds: Counter[str] = Counter()
    operations = 0.0
    for stage in subset.ancestry():
        if stage.kind in PARTS:
            artefact = store.load(stage)
            seconds[PARTS[stage.kind]] += artefact.seconds  # type: ignore[assignment]
            operations += _operations(artefact)
    return {
        "select_seconds": sum(seconds.values()),
        "select_parts": dict(seconds),
        "select_flops": _flops(operations, subset, store),
    }


def training_flops(checkpoint: Stage, store: Store) -> float | None:
    """Estimated floating-point operations of a fine-tuning; None where the size is unknown.

    6 per parameter and token, padding left out; with LoRA, whose frozen weights need no gradients
    of their own, an upper bound.
    """
    return _flops(_operations(store.load(checkpoint)), checkpoint, store)


def _operations(artefact: Artefact) -> float:
    """Operations per parameter of the model."""
    if "train" in artefact.info:
        return float(BOTH * artefact.info["train"]["tokens"])
    return float(artefact.info.get("operations", 0.0))


def _flops(operations: float, stage: Stage, store: Store) -> float | None:
    if not operations:
        return 0.0
    models = [s for s in stage.ancestry() if s.kind in ("base", "model")]
    parameters = parameters_of(models[0], store)
    return None if parameters is None else operations * parameters

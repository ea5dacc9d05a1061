"""What choosing a subset and training on it cost, whoever paid first."""

from __future__ import annotations

from typing import Any

from harness.experiment.stage import Stage, artefact
from harness.experiment.store import Store
from harness.influence.costs import BOTH
from harness.running.signals import parameters_of


def selection_cost(subset: Stage, store: Store) -> dict[str, Any]:
    """What choosing cost in all, in seconds by part and in FLOPs, whoever paid first."""
    parts: dict[str, float] = {}
    for stage in _chain(subset):
        made = artefact(store, stage)
        waited = made.info.get("waited", 0.0)
        parts["choose"] = parts.get("choose", 0.0) + max(0.0, made.seconds - waited)
        for name, seconds in made.info.get("shared", {}).items():
            parts[name] = parts.get(name, 0.0) + seconds
        for role, parent in stage.parents.items():
            if role in ("reference", "trajectory", "before", "after"):
                name = "answers" if role in ("before", "after") else role
                parts[name] = parts.get(name, 0.0) + artefact(store, parent).seconds
            elif role.startswith("row:"):
                parts[role] = selection_cost(parent, store)["select_seconds"]
    return {
        "select_seconds": sum(parts.values()),
        "select_parts": parts,
        "select_flops": selection_flops(subset, store),
    }


def _chain(subset: Stage) -> list[Stage]:
    """The stages that choose: the subset, and the scores where they are a stage of their own."""
    return [subset, *([subset.parents["scores"]] if "scores" in subset.parents else [])]


def selection_flops(subset: Stage, store: Store) -> float | None:
    """Estimated floating-point operations of a selection; None where the model's size is unknown.

    2 per parameter and token for a forward pass, 6 with the backward pass; the training
    of a reference or a trajectory counts, and so do signals that another row has paid for, and the
    rows whose choices this one looks at.
    """
    total = 0.0
    for stage in _chain(subset):
        for role, parent in stage.parents.items():
            if role.startswith("row:"):
                other = selection_flops(parent, store)
                if other is None:
                    return None
                total += other
        operations = artefact(store, stage).info.get("operations", 0.0)
        trained = [stage.parents[r] for r in ("reference", "trajectory") if r in stage.parents]
        for run in trained:
            operations += BOTH * artefact(store, run).info["train"]["tokens"]
        if not operations:
            continue
        model = trained[0].parents["model"] if trained else stage.parents["model"]
        parameters = parameters_of(model, store)
        if parameters is None:
            return None
        total += operations * parameters
    return total


def training_flops(checkpoint: Stage, store: Store) -> float | None:
    """Estimated floating-point operations of a fine-tuning; None where the model's size is unknown.

    6 per parameter and token, padding left out; with LoRA, whose frozen weights need no
    gradients of their own, an upper bound.
    """
    parameters = parameters_of(checkpoint.parents["model"], store)
    if parameters is None:
        return None
    tokens = artefact(store, checkpoint).info["train"]["tokens"]
    return float(BOTH * tokens * parameters)

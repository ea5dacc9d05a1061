"""From the stored artefacts of a cell to its record and the small files beside it.

Everything here is a function of what the store holds, so a record written after a crash is the
record that would have been written before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.experiment import records
from harness.experiment.records import parquet_bytes
from harness.experiment.stage import Stage
from harness.experiment.store import Artefact, Store, digest
from harness.influence.costs import BOTH
from harness.running.plan import Cell, Plan
from harness.running.workspace import parameters_of
from harness.selection.subset import read_scores, read_subset

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
STABILITY = "stability.parquet"
"""A selector's own table of how stable its choice is, by the number of kept examples."""


def identity(cell: Cell, plan: Plan, protocol: str) -> dict[str, Any]:
    """The part of a record that says which cell it is about."""
    return {
        "schema": records.SCHEMA,
        "experiment": plan.experiment.name,
        "protocol": protocol,
        "arm": cell.arm,
        "cell": cell.name,
        "row": cell.row.row,
        "selector": cell.row.selector,
        "params": cell.row.params,
        "fraction": cell.fraction,
        "seed": cell.seed,
        "key": cell_key(cell),
        "parents": parents(cell),
    }


def cell_key(cell: Cell) -> str:
    """Hash over the keys of a cell's samples."""
    return digest({task: stage.key for task, stage in cell.samples.items()})


def parents(cell: Cell) -> dict[str, Any]:
    """Keys of the stages behind a cell, by role."""
    keys: dict[str, Any] = {"samples": {task: s.key for task, s in cell.samples.items()}}
    for stage in next(iter(cell.samples.values())).ancestry():
        if stage.kind in ("base", "model", "pool", "queryset", "tokenizer"):
            keys[stage.kind] = stage.key
    if cell.subset is not None and cell.checkpoint is not None:
        keys |= {"subset": cell.subset.key, "checkpoint": cell.checkpoint.key}
        if "scores" in cell.subset.parents:
            keys["scores"] = cell.subset.parents["scores"].key
    return keys


def recorded(
    cell: Cell, last: Mapping[str, Any] | None, protocol: str, store: Store, folder: Path
) -> bool:
    """Whether the newest record of `cell` is already about these very artefacts."""
    if last is None or last["status"] != "done":
        return False
    created = store.load(next(iter(cell.samples.values()))).meta["created"]
    same = (last["key"], last["protocol"], last["provenance"]["created"]) == (
        cell_key(cell),
        protocol,
        created,
    )
    files = [last[name] for name in ("samples", "selection") if last[name] is not None]
    return same and all((folder / name).exists() for name in files)


def done(cell: Cell, plan: Plan, protocol: str, store: Store, folder: Path) -> dict[str, Any]:
    """Write a finished cell's samples and selection into `folder`; return its record."""
    samples = {task: store.load(stage) for task, stage in cell.samples.items()}
    frames = [pd.read_parquet(a.folder / "samples.parquet") for a in samples.values()]
    key = cell_key(cell)
    data = parquet_bytes(pd.concat(frames, ignore_index=True))
    path = f"samples/{key[:16]}.parquet"
    records.write_atomic(folder / path, data)
    first = next(iter(samples.values()))
    outputs = {"samples": digest({task: a.outputs for task, a in samples.items()})}
    entry = {
        **identity(cell, plan, protocol),
        "status": "done",
        "error": None,
        "samples": path,
        "selection": None,
        "n_examples": 0,
        "accuracy": {task: a.info["accuracy"] for task, a in samples.items()},
        "engine": first.info.get("engine"),
        "train": None,
        "provenance": {**first.meta["provenance"], "created": first.meta["created"]},
    }
    seconds = {
        "eval_seconds": sum(a.seconds + a.info["engine_seconds"] for a in samples.values()),
        "train_seconds": 0.0,
        "select_seconds": 0.0,
        "select_parts": {},
        "select_flops": 0.0,
        "train_flops": 0.0,
    }
    if cell.subset is not None and cell.checkpoint is not None:
        subset, checkpoint = store.load(cell.subset), store.load(cell.checkpoint)
        entry["selection"] = write_selection(cell, store, folder)
        entry["n_examples"] = subset.info["examples"]
        entry["train"] = {k: v for k, v in checkpoint.info["train"].items() if k != "losses"}
        outputs |= {"subset": subset.outputs["subset.parquet"]}
        outputs |= {"checkpoint": checkpoint.outputs["model.safetensors"]}
        seconds["train_seconds"] = checkpoint.seconds
        seconds["train_flops"] = training_flops(cell.checkpoint, store)
        seconds |= selection_cost(cell.subset, store)
        if facts := selection_facts(cell.subset, store):
            entry["facts"] = facts
    return {**entry, "outputs": outputs, "costs": seconds}


def failed(
    cell: Cell, plan: Plan, protocol: str, stage: Stage, error: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of a cell that cannot be finished because `stage` failed."""
    return {
        **identity(cell, plan, protocol),
        "status": "failed",
        "error": {"stage": stage.kind, "label": stage.label, **error},
        "samples": None,
        "selection": None,
    }


def write_selection(cell: Cell, store: Store, folder: Path) -> str:
    """Which examples were chosen, and the scores behind it; one file per selection."""
    assert cell.subset is not None
    path = f"selections/{cell.subset.key[:16]}.parquet"
    if (folder / path).exists():
        return path
    pool = cell.subset.parents["pool"]
    ids = pd.read_parquet(store.load(pool).folder / "pool.parquet", columns=["id"])["id"]
    subset = store.load(cell.subset)
    chosen = set(read_subset(subset.folder))
    scored = cell.subset.parents.get("scores")
    scores = read_scores(store.load(scored).folder if scored else subset.folder)
    frame = pd.DataFrame({"id": ids, "chosen": [name in chosen for name in ids]})
    for name, values in scores.items():
        if name != "id":
            frame[name] = pd.Series(values, index=scores["id"]).loc[ids].to_numpy()
    records.write_atomic(folder / path, parquet_bytes(frame))
    return path


def selection_facts(subset: Stage, store: Store) -> dict[str, Any]:
    """What the selector noted about its selection; stability at the size that was chosen."""
    artefact = store.load(subset.parents.get("scores", subset))
    facts = dict(artefact.info.get("facts", {}))
    table = artefact.folder / STABILITY
    if table.exists():
        lines = pd.read_parquet(table).set_index("kept")
        line = lines.loc[store.load(subset).info["examples"]]
        facts["stability"] = {**facts.get("stability", {}), **line.to_dict()}
    return facts


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

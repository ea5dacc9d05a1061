"""What a run will cost before it runs: cells, jobs, time, memory and disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.experiment.progress import clock
from harness.experiment.stage import EXTERNAL, Stage
from harness.experiment.store import META, Store
from harness.influence.choice import METHODS, NAMES, operations
from harness.influence.costs import BOTH
from harness.running import overlap
from harness.running.display import TYPICAL_OTHER, TYPICAL_SECONDS
from harness.running.job import Job
from harness.running.plan import Cell, Plan
from harness.running.run import Run, has_gpu, outcome_stages
from harness.running.signals import parameters_of
from harness.running.workers import available_cores
from harness.selection import plugins

COLUMNS = ("arm", "row", "fraction", "seeds", "stored", "needs")
SAMPLED = 20
"""Stored artefacts of a kind that its mean time is taken from."""
TRAINING_BYTES = 16
"""Per parameter: float32 weights, gradients and two AdamW moments."""


def forecast(plan: Plan, store: Store) -> dict[str, Any]:
    """Rows of the plan with what is stored, and notes on time, memory and disk."""
    run = Run(plan, store, Path("results") / plan.experiment.name)
    jobs = run.jobs()
    seconds = _seconds(store)
    kinds = Counter(job.stages[0].kind for job in jobs)
    work = sum(seconds.get(kind, TYPICAL_OTHER) * count for kind, count in kinds.items())
    left = work / run.workers
    measured = sorted(kind for kind in kinds if kind in _measured(store))
    done = sum(_stored(cell, store) for cell in plan.cells)
    notes = [
        f"{len(plan.cells)} cells, {done} stored; {len(jobs)} jobs to run: "
        + (", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "none"),
        f"About {clock(left)} min on {run.workers} workers ({available_cores()} cores"
        + (", GPU" if has_gpu() else "")
        + "); "
        + (f"times measured here for: {', '.join(measured)}" if measured else "first guess only"),
        *_size_notes(plan, store, jobs),
        *_influence_notes(plan, store),
        *overlap.outlook(plan.checks, store),
    ]
    return {
        "experiment": plan.experiment.name,
        "cells": len(plan.cells),
        "stored": done,
        "jobs": dict(kinds),
        "seconds_left": left,
        "engine": dict(plan.engine),
        "rows": _rows(plan, store),
        "notes": notes,
    }


def _rows(plan: Plan, store: Store) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str, float], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.arm, cell.row.row, cell.fraction), []).append(cell)
    return [
        {
            "arm": arm,
            "row": row,
            "fraction": fraction,
            "seeds": len(cells),
            "stored": f"{sum(_stored(cell, store) for cell in cells)}/{len(cells)}",
            "needs": _needs(cells[0]),
        }
        for (arm, row, fraction), cells in groups.items()
    ]


def _needs(cell: Cell) -> str:
    if cell.subset is None:
        return "-"
    stage = cell.subset.parents.get("scores", cell.subset)
    roles = [role for role in stage.parents if role not in ("pool", "scores")]
    return ", ".join(roles) or "-"


def _stored(cell: Cell, store: Store) -> bool:
    return all(store.has(stage.kind, stage.key) for stage in outcome_stages(cell))


def _measured(store: Store) -> dict[str, float]:
    """Mean seconds of the artefacts in the store, by kind."""
    found = {}
    for folder in sorted(store.root.glob("*")):
        times = []
        for path in sorted(folder.glob(f"*/{META}"))[:SAMPLED]:
            meta = json.loads(path.read_text(encoding="utf-8"))
            times.append(float(meta["seconds"]) + float(meta["info"].get("engine_seconds", 0.0)))
        if times:
            found[folder.name] = sum(times) / len(times)
    return found


def _seconds(store: Store) -> dict[str, float]:
    measured = _measured(store)
    if "samples" in measured:  # stored per task, run per checkpoint
        measured["samples"] = max(measured["samples"], TYPICAL_SECONDS["samples"])
    return {**TYPICAL_SECONDS, **measured}


def _size_notes(plan: Plan, store: Store, jobs: Sequence[Job]) -> list[str]:
    parameters = _known_size(_base(plan), store)
    if parameters is None:
        return ["Memory and disk: known once the base model is in the store or on disk."]
    lora = plan.experiment.train.method == "lora"
    memory = parameters * (6 if lora else TRAINING_BYTES) / 2**30
    checkpoints, copies = _copies([job.stages[0] for job in jobs])
    disk = copies * parameters * 4 / 2**30
    place = "GPU memory" if has_gpu() else "memory"
    return [
        f"Model of {parameters / 1e6:.2f}M parameters: about {memory:.2g} GiB of {place} for "
        f"training (activations apart), {disk:.2g} GiB of disk for {checkpoints} checkpoints."
    ]


def _influence_notes(plan: Plan, store: Store) -> list[str]:
    """What influence on the queries costs, for the rows that ask for it."""
    asking = {
        row.row: row.params
        for row in plan.rows
        if row.selector is not None
        and "influence" in plugins.build(row.selector, row.params).requirements()
    }
    if not asking:
        return []
    kinds = sorted({str(params.get("curvature", "ekfac")) for params in asking.values()})
    further = sorted({str(params["scoring"]) for params in asking.values() if "scoring" in params})
    apart = [method for method in further if method in METHODS]
    note = (
        f"Influence ({', '.join(asking)}; curvature {', '.join(kinds)}): passes over the pool are "
        "at most two forward and backward to fit (none for identity; datainf one more to solve, "
        "ekfac+cg one forward and a few backward per step), and one forward and backward for ranks "
        "and scores together"
        + "".join(
            f", {operations(method, 2):.1f} forward passes for scores by {NAMES[method]}"
            for method in apart
        )
        + "; rows that ask for the same share them."
    )
    parameters = _known_size(_base(plan), store)
    if parameters is not None:
        note += f" About {3 * BOTH * parameters / 1e6:.3g} MFLOPs per token of the pool."
    measured = _measured(store).get("influence")
    if measured is not None:
        note += f" Measured here: {measured:.1f} s."
    return [note]


def _copies(stages: Sequence[Stage]) -> tuple[int, int]:
    """Checkpoints that stages will write, and how many copies of the model these hold at most."""
    checkpoints = copies = 0
    for stage in stages:
        if stage.kind == "checkpoint":
            checkpoints, copies = checkpoints + 1, copies + 1
        elif stage.kind == "trajectory":
            warmup = stage.inputs["warmup"]
            checkpoints += warmup["checkpoints"]
            copies += warmup["checkpoints"] * (3 if warmup["moments"] else 1)
    return checkpoints, copies


def _base(plan: Plan) -> Stage:
    cell = next(cell for cell in plan.cells if cell.row.row == "base")
    return next(iter(cell.samples.values())).parents["model"]


def _known_size(model: Stage, store: Store) -> int | None:
    stored = model.kind in EXTERNAL or store.has(model.kind, model.key)
    return parameters_of(model, store) if stored else None

"""What a run will cost before it runs: cells, jobs, time, memory and disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from harness.experiment.progress import clock
from harness.experiment.stage import Stage
from harness.experiment.store import META, Store
from harness.influence.costs import BOTH
from harness.running import overlap
from harness.running.plan import Cell, Plan
from harness.running.recipes import CheckpointRecipe, TrajectoryRecipe
from harness.running.run import wanted_stages
from harness.running.schedule import default_workers, grouped, has_gpu, missing_stages
from harness.running.workers import available_cores
from harness.running.workspace import parameters_of

COLUMNS = ("arm", "row", "fraction", "seeds", "stored", "needs")
SAMPLED = 20
"""Stored artefacts of a kind that its mean time is taken from."""


def forecast(plan: Plan, store: Store) -> dict[str, Any]:
    """Rows of the plan with what is stored, and notes on time, memory and disk."""
    jobs = grouped(missing_stages(wanted_stages(plan, plan.cells), store))
    kinds = Counter(stages[0].kind for stages in jobs)
    workers = default_workers(plan.experiment.train.threads)
    measured = _measured_seconds(store)
    seconds = [measured.get(s[0].kind, s[0].recipe.cost(None).seconds) for s in jobs]
    left = sum(seconds) / workers
    stored = sum(cell.stored(store) for cell in plan.cells)
    timed = sorted(kinds.keys() & measured.keys())
    todo = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "none"
    source = f"times measured here for: {', '.join(timed)}" if timed else "first guess only"
    device = f"{available_cores()} cores{', GPU' if has_gpu() else ''}"
    notes = [
        f"{len(plan.cells)} cells, {stored} stored; {len(jobs)} jobs to run: {todo}",
        *([f"Takes about {clock(left)} on {workers} workers ({device}); {source}"] if jobs else []),
        _size_note(plan, store, [stage for stages in jobs for stage in stages]),
        *_influence_notes(plan, store, measured),
        *overlap.outlook(plan.checks, store),
    ]
    return {
        "experiment": plan.experiment.name,
        "cells": len(plan.cells),
        "stored": stored,
        "jobs": dict(kinds),
        "seconds_left": left,
        "engine": {"name": plan.engine.name, "version": plan.engine.version},
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
            "stored": f"{sum(cell.stored(store) for cell in cells)}/{len(cells)}",
            "needs": _needs(cells[0]),
        }
        for (arm, row, fraction), cells in groups.items()
    ]


def _needs(cell: Cell) -> str:
    """The kinds of stages that the selection of a cell stands on."""
    if cell.subset is None:
        return "-"
    selection = cell.subset.parents.get("scores", cell.subset)
    kinds = [stage.kind for role, stage in selection.parents.items() if role != "pool"]
    return ", ".join(dict.fromkeys(kinds)) or "-"


def _measured_seconds(store: Store) -> Mapping[str, float]:
    """Mean seconds of the artefacts in the store, by kind."""
    means = {}
    for folder in sorted(store.root.glob("*")):
        metas = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob(f"*/{META}"))[:SAMPLED]
        ]
        # Samples are stored per task, but run and timed per checkpoint, with the first task.
        times = [m["seconds"] + m["info"].get("engine_seconds", 0.0) for m in metas]
        times = [t for t, m in zip(times, metas, strict=True) if m["info"].get("engine_seconds", 1)]
        if times:
            means[folder.name] = fmean(times)
    return means


def _size_note(plan: Plan, store: Store, stages: Sequence[Stage]) -> str:
    parameters = _known_size(plan, store)
    if parameters is None:
        return "Memory and disk: known once the base model is in the store or on disk."
    trained = _trained(stages)
    costs = [stage.recipe.cost(parameters) for stage in trained]
    memory = CheckpointRecipe(plan.experiment.train, 0).cost(parameters).memory / 2**30
    checkpoints = sum(
        stage.recipe.run.checkpoints if isinstance(stage.recipe, TrajectoryRecipe) else 1
        for stage in trained
    )
    disk = sum(cost.disk for cost in costs) / 2**30
    place = "GPU memory" if has_gpu() else "memory"
    return (
        f"Model of {parameters / 1e6:.2f}M parameters: about {memory:.2g} GiB of {place} for "
        f"training (activations apart), {disk:.2g} GiB of disk for {checkpoints} checkpoints."
    )


def _trained(stages: Iterable[Stage]) -> list[Stage]:
    return [s for s in stages if isinstance(s.recipe, CheckpointRecipe | TrajectoryRecipe)]


def _influence_notes(plan: Plan, store: Store, measured: Mapping[str, float]) -> list[str]:
    """What influence on the queries costs, for the rows that request it."""
    rows = {
        cell.row.row: cell
        for cell in plan.cells
        if cell.subset is not None and any(s.kind == "influence" for s in cell.subset.ancestry())
    }
    if not rows:
        return []
    kinds = {
        stage.label.rpartition(" ")[2]
        for cell in rows.values()
        if cell.subset is not None
        for stage in cell.subset.ancestry()
        if stage.kind == "curvature"
    }
    note = (
        f"Influence ({', '.join(rows)}; curvature {', '.join(sorted(kinds))}): at most two forward "
        "and backward passes over the pool to fit (none for identity; ekfac+cg takes one forward "
        "and a few backward passes per step), and one for ranks and scores together; rows that "
        "request the same share them."
    )
    parameters = _known_size(plan, store)
    if parameters is not None:
        note += f" About {3 * BOTH * parameters / 1e6:.3g} MFLOPs per token of the pool."
    if "influence" in measured:
        note += f" Measured here: {measured['influence']:.1f} s."
    return [note]


def _known_size(plan: Plan, store: Store) -> int | None:
    if not plan.base.recipe.external and not store.has(plan.base):
        return None
    return parameters_of(plan.base, store)

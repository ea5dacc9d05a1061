"""Makes the stages of a study in worker processes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.experiment.stage import Stage
from harness.experiment.store import LOG, Store
from harness.running.drain import drain
from harness.running.job import Job, captured, reporting, run_job
from harness.running.workers import Outcome, Report
from harness.studies.influence.predict import Prediction
from harness.studies.influence.retrain import Retraining

OWN: Mapping[str, Any] = {"retraining": Retraining, "prediction": Prediction}
"""Kinds of stage that are made here; the others are made as in an experiment."""


@dataclass(frozen=True)
class Task:
    """A stage for a worker to make."""

    stage: Stage
    store: str
    provenance: Mapping[str, Any]


def make(task: Task, report: Report) -> dict[str, Any]:
    """Make one stage; called inside a worker."""
    stage = task.stage
    if stage.kind not in OWN:
        return run_job(Job((stage,), task.store, task.provenance), report)
    import torch
    from transformers import AutoModelForCausalLM, Trainer  # noqa: F401 - no stage pays for it

    torch.set_num_threads(1)
    store = Store(Path(task.store))
    builder = OWN[stage.kind](stage, store, reporting(report))
    folder = store.failure_folder(stage.kind, stage.key)
    folder.mkdir(parents=True, exist_ok=True)
    with captured(folder / LOG, False):
        store.make(
            stage.kind, stage.key, stage.recipe, builder.build, lambda: dict(task.provenance)
        )
    shutil.rmtree(folder)
    return {}


def complete(
    stages: Sequence[Stage],
    store: Store,
    workers: int,
    provenance: dict[str, Any],
    title: str,
    console: Console,
) -> None:
    """Make every stage that the store lacks, in the order given; their parents must be there.

    RuntimeError names a stage that could not be made. What is finished stays, so that the next call
    continues.
    """
    by_key = {stage.key: stage for stage in stages}
    missing = [stage for stage in by_key.values() if not store.has(stage.kind, stage.key)]
    if not missing:
        return
    found = len(by_key) - len(missing)
    console.print(f"{title}: {len(missing)} to do, {found} found", highlight=False)

    def take(ended: Outcome) -> None:
        if ended.error is not None:
            stage = ended.job.stage
            log = store.logged(stage.kind, stage.key)
            where = "" if log is None else f"; its output is in {log}"
            raise RuntimeError(f"{stage.label}: {ended.error['message']}{where}")

    tasks = [Task(stage, str(store.root), provenance) for stage in missing]
    drain(tasks, workers, make, take, title, console)

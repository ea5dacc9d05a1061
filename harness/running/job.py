"""A job: the stages that one worker builds in one go, with its progress and its log.

A job is one stage, or all tasks of one checkpoint, which share an engine.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.evaluation.settings import Limits
from harness.experiment.progress import Progress
from harness.experiment.stage import Stage
from harness.experiment.store import LOG, Store
from harness.running.workers import Report

if TYPE_CHECKING:
    from harness.evaluation.engine import EnginePool

TRAIN, ENGINE = "train", "engine"
"""Roles of worker processes: an inference engine never shares a process with training."""


@dataclass(frozen=True)
class Job:
    """Stages that one worker builds in one go, and what it needs to know for that."""

    stages: tuple[Stage, ...]
    store: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = False
    limits: Limits = field(default_factory=Limits)
    attempt: int = 0

    @property
    def role(self) -> str:
        """The kind of process that it runs in."""
        return ENGINE if self.stages[0].recipe.needs_engine else TRAIN

    @property
    def seconds(self) -> float | None:
        """The time limit of an engine's job, after which it counts as hung; None for no limit."""
        if self.role != ENGINE or self.limits.seconds is None:
            return None
        return self.limits.seconds * sum(stage.recipe.tasks for stage in self.stages)

    @property
    def label(self) -> str:
        """For the live view."""
        first = self.stages[0]
        if first.kind == "samples":
            return "evaluate" + first.label.partition(" of")[2]
        return first.label


def run_job(job: Job, report: Report) -> dict[str, Any]:
    """Build every stage of `job`; called inside a worker."""
    store = Store(Path(job.store))
    first = job.stages[0]
    failure = store.failure_folder(first)
    failure.mkdir(parents=True, exist_ok=True)
    try:
        with captured(failure / LOG, job.verbose):
            try:
                _build_all(job, store, report)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        described = {"message": f"{type(error).__name__}: {error}"}
        (failure / "error.json").write_text(json.dumps(described) + "\n")
        raise
    if (failure / LOG).exists():
        os.replace(failure / LOG, store.folder(first) / LOG)
    for leftover in failure.glob("*"):
        leftover.unlink(missing_ok=True)
    failure.rmdir()
    return {}


def _build_all(job: Job, store: Store, report: Report) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401

    from harness.running.answer_builders import build_samples
    from harness.running.workspace import EngineAccess, build

    # Heavy imports stand above, so that a worker's first stage is not charged for them.
    def provenance() -> Mapping[str, Any]:
        return job.provenance

    engines = None
    if job.role == ENGINE:
        report("starting the engine", 0, None)
        on_progress = functools.partial(report, "answers")
        engines = EngineAccess(_engine_pool(), job.limits, job.attempt, job.verbose, on_progress)
        if job.stages[0].kind == "samples":
            build_samples(job.stages, store, provenance, engines)
            return
    for stage in job.stages:
        torch.set_num_threads(stage.recipe.worker_threads)
        build(stage, store, provenance, reporting(report), engines)


@functools.cache
def _engine_pool() -> EnginePool:
    """The engine of this process, kept from job to job until the process ends."""
    from harness.evaluation.engine import EnginePool

    pool = EnginePool()
    atexit.register(pool.close)
    return pool


def reporting(report: Report) -> Progress:
    """A progress that tells the parent process."""

    def progress(
        iterable: Iterable[Any], description: str = "", total: int | None = None
    ) -> Iterator[Any]:
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        report(description, 0, total)
        for done, entry in enumerate(iterable, 1):
            yield entry
            report(description, done, total)

    return progress


@contextlib.contextmanager
def captured(path: Path, verbose: bool) -> Iterator[None]:
    """Send everything that this process prints, C libraries included, to `path`."""
    if verbose:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for old, number in zip(saved, (1, 2), strict=True):
                os.dup2(old, number)
                os.close(old)

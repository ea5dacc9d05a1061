"""A job: the stages that one worker makes in one go, with its progress and its log.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.evaluation.settings import Limits
from harness.experiment.progress import Progress
from harness.experiment.stage import Stage
from harness.experiment.store import LOG, Store
from harness.running.workers import Report

if TYPE_CHECKING:
    from harness.evaluation.engine import EnginePool


ANSWERING = frozenset({"samples", "answers", "noise"})
"""Kinds of stages that are made by an engine alone, in a process that keeps it."""
WORK, EVALUATE = "work", "evaluate"


@dataclass(frozen=True)
class Job:
    """Stages that one worker makes in one go, and what it needs to know for that."""

    stages: tuple[Stage, ...]
    store: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = False
    limits: Limits = field(default_factory=Limits)
    attempt: int = 0

    @property
    def role(self) -> str:
        """The process that it runs in: engines live apart from training."""
        return EVALUATE if self.stages[0].kind in ANSWERING else WORK

    @property
    def seconds(self) -> float | None:
        """After how long it is taken to hang; None where nothing says so."""
        limit = self.limits.seconds
        tasks = sum(
            len(stage.inputs["samples"]) if stage.kind == "noise" else 1 for stage in self.stages
        )
        return None if limit is None or self.role != EVALUATE else limit * tasks

    @property
    def label(self) -> str:
        """For the live view."""
        first = self.stages[0]
        if first.kind == "samples":
            return "evaluate" + first.label.partition(" of")[2]
        return first.label


def run_job(job: Job, report: Report) -> dict[str, Any]:
    """Make every stage of `job`; called inside a worker."""
    store = Store(Path(job.store))
    first = job.stages[0]
    keep = store.failure_folder(first.kind, first.key)
    keep.mkdir(parents=True, exist_ok=True)
    progress = reporting(report)
    try:
        with captured(keep / LOG, job.verbose):
            try:
                _make_all(job, store, progress, report)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        described = {"message": f"{type(error).__name__}: {error}"}
        (keep / "error.json").write_text(json.dumps(described) + "\n")
        raise
    final = store.folder(first.kind, first.key)
    if (keep / LOG).exists():
        os.replace(keep / LOG, final / LOG)
    for leftover in keep.glob("*"):
        leftover.unlink(missing_ok=True)
    keep.rmdir()
    return {}


def _make_all(job: Job, store: Store, progress: Progress, report: Report) -> None:
    from harness.running.builders import Builder

    def provenance() -> Mapping[str, Any]:
        return job.provenance

    _import_heavy()
    if job.role == EVALUATE:
        _evaluate(job, store, report, provenance)
        return
    for stage in job.stages:
        builder = Builder(stage, store, progress, provenance)
        store.make(stage.kind, stage.key, stage.recipe, builder.build, provenance)


def _evaluate(
    job: Job, store: Store, report: Report, provenance: Callable[[], Mapping[str, Any]]
) -> None:
    from harness.running.builders import device
    from harness.running.evaluation_builders import Evaluation

    def told(done: int, total: int) -> None:
        report("answers", done, total)

    evaluation = Evaluation(
        store,
        _host(),
        device(),
        told=told,
        limits=job.limits,
        attempt=job.attempt,
        provenance=provenance,
        verbose=job.verbose,
    )
    report("starting the engine", 0, None)
    if job.stages[0].kind == "samples":
        evaluation.samples(job.stages)
        return
    made = {"answers": evaluation.answers, "noise": evaluation.repetition}
    for stage in job.stages:
        build = partial(made[stage.kind], stage)
        store.make(stage.kind, stage.key, stage.recipe, build, provenance)


@functools.cache
def _host() -> EnginePool:
    """The engine of this process, kept from job to job until the process ends."""
    from harness.evaluation.engine import EnginePool

    host = EnginePool()
    atexit.register(host.close)
    return host


def _import_heavy() -> None:
    """Load what jobs import, so that a worker's first job is not charged for it."""
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401


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

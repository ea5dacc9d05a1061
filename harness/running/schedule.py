"""The scheduler: from stages that are wanted to jobs on worker processes, most urgent first.

State lives in the store only. What fails is remembered and takes the stages behind it with it;
nothing else stops.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.evaluation.settings import Limits
from harness.experiment.stage import Stage, with_ancestors
from harness.experiment.store import Store
from harness.running.display import View
from harness.running.job import ENGINE, Job, run_job
from harness.running.workers import Outcome, Workers, available_cores

RETRIES = 1
"""How often a job is tried again after its worker process died."""
POLL_SECONDS = 0.25
IN_A_ROW = 8
"""Jobs of one role on a GPU before more urgent jobs of another role get their turn."""
LOG_LINES = 20
"""Of a failed job's log, in the record of its cells."""


def has_gpu() -> bool:
    """Whether an NVIDIA device is visible; asked without importing torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return hidden != "" and Path("/dev/nvidiactl").exists()


def default_workers(threads: int) -> int:
    """Worker processes for this machine: one per `threads` cores, one on a GPU."""
    return 1 if has_gpu() else max(1, available_cores() // threads)


def missing_stages(wanted: Iterable[Stage], store: Store) -> dict[str, Stage]:
    """Stages to build so that `wanted` are in the store, by key, parents first.

    What stands behind a stored artefact is not built again.
    """
    missing: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in missing or stage.recipe.external or store.has(stage):
            return
        for parent in stage.parents.values():
            visit(parent)
        missing[stage.key] = stage

    for stage in wanted:
        visit(stage)
    return missing


def grouped(stages: Mapping[str, Stage]) -> list[tuple[Stage, ...]]:
    """Stages that one job builds together, the most urgent first.

    All tasks of a checkpoint share an engine. Urgent is what most stages wait for; an evaluation
    goes just before the next training, so that a run that is stopped early has whole cells to show.
    """
    waiting = descendants(stages)
    groups: dict[str, list[Stage]] = {}
    for key, stage in stages.items():
        name = stage.parents["model"].key + "-samples" if stage.kind == "samples" else key
        groups.setdefault(name, []).append(stage)

    def urgency(group: Sequence[Stage]) -> float:
        if group[0].kind == "samples":
            return len(group) + 0.5
        return max(waiting[stage.key] for stage in group)

    return [tuple(group) for group in sorted(groups.values(), key=lambda g: -urgency(g))]


def descendants(stages: Mapping[str, Stage]) -> dict[str, int]:
    """How many of `stages` wait, directly or not, for each of them."""
    below: dict[str, set[str]] = {key: set() for key in stages}
    for key, stage in reversed(list(stages.items())):
        for parent in stage.parents.values():
            if parent.key in below:
                below[parent.key] |= {key} | below[key]
    return {key: len(keys) for key, keys in below.items()}


@dataclass
class Scheduler:
    """Builds stages on worker processes.

    Args:
        store: where artefacts are.
        workers: number of worker processes.
        threads: threads of each.
        provenance: of everything that is built.
        limits: what this run overrides of the engines' settings, and the seconds for a task.
        start: starts the workers; a test may hand in another.
    """

    store: Store
    workers: int
    threads: int = 1
    provenance: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = False
    limits: Limits = field(default_factory=Limits)
    start: Callable[..., Workers] = Workers
    failures: dict[str, tuple[Stage, Mapping[str, Any]]] = field(default_factory=dict)
    """Stages that could not be built with their errors, by key."""

    def __post_init__(self) -> None:
        self.gpu = has_gpu()
        self._attempts: dict[str, int] = {}
        self._last_role, self._in_a_row = "", 0

    def jobs(self, wanted: Iterable[Stage]) -> list[Job]:
        """Jobs that bring `wanted` into the store, most urgent first."""
        return [self.job(*group) for group in grouped(missing_stages(wanted, self.store))]

    def job(self, *stages: Stage) -> Job:
        """One job for these stages."""
        root = str(self.store.root.resolve())
        return Job(stages, root, self.provenance, self.verbose, self.limits)

    def run(
        self,
        jobs: Sequence[Job],
        view: View,
        on_finished: Callable[[], None] = lambda: None,
        *,
        stop_at_failure: bool = False,
    ) -> None:
        """Run jobs; what ends in an error is in `failures` afterwards.

        `on_finished` is called after every job that succeeded. `stop_at_failure`: start no further
        job after the first failure.
        """
        waiting = list(jobs)
        with self.start(
            min(self.workers, len(waiting)),
            run_job,
            threads=self.threads,
            exclusive=self.gpu,
            kept=(ENGINE,),
        ) as workers:
            while waiting or workers.busy:
                waiting = [] if stop_at_failure and self.failures else self._possible(waiting)
                while workers.idle is not None and (job := self._next(waiting)) is not None:
                    waiting.remove(job)
                    workers.submit(job)
                view.update(workers, waiting)
                if not workers.busy and waiting:
                    labels = [job.label for job in waiting]
                    raise RuntimeError(f"no job can start; waiting: {labels}")
                for outcome in workers.poll(POLL_SECONDS):
                    self._ended(outcome, waiting, view, on_finished)

    def _next(self, waiting: Sequence[Job]) -> Job | None:
        ready = [job for job in waiting if all(map(self._ready, job.stages))]
        if not ready:
            return None
        job = ready[0]
        if self.gpu and self._in_a_row < IN_A_ROW:
            # One engine serves many checkpoints, but gives its memory up for every training run.
            job = next((other for other in ready if other.role == self._last_role), job)
        self._in_a_row = self._in_a_row + 1 if job.role == self._last_role else 1
        self._last_role = job.role
        return job

    def _ready(self, stage: Stage) -> bool:
        parents = stage.parents.values()
        return all(parent.recipe.external or self.store.has(parent) for parent in parents)

    def _possible(self, waiting: list[Job]) -> list[Job]:
        """Jobs without those that stand behind a failed stage."""
        if not self.failures:
            return waiting
        return [
            job for job in waiting if self.failures.keys().isdisjoint(with_ancestors(job.stages))
        ]

    def _ended(
        self, outcome: Outcome, waiting: list[Job], view: View, on_finished: Callable[[], None]
    ) -> None:
        job: Job = outcome.job
        first = job.stages[0]
        if outcome.error is None:
            view.finished(job)
            on_finished()
            return
        attempts = self._attempts.get(first.key, 0)
        if outcome.died and attempts < RETRIES:
            self._attempts[first.key] = attempts + 1
            waiting.insert(0, replace(job, attempt=job.attempt + 1))
            view.note(f"{job.label}: {outcome.error['message']}; trying once more")
            return
        log = self.store.log(first)
        error = {**outcome.error, "log": tail(log)} if log else outcome.error
        for stage in job.stages:
            if not self.store.has(stage):
                self.failures[stage.key] = (stage, error)
        where = f" (log: {log})" if log else ""
        view.note(f"FAILED {job.label}: {outcome.error['message']}{where}")


def tail(log: Path, lines: int = LOG_LINES) -> str:
    """The end of a log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])

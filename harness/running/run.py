"""Runs what a plan still lacks, in worker processes, and writes a record for every finished cell.

State lives in the store and in records.jsonl only. A run that is stopped or killed is continued by
the same command; a stage that fails takes the cells behind it with it and stops nothing else. Only
data sets come first: nothing is trained before they are compared and no question stands in two of
them, or the experiment says that it may.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from harness.evaluation.settings import Limits
from harness.experiment import records
from harness.experiment.stage import EXTERNAL, Stage, together
from harness.experiment.store import Store, digest
from harness.running import cell_record, facts
from harness.running.display import View
from harness.running.job import EVALUATE, Job, run_job
from harness.running.overlap import refusal
from harness.running.plan import Cell, Plan
from harness.running.workers import Outcome, Workers, available_cores

RETRIES = 1
"""How often a job is tried again after its worker process died."""
POLL_SECONDS = 0.25
IN_A_ROW = 8
"""Jobs of a role on a GPU, before those of another role that are more urgent have their turn."""
LOG_LINES = 20
"""Of a failed job's log, in the record of its cells."""


@dataclass
class Summary:
    """What a run did."""

    cells: int
    failed: dict[str, str] = field(default_factory=dict)
    made: int = 0
    found: int = 0
    seconds: float = 0.0


def protocol_of(plan: Plan) -> dict[str, Any]:
    """The resolved experiment, as `protocol.toml` holds it."""
    dumped = plan.experiment.model_dump(mode="json", exclude_none=True)
    for name in ("selector", "grid", "discover"):
        dumped.pop(name, None)
    grid, evaluate = plan.experiment.grid, plan.experiment.evaluate
    rows = [row.model_dump(mode="json", exclude_none=True) for row in plan.rows]
    head = {
        "name": dumped.pop("name"),
        "fractions": list(grid.fractions),
        "seeds": list(grid.seeds),
        "tasks": list(evaluate.tasks),
    }
    return {**head, **dumped, "engine": dict(plan.engine), "rows": rows}


def write_protocol(plan: Plan, folder: Path) -> str:
    """Write `protocol.toml` where it differs; return its hash."""
    protocol = protocol_of(plan)
    text = (
        "# The protocol of this experiment as it was run; written before the first record.\n"
        + tomli_w.dumps(protocol)
    ).encode()
    path = folder / "protocol.toml"
    if not path.exists() or path.read_bytes() != text:
        records.write_atomic(path, text)
    return digest(protocol)


class Run:
    """One call of `cotsieve run`.

    Args:
        plan: the cells.
        store: where artefacts are.
        results: folder of this experiment's records.
        workers: worker processes; None for one per available core (one on a GPU).
        only: selector or row names to run, None for all.
        limits: what this run overrides of the engines' set-up, and the seconds for a task.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        results: Path,
        *,
        workers: int | None = None,
        only: str | None = None,
        verbose: bool = False,
        limits: Limits | None = None,
        code: Path = Path(__file__).parents[2],
    ) -> None:
        self.plan = plan
        self.store = store
        self.results = results
        self.cells = [cell for cell in plan.cells if chosen(cell, only)]
        self.gpu = has_gpu()
        threads = plan.experiment.train.threads
        self.workers = workers or (1 if self.gpu else max(1, available_cores() // threads))
        self.verbose = verbose
        self.limits = limits or Limits()
        self.provenance = {
            **records.provenance(code, "cuda" if self.gpu else "cpu", plan.engine),
            "threads": threads,
        }
        self.protocol = ""
        self.newest: dict[str, Mapping[str, Any]] = {}
        self.failures: dict[str, tuple[Stage, Mapping[str, Any]]] = {}
        self.tries: dict[str, int] = {}
        self.open_cells: list[Cell] = []
        self.last_role, self.in_a_row = "", 0

    def execute(self, view: View) -> Summary:
        """Make what is missing; return what happened. KeyboardInterrupt passes through.

        Raises:
            ValueError: questions stand in two data sets and the experiment does not say that they
                may; nothing has been trained, and no record written.
        """
        start = time.monotonic()
        jobs = self.jobs()
        summary = Summary(cells=len(self.cells), made=len(jobs))
        summary.found = len(self.cells) - len([c for c in self.cells if not self._complete(c)])
        view.begin(self.cells, jobs, self.workers)
        first, rest = self._parted(jobs)
        with self._workers(jobs) as workers:
            self._schedule(first, workers, view)
            compared = all(check.made(self.store) for check in self.plan.checks)
            if compared and (refused := refusal(self.plan.checks, self.store)):
                raise ValueError(refused)
            self.protocol = write_protocol(self.plan, self.results)
            self.newest = records.newest(records.read(self.results))
            self.open_cells = list(self.cells)
            if compared:
                self._record_finished(view)
                self._schedule(rest, workers, view)
        for cell in self.open_cells:
            stage, error = self._cause(cell)
            summary.failed[cell.name] = str(error["message"])
            entry = cell_record.failed(cell, self.plan, self.protocol, stage, error)
            records.append(self.results, {**entry, "provenance": self.provenance})
        facts.write_facts(self.plan, self.store, self.results)
        view.end()
        summary.seconds = time.monotonic() - start
        return summary

    def make(self, jobs: list[Job], view: View, stop: bool = False) -> None:
        """Run jobs in workers; what ends in an error is in `failures` afterwards, by stage key.

        `stop`: start no further job after the first failure.
        """
        with self._workers(jobs) as workers:
            self._schedule(jobs, workers, view, stop)

    def job(self, *stages: Stage) -> Job:
        """Stages to be made in one go, with what this run says of all its jobs."""
        root = str(self.store.root.resolve())
        return Job(stages, root, self.provenance, self.verbose, self.limits)

    def compare(self, view: View) -> None:
        """Make the data sets and compare them, and nothing else; ValueError where that fails."""
        jobs, _ = self._parted(self.jobs())
        if jobs:
            view.begin([], jobs, self.workers)
        with self._workers(jobs) as workers:
            self._schedule(jobs, workers, view)
        if self.failures:
            stage, error = next(iter(self.failures.values()))
            raise ValueError(f"{stage.label}: {error['message']}")

    def _workers(self, jobs: list[Job]) -> Workers:
        return Workers(
            min(self.workers, len(jobs)),
            run_job,
            threads=self.plan.experiment.train.threads,
            exclusive=self.gpu,
            kept=(EVALUATE,),
        )

    def _parted(self, jobs: list[Job]) -> tuple[list[Job], list[Job]]:
        """Jobs that the comparison of data sets rests on, and those that wait for its outcome."""
        behind = together(check.stage for check in self.plan.checks)
        first = [job for job in jobs if job.stages[0].key in behind]
        return first, [job for job in jobs if job.stages[0].key not in behind]

    def jobs(self) -> list[Job]:
        """Work that is still to be done, most urgent first."""
        ends = [*self.plan.proofs, *(check.stage for check in self.plan.checks)]
        ends += [stage for cell in self.cells for stage in cell.samples.values()]
        if self.cells == list(self.plan.cells):  # |C| and |I| are facts of every whole run
            ends += [q[when] for q in self.plan.queries.values() for when in ("before", "after")]
        stages = together(ends)
        missing = {
            key: stage
            for key, stage in stages.items()
            if stage.kind not in EXTERNAL and not self.store.has(stage.kind, key)
        }
        needed = self._needed(missing, ends)
        weight = descendants(needed)
        groups: dict[str, list[Stage]] = {}
        for key, stage in needed.items():
            name = stage.parents["model"].key + "-samples" if stage.kind == "samples" else key
            groups.setdefault(name, []).append(stage)
        jobs = [self.job(*group) for group in groups.values()]
        return sorted(jobs, key=lambda job: -urgency(job, weight))

    def _needed(self, missing: dict[str, Stage], ends: list[Stage]) -> dict[str, Stage]:
        """Missing stages that an end really waits for: not those behind a stored artefact."""
        needed: dict[str, Stage] = {}

        def visit(stage: Stage) -> None:
            if stage.key in needed or stage.key not in missing:
                return
            for parent in stage.parents.values():
                visit(parent)
            needed[stage.key] = stage

        for end in ends:
            visit(end)
        # A finished cell's record is made from everything behind it.
        for cell in self.cells:
            for stage in outcome_stages(cell):
                visit(stage)
        return needed

    def _schedule(self, jobs: list[Job], workers: Workers, view: View, stop: bool = False) -> None:
        waiting = list(jobs)
        while waiting or workers.busy:
            waiting = [] if stop and self.failures else self._drop_hopeless(waiting)
            while workers.idle is not None:
                job = self._next(waiting, workers)
                if job is None:
                    break
                waiting.remove(job)
                workers.submit(job)
            view.update(workers, waiting)
            if not workers.busy and waiting:
                raise RuntimeError(f"no job can start; waiting: {[j.label for j in waiting]}")
            for ended in workers.poll(POLL_SECONDS):
                self._ended(ended, waiting, view)

    def _next(self, waiting: list[Job], workers: Workers) -> Job | None:
        busy = {s.group for w in workers.busy for s in w.job.stages if s.group is not None}
        ready = [
            job
            for job in waiting
            if not any(stage.group in busy for stage in job.stages)
            and all(self._ready(stage) for stage in job.stages)
        ]
        if not ready:
            return None
        job = ready[0]
        if self.gpu and self.in_a_row < IN_A_ROW:
            # One engine serves many checkpoints, but gives its memory up for every training run.
            job = next((other for other in ready if other.role == self.last_role), job)
        self.in_a_row = self.in_a_row + 1 if job.role == self.last_role else 1
        self.last_role = job.role
        return job

    def _ready(self, stage: Stage) -> bool:
        return all(
            parent.kind in EXTERNAL or self.store.has(parent.kind, parent.key)
            for parent in stage.parents.values()
        )

    def _drop_hopeless(self, waiting: list[Job]) -> list[Job]:
        """Jobs without those that stand behind a failed stage."""
        if not self.failures:
            return waiting
        return [
            job
            for job in waiting
            if not any(a.key in self.failures for s in job.stages for a in s.ancestry())
        ]

    def _ended(self, ended: Outcome, waiting: list[Job], view: View) -> None:
        job: Job = ended.job
        first = job.stages[0]
        if ended.error is None:
            view.finished(job)
            self._record_finished(view)
            return
        if ended.died and self.tries.get(first.key, 0) < RETRIES:
            self.tries[first.key] = self.tries.get(first.key, 0) + 1
            waiting.insert(0, replace(job, attempt=job.attempt + 1))
            view.note(f"{job.label}: {ended.error['message']}; trying once more")
            return
        log = self.store.logged(first.kind, first.key)
        error = {**ended.error, "log": tail(log)} if log else ended.error
        for stage in job.stages:
            if not self.store.has(stage.kind, stage.key):
                self.failures[stage.key] = (stage, error)
        view.note(
            f"FAILED {job.label}: {ended.error['message']}" + (f" (log: {log})" if log else "")
        )

    def _complete(self, cell: Cell) -> bool:
        return all(self.store.has(stage.kind, stage.key) for stage in outcome_stages(cell))

    def _record_finished(self, view: View) -> None:
        still_open = []
        for cell in self.open_cells:
            if not self._complete(cell):
                still_open.append(cell)
                continue
            if not cell_record.recorded(
                cell, self.newest.get(cell.name), self.protocol, self.store, self.results
            ):
                entry = cell_record.done(cell, self.plan, self.protocol, self.store, self.results)
                records.append(self.results, entry)
            view.cell_done(cell)
        self.open_cells = still_open

    def _cause(self, cell: Cell) -> tuple[Stage, Mapping[str, Any]]:
        # Cells also wait for what says that their data sets may be used.
        for end in [*cell.samples.values(), *(check.stage for check in self.plan.checks)]:
            for stage in end.ancestry():
                if stage.key in self.failures:
                    return self.failures[stage.key]
        raise RuntimeError(f"cell {cell.name} is neither done nor failed")


def chosen(cell: Cell, only: str | None) -> bool:
    """Whether `--only` (`selector=NAME` or `row=NAME`) asks for this cell."""
    if only is None:
        return True
    key, _, value = only.partition("=")
    if key not in ("selector", "row") or not value:
        raise ValueError(f"--only {only!r}; expected selector=NAME or row=NAME")
    return value == (cell.row.selector if key == "selector" else cell.row.row)


def outcome_stages(cell: Cell) -> list[Stage]:
    """Stages that a cell's record is made from."""
    found = list(cell.samples.values())
    if cell.subset is not None and cell.checkpoint is not None:
        found += [cell.subset, cell.checkpoint, cell.subset.parents["pool"]]
        scores = cell.subset.parents.get("scores")
        for stage in [cell.subset, *([scores] if scores else [])]:
            found += [
                parent for role, parent in stage.parents.items() if parent.kind not in EXTERNAL
            ]
    return found


def descendants(stages: Mapping[str, Stage]) -> dict[str, int]:
    """How many of `stages` wait, directly or not, for each of them."""
    below: dict[str, set[str]] = {key: set() for key in stages}
    for key, stage in reversed(list(stages.items())):
        for parent in stage.parents.values():
            if parent.key in below:
                below[parent.key] |= {key} | below[key]
    return {key: len(found) for key, found in below.items()}


def urgency(job: Job, weight: Mapping[str, int]) -> float:
    """How much waits for a job; an evaluation goes just before the next training.

    So cells are finished one by one, and a run that is stopped early has whole cells to show.
    """
    if job.stages[0].kind == "samples":
        return len(job.stages) + 0.5
    return max(weight[stage.key] for stage in job.stages)


def tail(log: Path, lines: int = LOG_LINES) -> str:
    """The end of a log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def has_gpu() -> bool:
    """Whether an NVIDIA device is visible; asked without importing torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return hidden != "" and Path("/dev/nvidiactl").exists()

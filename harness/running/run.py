"""Runs what a plan still lacks, in worker processes, and writes a record for every finished cell.

State lives in the store and in records.jsonl only. A run that is stopped or killed is continued by
the same command; a stage that fails takes the cells behind it with it and stops nothing else. Only
data sets come first: nothing is trained before they are compared and no question stands in two of
them, or the experiment says that it may.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from harness.evaluation.settings import Limits
from harness.experiment import records
from harness.experiment.stage import Stage, plain, with_ancestors
from harness.experiment.store import Store, digest
from harness.running import cell_record
from harness.running.display import View
from harness.running.facts import write_facts
from harness.running.job import Job
from harness.running.overlap import refusal
from harness.running.plan import Cell, Plan
from harness.running.schedule import Scheduler, default_workers, has_gpu
from harness.running.workers import Workers


@dataclass
class Summary:
    """What a run did."""

    cells: int
    failed: dict[str, str] = field(default_factory=dict)
    jobs: int = 0
    stored: int = 0
    """Cells that were complete before."""
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
    return {**head, **dumped, "engine": plain(plan.engine), "rows": rows}


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
        limits: what this run overrides of the engines' settings, and the seconds for a task.
        start: starts the workers; a test may hand in another.
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
        start: Callable[..., Workers] | None = None,
    ) -> None:
        self.plan = plan
        self.store = store
        self.results = results
        self.cells = [cell for cell in plan.cells if chosen(cell, only)]
        threads = plan.experiment.train.threads
        engine = plain(plan.engine)
        origin = records.provenance(code, "cuda" if has_gpu() else "cpu", engine)
        self.scheduler = Scheduler(
            store,
            workers or default_workers(threads),
            threads,
            {**origin, "threads": threads},
            verbose,
            limits or Limits(),
            start or Workers,
        )

    def execute(self, view: View) -> Summary:
        """Build what is missing; return what happened. KeyboardInterrupt passes through.

        Raises:
            ValueError: questions stand in two data sets and the experiment does not say that they
                may; nothing has been trained, and no record written.
        """
        started = time.monotonic()
        first, rest = self._parted()
        summary = Summary(cells=len(self.cells), jobs=len(first) + len(rest))
        summary.stored = sum(cell.stored(self.store) for cell in self.cells)
        view.begin(self.cells, [*first, *rest], self.scheduler.workers)
        self.scheduler.run(first, view)
        compared = all(check.is_built(self.store) for check in self.plan.checks)
        if compared and (refused := refusal(self.plan.checks, self.store)):
            raise ValueError(refused)
        recorder = Recorder(self.plan, self.store, self.results, self.cells)
        if compared:
            recorder.record_finished(view)
            self.scheduler.run(rest, view, lambda: recorder.record_finished(view))
        for cell in recorder.open_cells:
            stage, error = self._cause(cell)
            summary.failed[cell.name] = str(error["message"])
            recorder.record_failed(cell, stage, error, self.scheduler.provenance)
        write_facts(self.plan, self.store, self.results)
        view.end()
        summary.seconds = time.monotonic() - started
        return summary

    def compare(self, view: View) -> None:
        """Build the data sets and compare them, and nothing else; ValueError where that fails."""
        first, _ = self._parted()
        if first:
            view.begin([], first, self.scheduler.workers)
        self.scheduler.run(first, view)
        for stage, error in self.scheduler.failures.values():
            raise ValueError(f"{stage.label}: {error['message']}")

    def _parted(self) -> tuple[list[Job], list[Job]]:
        """Jobs that the comparison of data sets rests on, and those that wait for its outcome."""
        behind = with_ancestors(check.stage for check in self.plan.checks)
        jobs = self.scheduler.jobs(wanted_stages(self.plan, self.cells))
        first = [job for job in jobs if job.stages[0].key in behind]
        return first, [job for job in jobs if job.stages[0].key not in behind]

    def _cause(self, cell: Cell) -> tuple[Stage, Mapping[str, Any]]:
        # Cells also wait for what says that their data sets may be used.
        ends = [*cell.samples.values(), *(check.stage for check in self.plan.checks)]
        for key in with_ancestors(ends):
            if key in self.scheduler.failures:
                return self.scheduler.failures[key]
        raise RuntimeError(f"cell {cell.name} is neither done nor failed")


def wanted_stages(plan: Plan, cells: Sequence[Cell]) -> list[Stage]:
    """Everything that a run of `cells` brings into the store."""
    wanted = [*plan.proofs, *(check.stage for check in plan.checks)]
    wanted += [stage for cell in cells for stage in cell.samples.values()]
    if len(cells) == len(plan.cells):  # |C| and |I| are facts of every whole run
        wanted += [q[when] for q in plan.queries.values() for when in ("before", "after")]
    return [*wanted, *(stage for cell in cells for stage in cell.recorded_stages())]


class Recorder:
    """Writes a record for every cell as soon as everything behind it is stored."""

    def __init__(self, plan: Plan, store: Store, results: Path, cells: Sequence[Cell]) -> None:
        self.plan = plan
        self.store = store
        self.results = results
        self.open_cells = list(cells)
        self.protocol = write_protocol(plan, results)
        self.newest = records.newest(records.read(results))

    def record_finished(self, view: View) -> None:
        """Write the records of the cells that are complete now."""
        still_open = []
        for cell in self.open_cells:
            if not cell.stored(self.store):
                still_open.append(cell)
                continue
            last = self.newest.get(cell.name)
            if not cell_record.recorded(cell, last, self.protocol, self.store, self.results):
                entry = cell_record.done(cell, self.plan, self.protocol, self.store, self.results)
                records.append(self.results, entry)
            view.cell_done(cell)
        self.open_cells = still_open

    def record_failed(
        self, cell: Cell, stage: Stage, error: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> None:
        """Write the record of a cell that cannot be finished because `stage` failed."""
        entry = cell_record.failed(cell, self.plan, self.protocol, stage, error)
        records.append(self.results, {**entry, "provenance": provenance})


def chosen(cell: Cell, only: str | None) -> bool:
    """Whether `--only` (`selector=NAME` or `row=NAME`) asks for this cell."""
    if only is None:
        return True
    key, _, value = only.partition("=")
    if key not in ("selector", "row") or not value:
        raise ValueError(f"--only {only!r}; expected selector=NAME or row=NAME")
    return value == (cell.row.selector if key == "selector" else cell.row.row)

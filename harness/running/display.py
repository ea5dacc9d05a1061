"""What a running experiment shows: one live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.experiment.progress import PLAIN_SECONDS, clock
from harness.running.job import Job
from harness.running.plan import Cell
from harness.running.workers import Workers


class View:
    """What a run shows while it goes on; this one shows nothing, for tests and programs."""

    def begin(self, cells: Sequence[Any], jobs: Sequence[Job], workers: int) -> None:
        """The run starts with this much to do."""

    def update(self, workers: Workers, waiting: Sequence[Job]) -> None:
        """Called a few times a second."""

    def finished(self, job: Job) -> None:
        """A job succeeded."""

    def cell_done(self, cell: Cell) -> None:
        """A cell has its record."""

    def note(self, text: str) -> None:
        """Something worth a line that stays."""

    def end(self) -> None:
        """The run is over, however it ended."""


class LiveView(View):
    """What is done, running and to do, with the time left; live on a terminal, lines elsewhere.

    Args:
        unit: what is counted.
        counts_jobs: every job is one unit, rather than what `cell_done` reports.
    """

    def __init__(self, console: Console, unit: str = "cells", counts_jobs: bool = False) -> None:
        self.console = console
        self.unit = unit
        self.counts_jobs = counts_jobs
        self.live: Live | None = None
        self.total = self.done = self.stored = 0
        self.spent: dict[str, list[float]] = {}
        self.running: dict[int, tuple[Job, float]] = {}
        self.started = time.monotonic()
        self.last_line = 0.0
        self.left = 0.0

    def begin(self, cells: Sequence[Any], jobs: Sequence[Job], workers: int) -> None:
        """Say what there is to do."""
        self.total = len(cells)
        if self.counts_jobs:
            self.done = self.total - len(jobs)
        if not jobs:
            self.console.print(f"All {self.total} {self.unit} are stored; nothing to run.")
            return
        self.console.print(
            f"{self.total} {self.unit}, {len(jobs)} jobs to run on {workers} "
            f"worker{'s' if workers > 1 else ''}. Stop at any time; the same command continues."
        )
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.start()

    def update(self, workers: Workers, waiting: Sequence[Job]) -> None:
        """Refresh what is running."""
        now = time.monotonic()
        seen = {id(w.job): (w.job, w.started) for w in workers.busy}
        self.running = seen
        self.left = self._time_left(workers, waiting, now)
        if self.live is not None:
            self.live.update(self._table(workers, waiting, now))
        elif now - self.last_line >= PLAIN_SECONDS:
            self.last_line = now
            names = "; ".join(self._status(w) for w in workers.busy)
            self.console.print(f"{self._head(waiting)} | {names}", soft_wrap=True, highlight=False)

    def finished(self, job: Job) -> None:
        """Learn how long such a job takes."""
        started = self.running.get(id(job), (job, time.monotonic()))[1]
        self.spent.setdefault(job.stages[0].kind, []).append(time.monotonic() - started)
        self.done += self.counts_jobs

    def cell_done(self, cell: Cell) -> None:
        """Count a finished cell."""
        self.done += 1

    def note(self, text: str) -> None:
        """Show a line that stays."""
        (self.live.console if self.live else self.console).print(Text(text), soft_wrap=True)

    def end(self) -> None:
        """Put the terminal back."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _typical(self, job: Job) -> float:
        kind = job.stages[0].kind
        measured = self.spent.get(kind)
        if measured:
            return sum(measured[-20:]) / len(measured[-20:])
        return job.stages[0].recipe.cost(None).seconds

    def _time_left(self, workers: Workers, waiting: Sequence[Job], now: float) -> float:
        work = sum(self._typical(job) for job in waiting)
        work += sum(max(0.0, self._typical(w.job) - (now - w.started)) for w in workers.busy)
        return work / max(1, len(workers.workers))

    def _head(self, waiting: Sequence[Job]) -> str:
        spent = time.monotonic() - self.started
        return (
            f"[{clock(spent)}] {self.unit} {self.done}/{self.total} done, jobs {len(self.running)} "
            f"running, {len(waiting)} to do, about {clock(self.left)} left"
        )

    def _status(self, worker: Any) -> str:
        description, done, total = worker.status
        steps = f" {done}/{total}" if total else ""
        return f"{worker.job.label}{': ' + description if description else ''}{steps}"

    def _table(self, workers: Workers, waiting: Sequence[Job], now: float) -> Group:
        table = Table.grid(padding=(0, 2))
        for worker in workers.busy:
            description, done, total = worker.status
            bar = ProgressBar(total=total or 1, completed=done or 0, width=24)
            seconds = Text(f"{now - worker.started:4.0f} s", style="dim")
            table.add_row("  ", Text(worker.job.label), bar, Text(description or ""), seconds)
        bar = ProgressBar(total=max(1, self.total), completed=self.done, width=40)
        return Group(Text(self._head(waiting), style="bold"), bar, table)

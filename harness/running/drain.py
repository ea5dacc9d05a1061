"""Hands jobs to worker processes one after the other and shows how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

from rich.console import Console

from harness.experiment.progress import Bars
from harness.running.workers import Outcome, Report, Workers


def drain(
    jobs: Sequence[Any],
    workers: int,
    target: Callable[[Any, Report], Any],
    take: Callable[[Outcome], None],
    title: str,
    console: Console,
) -> None:
    """Run `target` on every job, in order, and hand each outcome to `take` as it comes.

    What `take` raises ends the rest.
    """
    if not jobs:
        return
    with (
        Workers(min(workers, len(jobs)), target) as pool,
        closing(Bars(console)(_outcomes(pool, jobs), title, len(jobs))) as shown,
    ):
        for ended in shown:
            take(ended)


def _outcomes(pool: Workers, jobs: Sequence[Any]) -> Iterator[Outcome]:
    """What becomes of every job, as it ends."""
    waiting = list(jobs)
    while waiting or pool.busy:
        while waiting and pool.idle is not None:
            pool.submit(waiting.pop(0))
        yield from pool.poll(0.2)

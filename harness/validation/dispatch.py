"""Hands jobs to worker processes one after the other and tells how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from harness.executors import Outcome, Report, Workers

PLAIN_SECONDS = 30.0


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
    waiting, done, total = list(jobs), 0, len(jobs)
    if not waiting:
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    started = last = time.monotonic()
    with (
        Progress(*columns, console=console, transient=True) as bar,
        Workers(min(workers, total), target) as pool,
    ):
        shown = bar.add_task(title, total=total)
        while waiting or pool.busy:
            while waiting and pool.idle is not None:
                pool.submit(waiting.pop(0))
            for ended in pool.poll(0.2):
                take(ended)
                done += 1
                bar.update(shown, completed=done)
            now = time.monotonic()
            if not console.is_terminal and now - last >= PLAIN_SECONDS and done:
                last = now
                left = (now - started) / done * (total - done)
                console.print(f"{title}: {done} of {total}, about {left / 60:.0f} min left")

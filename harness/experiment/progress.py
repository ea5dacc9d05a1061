"""How far a long loop is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Protocol

import rich.progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 15.0
"""Between two plain lines."""


def clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressBars:
    """Progress bars of long loops, with the time left: one line each, plain lines elsewhere.

    `bars(iterable, description, total)` hands the iterable through.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(
        self, iterable: Iterable[Any], description: str, total: int
    ) -> Generator[Any, None, None]:
        """Show how far the loop over `iterable` is."""
        show = self._live if self.console.is_terminal else self._lines
        yield from show(iterable, description, total)

    def _live(self, iterable: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=self.console, transient=True) as bar:
            yield from bar.track(iterable, total=total, description=description)

    def _lines(self, iterable: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        start = last = time.monotonic()
        for done, item in enumerate(iterable):
            now = time.monotonic()
            if now - last >= PLAIN_SECONDS and done:
                last = now
                left = (now - start) / done * (total - done)
                self.console.print(
                    f"{description} {done}/{total}, about {clock(left)} left", highlight=False
                )
            yield item


class Progress(Protocol):
    """Passes an iterable through while showing how far it has come."""

    def __call__(
        self, iterable: Iterable[Any], description: str = "", total: int | None = None
    ) -> Iterable[Any]:
        """The entries of `iterable`."""
        ...


def no_progress(
    iterable: Iterable[Any], description: str = "", total: int | None = None
) -> Iterable[Any]:
    """The silent progress: hands the iterable through."""
    return iterable

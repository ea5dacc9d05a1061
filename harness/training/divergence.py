"""Detects a diverging training run while it runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WINDOW = 8
"""Consecutive bad steps after which a run counts as diverged."""


class TrainingDiverged(RuntimeError):
    """A training run diverged: its loss is not finite or far above where it began."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"training diverged at step {step}: {reason}")
        self.step = step


class DivergenceMonitor:
    """Collects the loss of every step and raises TrainingDiverged.

    A run has diverged when a loss is not finite, or when `WINDOW` steps in a row lie above
    max(start + 1, min(3 * start, log(vocabulary))). `start` is the mean over the first steps, as
    many as hold 32 examples: with ordinary batches the loss before the first update. Three times
    the start, or worse than guessing the next token uniformly, is never recovered from by the end
    of a decaying schedule; the margin of one nat keeps a start near zero from tripping it.

    Losses are looked at every `every` steps, so that a GPU is not made to wait for each of them;
    the step that is reported is exact nevertheless.
    """

    def __init__(self, *, start_steps: int, vocabulary: int, every: int = 1) -> None:
        self.losses: list[float] = []
        self.every = every
        self._start_steps = start_steps
        self._vocabulary = vocabulary
        self._pending: list[torch.Tensor] = []
        self._above = 0

    def add(self, loss: torch.Tensor) -> None:
        """Take the loss of one finished step."""
        self._pending.append(loss)
        if len(self._pending) >= self.every:
            self.settle()

    def settle(self) -> None:
        """Look at the losses that are still waiting."""
        import torch

        values = torch.stack(self._pending).tolist() if self._pending else []
        self._pending = []
        for value in values:
            self._look(value)

    def _look(self, value: float) -> None:
        self.losses.append(value)
        step = len(self.losses)
        if not math.isfinite(value):
            raise TrainingDiverged(step, f"the loss is {value}")
        start = sum(self.losses[: self._start_steps]) / min(step, self._start_steps)
        bound = max(start + 1.0, min(3.0 * start, math.log(self._vocabulary)))
        self._above = self._above + 1 if value > bound else 0
        if self._above >= WINDOW:
            raise TrainingDiverged(
                step,
                f"the loss has been above {bound:.3g} for {WINDOW} steps; it began at {start:.3g}",
            )

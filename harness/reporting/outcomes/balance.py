"""The seeds and items on which methods can be set side by side, and what is left out for it.

Only complete tables are analysed: every kept seed has every kept item. Of seeds, taken in the order
of how complete they are, as many are kept as leave the most results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.reporting.numbers import plural
from harness.reporting.outcomes.outcomes import SHOWN, Arm, Mask, Measured
from harness.stats import Outcome


@dataclass(frozen=True)
class LeftOut:
    """What methods have and a comparison does without: seeds by name, items by task."""

    seeds: tuple[str, ...]
    items: Mapping[str, int]

    def __bool__(self) -> bool:
        return bool(self.seeds or self.items)

    def said(self, measured: Measured) -> str:
        """In words."""
        parts = [f"{'seed' if len(self.seeds) == 1 else 'seeds'} {', '.join(self.seeds)}"]
        parts = parts if self.seeds else []
        parts += [f"{plural(n, 'item')}{measured.of_task(task)}" for task, n in self.items.items()]
        return "; ".join(parts)


@dataclass(frozen=True)
class Pair:
    """Two methods on the same seeds and items."""

    method: Outcome
    reference: Outcome
    left_out: LeftOut


def alone(measured: Measured, method: str, tasks: Sequence[str]) -> tuple[Outcome, LeftOut] | None:
    """A method on its own complete seeds and items; None where it has no result in these tasks."""
    arm = measured.arm(method)
    had = [task for task in tasks if arm.present[:, measured.tasks[task]].any()]
    if not had:
        return None
    seeds, items = _whole(measured, (method,), arm.present, had)
    outcome = _outcome(measured, arm, np.array(arm.seeds)[seeds].tolist(), items, had)
    return outcome, _left_out(measured, (arm,), outcome, tasks)


def pair(measured: Measured, method: str, reference: str, tasks: Sequence[str]) -> Pair | None:
    """Two methods on the seeds and items that both have; None where that leaves none of `tasks`.

    Raises:
        ValueError: they have no seed, or fewer than two items of a task, in common.
    """
    a, b = measured.arm(method), measured.arm(reference)
    seeds = _common(measured, method, reference)
    present = _rows(a, seeds) & _rows(b, seeds)
    had = [task for task in tasks if present[:, measured.tasks[task]].any()]
    if not had:
        return None
    kept, items = _whole(measured, (method, reference), present, had)
    chosen = np.array(seeds)[kept].tolist()
    first, second = (_outcome(measured, arm, chosen, items, had) for arm in (a, b))
    trained = first if b.fixed else second
    return Pair(first, second, _left_out(measured, (a, b), trained, tasks))


def refuse_disjoint(measured: Measured, method: str, reference: str) -> None:
    """Raise for two methods that have no item in common."""
    names = []
    for name in (method, reference):
        there = np.flatnonzero(measured.arm(name).present.any(axis=0))
        shown = [measured.items[i] for i in there[:SHOWN]] + ["..."] * (len(there) > SHOWN)
        names.append(f"{name!r} has {', '.join(shown)}")
    raise ValueError(
        f"{measured.source}: no item in common: {'; '.join(names)}; expected results of both "
        "methods on the same items at the same seeds"
    )


def _common(measured: Measured, method: str, reference: str) -> tuple[int, ...]:
    a, b = measured.arm(method), measured.arm(reference)
    if a.fixed or b.fixed:
        return b.seeds if a.fixed else a.seeds
    seeds = tuple(seed for seed in a.seeds if seed in set(b.seeds))
    if not seeds:
        raise ValueError(
            f"{measured.source}: no seed in common: {method!r} has {measured.named(a.seeds)}; "
            f"{reference!r} has {measured.named(b.seeds)}; expected at least one that both have"
        )
    return seeds


def _rows(arm: Arm, seeds: Sequence[int]) -> Mask:
    at = [0 if arm.fixed else arm.seeds.index(seed) for seed in seeds]
    found: Mask = arm.present[at]
    return found


def _whole(
    measured: Measured, methods: Sequence[str], present: Mask, tasks: Sequence[str]
) -> tuple[Mask, Mask]:
    """Seeds and items of a complete table within `present` [R, N], on `tasks` alone."""
    wanted = np.zeros(present.shape[1], dtype=bool)
    for task in tasks:
        wanted[measured.tasks[task]] = True
    present = present & wanted
    able = np.sum([present[:, measured.tasks[task]].sum(axis=1) >= 2 for task in tasks], axis=0)
    order = np.lexsort((-present.sum(axis=1), -able))
    # Line k: the items that the k + 1 most complete seeds all have.
    shared = np.logical_and.accumulate(present[order], axis=0)
    cells = shared.sum(axis=1) * np.arange(1, len(order) + 1)
    for task in tasks:
        n_items = shared[:, measured.tasks[task]].sum(axis=1)
        if n_items[0] < 2:
            raise ValueError(
                f"{measured.source}: {' and '.join(map(repr, methods))} "
                f"{'have' if len(methods) > 1 else 'has'} {plural(int(n_items[0]), 'item')}"
                f"{measured.of_task(task)}{' in common' if len(methods) > 1 else ''}; expected at "
                "least 2: the variance between items cannot be known from fewer"
            )
        cells = np.where(n_items < 2, -1, cells)
    # The last of equal ones: more seeds.
    best = len(cells) - 1 - int(cells[::-1].argmax())
    seeds = np.zeros(len(order), dtype=bool)
    seeds[order[: best + 1]] = True
    return seeds, shared[best]


def _outcome(
    measured: Measured, arm: Arm, seeds: Sequence[int], items: Mask, tasks: Sequence[str]
) -> Outcome:
    at = [0] if arm.fixed else [arm.seeds.index(seed) for seed in seeds]
    kept = {task: np.flatnonzero(items[part]) + part.start for task, part in measured.tasks.items()}
    labels = None
    if (clusters := measured.clusters) is not None:
        labels = {task: tuple(clusters[i] for i in kept[task]) for task in tasks}
    try:
        return Outcome(
            seeds=tuple(arm.seeds[i] for i in at),
            tables={task: arm.accuracy[np.ix_(at, kept[task])] for task in tasks},
            items={task: tuple(measured.items[i] for i in kept[task]) for task in tasks},
            fixed=arm.fixed,
            clusters=labels,
        )
    except ValueError as error:
        raise ValueError(f"{measured.source}: {error}") from None


def _left_out(
    measured: Measured, arms: Sequence[Arm], outcome: Outcome, tasks: Sequence[str]
) -> LeftOut:
    """What any of `arms` has beyond `outcome`."""
    seeds = {seed for arm in arms if not arm.fixed for seed in arm.seeds} - set(outcome.seeds)
    there = np.any([arm.present.any(axis=0) for arm in arms], axis=0)
    items = {
        task: int(there[measured.tasks[task]].sum()) - len(outcome.items.get(task, ()))
        for task in tasks
    }
    names = tuple(measured.seeds[seed] for seed in sorted(seeds)) if measured.seeds else ()
    return LeftOut(names, {task: n for task, n in items.items() if n})

"""A report on anybody's table of outcomes: every method against a reference, what is missing.

`read` takes a file of anybody's results, `analyse` compares every method with a reference on the
seeds and items that both have. Nothing is imputed: what is missing or left out is counted by name.

One family for the mean over tasks (Holm over all methods), one for single tasks (method x task,
Benjamini-Hochberg, exploratory).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.reporting.outcomes.reader import OutcomeTable, first, read
from harness.stats import (
    Comparison,
    Difference,
    Estimate,
    LeftOut,
    Outcome,
    Sides,
    benjamini_hochberg,
    compare,
    corrected,
    holm,
)

__all__ = ["Analysis", "OutcomeTable", "Section", "analyse", "read"]

RANDOM = "random"
ALPHA = 0.05

Pair = tuple[Outcome, Outcome]


@dataclass(frozen=True)
class Section:
    """One task, or the mean over tasks: every method with a result, and its difference.

    `left_out` is what differences do without, `incomplete` what a method's own mean does without.
    """

    tasks: tuple[str, ...]
    comparisons: Mapping[str, Comparison]
    left_out: Mapping[str, LeftOut]
    incomplete: Mapping[str, LeftOut]

    @property
    def estimates(self) -> dict[str, Estimate]:
        """By method."""
        return {name: one.estimate for name, one in self.comparisons.items() if one.estimate}

    @property
    def differences(self) -> dict[str, Difference]:
        """By method, to the reference."""
        return {name: one.difference for name, one in self.comparisons.items() if one.difference}


@dataclass(frozen=True)
class Analysis:
    """The whole comparison. `primary` is the mean over tasks (or the only task).

    `reference_named`: whether somebody named the reference.
    """

    table: OutcomeTable
    reference: str
    reference_named: bool
    primary: Section
    tasks: Mapping[str, Section]


def analyse(
    table: OutcomeTable,
    rng: np.random.Generator,
    reference: str | None = None,
) -> Analysis:
    """Compare every method with the reference: by default `random`, else the first method.

    `rng` is for sign flips beyond 20 seeds.

    Raises:
        ValueError: the reference is unknown, or a method has nothing in common with it.
    """
    methods = list(table.methods)
    chosen = reference or (RANDOM if RANDOM in methods else methods[0])
    if chosen not in methods:
        raise ValueError(
            f"{table.source}: no method {chosen!r}; expected one of {', '.join(methods)}"
        )
    (flips,) = rng.spawn(1)
    tasks = tuple(table.grid.tasks)
    pairs = _pairs(table, chosen, tasks)
    _check_common(table, chosen, pairs)
    primary = _section(table, tasks, pairs, flips)
    single = {
        task: primary
        if len(tasks) == 1
        else _section(table, (task,), _pairs(table, chosen, (task,)), flips)
        for task in tasks
    }
    every = {
        (task, method): one for task in tasks for method, one in single[task].comparisons.items()
    }
    exploratory = corrected(every, benjamini_hochberg, ALPHA)
    return Analysis(
        table=table,
        reference=chosen,
        reference_named=reference is not None,
        primary=_with(primary, corrected(primary.comparisons, holm, ALPHA)),
        tasks={
            task: _with(one, {method: exploratory[task, method] for method in one.comparisons})
            for task, one in single.items()
        },
    )


def _with(section: Section, comparisons: Mapping[str, Comparison]) -> Section:
    return dataclasses.replace(section, comparisons=comparisons)


def _largest(
    table: OutcomeTable, methods: Sequence[str], tasks: Sequence[str]
) -> tuple[tuple[Outcome, ...], LeftOut] | None:
    try:
        return table.grid.largest([table.methods[method] for method in methods], tasks)
    except ValueError as error:
        raise ValueError(f"{table.source}: {error}") from None


def _pairs(
    table: OutcomeTable, reference: str, tasks: Sequence[str]
) -> dict[str, tuple[Pair, LeftOut]]:
    """Every method and the reference on the seeds and items that both have; not without any."""
    pairs = {}
    for method in table.methods:
        if method != reference and (common := _largest(table, (method, reference), tasks)):
            (own, other), left_out = common
            pairs[method] = ((own, other), left_out)
    return pairs


def _check_common(table: OutcomeTable, reference: str, pairs: Mapping[str, object]) -> None:
    """Refuse a method that has no item in common with the reference."""
    for method in table.methods:
        if method in (*pairs, reference):
            continue
        each = []
        for name in (method, reference):
            there = np.flatnonzero(table.grid.present(table.methods[name]).any(axis=0))
            each.append(f"{name!r} has {first([table.grid.items[i] for i in there])}")
        raise ValueError(
            f"{table.source}: no item in common: {'; '.join(each)}; expected results of both "
            "methods on the same items at the same seeds"
        )


def _section(
    table: OutcomeTable,
    tasks: tuple[str, ...],
    pairs: Mapping[str, tuple[Pair, LeftOut]],
    rng: np.random.Generator,
) -> Section:
    sides: dict[str, Sides] = {}
    incomplete: dict[str, LeftOut] = {}
    for method in table.methods:
        if (alone := _largest(table, (method,), tasks)) is not None:
            ((own,), missing) = alone
            sides[method] = Sides(own, pairs[method][0] if method in pairs else None)
            incomplete |= {method: missing} if missing else {}
    return Section(
        tasks=tasks,
        comparisons=compare(sides, ALPHA, rng),
        left_out={method: left_out for method, (_, left_out) in pairs.items() if left_out},
        incomplete=incomplete,
    )

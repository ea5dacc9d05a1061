"""Every method against a reference: per task, and for the mean over tasks.

One family for the mean over tasks (Holm over all methods), one for single tasks (method x task,
Benjamini-Hochberg, exploratory). Beside the two-way interval stands the crossed bootstrap.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from harness.reporting.outcomes.balance import LeftOut, Pair, alone, pair, refuse_disjoint
from harness.reporting.outcomes.outcomes import Measured
from harness.stats import (
    Difference,
    Estimate,
    Outcome,
    benjamini_hochberg,
    blocks,
    bootstrap,
    detectable,
    difference,
    estimate,
    holm,
    interquartile_mean,
    seeds_needed,
)
from harness.stats.grid import FloatArray
from harness.stats.resampling import mean_of_runs

RANDOM = "random"
ALPHA = 0.05
DRAWS = 10_000
DELTAS = {"1": 0.01, "2": 0.02, "3": 0.03}
"""Differences, in points, for which the seeds needed are given."""


class Range(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Section:
    """One task, or the mean over tasks: every method with a result, and its difference.

    `left_out` is what differences do without, `incomplete` what a method's own mean does without.
    """

    tasks: tuple[str, ...]
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Difference]
    left_out: Mapping[str, LeftOut]
    incomplete: Mapping[str, LeftOut]

    @cached_property
    def detectable(self) -> dict[str, float]:
        """The true difference that a test at the nominal level finds with 80% power."""
        return {method: detectable(one.spread, ALPHA) for method, one in self.differences.items()}

    @cached_property
    def seeds_needed(self) -> dict[str, dict[str, int] | None]:
        """Seeds for 80% power at 1, 2 and 3 points; None with one seed."""
        return {
            method: None
            if math.isnan(one.sd_seeds)
            else {name: seeds_needed(one.sd_seeds, delta, ALPHA) for name, delta in DELTAS.items()}
            for method, one in self.differences.items()
        }


@dataclass(frozen=True)
class Resampled:
    """Bootstrap intervals on common cells: of the difference, and of the interquartile mean.

    The interquartile mean is over tasks and seeds, and None with one task.
    """

    difference: tuple[float, float]
    iqm: Range | None
    iqm_difference: Range | None


@dataclass(frozen=True)
class Analysis:
    """The whole comparison. `primary` is the mean over tasks (or the only task)."""

    measured: Measured
    reference: str
    chosen: bool
    primary: Section
    tasks: Mapping[str, Section]
    resampled: Mapping[str, Resampled]
    draws: int

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods, in the order of the table."""
        return tuple(self.measured.arms)


def analyse(
    measured: Measured,
    rng: np.random.Generator,
    reference: str | None = None,
    draws: int = DRAWS,
) -> Analysis:
    """Compare every method with the reference: by default `random`, else the first method.

    `rng`: bootstrap, and sign flips beyond 20 seeds.

    Raises:
        ValueError: the reference is unknown, or a method has nothing in common with it.
    """
    name = reference or (RANDOM if RANDOM in measured.arms else next(iter(measured.arms)))
    measured.arm(name)
    flips, resampling = rng.spawn(2)
    tasks = tuple(measured.tasks)
    pairs: dict[str, Pair] = {}
    for method in measured.arms:
        if method != name:
            found = pair(measured, method, name, tasks)
            if found is None:
                refuse_disjoint(measured, method, name)
            else:
                pairs[method] = found
    primary = _section(measured, tasks, name, pairs, flips)
    single = {
        task: primary
        if len(tasks) == 1
        else _section(measured, (task,), name, _pairs_of(measured, task, name), flips)
        for task in tasks
    }
    return Analysis(
        measured=measured,
        reference=name,
        chosen=reference is not None,
        primary=_with(primary, holm(list(primary.differences.values()), ALPHA)),
        tasks=_exploratory(single),
        resampled=_resample(pairs, resampling, draws),
        draws=draws,
    )


def _pairs_of(measured: Measured, task: str, reference: str) -> dict[str, Pair]:
    found = {
        method: pair(measured, method, reference, (task,))
        for method in measured.arms
        if method != reference
    }
    return {method: one for method, one in found.items() if one is not None}


def _section(
    measured: Measured,
    tasks: tuple[str, ...],
    reference: str,
    pairs: Mapping[str, Pair],
    rng: np.random.Generator,
) -> Section:
    own = {method: alone(measured, method, tasks) for method in measured.arms}
    there = {method: one for method, one in own.items() if one is not None}
    return Section(
        tasks=tasks,
        estimates={method: estimate(outcome, ALPHA) for method, (outcome, _) in there.items()},
        differences={
            method: difference(one.method, one.reference, ALPHA, rng)
            for method, one in pairs.items()
        },
        left_out={method: one.left_out for method, one in pairs.items() if one.left_out},
        incomplete={method: left for method, (_, left) in there.items() if left},
    )


def _with(section: Section, corrected: Iterable[Difference]) -> Section:
    differences = dict(zip(section.differences, corrected, strict=True))
    return dataclasses.replace(section, differences=differences)


def _exploratory(sections: Mapping[str, Section]) -> dict[str, Section]:
    """Benjamini-Hochberg over the whole grid of methods and tasks."""
    grid = [one for section in sections.values() for one in section.differences.values()]
    corrected = iter(benjamini_hochberg(grid, ALPHA))
    return {
        task: _with(section, [next(corrected) for _ in section.differences])
        for task, section in sections.items()
    }


def _resample(
    pairs: Mapping[str, Pair], rng: np.random.Generator, draws: int
) -> dict[str, Resampled]:
    """Bootstrap the methods that share seeds and items together, so that they share the draws.

    Empty where clusters span tasks: draws are made by task.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for method, one in pairs.items():
        shared = one.reference if one.method.fixed else one.method
        key = (shared.seeds, tuple(shared.items.items()))
        groups.setdefault(key, []).append(method)
    found: dict[str, Resampled] = {}
    for methods in groups.values():
        first = pairs[methods[0]].reference
        tasks = list(first.tables)
        if len(blocks(tasks, first.clusters)) < len(tasks):
            continue
        outcomes = [first, *(pairs[method].method for method in methods)]
        n_seeds = max(len(outcome.seeds) for outcome in outcomes)
        tables = {task: np.stack([_on(one, task, n_seeds) for one in outcomes]) for task in tasks}
        made = bootstrap(
            tables,
            rng,
            alpha=ALPHA,
            draws=draws,
            statistic=_both if len(tasks) > 1 else mean_of_runs,
            clusters=first.clusters,
        )
        for at, method in enumerate(methods, start=1):
            low, high = made.diff_low[at], made.diff_high[at]
            several = len(tasks) > 1
            found[method] = Resampled(
                difference=(float(low[0] if several else low), float(high[0] if several else high)),
                iqm=_second(made.mean, made.ci_low, made.ci_high, at) if several else None,
                iqm_difference=_second(made.diff, made.diff_low, made.diff_high, at)
                if several
                else None,
            )
    return found


def _on(outcome: Outcome, task: str, n_seeds: int) -> FloatArray:
    """A method's table; a fixed checkpoint's is repeated for every seed."""
    table = outcome.tables[task]
    return np.broadcast_to(table, (n_seeds, table.shape[1]))


def _both(runs: FloatArray) -> FloatArray:
    return np.stack([mean_of_runs(runs), interquartile_mean(runs)], axis=-1)


def _second(value: FloatArray, low: FloatArray, high: FloatArray, at: int) -> Range:
    return Range(float(value[at, 1]), float(low[at, 1]), float(high[at, 1]))

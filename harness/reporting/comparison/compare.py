"""The numbers of a comparison of two rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.reporting.comparison.row import Side, Spent, find, place
from harness.reporting.results import BASE, FULL, Results
from harness.stats import (
    MEAN,
    Difference,
    Estimate,
    Outcome,
    aligned,
    common_seeds,
    detectable,
    difference,
    estimate,
    jaccard,
    overlap_of_random,
    pivot,
    seeds_needed,
    stability,
    summarise,
)

DELTAS = {"1": 0.01, "2": 0.02, "3": 0.03}
"""Differences, in points, for which the seeds needed are given."""
SHOWN = 5
"""Items named in each direction."""


@dataclass(frozen=True)
class Line:
    """One task, or the mean over tasks."""

    a: Estimate
    b: Estimate
    difference: Difference
    detectable: float
    seeds_needed: Mapping[str, int] | None


@dataclass(frozen=True)
class Flip:
    """An item with its accuracy over the common seeds (and decodes) on both sides."""

    task: str
    item: str
    a: float
    b: float


@dataclass(frozen=True)
class Flips:
    """Items on which A (gained) or B (lost) does better: how many, and the largest changes.

    `as_much`: how many change as much as the first of those named.
    """

    gained: int
    lost: int
    same: int
    most_gained: tuple[Flip, ...]
    most_lost: tuple[Flip, ...]
    gained_as_much: int
    lost_as_much: int


@dataclass(frozen=True)
class Family:
    """What the protocol's own test says of this pair: Holm over `size` comparisons."""

    size: int
    p_holm: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Overlap:
    """What both sides chose of the pool, as Jaccard overlap; None where it cannot be told."""

    between: float
    random: float
    a_seeds: float | None
    b_seeds: float | None


@dataclass(frozen=True)
class Story:
    """A against B. `family` is None for a pair that the protocol did not plan to test."""

    results: Results
    a: Side
    b: Side
    mean: Line
    tasks: Mapping[str, Line]
    family: Family | None
    flips: Flips
    overlap: Overlap | None
    a_spent: Spent
    b_spent: Spent
    notes: tuple[str, ...]


def compare(
    results: Results,
    first: str,
    second: str,
    fraction: float | None = None,
    rng: np.random.Generator | None = None,
) -> Story:
    """Set row `first` against row `second` at one fraction; by default the middle one.

    `rng` is needed beyond 20 seeds only.

    Raises:
        ValueError: a name fits no row or several, or a row has no finished cell.
    """
    a, b = (find(results, name) for name in (first, second))
    if a == b:
        raise ValueError(f"{first!r} and {second!r} are the row {a!r}; expected two rows")
    share, notes = place(results, fraction, (a, b))
    sides = tuple(Side.of(results, row, share) for row in (a, b))
    outcomes = _outcomes(results, sides, notes)
    tasks = {
        task: _line(outcomes[0].only(task), outcomes[1].only(task), results.alpha, rng)
        for task in results.tasks
    }
    mean = _line(*outcomes, results.alpha, rng)
    if mean.difference.dropped:
        dropped = ", ".join(map(str, mean.difference.dropped))
        notes.append(f"seeds that only one row has are left out of differences: {dropped}")
    for side, own in zip(sides, (mean.a, mean.b), strict=True):
        notes += [f"{side.name}: {own.note}"] if own.note else []
    notes += [f"A - B: {mean.difference.note}"] if mean.difference.note else []
    return Story(
        results=results,
        a=sides[0],
        b=sides[1],
        mean=mean,
        tasks=tasks,
        family=_family(results, sides, rng),
        flips=_flips(*outcomes),
        overlap=_overlap(*sides),
        a_spent=sides[0].spent(),
        b_spent=sides[1].spent(),
        notes=tuple(notes),
    )


def _outcomes(
    results: Results, sides: tuple[Side, ...], notes: list[str]
) -> tuple[Outcome, Outcome]:
    """Both rows on their complete seeds; what a row lacks goes into the notes."""
    found = []
    wanted = [side.line for side in sides]
    keys = pd.MultiIndex.from_frame(results.outcomes[["row", "fraction"]])
    grid = pivot(results.outcomes[keys.isin(wanted)])
    for side in sides:
        notes += side.absent()
        outcome, broken = grid.outcome(side.line, list(results.tasks))
        if broken:
            notes.append(f"{side.row}: incomplete, left out: seeds {', '.join(map(str, broken))}")
        if outcome is None:
            raise ValueError(f"{side.row}: no seed has all items; expected at least one")
        found.append(outcome)
    a, b = found
    if not common_seeds(a, b):
        raise ValueError(
            f"{sides[0].row} has the seeds {a.seeds!r}, {sides[1].row} {b.seeds!r}; expected at "
            "least one in common"
        )
    return a, b


def _line(a: Outcome, b: Outcome, alpha: float, rng: np.random.Generator | None) -> Line:
    found = difference(a, b, alpha, rng)
    needed = None
    if found.n_seeds > 1:
        needed = {
            name: seeds_needed(found.sd_seeds, delta, alpha) for name, delta in DELTAS.items()
        }
    return Line(
        a=estimate(a, alpha),
        b=estimate(b, alpha),
        difference=found,
        detectable=detectable(found.spread, alpha),
        seeds_needed=needed,
    )


def _family(
    results: Results, sides: tuple[Side, ...], rng: np.random.Generator | None
) -> Family | None:
    """The line of the report, where it compares just these two cells; its sign follows A - B."""
    a, b = sides
    if results.reference not in (a.row, b.row):
        return None
    other, reference = (b, a) if a.row == results.reference else (a, b)
    # The report compares `base` and `full` with the reference at the middle fraction only.
    if other.row in (BASE, FULL) and reference.fraction not in (results.middle, 0.0, 1.0):
        return None
    lines = summarise(
        results.outcomes, results.reference, results.alpha, seeds=results.seeds, rng=rng
    )
    lines = lines[lines["task"] == MEAN]
    (at,) = np.flatnonzero((lines["row"] == other.row) & (lines["fraction"] == other.fraction))
    line = lines.iloc[at]
    if line["verdict"] not in ("better", "worse", "tie"):
        return None
    low, high, verdict = line["adjusted_low"], line["adjusted_high"], line["verdict"]
    if other is b:
        low, high = -high, -low
        verdict = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    size = int(lines["p_holm"].notna().sum())
    return Family(size, float(line["p_holm"]), float(low), float(high), str(verdict))


def _flips(first: Outcome, second: Outcome) -> Flips:
    a, b, _ = aligned(first, second)
    found = [
        Flip(task, item, float(x), float(y))
        for task, table in a.tables.items()
        for item, x, y in zip(
            a.items[task], table.mean(axis=0), b.tables[task].mean(axis=0), strict=True
        )
    ]
    # Rounded, since means of thirds are equal on paper only; ties keep the order of the items.
    change = {one: round(one.a - one.b, 9) for one in found}
    gained = sorted((one for one in found if change[one] > 0), key=lambda one: -change[one])
    lost = sorted((one for one in found if change[one] < 0), key=lambda one: change[one])
    return Flips(
        gained=len(gained),
        lost=len(lost),
        same=len(found) - len(gained) - len(lost),
        most_gained=tuple(gained[:SHOWN]),
        most_lost=tuple(lost[:SHOWN]),
        gained_as_much=sum(change[one] == change[gained[0]] for one in gained),
        lost_as_much=sum(change[one] == change[lost[0]] for one in lost),
    )


def _overlap(a: Side, b: Side) -> Overlap | None:
    """Mean over common seeds; None where a side chose nothing or the pools differ."""
    mine, theirs = a.chosen(), b.chosen()
    common = [seed for seed in mine if seed in theirs]
    if not common or any(len(mine[seed]) != len(theirs[seed]) for seed in common):
        return None
    pairs = [(mine[seed], theirs[seed]) for seed in common]
    return Overlap(
        between=float(np.mean([jaccard(x, y) for x, y in pairs])),
        random=float(
            np.mean([overlap_of_random(len(x), int(x.sum()), int(y.sum())) for x, y in pairs])
        ),
        a_seeds=stability(list(mine.values())) if len(mine) > 1 else None,
        b_seeds=stability(list(theirs.values())) if len(theirs) > 1 else None,
    )

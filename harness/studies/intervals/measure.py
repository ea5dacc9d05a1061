"""What the counts say: shares with their Monte Carlo errors, and marks by fixed rules."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.studies.intervals.design import Aim, Point, Protocol
from harness.studies.intervals.methods import (
    BOOTSTRAP,
    FLIPS,
    IGNORED,
    ITEMS,
    POOLED,
    SATTERTHWAITE,
    SEEDS,
    TWO_WAY,
    UNPAIRED,
)
from harness.studies.intervals.simulate import DIFFERENCE, EQUAL, FAMILY, MEAN, MOVED
from harness.studies.intervals.study import FACTS, PROTOCOL, read

LOW, HIGH = 0.93, 0.97
"""Coverage of a 95% interval that is as promised."""
MOST = 0.06
"""Share of equal methods that a test at 5% may tell apart."""
POWER_LOW, POWER_HIGH = 0.75, 0.85
"""Power that counts as 80%."""
ERRORS = 2.0
"""Monte Carlo standard errors beyond a limit from which on it counts as missed."""
MET, NARROW, WIDE, MANY = "met", "narrow", "wide", "many"
OPEN = "?"
"""Ends a mark whose limit lies within the Monte Carlo error."""

METHODS: Mapping[str, tuple[str, ...]] = {
    MEAN: (TWO_WAY, SATTERTHWAITE, BOOTSTRAP, SEEDS, POOLED, ITEMS, IGNORED),
    DIFFERENCE: (TWO_WAY, SATTERTHWAITE, BOOTSTRAP, SEEDS, FLIPS, UNPAIRED, IGNORED),
    EQUAL: (TWO_WAY, SATTERTHWAITE, BOOTSTRAP, SEEDS, FLIPS, UNPAIRED, IGNORED),
    FAMILY: (TWO_WAY, SATTERTHWAITE, SEEDS, FLIPS, UNPAIRED),
    MOVED: (TWO_WAY, SATTERTHWAITE, SEEDS, FLIPS, UNPAIRED),
}
"""What is compared, in the order of the tables."""


@dataclass(frozen=True)
class Rate:
    """A share of simulated tables."""

    count: int
    tables: int

    @property
    def value(self) -> float:
        """The share."""
        return self.count / self.tables

    @property
    def error(self) -> float:
        """Its Monte Carlo standard error."""
        return math.sqrt(self.value * (1.0 - self.value) / self.tables)


@dataclass(frozen=True)
class Cell:
    """One method at one point; `half` is nan for a test without an interval."""

    point: Point
    quantity: str
    method: str
    rate: Rate
    half: float
    mark: str


@dataclass(frozen=True)
class Power:
    """An answer about power: what the formula says and how often each test found the difference.

    `test` is the one that the formula speaks about; `mark` is its.
    """

    aim: Aim
    sd: float
    seeds: int
    delta: float
    test: str
    rates: Mapping[str, Rate]
    mark: str


@dataclass(frozen=True)
class Findings:
    """All numbers of a study, in the order of its grid."""

    protocol: Protocol
    facts: Mapping[str, Any]
    cells: tuple[Cell, ...]
    powers: tuple[Power, ...]

    def of(self, quantity: str, method: str, seeds: int | None = None) -> tuple[Cell, ...]:
        """The cells of one method, of all points or those with so many seeds."""
        return tuple(
            cell
            for cell in self.cells
            if (cell.quantity, cell.method) == (quantity, method)
            and seeds in (None, cell.point.seeds)
        )

    @cached_property
    def places(self) -> Mapping[tuple[Point, str, str], Cell]:
        """Cells by point, quantity and method."""
        return {(cell.point, cell.quantity, cell.method): cell for cell in self.cells}


@dataclass(frozen=True)
class Tallied:
    """How many points of one method are met, missed, or within the Monte Carlo error."""

    points: int
    met: int
    narrow: int
    wide: int
    near: int
    lowest: Cell
    highest: Cell
    width: float

    @property
    def missed(self) -> int:
        """Points that are missed on either side."""
        return self.narrow + self.wide


def measure(folder: Path) -> Findings:
    """Read `folder` and mark everything; the same files give the same numbers."""
    text = (folder / PROTOCOL).read_text(encoding="utf-8")
    protocol = Protocol.from_dict(tomllib.loads(text))
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    counted = read(folder)
    missing = [place for place in (*protocol.points, *protocol.aims) if place not in counted]
    if missing:
        raise ValueError(
            f"{folder} lacks the counts of {len(missing)} points, the first {missing[0]!r}; "
            "expected all: `python -m harness.studies statistics` continues"
        )
    cells = [
        _cell(point, quantity, method, entry, protocol.size(point))
        for point in protocol.points
        for quantity, methods in counted[point].items()
        for method, entry in methods.items()
    ]
    powers = [_power(aim, counted[aim], protocol.size(aim)) for aim in protocol.aims]
    return Findings(protocol, facts, tuple(cells), tuple(powers))


def mark(rate: Rate, low: float, high: float, below: str, above: str) -> str:
    """Where a share lies: within [low, high], or beyond by so many Monte Carlo errors."""
    slack = ERRORS * rate.error
    if rate.value < low:
        return below if rate.value + slack < low else below + OPEN
    if rate.value > high:
        return above if rate.value - slack > high else above + OPEN
    return MET


def tallied(cells: Sequence[Cell], default: Sequence[Cell]) -> Tallied:
    """Counts over the points of one method; widths are relative to the default's, point by point.

    `width` is the geometric mean of the ratios.
    """
    marks = [cell.mark for cell in cells]
    ordered = sorted(cells, key=lambda cell: cell.rate.value)
    own = {cell.point: cell.half for cell in default}
    logs = [math.log(cell.half / own[cell.point]) for cell in cells]
    return Tallied(
        points=len(cells),
        met=marks.count(MET),
        narrow=marks.count(NARROW),
        wide=marks.count(WIDE),
        near=sum(one.endswith(OPEN) for one in marks),
        lowest=ordered[0],
        highest=ordered[-1],
        width=math.exp(math.fsum(logs) / len(logs)),
    )


def _cell(
    point: Point, quantity: str, method: str, entry: Mapping[str, float], tables: int
) -> Cell:
    rate = Rate(int(entry["count"]), tables)
    if quantity in (MEAN, DIFFERENCE):
        judged = mark(rate, LOW, HIGH, NARROW, WIDE)
    else:
        judged = mark(rate, 0.0, MOST, MET, MANY)
    return Cell(point, quantity, method, rate, entry.get("half", math.nan), judged)


def _power(aim: Aim, counted: Mapping[str, Any], tables: int) -> Power:
    rates = {test: Rate(count, tables) for test, count in counted["found"].items()}
    test = TWO_WAY if aim.seeds else SEEDS
    return Power(
        aim=aim,
        sd=counted.get("sd", math.nan),
        seeds=counted["seeds"],
        delta=counted["delta"],
        test=test,
        rates=rates,
        mark=mark(rates[test], POWER_LOW, POWER_HIGH, "low", "high"),
    )

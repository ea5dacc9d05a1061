"""What is simulated: kinds of items, the grid of points, and the questions about power."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

HARDEST, EASIEST = 0.15, 0.85
"""Chances between which uniform difficulty lies."""


@dataclass(frozen=True)
class Structure:
    """How hard items are, and what hangs together.

    `beta`: parameters of the distribution of an item's chance; None: uniform. `settled`: share of
    the pairs of seed and item whose decodes all come out alike. `sizes`: of clusters, repeated
    until the items are used up; `alike`: correlation of difficulty within a cluster (normal scale).
    """

    text: str
    beta: tuple[float, float] | None = None
    decodes: int = 1
    settled: float = 0.0
    sizes: tuple[int, ...] = ()
    alike: float = 0.0

    @property
    def mean(self) -> float:
        """Accuracy in the population of items and seeds: the truth."""
        return (HARDEST + EASIEST) / 2.0 if self.beta is None else self.beta[0] / sum(self.beta)

    @property
    def slope(self) -> float:
        """Mean of p(1 - p) over items."""
        if self.beta is None:
            return self.mean * (1.0 - self.mean) - (EASIEST - HARDEST) ** 2 / 12.0
        a, b = self.beta
        return a * b / ((a + b) * (a + b + 1.0))

    def clusters(self, items: int) -> tuple[int, ...]:
        """The cluster of every item, from 0 and side by side; empty where items are independent."""
        if not self.sizes:
            return ()
        repeated = itertools.chain.from_iterable(
            [number] * size for number, size in enumerate(itertools.cycle(self.sizes))
        )
        return tuple(itertools.islice(repeated, items))


STRUCTURES = {
    "uniform": Structure("chance of an item uniform on 15-85%"),
    "beta": Structure("chance of an item Beta(1.2, 0.4), 75% on average", (1.2, 0.4)),
    "decodes": Structure(
        "as beta, K = 4 decodes, all four alike in half of the pairs of seed and item",
        (1.2, 0.4),
        decodes=4,
        settled=0.5,
    ),
    "clusters": Structure(
        "as uniform, in clusters of 2 to 6 items whose difficulty correlates by 0.5",
        sizes=(2, 3, 4, 5, 6),
        alike=0.5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One place of the grid; `spread`: standard deviation of a seed's effect on the accuracy."""

    structure: str
    seeds: int
    items: int
    spread: float

    @property
    def kind(self) -> Structure:
        """What its items are like."""
        return STRUCTURES[self.structure]

    @property
    def size(self) -> int:
        """What the work grows with."""
        return self.seeds * self.items * self.kind.decodes


@dataclass(frozen=True)
class Aim:
    """A question about power, on uniform items, with a share `moved` that methods differ in.

    With `delta`: do the seeds that `seeds_needed` asks for find it? With `seeds`: is the difference
    that `detectable` names found?
    """

    items: int
    spread: float
    moved: float
    delta: float = 0.0
    seeds: int = 0

    def __post_init__(self) -> None:
        if (self.delta > 0.0) == (self.seeds > 0):
            raise ValueError(
                f"delta {self.delta!r}, seeds {self.seeds!r}; expected one of them: "
                "the other follows from a formula"
            )

    @property
    def kind(self) -> Structure:
        """What its items are like."""
        return STRUCTURES["uniform"]

    @property
    def size(self) -> int:
        """What the work grows with, about."""
        return 10 * self.items


AIMS = (
    Aim(1319, 0.02, 0.0, delta=0.02),
    Aim(1319, 0.02, 0.0, delta=0.03),
    Aim(1319, 0.02, 0.0, delta=0.05),
    Aim(1319, 0.05, 0.0, delta=0.05),
    Aim(300, 0.02, 0.0, delta=0.03),
    Aim(300, 0.02, 0.25, delta=0.03),
    Aim(40, 0.02, 0.0, delta=0.1),
    Aim(40, 0.02, 0.25, delta=0.1),
    Aim(300, 0.02, 0.25, seeds=3),
    Aim(1319, 0.02, 0.25, seeds=3),
    Aim(300, 0.02, 0.25, seeds=5),
    Aim(1319, 0.02, 0.25, seeds=5),
    Aim(40, 0.02, 0.25, seeds=10),
    Aim(300, 0.02, 0.25, seeds=10),
    Aim(1319, 0.02, 0.25, seeds=10),
    Aim(1319, 0.05, 0.25, seeds=10),
)


@dataclass(frozen=True)
class Protocol:
    """One study. Tables are made `batch` at a time; a batch shares the bootstrap's draws.

    `tables` of every point and aim; `tables_fewest` of points with the fewest seeds, where small
    misses have to be told from none. `family`: equal methods compared with one reference. `moved`:
    share of the items (or clusters) that are as hard for another method as a new item would be; the
    committed records of `quick` and `calibration` have 0.1 to 0.3. `revision` is raised when the
    study or `harness.stats` changes so that the same seed gives other counts; then all are redone.
    """

    structures: tuple[str, ...] = tuple(STRUCTURES)
    seeds: tuple[int, ...] = (3, 5, 10)
    items: tuple[int, ...] = (40, 300, 1319)
    spreads: tuple[float, ...] = (0.0, 0.02, 0.05)
    aims: tuple[Aim, ...] = AIMS
    tables: int = 2000
    tables_fewest: int = 10_000
    batch: int = 100
    draws: int = 1000
    family: int = 10
    moved: float = 0.25
    alpha: float = 0.05
    seed: int = 2510
    revision: int = 2

    def __post_init__(self) -> None:
        if unknown := set(self.structures) - set(STRUCTURES):
            raise ValueError(
                f"structures {sorted(unknown)!r}; expected some of {sorted(STRUCTURES)}"
            )
        for name in ("tables", "tables_fewest"):
            if getattr(self, name) % self.batch:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; expected a multiple of {self.batch}"
                )
        if min(self.seeds) < 2:
            raise ValueError(f"seeds is {self.seeds!r}; expected two or more everywhere")

    @property
    def points(self) -> tuple[Point, ...]:
        """The grid, in the order of the tables."""
        grid = itertools.product(self.structures, self.seeds, self.items, self.spreads)
        return tuple(Point(*place) for place in grid)

    def size(self, place: Point | Aim) -> int:
        """How many tables are simulated there."""
        fewest = isinstance(place, Point) and place.seeds == min(self.seeds)
        return self.tables_fewest if fewest else self.tables

    def generators(self, point: Point | Aim) -> list[np.random.Generator]:
        """One for every batch: from the seed and the point alone, whatever else is simulated."""
        names = [ord(letter) for letter in repr(point)]
        sequence = np.random.SeedSequence([self.seed, *names])
        batches = self.size(point) // self.batch
        return [np.random.default_rng(one) for one in sequence.spawn(batches)]

    def as_dict(self) -> dict[str, Any]:
        """As `protocol.toml` holds it; of an aim only what it gives."""
        found = dataclasses.asdict(self)
        found["aims"] = [
            {k: v for k, v in one.items() if v or k not in ("delta", "seeds")}
            for one in found["aims"]
        ]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """From what `protocol.toml` holds."""
        found: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        found["aims"] = tuple(Aim(**one) for one in values["aims"])
        return cls(**found)

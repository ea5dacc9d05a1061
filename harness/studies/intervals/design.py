"""What is simulated: populations of items, the grid of points, power questions, and their tables.

An item of a population is solved with probability p_i. Under a shift x of the accuracy it is

    p_i + x p_i (1 - p_i) / h,    h = mean of p(1 - p) over items:

the population moves by x, easy and hard items by less (a logistic shift to first order). It is a
probability while |x| <= h; shifts are clipped there. Effects of seeds are symmetric about 0, so
clipping leaves the mean where it was.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Probabilities = npt.NDArray[np.float32]
UNIFORM, EASY = stats.uniform(0.15, 0.7), stats.beta(1.2, 0.4)
"""How the probabilities of items are distributed."""


@dataclass(frozen=True)
class Population:
    """How difficult items are and which of their answers depend on each other.

    `unanimous`: share of the pairs of seed and item whose decodes are all equal. `cluster_sizes`:
    repeated until the items are used up; `correlation`: of difficulty within a cluster (normal
    scale).
    """

    description: str
    difficulty: Any
    decodes: int = 1
    unanimous: float = 0.0
    cluster_sizes: tuple[int, ...] = ()
    correlation: float = 0.0

    @property
    def mean(self) -> float:
        """Accuracy in the population of items and seeds: the truth."""
        return float(self.difficulty.mean())

    @property
    def slope(self) -> float:
        """Mean of p(1 - p) over items."""
        return self.mean - float(self.difficulty.moment(2))

    def clusters(self, items: int) -> tuple[int, ...]:
        """The cluster of every item, from 0 and adjacent; empty where items are independent."""
        if not self.cluster_sizes:
            return ()
        sizes = enumerate(itertools.cycle(self.cluster_sizes))
        numbers = itertools.chain.from_iterable([number] * size for number, size in sizes)
        return tuple(itertools.islice(numbers, items))


STRUCTURES = {
    "uniform": Population("probability of an item uniform on 15-85%", UNIFORM),
    "beta": Population("probability of an item Beta(1.2, 0.4), 75% on average", EASY),
    "decodes": Population(
        "as beta, K = 4 decodes, all four equal in half of the pairs of seed and item",
        EASY,
        decodes=4,
        unanimous=0.5,
    ),
    "clusters": Population(
        "as uniform, in clusters of 2 to 6 items whose difficulty correlates by 0.5",
        UNIFORM,
        cluster_sizes=(2, 3, 4, 5, 6),
        correlation=0.5,
    ),
}


@dataclass(frozen=True)
class Point:
    """One point of the grid; `spread`: standard deviation of a seed's effect on the accuracy."""

    structure: str
    seeds: int
    items: int
    spread: float

    @property
    def population(self) -> Population:
        """Where its items come from."""
        return STRUCTURES[self.structure]

    @property
    def clusters(self) -> tuple[int, ...]:
        """The cluster of every item."""
        return self.population.clusters(self.items)

    @property
    def work(self) -> int:
        """What the time of one table is proportional to."""
        return self.seeds * self.items * self.population.decodes


@dataclass(frozen=True)
class Aim:
    """A question about power, on uniform items, a share `moved` of which differs between methods.

    With `delta`: do the seeds that `seeds_needed` asks for detect it? With `seeds`: is the
    difference that `detectable` names detected?
    """

    items: int
    spread: float
    moved: float
    delta: float = 0.0
    seeds: int = 0

    @property
    def population(self) -> Population:
        """Where its items come from."""
        return STRUCTURES["uniform"]

    @property
    def work(self) -> int:
        """What the time of one table is roughly proportional to."""
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
    *(Aim(items, 0.02, 0.25, seeds=seeds) for seeds in (3, 5) for items in (300, 1319)),
    *(Aim(items, 0.02, 0.25, seeds=10) for items in (40, 300, 1319)),
    Aim(1319, 0.05, 0.25, seeds=10),
)


@dataclass(frozen=True)
class Protocol:
    """One study. Tables are drawn `batch` at a time; a batch shares the bootstrap's draws.

    `tables` of every point and aim; `tables_fewest` of points with the fewest seeds, where small
    misses have to be told from none. `family`: equal methods compared with one reference. `moved`:
    share of the items (or clusters) whose difficulty another method draws anew; the committed
    records of `quick` and `calibration` have 0.1 to 0.3. `revision` is raised when the study or
    `harness.stats` changes so that the same seed gives other counts; then all are redone.
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

    @property
    def points(self) -> tuple[Point, ...]:
        """The grid, in the order of the tables."""
        grid = itertools.product(self.structures, self.seeds, self.items, self.spreads)
        return tuple(Point(*values) for values in grid)

    def table_count(self, place: Point | Aim) -> int:
        """How many tables are simulated there."""
        fewest = isinstance(place, Point) and place.seeds == min(self.seeds)
        return self.tables_fewest if fewest else self.tables

    def generators(self, place: Point | Aim) -> list[np.random.Generator]:
        """One per batch, from the seed and the `repr` of the place alone."""
        sequence = np.random.SeedSequence([self.seed, *map(ord, repr(place))])
        return [
            np.random.default_rng(child)
            for child in sequence.spawn(self.table_count(place) // self.batch)
        ]

    def as_dict(self) -> dict[str, Any]:
        """As `protocol.toml` holds it; of an aim only what is set."""
        values = dataclasses.asdict(self)
        values["aims"] = [
            {k: v for k, v in aim.items() if v or k not in ("delta", "seeds")}
            for aim in values["aims"]
        ]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """From what `protocol.toml` holds."""
        settings: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**settings | {"aims": tuple(Aim(**aim) for aim in values["aims"])})


def draw_items(
    rng: np.random.Generator, population: Population, tables: int, items: int
) -> Probabilities:
    """The probability of every item to be solved, [tables, items]."""
    if population.cluster_sizes:
        clusters, share = list(population.clusters(items)), population.correlation
        shared = rng.standard_normal((tables, clusters[-1] + 1))[:, clusters]
        single = rng.standard_normal((tables, items))
        ranks = stats.norm.cdf(math.sqrt(share) * shared + math.sqrt(1.0 - share) * single)
        drawn = population.difficulty.ppf(ranks)
    else:
        drawn = population.difficulty.rvs((tables, items), random_state=rng)
    probabilities: Probabilities = drawn.astype(np.float32)
    return probabilities


def move_items(
    rng: np.random.Generator, population: Population, items: Probabilities, share: float
) -> Probabilities:
    """The same items for another method: a share of them (or of the clusters) drawn anew.

    The population's mean stays what it was.
    """
    tables, n = items.shape
    clusters = list(population.clusters(n)) or list(range(n))
    anew = (rng.random((tables, clusters[-1] + 1)) < share)[:, clusters]
    moved: Probabilities = np.where(anew, draw_items(rng, population, tables, n), items)
    return moved


def draw_tables(
    rng: np.random.Generator,
    population: Population,
    items: Probabilities,
    seeds: int,
    spread: float,
    shift: float = 0.0,
) -> Probabilities:
    """Accuracies over decodes of one method with seeds of its own, [tables, seeds, items]."""
    effects = shift + spread * rng.standard_normal((len(items), seeds, 1))
    effects = np.clip(effects, -population.slope, population.slope) / population.slope
    bend = (items * (1.0 - items))[:, None, :]
    shifted = items[:, None, :] + bend * effects.astype(np.float32)
    first: Probabilities = (rng.random(shifted.shape, dtype=np.float32) < shifted).astype(
        np.float32
    )
    if population.decodes == 1:
        return first
    total = first.copy()
    for _ in range(population.decodes - 1):
        total += rng.random(shifted.shape, dtype=np.float32) < shifted
    unanimous = rng.random(shifted.shape, dtype=np.float32) < population.unanimous
    tables: Probabilities = np.where(unanimous, first, total / np.float32(population.decodes))
    return tables

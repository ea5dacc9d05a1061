"""One point of the grid: tables are drawn, every method is applied, hits are counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.stats import Outcome, difference, estimate, holm
from harness.studies.intervals import draw, methods, tried
from harness.studies.intervals.design import Point, Protocol
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
    Bounds,
    Normal,
)
from harness.studies.intervals.squares import Floats, Squares, squares

MEAN, DIFFERENCE = "mean", "difference"
"""What is counted of intervals: how many hold the truth."""
EQUAL, FAMILY, MOVED = "equal", "family", "family, moved items"
"""What is counted of tests: how many reject. `MOVED`: equal on average, not item by item."""
AGREEMENT = 1e-9

Tables = npt.NDArray[np.float32]
Hits = npt.NDArray[np.bool_]


@dataclass
class Tally:
    """Hits and widths so far, by quantity and method."""

    counts: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    halves: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, quantity: str, method: str, hits: Hits, half: float | None = None) -> None:
        """Count one batch; `half` is its mean half-width."""
        self.counts[quantity, method] += int(hits.sum())
        if half is not None:
            self.halves[quantity, method].append(half)

    def intervals(self, quantity: str, method: str, bounds: Bounds, truth: float) -> None:
        """Count the intervals of one batch that hold the truth."""
        self.add(quantity, method, bounds.hold(truth), bounds.half)

    def written(self) -> dict[str, dict[str, dict[str, float]]]:
        """As `counts.jsonl` holds it; half-widths with eight digits."""
        found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        for (quantity, method), count in self.counts.items():
            entry: dict[str, float] = {"count": count}
            if halves := self.halves.get((quantity, method)):
                entry["half"] = float(f"{np.mean(halves):.8g}")
            found[quantity][method] = entry
        return dict(found)


@dataclass(frozen=True)
class Batch:
    """Some tables of one point: a reference, and methods that are as good on average.

    `equal` ones have the same chances, `others` differ in some items.
    """

    protocol: Protocol
    point: Point
    reference: Tables
    equal: Sequence[Tables]
    others: Sequence[Tables]
    rng: np.random.Generator

    @classmethod
    def of(cls, protocol: Protocol, point: Point, rng: np.random.Generator) -> Batch:
        """Draw all of it from `rng`."""
        kind, tables = point.kind, protocol.batch
        chance = draw.chances(rng, kind, tables, point.items)
        arms = [
            draw.outcomes(rng, kind, chance, point.seeds, point.spread)
            for _ in range(1 + protocol.family)
        ]
        others = []
        for _ in range(protocol.family):
            moved = draw.moved(rng, kind, chance, protocol.moved)
            others.append(draw.outcomes(rng, kind, moved, point.seeds, point.spread))
        return cls(protocol, point, arms[0], arms[1:], others, rng)

    @property
    def clusters(self) -> tuple[int, ...]:
        """The cluster of every item."""
        return self.point.kind.clusters(self.point.items)


def simulate(
    point: Point, protocol: Protocol, told: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Counts of all methods at one point, of `protocol.tables` tables."""
    tally = Tally()
    generators = protocol.generators(point)
    for number, rng in enumerate(generators):
        told(number, len(generators))
        count(Batch.of(protocol, point, rng), tally)
    return tally.written()


def count(batch: Batch, tally: Tally) -> None:
    """Apply every method to a batch."""
    clusters, protocol = batch.clusters, batch.protocol
    own = squares(batch.reference, clusters)
    arms = (batch.reference, batch.others[0], batch.equal[0])
    replicates = methods.bootstrapped(arms, batch.rng, protocol.draws, clusters)
    _means(batch, tally, own, replicates[0])
    for quantity, table, drawn in (
        (DIFFERENCE, batch.others[0], replicates[1]),
        (EQUAL, batch.equal[0], replicates[2]),
    ):
        _differences(batch, tally, quantity, table, own, drawn - replicates[0])
    _family(batch, tally, FAMILY, batch.equal, own)
    _family(batch, tally, MOVED, batch.others, own)


def _means(batch: Batch, tally: Tally, own: Squares, replicates: Floats) -> None:
    alpha, kind, clusters = batch.protocol.alpha, batch.point.kind, batch.clusters
    exact, _ = methods.two_way_exact(batch.reference, own, alpha, 0.0, clusters)
    answers = batch.point.seeds * batch.point.items * kind.decodes
    alone = squares(batch.reference) if clusters else own
    found = {
        TWO_WAY: exact,
        BOOTSTRAP: methods.percentile(replicates, alpha),
        SATTERTHWAITE: methods.satterthwaite(own).bounds(alpha, 0.0),
        SEEDS: methods.seeds_only(own.by_seed).bounds(alpha, 0.0),
        POOLED: methods.pooled_wilson(own.mean, answers, alpha),
        ITEMS: methods.items_only(alone, alpha),
    }
    if clusters:
        found[IGNORED] = methods.two_way_exact(batch.reference, alone, alpha, 0.0)[0]
    for name, half in _tried(batch, own).items():
        found[name] = methods.around(own.mean, half, 0.0)
    for name, bounds in found.items():
        tally.intervals(MEAN, name, bounds, kind.mean)
    suite = estimate(_outcome(batch.reference[0], clusters), alpha)
    _check(batch.point, (exact.low[0], exact.high[0]), (suite.ci_low, suite.ci_high))


def _differences(
    batch: Batch, tally: Tally, quantity: str, table: Tables, own: Squares, replicates: Floats
) -> None:
    """Paired with the reference; the true difference is 0, so a rejection is a miss."""
    alpha, clusters = batch.protocol.alpha, batch.clusters
    paired = table - batch.reference
    gap = squares(paired, clusters)
    exact, told = methods.two_way_exact(paired, gap, alpha, -1.0, clusters)
    found: dict[str, Bounds] = {TWO_WAY: exact, BOOTSTRAP: methods.percentile(replicates, alpha)}
    normals: dict[str, Normal] = {
        SATTERTHWAITE: methods.satterthwaite(gap),
        SEEDS: methods.seeds_only(gap.by_seed),
        UNPAIRED: methods.unpaired(squares(table, clusters), own),
    }
    found |= {name: one.bounds(alpha, -1.0) for name, one in normals.items()}
    if clusters:
        found[IGNORED] = methods.two_way_exact(paired, squares(paired), alpha, -1.0)[0]
    for name, half in _tried(batch, gap).items():
        found[name] = methods.around(gap.mean, half, -1.0)
    rejected = {name: ~bounds.hold(0.0) for name, bounds in found.items()}
    rejected |= {TWO_WAY: told, FLIPS: methods.sign_flips(gap.by_seed) < alpha}
    for name, hits in rejected.items():
        width = found[name].half if name in found else None
        tally.add(quantity, name, hits if quantity == EQUAL else ~hits, width)
    suite = difference(_outcome(table[0], clusters), _outcome(batch.reference[0], clusters), alpha)
    expected = (suite.ci_low, suite.ci_high, float(suite.p < alpha), suite.p_sign_flip)
    flips = methods.sign_flips(gap.by_seed[:1])[0]
    _check(batch.point, (exact.low[0], exact.high[0], float(told[0]), flips), expected)


def _tried(batch: Batch, found: Squares) -> dict[str, Floats]:
    protocol = batch.protocol
    drawn = tried.generalised(found, batch.rng, protocol.draws, protocol.alpha)
    return tried.half_widths(found, protocol.alpha) | {tried.GENERALISED: drawn}


def _family(
    batch: Batch, tally: Tally, quantity: str, tables: Sequence[Tables], own: Squares
) -> None:
    """Methods as good as their one reference: is any declared better or worse after Holm?

    Holm's first step, the smallest p at level alpha / m, decides whether anything is rejected.
    """
    alpha, clusters = batch.protocol.alpha, batch.clusters
    level = alpha / len(tables)
    declared: dict[str, Hits] = {}
    for table in tables:
        paired = table - batch.reference
        gap = squares(paired, clusters)
        hits = {
            TWO_WAY: methods.two_way_exact(paired, gap, level, -1.0, clusters)[1],
            SATTERTHWAITE: methods.satterthwaite(gap).p() < level,
            SEEDS: methods.seeds_only(gap.by_seed).p() < level,
            FLIPS: methods.sign_flips(gap.by_seed) < level,
            UNPAIRED: methods.unpaired(squares(table, clusters), own).p() < level,
        }
        for name, half in tried.half_widths(gap, level).items():
            hits[name] = np.abs(gap.mean) > half
        for name, found in hits.items():
            declared[name] = found | declared.get(name, np.zeros_like(found))
    for name, found in declared.items():
        tally.add(quantity, name, found)
    reference = _outcome(batch.reference[0], clusters)
    family = [difference(_outcome(table[0], clusters), reference, alpha) for table in tables]
    verdicts = {one.verdict for one in holm(family, alpha)}
    _check(batch.point, (float(declared[TWO_WAY][0]),), (float(verdicts != {"tie"}),))


def _outcome(table: Tables, clusters: Sequence[int]) -> Outcome:
    labels: Mapping[str, Sequence[str]] | None = None
    if clusters:
        labels = {"task": tuple(map(str, clusters))}
    return Outcome.of({"task": table.astype(np.float64)}, clusters=labels)


def _check(point: Point, found: Sequence[float], expected: Sequence[float]) -> None:
    """Refuse to count what `harness.stats` itself would not say of the first table of a batch."""
    if not np.allclose(found, expected, rtol=0.0, atol=AGREEMENT):
        raise RuntimeError(
            f"{point}: {list(map(float, found))} where harness.stats has "
            f"{list(map(float, expected))}; expected the same"
        )

"""Draws the tables of every point, applies all methods to them and counts what they say.

Counts are written to `counts.jsonl` as points are finished: a killed study continues.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from rich.console import Console

from harness.experiment.progress import Progress, ProgressBars, no_progress
from harness.experiment.records import provenance, write_atomic
from harness.running.job import reporting
from harness.running.workers import Outcome as JobOutcome
from harness.running.workers import Report, Workers
from harness.stats import Outcome, difference, estimate, holm, seeds_needed
from harness.studies.intervals import methods
from harness.studies.intervals.design import (
    Aim,
    Point,
    Protocol,
    draw_items,
    draw_tables,
    move_items,
)
from harness.studies.intervals.methods import (
    SEEDS,
    SIGN_FLIPS,
    TWO_WAY,
    Bools,
    Bounds,
    Floats,
    Tables,
    Variances,
    variances,
)

MEAN, DIFFERENCE = "mean", "difference"
"""Counted of intervals: how many contain the truth."""
EQUAL, FAMILY, MOVED = "equal", "family", "family, moved items"
"""Counted of tests: how many reject. `MOVED`: equal on average, not item by item."""
AGREEMENT = 1e-9
PILOT_SEEDS = 10
"""Seeds of the tables that the standard deviation for `seeds_needed` is estimated from."""
POWER = 0.8
"""What `harness.stats.detectable` promises; a test holds its formula against this one's."""
MAX_FLIP_SEEDS = 10
"""Up to this many seeds sign flips are counted as well: beyond it there are too many."""

HEAD = "# The protocol of this study as it was run; written before the first table.\n"
PROTOCOL, COUNTS, FACTS = "protocol.toml", "counts.jsonl", "facts.json"
PLACES = ("structures", "seeds", "items", "spreads", "aims")
"""Settings that say which points there are; the counts of one point depend on the others."""

Count = tuple[str, str, Bools, float | None]
"""Quantity, method, which tables count, and the mean half-width of its intervals."""


@dataclass(frozen=True)
class Batch:
    """Some tables of one point: a reference, and methods that are as good on average.

    `equal` ones have the same items, for `others` some items differ in difficulty.
    """

    protocol: Protocol
    point: Point
    reference: Tables
    equal: Sequence[Tables]
    others: Sequence[Tables]
    rng: np.random.Generator

    @classmethod
    def draw(cls, protocol: Protocol, point: Point, rng: np.random.Generator) -> Batch:
        """Draw all of it from `rng`."""

        def table(items: Tables) -> Tables:
            return draw_tables(rng, point.population, items, point.seeds, point.spread)

        def moved() -> Tables:
            return move_items(rng, point.population, items, protocol.moved)

        items = draw_items(rng, point.population, protocol.batch, point.items)
        reference, *equal = (table(items) for _ in range(1 + protocol.family))
        others = [table(moved()) for _ in range(protocol.family)]
        return cls(protocol, point, reference, equal, others, rng)

    def variances(self, table: Tables) -> Variances:
        """Parts of the variance of one arm, by cluster where there are any."""
        return variances(table, self.point.clusters)

    def outcome(self, table: Tables) -> Outcome:
        """The first table, as `harness.stats` takes it."""
        clusters = methods.labels(self.point.clusters)
        return Outcome.of({"task": table[0].astype(np.float64)}, clusters=clusters)


def simulate(
    point: Point, protocol: Protocol, progress: Progress = no_progress
) -> dict[str, dict[str, dict[str, float]]]:
    """Counts of all methods at one point by quantity and method; half-widths with eight digits."""
    counts: Counter[tuple[str, str]] = Counter()
    half_widths = defaultdict(list)
    for rng in progress(protocol.generators(point), "tables"):
        for quantity, method, hits, half_width in count(Batch.draw(protocol, point, rng)):
            counts[quantity, method] += int(hits.sum())
            if half_width is not None:
                half_widths[quantity, method].append(half_width)
    entries: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (quantity, method), total in counts.items():
        entries[quantity][method] = {"count": total}
        if widths := half_widths.get((quantity, method)):
            entries[quantity][method]["half"] = float(f"{np.mean(widths):.8g}")
    return dict(entries)


def count(batch: Batch) -> Iterator[Count]:
    """Apply every method to a batch."""
    reference = batch.variances(batch.reference)
    arms = (batch.reference, batch.others[0], batch.equal[0])
    replicates = methods.bootstrapped(arms, batch.rng, batch.protocol.draws, batch.point.clusters)
    yield from _means(batch, reference, replicates[0])
    for quantity, table, drawn in zip((DIFFERENCE, EQUAL), arms[1:], replicates[1:], strict=True):
        yield from _differences(batch, quantity, table, reference, drawn - replicates[0])
    yield from _family(batch, FAMILY, batch.equal, reference)
    yield from _family(batch, MOVED, batch.others, reference)


def _intervals(
    batch: Batch, tables: Tables, own: Variances, replicates: Floats, lowest: float
) -> tuple[dict[str, Bounds], Bools]:
    """Intervals that means and differences share, and which defaults are significant."""
    protocol, clusters = batch.protocol, batch.point.clusters
    alpha = protocol.alpha
    default, significant = methods.two_way_exact(tables, own, alpha, lowest, clusters)
    bounds = {
        TWO_WAY: default,
        methods.BOOTSTRAP: methods.percentile(replicates, alpha),
        methods.SATTERTHWAITE: methods.satterthwaite(own).bounds(alpha, lowest),
        SEEDS: methods.seeds_only(own).bounds(alpha, lowest),
    }
    if clusters:
        unclustered = variances(tables)
        bounds[methods.IGNORED], _ = methods.two_way_exact(tables, unclustered, alpha, lowest)
    half_widths = methods.tried(own, alpha)
    drawn = methods.generalised(own, batch.rng, protocol.draws, alpha)
    for name, widths in (half_widths | {methods.GENERALISED: drawn}).items():
        bounds[name] = methods.around(own.mean, widths, lowest)
    return bounds, significant


def _means(batch: Batch, reference: Variances, replicates: Floats) -> Iterator[Count]:
    alpha, point = batch.protocol.alpha, batch.point
    bounds, _ = _intervals(batch, batch.reference, reference, replicates, 0.0)
    answers = point.seeds * point.items * point.population.decodes
    bounds[methods.POOLED] = methods.pooled_wilson(reference.mean, answers, alpha)
    bounds[methods.ITEMS] = methods.items_only(variances(batch.reference), alpha)
    for name, intervals in bounds.items():
        yield MEAN, name, intervals.cover(point.population.mean), intervals.half_width
    suite = estimate(batch.outcome(batch.reference), alpha)
    _check(point, [float(ends[0]) for ends in bounds[TWO_WAY]], [suite.ci_low, suite.ci_high])


def _differences(
    batch: Batch, quantity: str, table: Tables, reference: Variances, replicates: Floats
) -> Iterator[Count]:
    """Paired with the reference; the true difference is 0, so a rejection is a miss."""
    alpha, paired = batch.protocol.alpha, table - batch.reference
    gap = batch.variances(paired)
    bounds, significant = _intervals(batch, paired, gap, replicates, -1.0)
    unpaired = methods.unpaired(batch.variances(table), reference)
    bounds[methods.UNPAIRED] = unpaired.bounds(alpha, -1.0)
    flips = methods.sign_flips(gap.by_seed)
    rejected = {name: ~intervals.cover(0.0) for name, intervals in bounds.items()}
    rejected |= {TWO_WAY: significant, SIGN_FLIPS: flips < alpha}
    for name, hits in rejected.items():
        half_width = bounds[name].half_width if name in bounds else None
        yield quantity, name, hits if quantity == EQUAL else ~hits, half_width
    suite = difference(batch.outcome(table), batch.outcome(batch.reference), alpha)
    ends = [float(ends[0]) for ends in bounds[TWO_WAY]]
    _check(
        batch.point,
        [*ends, float(significant[0]), flips[0]],
        [suite.ci_low, suite.ci_high, float(suite.p < alpha), suite.p_sign_flip],
    )


def _family(
    batch: Batch, quantity: str, tables: Sequence[Tables], reference: Variances
) -> Iterator[Count]:
    """Methods as good as their one reference: is any declared better or worse after Holm?

    Holm's first step, the smallest p at level alpha / m, decides whether anything is rejected.
    """
    alpha, clusters = batch.protocol.alpha, batch.point.clusters
    level = alpha / len(tables)
    declared: dict[str, Bools] = {}
    for table in tables:
        paired = table - batch.reference
        gap = variances(paired, clusters)
        rejected = {
            TWO_WAY: methods.two_way_exact(paired, gap, level, -1.0, clusters)[1],
            methods.SATTERTHWAITE: methods.satterthwaite(gap).p() < level,
            SEEDS: methods.seeds_only(gap).p() < level,
            SIGN_FLIPS: methods.sign_flips(gap.by_seed) < level,
            methods.UNPAIRED: methods.unpaired(batch.variances(table), reference).p() < level,
        }
        for name, half_widths in methods.tried(gap, level).items():
            rejected[name] = np.abs(gap.mean) > half_widths
        for name, hits in rejected.items():
            declared[name] = hits | declared.get(name, np.zeros_like(hits))
    for name, hits in declared.items():
        yield quantity, name, hits, None
    outcome = batch.outcome(batch.reference)
    family = [difference(batch.outcome(table), outcome, alpha) for table in tables]
    verdicts = {comparison.verdict for comparison in holm(family, alpha)}
    _check(batch.point, [float(declared[TWO_WAY][0])], [float(verdicts != {"tie"})])


def _check(point: Point, values: Sequence[float], expected: Sequence[float]) -> None:
    """Refuse to count what `harness.stats` itself would not say of the first table of a batch."""
    if not np.allclose(values, expected, rtol=0.0, atol=AGREEMENT):
        raise RuntimeError(
            f"{point}: {values} where harness.stats has {expected}; expected the same"
        )


def detections(aim: Aim, protocol: Protocol, progress: Progress = no_progress) -> dict[str, Any]:
    """Seeds and difference by the formula, and in how many tables each test detects it."""
    generators = protocol.generators(aim)
    seeds, delta = aim.seeds, aim.delta
    pilots = [
        _differing(aim, protocol, rng, seeds or PILOT_SEEDS, 0.0)
        for rng in progress(generators, "pilot tables")
    ]
    facts: dict[str, Any] = {}
    if aim.seeds:
        # What the suite would name, on average over tables of two equally good methods.
        levels = protocol.alpha, 2.0 * (1.0 - POWER)
        halves = [[methods.two_way(pilot, level, True) for level in levels] for pilot in pilots]
        delta = float(np.sum(halves, axis=1).mean())
    else:
        sd = math.sqrt(np.mean([pilot.by_seed.var(axis=1, ddof=1).mean() for pilot in pilots]))
        seeds = seeds_needed(sd, delta, protocol.alpha)
        facts["sd"] = float(f"{sd:.8g}")
    counts: Counter[str] = Counter()
    for rng in progress(generators, "tables"):
        table = _differing(aim, protocol, rng, seeds, delta)
        rejected = {
            TWO_WAY: np.abs(table.mean) > methods.two_way(table, protocol.alpha, True),
            SEEDS: methods.seeds_only(table).p() < protocol.alpha,
        }
        if seeds <= MAX_FLIP_SEEDS:
            rejected[SIGN_FLIPS] = methods.sign_flips(table.by_seed) < protocol.alpha
        for name, hits in rejected.items():
            counts[name] += int((hits & (table.mean > 0.0)).sum())
    return facts | {"seeds": seeds, "delta": float(f"{delta:.8g}"), "found": dict(counts)}


def _differing(
    aim: Aim, protocol: Protocol, rng: np.random.Generator, seeds: int, delta: float
) -> Variances:
    """Tables of differences whose truth is `delta`; either method is shifted by half of it."""
    items = draw_items(rng, aim.population, protocol.batch, aim.items)
    moved = move_items(rng, aim.population, items, aim.moved)
    method = draw_tables(rng, aim.population, moved, seeds, aim.spread, delta / 2.0)
    reference = draw_tables(rng, aim.population, items, seeds, aim.spread, -delta / 2.0)
    return variances(method - reference)


@dataclass(frozen=True)
class Job:
    """A point or a question about power, for a worker."""

    place: Point | Aim
    protocol: Protocol


def _simulate(job: Job, report: Report) -> dict[str, Any]:
    if isinstance(job.place, Aim):
        return detections(job.place, job.protocol, reporting(report))
    return simulate(job.place, job.protocol, reporting(report))


def _simulated(jobs: Sequence[Job], workers: int) -> Iterator[JobOutcome]:
    """Outcomes of all jobs, as they end."""
    waiting = list(jobs)
    with Workers(min(workers, len(jobs)), _simulate) as pool:
        while waiting or pool.busy:
            while waiting and pool.idle is not None:
                pool.submit(waiting.pop(0))
            yield from pool.poll(0.2)


def run(protocol: Protocol, folder: Path, workers: int, console: Console) -> None:
    """Simulate what `folder` has no counts of; every finished point is written at once."""
    origin = provenance(Path(__file__).parents[3], "cpu", {})  # of the code that starts
    places: list[Point | Aim] = [*protocol.points, *protocol.aims]
    counts = _stored_counts(protocol, folder)
    write_atomic(folder / PROTOCOL, (HEAD + tomli_w.dumps(protocol.as_dict())).encode())
    missing = [place for place in places if place not in counts]
    stored = len(places) - len(missing)
    console.print(f"simulating: {len(missing)} to do, {stored} found", highlight=False)

    # The longest first: the rest fills the other cores.
    jobs = [Job(place, protocol) for place in sorted(missing, key=lambda place: -place.work)]
    for ended in ProgressBars(console)(_simulated(jobs, workers), "simulating", len(jobs)):
        if ended.error is not None:
            raise RuntimeError(f"{ended.job.place}: {ended.error['message']}")
        counts[ended.job.place] = ended.result
        lines = [_line(place, counts[place]) for place in places if place in counts]
        write_atomic(folder / COUNTS, ("\n".join(lines) + "\n").encode())
    if missing or not (folder / FACTS).exists():
        facts = {"study": "statistics", "made": origin}
        write_atomic(folder / FACTS, (json.dumps(facts, indent=1) + "\n").encode())


def _line(place: Point | Aim, counts: Mapping[str, Any]) -> str:
    kind = "aim" if isinstance(place, Aim) else "point"
    return json.dumps({kind: dataclasses.asdict(place), "counts": counts})


def read(folder: Path) -> dict[Point | Aim, dict[str, Any]]:
    """The counts of `folder` by point and aim."""
    if not (folder / COUNTS).exists():
        return {}
    text = (folder / COUNTS).read_text(encoding="utf-8")
    entries = map(json.loads, text.splitlines())
    return {
        Aim(**entry["aim"]) if "aim" in entry else Point(**entry["point"]): entry["counts"]
        for entry in entries
    }


def _stored_counts(protocol: Protocol, folder: Path) -> dict[Point | Aim, dict[str, Any]]:
    """What `folder` holds of this protocol; counts of another one are deleted."""
    path = folder / PROTOCOL
    before = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if all(before.get(k) == v for k, v in protocol.as_dict().items() if k not in PLACES):
        return read(folder)
    (folder / COUNTS).unlink(missing_ok=True)
    return {}

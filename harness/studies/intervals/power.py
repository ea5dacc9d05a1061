"""Is the power what `harness.stats.power` promises? Simulated, one question at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.stats import seeds_needed
from harness.studies.intervals import draw, methods
from harness.studies.intervals.design import Aim, Protocol
from harness.studies.intervals.methods import FLIPS, SEEDS, TWO_WAY
from harness.studies.intervals.squares import Squares, squares

PILOT_SEEDS = 10
"""Seeds of the tables that the standard deviation for `seeds_needed` is taken from."""
POWER = 0.8
"""What `harness.stats.detectable` promises; a test holds its formula against this one's."""
MOST_FLIPS = 10
"""Up to this many seeds sign flips are counted as well: beyond it there are too many."""


def answer(
    aim: Aim, protocol: Protocol, told: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Seeds and difference of the formula, and how many tables each test found it in."""
    generators = protocol.generators(aim)
    steps = 2 * len(generators)
    seeds, delta = aim.seeds, aim.delta
    pilots = []
    for number, rng in enumerate(generators):
        told(number, steps)
        pilots.append(_pairs(aim, protocol, rng, seeds or PILOT_SEEDS, 0.0))
    found: dict[str, Any] = {}
    if aim.seeds:
        delta = _mean_detectable(pilots, protocol.alpha)
    else:
        sd = math.sqrt(np.mean([one.by_seed.var(axis=1, ddof=1).mean() for one in pilots]))
        seeds = seeds_needed(sd, delta, protocol.alpha)
        found["sd"] = float(f"{sd:.8g}")
    counts = dict.fromkeys((TWO_WAY, SEEDS, *((FLIPS,) if seeds <= MOST_FLIPS else ())), 0)
    for number, rng in enumerate(generators):
        told(len(generators) + number, steps)
        pairs = _pairs(aim, protocol, rng, seeds, delta)
        half = methods.two_way(pairs, differences=True).half(protocol.alpha)
        hits = {
            TWO_WAY: pairs.mean > half,
            SEEDS: methods.seeds_only(pairs.by_seed).p() < protocol.alpha,
        }
        if FLIPS in counts:
            hits[FLIPS] = methods.sign_flips(pairs.by_seed) < protocol.alpha
        for name in counts:
            counts[name] += int((hits[name] & (pairs.mean > 0.0)).sum())
    return found | {"seeds": seeds, "delta": float(f"{delta:.8g}"), "found": counts}


def _pairs(
    aim: Aim, protocol: Protocol, rng: np.random.Generator, seeds: int, delta: float
) -> Squares:
    """Tables of differences whose truth is `delta`; either method is shifted by half of it."""
    chance = draw.chances(rng, aim.kind, protocol.batch, aim.items)
    changed = draw.moved(rng, aim.kind, chance, aim.moved)
    method = draw.outcomes(rng, aim.kind, changed, seeds, aim.spread, delta / 2.0)
    reference = draw.outcomes(rng, aim.kind, chance, seeds, aim.spread, -delta / 2.0)
    return squares(method - reference)


def _mean_detectable(pilots: list[Squares], alpha: float) -> float:
    """What the suite would name, on average over tables of two equally good methods."""
    named = []
    for pilot in pilots:
        own = methods.two_way(pilot, differences=True)
        named += list(own.half(alpha) + own.half(2.0 * (1.0 - POWER)))
    return float(np.mean(named))

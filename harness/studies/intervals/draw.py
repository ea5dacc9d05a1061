"""Simulated tables whose population mean is known exactly.

Item i is solved with chance p_i. Under a shift x of the accuracy the chance is

    p_i + x p_i (1 - p_i) / h,    h = mean of p(1 - p) over items:

the population moves by x, easy and hard items by less (a logistic shift to first order). It is a
chance while |x| <= h; shifts are cut there. Effects of seeds are symmetric about 0, so that the cut
leaves the mean where it was.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.studies.intervals.design import EASIEST, HARDEST, Structure

Chances = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


def chances(rng: np.random.Generator, kind: Structure, tables: int, items: int) -> Chances:
    """The chance of every item to be solved [tables, items]."""
    if kind.beta is not None:
        return rng.beta(*kind.beta, size=(tables, items)).astype(np.float32)
    if kind.sizes:
        clusters = list(kind.clusters(items))
        shared = rng.standard_normal((tables, clusters[-1] + 1))[:, clusters]
        own = rng.standard_normal((tables, items))
        ranks = stats.norm.cdf(math.sqrt(kind.alike) * shared + math.sqrt(1.0 - kind.alike) * own)
    else:
        ranks = rng.random((tables, items))
    found: Chances = (HARDEST + (EASIEST - HARDEST) * ranks).astype(np.float32)
    return found


def moved(rng: np.random.Generator, kind: Structure, chance: Chances, share: float) -> Chances:
    """The same items for another method: a share of them (or of the clusters) drawn anew.

    The population's mean stays what it was.
    """
    tables, items = chance.shape
    clusters = list(kind.clusters(items)) or list(range(items))
    anew = (rng.random((tables, clusters[-1] + 1)) < share)[:, clusters]
    found: Chances = np.where(anew, chances(rng, kind, tables, items), chance)
    return found


def outcomes(
    rng: np.random.Generator,
    kind: Structure,
    chance: Chances,
    seeds: int,
    spread: float,
    shift: float = 0.0,
) -> Chances:
    """Accuracies [tables, seeds, items] over decodes, of one method with seeds of its own."""
    effects = shift + spread * rng.standard_normal((len(chance), seeds, 1))
    effects = np.clip(effects, -kind.slope, kind.slope) / kind.slope
    bend = (chance * (1.0 - chance))[:, None, :]
    shifted = chance[:, None, :] + bend * effects.astype(np.float32)
    first: Chances = (rng.random(shifted.shape, dtype=np.float32) < shifted).astype(np.float32)
    if kind.decodes == 1:
        return first
    total = first.copy()
    for _ in range(kind.decodes - 1):
        total += rng.random(shifted.shape, dtype=np.float32) < shifted
    settled = rng.random(shifted.shape, dtype=np.float32) < kind.settled
    found: Chances = np.where(settled, first, total / np.float32(kind.decodes))
    return found

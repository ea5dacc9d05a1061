"""Intervals and tests of many tables at once: the suite's own, and what others do.

`TWO_WAY`, `BOOTSTRAP` and `FLIPS` are the suite's. The others are common practice:

- `SEEDS`: a t interval over the means of the seeds; for a difference, the paired t test.
- `POOLED`: Wilson's interval, as if all R n K answers were independent.
- `ITEMS`: mean over seeds +- 1.96 standard errors over items, as lm-eval's `stderr` has it.
- `SATTERTHWAITE`: the suite's default before this study: the parts of the two-way interval as one
  variance, the largest of V_r + V_i - V_e, V_r and V_i, with Satterthwaite's degrees of freedom.
- `UNPAIRED`: two such intervals whose variances are added.
- `IGNORED`: two-way with clusters taken as independent items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.stats import replicate
from harness.stats.interval import spread
from harness.studies.intervals.squares import Floats, Squares

TWO_WAY, BOOTSTRAP, SEEDS = "two-way", "crossed bootstrap", "seeds only"
POOLED, ITEMS = "pooled Wilson", "items only"
SATTERTHWAITE = "Satterthwaite"
FLIPS, UNPAIRED, IGNORED = "sign flips", "unpaired two-way", "clusters ignored"
_ZERO = 1e-20
_TOLERANCE = 1e-12


class Bounds(NamedTuple):
    """Intervals [M]."""

    low: Floats
    high: Floats

    def hold(self, truth: float) -> npt.NDArray[np.bool_]:
        """Which of them hold the truth."""
        return (self.low <= truth) & (truth <= self.high)

    @property
    def half(self) -> float:
        """Mean half-width."""
        return float((self.high - self.low).mean() / 2.0)


class Normal(NamedTuple):
    """Estimates with standard errors and degrees of freedom [M]: a t interval and its p."""

    mean: Floats
    se: Floats
    df: Floats

    def bounds(self, alpha: float, lowest: float) -> Bounds:
        """Intervals, cut at [lowest, 1]."""
        return around(self.mean, stats.t.ppf(1.0 - alpha / 2.0, self.df) * self.se, lowest)

    def p(self) -> Floats:
        """Two-sided p of 0; nan where nothing varies."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = 2.0 * stats.t.sf(np.abs(self.mean) / self.se, self.df)
        return found


def around(mean: Floats, half: Floats, lowest: float) -> Bounds:
    """mean +- half, cut at [lowest, 1]."""
    return Bounds(np.maximum(mean - half, lowest), np.minimum(mean + half, 1.0))


class TwoWay(NamedTuple):
    """The default's two parts of the variance of a mean, all [M]."""

    mean: Floats
    seeds: Floats
    items: Floats
    df: tuple[int, int]

    def half(self, alpha: float) -> Floats:
        """Half-widths."""
        t_r, t_i = stats.t.isf(alpha / 2.0, self.df)
        found: Floats = np.sqrt(t_r**2 * self.seeds + t_i**2 * self.items)
        return found


def two_way(found: Squares, differences: bool) -> TwoWay:
    """The default, formula by formula as `harness.stats.interval` has it."""
    seeds, items = found.v_r, found.v_i
    if differences:
        items = np.maximum(items - found.v_e, 0.0)
    else:
        seeds = np.maximum(seeds - found.v_e, 0.0)
    return TwoWay(found.mean, seeds, items, (found.seeds - 1, found.items - 1))


def two_way_exact(
    tables: npt.NDArray[np.float32],
    found: Squares,
    alpha: float,
    lowest: float,
    clusters: Sequence[int] = (),
) -> tuple[Bounds, npt.NDArray[np.bool_]]:
    """The default's intervals, and whether p is below alpha.

    Tables without spread go through `harness.stats` itself.
    """
    own = two_way(found, lowest < 0.0)
    half = own.half(alpha)
    low, high = around(found.mean, half, lowest)
    rejected = np.abs(found.mean) > half
    flat = (own.seeds + own.items <= _ZERO) | (found.v_i + found.v_e <= _ZERO)
    labels = {"task": tuple(map(str, clusters))} if clusters else None
    for at in np.flatnonzero(flat):
        table = {"task": tables[at].astype(np.float64)}
        one = spread(table, differences=lowest < 0.0, clusters=labels)
        (low[at], high[at]), rejected[at] = one.interval(alpha), one.p_value() < alpha
    return Bounds(low, high), rejected


def satterthwaite(found: Squares) -> Normal:
    """One variance, the largest of three, with Satterthwaite's degrees of freedom."""
    total = np.maximum(found.v_r + found.v_i - found.v_e, np.maximum(found.v_r, found.v_i))
    rows, columns = found.seeds - 1, found.items - 1
    parts = found.v_r**2 / rows + found.v_i**2 / columns + found.v_e**2 / (rows * columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Normal(found.mean, np.sqrt(total), total**2 / parts)


def seeds_only(by_seed: Floats) -> Normal:
    """t over the means of seeds [M, R]."""
    seeds = by_seed.shape[1]
    se = by_seed.std(axis=1, ddof=1) / np.sqrt(seeds)
    return Normal(by_seed.mean(axis=1), se, np.full(len(by_seed), seeds - 1.0))


def unpaired(method: Squares, reference: Squares) -> Normal:
    """Two independent estimates."""
    a, b = satterthwaite(method), satterthwaite(reference)
    total = a.se**2 + b.se**2
    df = total**2 / (a.se**4 / a.df + b.se**4 / b.df)
    return Normal(a.mean - b.mean, np.sqrt(total), df)


def items_only(found: Squares, alpha: float) -> Bounds:
    """Normal interval from the spread of the items' means over seeds."""
    half = stats.norm.ppf(1.0 - alpha / 2.0) * np.sqrt(found.v_i)
    return around(found.mean, half, 0.0)


def pooled_wilson(mean: Floats, answers: int, alpha: float) -> Bounds:
    """Wilson's interval of `answers` independent answers."""
    z2 = float(stats.norm.ppf(1.0 - alpha / 2.0)) ** 2
    centre = (mean + z2 / (2 * answers)) / (1 + z2 / answers)
    root = np.sqrt(mean * (1 - mean) * z2 / answers + z2**2 / (4 * answers**2))
    return around(centre, root / (1 + z2 / answers), 0.0)


def sign_flips(by_seed: Floats) -> Floats:
    """Exact sign-flip p of the means of seeds [M, R] (`harness.stats.sign_flip`)."""
    seeds = by_seed.shape[1]
    signs = 1 - 2 * ((np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds)) & 1)
    sums = by_seed @ signs.T.astype(np.float64)
    limit = np.abs(by_seed.sum(axis=1)) - _TOLERANCE
    found: Floats = np.mean(np.abs(sums) >= limit[:, None], axis=1)
    return found


def bootstrapped(
    arms: Sequence[npt.NDArray[np.float32]],
    rng: np.random.Generator,
    draws: int,
    clusters: Sequence[int] = (),
) -> list[Floats]:
    """Replicates [draws, M] of the mean of every arm; all tables share draws, arms are paired."""
    tables = np.concatenate(arms).astype(np.float64)
    labels = {"task": tuple(map(str, clusters))} if clusters else None
    found = replicate({"task": tables}, rng, draws, clusters=labels)
    return np.split(found, len(arms), axis=1)


def percentile(replicates: Floats, alpha: float) -> Bounds:
    """Percentile intervals of replicates [draws, M]."""
    low, high = np.quantile(replicates, [alpha / 2.0, 1.0 - alpha / 2.0], axis=0)
    return Bounds(low, high)

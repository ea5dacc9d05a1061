"""Intervals and tests of M tables at once: the suite's own, common practice, and ones tried.

`TWO_WAY` and `SIGN_FLIPS` are the suite's. Common practice:

- `BOOTSTRAP`: percentiles over resampled seeds crossed with resampled items.
- `SEEDS`: a t interval over the means of the seeds; for a difference, the paired t test.
- `POOLED`: Wilson's interval, as if all R n K answers were independent.
- `ITEMS`: mean over seeds +- 1.96 standard errors over items, like lm-eval's `stderr`.
- `SATTERTHWAITE`: the suite's default before this study: the parts of the two-way interval as one
  variance, the largest of V_r + V_i - V_e, V_r and V_i, with Satterthwaite's degrees of freedom.
- `UNPAIRED`: two such intervals whose variances are added.
- `IGNORED`: two-way with clusters taken as independent items.

Tried, each for means and for differences, with t quantiles t_r on R - 1 and t_i on n - 1 degrees of
freedom:

- `FLOOR`: Satterthwaite's with at least R - 1 degrees of freedom. His formula cannot give fewer for
  a sum, but it can where V_e is subtracted.
- `RESIDUAL_ITEMS`: sqrt(t_r^2 max(V_r - V_e, 0) + t_i^2 V_i); the default for means.
- `RESIDUAL_SEEDS`: sqrt(t_r^2 V_r + t_i^2 max(V_i - V_e, 0)); the default for differences.
- `GENERALISED`: the pivotal quantity of Weerahandi (JASA 88, 1993), mean + z sqrt(S) with
  S = max(V_r f_r - V_e f_e, 0) + V_i f_i, z normal and each f its degrees of freedom over a draw
  from their chi-square distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from harness.stats import replicate
from harness.stats.interval import spread

TWO_WAY, BOOTSTRAP, SIGN_FLIPS = "two-way", "crossed bootstrap", "sign flips"
SEEDS, POOLED, ITEMS = "seeds only", "pooled Wilson", "items only"
SATTERTHWAITE, UNPAIRED, IGNORED = "Satterthwaite", "unpaired two-way", "clusters ignored"
FLOOR, RESIDUAL_ITEMS = "floor on df", "residual with items"
RESIDUAL_SEEDS, GENERALISED = "residual with seeds", "generalised"
TRIED = (FLOOR, RESIDUAL_ITEMS, RESIDUAL_SEEDS, GENERALISED)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Tables = npt.NDArray[np.float32]
_ZERO = 1e-20
_TOLERANCE = 1e-12


class Variances(NamedTuple):
    """Of M tables [R, n]: the mean [M], its parts of variance [M], the means by seed [M, R].

    The parts are V_r, V_i and V_e of `harness.stats.interval`. `items` counts the columns:
    clusters where there are any.
    """

    mean: Floats
    v_r: Floats
    v_i: Floats
    v_e: Floats
    by_seed: Floats
    items: int

    @property
    def df(self) -> tuple[int, int]:
        """Degrees of freedom over seeds and over items."""
        return self.by_seed.shape[1] - 1, self.items - 1


def variances(tables: npt.ArrayLike, clusters: Sequence[int] = ()) -> Variances:
    """Two-way analysis of variance of tables [M, R, n]; items of one cluster are adjacent."""
    table = np.asarray(tables, dtype=np.float64)
    if clusters:
        table = _cluster_scores(table, clusters)
    _, seeds, items = table.shape
    by_seed, by_item = table.mean(axis=2), table.mean(axis=1)
    mean = by_seed.mean(axis=1)
    residual = table - by_seed[:, :, None]
    residual -= (by_item - mean[:, None])[:, None, :]
    within = np.einsum("mri,mri->m", residual, residual)
    v_r = by_seed.var(axis=1, ddof=1) / seeds
    v_i = by_item.var(axis=1, ddof=1) / items
    v_e = within / ((seeds - 1) * (items - 1) * seeds * items)
    return Variances(mean, v_r, v_i, v_e, by_seed, items)


def _cluster_scores(tables: Floats, clusters: Sequence[int]) -> Floats:
    """Tables [M, R, G] that stand for [M, R, n] (`harness.stats.cluster`)."""
    codes = np.asarray(clusters)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    by_seed = tables.mean(axis=2, keepdims=True)
    sums = np.add.reduceat(tables - by_seed, starts, axis=2)
    scores: Floats = by_seed + sums * (len(starts) / len(codes))
    return scores


def labels(clusters: Sequence[int]) -> dict[str, tuple[str, ...]] | None:
    """Clusters as `harness.stats` takes them, None without any."""
    return {"task": tuple(map(str, clusters))} if clusters else None


class Bounds(NamedTuple):
    """Intervals [M]."""

    low: Floats
    high: Floats

    def cover(self, truth: float) -> Bools:
        """Which of them contain the truth."""
        return (self.low <= truth) & (truth <= self.high)

    @property
    def half_width(self) -> float:
        """Mean half-width."""
        return float((self.high - self.low).mean() / 2.0)


def around(mean: Floats, half_widths: Floats, lowest: float) -> Bounds:
    """mean +- half_widths, clipped to [lowest, 1]."""
    return Bounds(np.maximum(mean - half_widths, lowest), np.minimum(mean + half_widths, 1.0))


class Normal(NamedTuple):
    """Estimates with standard errors and degrees of freedom [M]: a t interval and its p."""

    mean: Floats
    se: Floats
    df: Floats

    def bounds(self, alpha: float, lowest: float) -> Bounds:
        """Intervals, clipped to [lowest, 1]."""
        return around(self.mean, stats.t.ppf(1.0 - alpha / 2.0, self.df) * self.se, lowest)

    def p(self) -> Floats:
        """Two-sided p of 0; nan where nothing varies."""
        with np.errstate(invalid="ignore", divide="ignore"):
            p: Floats = 2.0 * stats.t.sf(np.abs(self.mean) / self.se, self.df)
        return p


def two_way(table: Variances, alpha: float, differences: bool) -> Floats:
    """Half-widths [M] of the default, by the formulas of `harness.stats.interval`."""
    t_r, t_i = stats.t.isf(alpha / 2.0, table.df)
    v_r, v_i = table.v_r, table.v_i
    if differences:
        v_i = np.maximum(v_i - table.v_e, 0.0)
    else:
        v_r = np.maximum(v_r - table.v_e, 0.0)
    half_widths: Floats = np.sqrt(t_r**2 * v_r + t_i**2 * v_i)
    return half_widths


def two_way_exact(
    tables: Tables, table: Variances, alpha: float, lowest: float, clusters: Sequence[int] = ()
) -> tuple[Bounds, Bools]:
    """The default's intervals, and whether p is below alpha; differences where lowest < 0.

    Tables without spread go through `harness.stats` itself.
    """
    differences = lowest < 0.0
    half_widths = two_way(table, alpha, differences)
    low, high = around(table.mean, half_widths, lowest)
    rejected = np.abs(table.mean) > half_widths
    constant = (half_widths <= _ZERO**0.5) | (table.v_i + table.v_e <= _ZERO)
    for at in np.flatnonzero(constant):
        single = {"task": tables[at].astype(np.float64)}
        own = spread(single, differences=differences, clusters=labels(clusters))
        (low[at], high[at]), rejected[at] = own.interval(alpha), own.p_value() < alpha
    return Bounds(low, high), rejected


def satterthwaite(table: Variances) -> Normal:
    """One variance, the largest of three, with Satterthwaite's degrees of freedom."""
    total = np.maximum(table.v_r + table.v_i - table.v_e, np.maximum(table.v_r, table.v_i))
    rows, columns = table.df
    parts = table.v_r**2 / rows + table.v_i**2 / columns + table.v_e**2 / (rows * columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Normal(table.mean, np.sqrt(total), total**2 / parts)


def seeds_only(table: Variances) -> Normal:
    """t over the means of seeds."""
    df = np.full(len(table.mean), float(table.df[0]))
    return Normal(table.mean, np.sqrt(table.v_r), df)


def unpaired(method: Variances, reference: Variances) -> Normal:
    """Two independent estimates."""
    a, b = satterthwaite(method), satterthwaite(reference)
    total = a.se**2 + b.se**2
    df = total**2 / (a.se**4 / a.df + b.se**4 / b.df)
    return Normal(a.mean - b.mean, np.sqrt(total), df)


def items_only(table: Variances, alpha: float) -> Bounds:
    """Normal interval from the spread of the items' means over seeds."""
    return around(table.mean, stats.norm.ppf(1.0 - alpha / 2.0) * np.sqrt(table.v_i), 0.0)


def pooled_wilson(mean: Floats, answers: int, alpha: float) -> Bounds:
    """Wilson's interval of `answers` independent answers."""
    return Bounds(*proportion_confint(mean * answers, answers, alpha, method="wilson"))


def sign_flips(by_seed: Floats) -> Floats:
    """Exact sign-flip p of the means of seeds [M, R] (`harness.stats.sign_flip`)."""
    seeds = by_seed.shape[1]
    signs = 1 - 2 * ((np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds)) & 1)
    sums = by_seed @ signs.T.astype(np.float64)
    limit = np.abs(by_seed.sum(axis=1)) - _TOLERANCE
    p: Floats = np.mean(np.abs(sums) >= limit[:, None], axis=1)
    return p


def bootstrapped(
    arms: Sequence[Tables], rng: np.random.Generator, draws: int, clusters: Sequence[int] = ()
) -> list[Floats]:
    """Replicates [draws, M] of the mean of every arm; all tables share draws, arms are paired."""
    tables = np.concatenate(arms).astype(np.float64)
    replicates = replicate({"task": tables}, rng, draws, clusters=labels(clusters))
    return np.split(replicates, len(arms), axis=1)


def percentile(replicates: Floats, alpha: float) -> Bounds:
    """Percentile intervals of replicates [draws, M]."""
    return Bounds(*np.quantile(replicates, [alpha / 2.0, 1.0 - alpha / 2.0], axis=0))


def tried(table: Variances, alpha: float) -> dict[str, Floats]:
    """Half-widths [M] by name, of those that were tried and have a formula."""
    summed = satterthwaite(table)
    df = np.fmax(summed.df, float(table.df[0]))
    return {
        FLOOR: stats.t.ppf(1.0 - alpha / 2.0, df) * summed.se,
        RESIDUAL_ITEMS: two_way(table, alpha, differences=False),
        RESIDUAL_SEEDS: two_way(table, alpha, differences=True),
    }


def generalised(table: Variances, rng: np.random.Generator, draws: int, alpha: float) -> Floats:
    """Half-widths [M] of the pivotal quantity; all tables share its draws."""
    rows, columns = table.df
    r, i, e = (df / rng.chisquare(df, draws) for df in (rows, columns, rows * columns))
    total = np.maximum(np.outer(table.v_r, r) - np.outer(table.v_e, e), 0.0)
    total += np.outer(table.v_i, i)
    total = np.sqrt(total) * np.abs(rng.standard_normal(draws))
    half_widths: Floats = np.quantile(total, 1.0 - alpha, axis=1)
    return half_widths

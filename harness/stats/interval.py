"""Intervals for an accuracy that is the mean over random seeds, random items and fixed tasks.

The items are shared by all seeds, so the R x n outcomes are far from independent. The default is a
two-way random-effects t interval: seeds crossed with items, one observation in each cell.

For T tasks, with M_s the mean over tasks of seed s's accuracy, n_t items in task t, and MS_e,t the
residual mean square of the seeds x items table of task t:

    V_r = var_s(M_s) / R                                   seeds (task covariance included)
    V_i = sum_t v_i,t,  v_i,t = var_i(item mean) / (n_t T^2)        items
    V_e = sum_t MS_e,t / (R n_t T^2)                                residual

Both V_r and V_i hold the residual's share, so that Var = V_r + V_i - V_e estimates the variance of
the mean. Each part has a t quantile of its own, and distances are added as squares (the "MOVER" of
Zou and Donner, Statistics in Medicine 27, 2008); the residual is taken off the part that it is the
smaller share of:

    mean:        half^2 = t_i^2 V_i + t_r^2 max(V_r - V_e, 0)
    difference:  half^2 = t_r^2 V_r + t_i^2 max(V_i - V_e, 0)

t_r has R - 1 degrees of freedom, t_i those of V_i by Satterthwaite (Biometrics Bulletin 2, 1946):
V_i^2 / sum_t v_i,t^2 / (n_t - 1), which for one task is n - 1. A difference's interval is never
narrower than the t interval over its seeds: that is what keeps tests of equal methods at their
level far down, where Holm's correction looks.

The sum of the three as one variance with Satterthwaite's degrees of freedom, which came first,
covered 92-99% but did not do that: with 3 seeds, any of 10 equal methods was declared better or
worse after Holm in up to 17% of simulated tables. `nox -s validate -- statistics` compares them.
Intervals are cut at the bounds of what they estimate ([0, 1]; [-1, 1] for a difference).

Where items come in clusters (`cluster`), clusters take the place of items throughout.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from harness.stats.cluster import Clusters, blocks, scores
from harness.stats.grid import FloatArray, Outcome, seed_means

TWO_WAY = "two-way t"
WILSON = "Wilson"
ITEMS_T = "t over items"
CONSTANT = "constant table: Wilson's bound on items"
ONE_SEED = "items only: seed variance unknown"
ONE_CHECKPOINT = "items only: one fixed checkpoint"

#: Below this many items (or clusters), one seed gets Wilson's interval instead of a t interval.
WILSON_ITEMS = 200
#: Variances below this are rounding: the smallest real ones are near (1 / (R n K))^2 > 1e-12.
_ZERO = 1e-20
#: p-values are not told apart below this.
_LEAST = 1e-300


@dataclass(frozen=True)
class MeanSquares:
    """Mean squares of a two-way table [R, n] without replication: seeds, items, residual."""

    seeds: float
    items: float
    residual: float


def mean_squares(table: FloatArray) -> MeanSquares:
    """Two-way analysis of variance of a table [R, n]; R >= 2 and n >= 2."""
    n_seeds, n_items = table.shape
    if n_seeds < 2 or n_items < 2:
        raise ValueError(f"table has shape {table.shape!r}; expected at least 2 seeds and 2 items")
    by_seed = table.mean(axis=1, keepdims=True)
    by_item = table.mean(axis=0, keepdims=True)
    residual = table - by_seed - by_item + table.mean()
    return MeanSquares(
        seeds=float(n_items * by_seed.var(ddof=1)),
        items=float(n_seeds * by_item.var(ddof=1)),
        residual=float((residual**2).sum() / ((n_seeds - 1) * (n_items - 1))),
    )


class Stratum(NamedTuple):
    """One task: its mean, its items (or clusters, or what they are worth), whether it is constant.

    `df` are the degrees of freedom of Wilson's quantile: infinitely many without clusters.
    """

    mean: float
    size: float
    constant: bool
    df: float = math.inf


class Part(NamedTuple):
    """A part of a mean's variance, with the degrees of freedom of its t quantile."""

    variance: float
    df: float


@dataclass(frozen=True)
class Spread:
    """How far a mean may be off: enough to give its interval at any level.

    `parts` are empty where no spread was seen; for Wilson's interval they only describe. `clusters`
    counts the clusters that stand for items; 0 where items are independent.
    """

    mean: float
    parts: tuple[Part, ...]
    method: str
    strata: tuple[Stratum, ...]
    low: float
    clusters: int = 0

    @property
    def se(self) -> float:
        """The standard error of the mean; 0 where no spread was seen."""
        return math.sqrt(math.fsum(part.variance for part in self.parts))

    def half(self, alpha: float) -> float:
        """The distance, at confidence 1 - alpha, that comes from the parts."""
        return math.sqrt(
            math.fsum(float(stats.t.isf(alpha / 2.0, df)) ** 2 * v for v, df in self.parts if v > 0)
        )

    def interval(self, alpha: float) -> tuple[float, float]:
        """The two-sided interval at confidence 1 - alpha, cut at [low, 1].

        Distances that single tasks add are joined as squares too, which for one task changes
        nothing.
        """
        if not 0.0 < alpha < 1.0:
            raise ValueError(f"alpha {alpha!r}; expected a number between 0 and 1")
        below, above = self._strata_distances(alpha)
        half = 0.0 if self.method == WILSON else self.half(alpha)
        below, above = math.hypot(below, half), math.hypot(above, half)
        return max(self.low, self.mean - below), min(1.0, self.mean + above)

    def _strata_distances(self, alpha: float) -> tuple[float, float]:
        """Distances from the mean down and up that come from single tasks, not from `se`."""
        z = float(stats.norm.ppf(1.0 - alpha / 2.0))
        below, above = 0.0, 0.0
        for mean, size, constant, df in self.strata:
            if self.method == WILSON:
                low, high = wilson(mean, size, alpha, df)
            elif constant and (self.method == CONSTANT or self.low == 0.0):
                # What Wilson says of 0 events in n: up to z^2/(n + z^2) of the items may differ
                # from all those seen, by as much as the bounds allow.
                unseen = z**2 / (size + z**2)
                low = mean - unseen * (mean - self.low)
                high = mean + unseen * (1.0 - mean)
            else:
                continue
            below += ((mean - low) / len(self.strata)) ** 2
            above += ((high - mean) / len(self.strata)) ** 2
        return math.sqrt(below), math.sqrt(above)

    def p_value(self) -> float:
        """Two-sided p of the mean being 0: 1 less the confidence at which the parts reach it.

        Constant tables have no t statistic. All zero: p = 1. Otherwise the exact sign test over the
        items of the smallest task that is not zero.
        """
        if self.parts:
            return self._reached()
        if abs(self.mean) < math.sqrt(_ZERO):
            return 1.0
        smallest = min(x.size for x in self.strata if abs(x.mean) >= math.sqrt(_ZERO))
        return float(min(1.0, 2.0 * 0.5**smallest))

    def _reached(self) -> float:
        """The alpha with `half(alpha) = |mean|`, between those of the part with fewest and most."""
        statistic = abs(self.mean) / self.se
        dfs = [part.df for part in self.parts if part.variance > 0.0]
        low, high = (float(2.0 * stats.t.sf(statistic, df)) for df in (max(dfs), min(dfs)))
        if low == high:
            return low
        return math.exp(
            optimize.brentq(
                lambda log: self.half(math.exp(log)) - abs(self.mean),
                math.log(max(low, _LEAST)) - 1e-9,
                min(math.log(high) + 1e-9, 0.0),
                xtol=1e-14,
            )
        )


@dataclass(frozen=True)
class Estimate:
    """A mean accuracy with its interval.

    `sd_seeds` is the standard deviation of the per-seed means (nan for one seed); `n_items` counts
    the items of all tasks; `method` and `note` say what the interval is and what it leaves out.
    """

    mean: float
    ci_low: float
    ci_high: float
    sd_seeds: float
    n_seeds: int
    n_items: int
    se: float
    method: str
    note: str


def estimate(outcome: Outcome, alpha: float = 0.05) -> Estimate:
    """Mean over seeds, items and tasks, with the two-way interval (see the module).

    One seed: items only. Wilson when a task has fewer than 200 items, else t. Constant tables (all
    right, say) have no spread to see; they get Wilson's bound on items, never a width of zero.
    """
    around = spread(outcome.tables, clusters=outcome.clusters)
    low, high = around.interval(alpha)
    means = outcome.seed_means
    return Estimate(
        mean=around.mean,
        ci_low=low,
        ci_high=high,
        sd_seeds=float(means.std(ddof=1)) if means.size > 1 else math.nan,
        n_seeds=means.size,
        n_items=sum(table.shape[1] for table in outcome.tables.values()),
        se=around.se,
        method=around.method,
        note=describe(around, means.size, outcome.fixed),
    )


def spread(
    tables: Mapping[str, FloatArray],
    *,
    differences: bool = False,
    clusters: Clusters | None = None,
) -> Spread:
    """The spread of the mean of tables task -> [R, n_t]; `differences` lie in [-1, 1].

    `clusters` names the cluster of every item, by task.
    """
    n_seeds = next(iter(tables.values())).shape[0]
    strata = tuple(_stratum(table, task, clusters) for task, table in tables.items())
    count = len({c for task in tables for c in clusters[task]}) if clusters is not None else 0
    low = -1.0 if differences else 0.0
    mean = float(seed_means(tables).mean())
    if all(stratum.constant for stratum in strata):
        return Spread(mean, (), CONSTANT, strata, low, count)
    units = _units(tables, clusters)
    if n_seeds == 1:
        return _items_only(tables, units, Spread(mean, (), ITEMS_T, strata, low, count))
    parts = _two_way(units, seed_means(tables), differences)
    return Spread(mean, parts, TWO_WAY, strata, low, count)


def _stratum(table: FloatArray, task: str, clusters: Clusters | None) -> Stratum:
    size = table.shape[1] if clusters is None else len(set(clusters[task]))
    return Stratum(float(table.mean()), size, bool(np.ptp(table) < math.sqrt(_ZERO)))


def _units(
    tables: Mapping[str, FloatArray], clusters: Clusters | None
) -> list[tuple[FloatArray, float]]:
    """Tables of independent columns, items or clusters, and the share of each in the mean."""
    if clusters is None:
        return [(table, 1.0 / len(tables)) for table in tables.values()]
    units = []
    for block in blocks(list(tables), clusters):
        part = {task: tables[task] for task in block}
        table = scores(part, clusters)
        if np.ptp(table - table.mean(axis=1, keepdims=True)) < math.sqrt(_ZERO):
            # All clusters have the same mean although their items differ: only items show a spread.
            units += [(by_item, 1.0 / len(tables)) for by_item in part.values()]
        else:
            units.append((table, len(block) / len(tables)))
    return units


def _items_only(
    tables: Mapping[str, FloatArray], units: list[tuple[FloatArray, float]], bare: Spread
) -> Spread:
    """One seed: `bare` with the spread between items, stratified by task."""
    variances = np.array([table[0].var(ddof=1) / table.shape[1] for table, _ in units])
    parts = variances * np.array([share**2 for _, share in units])
    dfs = np.array([table.shape[1] - 1 for table, _ in units])
    result = dataclasses.replace(bare, parts=(_pooled(parts, dfs),))
    few = min(table.shape[1] for table, _ in units) < WILSON_ITEMS
    if result.low == 0.0 and few and len(units) == len(tables):
        strata = result.strata
        if result.clusters:
            sizes = [table.shape[1] for table in tables.values()]
            each = zip(strata, variances, sizes, dfs, strict=True)
            strata = tuple(_effective(*stratum) for stratum in each)
        return dataclasses.replace(result, method=WILSON, strata=strata)
    return result


def _pooled(variances: FloatArray, dfs: FloatArray) -> Part:
    """The sum of independent variances, with Satterthwaite's degrees of freedom."""
    total, squares = float(variances.sum()), float((variances**2 / dfs).sum())
    return Part(total, total**2 / squares if squares > 0.0 else float(dfs.min()))


def _effective(stratum: Stratum, variance: float, n_items: int, df: int) -> Stratum:
    """A task of clusters for Wilson's interval: as many independent items as have its variance.

    At most those that are there; the quantile is t's with `df` = G - 1, since the variance is
    estimated (effective sample size of Korn and Graubard, Survey Methodology 24, 1998). With 5 to
    40 clusters it covered 92-99% in simulations, where mean +- t se fell to 83% near 95% accuracy.
    """
    if stratum.constant:
        return stratum
    alike = stratum.mean * (1.0 - stratum.mean)
    size = min(n_items, alike / variance) if variance > _ZERO else n_items
    return stratum._replace(size=float(size), df=float(df))


def _two_way(
    units: list[tuple[FloatArray, float]], by_seed: FloatArray, differences: bool
) -> tuple[Part, Part]:
    """The parts of seeds and items, the residual counted in one of them (see the module)."""
    n_seeds = len(by_seed)
    squares = [mean_squares(table) for table, _ in units]
    n_items = np.array([table.shape[1] for table, _ in units])
    weights = np.array([share**2 for _, share in units]) / (n_seeds * n_items)
    items = _pooled(np.array([square.items for square in squares]) * weights, n_items - 1.0)
    seeds = Part(float(by_seed.var(ddof=1)) / n_seeds, n_seeds - 1.0)
    residual = float((np.array([square.residual for square in squares]) * weights).sum())
    if differences:
        items = items._replace(variance=max(items.variance - residual, 0.0))
    else:
        seeds = seeds._replace(variance=max(seeds.variance - residual, 0.0))
    if seeds.variance + items.variance <= _ZERO:
        # Not constant, yet what varies is in the residual alone.
        seeds = seeds._replace(variance=residual)
    return seeds, items


def describe(around: Spread, n_seeds: int, fixed: bool = False) -> str:
    """What an interval leaves out, in words; empty where nothing."""
    notes = []
    if n_seeds == 1:
        notes.append(ONE_CHECKPOINT if fixed else ONE_SEED)
    if around.clusters:
        notes.append(f"items in {around.clusters} clusters")
    constant = sum(stratum.constant for stratum in around.strata)
    if around.method == CONSTANT:
        notes.append("no spread seen")
    elif constant:
        notes.append(f"{constant} of {len(around.strata)} tasks constant")
    return "; ".join(notes)


def wilson(
    mean: float, n_items: float, alpha: float = 0.05, df: float = math.inf
) -> tuple[float, float]:
    """Wilson's score interval for a proportion `mean` of `n_items`.

    With several decodes an item's accuracy is a fraction; its variance is then below
    mean(1 - mean), so that the interval errs on the wide side. `df`: t's quantile, not normal.
    """
    level = 1.0 - alpha / 2.0
    z = float(stats.norm.ppf(level) if math.isinf(df) else stats.t.ppf(level, df))
    centre = (mean + z**2 / (2 * n_items)) / (1 + z**2 / n_items)
    root = math.sqrt(mean * (1.0 - mean) / n_items + z**2 / (4 * n_items**2))
    half = z * root / (1 + z**2 / n_items)
    return max(0.0, centre - half), min(1.0, centre + half)

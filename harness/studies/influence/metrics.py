"""How well influence scores predict: linear datamodeling score, brittleness, AUROC, intervals.

The linear datamodeling score (LDS, 2303.14186) of a query is the Spearman correlation, over random
subsets of the pool, of the query's log-probability after retraining with the sum of the influences
of the subset's examples. Queries share the subsets, so an interval over queries alone is about
these subsets only; `crossed` resamples the subsets as well. All intervals are 95% percentile
bootstraps; every draw comes from a given generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
ANCHOR, PEER, RANDOM, SHUFFLED = "ekfac", "kronfluence", "random", "shuffled"
"""Names of methods: what others are compared with, another package's, and two controls."""
DRAWS = 10_000
LEVELS = (0.025, 0.975)


class Interval(NamedTuple):
    """An estimate and its 95% interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, mean: float, replicates: Floats) -> Interval:
        """Percentiles of bootstrap replicates."""
        low, high = np.quantile(replicates, LEVELS)
        return cls(float(mean), float(low), float(high))


def resample_weights(rng: np.random.Generator, draws: int, n: int) -> Floats:
    """Weights [draws, n] of resamples of size n with replacement; each line sums to 1."""
    return rng.multinomial(n, np.full(n, 1 / n), size=draws) / n


def weighted_mean(values: Floats, weights: Floats) -> Interval:
    """Mean of `values` [n] and its interval from resamples given by their weights [draws, n]."""
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"values have shape {values.shape}; expected two or more finite numbers")
    return Interval.of(values.mean(), weights @ values)


def spearman(first: Floats, second: Floats) -> Floats:
    """Rank correlation of two arrays [subsets, q], column by column, [q].

    ValueError where a column is constant: it has no order.
    """
    from scipy.stats import pearsonr, rankdata

    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"shapes are {first.shape} and {second.shape}; expected the same [m, q]")
    constant = (np.ptp(first, axis=0) == 0) | (np.ptp(second, axis=0) == 0)
    if constant.any():
        raise ValueError(f"{int(constant.sum())} columns are constant; expected an order")
    ranks = (rankdata(values, axis=0) for values in (first, second))
    correlations: Floats = pearsonr(*ranks, axis=0).statistic
    return correlations


def seed_agreement(outcomes: Floats) -> Floats:
    """One seed against another, mean over the pairs, per query, [q]; `outcomes` [seeds, m, q]."""
    pairs = combinations(outcomes, 2)
    agreement: Floats = np.mean([spearman(first, second) for first, second in pairs], axis=0)
    return agreement


def split_half(outcomes: Floats) -> Floats:
    """Each seed against the mean of the others, mean over the seeds, per query, [q].

    `outcomes`: [seeds, subsets, q].
    """
    seeds = len(outcomes)
    if seeds < 2:
        raise ValueError(f"{seeds} seed of ground truth; expected two or more")
    total = outcomes.sum(axis=0)
    agreement: Floats = np.mean(
        [spearman(single, (total - single) / (seeds - 1)) for single in outcomes], axis=0
    )
    return agreement


def attainable(outcomes: Floats) -> Floats:
    """What a prediction without any error would be expected to reach, per query, [q].

    The mean correlation r of two single seeds is stepped up to the mean of all S seeds (Spearman
    1910; Brown 1910), S r / (1 + (S - 1) r), and the root taken, because only one of the two sides
    is noisy (Spearman 1904). Exact for product-moment correlations and additive noise; negative r
    counts as 0.
    """
    seeds, single = len(outcomes), np.clip(seed_agreement(outcomes), 0, 1)
    ceiling: Floats = np.sqrt(seeds * single / (1 + (seeds - 1) * single))
    return ceiling


def crossed(
    predicted: Mapping[str, Floats],
    outcome: Floats,
    reference: str,
    rng: np.random.Generator,
    draws: int = 1000,
) -> dict[str, tuple[Interval, Interval]]:
    """Mean score of every method and its lead over `reference`, subsets and queries resampled.

    The same draws serve all methods. `predicted`: [subsets, q] per method; `outcome`: the same,
    mean over the seeds.
    """
    subsets, queries = outcome.shape
    weights = resample_weights(rng, draws, queries)
    chosen = np.stack([rng.integers(0, subsets, size=subsets) for _ in range(draws)])
    counts = np.stack([np.bincount(line, minlength=subsets) for line in chosen]).astype(np.float64)
    target = _resampled_ranks(outcome, counts)
    replicates, means = {}, {}
    for name, values in predicted.items():
        scores = _rank_correlations(_resampled_ranks(values, counts), target, counts)
        replicates[name] = (weights * scores).sum(axis=1)
        means[name] = spearman(values, outcome).mean()
    return {
        name: (
            Interval.of(means[name], own),
            Interval.of(means[name] - means[reference], own - replicates[reference]),
        )
        for name, own in replicates.items()
    }


def _resampled_ranks(values: Floats, counts: Floats) -> Floats:
    """Midrank of every subset in every resample, [draws, subsets, q].

    `values`: [subsets, q]; `counts`: how often each subset is drawn, [draws, subsets]. A subset's
    midrank is the number of drawn ones below it, plus half of those level with it and a half.
    """
    below = (values < values[:, None]) + 0.5 * (values == values[:, None])  # [subset, other, q]
    subsets, queries = values.shape
    flat = below.transpose(1, 0, 2).reshape(subsets, subsets * queries)
    ranks: Floats = (counts @ flat).reshape(len(counts), subsets, queries) + 0.5
    return ranks


def _rank_correlations(first: Floats, second: Floats, counts: Floats) -> Floats:
    """Spearman correlation in every resample from its midranks, [draws, q]."""
    middle = ((counts.sum(axis=1) + 1) / 2)[:, None, None]

    def summed(left: Floats, right: Floats) -> Floats:
        products: Floats = np.einsum(
            "bs,bsq,bsq->bq", counts, left - middle, right - middle, optimize=True
        )
        return products

    lengths = summed(first, first) * summed(second, second)
    if (lengths == 0).any():
        raise ValueError(f"{int((lengths == 0).sum())} resamples are constant; expected an order")
    correlations: Floats = summed(first, second) / np.sqrt(lengths)
    return correlations


def top(scores: Floats, share: float) -> Bools:
    """Which examples have the highest scores, as many as `share` of them, [n].

    Ties go to the earlier example.
    """
    count = round(share * len(scores))
    if not 0 < count < len(scores):
        raise ValueError(f"share is {share!r} of {len(scores)}; expected some examples, not all")
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(-scores, kind="stable")[:count]] = True
    return chosen


def drops(without: Floats, random: Floats) -> Floats:
    """Drop of each query's log-probability beyond that from random removals, in nats, [q].

    `without`: [seeds, q], trained without the query's own top examples. `random`: [sets, seeds, q],
    trained without as many random ones. Paired by seed; positive = the method chose examples that
    the query needs.
    """
    if without.shape != random.shape[1:]:
        raise ValueError(
            f"shapes are {without.shape} and {random.shape}; expected [s, q] and [sets, s, q]"
        )
    mean_drops: Floats = (random.mean(axis=0) - without).mean(axis=0)
    return mean_drops


def auroc(
    scores: Mapping[str, Floats],
    wrong: Bools,
    right: Bools,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> dict[str, Interval]:
    """P(a wrong example scores below a right one) per method, ties half; 1 = finds every error.

    `scores`: [n] per method; `wrong`, `right`: which of the n examples are in the two groups. Both
    groups are resampled, the same way for all methods.
    """
    if not (wrong.any() and right.any()):
        raise ValueError(f"{wrong.sum()} wrong and {right.sum()} right examples; expected both")
    first, second = (resample_weights(rng, draws, int(group.sum())) for group in (wrong, right))
    areas = {}
    for method, values in scores.items():
        low, high = values[wrong][:, None], values[right]
        below = (low < high) + 0.5 * (low == high)
        areas[method] = Interval.of(below.mean(), ((first @ below) * second).sum(axis=1))
    return areas

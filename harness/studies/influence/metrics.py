"""Linear datamodeling score (2303.14186), the noise of its ground truth, and two intervals.

The score of a query is the Spearman correlation, over random subsets of the pool, of the query's
log-probability after retraining with the sum of the influences of the subset's examples. Queries
share the subsets, so an interval over queries alone speaks of these subsets only; `crossed`
resamples the subsets as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.studies.influence.bootstrap import LEVELS, Floats, Interval, shares


def predictions(members: np.ndarray, influence: Floats) -> Floats:
    """Summed influence of every subset on every query, [subsets, q].

    `members`: which example is in which subset, [subsets, n]. `influence`: [n, q].
    """
    found: Floats = members.astype(np.float64) @ influence
    return found


def spearman(first: Floats, second: Floats) -> Floats:
    """Rank correlation of two arrays [subsets, q], column by column, [q].

    ValueError where a column is constant: it has no order.
    """
    from scipy.stats import rankdata

    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"shapes are {first.shape} and {second.shape}; expected the same [m, q]")
    parts = []
    for values in (first, second):
        ranks = rankdata(values, axis=0)
        ranks -= ranks.mean(axis=0)
        length = np.sqrt((ranks**2).sum(axis=0))
        if (length == 0).any():
            raise ValueError(f"{int((length == 0).sum())} columns are constant; expected an order")
        parts.append(ranks / length)
    found: Floats = (parts[0] * parts[1]).sum(axis=0)
    return found


def split_half(outcomes: Floats) -> Floats:
    """Each seed against the mean of the others, mean over the seeds, per query, [q].

    `outcomes`: [seeds, subsets, q].
    """
    seeds = len(outcomes)
    if seeds < 2:
        raise ValueError(f"{seeds} seed of ground truth; expected two or more")
    total = outcomes.sum(axis=0)
    found = [spearman(one, (total - one) / (seeds - 1)) for one in outcomes]
    mean: Floats = np.mean(found, axis=0)
    return mean


def attainable(outcomes: Floats) -> Floats:
    """What a prediction without any error would be expected to reach, per query, [q].

    The mean correlation r of two single seeds is stepped up to the mean of all S seeds (Spearman
    1910; Brown 1910), S r / (1 + (S - 1) r), and the root taken, because only one of the two sides
    is noisy (Spearman 1904). Exact for product-moment correlations and additive noise; negative r
    counts as 0.
    """
    seeds = len(outcomes)
    pairs = [spearman(outcomes[i], outcomes[j]) for i in range(seeds) for j in range(i + 1, seeds)]
    single = np.clip(np.mean(pairs, axis=0), 0, 1)
    found: Floats = np.sqrt(seeds * single / (1 + (seeds - 1) * single))
    return found


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
    weights = shares(rng, draws, queries)
    chosen = np.stack([rng.integers(0, subsets, size=subsets) for _ in range(draws)])
    counts = np.stack([np.bincount(line, minlength=subsets) for line in chosen]).astype(np.float64)
    target = _resampled_ranks(outcome, counts)
    found = {
        name: (weights * _correlations(_resampled_ranks(values, counts), target, counts)).sum(
            axis=1
        )
        for name, values in predicted.items()
    }
    means = {name: float(spearman(v, outcome).mean()) for name, v in predicted.items()}

    def interval(mean: float, values: Floats) -> Interval:
        low, high = np.quantile(values, LEVELS)
        return Interval(mean, float(low), float(high))

    return {
        name: (
            interval(means[name], values),
            interval(means[name] - means[reference], values - found[reference]),
        )
        for name, values in found.items()
    }


def _resampled_ranks(values: Floats, counts: Floats) -> Floats:
    """Midrank of every subset in every resample, [draws, subsets, q].

    `values`: [subsets, q]; `counts`: how often each subset is drawn, [draws, subsets]. A subset's
    midrank is the number of drawn ones below it, plus half of those level with it and a half.
    """
    below = (values < values[:, None]) + 0.5 * (values == values[:, None])  # [subset, other, q]
    subsets, queries = values.shape
    flat = below.transpose(1, 0, 2).reshape(subsets, subsets * queries)
    found: Floats = (counts @ flat).reshape(len(counts), subsets, queries) + 0.5
    return found


def _correlations(first: Floats, second: Floats, counts: Floats) -> Floats:
    """Spearman correlation in every resample from its midranks, [draws, q]."""
    middle = (counts.sum(axis=1) + 1) / 2
    a, b = first - middle[:, None, None], second - middle[:, None, None]

    def summed(left: Floats, right: Floats) -> Floats:
        total: Floats = np.einsum("bs,bsq,bsq->bq", counts, left, right, optimize=True)
        return total

    lengths = summed(a, a) * summed(b, b)
    if (lengths == 0).any():
        raise ValueError(f"{int((lengths == 0).sum())} resamples are constant; expected an order")
    found: Floats = summed(a, b) / np.sqrt(lengths)
    return found

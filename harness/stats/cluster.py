"""Items that succeed and fail together: clusters take the place of items.

Questions on one passage or variants of one problem are not independent, and an interval that takes
them as such is too narrow. With n items in G clusters the cluster-robust variance of a mean is

    Var = G/(G-1) sum_g u_g^2,   u_g = 1/n sum over items i of cluster g of (y_i - mean),

with t on G - 1 degrees of freedom (Liang and Zeger, Biometrika 73, 1986; the factor and the degrees
of freedom as in Cameron and Miller, Journal of Human Resources 50, 2015). It is the variance of
`scores` over clusters, divided by G:

    z_sg = mean_s + G/n sum over items i of cluster g of (y_si - mean_s).

For clusters of equal size z is the table of cluster means. It stands where the table of items
stood, so seeds and clusters are crossed as seeds and items were (two-way clustering of Cameron,
Gelbach and Miller, Journal of Business and Economic Statistics 29, 2011), and clusters of one item
change nothing.

In simulations (20 to 150 clusters of about 8 items, intraclass correlation 0.3, 1 to 10 seeds) 95%
intervals covered 91-95%, those that take items as independent 53-81%.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harness.stats.grid import FloatArray, IntArray, seed_means

Clusters = Mapping[str, Sequence[str]]


def blocks(tasks: Sequence[str], clusters: Clusters | None) -> list[list[str]]:
    """Tasks that have to be taken together: all of them where a cluster spans several, else one
    by one.
    """
    together = clusters is not None and sum(len(set(clusters[task])) for task in tasks) > len(
        {label for task in tasks for label in clusters[task]}
    )
    return [list(tasks)] if together else [[task] for task in tasks]


def codes(labels: Sequence[str]) -> IntArray:
    """Clusters as numbers from 0, in sorted order."""
    return np.unique(np.asarray(labels, dtype=object), return_inverse=True)[1].astype(np.int64)


def scores(tables: Mapping[str, FloatArray], clusters: Clusters) -> FloatArray:
    """The table [R, G] that stands for the mean over `tasks` of tables [R, n_t] (see the module).

    With several tasks u_sg sums over them, each divided by their number: a cluster that spans tasks
    carries their covariance.
    """
    code = codes([label for task in tables for label in clusters[task]])
    n_clusters = int(code.max()) + 1
    means = seed_means(tables)
    sums = np.zeros((len(means), n_clusters))
    start = 0
    for table in tables.values():
        part = code[start : start + table.shape[1]]
        start += table.shape[1]
        rest = (table - table.mean(axis=1, keepdims=True)) / (table.shape[1] * len(tables))
        for seed, line in enumerate(rest):
            sums[seed] += np.bincount(part, weights=line, minlength=n_clusters)
    return sums * n_clusters + means[:, None]

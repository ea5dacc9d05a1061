"""Clustered intervals against statsmodels, tables of cluster means, and simulated truth."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.api import OLS

from harness.stats import (
    Outcome,
    blocks,
    difference,
    estimate,
    mcnemar,
    replicate,
    scores,
    wilson,
)
from harness.stats.interval import CONSTANT, ITEMS_T, TWO_WAY, WILSON, spread


def rng_of(*seed):
    return np.random.default_rng(list(seed))


def labels_of(rng, n_clusters, n_items):
    """Clusters of unequal size, none of them empty."""
    codes = np.concatenate(
        [np.arange(n_clusters), rng.integers(0, n_clusters, n_items - n_clusters)]
    )
    return [f"c{code}" for code in rng.permutation(codes)]


def clustered(values, labels):
    """statsmodels: regression on a constant, cluster-robust, t with G - 1 degrees of freedom."""
    codes = np.unique(labels, return_inverse=True)[1]
    return OLS(values, np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": codes}, use_t=True
    )


def test_one_seed_agrees_with_statsmodels():
    rng = rng_of(1)
    labels = labels_of(rng, 30, 140)
    a, b = (rng.random((2, 1, 140)) < [[[0.6]], [[0.5]]]).astype(float)
    sides = [Outcome.of(table, clusters={"task": labels}) for table in (a, b)]
    found = difference(*sides)
    expected = clustered((a - b)[0], labels)
    assert found.spread.se == pytest.approx(expected.bse[0], abs=1e-10)
    assert found.spread.parts[0].df == 29
    assert found.p == pytest.approx(expected.pvalues[0], abs=1e-10)
    assert (found.ci_low, found.ci_high) == pytest.approx(expected.conf_int()[0], abs=1e-10)
    assert found.test == ITEMS_T
    assert found.p != pytest.approx(mcnemar(a[0], b[0]))
    assert "items in 30 clusters" in found.note


def test_many_clusters_give_a_t_interval_over_clusters():
    rng = rng_of(2)
    labels = labels_of(rng, 220, 700)
    table = (rng.random((1, 700)) < 0.7).astype(float)
    found = estimate(Outcome.of(table, clusters={"task": labels}))
    expected = clustered(table[0], labels)
    assert (found.ci_low, found.ci_high) == pytest.approx(expected.conf_int()[0], abs=1e-10)


def test_few_clusters_are_wilson_with_the_items_they_are_worth():
    rng = rng_of(3)
    labels = labels_of(rng, 12, 60)
    chance = dict(zip(sorted(set(labels)), rng.random(12), strict=True))
    table = np.array([[float(rng.random() < chance[label]) for label in labels]])
    found = estimate(Outcome.of(table, clusters={"task": labels}))
    mean, variance = table.mean(), clustered(table[0], labels).bse[0] ** 2
    worth = mean * (1 - mean) / variance
    assert worth < 60
    assert found.method == WILSON
    t = scipy_stats.t.ppf(0.975, 11)
    roots = np.roots([1 + t**2 / worth, -2 * mean - t**2 / worth, mean**2])
    assert (found.ci_low, found.ci_high) == pytest.approx(sorted(roots), abs=1e-10)
    # Never worth more than they are: clusters that vary less than chance allows.
    even = np.array([[1.0, 1.0, 0.0, 0.0, *[1.0, 0.0] * 28]])
    pairs = [str(i // 2) for i in range(60)]
    found = estimate(Outcome.of(even, clusters={"task": pairs}))
    assert (found.ci_low, found.ci_high) == pytest.approx(wilson(0.5, 60, 0.05, 29), abs=1e-10)
    # Every cluster half right: there is no spread between clusters, only one between items.
    found = estimate(Outcome.of(np.tile([1.0, 0.0], (1, 30)), clusters={"task": pairs}))
    assert (found.ci_low, found.ci_high) == pytest.approx(wilson(0.5, 59, 0.05, 59), abs=1e-10)


def test_equal_clusters_are_their_means():
    rng = rng_of(4)
    table = (rng.random((4, 24)) < 0.5).astype(float)
    labels = [str(i // 3) for i in range(24)]
    means = table.reshape(4, 8, 3).mean(axis=2)
    assert scores({"task": table}, {"task": labels}) == pytest.approx(means)
    found = spread({"task": table}, clusters={"task": labels})
    expected = spread({"task": means})
    assert found.mean == pytest.approx(expected.mean)
    np.testing.assert_allclose(found.parts, expected.parts)
    assert found.method == TWO_WAY


def test_clusters_of_one_item_change_nothing():
    rng = rng_of(5)
    tables = {"a": (rng.random((3, 20)) < 0.5) * 1.0, "b": (rng.random((3, 31)) < 0.3) * 1.0}
    single = {task: [f"{task}{i}" for i in range(t.shape[1])] for task, t in tables.items()}
    found, expected = spread(tables, clusters=single), spread(tables)
    assert found.mean == pytest.approx(expected.mean)
    np.testing.assert_allclose(found.parts, expected.parts)


def test_two_way_variance_term_by_term():
    """Seeds, clusters and their intersection, summed over cells one by one."""
    rng = rng_of(6)
    labels = labels_of(rng, 9, 40)
    table = np.clip(rng.random((5, 40)) + 0.1 * rng.standard_normal((5, 1)), 0, 1)
    seeds, n_items = table.shape
    mean = table.mean()
    by_seed, by_item = table.mean(axis=1), table.mean(axis=0)
    v_r = sum((by_seed - mean) ** 2) / (seeds - 1) / seeds
    v_c = v_e = 0.0
    for label in set(labels):
        inside = [i for i in range(n_items) if labels[i] == label]
        v_c += sum(by_item[i] - mean for i in inside) ** 2 / n_items**2 * 9 / 8
        for s in range(seeds):
            rest = sum(table[s, i] - by_seed[s] - by_item[i] + mean for i in inside)
            v_e += (rest / n_items / seeds) ** 2 * 9 / 8 * seeds / (seeds - 1)
    found = spread({"task": table}, clusters={"task": labels})
    np.testing.assert_allclose(found.parts, [(max(v_r - v_e, 0.0), 4), (v_c, 8)], atol=1e-12)
    gap = spread({"task": table}, clusters={"task": labels}, differences=True)
    np.testing.assert_allclose(gap.parts, [(v_r, 4), (max(v_c - v_e, 0.0), 8)], atol=1e-12)


def test_a_cluster_in_two_tasks_carries_their_covariance():
    rng = rng_of(7)
    labels = [f"v{i}" for i in range(30)]
    tables = {"a": rng.random((1, 30)), "b": rng.random((1, 30))}
    tables["b"][0] = tables["a"][0]
    spanning = {"a": labels, "b": labels}
    assert blocks(["a", "b"], spanning) == [["a", "b"]]
    assert blocks(["a", "b"], {"a": labels, "b": [f"w{i}" for i in range(30)]}) == [["a"], ["b"]]
    assert blocks(["a", "b"], None) == [["a"], ["b"]]
    found = spread(tables, differences=True, clusters=spanning)
    # The mean of two equal tasks is as uncertain as one of them.
    assert found.se == pytest.approx(tables["a"][0].std(ddof=1) / math.sqrt(30))
    assert (found.parts[0].df, found.clusters) == (29, 30)
    apart = spread(tables, differences=True)
    assert apart.se == pytest.approx(found.se / math.sqrt(2))


def test_constant_tables_rest_on_clusters():
    found = estimate(
        Outcome.of(np.ones((4, 40)), clusters={"task": [str(i % 8) for i in range(40)]})
    )
    assert found.method == CONSTANT
    assert (found.ci_low, found.ci_high) == pytest.approx(wilson(1.0, 8))


def test_clusters_are_checked():
    with pytest.raises(ValueError, match="all items in the cluster 'x'"):
        Outcome.of(np.eye(3), clusters={"task": ["x"] * 3})
    with pytest.raises(ValueError, match="2 clusters named; expected 3"):
        Outcome.of(np.eye(3), clusters={"task": ["x", "y"]})
    with pytest.raises(ValueError, match="differ in clusters"):
        difference(Outcome.of(np.eye(3), clusters={"task": [*"xyy"]}), Outcome.of(np.eye(3)))


def test_coverage_with_clusters():
    """95% intervals over 300 tables, intraclass correlation 0.3: 91% to 98.7%.

    Taking items as independent would cover about 60%.
    """
    rng = rng_of(8)
    hits = naive = 0
    for _ in range(300):
        sizes = rng.integers(1, 16, 40)
        labels = np.repeat(np.arange(40), sizes)
        chance = rng.beta(0.5 * 0.7 / 0.3, 0.5 * 0.7 / 0.3, 40)[labels]
        shifted = np.clip(chance + 0.02 * rng.standard_normal((4, 1)), 0, 1)
        table = (rng.random((4, len(labels))) < shifted).astype(float)
        found = estimate(Outcome.of(table, clusters={"task": labels.astype(str)}))
        hits += found.ci_low <= 0.5 <= found.ci_high
        plain = estimate(Outcome.of(table))
        naive += plain.ci_low <= 0.5 <= plain.ci_high
    assert 0.91 * 300 <= hits <= 0.987 * 300
    assert naive < 0.75 * 300


def test_bootstrap_draws_whole_clusters():
    rng = rng_of(9)
    table = rng.random((2, 3, 10))
    labels = [*"aabbbcdddd"]
    draws = replicate({"t": table}, rng_of(0), draws=6, clusters={"t": labels})
    again = rng_of(0)
    seeds, picked = again.integers(0, 3, (6, 3)), again.integers(0, 4, (6, 4))
    for k in range(6):
        items = [i for c in picked[k] for i in range(10) if labels[i] == "abcd"[c]]
        expected = table[:, seeds[k]][:, :, items].mean(axis=(1, 2))
        assert draws[k] == pytest.approx(expected)
    with pytest.raises(ValueError, match="clusters span tasks"):
        replicate({"t": table, "u": table}, rng_of(0), clusters={"t": labels, "u": labels})

"""Random subsets of a pool."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import hypergeom

from harness.data.jaccard import expected_jaccard


@pytest.mark.parametrize(("n", "first", "second"), [(5, 2, 2), (5, 5, 5), (5, 2, 3), (6, 1, 4)])
def test_expected_jaccard_over_every_pair_of_sets(n, first, second):
    fixed = set(range(first))
    overlaps = [
        len(fixed & set(other)) / len(fixed | set(other))
        for other in combinations(range(n), second)
    ]
    assert expected_jaccard(n, first, second) == pytest.approx(np.mean(overlaps))


@pytest.mark.parametrize(("n", "first", "second"), [(300, 40, 40), (3000, 2900, 1500)])
def test_expected_jaccard_over_every_size_of_the_intersection(n, first, second):
    shared = np.arange(max(0, first + second - n), min(first, second) + 1)
    weights = hypergeom(n, first, second).pmf(shared)
    exact = (weights * shared / (first + second - shared)).sum()
    assert expected_jaccard(n, first, second) == pytest.approx(exact, rel=1e-7)


def test_expected_jaccard_is_what_draws_give():
    rng = np.random.default_rng(1)
    second = set(range(200))
    draws = [set(rng.choice(600, 300, replace=False).tolist()) for _ in range(200)]
    overlaps = [len(draw & second) / len(draw | second) for draw in draws]
    assert np.mean(overlaps) == pytest.approx(expected_jaccard(600, 300, 200), abs=0.005)


def test_two_empty_sets_are_the_same():
    assert expected_jaccard(5, 0, 0) == 1.0

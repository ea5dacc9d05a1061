"""Overlap of chosen sets and rank correlation, by hand and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from harness.stats import jaccard, placements, rank_correlation, stability


def chosen(*positions, n=10):
    return np.isin(np.arange(n), positions)


def test_overlap_by_hand():
    assert jaccard(chosen(0, 1, 2), chosen(1, 2, 3, 4)) == 2 / 5
    assert jaccard(chosen(), chosen()) == 1.0
    assert jaccard(chosen(1), chosen(2)) == 0.0
    # Pairs share 1 of 3, 0 of 4 and 1 of 3.
    assert stability([chosen(0, 1), chosen(1, 2), chosen(2, 3)]) == pytest.approx(2 / 9)
    with pytest.raises(ValueError, match="at least 2"):
        stability([chosen(1)])
    with pytest.raises(ValueError, match="expected the same"):
        jaccard(chosen(1), chosen(1, n=4))


def test_rank_correlation_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 (4) / (4 (16 - 1)).
    assert rank_correlation([0.1, 0.5, 2.0, 9.0], [5, 3, 11, 8]) == pytest.approx(0.6)
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_placements_by_hand_and_as_mann_and_whitney_count():
    assert placements([0.0, 1.0, 2.0], [1.0, 3.0]).tolist() == [1.0, 0.75, 0.5]
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 9, 60).astype(float), rng.integers(2, 11, 140).astype(float)
    u = stats.mannwhitneyu(high, low).statistic
    assert placements(low, high).mean() == pytest.approx(u / (60 * 140))


def test_placements_need_others_and_finite_scores():
    for scores, others in (([1.0], []), ([np.nan], [1.0]), ([1.0], [np.inf])):
        with pytest.raises(ValueError, match="expected finite ones against at least 1"):
            placements(scores, others)

"""Scores, ceilings, brittleness and AUROC against cases worked by hand and scipy."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from harness.studies.influence import metrics
from harness.studies.influence.metrics import DRAWS, Interval, resample_weights, weighted_mean
from harness.studies.influence.report import MET, MISSED, OPEN, verdict


def over(values):
    return weighted_mean(values, resample_weights(np.random.default_rng(0), DRAWS, len(values)))


def test_spearman_agrees_with_scipy_also_with_ties():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 6, (30, 4)).astype(float), rng.normal(size=(30, 4))
    expected = [spearmanr(a, b).statistic for a, b in zip(first.T, second.T, strict=True)]
    np.testing.assert_allclose(metrics.spearman(first, second), expected, rtol=1e-12)


def test_spearman_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6.
    first = np.array([[1.0], [2.0], [3.0], [9.0]])
    second = np.array([[0.2], [0.1], [8.0], [0.3]])
    assert metrics.spearman(first, second)[0] == pytest.approx(0.6)


def test_spearman_refuses_what_has_no_order():
    with pytest.raises(ValueError, match="constant"):
        metrics.spearman(np.ones((4, 1)), np.arange(4.0)[:, None])
    with pytest.raises(ValueError, match="shapes"):
        metrics.spearman(np.ones((4, 1)), np.ones((4, 2)))


def test_split_half_holds_each_seed_against_the_mean_of_the_others():
    outcomes = np.random.default_rng(1).normal(size=(3, 12, 2))
    expected = []
    for query in range(2):
        a, b, c = outcomes[:, :, query]
        pairs = [(a, (b + c) / 2), (b, (a + c) / 2), (c, (a + b) / 2)]
        expected.append(np.mean([spearmanr(*pair).statistic for pair in pairs]))
    np.testing.assert_allclose(metrics.split_half(outcomes), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="two or more"):
        metrics.split_half(outcomes[:1])


def test_attainable_steps_the_correlation_of_seeds_up():
    # Two seeds with rank correlation 0.6: 2 * 0.6 / 1.6 = 0.75.
    outcomes = np.array([[[1.0], [2.0], [3.0], [4.0]], [[2.0], [1.0], [4.0], [3.0]]])
    assert metrics.attainable(outcomes)[0] == pytest.approx(np.sqrt(0.75))


def test_attainable_is_what_the_truth_itself_reaches():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(400, 20))
    outcomes = truth + rng.normal(scale=1.5, size=(3, 400, 20))
    reached = metrics.spearman(truth, outcomes.mean(axis=0)).mean()
    assert metrics.attainable(outcomes).mean() == pytest.approx(reached, abs=0.03)


def test_crossed_is_centred_paired_and_wider_than_over_queries_alone():
    rng = np.random.default_rng(3)
    effect = rng.normal(size=(40, 1))  # what all queries share: subsets matter
    outcome = effect + 0.3 * rng.normal(size=(40, 30))
    predicted = {"good": outcome + rng.normal(size=(40, 30)), "noise": rng.normal(size=(40, 30))}
    predicted["same"] = predicted["good"].copy()
    intervals = metrics.crossed(predicted, outcome, "good", np.random.default_rng(0), draws=300)
    score, lead = intervals["good"]
    assert score.mean == metrics.spearman(predicted["good"], outcome).mean()
    assert (lead.mean, lead.low, lead.high) == (0, 0, 0)
    assert intervals["same"][1] == Interval(0.0, 0.0, 0.0)
    alone = over(metrics.spearman(predicted["good"], outcome))
    assert score.high - score.low > alone.high - alone.low
    assert intervals["noise"][1].high < 0


def test_crossed_is_that_of_explicit_resamples():
    rng = np.random.default_rng(8)
    outcome = rng.integers(0, 6, (40, 5)).astype(float)  # with ties
    predicted = {"a": outcome + rng.integers(0, 4, (40, 5)), "b": rng.normal(size=(40, 5))}
    intervals = metrics.crossed(predicted, outcome, "a", np.random.default_rng(0), draws=50)
    again = np.random.default_rng(0)
    weights = again.multinomial(5, np.full(5, 0.2), size=50) / 5
    drawn = {name: np.empty(50) for name in predicted}
    for draw in range(50):
        chosen = again.integers(0, 40, size=40)
        for name, values in predicted.items():
            each = [spearmanr(values[chosen, q], outcome[chosen, q])[0] for q in range(5)]
            drawn[name][draw] = weights[draw] @ each
    for name, values in drawn.items():
        for interval, sample in zip(intervals[name], (values, values - drawn["a"]), strict=True):
            expected = np.quantile(sample, [0.025, 0.975])
            np.testing.assert_allclose([interval.low, interval.high], expected, atol=1e-12)


def test_interval_over_queries_agrees_with_the_normal_one():
    values = np.random.default_rng(4).normal(1.0, 2.0, 400)
    intervals = over(values)
    half = 1.96 * values.std() / 20
    assert intervals.mean == values.mean()
    assert intervals.low == pytest.approx(values.mean() - half, abs=0.02)
    assert intervals.high == pytest.approx(values.mean() + half, abs=0.02)
    assert over(values) == intervals
    with pytest.raises(ValueError, match="two or more"):
        over(np.array([1.0]))


def test_top_takes_the_highest_and_breaks_ties_by_order():
    scores = np.array([3.0, 1.0, 3.0, 3.0, 0.0])
    assert metrics.top(scores, 0.4).tolist() == [True, False, True, False, False]
    with pytest.raises(ValueError, match="some examples"):
        metrics.top(scores, 0.01)


def test_drops_by_hand():
    # Two seeds, one query; two random sets with means -1 and -2 over sets, by seed.
    random = np.array([[[-0.5], [-1.5]], [[-1.5], [-2.5]]])
    without = np.array([[-4.0], [-3.0]])
    assert metrics.drops(without, random).tolist() == [(3.0 + 1.0) / 2]
    with pytest.raises(ValueError, match="shapes"):
        metrics.drops(without[:1], random)


def area(wrong, right, draws=2):
    """AUROC of one score for two groups."""
    groups = np.arange(len(wrong) + len(right)) < len(wrong)
    scores = {"one": np.concatenate([wrong, right])}
    return metrics.auroc(scores, groups, ~groups, np.random.default_rng(0), draws)["one"].mean


def test_auroc_by_hand_and_by_mann_whitney():
    # Of six pairs four are in order, one is tied: 4.5 / 6.
    assert area(np.array([1.0, 3.0]), np.array([2.0, 3.0, 4.0])) == 4.5 / 6
    rng = np.random.default_rng(5)
    wrong, right = rng.integers(0, 9, 40).astype(float), rng.integers(2, 12, 70).astype(float)
    expected = mannwhitneyu(right, wrong).statistic / (40 * 70)
    assert area(wrong, right) == pytest.approx(expected, rel=1e-12)


def test_auroc_interval_is_that_of_explicit_resamples():
    rng = np.random.default_rng(6)
    wrong, right = rng.normal(0.0, 1.0, 25), rng.normal(0.8, 1.0, 60)
    scores = np.concatenate([wrong, rng.normal(size=3), right])
    groups = np.arange(88) < 25, np.arange(88) >= 28
    both = {"one": scores, "other": -scores}
    areas = metrics.auroc(both, *groups, np.random.default_rng(0), draws=4000)
    one, mirrored = areas["one"], areas["other"]
    assert mirrored.mean == pytest.approx(1 - one.mean)
    assert mirrored.low == pytest.approx(1 - one.high)
    resamples = rng.choice(right, (4000, 60)), rng.choice(wrong, (4000, 25))
    drawn = mannwhitneyu(*resamples, axis=1, method="asymptotic").statistic / (25 * 60)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert one.mean == pytest.approx(mannwhitneyu(right, wrong).statistic / (25 * 60))
    assert (one.low, one.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    with pytest.raises(ValueError, match="expected both"):
        area(wrong, right[:0])


@pytest.mark.parametrize(
    ("gap", "strict", "expected"),
    [
        (Interval(0.1, 0.05, 0.2), True, MET),
        (Interval(0.1, -0.05, 0.2), True, OPEN),
        (Interval(0.1, -0.05, 0.2), False, MET),
        (Interval(-0.01, -0.05, 0.03), False, OPEN),
        (Interval(-0.1, -0.2, -0.05), False, MISSED),
        (Interval(-0.1, -0.2, -0.05), True, MISSED),
    ],
)
def test_verdicts(gap, strict, expected):
    assert verdict(gap, strict) == expected

"""How far an accuracy moves: by hand, and against scipy and simulated truth."""

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from harness.stats.decode_noise import binomial_sd, by_repetition, changed, repeated, sd_interval


def table(*repetitions):
    """Verdicts [R, n, 1] of greedy answers."""
    return np.array(repetitions, dtype=bool)[:, :, None]


HAND = table([1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1])


def test_by_hand():
    texts = np.where(HAND, "right", "wrong").astype(object)
    texts[2, 2, 0] = "otherwise wrong"
    found = repeated({"t": HAND}, {"t": texts}, sampled=True)
    assert found.accuracy == pytest.approx(0.5)
    assert found.sd == pytest.approx(0.25)  # of 1/2, 1/4, 3/4
    assert (found.low, found.high) == (0.25, 0.75)
    assert (found.n_items, found.n_decodes) == (4, 1)
    assert found.verdicts_changed == 2  # the second and the fourth
    assert found.texts_changed == 3
    # Shares 1, 2/3, 0, 1/3: p(1-p) 0, 2/9, 0, 2/9, of mean 1/9, times 3/2 for three draws, over 4.
    assert found.binomial_sd == pytest.approx(math.sqrt(1 / 24))
    assert math.isnan(repeated({"t": HAND}, {"t": texts}, sampled=False).binomial_sd)


def test_two_tasks_weigh_the_same_by_hand():
    other = table([1, 0], [1, 1], [1, 1])
    correct = {"t": HAND, "u": other}
    found = repeated(correct, correct, sampled=True)
    means = np.array([(1 / 2 + 1 / 2) / 2, (1 / 4 + 1) / 2, (3 / 4 + 1) / 2])
    assert by_repetition(correct) == pytest.approx(means)
    assert found.sd == pytest.approx(np.std(means, ddof=1))
    assert (found.n_items, found.verdicts_changed) == (6, 3)
    # Of the second: shares 1 and 2/3, mean p(1-p) 1/9, times 3/2, over 2 items.
    assert found.binomial_sd == pytest.approx(math.sqrt(1 / 24 + 1 / 12) / 2)


def test_the_interval_is_where_chi_square_tests_stop_rejecting():
    """Oracle: the standard deviations at which (R-1) s^2 / sigma^2 is at the 2.5% tails."""
    sd, repetitions = 0.013, 8

    def tail(sigma):
        return scipy_stats.chi2.cdf((repetitions - 1) * sd**2 / sigma**2, repetitions - 1)

    low = optimize.brentq(lambda sigma: tail(sigma) - 0.975, sd / 10, sd)
    high = optimize.brentq(lambda sigma: tail(sigma) - 0.025, sd, sd * 10)
    assert sd_interval(sd, repetitions) == pytest.approx((low, high), rel=1e-6)
    # The table's values for 7 degrees of freedom.
    assert sd_interval(1.0, 8) == pytest.approx(
        (math.sqrt(7 / 16.0128), math.sqrt(7 / 1.68987)), rel=1e-5
    )


def test_equal_accuracies_have_no_interval():
    same = table([1, 0, 1], [1, 0, 1])
    found = repeated({"t": same}, {"t": same}, sampled=False)
    assert (found.sd, found.verdicts_changed) == (0.0, 0)
    assert math.isnan(found.sd_low)
    # One up and one down: the mean is the same but for rounding, and items did change.
    moved = {"t": table([1, 0, 0], [0, 0, 0]), "u": table([1, 1, 0], [1, 1, 1])}
    found = repeated(moved, moved, sampled=False)
    assert (found.sd, found.verdicts_changed) == (0.0, 2)
    assert math.isnan(found.sd_high)


def test_the_binomial_formula_is_that_of_simulated_draws():
    rng = np.random.default_rng(5)
    p = {"t": rng.random(30), "u": rng.random(12)}
    draws = {name: rng.random((4000, n.size, 3)) < n[:, None] for name, n in p.items()}
    seen = np.std(np.mean([d.mean(axis=(1, 2)) for d in draws.values()], axis=0), ddof=1)
    exact = math.sqrt(sum((n * (1 - n)).mean() / (n.size * 3) for n in p.values())) / 2
    assert seen == pytest.approx(exact, rel=0.03)
    assert binomial_sd(draws) == pytest.approx(exact, rel=0.01)
    # Few repetitions estimate the same variance, without bias.
    few = [binomial_sd({k: d[s : s + 2] for k, d in draws.items()}) ** 2 for s in range(0, 4000, 2)]
    assert np.mean(few) == pytest.approx(exact**2, rel=0.02)


def test_decodes_of_an_item_have_no_order():
    values = np.array([[["a", "b"], ["a", "a"]], [["b", "a"], ["a", "b"]]], dtype=object)
    assert changed(values) == 1


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"task 't' has shape \(1, 3, 1\); expected"):
        by_repetition({"t": table([1, 0, 1])})

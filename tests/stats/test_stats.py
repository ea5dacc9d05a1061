"""Statistics against scipy, statsmodels, hand-worked values and simulated truth."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from harness.stats import (
    SUMMARY_COLUMNS,
    Outcome,
    benjamini_hochberg,
    detectable,
    difference,
    estimate,
    holm,
    improvement,
    mcnemar,
    mean_squares,
    pivot,
    replicate,
    seeds_needed,
    sign_flip,
    summarise,
    wilson,
)
from harness.stats.interval import CONSTANT, ONE_CHECKPOINT, ONE_SEED, TWO_WAY, spread
from harness.stats.paired import MCNEMAR

HAND = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def rng_of(*seed):
    return np.random.default_rng(list(seed))


def simulated(rng, n_seeds, n_items, sd, probabilities=None):
    """0/1 outcomes around items of mean difficulty 0.5, with seed effects of deviation sd."""
    if probabilities is None:
        probabilities = 0.15 + 0.7 * rng.random(n_items)
    effects = sd * rng.standard_normal((n_seeds, 1))
    chance = np.clip(probabilities + effects, 0, 1)
    return (rng.random((n_seeds, n_items)) < chance).astype(float)


def test_interval_by_hand():
    # Seed means 2/3, 1/3; item means 1, 1/2, 0.
    # MS_r = 3 (1/18) = 1/6, MS_i = 2 (1/4) = 1/2, residuals +-1/6 (four), +-1/3 (two):
    # SS_e = 4/36 + 2/9 = 1/3 on 2 degrees, MS_e = 1/6: V_r = 1/36, V_i = 1/12, V_e = 1/36.
    squares = mean_squares(HAND)
    assert (squares.seeds, squares.items, squares.residual) == pytest.approx((1 / 6, 1 / 2, 1 / 6))
    found = estimate(Outcome.of(HAND), alpha=0.5)
    # The residual takes the seeds' part away: t_i^2 / 12 + t_r^2 (1/36 - 1/36).
    half = scipy_stats.t.ppf(0.75, 2) / math.sqrt(12)
    assert (found.mean, found.se) == pytest.approx((0.5, 12**-0.5))
    assert (found.ci_low, found.ci_high) == pytest.approx((0.5 - half, 0.5 + half))
    assert found.sd_seeds == pytest.approx(math.sqrt(1 / 18))
    assert (found.n_seeds, found.n_items, found.method) == (2, 3, TWO_WAY)
    assert estimate(Outcome.of(HAND)).ci_high == 1.0


def test_interval_of_a_difference_by_hand():
    # As above, but t_r^2 / 36 + t_i^2 (1/12 - 1/36).
    found = difference(Outcome.of(HAND), Outcome.of(np.zeros((2, 3))), alpha=0.5)
    quantiles = scipy_stats.t.ppf(0.75, [1, 2])
    half = math.sqrt(quantiles[0] ** 2 / 36 + quantiles[1] ** 2 / 18)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.5 - half, 0.5 + half))
    # t with 2 degrees: s / sqrt(s^2 + 2) is the confidence; with 1: 2/pi atan(s).
    p = found.p
    reached = math.tan(math.pi / 2 * (1 - p)) ** 2 / 36 + 2 * (1 - p) ** 2 / (1 - (1 - p) ** 2) / 18
    assert reached == pytest.approx(0.25, rel=1e-9)


def test_a_difference_without_spread_between_items_is_the_paired_t_test():
    """Items vary by less than the residual explains: seeds are all that is left."""
    a = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]]) * 1.0
    b = np.zeros((4, 4))
    found = difference(Outcome.of(a), Outcome.of(b))
    expected = scipy_stats.ttest_rel(a.mean(axis=1), b.mean(axis=1))
    assert found.spread.parts[1].variance == 0.0
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval(0.95)
    assert (found.ci_low, found.ci_high) == pytest.approx(
        (max(interval.low, -1), min(interval.high, 1))
    )


def test_p_values_reach_far():
    """Seeds that agree to a hair and a large difference: the part of few degrees decides."""
    table = np.full((3, 400), 0.5) + 0.01 * rng_of(22).standard_normal((3, 400))
    found = difference(Outcome.of(table), Outcome.of(np.zeros((3, 400))))
    alone = scipy_stats.ttest_1samp(table.mean(axis=1), 0.0).pvalue
    assert alone <= found.p < 1e-4
    assert abs(found.spread.half(found.p) - found.diff) < 1e-9
    items = np.tile(0.5 + 0.01 * rng_of(23).standard_normal((1, 400)), (3, 1))
    assert 0.0 <= difference(Outcome.of(items), Outcome.of(np.zeros((3, 400)))).p < 1e-300


def test_mean_squares_agree_with_statsmodels():
    table = rng_of(1).random((4, 7))
    frame = pd.DataFrame(
        [(s, i, table[s, i]) for s in range(4) for i in range(7)], columns=[*"siy"]
    )
    reference = anova_lm(ols("y ~ C(s) + C(i)", frame).fit())["mean_sq"]
    ours = mean_squares(table)
    assert ours.seeds == pytest.approx(reference["C(s)"], abs=1e-10)
    assert ours.items == pytest.approx(reference["C(i)"], abs=1e-10)
    assert ours.residual == pytest.approx(reference["Residual"], abs=1e-10)


@pytest.mark.parametrize("n_seeds", [1, 2, 5])
def test_tasks_reduce_to_one(n_seeds):
    """The same table as two tasks: the item part halves, the seed part does not."""
    table = simulated(rng_of(2), n_seeds, 250, 0.2)
    one = estimate(Outcome.of(table))
    two = estimate(Outcome.of({"a": table, "b": table}))
    assert two.mean == pytest.approx(one.mean)
    assert two.n_items == 500
    if n_seeds == 1:
        assert two.se == pytest.approx(one.se / math.sqrt(2))
        return
    squares = mean_squares(table)
    seeds, items, residual = (
        value / (n_seeds * 250) for value in (squares.seeds, squares.items, squares.residual)
    )
    assert one.se**2 == pytest.approx(seeds + items - residual)
    assert two.se**2 == pytest.approx(seeds + (items - residual) / 2)


def test_mean_over_tasks_counts_covariance_by_seed():
    """Opposite seed effects in two tasks cancel in the mean; equal ones do not."""
    effect = np.array([[0.1], [-0.1], [0.05], [-0.05]])
    base = np.tile(rng_of(3).choice([0.25, 0.75], size=(1, 50)), (4, 1))
    same = spread({"a": base + effect, "b": base + effect})
    opposite = spread({"a": base + effect, "b": base - effect})
    items = base[0].var(ddof=1) / 50 / 2
    assert opposite.se**2 == pytest.approx(items)
    assert same.se**2 == pytest.approx(items + effect.var(ddof=1) / 4)


def test_where_only_one_part_varies():
    items = np.tile([1.0, 0.0, 1.0, 1.0], (3, 1))
    for differences in (False, True):
        found = spread({"a": items}, differences=differences)
        assert found.parts == ((0.0, 2.0), (pytest.approx(items[0].var(ddof=1) / 4), 3.0))
        found = spread({"a": np.tile([[0.2], [0.5], [0.6]], (1, 4))}, differences=differences)
        seeds = np.var([0.2, 0.5, 0.6], ddof=1) / 3
        assert found.parts == ((pytest.approx(seeds), 2.0), (pytest.approx(0.0), 3.0))
        # All seed and item means agree: the residual, SS_e = 4/4 on 1 degree, over R n = 4.
        found = spread({"a": np.eye(2)}, differences=differences)
        assert found.parts == ((pytest.approx(1 / 4), 1.0), (0.0, 1.0))


def test_items_of_several_tasks_have_satterthwaites_degrees_of_freedom():
    tables = {"a": simulated(rng_of(24), 3, 20, 0.0), "b": simulated(rng_of(25), 3, 50, 0.0)}
    parts = [t.mean(axis=0).var(ddof=1) / t.shape[1] / 4 for t in tables.values()]
    expected = sum(parts) ** 2 / (parts[0] ** 2 / 19 + parts[1] ** 2 / 49)
    assert spread(tables).parts[1] == pytest.approx((sum(parts), expected))


@pytest.mark.parametrize(("count", "n"), [(0, 30), (7, 30), (30, 30), (100, 150)])
def test_one_seed_is_wilson(count, n):
    table = np.zeros((1, n))
    table[0, :count] = 1.0
    expected = proportion_confint(count, n, method="wilson")
    assert wilson(count / n, n) == pytest.approx(expected)
    found = estimate(Outcome.of(table))
    assert (found.ci_low, found.ci_high) == pytest.approx(expected)
    assert ONE_SEED in found.note
    assert math.isnan(found.sd_seeds)
    assert ONE_CHECKPOINT in estimate(Outcome.of(table, fixed=True)).note


def test_one_seed_with_many_items_is_t():
    table = simulated(rng_of(4), 1, 300, 0.0)
    found = estimate(Outcome.of(table))
    expected = scipy_stats.ttest_1samp(table[0], 0).confidence_interval()
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high))


def test_all_right_in_all_seeds_has_no_zero_width():
    found = estimate(Outcome.of(np.ones((5, 40))))
    assert found.method == CONSTANT
    assert (found.ci_low, found.ci_high) == pytest.approx(
        proportion_confint(40, 40, method="wilson")
    )
    half = estimate(Outcome.of({"a": np.ones((5, 40)), "b": np.tile([0.0, 1.0], (5, 20))}))
    only = estimate(Outcome.of(np.tile([0.0, 1.0], (5, 20))))
    below = math.hypot((1 - found.ci_low) / 2, (only.mean - only.ci_low) / 2)
    assert 0.75 - half.ci_low > (only.mean - only.ci_low) / 2
    # The spread of b alone, on the mean of two tasks, has its own degrees of freedom: n_b - 1.
    assert 0.75 - half.ci_low == pytest.approx(below)
    assert half.note == "1 of 2 tasks constant"


@pytest.mark.parametrize(
    ("n_seeds", "n_items", "sd"), [(5, 40, 0.02), (6, 150, 0.05), (10, 60, 0.0)]
)
def test_coverage(n_seeds, n_items, sd):
    """95% intervals over 400 tables: 19.5 misses expected by 20, with deviation 4.4.

    Between 92% and 99.5%. Without the seed term (6, 150, 0.05) would fall to about 85%.
    """
    rng = rng_of(5, n_seeds, n_items)
    hits = 0
    for _ in range(400):
        found = estimate(Outcome.of(simulated(rng, n_seeds, n_items, sd)))
        hits += found.ci_low <= 0.5 <= found.ci_high
    assert 0.92 * 400 <= hits <= 0.995 * 400


def test_two_equal_methods_rarely_differ():
    """A/A: same items, other seeds; nominal 5%, at most 6% in the long run (binomial slack)."""
    rng = rng_of(6)
    rejected = 0
    for _ in range(400):
        chance = 0.15 + 0.7 * rng.random(120)
        arms = [Outcome.of(simulated(rng, 4, 120, 0.03, chance)) for _ in range(2)]
        rejected += difference(*arms).p < 0.05
    assert rejected <= 0.06 * 400 + 2 * math.sqrt(400 * 0.06 * 0.94)


def test_mean_over_tasks_covers():
    """Seed effects shared by tasks: adding the tasks' variances as if unrelated falls short."""
    rng = rng_of(7)
    hits = 0
    for _ in range(300):
        effects = 0.05 * rng.standard_normal((6, 1))
        tables = {}
        for task, n_items in (("a", 40), ("b", 200)):
            chance = np.clip(0.15 + 0.7 * rng.random(n_items) + effects, 0, 1)
            tables[task] = (rng.random((6, n_items)) < chance).astype(float)
        found = estimate(Outcome.of(tables))
        hits += found.ci_low <= 0.5 <= found.ci_high
    assert 0.915 * 300 <= hits <= 0.995 * 300


def test_difference_is_the_interval_of_the_differences():
    rng = rng_of(8)
    a, b = simulated(rng, 5, 30, 0.05), simulated(rng, 5, 30, 0.05)
    found = difference(Outcome.of(a), Outcome.of(b))
    expected = spread({"task": a - b}, differences=True)
    assert found.diff == pytest.approx(a.mean() - b.mean())
    assert (found.ci_low, found.ci_high) == expected.interval(0.05)
    assert found.sd_seeds == pytest.approx((a - b).mean(axis=1).std(ddof=1))
    # p and interval agree: at level p, the interval ends at 0.
    ends = found.spread.interval(found.p)
    assert min(abs(ends[0]), abs(ends[1])) == pytest.approx(0.0, abs=1e-9)
    swapped = difference(Outcome.of(b), Outcome.of(a))
    assert (swapped.diff, swapped.p) == pytest.approx((-found.diff, found.p))
    assert swapped.p_improvement == pytest.approx(1 - found.p_improvement)


def test_identical_rows_tie_with_a_width():
    table = simulated(rng_of(9), 4, 50, 0.1)
    found = holm([difference(Outcome.of(table), Outcome.of(table))])[0]
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    assert (found.diff, found.p, found.verdict) == (0.0, 1.0, "tie")
    assert (found.ci_low, found.ci_high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)))
    assert (found.p_sign_flip, found.p_improvement) == (1.0, 0.5)


def test_difference_uses_common_seeds_and_names_the_rest():
    table = simulated(rng_of(10), 4, 30, 0.05)
    a = Outcome.of(table, seeds=[0, 1, 2, 3])
    b = Outcome.of(1 - table[[2, 0, 1]], seeds=[9, 3, 1])
    found = difference(a, b)
    assert found.dropped == (0, 2, 9)
    assert found.n_seeds == 2
    # b's table of seed 3 is 1 - table[0], that of seed 1 is 1 - table[1].
    assert found.diff == pytest.approx(
        np.mean([table[1].mean() - 1 + table[1].mean(), table[3].mean() - 1 + table[0].mean()])
    )
    with pytest.raises(ValueError, match="at least one in common"):
        difference(a, Outcome.of(table[:1], seeds=[7]))


def test_fixed_checkpoint_stands_against_every_seed():
    table, base = simulated(rng_of(11), 4, 30, 0.05), simulated(rng_of(12), 1, 30, 0.0)
    row = Outcome.of(table, seeds=[3, 4, 5, 6])
    found = difference(row, Outcome.of(base, fixed=True))
    repeated = difference(row, Outcome.of(np.tile(base, (4, 1)), seeds=[3, 4, 5, 6]))
    assert found == repeated
    assert (found.n_seeds, found.dropped) == (4, ())
    assert difference(Outcome.of(base, fixed=True), row).diff == pytest.approx(-found.diff)


def test_unequal_items_and_tasks_are_refused():
    a = Outcome.of(HAND)
    with pytest.raises(ValueError, match="same items"):
        difference(a, Outcome.of(HAND, items={"task": ["x", "y", "z"]}))
    with pytest.raises(ValueError, match="same items"):
        difference(a, Outcome.of(HAND[:, :2]))
    with pytest.raises(ValueError, match="tasks"):
        difference(a, Outcome.of({"other": HAND}))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones((3, 1)), "at least 2"),
        (np.array([[1.0, np.nan]]), "missing"),
        (np.array([[1.0, 1.5]]), "1.5"),
        (np.ones(3), "shape"),
    ],
)
def test_bad_tables_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        Outcome.of(table)


@pytest.mark.parametrize("n", [1, 3, 6, 9])
def test_sign_flip_agrees_with_enumeration_and_scipy(n):
    values = np.round(rng_of(13, n).normal(0.02, 0.03, n), 2)
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=n)]
    expected = np.mean(np.array(sums) >= abs(values.sum()) - 1e-12)
    assert sign_flip(values) == pytest.approx(expected)
    if n == 6:
        reference = scipy_stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf
        )
        assert sign_flip(values) == pytest.approx(reference.pvalue)


def test_sign_flip_floor_and_sampling():
    assert sign_flip([0.1, 0.2, 0.3]) == 0.25 == 2 / 2**3
    assert sign_flip(np.full(6, 0.01)) == pytest.approx(0.03125)
    values = rng_of(14).normal(0.5, 1, 25)
    first = sign_flip(values, rng_of(0))
    assert first == sign_flip(values, rng_of(0))
    near = scipy_stats.ttest_1samp(values, 0).pvalue
    assert first == pytest.approx(near, abs=0.02)
    assert sign_flip(np.ones(30), rng_of(0)) == pytest.approx(1 / 100_001)
    with pytest.raises(ValueError, match="Generator"):
        sign_flip(values)


def test_mcnemar_agrees_with_statsmodels():
    rng = rng_of(15)
    a, b = (rng.random((2, 60)) < [[0.7], [0.5]]).astype(float)
    table = [[np.sum(a * b), np.sum(a * (1 - b))], [np.sum((1 - a) * b), np.sum((1 - a) * (1 - b))]]
    expected = statsmodels_mcnemar(table, exact=True).pvalue
    assert mcnemar(a, b) == pytest.approx(expected)
    found = difference(Outcome.of(a[None]), Outcome.of(b[None]))
    assert (found.p, found.test) == (pytest.approx(expected), MCNEMAR)
    assert ONE_SEED in found.note
    assert mcnemar(a, a) == 1.0


def test_one_seed_with_fractions_is_paired_t():
    rng = rng_of(16)
    a, b = rng.integers(0, 5, (2, 50)) / 4
    found = difference(Outcome.of(a[None]), Outcome.of(b[None]))
    assert found.p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)


def test_improvement_agrees_with_mann_whitney():
    a, b = [0.5, 0.6, 0.7, 0.7], [0.5, 0.65, 0.4]
    expected = scipy_stats.mannwhitneyu(a, b).statistic / 12
    assert improvement(a, b) == pytest.approx(expected)
    # Wins 1 + 2 + 3 + 3 of 12 pairs, and one tie (0.5, 0.5).
    assert improvement(a, b) == pytest.approx(9.5 / 12)


def shifted(shifts, n_seeds=8, n_items=200):
    """Differences to one reference, with true shifts in accuracy."""
    rng = rng_of(17)
    chance = 0.3 + 0.4 * rng.random(n_items)
    reference = Outcome.of(simulated(rng, n_seeds, n_items, 0.01, chance))
    return [
        difference(Outcome.of(simulated(rng, n_seeds, n_items, 0.01, chance + shift)), reference)
        for shift in shifts
    ]


def test_holm_by_hand():
    family = shifted([0.2, -0.2, 0.0, 0.04])
    p = [0.01, 0.04, 0.03, 0.005]
    given = [
        one.__class__(**{**vars(one), "p": value}) for one, value in zip(family, p, strict=True)
    ]
    # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1: 0.02 0.03 0.06 and max(0.06, 0.04) = 0.06.
    assert [one.p_holm for one in holm(given)] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # Times 4/k: 0.02, 0.02, 0.04, 0.04.
    assert [one.p_bh for one in benjamini_hochberg(given)] == pytest.approx(
        [0.02, 0.04, 0.04, 0.02]
    )
    assert holm([]) == []


def test_verdicts_need_p_and_interval():
    family = holm(shifted([0.2, -0.2, 0.0]))
    assert [one.verdict for one in family] == ["better", "worse", "tie"]
    for one in family:
        assert one.adjusted_low <= one.ci_low
        assert one.adjusted_high >= one.ci_high
        assert (one.p_holm < 0.05) == (one.adjusted_low > 0 or one.adjusted_high < 0)
    # Smallest p of three: level 5%/3, then 5%/2, then 5%.
    ranked = sorted(family, key=lambda one: one.p)
    for one, level in zip(ranked, (0.05 / 3, 0.05 / 2, 0.05), strict=True):
        assert (one.adjusted_low, one.adjusted_high) == one.spread.interval(level)
    # A p-value alone is not enough: an interval that holds 0 is a tie.
    tie = family[2]
    forced = holm([tie.__class__(**{**vars(tie), "p": 0.001})])[0]
    assert (forced.p_holm, forced.verdict) == (0.001, "tie")
    grid = benjamini_hochberg(shifted([0.2, -0.2, 0.0]))
    assert [one.verdict for one in grid] == ["better", "worse", "tie"]
    # Two of three rejected: intervals at level 2/3 of 5%.
    assert grid[0].adjusted_low == grid[0].spread.interval(0.05 * 2 / 3)[0]


def test_bootstrap_is_reproducible_and_matches_a_loop():
    tables = {"a": rng_of(18).random((3, 4, 6)), "b": rng_of(19).random((3, 4, 9))}
    first = replicate(tables, rng_of(0), draws=700)
    assert np.array_equal(first, replicate(tables, rng_of(0), draws=700))
    assert not np.array_equal(first, replicate(tables, rng_of(1), draws=700))
    # The same draws, one replicate at a time.
    rng = rng_of(0)
    seeds = rng.integers(0, 4, (5, 4))
    items = {task: rng.integers(0, n, (5, n)) for task, n in (("a", 6), ("b", 9))}
    expected = [
        np.mean([tables[t][:, seeds[k]][:, :, items[t][k]].mean(axis=(1, 2)) for t in "ab"], axis=0)
        for k in range(5)
    ]
    assert replicate(tables, rng_of(0), draws=5) == pytest.approx(np.array(expected))


def test_bootstrap_is_near_the_two_way_interval():
    """With many seeds and items and a real variance in both, the methods agree."""
    table = np.clip(0.5 + 0.1 * rng_of(20).standard_normal((40, 1)), 0, 1)
    table = np.clip(table + 0.2 * rng_of(21).standard_normal((1, 150)), 0, 1)
    found, second = estimate(Outcome.of(table)), replicate({"a": table[None]}, rng_of(0))
    width = found.ci_high - found.ci_low
    assert second.mean() == pytest.approx(found.mean, abs=0.003)
    assert np.ptp(np.quantile(second, [0.025, 0.975])) == pytest.approx(width, rel=0.07)


def test_power():
    # (1.95996 + 0.84162)^2 = 7.8489; with sd = delta, 7.85 + 2 = 9.85.
    assert seeds_needed(0.02, 0.02) == 10
    assert seeds_needed(0.02, 0.01) == math.ceil(4 * 7.8489 + 2) == 34
    alone = spread({"a": np.tile([[0.2], [0.5], [0.6], [0.4]], (1, 4))}, differences=True)
    quantiles = scipy_stats.t.ppf([0.975, 0.8], 3)
    assert detectable(alone) == pytest.approx(quantiles.sum() * alone.se)
    # Two parts: V_r = 1/36 with 1, V_i - V_e = 1/18 with 2 degrees of freedom.
    both = spread({"a": HAND}, differences=True)
    halves = [
        math.sqrt(scipy_stats.t.ppf(q, 1) ** 2 / 36 + scipy_stats.t.ppf(q, 2) ** 2 / 18)
        for q in (0.975, 0.8)
    ]
    assert detectable(both) == pytest.approx(sum(halves))
    assert math.isnan(detectable(spread({"a": np.ones((3, 4))})))
    with pytest.raises(ValueError, match="delta"):
        seeds_needed(0.02, 0.0)


def long(row, fraction, table, task="core", seeds=None):
    """Long outcomes of a table [R, n] or [R, n, K]."""
    table = np.atleast_3d(table)
    seeds = range(len(table)) if seeds is None else seeds
    lines = [
        (row, fraction, seed, task, f"{task}-{i}", k, bool(table[s, i, k]))
        for s, seed in enumerate(seeds)
        for i, k in itertools.product(*map(range, table.shape[1:]))
    ]
    return pd.DataFrame(
        lines, columns=["row", "fraction", "seed", "task", "item", "decode", "correct"]
    )


def experiment(n_seeds=6, n_items=40):
    """Two tasks; a clearly better row, an equal one, and the rows that stand alone."""
    rng = rng_of(22)
    parts = []
    for task in ("core", "far"):
        chance = 0.2 + 0.3 * rng.random(n_items)
        for fraction in (0.25, 0.5):
            for row, shift in (("random", 0.0), ("good", 0.4), ("equal", 0.0)):
                table = simulated(rng, n_seeds, n_items, 0.01, chance + shift)
                parts.append(long(row, fraction, table, task))
        parts.append(long("base", 0.0, simulated(rng, 1, n_items, 0.0, chance - 0.2), task))
        parts.append(long("full", 1.0, simulated(rng, n_seeds, n_items, 0.0, chance), task))
    return pd.concat(parts, ignore_index=True)


def table_of(outcomes, row, fraction, task):
    one = outcomes.query("row == @row and fraction == @fraction and task == @task")
    return one.pivot_table("correct", "seed", "item").to_numpy(dtype=float)


def test_summary():
    outcomes = experiment()
    found = summarise(outcomes)
    assert tuple(found.columns) == SUMMARY_COLUMNS
    assert len(found) == 8 * 3
    lines = found.set_index(["row", "fraction", "task"])
    assert (lines.loc["random"]["verdict"] == "reference").all()
    assert lines.loc["random"][["diff", "p", "p_holm"]].isna().all(axis=None)
    good = lines.loc["good", 0.25, "mean"]
    sides = [
        Outcome.of({task: table_of(outcomes, row, 0.25, task) for task in ("core", "far")})
        for row in ("good", "random")
    ]
    expected = difference(*sides)
    assert (good["diff"], good["p"]) == pytest.approx((expected.diff, expected.p))
    assert good["mean"] == pytest.approx(estimate(sides[0]).mean)
    assert (good["n_items"], good["n_seeds"], good["verdict"]) == (80, 6, "better")
    assert good["p_floor"] == 2 / 2**6
    means = lines.xs("mean", level="task")
    assert means["p_bh"].isna().all()
    # Holm: the family is every line of task "mean" that has a p.
    p = means["p"].dropna()
    assert len(p) == 6
    assert means["p_holm"].min() == pytest.approx(6 * p.min())
    single = lines.drop(index="mean", level="task")
    assert single["p_holm"].isna().all()
    assert single["p_bh"].notna().sum() == 12


def test_summary_compares_base_and_full_at_the_reference_fraction():
    outcomes = experiment()
    for given, used in ((None, 0.25), (0.5, 0.5)):
        lines = summarise(outcomes, reference_fraction=given).set_index(["row", "fraction", "task"])
        random_mean = lines.loc["random", used, "mean"]["mean"]
        for row, fraction in (("base", 0.0), ("full", 1.0)):
            line = lines.loc[row, fraction, "mean"]
            assert line["diff"] == pytest.approx(line["mean"] - random_mean)
            assert line["n_pairs"] == 6
    assert lines.loc["base", 0.0, "mean"]["n_seeds"] == 1
    assert ONE_CHECKPOINT in lines.loc["base", 0.0, "mean"]["note"]
    against = summarise(outcomes, reference="base").set_index(["row", "fraction", "task"])
    assert against.loc["base", 0.0, "mean"]["verdict"] == "reference"
    assert against["diff"].notna().sum() == 7 * 3


def test_summary_does_not_depend_on_the_order_of_lines():
    outcomes = experiment(3, 10)
    mixed = outcomes.sample(frac=1.0, random_state=rng_of(23))
    pd.testing.assert_frame_equal(summarise(outcomes), summarise(mixed), check_exact=True)


def test_missing_cells_are_left_out_and_named():
    outcomes = experiment()
    gone = outcomes.eval("row == 'good' and fraction == 0.5 and seed == 2")
    part = outcomes.eval(
        "row == 'equal' and fraction == 0.5 and seed == 1 and task == 'far' and item == 'far-3'"
    )
    found = summarise(outcomes[~gone & ~part], seeds=range(7))
    lines = found.set_index(["row", "fraction", "task"])
    good = lines.loc["good", 0.5, "mean"]
    assert (good["n_seeds"], good["n_pairs"]) == (5, 5)
    assert "seeds missing: 2, 6" in good["note"]
    assert "seeds unpaired: 2" in good["note"]
    kept = table_of(outcomes, "good", 0.5, "core")[[0, 1, 3, 4, 5]]
    assert lines.loc["good", 0.5, "core"]["mean"] == pytest.approx(kept.mean())
    equal = lines.loc["equal", 0.5]
    assert "seeds incomplete: 1" in equal.loc["mean"]["note"]
    assert equal["n_seeds"].to_dict() == {"core": 6, "far": 5, "mean": 5}


def test_failed_row_and_absent_reference_are_not_tested():
    outcomes = experiment()
    failed = outcomes.eval("row == 'good' and fraction == 0.5 and task == 'far'")
    lines = summarise(outcomes[~failed]).set_index(["row", "fraction", "task"])
    good = lines.loc["good", 0.5, "mean"]
    assert (good["verdict"], good["n_seeds"]) == ("not tested", 0)
    assert math.isnan(good["mean"])
    assert "no complete seed" in good["note"]
    assert lines.loc["good", 0.5, "core"]["verdict"] == "better"
    alone = summarise(outcomes[outcomes["row"] != "random"])
    assert (alone["verdict"] == "not tested").all()
    assert alone["note"].str.contains("reference has no complete outcomes").all()


def test_pivot_takes_the_mean_over_decodes():
    table = (rng_of(24).random((2, 3, 4)) < 0.5).astype(float)
    outcomes = pd.concat([long("a", 0.5, table), long("base", 0.0, table[:1, :, :1])])
    grid = pivot(outcomes)
    outcome, broken = grid.outcome(("a", 0.5), ["core"])
    assert broken == ()
    assert outcome.tables["core"] == pytest.approx(table.mean(axis=2))
    # One decode fewer than the other seeds have: that seed is not complete.
    outcome, broken = pivot(outcomes.drop(index=0).iloc[:-1]).outcome(("a", 0.5), ["core"])
    assert broken == (0,)
    assert outcome.seeds == (1,)


def test_bad_outcomes_are_refused():
    outcomes = long("random", 0.5, HAND)
    with pytest.raises(ValueError, match="lacks the columns"):
        summarise(outcomes.drop(columns="decode"))
    with pytest.raises(ValueError, match="at least one"):
        summarise(outcomes.iloc[:0])
    with pytest.raises(ValueError, match="more than once"):
        summarise(pd.concat([outcomes, outcomes.iloc[:1]]))
    with pytest.raises(ValueError, match="missing values"):
        summarise(outcomes.astype({"correct": object}).replace({"correct": {True: None}}))
    with pytest.raises(ValueError, match="true or false"):
        summarise(outcomes.assign(correct=0.5))
    with pytest.raises(ValueError, match="another name"):
        summarise(long("random", 0.5, HAND, task="mean"))
    other = long("other", 0.5, HAND)
    with pytest.raises(ValueError, match="same items"):
        summarise(pd.concat([outcomes, other.assign(item="x" + other["item"])]))
    with pytest.raises(ValueError, match="at least 2"):
        summarise(long("random", 0.5, HAND[:, :1]))

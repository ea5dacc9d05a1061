"""Simulated tables have the truth they claim; methods agree with the suite, scipy, statsmodels."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from harness.stats import Outcome, difference, estimate, replicate, sign_flip
from harness.studies.intervals import methods
from harness.studies.intervals.design import (
    STRUCTURES,
    Point,
    Protocol,
    draw_items,
    draw_tables,
    move_items,
)
from harness.studies.intervals.methods import variances


def rng_of(seed):
    return np.random.default_rng(seed)


def tables_of(seed, tables=12, seeds=4, items=15, structure="uniform", spread=0.05):
    rng, population = rng_of(seed), STRUCTURES[structure]
    difficulty = draw_items(rng, population, tables, items)
    return draw_tables(rng, population, difficulty, seeds, spread)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_truth_is_the_mean_over_new_seeds_and_items(name):
    population, rng = STRUCTURES[name], rng_of(0)
    difficulty = draw_items(rng, population, 4000, 30)
    assert population.slope == pytest.approx((difficulty * (1 - difficulty)).mean(), abs=0.002)
    for arm in (difficulty, move_items(rng, population, difficulty, 0.25)):
        result = draw_tables(rng, population, arm, 3, 0.05).mean(axis=(1, 2))
        assert result.mean() == pytest.approx(population.mean, abs=4 * result.std() / np.sqrt(4000))
    shifted = draw_tables(rng, population, difficulty, 3, 0.0, shift=0.04).mean()
    assert shifted == pytest.approx(population.mean + 0.04, abs=0.006)


def test_a_seed_moves_the_accuracy_by_its_effect():
    population, rng = STRUCTURES["uniform"], rng_of(1)
    difficulty = draw_items(rng, population, 400, 1500)
    means = draw_tables(rng, population, difficulty, 5, 0.05).mean(axis=2)
    # Seed effects and the binomial variance of 1,500 answers given their chances.
    expected = 0.05**2 + population.slope / 1500
    assert means.var(axis=1, ddof=1).mean() == pytest.approx(expected, rel=0.1)


def test_decodes_are_settled_for_half_of_the_pairs():
    difficulty = np.full((100, 500), 0.3, dtype=np.float32)
    result = draw_tables(rng_of(2), STRUCTURES["decodes"], difficulty, 4, 0.0)
    shares = [(result == k / 4).mean() for k in range(5)]
    expected = 0.5 * stats.binom.pmf(range(5), 4, 0.3) + 0.5 * np.array([0.7, 0, 0, 0, 0.3])
    np.testing.assert_allclose(shares, expected, atol=0.004)


def test_clusters_lie_side_by_side_and_are_alike():
    population = STRUCTURES["clusters"]
    assert population.clusters(11) == (0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3)
    assert population.clusters(40)[-1] == 9
    assert STRUCTURES["uniform"].clusters(40) == ()
    rank = stats.norm.ppf((draw_items(rng_of(3), population, 6000, 5).astype(float) - 0.15) / 0.7)
    correlation = np.corrcoef(rank[np.isfinite(rank).all(axis=1)].T)
    assert correlation[0, 1] == pytest.approx(0.5, abs=0.05)
    assert correlation[1, 2] == pytest.approx(0.0, abs=0.05)


def test_a_quarter_of_the_items_moves_with_its_cluster():
    population = STRUCTURES["clusters"]
    difficulty = draw_items(rng_of(4), population, 2000, 20)
    changed = move_items(rng_of(5), population, difficulty, 0.25) != difficulty
    assert changed.mean() == pytest.approx(0.25, abs=0.01)
    assert (changed[:, 0] == changed[:, 1]).all()
    assert not (changed[:, 1] == changed[:, 2]).all()


@pytest.mark.parametrize("structure", ["uniform", "clusters"])
def test_the_default_is_that_of_the_suite(structure):
    a, b = tables_of(6, structure=structure), tables_of(7, structure=structure)
    b[0] = a[0]  # no difference at all
    b[1] = a[1] - a[1, :, ::-1] / 4 if structure == "uniform" else b[1]
    b = np.clip(b, 0.0, 1.0)
    clusters = STRUCTURES[structure].clusters(15)
    labels = {"task": tuple(map(str, clusters))} if clusters else None
    mean, _ = methods.two_way_exact(a, variances(a, clusters), 0.05, 0.0, clusters)
    gap, rejected = methods.two_way_exact(b - a, variances(b - a, clusters), 0.3, -1.0, clusters)
    for at in range(len(a)):
        one, other = (Outcome.of({"task": t[at]}, clusters=labels) for t in (a, b))
        suite, paired = estimate(one), difference(other, one, alpha=0.3)
        result = [mean.low[at], mean.high[at], gap.low[at], gap.high[at], rejected[at]]
        expected = [suite.ci_low, suite.ci_high, paired.ci_low, paired.ci_high, paired.p < 0.3]
        np.testing.assert_allclose(result, expected, atol=1e-9)
    assert 0 < rejected.sum() < len(rejected)


def test_satterthwaite_by_hand():
    # V_r = 1/36, V_i = 1/12, V_e = 1/36; df = (1/144) / (1/1296 + 1/288 + 1/2592) = 1.5.
    result = methods.satterthwaite(variances(np.array([[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])))
    assert (result.se[0] ** 2, result.df[0]) == pytest.approx((1 / 12, 1.5))


def test_seeds_only_is_the_t_test_of_scipy():
    table = variances(tables_of(8) - 0.45)
    result, expected = methods.seeds_only(table), stats.ttest_1samp(table.by_seed, 0.0, axis=1)
    np.testing.assert_allclose(result.p(), expected.pvalue)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(result.bounds(0.05, -1.0), [interval.low, interval.high])


def test_pooled_wilson_is_that_of_statsmodels():
    table = tables_of(9)
    low, high = methods.pooled_wilson(variances(table).mean, 60, 0.05)
    expected = proportion_confint(table.sum(axis=(1, 2)), 60, method="wilson")
    np.testing.assert_allclose((low, high), expected)


def test_items_only_is_the_standard_error_over_items():
    table = tables_of(10)
    half = 1.959964 * stats.sem(table.mean(axis=1).astype(float), axis=1)
    result = methods.items_only(variances(table), 0.05)
    np.testing.assert_allclose(result.high - result.low, 2 * half, rtol=1e-5)


def test_unpaired_adds_the_variances_of_both():
    a, b = tables_of(11), tables_of(12)
    result = methods.unpaired(variances(b), variances(a))
    one, other = (methods.satterthwaite(variances(table[3:4])) for table in (a, b))
    se = float(np.hypot(one.se, other.se)[0])
    df = se**4 / float((one.se**4 / one.df + other.se**4 / other.df)[0])
    assert result.se[3] == pytest.approx(se)
    assert result.p()[3] == pytest.approx(2 * stats.t.sf(abs(other.mean - one.mean)[0] / se, df))


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_sign_flips_are_those_of_the_suite(seeds):
    by_seed = rng_of(13).normal(size=(20, seeds)).round(1)
    expected = [sign_flip(row) for row in by_seed]
    np.testing.assert_allclose(methods.sign_flips(by_seed), expected)


def test_the_bootstrap_is_that_of_the_suite():
    a, b = tables_of(14), tables_of(15)
    drawn = methods.bootstrapped((a, b), rng_of(0), 200)
    own, gap = (methods.percentile(x, 0.05) for x in (drawn[0], drawn[1] - drawn[0]))
    expected = replicate({"task": np.concatenate([a, b]).astype(float)}, rng_of(0), draws=200)
    np.testing.assert_allclose(own.low, np.quantile(expected[:, :12], 0.025, axis=0))
    gaps = expected[:, 12] - expected[:, 0]
    np.testing.assert_allclose(gap.high[0], np.quantile(gaps, 0.975))


def test_intervals_are_cut_where_nothing_can_lie():
    result = methods.around(np.array([0.1, 0.9]), np.array([0.2, 0.3]), 0.0)
    np.testing.assert_allclose(result.low, [0.0, 0.6])
    np.testing.assert_allclose(result.high, [0.3, 1.0])
    assert result.half_width == pytest.approx((0.3 + 0.4) / 4)
    assert result.cover(0.7).tolist() == [False, True]


def test_tried_intervals_by_hand():
    # Seed means 1/2, 1, 1/2; item means 1, 1/3: V_r = 1/36, V_i = 1/9, V_e = 1/36.
    # Satterthwaite: Var = 1/9, df = (1/81) / (1/2592 + 1/81 + 1/2592) = 16/17, below R - 1 = 2.
    result = variances(np.array([[[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]]))
    assert [float(x[0]) for x in result[1:4]] == pytest.approx([1 / 36, 1 / 9, 1 / 36])
    t_r, t_i = stats.t.ppf(0.975, 2), stats.t.ppf(0.975, 1)
    half = {name: float(value[0]) for name, value in methods.tried(result, 0.05).items()}
    assert half[methods.FLOOR] == pytest.approx(t_r / 3)
    assert half[methods.RESIDUAL_ITEMS] == pytest.approx(t_i / 3)
    assert methods.satterthwaite(result).df[0] == pytest.approx(16 / 17)
    assert half[methods.RESIDUAL_SEEDS] == pytest.approx(np.sqrt(t_r**2 / 36 + t_i**2 / 12))


def test_the_default_for_differences_is_never_narrower_than_seeds_only():
    gap = variances(tables_of(16) - tables_of(17))
    half = methods.two_way(gap, 0.005, differences=True)
    alone = methods.seeds_only(gap)
    assert (half >= stats.t.ppf(0.9975, 3) * alone.se - 1e-12).all()


def test_generalised_is_t_where_seeds_are_all_the_variance():
    by_seed = np.repeat(rng_of(18).normal(0.5, 0.1, (5, 6, 1)), 4, axis=2)
    result = variances(by_seed)
    half = methods.generalised(result, rng_of(0), 200_000, 0.05)
    np.testing.assert_allclose(half, stats.t.ppf(0.975, 5) * np.sqrt(result.v_r), rtol=0.02)


def test_a_point_has_its_own_numbers_whatever_else_is_simulated():
    few = Protocol(structures=("beta",), seeds=(3,), items=(40,), tables_fewest=100)
    point = Point("beta", 3, 40, 0.02)
    first, again = (p.generators(point)[0].random(3) for p in (few, Protocol()))
    assert first.tolist() == again.tolist()
    starts = [Protocol().generators(p)[0].random() for p in (*Protocol().points, *Protocol().aims)]
    assert len(set(starts)) == len(starts) == 124
    assert len(Protocol().generators(point)) == 100
    assert len(Protocol().generators(Point("beta", 5, 40, 0.02))) == 20


def test_the_grid_is_that_of_the_specification():
    protocol = Protocol()
    expected = itertools.product((3, 5, 10), (40, 300, 1319), (0.0, 0.02, 0.05))
    result = {(p.seeds, p.items, p.spread) for p in protocol.points if p.structure == "clusters"}
    assert result == set(expected)
    assert min(protocol.table_count(place) for place in protocol.points) == 2000
    assert Protocol.from_dict(protocol.as_dict()) == protocol

import numpy as np
import pytest

from harness.influence import order_stability, set_stability
from harness.influence.stability import replicated, whole

IDS = ("a", "b", "c", "d")
# Query 1 ranks a < b < c < d; query 2 the other way round, but for a tie of a and b on top.
BY_HAND = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 1.0], [4.0, 0.0]], np.float32)


def top(k, column="s_C"):
    """Keeps the k highest, ties in pool order."""
    return lambda table: set(table["id"][np.argsort(-table[column], kind="stable")[:k]])


def test_tables_by_hand():
    table = whole(IDS, {"C": BY_HAND})
    assert table["s_C"].tolist() == [2.5, 3.0, 1.5, 2.0]
    # Ranks: 1 2 3 4 and 3.5 3.5 2 1.
    assert table["r_C"].tolist() == [4.5 / 8, 5.5 / 8, 5 / 8, 5 / 8]
    assert whole(IDS, {"C": BY_HAND}, "sum")["s_C"].tolist() == [5.0, 6.0, 3.0, 4.0]
    assert list(table["id"]) == list(IDS)


def test_two_queries_four_examples_by_hand():
    """Draws are 11, 12, 21 and 22, equally likely: {d, c}, {b, a}, {b, a} and {a, b}."""
    actual = set_stability(IDS, {"C": BY_HAND}, top(2), rng=np.random.default_rng(0))
    assert actual.jaccard == pytest.approx(0.75, abs=0.05)
    assert (actual.low, actual.high) == (0.0, 1.0)
    np.testing.assert_allclose(actual.kept, [0.75, 0.75, 0.25, 0.25], atol=0.05)
    assert actual.kept.sum() == pytest.approx(2.0)
    # Two of four at random: overlap 0, 1, 2 with chances 1/6, 4/6, 1/6.
    assert actual.expected == pytest.approx(4 / 6 / 3 + 1 / 6)
    assert actual.replicates == 1000


def test_equal_queries_choose_the_same():
    values = np.random.default_rng(1).normal(size=(30, 1))
    columns = {"C": np.repeat(values, 5, axis=1), "I": np.repeat(values, 3, axis=1)}
    ids = [f"e{i}" for i in range(30)]
    rng = np.random.default_rng(2)
    actual = set_stability(ids, columns, top(11), rng=rng, replicates=50)
    assert (actual.jaccard, actual.low, actual.high) == (1.0, 1.0, 1.0)
    assert sorted(actual.kept.tolist()) == [0.0] * 19 + [1.0] * 11
    orders = order_stability(
        ids, columns, lambda t: np.argsort(t["s_C"], kind="stable"), rng=rng, replicates=50
    )
    assert set(orders.budgets["jaccard"]) == {1.0}
    np.testing.assert_array_equal(orders.place_low, orders.place_high)


def test_a_replicate_is_the_table_of_its_drawn_queries():
    """Every replicate against loops over the queries that it drew, found from its counts."""
    rng = np.random.default_rng(3)
    columns = {"C": rng.normal(size=(6, 4)), "I": rng.normal(size=(6, 3))}
    ids = list("uvwxyz")
    draws = np.random.default_rng(9)
    counts = {
        name: draws.multinomial(values.shape[1], np.full(values.shape[1], 1 / values.shape[1]), 5)
        for name, values in columns.items()
    }
    tables = list(replicated(ids, columns, np.random.default_rng(9), 5))
    assert len(tables) == 5
    for b, table in enumerate(tables):
        for name, values in columns.items():
            drawn = [v for v, times in enumerate(counts[name][b]) for _ in range(times)]
            assert len(drawn) == values.shape[1]
            for d in range(6):
                s = sum(values[d, v] for v in drawn) / len(drawn)
                rank = [1 + sum(values[e, v] < values[d, v] for e in range(6)) for v in drawn]
                assert table[f"s_{name}"][d] == pytest.approx(s)
                assert table[f"r_{name}"][d] == pytest.approx(sum(rank) / len(drawn) / 6)


def test_every_size_at_once_equals_one_size_at_a_time():
    rng = np.random.default_rng(4)
    columns = {"I": rng.normal(size=(12, 5)).astype(np.float32)}
    ids = [f"e{i}" for i in range(12)]

    def order(table):
        return np.argsort(-table["s_I"], kind="stable")

    actual = order_stability(ids, columns, order, rng=np.random.default_rng(5), replicates=40)
    for k in range(1, 13):
        single = set_stability(
            ids,
            columns,
            lambda table, k=k: set(table["id"][order(table)[12 - k :]]),
            rng=np.random.default_rng(5),
            replicates=40,
        )
        at = {name: values[k - 1] for name, values in actual.budgets.items()}
        assert at["kept"] == k
        assert at["jaccard"] == pytest.approx(single.jaccard, abs=1e-6)
        assert (at["low"], at["high"]) == pytest.approx((single.low, single.high), abs=1e-6)
        assert at["random"] == pytest.approx(single.expected)
    assert (actual.place_low <= actual.place_high).all()


def test_blocks_of_replicates_change_nothing(monkeypatch):
    columns = {"C": np.random.default_rng(6).normal(size=(7, 9))}

    def tables():
        actual = replicated("abcdefg", columns, np.random.default_rng(7), 10)
        return np.stack([table["s_C"] for table in actual])

    whole_at_once = tables()
    monkeypatch.setattr("harness.influence.stability.BLOCK_ELEMENTS", 21)
    np.testing.assert_allclose(tables(), whole_at_once, rtol=1e-12)


def test_refuses():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="there are no columns"):
        set_stability(IDS, {}, top(1), rng=rng)
    with pytest.raises(ValueError, match=r"columns of C have shape \(4, 0\)"):
        set_stability(IDS, {"C": np.zeros((4, 0))}, top(1), rng=rng)
    with pytest.raises(ValueError, match="replicates is 0"):
        set_stability(IDS, {"C": BY_HAND}, top(1), rng=rng, replicates=0)
    with pytest.raises(ValueError, match="aggregate is 'max'"):
        set_stability(IDS, {"C": BY_HAND}, top(1), rng=rng, aggregate="max")

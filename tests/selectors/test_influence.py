"""Influence: the drop rules, checked against a literal widening of the quantile."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from harness import InfluenceTable
from harness.influence import CurvatureOptions
from harness.selection.influence_table import InfluenceScores
from harness.selection.plugins import build

Table = dict[str, list[float]]


def dropped(make_pool: Any, make_context: Any, params: Any, table: Table, drop: int) -> list[int]:
    """Positions that are missing from the subset."""
    selector = build("influence", {"replicates": 0, **params})
    n = len(next(iter(table.values())))
    frame = pd.DataFrame({"id": [f"e{i}" for i in range(n)], **table})
    context = make_context(selector, InfluenceTable=InfluenceScores(frame, {}))
    kept = selector.select(make_pool([1] * n), n - drop, context)
    return sorted(set(range(n)) - set(kept.tolist()))


def widened(s: npt.NDArray[Any], r: npt.NDArray[Any], drop: int) -> set[int]:
    """The rule as it is written: widen one quantile until {low s} and {low r} hold enough."""
    n = len(s)
    for width in range(n + 1):
        low_s, low_r = set(np.argsort(s)[:width]), set(np.argsort(r)[:width])
        if len(low_s & low_r) >= drop:
            return low_s & low_r
    raise AssertionError


# Ranks of s: 1 2 3 4 5 6; of r: 4 1 2 6 3 5; their maximum: 4 2 3 6 5 6.
BY_HAND = {"s_C": [-9.0, -2.0, 0.0, 1.0, 3.0, 50.0], "r_C": [0.4, 0.1, 0.2, 0.6, 0.3, 0.5]}


def test_correct_by_hand(make_pool: Any, make_context: Any) -> None:
    params = {"strategy": "correct"}
    found = [dropped(make_pool, make_context, params, BY_HAND, k) for k in range(1, 6)]
    # Examples 3 and 5 share the maximum 6; the sum of ranks 10 < 11 drops 3 first.
    assert found == [[1], [1, 2], [0, 1, 2], [0, 1, 2, 4], [0, 1, 2, 3, 4]]


def test_incorrect_is_the_mirror_image(make_pool: Any, make_context: Any) -> None:
    table = {"s_I": [-v for v in BY_HAND["s_C"]], "r_I": [-v for v in BY_HAND["r_C"]]}
    params = {"strategy": "incorrect"}
    assert dropped(make_pool, make_context, params, table, 3) == [0, 1, 2]


def test_the_most_harmful_goes_first(make_pool: Any, make_context: Any) -> None:
    table = {"s_I": [0.0, 9.0, 1.0], "r_I": [0.3, 0.9, 0.5]}
    assert dropped(make_pool, make_context, {"strategy": "incorrect"}, table, 1) == [1]


@pytest.mark.parametrize("seed", range(5))
def test_equals_widening_a_common_quantile(make_pool: Any, make_context: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    s = rng.normal(size=40)
    r = 0.5 * s + rng.normal(size=40)
    table = {"s_C": s.tolist(), "r_C": r.tolist()}
    for drop in (1, 7, 20, 33):
        found = set(dropped(make_pool, make_context, {"strategy": "correct"}, table, drop))
        allowed = widened(s, r, drop)
        assert found <= allowed
        assert len(allowed) - drop <= 1  # the last step of the quantile may bring two at once


def test_combined_half_and_half(make_pool: Any, make_context: Any) -> None:
    # C drops 0, 1, 2, ...; I drops 1, 5, 4, ...: in turns 0, 1, 2, 5, 3, 4.
    table = {
        "s_C": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "r_C": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "s_I": [0.0, 9.0, 1.0, 2.0, 3.0, 4.0],
        "r_I": [0.0, 9.0, 1.0, 2.0, 3.0, 4.0],
    }
    found = [dropped(make_pool, make_context, {}, table, k) for k in range(1, 6)]
    assert found == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 5], [0, 1, 2, 3, 5]]
    # Smaller of the two places: 0: 0, 1: 0 (sum 1 against 5), 2: 2, 3: 3, 4: 2, 5: 1.
    by_rank = [dropped(make_pool, make_context, {"mix": "rank"}, table, k) for k in range(1, 6)]
    assert by_rank == [[1], [0, 1], [0, 1, 5], [0, 1, 4, 5], [0, 1, 2, 4, 5]]


def test_kept_best_first_and_recorded(make_pool: Any, make_context: Any) -> None:
    selector = build("influence", {"strategy": "correct", "replicates": 0})
    context = make_context(selector, InfluenceTable=InfluenceScores(pd.DataFrame(BY_HAND), {}))
    assert selector.select(make_pool([1] * 6), 3, context).tolist() == [5, 3, 4]
    assert set(context.columns) == {"s_C", "r_C"}
    assert context.columns["s_C"].tolist() == BY_HAND["s_C"]


def test_ties_drop_the_later_example_first(make_pool: Any, make_context: Any) -> None:
    table = {"s_C": [1.0] * 4, "r_C": [0.5] * 4}
    assert dropped(make_pool, make_context, {"strategy": "correct"}, table, 1) == [3]


@pytest.mark.parametrize(
    ("strategy", "columns", "side"),
    [("incorrect", "C", "I is empty"), ("combined", "C", "I is empty"), ("combined", "I", "C is")],
)
def test_an_empty_side_stops(
    make_pool: Any, make_context: Any, strategy: str, columns: str, side: str
) -> None:
    table = {f"s_{columns}": [1.0, 2.0], f"r_{columns}": [1.0, 2.0]}
    with pytest.raises(ValueError, match=side):
        dropped(make_pool, make_context, {"strategy": strategy}, table, 1)


def test_options_are_part_of_the_request() -> None:
    params = {"strategy": "correct", "curvature": "projected", "damping": 0.5, "layers": "mlp"}
    more = {"whose": "contrast", "decodes": "sum", "scoring": "backward", "replicates": 0}
    selector = build("influence", {**params, **more, "max_queries": 3, "query_seed": 4})
    assert selector.requests() == (
        InfluenceTable(
            CurvatureOptions("projected", damping=0.5, layers="mlp"),
            whose="contrast",
            decodes="sum",
            max_queries=3,
            query_seed=4,
            method="backward",
        ),
    )
    assert build("influence", {}).requests() == (InfluenceTable(),)


def test_stability_is_recorded_for_every_size(make_pool: Any, make_context: Any) -> None:
    """Two queries of C, four examples; see test_influence_stability.py for the numbers."""
    columns = np.array([[0.0, 3.0], [1.0, 2.0], [2.0, 1.0], [3.0, 0.0]], np.float32)
    ranks = (np.argsort(np.argsort(columns, axis=0), axis=0) + 1) / 4
    table = pd.DataFrame({"s_C": columns.mean(axis=1), "r_C": ranks.mean(axis=1)})
    table.attrs = {"n_C": 5, "n_I": 0}
    scores = InfluenceScores(table, {"C": columns, "I": np.zeros((4, 1), np.float32)})
    selector = build("influence", {"strategy": "correct", "replicates": 200})
    context = make_context(selector, InfluenceTable=scores)
    selector.select(make_pool([1] * 4), 2, context)
    assert context.facts == {
        "n_C": 5,
        "n_I": 0,
        "stability": {"replicates": 200, "queries": {"C": 2}},
    }
    stability = context.tables["stability"]
    assert stability["kept"].tolist() == [1, 2, 3, 4]
    # With both queries all tie and the earlier examples stay. The first query alone, a quarter of
    # the draws, keeps the last two; the second alone keeps the first two.
    assert stability["jaccard"][1] == pytest.approx(0.75, abs=0.1)
    assert (stability["low"][1], stability["high"][1], stability["jaccard"][3]) == (0.0, 1.0, 1.0)
    assert context.columns["place_low"].tolist() == [0.0, 1.0, 1.0, 0.0]
    again = make_context(selector, InfluenceTable=scores)
    selector.select(make_pool([1] * 4), 2, again)
    np.testing.assert_array_equal(again.tables["stability"]["jaccard"], stability["jaccard"])


def test_refuses() -> None:
    with pytest.raises(ValueError, match="damping is -1"):
        build("influence", {"damping": -1})
    with pytest.raises(ValueError, match="replicates is -1"):
        build("influence", {"replicates": -1})
    with pytest.raises(ValueError, match="completion is 'reference' with whose = 'before'"):
        build("influence", {"completion": "reference", "whose": "before"})

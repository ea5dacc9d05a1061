"""Difficulty: solve rates, bands, columns, answers that cannot be graded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness import Decodes
from harness.selection.plugins import build

DECODES = np.array(
    [[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0]], dtype=bool
)


def decodes(request: Any) -> Any:
    assert request == Decodes(k=4, temperature=0.7)
    return DECODES


def test_hardest_first(make_pool: Any, make_context: Any) -> None:
    selector = build("difficulty", {"k": 4, "temperature": 0.7})
    context = make_context(selector, Decodes=decodes)
    pool = make_pool([1] * 5, answer=["1"] * 5)
    assert selector.score(pool, context).tolist() == [0.0, 1.0, 0.75, 0.25, 0.5]  # type: ignore[attr-defined]
    assert selector.select(pool, 5, context).tolist() == [1, 2, 4, 3, 0]
    assert context.columns["difficulty"].tolist() == [0.0, 1.0, 0.75, 0.25, 0.5]


def test_band_first_then_by_distance(make_pool: Any, make_context: Any) -> None:
    # Inside [0.25, 0.5]: 0.5 then 0.25; outside: 0.75 and 0 are 0.25 away, 1 is 0.5 away.
    selector = build("difficulty", {"k": 4, "temperature": 0.7, "band": [0.25, 0.5]})
    pool = make_pool([1] * 5, answer=["1"] * 5)
    chosen = selector.select(pool, 5, make_context(selector, Decodes=decodes))
    assert chosen.tolist() == [4, 3, 0, 2, 1]


def test_a_band_that_ends_at_a_rounded_rate(make_pool: Any, make_context: Any) -> None:
    """1 - 0.9 is a little less than 0.1 and belongs to the band [0.1, 0.5]."""
    rates = np.array([[True] * 9 + [False], [True] * 10])
    selector = build("difficulty", {"k": 10, "band": [0.1, 0.5]})
    context = make_context(selector, Decodes=rates)
    scores = selector.score(make_pool([1, 1], answer=["1", "1"]), context)  # type: ignore[attr-defined]
    assert scores[0] > 0 > scores[1]


def test_column(make_pool: Any, make_context: Any) -> None:
    selector = build("difficulty", {"column": "steps"})
    assert selector.requests() == ()
    pool = make_pool([1] * 3, steps=[2, 7, 4])
    assert selector.select(pool, 2, make_context(selector)).tolist() == [1, 2]


@pytest.mark.parametrize("value", [None, "3", float("nan")])
def test_column_that_holds_no_numbers(make_pool: Any, make_context: Any, value: Any) -> None:
    selector = build("difficulty", {"column": "steps"})
    with pytest.raises(
        ValueError, match=r"'steps' of example 'e1' is .*; expected a finite number"
    ):
        selector.select(make_pool([1, 1], steps=[1, value]), 1, make_context(selector))


def test_answers_are_needed(make_pool: Any, make_context: Any) -> None:
    selector = build("difficulty", {})
    context = make_context(selector)
    with pytest.raises(ValueError, match="'answer' is empty for 1 of 2 examples, the first 'e1'"):
        selector.select(make_pool([1, 1], answer=["3", None]), 1, context)
    with pytest.raises(ValueError, match="pool column 'answer' does not exist"):
        selector.select(make_pool([1, 1]), 1, context)


@pytest.mark.parametrize("params", [{"k": 0}, {"temperature": 0.0}, {"band": [0.9, 0.1]}])
def test_refuses(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"selector 'difficulty': .*; expected"):
        build("difficulty", params)

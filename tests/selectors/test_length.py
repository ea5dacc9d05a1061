"""Length: by hand."""

from __future__ import annotations

from typing import Any

import pytest

from harness.selection.plugins import build


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("longest", [1, 4, 3, 0, 2]),
        ("shortest", [2, 0, 3, 4, 1]),
        ("middle", [3, 0, 4, 2, 1]),  # median 5 first; then 4 before 7, 2 before 9
    ],
)
def test_orders(make_pool: Any, make_context: Any, order: str, expected: list[int]) -> None:
    pool, selector = make_pool([4, 9, 2, 5, 7]), build("length", {"order": order})
    assert selector.select(pool, 5, make_context(selector)).tolist() == expected


def test_ties_keep_pool_order(make_pool: Any, make_context: Any) -> None:
    pool, selector = make_pool([3, 5, 3, 5]), build("length", {})
    assert selector.select(pool, 3, make_context(selector)).tolist() == [1, 3, 0]


def test_middle_of_an_even_pool(make_pool: Any, make_context: Any) -> None:
    pool, selector = make_pool([40, 10, 30, 20]), build("length", {"order": "middle"})
    assert selector.select(pool, 4, make_context(selector)).tolist() == [3, 2, 1, 0]

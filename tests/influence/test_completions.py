import dataclasses

import numpy as np
import pytest
import torch

from harness.data.pool import IGNORED
from harness.data.queries import Answers, Queries
from harness.influence import (
    Completions,
    CurvatureOptions,
    fit,
    flipped,
    influence_scores,
    per_query_scores,
)

OPTIONS = CurvatureOptions(kind="identity", batch_size=4)
# Query 0 is put right, query 1 spoiled, query 2 stays wrong; three decodes each.
BEFORE = [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
AFTER = [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.fixture
def queries(make_pool):
    """Decode k of query v before fine-tuning is the token 10 + k, k + 1 times; after 20 + k."""

    def answers(right, first):
        tokens = tuple(np.full(k + 1, first + k, np.int32) for k in range(3))
        texts = tuple(("",) * 3 for _ in right)
        return Answers(texts, (tokens,) * 3, np.array(right, dtype=bool))

    return Queries(make_pool(3, 1, "q"), answers(BEFORE, 10), answers(AFTER, 20))


def listed(actual):
    """Token, length and weight of every completion."""
    lines = []
    for labels, weight in zip(actual.pool.labels, actual.weights, strict=True):
        completion = labels[labels != IGNORED]
        lines.append((int(completion[0]), len(completion), pytest.approx(float(weight))))
    return lines


@pytest.mark.parametrize(
    ("side", "whose", "expected"),
    [
        ("C", "after", [(20, 1, 1 / 2), (21, 2, 1 / 2)]),
        ("C", "before", [(10, 1, -1 / 2), (11, 2, -1 / 2)]),
        ("C", "contrast", [(20, 1, 1 / 2), (21, 2, 1 / 2), (10, 1, -1 / 2), (11, 2, -1 / 2)]),
        ("I", "after", [(20, 1, 1 / 3), (21, 2, 1 / 3), (22, 3, 1 / 3)]),
        ("I", "before", [(10, 1, -1 / 2), (11, 2, -1 / 2)]),
    ],
)
def test_whose_completions_by_hand(queries, side, whose, expected):
    actual = flipped(queries, side, whose=whose)
    assert listed(actual) == expected
    query = {"C": 0, "I": 1}[side]
    assert actual.ids == (f"q{query}",)
    prompt = queries.pool.prompt_ids(query).tolist()
    assert all(ids[: len(prompt)].tolist() == prompt for ids in actual.pool.input_ids)
    summed = flipped(queries, side, whose=whose, decodes="sum")
    assert summed.weights.tolist() == [1.0 if first >= 20 else -1.0 for first, *_ in expected]


def test_reference_answers_stand_in_for_right_ones(queries):
    actual = flipped(queries, "C", completion="reference")
    labels = queries.pool.labels[0]
    assert actual.pool.labels[0].tolist() == labels.tolist()
    assert actual.pool.ids == ("q0",)
    contrast = flipped(queries, "C", completion="reference", whose="contrast")
    assert contrast.weights.tolist() == [1.0, -0.5, -0.5]
    # I has no reference answer: its wrong ones stay the model's own.
    assert listed(flipped(queries, "I", completion="reference")) == listed(flipped(queries, "I"))


def test_a_query_with_nothing_but_empty_completions_drops_out(queries):
    tokens = tuple(np.zeros(0, np.int32) for _ in range(3))
    after = dataclasses.replace(queries.after, tokens=(tokens, *queries.after.tokens[1:]))
    assert len(flipped(dataclasses.replace(queries, after=after), "C")) == 0
    assert len(flipped(dataclasses.replace(queries, after=after), "C", whose="contrast")) == 0
    assert len(flipped(dataclasses.replace(queries, after=after), "C", whose="before")) == 1


def test_no_flip_no_completion(queries):
    still = dataclasses.replace(queries, after=queries.before)
    assert len(flipped(still, "C")) == len(flipped(still, "I")) == 0


@pytest.fixture
def mixed(make_pool):
    """Three queries with 2, 1 and 3 completions, interleaved."""
    owner = np.array([2, 0, 1, 2, 0, 2])
    weights = np.array([0.5, 0.5, 1.0, -0.25, 0.5, 1.0])
    return Completions(make_pool(6, 3, "c"), ("a", "b", "c"), owner, weights)


def test_gradients_are_weighted_sums_by_autograd(make_model, autograd, mixed):
    model = make_model(exact=True)
    actual = mixed.gradients(model, OPTIONS)
    expected = {name: torch.zeros_like(gradient) for name, gradient in actual.items()}
    for j, (owner, weight) in enumerate(zip(mixed.owner, mixed.weights, strict=True)):
        for name, gradient in autograd(model, mixed.pool, j, list(actual)).items():
            expected[name][owner] -= weight * gradient
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-9, atol=1e-12)
        for aggregate, total in (("mean", expected[name].mean(0)), ("sum", expected[name].sum(0))):
            whole = mixed.direction(model, OPTIONS, aggregate)[name]
            torch.testing.assert_close(whole, total, rtol=1e-9, atol=1e-12)
    part = mixed.take([2, 0]).gradients(model, OPTIONS)
    for name in actual:
        torch.testing.assert_close(part[name], actual[name][[2, 0]], rtol=1e-9, atol=1e-12)


def test_scores_are_linear_in_completions(make_model, make_pool, mixed):
    """The same number from single completions, weighted and averaged afterwards."""
    model, pool = make_model(), make_pool(15)
    curvature = fit(model, pool, CurvatureOptions(batch_size=8))
    single = per_query_scores(model, curvature, pool, mixed.pool) * mixed.weights
    each = np.stack([single[:, mixed.owner == v].sum(axis=1) for v in range(3)], axis=1)
    columns = {}
    table = influence_scores(
        model, pool, mixed, None, curvature=curvature, columns=columns, max_queries=None
    )
    scale = np.abs(each).max()
    np.testing.assert_allclose(columns["C"], each, rtol=1e-3, atol=1e-5 * scale)
    np.testing.assert_allclose(table["s_C"], each.mean(axis=1), rtol=1e-3, atol=1e-4 * scale)
    assert columns["C"].dtype == np.float32
    assert table.attrs["rank_queries"] == {"C": ["a", "b", "c"]}


def test_repeated_completions_count_as_often_as_they_occur(make_model, make_pool):
    pool = make_pool(2, 3, "c").take([0, 1])
    twice = dataclasses.replace(
        pool,
        ids=("x", "y", "z"),
        input_ids=(pool.input_ids[0], pool.input_ids[0], pool.input_ids[1]),
        labels=(pool.labels[0], pool.labels[0], pool.labels[1]),
        truncated=(),
    )
    owner = np.zeros(3, np.int64)
    model = make_model(dtype=torch.float64)
    by_count = Completions(twice, ("v",), owner, np.full(3, 1 / 3)).gradients(model, OPTIONS)
    weights = np.array([2 / 3, 1 / 3])
    by_weight = Completions(pool, ("v",), owner[:2], weights).gradients(model, OPTIONS)
    for name in by_count:
        torch.testing.assert_close(by_count[name], by_weight[name], rtol=1e-9, atol=1e-12)


def test_refuses(make_pool, queries):
    pool = make_pool(2)
    with pytest.raises(ValueError, match="2 completions with 1 owners"):
        Completions(pool, ("a",), np.zeros(1, np.int64), np.ones(2))
    with pytest.raises(ValueError, match="expected every query at least once"):
        Completions(pool, ("a", "b"), np.zeros(2, np.int64), np.ones(2))
    for wrong in ({"whose": "mine"}, {"completion": "any"}, {"decodes": "max"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; expected one of"):
            flipped(queries, "C", **wrong)
    with pytest.raises(ValueError, match="completion is 'reference' with whose = 'before'"):
        flipped(queries, "C", completion="reference", whose="before")

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from harness.data.pool import Pool
from harness.influence import (
    CurvatureOptions,
    directional_scores,
    fit,
    influence_scores,
    per_query_scores,
    query_gradients,
)
from harness.influence.query_influence import rank_scores

OPTIONS = CurvatureOptions(batch_size=16)


def flipped(directions):
    return {name: -direction for name, direction in directions.items()}


def test_a_planted_copy_of_a_query_comes_out_on_top(make_model, make_pool):
    """Check (iii): queries that the model gets wrong, each planted into a pool of 300."""
    model, pool, queries = make_model().eval(), make_pool(300), make_pool(5, 1, "q")
    for tokens, labels in zip(queries.input_ids, queries.labels, strict=True):
        answers = model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
        carrying = np.flatnonzero(labels[1:] >= 0)
        assert (answers.argmax(-1).numpy()[carrying] != labels[1:][carrying]).any()
    where = [3, 77, 150, 222, 299]
    tokens, labels = list(pool.input_ids), list(pool.labels)
    for v, position in enumerate(where):
        tokens[position], labels[position] = queries.input_ids[v], queries.labels[v]
    planted = Pool(pool.ids, tuple(tokens), tuple(labels))
    scores = per_query_scores(model, fit(model, planted, OPTIONS), planted, queries)
    for v, position in enumerate(where):
        assert (scores[:, v] >= scores[position, v]).sum() <= 3


@pytest.mark.parametrize("kind", ["identity", "ekfac"])
def test_flipping_the_query_loss_flips_every_score(make_model, make_pool, kind):
    """Check (iv)."""
    model, pool, queries = make_model(), make_pool(20), make_pool(3, 1, "q")
    curvature = fit(model, pool, dataclasses.replace(OPTIONS, kind=kind))
    gradients = query_gradients(model, queries, OPTIONS)
    scores = directional_scores(model, pool, curvature.apply(gradients), OPTIONS, method="forward")
    other = directional_scores(
        model, pool, curvature.apply(flipped(gradients)), OPTIONS, method="forward"
    )
    np.testing.assert_allclose(other, -scores, rtol=1e-5, atol=1e-6 * np.abs(scores).max())
    assert np.abs(scores).min() > 0


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_three_ways_to_a_score_agree(make_model, make_pool, loss):
    model, pool = make_model(), make_pool(40)
    sides = make_pool(6, 1, "c"), make_pool(4, 2, "i")
    options = dataclasses.replace(OPTIONS, loss=loss)
    curvature = fit(model, pool, options)
    forward, backward, ghost = (
        influence_scores(model, pool, *sides, curvature=curvature, method=method)
        for method in ("forward", "backward", "ghost")
    )
    for name, side in zip("CI", sides, strict=True):
        single = per_query_scores(model, curvature, pool, side)
        mean = single.mean(axis=1)
        scale = np.abs(mean).max()
        np.testing.assert_allclose(forward[f"s_{name}"], mean, rtol=1e-3, atol=1e-4 * scale)
        np.testing.assert_allclose(backward[f"s_{name}"], mean, rtol=1e-3, atol=1e-4 * scale)
        np.testing.assert_allclose(ghost[f"s_{name}"], mean, rtol=1e-3, atol=1e-4 * scale)
        ranks = np.mean([rankdata(column) / 40 for column in single.T], axis=0)
        np.testing.assert_allclose(forward[f"r_{name}"], ranks, rtol=1e-12)
        assert backward[f"r_{name}"].tolist() == forward[f"r_{name}"].tolist()


def test_table(make_model, make_pool):
    model, pool = make_model(), make_pool(12)
    correct, incorrect = make_pool(7, 1, "c"), make_pool(2, 2, "i")
    seen = []

    def progress(iterable, description, total):
        seen.append((description, total))
        return iterable

    table = influence_scores(
        model, pool, correct, incorrect, OPTIONS, max_queries=3, query_seed=5, progress=progress
    )
    assert list(table.columns) == ["id", "s_C", "r_C", "s_I", "r_I"]
    assert table["id"].tolist() == list(pool.ids)
    assert table[["r_C", "r_I"]].to_numpy().min() >= 1 / 12
    assert table.attrs["n_C"] == 7
    assert table.attrs["n_I"] == 2
    drawn = table.attrs["rank_queries"]
    assert len(drawn["C"]) == 3
    assert set(drawn["C"]) < set(correct.ids)
    assert drawn["I"] == ["i0", "i1"]
    assert json.loads(json.dumps(table.attrs))["options"]["kind"] == "ekfac"
    assert ("covariances", 1) in seen
    again = influence_scores(
        model, pool, correct, incorrect, OPTIONS, max_queries=3, query_seed=5, aggregate="sum"
    )
    assert again.attrs["rank_queries"] == drawn
    np.testing.assert_allclose(again["s_C"], 7 * table["s_C"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(again["s_I"], 2 * table["s_I"], rtol=1e-3, atol=1e-3)
    assert again["r_C"].tolist() == table["r_C"].tolist()


def test_one_side_only(make_model, make_pool):
    model, pool, queries = make_model(), make_pool(8), make_pool(2, 1, "c")
    table = influence_scores(model, pool, queries, None, OPTIONS)
    assert list(table.columns) == ["id", "s_C", "r_C"]
    assert "n_I" not in table.attrs
    both = influence_scores(model, pool, queries, queries, OPTIONS)
    np.testing.assert_allclose(both["s_I"], table["s_C"], rtol=1e-4, atol=1e-4)


def test_bad_requests_are_explained(make_model, make_pool):
    model, pool, empty = make_model(), make_pool(4), Pool((), (), ())
    with pytest.raises(ValueError, match="query set I is empty: no query was right before and"):
        influence_scores(model, pool, pool, empty, OPTIONS)
    with pytest.raises(ValueError, match="query set C is empty: no query was wrong before and"):
        influence_scores(model, pool, empty, None, OPTIONS)
    with pytest.raises(ValueError, match="neither C nor I"):
        influence_scores(model, pool, None, None, OPTIONS)
    for wrong in ({"aggregate": "max"}, {"max_queries": 0}, {"method": "magic"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*expected"):
            influence_scores(model, pool, pool, None, OPTIONS, **wrong)
    curvature = fit(model, pool, dataclasses.replace(OPTIONS, kind="identity"))
    with pytest.raises(ValueError, match="options differ"):
        influence_scores(model, pool, pool, None, OPTIONS, curvature=curvature)
    gradients = query_gradients(model, pool, OPTIONS)
    with pytest.raises(ValueError, match="method is 'backward'"):
        directional_scores(model, pool, gradients, OPTIONS, method="backward")
    single = {name: gradient[0] for name, gradient in gradients.items()}
    with pytest.raises(ValueError, match=r"expected \[directions, out, in\]"):
        directional_scores(model, pool, single, OPTIONS, method="forward")


def test_ranks_by_hand():
    """Two queries, four examples: ties share, the highest influence has the highest rank."""
    influence = np.array([[1.0, 5.0], [2.0, 5.0], [2.0, -1.0], [9.0, 0.0]])
    # ranks: query 1: 1, 2.5, 2.5, 4; query 2: 3.5, 3.5, 1, 2
    expected = [4.5 / 8, 6.0 / 8, 3.5 / 8, 6.0 / 8]
    assert rank_scores(influence).tolist() == expected

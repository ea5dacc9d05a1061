"""Single precision and bfloat16 against double, on the same weights (those that bfloat16 holds)."""

import dataclasses

import pytest
import torch
from scipy.stats import spearmanr

from harness.influence import CurvatureOptions, directional_scores, fit, query_gradients
from harness.influence.curvature.ekfac import factors
from harness.influence.layers import tracked_layers

OPTIONS = CurvatureOptions(fisher="empirical", basis_sample=None)
FLOORS = {torch.float32: 0.9999, torch.bfloat16: 0.999}


@pytest.fixture
def rounded(make_model):
    """Models of one and the same weights in any precision."""
    return lambda dtype: make_model(dtype=torch.bfloat16).to(dtype)


def exact(autograd, model, pool, directions):
    """-<grad L_d, u>, each gradient by autograd in double precision: [n]."""
    names = list(directions)
    rows = (autograd(model, pool, d, names) for d in range(len(pool)))
    return [-sum(float((row[name] * directions[name]).sum()) for name in names) for row in rows]


@pytest.mark.parametrize("dtype", list(FLOORS), ids=str)
def test_fit_solve_and_score(rounded, make_pool, autograd, dtype):
    """Everything in `dtype` against everything in double; the labels of the data are the same."""
    pool, queries = make_pool(200), make_pool(8, 1, "q")
    double = rounded(torch.float64)
    gradients = query_gradients(double, queries, OPTIONS, aggregate="mean")
    expected = exact(autograd, double, pool, fit(double, pool, OPTIONS).apply(gradients))
    model = rounded(dtype)
    curvature = fit(model, pool, OPTIONS)
    assert all(b.eigenvalues.dtype == torch.float32 for b in curvature.parts.values())
    mean = query_gradients(model, queries, OPTIONS, aggregate="mean")
    directions = curvature.apply({name: part[None] for name, part in mean.items()})
    for method in ("forward", "ghost"):
        scores = directional_scores(model, pool, directions, OPTIONS, method=method)
        assert spearmanr(scores[:, 0], expected).statistic >= FLOORS[dtype]


@pytest.mark.parametrize("dtype", list(FLOORS), ids=str)
def test_true_fisher(rounded, make_pool, autograd, dtype):
    """bfloat16 draws some other labels, another sample of the same Fisher matrix: the curvature
    fitted in `dtype` is therefore solved with in double for the exact scores."""
    pool, queries = make_pool(60), make_pool(8, 1, "q")
    options = dataclasses.replace(OPTIONS, fisher="true")
    model, double = rounded(dtype), rounded(torch.float64)
    curvature = fit(model, pool, options)
    gradients = query_gradients(double, queries, options, aggregate="mean")
    expected = exact(autograd, double, pool, curvature.apply(gradients))
    mean = query_gradients(model, queries, options, aggregate="mean")
    directions = curvature.apply({name: part[None] for name, part in mean.items()})
    scores = directional_scores(model, pool, directions, options, method="forward")[:, 0]
    assert spearmanr(scores, expected).statistic >= FLOORS[dtype]


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_factors_in_single_precision(rounded, make_pool, fisher):
    """To 1e-5 of those in double, which test_ekfac.py forms independently."""
    pool, options = make_pool(40), dataclasses.replace(OPTIONS, fisher=fisher)
    single, double = (
        factors(model, tracked_layers(model), pool, options)
        for model in (rounded(torch.float32), rounded(torch.float64))
    )
    for name, factor in double.items():
        for side in ("inputs", "outputs"):
            expected, actual = getattr(factor, side), getattr(single[name], side)
            assert float((actual - expected).norm() / expected.norm()) < 1e-5

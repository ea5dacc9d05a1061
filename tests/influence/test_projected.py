import dataclasses

import pytest
import torch

from harness import influence
from harness.influence import Curvature, CurvatureOptions, fit, query_gradients
from harness.influence.curvature.projected import projections
from harness.influence.layers import tracked_layers

OPTIONS = CurvatureOptions(kind="projected", rank=5, batch_size=4, fisher="empirical")


@pytest.mark.parametrize("options", [{}, {"loss": "sum"}, {"head": True}], ids=str)
def test_equals_dense_linear_algebra(make_model, make_pool, autograd, options):
    """Oracle: projections as one Kronecker product, gradients by autograd, a dense solve."""
    model, pool, queries = make_model(dtype=torch.float64), make_pool(12), make_pool(2, 1, "q")
    options = dataclasses.replace(OPTIONS, **options)
    curvature = fit(model, pool, options)
    layers = tracked_layers(model, options.layers, options.head)
    names = [layer.name for layer in layers]
    losses = [autograd(model, pool, d, names, options.loss) for d in range(12)]
    gradients = query_gradients(model, queries, options)
    actual = curvature.apply(gradients)
    for layer in layers:
        inputs, outputs = projections(layer, options)
        kron = torch.kron(outputs, inputs)  # vec by rows: (P_S x P_A) vec(G) = vec(P_S G P_A^T)
        assert kron.shape[0] == 25
        torch.testing.assert_close(kron @ kron.T, torch.eye(25, dtype=torch.float64))
        small = torch.stack([row[layer.name].flatten() for row in losses]) @ kron.T
        fisher = small.T @ small / 12
        damped = fisher + 0.1 * torch.linalg.eigvalsh(fisher).mean() * torch.eye(25)
        right = gradients[layer.name].flatten(1) @ kron.T
        expected = torch.linalg.solve(damped, right.T).T @ kron
        error = (actual[layer.name].flatten(1) - expected).norm() / expected.norm()
        assert error < 1e-6  # norms of the model are in single precision


def test_full_rank_is_the_exact_block(make_softmax, make_pairs, autograd):
    model = make_softmax(bias=[0.3, 0.0, -0.2, 0.9])
    pool = make_pairs([(x, y) for x in range(4) for y in (0, 2)] + [(1, 3)])
    options = dataclasses.replace(OPTIONS, layers="all", rank=99)
    curvature = fit(model, pool, options)
    gradients = query_gradients(model, make_pairs([(0, 1), (2, 3)], "q"), options)
    rows = torch.stack(
        [autograd(model, pool, d, ["linear"])["linear"].flatten() for d in range(len(pool))]
    )
    fisher = rows.T @ rows / len(pool)
    damped = fisher + 0.1 * fisher.trace() / 16 * torch.eye(16, dtype=torch.float64)
    expected = torch.linalg.solve(damped, gradients["linear"].flatten(1).T).T
    actual = curvature.apply(gradients)["linear"].flatten(1)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_true_fisher_groups_and_seeds(make_model, make_pool):
    model, pool = make_model(), make_pool(20)
    options = dataclasses.replace(OPTIONS, fisher="true")
    one, again = fit(model, pool, options), fit(model, pool, options)
    grouped = fit(model, pool, dataclasses.replace(options, memory_gib=1e-4))
    other = fit(model, pool, dataclasses.replace(options, seed=1))
    data = fit(model, pool, OPTIONS)
    for name, projection in one.parts.items():
        assert torch.equal(projection.fisher, again.parts[name].fisher)
        torch.testing.assert_close(projection.fisher, grouped.parts[name].fisher)
        assert torch.equal(projection.inputs, data.parts[name].inputs)
        assert not torch.allclose(projection.fisher, data.parts[name].fisher)
        assert not torch.allclose(projection.inputs, other.parts[name].inputs)
    first, second = list(one.parts.values())[:2]
    assert first.inputs.shape == second.inputs.shape
    assert not torch.allclose(first.inputs, second.inputs)


def test_stored_and_scored(make_model, make_pool, tmp_path):
    model, pool, queries = make_model(), make_pool(20), make_pool(3, 1, "q")
    curvature = fit(model, pool, OPTIONS)
    curvature.save(tmp_path)
    loaded = Curvature.load(tmp_path)
    assert loaded.options == curvature.options
    gradients = query_gradients(model, queries, OPTIONS)
    for name, direction in curvature.apply(gradients).items():
        assert torch.equal(loaded.apply(gradients)[name], direction)
    table = influence.influence_scores(model, pool, queries, None, curvature=loaded)
    assert table["s_C"].abs().min() > 0
    assert (influence.self_influence(model, loaded, pool) > 0).all()


def test_singular_matrices_are_refused(make_softmax, make_pairs):
    model, pool = make_softmax(), make_pairs([(0, 1), (1, 2)])
    options = dataclasses.replace(OPTIONS, layers="all", damping=0.0)
    with pytest.raises(ValueError, match="'linear': the projected Fisher matrix is singular"):
        fit(model, pool, options).apply({"linear": torch.ones(4, 4, dtype=torch.float64)})

import dataclasses
import json

import numpy as np
import pytest
import torch

from harness.data.pool import IGNORED, Pool
from harness.influence import (
    Curvature,
    CurvatureOptions,
    fit,
    influence_scores,
    per_query_scores,
    query_gradients,
)
from harness.influence.batches import Batch, batches, sampled_labels
from harness.influence.curvature.ekfac import decomposed, factors
from harness.influence.layers import tracked_layers

EMPIRICAL = CurvatureOptions(fisher="empirical", layers="all", batch_size=7, basis_sample=None)


def dense_hessian(model, pool):
    """Hessian of the mean loss over [weight, bias], by autograd twice: for a softmax on linear
    logits it is the Gauss-Newton matrix, whatever the labels."""
    tokens = torch.tensor([int(row[0]) for row in pool.input_ids])
    labels = torch.tensor([int(row[1]) for row in pool.labels])
    features = model.features(tokens).detach()
    bound = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
    weights = torch.cat([model.linear.weight, model.linear.bias[:, None]], dim=1).detach()

    def loss(flat):
        return torch.nn.functional.cross_entropy(bound @ flat.view_as(weights).T, labels)

    return torch.autograd.functional.hessian(loss, weights.flatten())


@pytest.mark.parametrize("bias", [None, np.log([0.1, 0.2, 0.3, 0.4])])
def test_exact_damped_inverse_gauss_newton(make_softmax, make_pairs, autograd, bias):
    """Check (i). One p for all inputs and every label as often as p says: then the curvature is
    one Kronecker product, the empirical Fisher is the true one, and EK-FAC is exact."""
    model = make_softmax(bias=bias)
    often = [1, 1, 1, 1] if bias is None else [1, 2, 3, 4]
    pool = make_pairs([(x, y) for x in range(4) for y in range(4) for _ in range(often[y])])
    queries = make_pairs([(0, 1), (2, 3), (3, 0)], "q")
    hessian = dense_hessian(model, pool)
    size = len(hessian)
    damping = 0.1 * hessian.trace() / size
    wanted = torch.stack(
        [-autograd(model, queries, v, ["linear"])["linear"].flatten() for v in range(3)]
    )
    exact = torch.linalg.solve(hessian + damping * torch.eye(size, dtype=hessian.dtype), wanted.T)
    curvature = fit(model, pool, EMPIRICAL)
    actual = curvature.apply(query_gradients(model, queries, EMPIRICAL))["linear"]
    torch.testing.assert_close(actual.flatten(1), exact.T, rtol=1e-8, atol=1e-10)

    losses = torch.stack(
        [autograd(model, pool, d, ["linear"])["linear"].flatten() for d in range(len(pool))]
    )
    influence = (-losses @ exact).numpy()
    table = influence_scores(model, pool, queries, None, curvature=curvature)
    np.testing.assert_allclose(table["s_C"], influence.mean(axis=1), rtol=1e-4)
    single = fit(model.float(), pool, EMPIRICAL)  # tolerance of the check, in single precision
    scores = per_query_scores(model, single, pool, queries)
    np.testing.assert_allclose(scores, influence, rtol=1e-4, atol=1e-4)


def test_true_fisher_converges_to_its_expectation(make_softmax, make_pairs):
    probability = np.array([0.1, 0.2, 0.3, 0.4])
    model = make_softmax(bias=np.log(probability))
    pool = make_pairs([(i % 4, 0) for i in range(4000)])  # the data's labels must not matter
    options = dataclasses.replace(EMPIRICAL, fisher="true", batch_size=1000)
    actual = factors(model, tracked_layers(model, "all"), pool, options)["linear"]
    inputs, outputs = actual.inputs, actual.outputs
    expected = np.diag(probability) - np.outer(probability, probability)
    features = np.c_[model.features.weight.detach().numpy(), np.ones(4)]
    np.testing.assert_allclose(inputs, features.T @ features / 4, rtol=1e-12)
    np.testing.assert_allclose(outputs, expected, atol=4 * 0.5 / np.sqrt(4000))
    curvature = fit(model, pool, options)
    gradient = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hessian = dense_hessian(model, pool)
    damped = hessian + 0.1 * hessian.trace() / 16 * torch.eye(16, dtype=torch.float64)
    exact = torch.linalg.solve(damped, gradient.flatten())
    actual = curvature.apply({"linear": gradient})["linear"].flatten()
    assert float((actual - exact).norm() / exact.norm()) < 0.1


def test_sampled_labels_follow_the_model_and_their_example(make_pool):
    pool = make_pool(40)
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(24, generator=generator)

    def draw(pool, size, seed):
        actual = {}
        for batch in batches(pool, size, torch.device("cpu")):
            logits = table.expand(*batch.input_ids.shape, 24)
            labels = sampled_labels(logits, batch, seed)
            assert torch.equal(labels != IGNORED, batch.labels != IGNORED)
            actual |= {
                name: row[row >= 0].tolist() for name, row in zip(batch.ids, labels, strict=True)
            }
        return actual

    drawn = draw(pool, 7, seed=0)
    assert drawn == draw(pool, 40, seed=0)
    assert drawn == draw(pool.take(range(39, -1, -1)), 3, seed=0)
    assert drawn != draw(pool, 7, seed=1)
    # Certain predictions are drawn for certain.
    (batch,) = batches(pool.take([0]), 1, torch.device("cpu"))
    logits = torch.full((*batch.input_ids.shape, 24), -1e4)
    logits[..., 17] = 1e4
    assert isinstance(batch, Batch)
    assert set(sampled_labels(logits, batch, 0).flatten().tolist()) == {IGNORED, 17}


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_covariances_by_hand(make_model, make_pool, loss):
    """Inputs recorded by a hook, output gradients by perturbing the outputs; one example at a time,
    loss-carrying positions only."""
    model, pool = make_model(dtype=torch.float64).eval(), make_pool(6)
    options = dataclasses.replace(EMPIRICAL, layers="attention+mlp", head=True, loss=loss)
    actual = factors(model, tracked_layers(model, head=True), pool, options)
    for name in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj", "lm_head"):
        module = model.get_submodule(name)
        inputs, deltas = [], []
        for row, labels in zip(pool.input_ids, pool.labels, strict=True):
            tokens = torch.from_numpy(row.astype(np.int64))[None]
            offset = torch.zeros(1, len(row), module.out_features, dtype=torch.float64)
            offset.requires_grad_(True)
            seen = []

            def shift(_, args, output, offset=offset, seen=seen):
                seen.append(args[0].detach()[0])
                return output + offset

            handle = module.register_forward_hook(shift)
            logits = model(input_ids=tokens).logits[0]
            handle.remove()
            probabilities = logits.log_softmax(-1)
            carrying = [t for t in range(len(row) - 1) if labels[t + 1] != IGNORED]
            value = -sum(probabilities[t, int(row[t + 1])] for t in carrying)
            value = value / len(carrying) if loss == "mean" else value
            value.backward()
            model.zero_grad()
            inputs.append(seen[0][carrying])
            deltas.append(offset.grad[0, carrying])
        a, s = torch.cat(inputs), torch.cat(deltas)
        if module.bias is not None:
            a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], dim=1)
        torch.testing.assert_close(actual[name].inputs, a.T @ a / len(a), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(actual[name].outputs, s.T @ s / len(s), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", [False, True])
def test_eigenvalues_are_mean_squares_of_rotated_gradients(make_model, make_pool, autograd, head):
    model, pool = make_model(dtype=torch.float64), make_pool(8)
    options = dataclasses.replace(EMPIRICAL, layers="attention+mlp", head=head)
    curvature = fit(model, pool, options)
    names = [layer.name for layer in tracked_layers(model, head=head)]
    gradients = [autograd(model, pool, position, names) for position in range(len(pool))]
    for name in names:
        basis = curvature.parts[name]
        squares = [
            (basis.outputs.T @ gradient[name] @ basis.inputs).square() for gradient in gradients
        ]
        expected = torch.stack(squares).mean(dim=0)
        torch.testing.assert_close(basis.eigenvalues, expected, rtol=1e-8, atol=1e-12)
        identity = torch.eye(len(basis.inputs), dtype=torch.float64)
        torch.testing.assert_close(basis.inputs.T @ basis.inputs, identity)


def test_batch_size_and_pool_order_change_rounding_only(make_model, make_pool):
    model, pool, queries = make_model(), make_pool(60), make_pool(4, 1, "q")
    scores = []
    for size in (1, 7, 60):
        curvature = fit(model, pool, CurvatureOptions(batch_size=size))
        scores.append(per_query_scores(model, curvature, pool, queries))
    order = np.random.default_rng(0).permutation(60)
    curvature = fit(model, pool.take(order), CurvatureOptions(batch_size=7))
    scores.append(per_query_scores(model, curvature, pool, queries))
    scale = np.abs(scores[0]).max()
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], rtol=1e-3, atol=1e-3 * scale)


def test_another_seed_draws_other_labels(make_model, make_pool):
    model, pool = make_model(), make_pool(10)
    one, two = (fit(model, pool, CurvatureOptions(seed=seed)) for seed in (0, 1))
    name = "model.layers.0.mlp.up_proj"
    assert not torch.allclose(one.parts[name].eigenvalues, two.parts[name].eigenvalues)


@pytest.mark.parametrize("kind", ["identity", "ekfac"])
def test_saved_curvature_is_the_same(make_model, make_pool, tmp_path, kind):
    model, pool, queries = make_model(), make_pool(10), make_pool(3, 1, "q")
    curvature = fit(model, pool, CurvatureOptions(kind=kind, damping=0.3, seed=4))
    curvature.save(tmp_path)
    loaded = Curvature.load(tmp_path)
    assert loaded.options == curvature.options
    assert dict(loaded.shapes) == dict(curvature.shapes)
    assert loaded.examples == 10
    gradients = query_gradients(model, queries, curvature.options)
    for name, direction in curvature.apply(gradients).items():
        assert torch.equal(loaded.apply(gradients)[name], direction)
    assert all(path.suffix in (".json", ".safetensors") for path in tmp_path.iterdir())
    head = json.loads((tmp_path / "curvature.json").read_text())
    (tmp_path / "curvature.json").write_text(json.dumps(head | {"format": 99}))
    with pytest.raises(ValueError, match="format is 99; expected 1"):
        Curvature.load(tmp_path)


def test_apply_checks_names_shapes_and_damping(make_softmax, make_pairs):
    model = make_softmax()
    pool = make_pairs([(0, 1), (1, 2)])
    curvature = fit(model, pool, EMPIRICAL)
    with pytest.raises(ValueError, match="differ in"):
        curvature.apply({"other": torch.zeros(4, 4)})
    with pytest.raises(ValueError, match=r"'linear' has shape \(4, 3\); expected"):
        curvature.apply({"linear": torch.zeros(4, 3)})
    undamped = fit(model, pool, dataclasses.replace(EMPIRICAL, damping=0.0))
    with pytest.raises(ValueError, match="'linear': eigenvalues of 0"):
        undamped.apply({"linear": torch.ones(4, 4, dtype=torch.float64)})
    with pytest.raises(ValueError, match="pool is empty"):
        fit(model, Pool((), (), ()), EMPIRICAL)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-40])
def test_eigenvectors_diagonalise_a_covariance_in_any_precision(dtype, scale):
    """Also where single precision could not hold it: covariances of gradients are small."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    matrix = torch.from_numpy(scale * basis * np.geomspace(1e-3, 1, 12) @ basis.T)
    actual = decomposed([(matrix, dtype), (matrix, dtype)])
    (vectors,) = actual.values()
    assert vectors.dtype == dtype
    # Ascending eigenvalues with one vector each: known up to its sign.
    cosines = (torch.from_numpy(basis).T @ vectors.double()).abs()
    assert float((cosines - torch.eye(12)).abs().max()) < 2 * torch.finfo(dtype).eps + 1e-5


def test_eigenvectors_of_nothing_are_a_basis():
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    (vectors,) = decomposed([(nothing, torch.bfloat16)]).values()
    assert torch.equal(vectors.float() @ vectors.float().T, torch.eye(3))

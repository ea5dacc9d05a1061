"""Oracle: the Fisher matrix as B^T B, rows of B by autograd, one example at a time."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from harness import influence
from harness.data.pool import IGNORED
from harness.influence import Curvature, CurvatureOptions, fit, query_gradients
from harness.influence.batches import batches, device_of, draw_seed, sampled_labels
from harness.influence.curvature.conjugate_gradients import conjugate_gradients, fisher_products
from harness.influence.curvature.ekfac import EKFAC
from harness.influence.layers import tracked_layers

OPTIONS = CurvatureOptions(kind="ekfac+cg", batch_size=4, basis_sample=None, cg_draws=None)


@pytest.fixture
def all_double(monkeypatch):
    """Norms and attention compute in single precision whatever the weights are: not here."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    plain = torch.nn.functional.softmax
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda inputs, dim=None, dtype=None: plain(inputs, dim=dim)
    )

    def norm(self, states):
        scale = (states.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return self.weight * states * scale

    monkeypatch.setattr(Qwen2RMSNorm, "forward", norm)


def distance(actual, expected):
    """Largest relative error of a column."""
    return float(((actual - expected).norm(dim=1) / expected.norm(dim=1)).max())


def rows_of(model, pool, options):
    """B [rows, all weights]: B^T B is the mean over examples of the loss's Fisher matrix."""
    layers = tracked_layers(model, options.layers, options.head)
    actual = []
    for tokens, labels in zip(pool.input_ids, pool.labels, strict=True):
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        carrying = [t for t in range(len(tokens) - 1) if labels[t + 1] != IGNORED]
        weight = 1 / len(carrying) if options.loss == "mean" else 1.0
        slopes = logits.log_softmax(-1)[carrying]
        if options.fisher == "empirical":
            own = torch.from_numpy(labels.astype(np.int64))[1:][np.array(carrying)]
            outputs = weight * slopes.gather(1, own[:, None]).sum()[None]
        else:  # E[g g^T] over labels is the sum over labels of p g g^T
            outputs = (weight * slopes * slopes.exp().sqrt().detach()).flatten()
        parts = []
        for layer in layers:
            weights = [p for p in (layer.module.weight, layer.module.bias) if p is not None]
            grads = torch.autograd.grad(
                outputs, weights, torch.eye(len(outputs)).to(outputs), True, is_grads_batched=True
            )
            joined = torch.cat([g if g.ndim == 3 else g[..., None] for g in grads], dim=2)
            parts.append(joined.flatten(1))
        actual.append(torch.cat(parts, dim=1) / np.sqrt(len(pool)))
    return torch.cat(actual)


def flat(gradients):
    return torch.cat([part.flatten(1) for part in gradients.values()], dim=1)


def damping_of(curvature):
    """The diagonal of D, [all weights]."""
    parts = [
        (0 * basis.eigenvalues + curvature.options.damping * basis.eigenvalues.mean()).flatten()
        for basis in curvature.parts.values()
    ]
    return torch.cat(parts)


def dense_solution(model, pool, curvature, gradients):
    """(B^T B + D)^-1 b by Woodbury's identity, exactly: [k, all weights]."""
    rows, damping = rows_of(model, pool, curvature.options), damping_of(curvature)
    right = flat(gradients) / damping
    inner = torch.eye(len(rows), dtype=rows.dtype) + (rows / damping) @ rows.T
    return right - torch.linalg.solve(inner, rows @ right.T).T @ rows / damping


CASES = [
    {},
    {"loss": "sum"},
    {"head": True},
    {"fisher": "empirical", "head": True},
    {"fisher": "empirical", "layers": "attention", "loss": "sum"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_products_equal_the_dense_fisher(
    make_model, make_pool, all_double, monkeypatch, options, tied
):
    monkeypatch.setattr("harness.influence.curvature.conjugate_gradients.DIRECTIONS_AT_ONCE", 2)
    model, pool = make_model(dtype=torch.float64, tied=tied), make_pool(3)
    options = dataclasses.replace(OPTIONS, **options)
    rows = rows_of(model, pool, options)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 5):
        directions = {
            layer.name: torch.randn(count, *layer.shape, generator=generator, dtype=torch.float64)
            for layer in tracked_layers(model, options.layers, options.head)
        }
        actual = flat(fisher_products(model, pool, directions, options))
        expected = flat(directions) @ rows.T @ rows
        assert distance(actual, expected) < 1e-9
    assert all(p.grad is None for p in model.parameters())


def relabelled(model, pool, seed):
    """The pool with the labels of one draw."""
    labels = list(pool.labels)
    for batch in batches(pool, 1, device_of(model)):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        actual = sampled_labels(logits, batch, seed)
        labels[batch.positions[0]] = actual[0].numpy().astype(np.int32)
    return dataclasses.replace(pool, labels=tuple(labels))


@pytest.mark.parametrize("options", [{}, {"loss": "sum"}, {"head": True}], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_drawn_products_are_those_of_gradients_under_drawn_labels(
    make_model, make_pool, all_double, options, tied
):
    model, pool = make_model(dtype=torch.float64, tied=tied), make_pool(9)
    options = dataclasses.replace(OPTIONS, cg_draws=3, seed=5, **options)
    parts = [relabelled(model, pool, draw_seed(5, number)) for number in range(3)]
    empirical = dataclasses.replace(options, fisher="empirical")
    rows = torch.cat([rows_of(model, part, empirical) for part in parts]) / np.sqrt(3)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 5):
        directions = {
            layer.name: torch.randn(count, *layer.shape, generator=generator, dtype=torch.float64)
            for layer in tracked_layers(model, options.layers, options.head)
        }
        expected = flat(directions) @ rows.T @ rows
        for size in (1, 4):
            sized = dataclasses.replace(options, batch_size=size)
            actual = flat(fisher_products(model, pool, directions, sized))
            assert distance(actual, expected) < 1e-9
        turned = flat(fisher_products(model, pool.take(range(9)[::-1]), directions, options))
        assert distance(turned, expected) < 1e-9


def test_draws_tend_to_the_exact_product(make_model, make_pool, all_double):
    """The error falls with the root of the draws: tenfold from 1 to 100."""
    model, pool = make_model(dtype=torch.float64), make_pool(6)
    generator = torch.Generator().manual_seed(0)
    directions = {
        layer.name: torch.randn(1, *layer.shape, generator=generator, dtype=torch.float64)
        for layer in tracked_layers(model, OPTIONS.layers, OPTIONS.head)
    }
    exact = flat(fisher_products(model, pool, directions, OPTIONS))

    def error(draws, seed):
        options = dataclasses.replace(OPTIONS, cg_draws=draws, seed=seed)
        return distance(flat(fisher_products(model, pool, directions, options)), exact)

    single = np.mean([error(1, seed) for seed in range(20)])
    assert error(100, 0) < single / 5
    assert error(100, 1) < single / 5


def test_the_first_draw_is_the_fits_own_and_no_other_seed_shares_the_rest(
    make_model, make_pool, all_double
):
    """EK-FAC's eigenvalues are mean squares of gradients along its eigenvectors: <e, F e>."""
    model, pool = make_model(dtype=torch.float64), make_pool(9)
    options = dataclasses.replace(OPTIONS, cg_draws=1, seed=3)
    curvature = fit(model, pool, options)
    name = next(iter(curvature.parts))
    basis = curvature.parts[name]
    directions = {
        other: torch.zeros(1, *shape, dtype=torch.float64)
        for other, shape in curvature.shapes.items()
    }
    directions[name] = torch.outer(basis.outputs[:, -1], basis.inputs[:, -1])[None]
    actual = fisher_products(model, pool, directions, options)[name]
    torch.testing.assert_close((actual * directions[name]).sum(), basis.eigenvalues[-1, -1])
    assert draw_seed(3, 0) == 3
    assert len({draw_seed(seed, number) for seed in range(20) for number in range(20)}) == 400


@pytest.mark.parametrize("draws", [1, 3])
def test_draws_share_one_forward_pass(make_model, make_pool, draws):
    model, pool = make_model(), make_pool(9)
    directions = {
        layer.name: torch.ones(2, *layer.shape)
        for layer in tracked_layers(model, OPTIONS.layers, OPTIONS.head)
    }
    options = dataclasses.replace(OPTIONS, cg_draws=draws)
    runs = []
    handle = model.model.register_forward_hook(lambda *_: runs.append(1))
    fisher_products(model, pool, directions, options)
    handle.remove()
    assert len(runs) == 3  # batches of 4
    with pytest.raises(ValueError, match="cg_draws is 0; expected at least 1, or None"):
        dataclasses.replace(OPTIONS, cg_draws=0)


@pytest.mark.parametrize("options", CASES[2:], ids=str)
def test_converged_solution_is_the_dense_one(make_model, make_pool, all_double, options):
    model, pool, queries = make_model(dtype=torch.float64), make_pool(4), make_pool(3, 1, "q")
    options = dataclasses.replace(
        OPTIONS, damping=50.0, cg_steps=400, cg_tolerance=1e-10, **options
    )
    curvature = fit(model, pool, options)
    gradients = query_gradients(model, queries, options)
    expected = dense_solution(model, pool, curvature, gradients)
    actual = flat(curvature.apply(gradients, model=model, pool=pool))
    assert distance(actual, expected) < 1e-6
    report = curvature.report()
    assert report["solves"] == report["converged"] == 3
    assert report["residual_max"] <= 1e-10


def test_softmax_regression(make_softmax, make_pairs):
    """Not a transformers model: no head is known, and the logits are all there is."""
    model = make_softmax(bias=[0.3, 0.0, -0.2, 0.9])
    pool = make_pairs([(x, y) for x in range(4) for y in (0, 2)] + [(1, 3)])
    options = dataclasses.replace(OPTIONS, layers="all", cg_steps=50, cg_tolerance=1e-11)
    curvature = fit(model, pool, options)
    gradients = query_gradients(model, make_pairs([(0, 1), (2, 3)], "q"), options)
    tokens = torch.tensor([int(row[0]) for row in pool.input_ids])
    bound = torch.cat([model.features(tokens), torch.ones(9, 1, dtype=torch.float64)], 1).detach()
    labels = torch.tensor([int(row[1]) for row in pool.labels])
    weights = torch.cat([model.linear.weight, model.linear.bias[:, None]], dim=1).detach()
    hessian = torch.autograd.functional.hessian(
        lambda w: torch.nn.functional.cross_entropy(bound @ w.view(4, 4).T, labels),
        weights.flatten(),
    )
    damping = 0.1 * curvature.parts["linear"].eigenvalues.mean()
    dense = hessian + damping * torch.eye(16, dtype=torch.float64)
    expected = torch.linalg.solve(dense, flat(gradients).T).T
    actual = flat(curvature.apply(gradients, model=model, pool=pool))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["true", "empirical"])
def test_default_steps_come_closer_than_ekfac(make_model, make_pool, kind):
    """In the norm of the system, which is what falls with every step."""
    model, pool, queries = make_model(dtype=torch.float64), make_pool(9), make_pool(2, 1, "q")
    options = dataclasses.replace(OPTIONS, fisher=kind, layers="attention")
    curvature = fit(model, pool, options)
    gradients = query_gradients(model, queries, options)
    expected = dense_solution(model, pool, curvature, gradients)
    plain = fit(model, pool, dataclasses.replace(options, kind="ekfac")).apply(gradients)
    refined = curvature.apply(gradients, model=model, pool=pool)
    rows, damping = rows_of(model, pool, options), damping_of(curvature)

    def error(actual):
        rest = flat(actual) - expected
        return (rest @ rows.T).square().sum(dim=1) + (rest.square() * damping).sum(dim=1)

    assert (error(refined) < 0.8 * error(plain)).all()


def test_the_preconditioner_saves_steps(make_model, make_pool):
    model, pool, queries = make_model(dtype=torch.float64), make_pool(6), make_pool(2, 1, "q")
    options = dataclasses.replace(OPTIONS, damping=3.0, layers="attention")
    curvature = fit(model, pool, options)
    gradients = query_gradients(model, queries, options)
    rows, damping = rows_of(model, pool, options), damping_of(curvature)

    def product(directions, step):
        columns = flat(directions)
        actual = (columns @ rows.T) @ rows + columns * damping
        sizes = [out * width for out, width in curvature.shapes.values()]
        parts = zip(curvature.shapes.items(), actual.split(sizes, dim=1), strict=True)
        return {name: part.reshape(-1, *shape) for (name, shape), part in parts}

    def identity(rest):
        return {name: part.clone() for name, part in rest.items()}

    def ekfac(rest):
        return {name: EKFAC.solve(curvature, name, part) for name, part in rest.items()}

    steps = []
    for precondition in (ekfac, identity):
        _, solved = conjugate_gradients(product, gradients, precondition, steps=500, tolerance=1e-2)
        assert all(s.residual <= 1e-2 for s in solved)
        steps.append(max(s.steps for s in solved))
    assert steps[0] < steps[1]


def test_columns_have_their_own_steps_and_ends():
    """Three systems of one 2 x 1 layer, worked by hand: matrix diag(1, 3), no preconditioner."""
    matrix = torch.tensor([1.0, 3.0], dtype=torch.float64)[:, None]
    right = {"layer": torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0]]).double()[..., None]}
    calls = []

    def product(directions, step):
        calls.append((step, len(directions["layer"])))
        return {"layer": directions["layer"] * matrix}

    def identity(rest):
        return {"layer": rest["layer"].clone()}

    one, solved = conjugate_gradients(product, right, identity, steps=1, tolerance=1e-12)
    # Third: step length <b, b> / <b, M b> = 2 / 4, residual (1, 1) - (1, 3) / 2 = (1/2, -1/2).
    expected = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.5, 0.5]]).double()[..., None]
    torch.testing.assert_close(one["layer"], expected)
    assert [(s.steps, s.residual) for s in solved] == [(1, 0.0), (0, 0.0), (1, 0.5)]
    calls.clear()
    two, solved = conjugate_gradients(product, right, identity, steps=9, tolerance=1e-12)
    torch.testing.assert_close(two["layer"], right["layer"] / matrix)
    assert [s.steps for s in solved] == [1, 0, 2]
    assert calls == [(1, 2), (2, 1)]
    with pytest.raises(RuntimeError, match="step 1: a direction has curvature -4"):
        conjugate_gradients(
            lambda u, step: {"layer": -u["layer"]}, right, identity, steps=1, tolerance=1e-2
        )


def test_stored_scored_and_refused(make_model, make_pool, tmp_path):
    model, pool, queries = make_model(), make_pool(30), make_pool(3, 1, "q")
    options = dataclasses.replace(OPTIONS, cg_steps=2, sample=20)
    curvature = fit(model, pool, options)
    curvature.save(tmp_path)
    loaded = Curvature.load(tmp_path)
    assert loaded.options == options
    gradients = query_gradients(model, queries, options)
    actual = curvature.apply(gradients, model=model, pool=pool)
    for name, direction in loaded.apply(gradients, model=model, pool=pool).items():
        assert torch.equal(actual[name], direction)
    single = {name: part[0] for name, part in gradients.items()}
    for name, direction in loaded.apply(single, model=model, pool=pool).items():
        torch.testing.assert_close(direction, actual[name][0], rtol=1e-3, atol=1e-4)
    table = influence.influence_scores(model, pool, queries, None, curvature=loaded)
    report = table.attrs["curvature"]
    assert report["steps"] == 2
    assert report["solves"] == 3 + 1 + 1 + 3  # the mean and three for the ranks
    assert json.loads(json.dumps(report)) == report
    with pytest.raises(
        ValueError,
        match="'ekfac.cg' solves with a pass over the data; expected the model and the pool",
    ):
        curvature.apply(gradients)
    with pytest.raises(
        ValueError, match="pool gives 7 examples; expected the 20 that curvature 'ekfac.cg' was"
    ):
        curvature.apply(gradients, model=model, pool=pool.take(range(7)))
    with pytest.raises(ValueError, match="couples the layers"):
        influence.self_influence(model, curvature, pool)

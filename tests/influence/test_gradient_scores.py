"""TracIn, LESS, GradCos and self-influence against autograd and torch's own AdamW in float64."""

import copy

import numpy as np
import pytest
import torch

from harness import influence
from harness.data.pool import IGNORED
from harness.influence import Checkpoint, CurvatureOptions, Moments
from harness.influence.gradients import BLOCK_ELEMENTS
from harness.influence.layers import tracked_layers

LAYERS = "attention+mlp"
OPTIONS = CurvatureOptions(kind="identity", batch_size=4)
CLOSE = {"rtol": 3e-5, "atol": 1e-8}  # norms and softmax of a Qwen2 in float64 stay in float32


def loss_of(model, pool, position, reduction="mean"):
    tokens = torch.from_numpy(pool.input_ids[position].astype(np.int64))[None]
    labels = torch.from_numpy(pool.labels[position].astype(np.int64))
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
    return torch.nn.functional.cross_entropy(
        logits[:-1], labels[1:], ignore_index=IGNORED, reduction=reduction
    )


def names_of(model):
    """Parameters of the tracked layers."""
    return [name for layer in tracked_layers(model, LAYERS) for name in layer.parameters()]


def gradient(model, pool, position, reduction="mean"):
    """Name -> gradient of one example's loss, by autograd."""
    parameters = dict(model.named_parameters())
    names = names_of(model)
    actual = torch.autograd.grad(
        loss_of(model, pool, position, reduction), [parameters[name] for name in names]
    )
    return dict(zip(names, actual, strict=True))


def mean_gradient(model, queries):
    rows = [gradient(model, queries, v) for v in range(len(queries))]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def dot(first, second):
    return float(sum((first[name] * second[name]).sum() for name in first))


def cosine(first, second):
    return dot(first, second) / np.sqrt(dot(first, first) * dot(second, second))


@pytest.fixture
def run(make_model, make_pool):
    """Two checkpoints of a model trained by bare torch: (model, optimizer, rate, steps)."""
    model = make_model(dtype=torch.float64)
    trained_on = make_pool(6, seed=4, prefix="t")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.95), eps=1e-6)
    kept = []
    for step, rate in enumerate((3e-3, 2e-3, 1e-3), 1):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        sum(loss_of(model, trained_on, d) for d in (2 * step - 2, 2 * step - 1)).backward()
        optimizer.step()
        if step > 1:
            state = copy.deepcopy(optimizer.state_dict())
            kept.append((copy.deepcopy(model), state, rate, step))
    return kept


@pytest.fixture
def checkpoints(run):
    def moments(model, state, steps):
        numbered = [name for name, _ in model.named_parameters()]
        parts = [
            {numbered[k]: entry[key] for k, entry in state["state"].items()}
            for key in ("exp_avg", "exp_avg_sq")
        ]
        return Moments(*parts, steps, betas=(0.8, 0.95), eps=1e-6)

    return tuple(
        Checkpoint(
            steps,
            rate,
            lambda model=model: model,
            lambda model=model, state=state, steps=steps: moments(model, state, steps),
        )
        for model, state, rate, steps in run
    )


def adam_update(model, state, gradients):
    """What torch's AdamW does with gradients `gradients` at rate 1: old weights minus new ones."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.load_state_dict(copy.deepcopy(state))
    optimizer.param_groups[0] |= {"lr": 1.0, "weight_decay": 0.0}
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in gradients}
    for name, value in gradients.items():
        parameters[name].grad = value
    optimizer.step()
    return {name: before[name] - parameters[name].detach() for name in gradients}


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_tracin_is_the_weighted_sum_of_dot_products(run, checkpoints, make_pool, loss):
    pool, queries = make_pool(9, seed=1), make_pool(3, seed=2, prefix="q")
    expected = np.zeros(9)
    for model, _, rate, _ in run:
        direction = mean_gradient(model, queries)
        expected += [rate * dot(gradient(model, pool, d, loss), direction) for d in range(9)]
    options = CurvatureOptions(kind="identity", batch_size=4, loss=loss)
    actual = influence.tracin_scores(checkpoints, pool, queries, options)
    np.testing.assert_allclose(actual, expected, **CLOSE)


@pytest.mark.parametrize("block", [1, 1 << 25])
def test_less_is_the_cosine_of_the_step_that_adamw_takes(
    run, checkpoints, make_pool, monkeypatch, block
):
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", block)  # 1: one example at a time
    pool, queries = make_pool(7, seed=1), make_pool(3, seed=2, prefix="q")
    expected = np.zeros(7)
    for model, state, rate, _ in run:
        direction = mean_gradient(model, queries)
        for d in range(7):
            update = adam_update(model, state, gradient(model, pool, d))
            expected[d] += rate * cosine(update, direction)
    actual = influence.less_scores(checkpoints, pool, queries, OPTIONS)
    np.testing.assert_allclose(actual, expected, **CLOSE)
    assert np.ptp(actual) > 1e-3 * np.abs(actual).max()  # not all the optimizer's momentum


def test_gradcos_is_the_cosine_of_gradients_whatever_their_length(make_model, make_pool):
    model = make_model(dtype=torch.float64)
    pool, queries = make_pool(9, seed=1), make_pool(3, seed=2, prefix="q")
    direction = mean_gradient(model, queries)
    expected = [cosine(gradient(model, pool, d), direction) for d in range(9)]
    actual = influence.cosine_scores(model, pool, queries, OPTIONS)
    np.testing.assert_allclose(actual, expected, **CLOSE)
    summed = CurvatureOptions(kind="identity", loss="sum")
    np.testing.assert_allclose(
        influence.cosine_scores(model, pool, queries, summed), actual, **CLOSE
    )


def test_a_query_is_nearest_to_itself(make_model, make_pool):
    model, pool = make_model(dtype=torch.float64), make_pool(9, seed=1)
    actual = influence.cosine_scores(model, pool, pool.take([5]), OPTIONS)
    assert actual.argmax() == 5
    assert actual[5] == pytest.approx(1.0)


def test_examples_without_a_gradient_have_cosine_0_and_queries_are_refused(
    make_softmax, make_pairs
):
    """Token 0 has a probability of exactly 1, so that examples of it teach nothing."""
    model = make_softmax(bias=[5000.0, 0.0, 0.0, 0.0])
    options = CurvatureOptions(kind="identity", layers="all")
    pool = make_pairs([(1, 0), (1, 2)])
    actual = influence.cosine_scores(model, pool, make_pairs([(1, 2)]), options)
    assert actual[0] == 0
    assert actual[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="query gradient has length 0"):
        influence.cosine_scores(model, pool, make_pairs([(1, 0)]), options)


def test_self_influence_under_the_identity_is_the_squared_length(make_model, make_pool):
    model, pool = make_model(dtype=torch.float64), make_pool(9, seed=1)
    curvature = influence.fit(model, pool, OPTIONS)
    rows = [gradient(model, pool, d) for d in range(9)]
    actual = influence.self_influence(model, curvature, pool)
    np.testing.assert_allclose(actual, [dot(row, row) for row in rows], **CLOSE)


def test_self_influence_under_ekfac_is_the_dense_quadratic_form(
    make_model, make_pool, autograd, monkeypatch
):
    """Oracle: the damped matrix Q diag Q^T of every layer, built by Kronecker products, solved."""
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", 4000)
    model, pool = make_model(dtype=torch.float64), make_pool(9, seed=1)
    options = CurvatureOptions(layers="attention", damping=0.3, batch_size=4, loss="sum")
    curvature = influence.fit(model, pool, options)
    expected = np.zeros(9)
    names = list(curvature.shapes)
    for d in range(9):
        for name, matrix in autograd(model, pool, d, names, "sum").items():
            basis = curvature.parts[name]
            rotation = np.kron(basis.outputs.numpy(), basis.inputs.numpy())
            values = basis.eigenvalues.numpy().ravel()
            dense = (rotation * values) @ rotation.T + 0.3 * values.mean() * np.eye(len(values))
            g = matrix.detach().numpy().ravel()
            expected[d] += g @ np.linalg.solve(dense, g)
    actual = influence.self_influence(model, curvature, pool)
    np.testing.assert_allclose(actual, expected, **CLOSE)


def test_a_wrong_label_has_the_highest_self_influence(make_softmax, make_pairs):
    model = make_softmax(bias=[2.0, 0.0, 0.0, 0.0])
    pool = make_pairs([(1, 0), (2, 0), (3, 0), (1, 0), (2, 3), (3, 0)])
    curvature = influence.fit(model, pool, CurvatureOptions(layers="all"))
    assert influence.self_influence(model, curvature, pool).argmax() == 4


def test_refuses(checkpoints, make_pool):
    pool, queries = make_pool(3, seed=1), make_pool(2, seed=2, prefix="q")
    for scores in (influence.tracin_scores, influence.less_scores):
        with pytest.raises(ValueError, match="no checkpoints"):
            scores((), pool, queries)
    bare = [Checkpoint(c.step, c.rate, c.model, lambda: Moments({}, {}, 1)) for c in checkpoints]
    with pytest.raises(ValueError, match=r"no moments of 'model\.layers\.0\."):
        influence.less_scores(bare, pool, queries)

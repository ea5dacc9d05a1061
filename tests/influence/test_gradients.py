import dataclasses
import functools

import numpy as np
import pytest
import torch

from harness.data.pool import IGNORED, Pool
from harness.influence import (
    CurvatureOptions,
    directional_scores,
    example_gradients,
    fit,
    influence_scores,
    per_query_scores,
    query_gradients,
)
from harness.influence.batches import batches
from harness.influence.gradients import BLOCK_ELEMENTS
from harness.influence.layers import tracked_layers

IDENTITY = CurvatureOptions(kind="identity", batch_size=5)


def names(model, options):
    return [layer.name for layer in tracked_layers(model, options.layers, options.head)]


@pytest.mark.parametrize("loss", ["mean", "sum"])
@pytest.mark.parametrize("tied", [True, False])
def test_example_gradients_are_those_of_autograd(make_model, make_pool, autograd, tied, loss):
    """Biases, grouped queries, the tied head with its embedding, padded batches."""
    model, pool = make_model(tied=tied, exact=True), make_pool(12)
    options = dataclasses.replace(IDENTITY, head=True, loss=loss)
    actual = example_gradients(model, pool, options)
    for position in range(len(pool)):
        expected = autograd(model, pool, position, names(model, options), loss)
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name][position], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", [False, True])
def test_identity_is_the_dot_product_of_gradients(make_model, make_pool, autograd, head):
    """Check (ii), by all three ways to a score; sign: influence = -grad L_d . grad f_v."""
    model, pool, queries = make_model(dtype=torch.float64), make_pool(13), make_pool(4, 1, "q")
    options = dataclasses.replace(IDENTITY, head=head)
    layers = names(model, options)
    rows = [
        torch.cat([g.flatten() for g in autograd(model, data, i, layers).values()])
        for data in (pool, queries)
        for i in range(len(data))
    ]
    losses, wanted = torch.stack(rows[:13]), -torch.stack(rows[13:])
    expected = (-losses @ wanted.T).numpy()
    curvature = fit(model, pool, options)
    # Double precision but for the model's norms, which always work in single precision.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(per_query_scores(model, curvature, pool, queries), expected)
    directions = curvature.apply(query_gradients(model, queries, options))
    close(directional_scores(model, pool, directions, options, method="forward"), expected)
    single = {name: direction[:1] for name, direction in directions.items()}
    close(directional_scores(model, pool, single, options, method="forward"), expected[:, :1])


def test_query_gradients_aggregate(make_model, make_pool):
    model, queries = make_model(dtype=torch.float64), make_pool(7)
    options = dataclasses.replace(IDENTITY, head=True, loss="sum")  # f_v stays a mean over tokens
    single = query_gradients(model, queries, options)
    mean = query_gradients(model, queries, options, aggregate="mean")
    total = query_gradients(model, queries, options, aggregate="sum")
    by_token = example_gradients(model, queries, dataclasses.replace(options, loss="mean"))
    for name in single:
        torch.testing.assert_close(single[name], -by_token[name])
        torch.testing.assert_close(mean[name], single[name].mean(dim=0))
        torch.testing.assert_close(total[name], single[name].sum(dim=0))


def test_a_training_step_on_an_example_moves_the_query_as_predicted(make_model, make_pool):
    """The sign and size of influence against an actual step of gradient descent."""
    model, pool, queries = make_model(dtype=torch.float64), make_pool(6), make_pool(3, 1, "q")
    influence = per_query_scores(model, fit(model, pool, IDENTITY), pool, queries)
    gradients = example_gradients(model, pool, IDENTITY)
    rate = 1e-3

    def log_probabilities():
        (batch,) = batches(queries, len(queries), torch.device("cpu"))
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        chosen = logits.log_softmax(-1)[:, :-1].gather(
            2, batch.labels[:, 1:].clamp(min=0).unsqueeze(2)
        )
        mask = batch.labels[:, 1:] != IGNORED
        actual = np.empty(len(queries))
        actual[batch.positions] = (chosen.squeeze(2) * mask).sum(1) / mask.sum(1)
        return actual

    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for position in range(len(pool)):
        actual = []
        for step in (rate, -rate):
            with torch.no_grad():
                for layer in tracked_layers(model):
                    for name, slope in layer.split(gradients[layer.name][position]).items():
                        model.get_parameter(name).sub_(step * slope)
            actual.append(log_probabilities())
            model.load_state_dict(state)
        gain = (actual[0] - actual[1]) / (2 * rate)
        np.testing.assert_allclose(gain, influence[position], rtol=0.02, atol=0.02)


def test_padding_and_batch_size_do_not_count(make_model, make_pool):
    model, pool, queries = make_model(), make_pool(9), make_pool(2, 1, "q")
    alone = dataclasses.replace(IDENTITY, batch_size=1)
    together = dataclasses.replace(IDENTITY, batch_size=9)
    for options in (IDENTITY, together):
        for function in (example_gradients, query_gradients):
            for name, gradient in function(model, pool, alone).items():
                actual = function(model, pool, options)[name]
                torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-6)
    curves = [fit(model, pool, options) for options in (alone, together)]
    one, all_ = (per_query_scores(model, curve, pool, queries) for curve in curves)
    np.testing.assert_allclose(one, all_, rtol=1e-3, atol=1e-5)


def test_frozen_weights_give_the_same(make_model, make_pool):
    model, pool = make_model(), make_pool(5)
    options = dataclasses.replace(IDENTITY, head=True)
    expected = example_gradients(model, pool, options)
    actual = example_gradients(model.requires_grad_(False), pool, options)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient)


def test_nothing_is_left_behind(make_model, make_pool):
    model, pool = make_model().train(), make_pool(6)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = [row.copy() for row in pool.input_ids + pool.labels]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for method in ("forward", "backward", "ghost"):
        influence_scores(model, pool, make_pool(2, 1), make_pool(3, 2), method=method)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(map(np.array_equal, tokens, pool.input_ids + pool.labels))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_examples_without_trainable_tokens_are_named(make_model):
    row = np.array([1, 2, 3], dtype=np.int32)
    ignored = np.full(3, IGNORED, dtype=np.int32)
    pool = Pool(("good", "empty"), (row, row), (row, ignored))
    with pytest.raises(ValueError, match="'empty' has no trainable token"):
        example_gradients(make_model(), pool, IDENTITY)


def test_blocks_bound_memory_without_changing_anything(make_model, make_pool, monkeypatch):
    model, pool, queries = make_model(), make_pool(7), make_pool(5, 1, "q")
    curvature = fit(model, pool, CurvatureOptions(batch_size=4))
    expected = per_query_scores(model, curvature, pool, queries)
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", 1)
    monkeypatch.setattr("harness.influence.query_influence.QUERY_ELEMENTS", 30_000)
    actual = per_query_scores(model, curvature, pool, queries)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)

import threading
import time

import numpy as np
import pytest
import torch

from harness import influence
from harness.influence import CurvatureOptions
from harness.influence.curvature import covariance
from harness.influence.ghost import products
from harness.influence.kernels.lanes import LANES, Sums, spread
from harness.influence.layers import tracked_layers

OPTIONS = CurvatureOptions(batch_size=6, damping=0.2)


@pytest.fixture
def lanes(one_thread):
    """Threads for one lane or for all; those of before are given back by `one_thread`."""

    def use(count):
        torch.set_num_threads(count)

    return use


def scored(model, pool, queries, kind, **more):
    options = CurvatureOptions(**{**vars(OPTIONS), "kind": kind, "cg_draws": 2, **more})
    curvature = influence.fit(model, pool, options)
    return influence.scores(model, curvature, pool, queries, method="ghost")["score"].to_numpy()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ekfac", {}),
        ("ekfac", {"memory_gib": 1e-5}),
        ("ekfac+cg", {}),
        ("ekfac+cg", {"cg_draws": None}),
        ("kfac", {"head": True}),
        ("diagonal", {"fisher": "empirical"}),
    ],
)
def test_lanes_change_rounding_only(make_model, make_pool, lanes, kind, more):
    model, pool, queries = make_model(), make_pool(29), make_pool(7, 1, "q")
    lanes(1)
    expected = scored(model, pool, queries, kind, **more)
    lanes(LANES)
    found = scored(model, pool, queries, kind, **more)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert not np.array_equal(found, expected)  # or the parts were not others
    assert np.array_equal(scored(model, pool, queries, kind, **more), found)


def test_queries_have_the_same_gradients_in_lanes(make_model, make_pool, lanes):
    model, queries = make_model(dtype=torch.float64), make_pool(15, 1, "q")
    found = {}
    for count in (1, LANES):
        lanes(count)
        single = influence.query_gradients(model, queries, OPTIONS)
        mean = influence.query_gradients(model, queries, OPTIONS, aggregate="mean")
        found[count] = single, mean
        for name, gradients in single.items():
            torch.testing.assert_close(mean[name], gradients.mean(dim=0))
    for name, gradients in found[1][0].items():
        torch.testing.assert_close(found[LANES][0][name], gradients)


def test_parts_of_a_batch_run_in_threads_of_their_own(make_model, make_pool, lanes):
    """Two lanes meet: each waits for the other, which one after the other could not do."""
    model, pool = make_model(), make_pool(12)
    lanes(LANES)
    barrier = threading.Barrier(LANES, timeout=30)
    seen = [[] for _ in range(LANES)]

    def work(lane, batch):
        assert torch.get_num_threads() == 1
        barrier.wait()
        seen[lane.number].append(list(batch.ids))

    layers = tracked_layers(model)
    spread(model, layers, pool, OPTIONS, work, None, "")
    lengths = {name: len(tokens) for name, tokens in zip(pool.ids, pool.input_ids, strict=True)}
    ordered = sorted(pool.ids, key=lambda name: -lengths[name])
    expected = [[ordered[0:3], ordered[6:9]], [ordered[3:6], ordered[9:12]]]
    assert seen == expected
    assert torch.get_num_threads() == LANES


def test_a_lane_has_modules_of_its_own_and_the_weights_of_the_model(make_model, make_pool, lanes):
    model, pool = make_model(), make_pool(12)
    lanes(LANES)
    models = {}

    def work(lane, batch):
        models[lane.number] = lane.model
        assert [layer.name for layer in lane.layers] == names
        assert all(layer.module in set(lane.model.modules()) for layer in lane.layers)

    layers = tracked_layers(model)[2:5]
    names = [layer.name for layer in layers]
    spread(model, layers, pool, OPTIONS, work, None, "")
    assert models[0] is model
    assert not set(models[1].modules()) & set(model.modules())
    for own, other in zip(models[1].parameters(), model.parameters(), strict=True):
        assert own is other


def test_the_error_of_a_lane_is_raised_and_threads_are_given_back(make_model, make_pool, lanes):
    model, pool = make_model(), make_pool(60)
    lanes(LANES)
    done = []

    def work(lane, batch):
        if lane.number == 1:
            raise ArithmeticError("in a lane")
        time.sleep(0.02)
        done.append(batch)

    model.train()
    with pytest.raises(ArithmeticError, match="in a lane"):
        spread(model, tracked_layers(model), pool, OPTIONS, work, None, "")
    assert len(done) < 10  # of 20 parts for this lane: those that waited were dropped
    assert torch.get_num_threads() == LANES
    assert model.training


def test_one_lane_where_hooks_or_large_weights_forbid_more(
    make_model, make_pool, lanes, monkeypatch
):
    model, pool = make_model(), make_pool(12)
    lanes(LANES)
    numbers = set()

    def work(lane, batch):
        numbers.add(lane.number)

    hook = model.model.norm.register_forward_hook(lambda *_: None)
    spread(model, tracked_layers(model), pool, OPTIONS, work, None, "")
    assert numbers == {0}
    hook.remove()
    monkeypatch.setattr("harness.influence.kernels.lanes.LARGE", 100)
    spread(model, tracked_layers(model), pool, OPTIONS, work, None, "")
    assert numbers == {0}
    monkeypatch.undo()
    spread(model, tracked_layers(model), pool, OPTIONS, work, None, "")
    assert numbers == {0, 1}


def test_sums_add_up_in_the_order_of_lanes():
    sums = Sums(lambda: {"a": torch.zeros(2)})
    sums.of(2)["a"] += torch.tensor([1.0, 2.0])
    sums.of(1)["a"] += torch.tensor([10.0, 20.0])
    sums.of(1)["a"] += torch.tensor([100.0, 200.0])
    assert sums.total()["a"].tolist() == [111.0, 222.0]
    assert Sums(lambda: {"a": torch.zeros(1)}).total()["a"].tolist() == [0.0]


@pytest.mark.parametrize("count", [1, LANES])
def test_a_kept_sample_gives_the_eigenvalues_of_a_second_pass(
    make_model, make_pool, lanes, monkeypatch, count
):
    model, pool = make_model(exact=True), make_pool(25)
    lanes(count)
    options = CurvatureOptions(batch_size=4, basis_sample=9)
    passed = []

    def progress(iterable, description, total):
        passed.append((description, total))
        return iterable

    kept = influence.fit(model, pool, options, progress=progress).tensors()
    assert passed == [("covariances", 3), ("eigenvalues", 4)]
    monkeypatch.setattr(covariance, "KEPT_BYTES", 0)
    passed.clear()
    anew = influence.fit(model, pool, options, progress=progress).tensors()
    assert passed == [("covariances", 3), ("eigenvalues", 7)]
    assert kept.keys() == anew.keys()
    for name, tensor in anew.items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-9, atol=1e-12)


def test_products_in_lanes_are_those_of_plain_gradients(make_model, make_pool, lanes):
    model, pool = make_model(dtype=torch.float64), make_pool(13)
    lanes(LANES)
    gradients = influence.example_gradients(model, pool, OPTIONS)
    generator = torch.Generator().manual_seed(0)
    directions = {
        name: torch.randn(2, *gradient.shape[1:], generator=generator, dtype=torch.float64)
        for name, gradient in gradients.items()
    }
    expected = -sum(
        torch.einsum("noi,koi->nk", gradients[name], directions[name]) for name in gradients
    )
    found = products(model, pool, directions, OPTIONS)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9)

"""DataInf against its formula, computed densely in double precision, and against exact inverses."""

import numpy as np
import pytest
import torch
from torch import nn

from harness import influence
from harness.influence import Curvature, CurvatureOptions, batches, trace
from harness.influence.curvature.datainf import DataInf, squared_lengths
from harness.influence.gradients import traces
from harness.influence.layers import tracked_layers

OPTIONS = CurvatureOptions(kind="datainf", fisher="empirical", damping=0.1, batch_size=4)


@pytest.fixture
def make_lora(make_model):
    def make(dtype=torch.float64):
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
            model = get_peft_model(make_model(), config)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=0.3)
        return model.to(dtype)

    return make


def formula(examples, directions, damping):
    """1/n sum_i (lambda + g_i g_i^T)^-1 v of one layer, by solving n dense systems."""
    g, v = examples.flatten(1).double(), directions.flatten(1).double()
    size = g.shape[1]
    eye = torch.eye(size, dtype=torch.float64)
    ridge = damping * torch.trace(g.T @ g / len(g)) / size  # a multiple of the mean eigenvalue
    solved = [torch.linalg.solve(torch.outer(row, row) + ridge * eye, v.T).T for row in g]
    return torch.stack(solved).mean(dim=0).view_as(directions)


@pytest.mark.parametrize("queries", [1, 5])  # few directions act on the inputs, many on gradients
@pytest.mark.parametrize("lora", [True, False])
def test_is_the_mean_of_inverses(make_model, make_lora, make_pool, queries, lora):
    model = make_lora() if lora else make_model(dtype=torch.float64)
    options = OPTIONS if lora else CurvatureOptions(**{**vars(OPTIONS), "layers": "attention"})
    pool = make_pool(9)
    curvature = influence.fit(model, pool, options)
    assert isinstance(curvature, DataInf)
    wanted = influence.query_gradients(model, make_pool(queries, 1, "q"), options)
    found = curvature.apply(wanted, model=model, pool=pool)
    examples = influence.example_gradients(model, pool, options)
    for name in list(wanted)[:4]:
        expected = formula(examples[name], wanted[name], 0.1)
        torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_is_exact_for_one_example_also_with_a_tied_head(make_model, make_pool, loss):
    model, pool = make_model(dtype=torch.float64), make_pool(1)
    options = CurvatureOptions(**{**vars(OPTIONS), "layers": "mlp", "head": True, "loss": loss})
    curvature = influence.fit(model, pool, options)
    (own,) = influence.example_gradients(model, pool, options)["lm_head"]
    other = influence.query_gradients(model, make_pool(2, 1, "q"), options)
    found = curvature.apply(other, model=model, pool=pool)["lm_head"]
    g = own.flatten()
    ridge = 0.1 * float(g @ g) / len(g)
    fisher = torch.outer(g, g) + ridge * torch.eye(len(g), dtype=g.dtype)
    expected = torch.linalg.solve(fisher, other["lm_head"].flatten(1).T).T
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-7, atol=1e-9)


def test_one_matrix_blocks_groups_and_batches_give_the_same(make_lora, make_pool, monkeypatch):
    model, pool, queries = make_lora(), make_pool(9), make_pool(5, 1, "q")
    curvature = influence.fit(model, pool, OPTIONS)
    wanted = influence.query_gradients(model, queries, OPTIONS)
    expected = curvature.apply(wanted, model=model, pool=pool)
    first = {name: part[0] for name, part in wanted.items()}
    before = {name: part.clone() for name, part in wanted.items()}
    single = curvature.apply(first, model=model, pool=pool)
    monkeypatch.setattr(trace, "BLOCK_ELEMENTS", 1)
    other = CurvatureOptions(**{**vars(OPTIONS), "batch_size": 9, "memory_gib": 1e-6})
    cut = influence.fit(model, pool, other).apply(wanted, model=model, pool=pool)
    for name, part in expected.items():
        torch.testing.assert_close(single[name], part[0])
        torch.testing.assert_close(cut[name], part, rtol=1e-4, atol=1e-6)
        assert torch.equal(wanted[name], before[name])


def test_sampled_labels_and_a_sample_of_the_pool(make_lora, make_pool):
    """The true Fisher: the same labels when fitted and when solved, whatever the batches."""
    model, pool = make_lora(), make_pool(12)
    options = CurvatureOptions(kind="datainf", sample=7, batch_size=3)
    curvature = influence.fit(model, pool, options)
    assert curvature.examples == 7
    sample = influence.curvature.fitted_on(pool, options)
    (batch,) = batches.batches(sample, 7, torch.device("cpu"))
    layers = tracked_layers(model)
    model.eval()
    found = traces(model, layers, batch, "mean", draw=0)
    wanted = influence.query_gradients(model, make_pool(2, 1, "q"), options)
    solved = curvature.apply(wanted, model=model, pool=pool)
    for layer in (layers[0], layers[-1]):
        examples = torch.cat([block for _, block in found[layer.name].gradients()])
        expected = formula(examples, wanted[layer.name], 0.1)
        torch.testing.assert_close(solved[layer.name], expected, rtol=1e-4, atol=1e-6)
    empirical = influence.fit(
        model, pool, CurvatureOptions(**{**vars(options), "fisher": "empirical"})
    )
    assert empirical.squares[layers[0].name] != curvature.squares[layers[0].name]


@pytest.mark.parametrize("tokens", [2, 40])
def test_squared_lengths_either_way(tokens):
    """By positions where they are few, by gradients where they are many."""
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(3, tokens, 6, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3, tokens, 5, generator=generator, dtype=torch.float64)
    expected = (deltas.mT @ inputs).square().sum(dim=(1, 2))
    seen = trace.Trace(inputs, deltas, torch.ones(3, tokens, dtype=torch.bool))
    torch.testing.assert_close(squared_lengths(seen), expected)


def test_single_precision_ranks_as_double(make_lora, make_pool):
    pool, queries = make_pool(15), make_pool(2, 1, "q")
    scores = []
    for dtype in (torch.float32, torch.float64):
        model = make_lora(dtype)
        curvature = influence.fit(model, pool, OPTIONS)
        along = influence.query_gradients(model, queries, OPTIONS)
        along = curvature.apply(along, model=model, pool=pool)
        scores.append(influence.directional_scores(model, pool, along, OPTIONS, method="forward"))
    single, double = scores
    np.testing.assert_allclose(single, double, atol=1e-4 * np.abs(double).max())


def test_storing(make_lora, make_pool, tmp_path):
    model, pool = make_lora(), make_pool(6)
    curvature = influence.fit(model, pool, OPTIONS)
    curvature.save(tmp_path)
    again = Curvature.load(tmp_path)
    assert again == curvature
    wanted = influence.query_gradients(model, make_pool(2, 1, "q"), OPTIONS)
    expected = curvature.apply(wanted, model=model, pool=pool)
    for name, part in again.apply(wanted, model=model, pool=pool).items():
        assert torch.equal(part, expected[name])


def test_refuses(make_lora, make_pool):
    model, pool = make_lora(), make_pool(6)
    curvature = influence.fit(model, pool, OPTIONS)
    wanted = influence.query_gradients(model, make_pool(2, 1, "q"), OPTIONS)
    for given in ({}, {"model": model}, {"pool": pool}):
        with pytest.raises(ValueError, match="expected the model and the pool"):
            curvature.apply(wanted, **given)
    with pytest.raises(ValueError, match="pool gives 5 examples; expected the 6"):
        curvature.apply(wanted, model=model, pool=make_pool(5))
    with pytest.raises(ValueError, match="solves with a pass over the data"):
        curvature.solve("any", torch.zeros(1, 1))
    undamped = influence.fit(model, pool, CurvatureOptions(kind="datainf", damping=0.0))
    with pytest.raises(ValueError, match=r"damping 0\.0; expected both above 0"):
        undamped.apply(wanted, model=model, pool=pool)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.zeros_(parameter)
    fresh = influence.fit(model, pool, OPTIONS)
    with pytest.raises(ValueError, match=r"lora_A.*mean squared gradient is 0\.0"):
        fresh.apply(wanted, model=model, pool=pool)

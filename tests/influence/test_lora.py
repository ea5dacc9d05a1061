"""LoRA adapters: what is tracked, what is refused, and every way to a score against autograd."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from harness import influence
from harness.influence import CurvatureOptions
from harness.influence.batches import batches
from harness.influence.gradients import traces
from harness.influence.layers import tracked_layers

IDENTITY = CurvatureOptions(kind="identity", batch_size=5)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
CLOSE = {"rtol": 1e-4, "atol": 1e-6}  # norms and softmax of a Qwen2 in float64 stay in float32


@pytest.fixture
def make_lora(make_model):
    """A tiny Qwen2 with adapters of rank 3; `filled` draws lora_B, which begins at 0."""

    def make(filled=True, dtype=torch.float64, inject=False, tied=True, **settings):
        from peft import LoraConfig, get_peft_model, inject_adapter_in_model

        settings = {
            "r": 3,
            "lora_alpha": 5,
            "lora_dropout": 0.1,
            "target_modules": "all-linear",
            **settings,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            config = LoraConfig(task_type="CAUSAL_LM", **settings)
            if inject:
                if config.target_modules == "all-linear":
                    config.target_modules = ATTENTION + MLP
                model = inject_adapter_in_model(config, make_model(tied=tied))
            else:
                model = get_peft_model(make_model(tied=tied), config)
            model = model.to(dtype)
            if filled:
                fill(model)
        return model

    return make


def fill(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)


@pytest.fixture
def rows(autograd):
    """Gradients of single examples, flat, [n, parameters], in the order of the tracked layers."""

    def stack(model, pool, names, reduction="mean"):
        model = model.eval()
        actual = [autograd(model, pool, i, names, reduction) for i in range(len(pool))]
        return torch.stack([torch.cat([row[name].flatten() for name in names]) for row in actual])

    return stack


def names(model, options=IDENTITY):
    return [layer.name for layer in tracked_layers(model, options.layers, options.head)]


def flat(gradients):
    return torch.cat([part.flatten(1) for part in gradients.values()], dim=1)


@pytest.mark.parametrize("inject", [False, True])
@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("attention+mlp", ATTENTION + MLP),
        ("attention", ATTENTION),
        ("mlp", MLP),
        ("all", ATTENTION + MLP),
    ],
)
def test_only_adapters_are_tracked(make_lora, inject, layers, expected):
    actual = [
        layer.name.split(".")[-3:] for layer in tracked_layers(make_lora(inject=inject), layers)
    ]
    assert actual == [
        [name, part, "default"] for name in expected * 2 for part in ("lora_A", "lora_B")
    ]


def test_only_the_active_adapter_is_tracked(make_lora, make_pool, rows):
    from peft import LoraConfig

    model = make_lora()
    model.add_adapter("attn", LoraConfig(r=2, target_modules=["up_proj"]))  # no attention in it
    assert not any(".attn" in name for name in names(model))
    model.set_adapter("attn")
    assert [name.split(".")[-3:] for name in names(model)] == [
        ["up_proj", part, "attn"] for part in ("lora_A", "lora_B")
    ] * 2
    with pytest.raises(ValueError, match="no LoRA adapters match layers 'attention'"):
        tracked_layers(model, "attention")
    pool = make_pool(3)
    torch.testing.assert_close(
        flat(influence.example_gradients(model, pool, IDENTITY)),
        rows(model, pool, names(model)),
        **CLOSE,
    )


def test_adapters_stand_on_whatever_carries_them(make_pool, rows):
    """GPT-2 keeps its weights in Conv1D, which is refused by itself; and biased adapters."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=24, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = GPT2LMHeadModel._from_config(config, attn_implementation="eager")
        settings = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
        model = get_peft_model(base, LoraConfig(r=2, lora_bias=True, **settings)).double()
        fill(model)
    pool = make_pool(5)
    actual = flat(influence.example_gradients(model, pool, IDENTITY))
    torch.testing.assert_close(actual, rows(model, pool, names(model)), **CLOSE)
    shapes = {layer.name.split(".")[-2]: layer.shape for layer in tracked_layers(model, "mlp")}
    assert shapes == {"lora_A": (2, 16), "lora_B": (64, 3)}


@pytest.mark.parametrize("inject", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_ways_to_a_score_agree_with_autograd(make_lora, make_pool, rows, inject, dtype):
    """In training mode at first: dropout must not act; also in single precision."""
    model, pool, queries = (
        make_lora(inject=inject, dtype=dtype).train(),
        make_pool(11),
        make_pool(4, 1, "q"),
    )
    every = names(model)
    curvature = influence.fit(model, pool, IDENTITY)
    gradients = influence.query_gradients(model, queries, IDENTITY)
    scores = {
        "ghost": influence.per_query_scores(model, curvature, pool, queries),
        "forward": influence.directional_scores(model, pool, gradients, IDENTITY, method="forward"),
    }
    single = {name: direction[:1] for name, direction in gradients.items()}
    one = influence.directional_scores(model, pool, single, IDENTITY, method="forward")
    assert all(module.training for module in model.modules())
    own = influence.example_gradients(model, pool, IDENTITY)
    losses, wanted = rows(model, pool, every), -rows(model, queries, every)
    torch.testing.assert_close(flat(own), losses, rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(flat(gradients), wanted, rtol=1e-3, atol=2e-5)
    expected = (-losses @ wanted.T).numpy()
    scale = np.abs(expected).max()
    for method, actual in scores.items():
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale, err_msg=method)
    np.testing.assert_allclose(one, expected[:, :1], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["identity", "ekfac", "projected"])
def test_every_kind_fits(make_lora, make_pool, tmp_path, kind):
    model, pool, queries = make_lora(), make_pool(9), make_pool(3, 1, "q")
    options = CurvatureOptions(kind=kind, batch_size=4)
    curvature = influence.fit(model, pool, options)
    assert list(curvature.shapes) == names(model)
    table = influence.influence_scores(model, pool, queries, None, curvature=curvature)
    actual = influence.per_query_scores(model, curvature, pool, queries)
    np.testing.assert_allclose(table["s_C"], actual.mean(axis=1), rtol=1e-4, atol=1e-6)
    own = influence.self_influence(model, curvature, pool)
    solved = flat(curvature.apply(influence.example_gradients(model, pool, options)))
    losses = flat(influence.example_gradients(model, pool, options))
    np.testing.assert_allclose(own, (losses * solved).sum(dim=1).numpy(), rtol=1e-6)
    curvature.save(tmp_path)
    again = influence.per_query_scores(model, influence.Curvature.load(tmp_path), pool, queries)
    np.testing.assert_allclose(again, actual)


def test_adapters_that_read_one_input_share_what_is_made_of_it(make_lora, make_pool):
    """Query, key and value, and gate and up, though each has its second half in between."""
    model = make_lora().eval()
    (batch,) = batches(make_pool(4), 4, torch.device("cpu"))
    layers = tracked_layers(model)
    actual = traces(model, layers, batch, "mean")
    sources = {name: trace.source for name, trace in actual.items()}
    for read, source in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj")):
        for name in sources:
            if name.endswith(f"{read}.lora_A.default"):
                assert sources[name] == name.replace(read, source)
    assert len(set(sources.values())) == len(layers) - 2 * 3


def test_layers_in_groups_give_the_same(make_lora, make_pool):
    model, pool = make_lora(), make_pool(9)
    options = CurvatureOptions(batch_size=4)
    whole = influence.fit(model, pool, options)
    parts = influence.fit(model, pool, dataclasses.replace(options, memory_gib=1e-6))
    for name, basis in whole.parts.items():
        torch.testing.assert_close(parts.parts[name].eigenvalues, basis.eigenvalues, **CLOSE)


def test_fresh_adapters_teach_their_first_half_nothing(make_lora, make_pool):
    """While lora_B is 0, lora_A has no gradient and no curvature to divide by."""
    model, pool = make_lora(filled=False), make_pool(6)
    gradients = influence.example_gradients(model, pool, IDENTITY)
    for name, gradient in gradients.items():
        assert bool((gradient == 0).all()) == ("lora_A" in name)
    scores = influence.directional_scores(model, pool, gradients, IDENTITY, method="forward")
    np.testing.assert_allclose(scores, -(flat(gradients) @ flat(gradients).T).numpy(), **CLOSE)
    curvature = influence.fit(model, pool, CurvatureOptions(kind="ekfac"))
    with pytest.raises(ValueError, match=r"lora_A.*eigenvalues of 0.*cannot be inverted"):
        curvature.apply(gradients)


def test_adapters_in_single_precision_on_a_base_in_16_bits(make_model, make_pool, rows):
    """What peft makes of a base in bfloat16."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = get_peft_model(
            make_model(dtype=torch.bfloat16), LoraConfig(r=3, target_modules="all-linear")
        )
        fill(model)
    pool = make_pool(6)
    assert {layer.module.weight.dtype for layer in tracked_layers(model)} == {torch.float32}
    gradients = influence.example_gradients(model, pool, IDENTITY)
    exact = rows(model.double(), pool, names(model))
    alike = torch.nn.functional.cosine_similarity(flat(gradients).double(), exact)
    assert float(alike.min()) > 0.99
    model = model.bfloat16()
    single = {name: gradient[:1] for name, gradient in gradients.items()}
    actual = influence.directional_scores(model, pool, single, IDENTITY, method="forward")
    np.testing.assert_allclose(
        actual[:, 0], -(exact @ exact[0]).numpy(), rtol=0.1, atol=1e-2 * float(exact[0] @ exact[0])
    )


def test_merged_and_disabled_adapters_are_refused(make_lora):
    model = make_lora()
    with (
        model.disable_adapter(),
        pytest.raises(ValueError, match=r"q_proj' has its adapters disabled"),
    ):
        tracked_layers(model)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"q_proj' has its adapters \['default'\] merged"):
        tracked_layers(model)
    model.unmerge_adapter()
    assert len(tracked_layers(model)) == 28
    assert all("lora" not in name for name in names(model.merge_and_unload()))


def other_kinds():
    from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, VeraConfig

    modules = ["q_proj", "down_proj"]
    return {
        "lora.Linear with DoraLinearVariant": LoraConfig(use_dora=True, target_modules=modules),
        "lora.Embedding with lora_embedding_A": LoraConfig(target_modules=["embed_tokens"]),
        "utils.ModulesToSaveWrapper": LoraConfig(
            target_modules=["q_proj"], modules_to_save=["up_proj"]
        ),
        "ia3.Linear": IA3Config(target_modules=modules, feedforward_modules=["down_proj"]),
        "loha.Linear": LoHaConfig(target_modules=modules),
        "adalora.SVDLinear": AdaLoraConfig(target_modules=modules, total_step=9),
        "vera.Linear": VeraConfig(target_modules=["q_proj"]),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "lora.Linear with DoraLinearVariant",
        "lora.Embedding with lora_embedding_A",
        "utils.ModulesToSaveWrapper",
        "ia3.Linear",
        "loha.Linear",
        "adalora.SVDLinear",
        "vera.Linear",
    ],
)
def test_other_adapters_are_refused_by_layer_and_type(make_model, kind):
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        model = get_peft_model(make_model(tied=False), other_kinds()[kind])
    with pytest.raises(ValueError, match=rf"layer 'base_model\.model\.model\..*' is an? {kind}"):
        tracked_layers(model, "all")


def test_prompt_tuning_is_refused(make_model):
    from peft import PromptTuningConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        model = get_peft_model(make_model(), config)
    with pytest.raises(ValueError, match="is a PromptEmbedding; expected LoRA"):
        tracked_layers(model)


def test_the_head_counts_where_it_carries_an_adapter(make_lora, make_pool, rows):
    with pytest.raises(ValueError, match="head of PeftModelForCausalLM carries no adapter"):
        tracked_layers(make_lora(), head=True)
    model = make_lora(tied=False, target_modules=["q_proj", "lm_head"])
    assert not any("lm_head" in name for name in names(model, CurvatureOptions(layers="all")))
    options = dataclasses.replace(IDENTITY, head=True)
    every = names(model, options)
    assert [name.split(".")[-3] for name in every[-2:]] == ["lm_head", "lm_head"]
    pool = make_pool(6)
    gradients = influence.example_gradients(model, pool, options)
    expected = rows(model, pool, every)
    torch.testing.assert_close(flat(gradients), expected, **CLOSE)
    scores = influence.directional_scores(model, pool, gradients, options, method="forward")
    np.testing.assert_allclose(scores, -(expected @ expected.T).numpy(), rtol=1e-4, atol=1e-5)

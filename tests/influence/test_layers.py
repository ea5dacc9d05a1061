import subprocess
import sys

import pytest
import torch
from torch import nn

from harness.influence import CurvatureOptions
from harness.influence.layers import Layer, check_attention, evaluating, match, tracked_layers

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("attention+mlp", ATTENTION + MLP), ("attention", ATTENTION), ("mlp", MLP)],
)
def test_tracked_parts(make_model, layers, expected):
    actual = tracked_layers(make_model(), layers)
    assert [layer.name.split(".")[-1] for layer in actual] == expected * 2


def test_head_is_an_option_and_knows_its_embedding(make_model):
    model = make_model()
    assert "lm_head" not in {layer.name for layer in tracked_layers(model, "all")}
    head = tracked_layers(model, head=True)[-1]
    assert head.name == "lm_head"
    assert head.tied == (model.model.embed_tokens,)
    assert tracked_layers(make_model(tied=False), head=True)[-1].tied == ()


def test_bias_is_the_last_column():
    layer = Layer("block.linear", nn.Linear(2, 3))
    assert layer.shape == (3, 3)
    parts = layer.split(torch.arange(9.0).reshape(3, 3))
    assert parts["block.linear.weight"].tolist() == [[0, 1], [3, 4], [6, 7]]
    assert parts["block.linear.bias"].tolist() == [2, 5, 8]
    assert layer.extend(torch.zeros(1, 2)).tolist() == [[0, 0, 1]]


def test_other_weight_classes_are_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=24, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    with pytest.raises(ValueError, match=r"'transformer\.h\.0\.attn\.c_attn' is a Conv1D"):
        tracked_layers(model)


def test_fused_attention_kernels_are_refused(make_model):
    with pytest.raises(ValueError, match="kernel is 'sdpa'; expected 'eager'"):
        check_attention(make_model(kernel="sdpa"))


def test_no_match_and_shared_weights_are_refused(make_softmax):
    with pytest.raises(ValueError, match="no linear layers match"):
        tracked_layers(make_softmax())
    model = nn.ModuleDict({"attn_a": nn.Linear(2, 2), "attn_b": nn.Linear(2, 2)})
    model["attn_b"].weight = model["attn_a"].weight
    with pytest.raises(ValueError, match="'attn_a' and 'attn_b' share one weight"):
        tracked_layers(model)


def test_gradients_must_match_the_layers(make_model):
    layers = tracked_layers(make_model(), "mlp")
    gradients = {layer.name: torch.zeros(layer.shape) for layer in layers}
    match(layers, gradients)
    with pytest.raises(ValueError, match="differ in"):
        match(layers, {**gradients, "other": torch.zeros(1)})
    first = layers[0].name
    with pytest.raises(ValueError, match="has shape"):
        match(layers, {**gradients, first: gradients[first].T})


def test_modes_come_back_for_every_module(make_model):
    model = make_model().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "magic"},
        {"fisher": "both"},
        {"damping": -0.1},
        {"damping": float("nan")},
        {"layers": "norms"},
        {"loss": "max"},
        {"batch_size": 0},
    ],
)
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match=f"influence option {next(iter(wrong))} is .*expected"):
        CurvatureOptions(**wrong)


def test_importing_the_package_does_not_import_torch():
    code = "import sys, harness.influence; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Tiny random models of several architectures, every number against autograd, one row at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from harness import influence
from harness.influence import CurvatureOptions
from harness.influence.batches import batches, model_inputs
from harness.influence.head import captured, is_plain
from harness.influence.layers import output_layer, tracked_layers

VOCABULARY = 24
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = {"num_key_value_heads": 2}
IDENTITY = CurvatureOptions(kind="identity", batch_size=5)
# name -> (class prefix, settings, whether logits are just the head's)
ARCHITECTURES = {
    "qwen2": ("Qwen2", {**GROUPED, "tie_word_embeddings": True}, True),
    "qwen2-window": (
        "Qwen2",
        {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 3}
        | {"max_window_layers": 1, "tie_word_embeddings": False},
        True,
    ),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 12, "tie_word_embeddings": False}, True),
    "qwen3-tied": (
        "Qwen3",
        {**GROUPED, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
        True,
    ),
    "llama": ("Llama", {**GROUPED, "tie_word_embeddings": True}, True),
    "llama-biased": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        True,
    ),
    "mistral": (
        "Mistral",
        {**GROUPED, "sliding_window": 4, "tie_word_embeddings": False},
        True,
    ),
    "neox": ("GPTNeoX", {"use_parallel_residual": True}, True),
    "neox-serial": (
        "GPTNeoX",
        {"use_parallel_residual": False, "tie_word_embeddings": True},
        True,
    ),
    "gemma2": (
        "Gemma2",
        {**GROUPED, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        False,
    ),
    "granite": (
        "Granite",
        {**GROUPED, "logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5}
        | {"tie_word_embeddings": True},
        False,
    ),
    # Norms of queries and keys hold a row per head.
    "cohere": ("Cohere", {**GROUPED, "logit_scale": 0.25, "use_qk_norm": True}, False),
}


@pytest.fixture
def make():
    """A model by name, with weights of a size at which attention and logits are far from flat."""

    def build(name, dtype=torch.float64):
        import transformers

        prefix, settings = ARCHITECTURES[name][:2]
        config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **settings})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            kind = getattr(transformers, f"{prefix}ForCausalLM")
            model = kind._from_config(config, attn_implementation="eager")
            for key, parameter in model.named_parameters():
                if key.endswith("bias"):
                    nn.init.normal_(parameter, std=0.3)
                elif parameter.ndim == 2:
                    nn.init.normal_(parameter, std=0.2)
        return model.to(dtype).eval()

    return build


def flat(gradients):
    return torch.cat([part.flatten(1) for part in gradients.values()], dim=1)


@pytest.fixture
def exact(autograd):
    """Losses' gradients by autograd, [n, parameters]."""

    def rows(model, pool, options):
        names = [layer.name for layer in tracked_layers(model, options.layers, options.head)]
        actual = [autograd(model, pool, i, names, options.loss) for i in range(len(pool))]
        return torch.stack([torch.cat([row[name].flatten() for name in names]) for row in actual])

    return rows


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_and_scores_are_those_of_autograd(make, make_pool, exact, name, head):
    """Also with weights that ask for no gradient: then autograd keeps no inputs alive."""
    model, pool = make(name), make_pool(7)
    options = dataclasses.replace(IDENTITY, head=head)
    expected = exact(model, pool, options)
    actual = influence.example_gradients(model.requires_grad_(False), pool, options)
    # Norms, rotations and softmax work in single precision whatever the model is in.
    close = {"rtol": 1e-4, "atol": 1e-5 * float(expected.abs().max())}
    torch.testing.assert_close(flat(actual), expected, **close)
    scores = -(expected @ expected[:2].T).numpy()
    scale = np.abs(scores).max()
    along = {key: part[:2] for key, part in actual.items()}
    forward = influence.directional_scores(model, pool, along, options, method="forward")
    np.testing.assert_allclose(forward, scores, rtol=0, atol=1e-5 * scale)
    ghost = influence.directional_scores(model, pool, along, options, method="ghost")
    np.testing.assert_allclose(ghost, scores, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_single_precision(make, make_pool, exact, name):
    model, pool = make(name), make_pool(7)
    options = dataclasses.replace(IDENTITY, head=True)
    expected = exact(model, pool, options)
    model = model.float()
    for head in (True, False):
        options = dataclasses.replace(IDENTITY, head=head)
        actual = influence.example_gradients(model, pool, options)
        part = flat(actual)
        wanted = expected[:, : part.shape[1]] if head is False else expected
        atol = 1e-4 * float(wanted.abs().max())
        torch.testing.assert_close(part.double(), wanted, rtol=1e-3, atol=atol)
    along = {key: part[:1] for key, part in actual.items()}
    scores = -(wanted @ wanted[:1].T).numpy()
    forward = influence.directional_scores(model, pool, along, options, method="forward")
    np.testing.assert_allclose(forward, scores, rtol=0, atol=1e-4 * np.abs(scores).max())
    ghost = influence.directional_scores(model, pool, along, options, method="ghost")
    np.testing.assert_allclose(ghost, scores, rtol=0, atol=1e-4 * np.abs(scores).max())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ekfac_fits(make, make_pool, name):
    model, pool, queries = make(name, torch.float32), make_pool(8), make_pool(2, 1, "q")
    curvature = influence.fit(model, pool, CurvatureOptions(head=True, batch_size=4))
    table = influence.influence_scores(model, pool, queries, None, curvature=curvature)
    backward = influence.influence_scores(
        model, pool, queries, None, curvature=curvature, method="backward"
    )
    scale = float(backward["s_C"].abs().max())
    np.testing.assert_allclose(table["s_C"], backward["s_C"], rtol=0, atol=1e-3 * scale)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cap_or_scale_behind_the_head_is_detected(make, make_pool, name):
    """A cap or a scale, in every precision."""
    plain = ARCHITECTURES[name][2]
    (batch,) = batches(make_pool(4), 4, torch.device("cpu"))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = make(name, dtype)
        head = output_layer(model)
        with torch.no_grad(), captured(head) as capture:
            logits = model(**model_inputs(model, batch)).logits
        assert is_plain(head, capture.hidden, logits) is plain


def test_a_faint_cap_is_detected_in_16_bits(make_model, make_pool):
    """3 parts in 1000 of the logits: less than one rounding in bfloat16."""
    (batch,) = batches(make_pool(4), 4, torch.device("cpu"))
    model = make_model(dtype=torch.bfloat16)
    with torch.no_grad(), captured(model.lm_head) as capture:
        logits = model(**model_inputs(model, batch)).logits
    cap = 10 * float(logits.abs().max())
    assert is_plain(model.lm_head, capture.hidden, logits)
    assert is_plain(model.lm_head, capture.hidden, logits.float())
    assert not is_plain(model.lm_head, capture.hidden, torch.tanh(logits / cap) * cap)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_a_tracked_head_by_every_method(make_model, make_pool, exact, tied, loss):
    """The weight of a tied head is moved in both of its places."""
    model, pool, queries = make_model(dtype=torch.float64, tied=tied), make_pool(9), make_pool(3, 1)
    options = dataclasses.replace(IDENTITY, head=True, loss=loss)
    losses = exact(model, pool, options)
    wanted = -exact(model, queries, dataclasses.replace(options, loss="mean"))
    expected = (-losses @ wanted.T).numpy()
    along = influence.query_gradients(model, queries, options)
    scale = np.abs(expected).max()
    ghost = influence.directional_scores(model, pool, along, options, method="ghost")
    np.testing.assert_allclose(ghost, expected, rtol=0, atol=1e-5 * scale)
    actual = influence.directional_scores(model, pool, along, options, method="forward")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)
    one = {name: part[1:2] for name, part in along.items()}
    actual = influence.directional_scores(model, pool, one, options, method="forward")
    np.testing.assert_allclose(actual, expected[:, 1:2], rtol=0, atol=1e-5 * scale)


def test_padding_tokens_inside_an_example_count_for_a_tied_head(make_pool, exact):
    """autograd gives the row of `padding_idx` no gradient; the loss depends on it all the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {**SIZES, **GROUPED, "tie_word_embeddings": True, "pad_token_id": 3}
    model = LlamaForCausalLM._from_config(LlamaConfig(**settings), attn_implementation="eager")
    model, pool = model.double().eval(), make_pool(8)
    assert any((row == 3).any() for row in pool.input_ids)
    options = dataclasses.replace(IDENTITY, head=True, layers="mlp")
    actual = influence.example_gradients(model, pool, options)
    along = {name: part[:2] for name, part in actual.items()}
    forward = influence.directional_scores(model, pool, along, options, method="forward")
    np.testing.assert_allclose(forward, -(flat(actual) @ flat(along).T).numpy(), rtol=1e-4)
    model.model.embed_tokens.padding_idx = None
    torch.testing.assert_close(flat(actual), exact(model, pool, options), rtol=1e-4, atol=1e-7)


def test_an_embedding_that_does_more_than_look_up_is_refused(make_model, make_pool):
    class Shifted(nn.Embedding):
        def forward(self, tokens):
            return super().forward(tokens) + 1

    model = make_model()
    model.model.embed_tokens.__class__ = Shifted
    with pytest.raises(ValueError, match="embedding, a Shifted, gives more than rows"):
        influence.example_gradients(model, make_pool(2), dataclasses.replace(IDENTITY, head=True))
    influence.example_gradients(model, make_pool(2), IDENTITY)


@pytest.mark.parametrize("prefix", ["Qwen3Moe", "Mixtral"])
def test_experts_in_one_tensor_are_refused_by_name(prefix):
    import transformers

    config = getattr(transformers, f"{prefix}Config")(
        **{**SIZES, **GROUPED, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 16, "head_dim": 8}
    )
    kind = getattr(transformers, f"{prefix}ForCausalLM")
    model = kind._from_config(config, attn_implementation="eager")
    with pytest.raises(ValueError, match=rf"layer 'model\.layers\.0\.mlp.*' is a {prefix}\w+ and"):
        tracked_layers(model)
    assert len(tracked_layers(model, "attention")) == 8


class Packed(nn.Module):
    """Integers instead of weights, as quantisers keep them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))


def test_quantised_layers_are_refused_by_name(make_model):
    model = make_model()
    block = model.model.layers[1]
    block.mlp.up_proj = Packed()
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj' is a Packed .*qweight"):
        tracked_layers(model)
    assert len(tracked_layers(model, "attention")) == 8
    block.self_attn.q_proj.weight.requires_grad_(False)
    block.self_attn.q_proj.weight.data = torch.zeros(32, 32, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"self_attn\.q_proj' is a Linear and holds torch\.int8"):
        tracked_layers(model, "attention")
    block.self_attn.q_proj.weight.data = torch.zeros(32, 32).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"holds torch\.float8_e4m3fn weights"):
        tracked_layers(model, "attention")

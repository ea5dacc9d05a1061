"""Tiny models and pools, and gradients by plain autograd as the oracle."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from harness.data.pool import IGNORED, Pool

VOCABULARY = 24


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_model():
    """Two layers of 32, biased grouped queries, tied embeddings; weights from a seed."""

    def make(seed=0, dtype=torch.float32, tied=True, kernel="eager", exact=False):
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen2ForCausalLM._from_config(config, attn_implementation=kernel)
            for name, parameter in model.named_parameters():
                # Fresh models have biases of 0 and weights so small that attention is uniform.
                if name.endswith("bias"):
                    nn.init.normal_(parameter, std=0.3)
                elif parameter.ndim == 2:
                    nn.init.normal_(parameter, std=0.2)
        return double(model) if exact else model.to(dtype)

    return make


def double(model):
    """`model` in float64 throughout, with an attention kernel that lacks forward-mode derivatives.

    As `dtype=torch.float64` leaves it, Qwen2's norms and eager softmax round to float32 inside, by
    amounts that differ between processors and with the padding.
    """
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Qwen2RMSNorm":
            exact = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon)
            exact.weight = module.weight
            model.set_submodule(name, exact)
    model.set_attn_implementation("sdpa")
    return model.to(torch.float64)


@pytest.fixture
def make_pool():
    """Random examples of 2-6 prompt and 1-9 response tokens."""

    def make(n, seed=0, prefix="d", vocabulary=VOCABULARY):
        rng = np.random.default_rng(seed)
        tokens, labels = [], []
        for _ in range(n):
            prompt, response = int(rng.integers(2, 7)), int(rng.integers(1, 10))
            row = rng.integers(0, vocabulary, prompt + response).astype(np.int32)
            tokens.append(row)
            labels.append(np.where(np.arange(len(row)) < prompt, IGNORED, row).astype(np.int32))
        return Pool(tuple(f"{prefix}{i}" for i in range(n)), tuple(tokens), tuple(labels))

    return make


class Softmax(nn.Module):
    """Multinomial regression of the next token on fixed features of the present one."""

    def __init__(self, classes, width, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        table = torch.randn(classes, width, generator=generator, dtype=dtype)
        self.features = nn.Embedding(classes, width, _weight=table)
        self.linear = nn.Linear(width, classes, dtype=dtype)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.linear(self.features(input_ids)))


@pytest.fixture
def make_softmax():
    def make(classes=4, width=3, dtype=torch.float64, bias=None):
        with torch.random.fork_rng(devices=[]):  # nn.Linear draws before it is set to zero
            model = Softmax(classes, width, dtype)
        if bias is not None:
            with torch.no_grad():
                model.linear.bias.copy_(torch.as_tensor(bias, dtype=dtype))
        return model

    return make


@pytest.fixture
def make_pairs():
    """Pool of (token, label) pairs, one loss-carrying position each."""

    def make(pairs, prefix="d"):
        return Pool(
            tuple(f"{prefix}{i}" for i in range(len(pairs))),
            tuple(np.array(pair, dtype=np.int32) for pair in pairs),
            tuple(np.array([IGNORED, label], dtype=np.int32) for _, label in pairs),
        )

    return make


@pytest.fixture
def autograd():
    """Gradient of one example's loss by autograd, unpadded: layer -> [out, in (+ 1)]."""

    def gradient(model, pool, position, layers, reduction="mean"):
        tokens = torch.from_numpy(pool.input_ids[position].astype(np.int64))[None]
        labels = torch.from_numpy(pool.labels[position].astype(np.int64))[None]
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        loss = nn.functional.cross_entropy(
            logits[:-1], labels[0, 1:], ignore_index=IGNORED, reduction=reduction
        )
        actual = {}
        for layer in layers:
            module = model.get_submodule(layer)
            parts = [module.weight] if module.bias is None else [module.weight, module.bias]
            grads = torch.autograd.grad(loss, parts, retain_graph=True)
            actual[layer] = torch.cat([g if g.ndim == 2 else g[:, None] for g in grads], dim=1)
        return actual

    return gradient

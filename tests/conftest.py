"""What holds for every test, and the tiny language model that most of them need."""

import os

import pytest

# Set before torch is imported, inherited by what tests start. With more threads per process than
# cores, idle threads spin and tests take up to fifty times as long; a test that is about threads
# sets their number itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def make_qwen():
    """Random Qwen2 models in evaluation mode: two layers of width 16 and 32 tokens by default."""

    def make(seed=0, **changes):
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        sizes = {
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32,
        }
        config = Qwen2Config(**(sizes | changes))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Qwen2ForCausalLM._from_config(config, attn_implementation="eager").eval()

    return make
